"""Paths with fields: `train/{sequence}/img` finds every such folder and what `{sequence}` stands
for in each.

A pattern is a path below the root, with forward slashes. `{name}` stands for a part of one name of
a file or folder, `*` for any such part, and `**` for any number of folders, also none. The same
field stands for the same text, in one pattern and in all patterns of one sequence, and so does
`**`; `*` is free.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.datasets.formats.folders import foreign_kind
from pipeline.errors import BadInput

FOLDERS = "**"
FIELD = re.compile(r"\{(\w+)\}")
MOST_FOLDERS = 12
"""Levels of folders that `**` looks through; links may lead round in a circle."""

Fields = dict[str, str]


class Found(NamedTuple):
    """A file or folder that a pattern leads to."""

    path: Path
    fields: Fields
    """What the fields, and `**`, stand for."""


def check_pattern(pattern: str, where: str) -> str:
    """The pattern as it is. Raises BadInput unless it is a path below the root."""
    parts = pattern.split("/")
    if not pattern or pattern.startswith("/") or "\\" in pattern or {"", ".", ".."} & set(parts):
        raise BadInput(
            f"{where}: wanted a path below the root, such as '{{sequence}}/img', found '{pattern}'"
        )
    if parts.count(FOLDERS) > 1 or any(FOLDERS in part for part in parts if part != FOLDERS):
        raise BadInput(f"{where}: '**' may stand once, for whole folders, found '{pattern}'")
    if re.search(r"[{}]", FIELD.sub("", pattern)):
        raise BadInput(f"{where}: a field is a name in braces, found '{pattern}'")
    return pattern


def fields_of(pattern: str) -> set[str]:
    """The names of a pattern's fields."""
    return set(FIELD.findall(pattern))


def find(root: Path, pattern: str, known: Mapping[str, str] | None = None) -> list[Found]:
    """Everything below the root that a pattern leads to, sorted by path, where fields stand for
    what is `known` of them; names that systems and cameras leave there are passed over."""
    parts = pattern.split("/")
    return sorted(_find(root, parts, dict(known or {})), key=lambda found: found.path)


def _find(folder: Path, parts: list[str], known: Fields) -> Iterator[Found]:
    if not parts:
        yield Found(folder, known)
        return
    first, rest = parts[0], parts[1:]
    if first == FOLDERS:
        yield from _below(folder, rest, known)
        return
    regex = _regex(first, known)
    if isinstance(regex, str):
        if os.path.lexists(folder / regex):
            yield from _find(folder / regex, rest, known)
        return
    for name in _names(folder, only_folders=bool(rest)):
        match = regex.fullmatch(name)
        if match:
            yield from _find(folder / name, rest, known | match.groupdict())


def _below(folder: Path, rest: list[str], known: Fields) -> Iterator[Found]:
    """What the rest of a pattern after `**` leads to."""
    if FOLDERS in known:
        yield from _find(folder / known[FOLDERS], rest, known)
        return
    waiting = [(folder, 0)]
    while waiting:
        here, depth = waiting.pop()
        text = here.relative_to(folder).as_posix() if here != folder else ""
        yield from _find(here, rest, known | {FOLDERS: text})
        if depth < MOST_FOLDERS:
            waiting += [(here / name, depth + 1) for name in _names(here, only_folders=True)]


def _names(folder: Path, *, only_folders: bool) -> list[str]:
    """Sorted names in a folder; none where it cannot be listed, as where it is a file."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not only_folders or entry.is_dir()]
    except (NotADirectoryError, FileNotFoundError):
        return []
    return sorted(name for name in names if foreign_kind(name) is None)


def _regex(part: str, known: Mapping[str, str]) -> re.Pattern[str] | str:
    """One level of a pattern: the name itself where nothing in it is open, else what the name has
    to match."""
    part = FIELD.sub(lambda field: known.get(field[1], field[0]), part)
    if not FIELD.search(part) and "*" not in part:
        return part
    seen: set[str] = set()

    def group(token: str) -> str:
        if token == "*":
            return ".*"
        if not token.startswith("{"):
            return re.escape(token)
        name = token[1:-1]
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>.+)"

    return re.compile("".join(map(group, re.split(r"(\{\w+\}|\*)", part))))
