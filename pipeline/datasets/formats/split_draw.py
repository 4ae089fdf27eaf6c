"""Draws splits of units that stay whole, such as groups of videos, by hashes of their names: the
same on every machine, and nearly the same when units are added."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping

REST = "train"


def draw_units(
    labels: Mapping[str, Collection[str]], share: Mapping[str, float], seed: int
) -> dict[str, str]:
    """Unit -> split: of the units of each label (`labels` says which ones a unit holds), the
    `share` of a split whose hashes come first, then that of the next split; the rest is `train`.

    Labels that have units in common are drawn together. A label has a unit in each split where its
    units are enough and, for labels that have units in common, where no other label would lose its
    own by it. A unit that is added to a label of its own moves at most that label's borders.
    """
    lot = {unit: _lot(seed, unit) for unit in labels}
    split = dict.fromkeys(labels, REST)
    for units in _strata(labels):
        units.sort(key=lot.__getitem__)
        first = 0
        for later, (name, part) in enumerate(share.items(), start=1 - len(share)):
            left = len(units) - 1 - first
            room = max(left + later, min(left, 1))
            count = min(max(round(len(units) * part), 1), room) if part else 0
            split |= dict.fromkeys(units[first : first + count], name)
            first += count
        _mend(units, labels, split, [*(name for name in share if share[name]), REST])
    return split


def fold_units(
    labels: Mapping[str, Collection[str]], fold: int, folds: int, seed: int
) -> dict[str, str]:
    """Unit -> `val` for those of one fold, counted from 1, of `folds`; else `train`. Every unit is
    in one fold, and each label's are spread over as many folds as it has units.

    Units that are added may change every fold.
    """
    strata = [sorted(units, key=lambda unit: _lot(seed, unit)) for units in _strata(labels)]
    strata.sort(key=lambda units: min(units))
    in_turn = [unit for units in strata for unit in units]
    held_out = set(in_turn[fold - 1 :: folds])
    return {unit: "val" if unit in held_out else REST for unit in labels}


def lacking(
    labels: Mapping[str, Collection[str]], split: Mapping[str, str], wanted: Collection[str]
) -> dict[str, list[str]]:
    """Split -> labels that have no unit in it, sorted; for those of the `wanted` splits that lack
    any."""
    has: dict[str, set[str]] = defaultdict(set)
    for unit, own in labels.items():
        has[split[unit]].update(own)
    every = set().union(*labels.values())
    lacks = {name: sorted(every - has[name]) for name in wanted}
    return {name: missing for name, missing in lacks.items() if missing}


def _lot(seed: int, unit: str) -> bytes:
    return hashlib.sha256(f"{seed} {unit}".encode(errors="surrogateescape")).digest()


def _strata(labels: Mapping[str, Collection[str]]) -> list[list[str]]:
    """The units, those together whose labels are linked by units that hold several."""
    units_of: dict[str, list[str]] = defaultdict(list)
    for unit, own in labels.items():
        for label in own:
            units_of[label].append(unit)
    strata, seen = [], set[str]()
    for start in labels:
        if start in seen:
            continue
        seen.add(start)
        stratum, done = [start], set[str]()
        for unit in stratum:  # grows while it is walked
            for label in set(labels[unit]) - done:
                done.add(label)
                new = [other for other in units_of[label] if other not in seen]
                seen.update(new)
                stratum += new
        strata.append(stratum)
    return strata


def _mend(
    units: list[str],
    labels: Mapping[str, Collection[str]],
    split: dict[str, str],
    wanted: Collection[str],
) -> None:
    """Moves units, in place, until no label lacks a split that it could have a unit in without
    another label losing its last one there. Every move covers one more label, so it ends."""
    count: dict[tuple[str, str], int] = defaultdict(int)
    for unit in units:
        for label in labels[unit]:
            count[label, split[unit]] += 1

    def is_free(unit: str) -> bool:
        return all(count[label, split[unit]] > 1 for label in labels[unit])

    holding: dict[str, list[str]] = defaultdict(list)
    for unit in units:
        for label in labels[unit]:
            holding[label].append(unit)
    moved = True
    while moved:
        moved = False
        for label in sorted(holding):
            for name in wanted:
                free = [] if count[label, name] else list(filter(is_free, holding[label]))
                for unit in free[:1]:
                    for own in labels[unit]:
                        count[own, split[unit]] -= 1
                        count[own, name] += 1
                    split[unit] = name
                    moved = True
