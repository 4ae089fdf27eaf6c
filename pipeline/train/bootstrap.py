"""Intervals of scores: whole videos are resampled, since clips of one video are not independent
witnesses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.config.plugins import Settings
from pipeline.errors import BadInput

RESAMPLES = 2000


class Interval(Settings):
    """A mean score and its 95 % interval."""

    score: float
    low: float
    high: float


class MetricFacts(Settings):
    name: str
    higher_is_better: bool
    perfect: float
    unit: str
    worst: float | None = None
    """None: there is no such end, or it was not written down yet."""

    @property
    def range(self) -> tuple[float, float]:
        """Least and greatest score there is."""
        if self.higher_is_better:
            return -math.inf if self.worst is None else self.worst, self.perfect
        return self.perfect, math.inf if self.worst is None else self.worst


def interval(
    scores: np.ndarray, videos: Sequence[str], weights: np.ndarray | None = None, seed: int = 0
) -> Interval:
    """Weighted mean over windows and its 95 % percentile interval when whole videos are resampled.

    A window of weight 0 has no say, and its score may be NaN.
    """
    weights = np.ones(len(scores)) if weights is None else weights
    counted = weights > 0
    scores, weights = scores[counted], weights[counted]
    _, group = np.unique(np.asarray(videos)[counted], return_inverse=True)
    sums, counts = np.bincount(group, scores * weights), np.bincount(group, weights)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(score=float(sums.sum() / counts.sum()), low=float(low), high=float(high))


def measure(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What is alike in evaluations whose scores can be compared; a metric's worst score is not
    written in older ones."""
    metrics = [
        {key: fact for key, fact in metric.items() if key != "worst"}
        for metric in evaluation["metrics"]
    ]
    return {"task": evaluation["task"], "split": evaluation["split"], "metrics": metrics}


def difference(ours: dict[str, Any], theirs: dict[str, Any], form: str) -> Interval:
    """First metric of one evaluation minus that of another on the same clips, videos resampled:
    paired, so that what makes a clip hard for both cancels."""
    same = ours["clips"].keys() == theirs["clips"].keys() and measure(ours) == measure(theirs)
    if not same or form not in theirs["forms"] or form not in ours["forms"]:
        raise BadInput(
            f"runs {ours['run']} and {theirs['run']} were not scored on the same clips in form '{form}'",
            "evaluate both on the same split of one manifest",
        )
    pairs = [(clip, theirs["clips"][clip_id]) for clip_id, clip in ours["clips"].items()]
    gain = np.array([clip[form] - other[form] for clip, other in pairs])
    return interval(
        gain, [clip["video"] for clip, _ in pairs], np.array([clip["weight"] for clip, _ in pairs])
    )
