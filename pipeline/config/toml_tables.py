"""Nested tables, as TOML files and --set on the command line give them: read, laid over one
another, compared."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import BadInput


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
    return table


def override(table: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lays `--set a.b=value` over a table. The value is read as TOML; what is not TOML is taken as
    a string."""
    for text in overrides:
        key, value = assignment(text)
        set_nested(table, key, value)
    return table


def assignment(text: str) -> tuple[str, Any]:
    """`a.b=value` as key and value."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise BadInput(f"--set wants key=value, found '{text}'", "for example --set frames.fps=8")
    return key.strip(), _value(value.strip())


def set_nested(table: dict[str, Any], key: str, value: Any) -> None:
    """Puts a value at `a.b` of nested tables, which are made where they are missing."""
    *path, last = key.split(".")
    for part in path:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise BadInput(f"{key}: '{part}' is a value, not a table")
        table = inner
    table[last] = value


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
