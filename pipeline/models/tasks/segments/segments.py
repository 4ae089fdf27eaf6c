"""How well the runs of equal frames in an answer are those of the truth: the segmental scores of
temporal action segmentation (Lea et al. 2016, arXiv 1611.05267), as MS-TCN counts them.

Runs of background are left out. A label is a number; one below 0 is no class, and never right.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np


class Segment(NamedTuple):
    """Frames [start, stop) with one label."""

    label: int
    start: int
    stop: int


def segments_of(labels_T: np.ndarray, background: Collection[int]) -> list[Segment]:
    """The runs of equal labels, in order, without those of background."""
    if not len(labels_T):
        return []
    starts = [0, *(np.flatnonzero(np.diff(labels_T)) + 1).tolist()]
    stops = [*starts[1:], len(labels_T)]
    runs = (
        Segment(int(labels_T[start]), start, stop)
        for start, stop in zip(starts, stops, strict=True)
    )
    return [run for run in runs if run.label not in background]


def edit_score(said: Sequence[Segment], truth: Sequence[Segment]) -> float:
    """1 minus the Levenshtein distance of the two orders of labels over the longer one's length;
    1 where both are empty."""
    longest = max(len(said), len(truth))
    if not longest:
        return 1.0
    row = list(range(len(truth) + 1))
    for place, own in enumerate(said, start=1):
        before, row[0] = row[0], place
        for other, run in enumerate(truth, start=1):
            changed = before + (own.label != run.label)
            before = row[other]
            row[other] = min(changed, before + 1, row[other - 1] + 1)
    return 1.0 - row[-1] / longest


def found(said: Sequence[Segment], truth: Sequence[Segment], least_iou: float) -> int:
    """True positives: runs of the answer, in order, each of which overlaps a run of its label that
    none before it has taken by an intersection over union of at least `least_iou`. A run looks at
    the one that it overlaps most, and at no other."""
    taken: set[int] = set()
    for run in said:
        ious = [_iou(run, other) for other in truth]
        best = int(np.argmax(ious)) if ious else -1
        if best >= 0 and ious[best] >= least_iou and best not in taken:
            taken.add(best)
    return len(taken)


def _iou(run: Segment, other: Segment) -> float:
    """Intersection over the stretch that holds both; 0 for another label."""
    if run.label != other.label:
        return 0.0
    shared = min(run.stop, other.stop) - max(run.start, other.start)
    return max(0.0, shared / (max(run.stop, other.stop) - min(run.start, other.start)))
