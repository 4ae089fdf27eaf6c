"""Percentile bootstrap over videos: whole videos are drawn again with replacement, since clips of
one video are not independent witnesses (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13).

Shape letters: V videos, R resamples, K columns, each a quantity that is averaged over the same
videos.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pipeline.config.plugins import Settings

RESAMPLES = 2000
"""Number of resamples behind the interval of one score."""
BLOCK_NUMBERS = 4_000_000
"""Most numbers of a block, which is resamples times videos: 32 MB for each of the few arrays of
that size that are in memory at once."""


TIE = 1e-9
"""Scores that differ by less are even."""
NO_INTERVAL = "\N{EN DASH}"
"""Stands where an interval would, and nothing is known of one."""


class Interval(Settings):
    """A mean score and its 95 % interval."""

    score: float
    low: float | None
    """None, as is `high`, where nothing tells how uncertain the score is: there is one video, or
    all clips of two runs are even."""
    high: float | None

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends, which are the score itself where they are not known."""
        if self.low is None or self.high is None:
            return self.score, self.score
        return self.low, self.high

    def span(self, show: Callable[[float], str] = "{:.3f}".format) -> str:
        """Both ends for a reader, or a dash where they are not known."""
        if self.low is None or self.high is None:
            return NO_INTERVAL
        return f"{show(self.low)} .. {show(self.high)}"


def bootstrap(
    sums_V: np.ndarray, weights_V: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """(R,) weighted means, each over V videos drawn with replacement.

    `sums_V` are every video's scores times their weights, summed, and `weights_V` its weights,
    summed. Memory does not grow with R, nor does the size of the blocks change a result.
    """
    return np.concatenate(
        [
            sums_V[drawn_RV].sum(1) / weights_V[drawn_RV].sum(1)
            for drawn_RV in _drawn_videos(len(sums_V), resamples, rng)
        ]
    )


def bootstrap_columns(
    sums_VK: np.ndarray, weights_VK: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """(R, K) weighted means as `bootstrap` gives them, the same videos drawn for all columns.

    How often each video was drawn is counted, and one matrix product serves all columns: much
    faster than to gather every column's videos, and equal up to rounding.
    """
    blocks = []
    for drawn_RV in _drawn_videos(len(sums_VK), resamples, rng):
        rows, videos = drawn_RV.shape
        drawn_RV += videos * np.arange(rows)[:, None]  # every resample counts in a range of its own
        times_RV = np.bincount(drawn_RV.ravel(), minlength=rows * videos).reshape(rows, videos)
        times_RV = times_RV.astype(np.float64)
        blocks.append((times_RV @ sums_VK) / (times_RV @ weights_VK))
    return np.concatenate(blocks)


def _drawn_videos(videos: int, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Indices of the videos of all resamples, in blocks (rows, V) of bounded size. The generator is
    asked for row after row, so that the numbers are those of one call for all."""
    rows = max(1, BLOCK_NUMBERS // videos)
    for first in range(0, resamples, rows):
        yield rng.integers(0, videos, (min(rows, resamples - first), videos))


def interval(
    scores: np.ndarray, videos: Sequence[str], weights: np.ndarray | None = None, seed: int = 0
) -> Interval:
    """Weighted mean over windows and its 95 % percentile interval when whole videos are resampled.

    `scores`, `videos` and `weights` have one entry for each window. A window of weight 0 has no
    say, and its score may be NaN. With one video, nothing is known of others: the ends are None.
    """
    weights = np.ones(len(scores)) if weights is None else weights
    scores, video_index, weights = _counted(scores, videos, weights)
    sums_V, weights_V = (
        np.bincount(video_index, scores * weights),
        np.bincount(video_index, weights),
    )
    score = float(sums_V.sum() / weights_V.sum())
    if len(sums_V) == 1:
        return Interval(score=score, low=None, high=None)
    means_R = bootstrap(sums_V, weights_V, RESAMPLES, np.random.default_rng(seed))
    low, high = np.percentile(means_R, [2.5, 97.5])
    return Interval(score=score, low=float(low), high=float(high))


def median_interval(
    scores: np.ndarray, videos: Sequence[str], weights: np.ndarray, seed: int = 0
) -> Interval:
    """The median and its 95 % percentile interval when whole videos are resampled: as `interval`,
    and `scores` and `weights` may have several values of each window, (windows, K). Where the
    weights below it are half of all, it lies between two scores."""
    values, video_index, weights = _counted(scores, videos, weights)
    order = np.argsort(values, kind="stable")
    values, video_index, weights = values[order], video_index[order], weights[order]
    count = int(video_index.max()) + 1
    score = float(_median(values, weights[None])[0])
    if count == 1:
        return Interval(score=score, low=None, high=None)
    medians = []
    for drawn_RV in _drawn_videos(count, RESAMPLES, np.random.default_rng(seed)):
        rows = max(1, BLOCK_NUMBERS // len(values))
        for first in range(0, len(drawn_RV), rows):
            times = np.stack(
                [np.bincount(r, minlength=count) for r in drawn_RV[first : first + rows]]
            )
            medians.append(_median(values, times[:, video_index] * weights))
    low, high = np.percentile(np.concatenate(medians), [2.5, 97.5])
    return Interval(score=score, low=float(low), high=float(high))


def _median(ascending_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """(R,) weighted medians."""
    below_RN = weights_RN.cumsum(1)
    half_R1 = below_RN[:, -1:] / 2
    # The first value with at least, and the first with more than half of the weights up to it.
    first_R, after_R = (below_RN < half_R1).sum(1), (below_RN <= half_R1).sum(1)
    medians_R: np.ndarray = (ascending_N[first_R] + ascending_N[after_R]) / 2
    return medians_R


def _counted(
    scores: np.ndarray, videos: Sequence[str], weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, numbers of their videos and weights, (N,) each, of what has a say."""
    counted = weights > 0
    windows = np.nonzero(counted)[0]
    _, video_index = np.unique(np.asarray(videos)[windows], return_inverse=True)
    return scores[counted], video_index, weights[counted]
