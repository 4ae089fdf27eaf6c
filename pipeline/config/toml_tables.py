"""Nested tables, as TOML files and --set on the command line give them: read, laid over one
another, compared."""

from __future__ import annotations

import json
import logging
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import plugins
from pipeline.errors import BadInput

log = logging.getLogger(__name__)


def read_table(path: Path, what: str) -> dict[str, Any]:
    """A TOML file as a table. `what` it is, for errors."""
    if not path.is_file():
        folder, problem = (
            (path, "is a folder, not a file") if path.is_dir() else (path.parent, "does not exist")
        )
        near = sorted(file.name for file in folder.glob("*.toml")) if folder.is_dir() else []
        raise BadInput(
            f"{what} {path} {problem}", f"in {folder} there are: {', '.join(near)}" if near else ""
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{what} {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{what} {path} is not valid TOML: {error}") from error
    table.setdefault("name", path.stem)
    log.debug("read %s %s", what, path)
    return table


def read_own(path: Path, what: str) -> dict[str, Any]:
    """A TOML file of the user's own as a table: the plug-ins that it names by their files, relative
    to it, are made known, and stand in the table by their names."""
    table: dict[str, Any] = plugins.with_files_known("", read_table(path, what), path.parent)
    return table


def override(table: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lays `--set a.b=value` over a table. The value is read as TOML; what is not TOML is taken as
    a string."""
    for text in overrides:
        key, value = assignment(text)
        set_nested(table, key, value)
        kind, _, last = key.rpartition(".")
        if last == "name":  # of another plug-in, of which nothing is recorded
            _table_at(table, kind, key).pop(plugins.FROM, None)
    return table


def assignment(text: str) -> tuple[str, Any]:
    """`a.b=value` as key and value. A plug-in that the value names by its file, relative to the
    current folder, is made known; the value is then its name."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise BadInput(f"--set wants key=value, found '{text}'", "for example --set frames.fps=8")
    key = key.strip()
    return key, plugins.with_files_known(key, _value(value.strip()))


def set_nested(table: dict[str, Any], key: str, value: Any) -> None:
    """Puts a value at `a.b` of nested tables, which are made where they are missing."""
    path, _, last = key.rpartition(".")
    _table_at(table, path, key)[last] = value


def _table_at(table: dict[str, Any], path: str, key: str) -> dict[str, Any]:
    """The nested table at `path`, such as `a.b`, made where it is missing; the table itself at "".
    `key`: what is wanted of it, for messages."""
    for part in path.split(".") if path else ():
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise BadInput(f"{key}: '{part}' is a value, not a table")
        table = inner
    return table


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def differing(
    ours: dict[str, Any], theirs: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(key, ours, theirs) of every leaf in which two plain-JSON tables differ."""
    for key in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differing(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Every leaf in which two plain-JSON tables differ, as `key: ours / theirs`."""
    return [f"{key}: {json.dumps(a)} / {json.dumps(b)}" for key, a, b in differing(ours, theirs)]
