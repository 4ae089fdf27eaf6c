"""Points of a sweep that were scored in one form on the same clips: their scores, videos resampled
for all of them at once.

Two things make a score uncertain: which videos are asked, and with which seed was trained. The
interval is that of their sum.
- Videos are resampled, whole and the same for all points, and give the mean over seeds anew each
  time (percentile bootstrap, as in `pipeline.train.bootstrap`).
- Seeds are too few to be resampled: three values drawn again from three have a third less variance
  than the seeds they stand for, and Student's tails are lost (Hesterberg, The American Statistician
  69, 2015). To every resample is added what other seeds might have added to the mean, drawn from
  Student's t; all points together know how much that is (`seed_variance`).
Where the seed decides alone and there are three, such an interval holds the truth at least 95 times
in 100; resampling seeds and videos (the pigeonhole bootstrap, Owen, Annals of Applied Statistics 1,
2007) does so about 78 times. No interval goes beyond the scores that its metric can give.

With one seed each it is an interval over videos only: it says nothing of what another seed would
give. With fewer than some twenty videos it is too narrow, and with one there is none; p is
therefore never below 2^(1 - videos).

Shape letters: S seeds of a point, C clips, V videos, K points, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.experiments.seed_variance import SeedVariance
from pipeline.train.bootstrap import TIE, Interval, bootstrap_columns
from pipeline.train.evaluation import MetricFacts

RESAMPLES = 10_000
"""Number of times that videos are drawn. The least p is 2 / (RESAMPLES + 1), which a hundred
comparisons raise to 0.02."""


@dataclass(frozen=True)
class PointScores:
    """The first metric of one point in one form."""

    seeds: tuple[int, ...]
    clips_SC: np.ndarray
    """Score of every clip with every seed."""
    weight_C: np.ndarray
    """Weight of every clip. It follows from the truth in its windows, and is the same for all
    seeds."""
    flops: float

    @property
    def means(self) -> np.ndarray:
        """(S,) weighted mean over clips with every seed."""
        score_S: np.ndarray = self.clips_SC @ self.weight_C / self.weight_C.sum()
        return score_S

    @property
    def by_seed(self) -> dict[int, float]:
        """Seed -> weighted mean over clips."""
        return dict(zip(self.seeds, self.means.tolist(), strict=True))


class BootstrapTable:
    """Scores of points in one form and on the same clips, and the same for every resample of the
    videos."""

    def __init__(
        self,
        metric: MetricFacts,
        rows: dict[str, PointScores],
        video_of: Sequence[str],
        variances: Mapping[str, SeedVariance],
    ) -> None:
        """`rows`: point -> its scores. `video_of`: the video of every clip. `variances`: point ->
        variance of its score over seeds."""
        self.rows, self.variances = rows, variances
        self.sign = 1 if metric.higher_is_better else -1
        self.range = metric.range
        index_of = {video: index for index, video in enumerate(sorted(set(video_of)))}
        self.video_C = np.array([index_of[video] for video in video_of])
        self.videos = len(index_of)
        self.column = {name: index for index, name in enumerate(self.rows)}
        self.resampled_RK = self._resample()

    def scores(self, name: str) -> tuple[float, ...]:
        """A point's score with every seed."""
        return tuple(self.rows[name].means.tolist())

    def interval(self, name: str) -> Interval:
        """A point's mean score and its 95 % interval over seeds and videos."""
        videos_R = self.resampled_RK[:, self.column[name]]
        seeds_R = self.variances[name].draws(RESAMPLES)
        score, values_R = self.rows[name].means.mean(), videos_R + seeds_R
        return interval_of(score, values_R, self.range, self.videos)

    def gain(
        self, name: str, reference: str, paired: SeedVariance | None
    ) -> tuple[float, np.ndarray]:
        """The gain of a point over its reference, and (R,) the same for every resample. `paired`:
        variance of the gain itself, where both have the same seeds."""
        ours, theirs = self.rows[name], self.rows[reference]
        videos_R = self.sign * (
            self.resampled_RK[:, self.column[name]] - self.resampled_RK[:, self.column[reference]]
        )
        if paired:
            seeds_R = paired.draws(RESAMPLES)
        else:
            # Seeds of one have nothing to do with those of the other: two independent streams.
            seeds_R = self.variances[name].draws(RESAMPLES)
            seeds_R = seeds_R + self.variances[reference].draws(RESAMPLES, stream=1)
        return self.sign * float(ours.means.mean() - theirs.means.mean()), videos_R + seeds_R

    def against(self, name: str, reference: str) -> np.ndarray:
        """(C,) by how much each clip is better than in the reference, mean over seeds."""
        better_C: np.ndarray = self.sign * (
            self.rows[name].clips_SC.mean(0) - self.rows[reference].clips_SC.mean(0)
        )
        return better_C

    def _resample(self) -> np.ndarray:
        """(R, K) mean over seeds of every point, with the videos resampled."""
        rows = self.rows.values()
        sums_VK = np.stack(
            [self._sum_by_video(row.clips_SC.mean(0) * row.weight_C) for row in rows], axis=1
        )
        weights_VK = np.stack([self._sum_by_video(row.weight_C) for row in rows], axis=1)
        return bootstrap_columns(sums_VK, weights_VK, RESAMPLES, np.random.default_rng(0))

    def _sum_by_video(self, values_C: np.ndarray) -> np.ndarray:
        return np.bincount(self.video_C, values_C, self.videos)


def two_sided(gain_R: np.ndarray, videos: int) -> float:
    """p of no gain: twice the share of resampled gains on the rarer side of 0, the observed one
    counted with them, since a p from draws is never 0 (Phipson and Smyth, Statistical Applications
    in Genetics and Molecular Biology 9, 2010). Nor is it below what any paired test could show with
    so few videos."""
    # A gain within a rounding error of 0 is on both sides.
    rarer = min((gain_R < TIE).sum(), (gain_R > -TIE).sum())
    return float(min(1.0, max(2 * (rarer + 1) / (len(gain_R) + 1), 2.0 ** (1 - videos))))


def interval_of(
    score: float,
    values_R: np.ndarray,
    within: tuple[float, float],
    videos: int,
    even: float = 0.0,
) -> Interval:
    """A score with the 95 % percentile interval of its resampled values, cut to what is possible
    (`within`). There is none with one video, nor where no value is as far as `even` from 0."""
    if videos == 1 or (np.abs(values_R) < even).all():
        return Interval(score=float(score), low=None, high=None)
    low, high = np.clip(np.percentile(values_R, [2.5, 97.5]), *within)
    return Interval(score=float(score), low=float(low), high=float(high))
