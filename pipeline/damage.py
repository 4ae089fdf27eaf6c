"""What can be wrong with the stores of a cache, as records, and put together for whoever reads of much of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

LINES = 20
"""Groups of damage of which a reader sees every one; of more, like is put with like."""

Kind = Literal["receipt", "gone", "missing", "size", "content", "swapped", "unreadable", "stray"]
TITLES: dict[Kind, str] = {
    "receipt": "wrong receipt",
    "gone": "folder is missing",
    "missing": "missing",
    "size": "other size than the receipt says",
    "content": "content differs from its checksum",
    "swapped": "has the content of something else",
    "unreadable": "cannot be read",
    "stray": "not in the receipt",
}
Rows = tuple[int, int]
"""[start, stop) of a store."""


@dataclass(frozen=True)
class Damage:
    """What is wrong with one file of a store, or with its receipt."""

    store: int
    file: str
    """Below the store's folder; of a receipt, or where all of the store is concerned, below the cache."""
    kind: Kind
    problem: str
    rows: tuple[Rows, ...]
    """Rows of the store that cannot be trusted."""
    videos: tuple[str, ...]
    """Whose rows they are."""


@dataclass
class Group:
    """Damage of one kind."""

    stores: list[int]
    kind: Kind
    problem: str
    files: list[str]
    frames: int
    """Rows that are hit."""
    videos: list[str]


def groups(damage: Iterable[Damage]) -> list[Group]:
    """Damage of the same files with the same problem together; where that leaves many groups, of the same kind."""
    files: dict[tuple[int, Kind, str], list[Damage]] = {}
    for each in damage:
        files.setdefault((each.store, each.kind, each.problem), []).append(each)
    alike: dict[object, list[list[Damage]]] = {}
    for (_, kind, problem), of_store in files.items():
        names = () if kind in ("gone", "receipt") else tuple(each.file for each in of_store)
        alike.setdefault((kind, problem, names), []).append(of_store)
    if len(alike) > LINES:
        alike = {}
        for (_, kind, _), of_store in files.items():
            alike.setdefault(kind, []).append(of_store)
    return [_group(stores) for stores in alike.values()]


def frames_hit(damage: Iterable[Damage]) -> int:
    """Rows that cannot be trusted, each counted once however many of its arrays are damaged."""
    rows: dict[int, list[Rows]] = {}
    for each in damage:
        rows.setdefault(each.store, []).extend(each.rows)
    count = 0
    for ranges in rows.values():
        end = 0
        for start, stop in sorted(ranges):
            count += max(0, stop - max(start, end))
            end = max(end, stop)
    return count


def videos_hit(damage: Iterable[Damage]) -> list[str]:
    return list(dict.fromkeys(video for each in damage for video in each.videos))


def _group(stores: Sequence[Sequence[Damage]]) -> Group:
    damage = [each for of_store in stores for each in of_store]
    first = damage[0]
    problems = {each.problem for each in damage}
    return Group(
        stores=list(dict.fromkeys(each.store for each in damage)),
        kind=first.kind,
        problem=first.problem if len(problems) == 1 else TITLES[first.kind],
        files=list(dict.fromkeys(each.file for each in damage)),
        frames=frames_hit(damage),
        videos=videos_hit(damage),
    )
