"""Settings that were scored in one form on the same clips: their scores, videos resampled for all
of them at once.

Two things make a score uncertain: which videos are asked, and with which seed was trained. The
interval is that of their sum.
- Videos are resampled, whole and the same for all settings, and give the mean over seeds anew each
  time (percentile bootstrap, as in `pipeline.train.evaluate`).
- Seeds are too few to be resampled: three values drawn again from three have a third less variance
  than the seeds they stand for, and Student's tails are lost (Hesterberg, The American Statistician
  69, 2015). To every resample is added what other seeds might have added to the mean, drawn from
  Student's t; all settings together know how much that is (`seed_variance`).
Where the seed decides alone and there are three, such an interval holds the truth at least 95 times
in 100; resampling seeds and videos (the pigeonhole bootstrap, Owen, Annals of Applied Statistics 1,
2007) does so about 78 times. No interval goes beyond the scores that its metric can give.

With one seed each it is an interval over videos only: it says nothing of what another seed would
give. With fewer than some twenty videos it is too narrow, and with one it has no width; p is
therefore never below 2^(1 - videos).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.experiments.seed_variance import TIE, SeedVariance
from pipeline.train.bootstrap import Interval, bootstrap_columns
from pipeline.train.evaluate import MetricFacts

RESAMPLES = 10_000
"""Of the videos. The least p is 2 / (RESAMPLES + 1), which a hundred comparisons raise to 0.02."""


@dataclass(frozen=True)
class Scored:
    """The first metric of one setting in one form."""

    seeds: tuple[int, ...]
    clips_SC: np.ndarray
    """Score of every clip, one row per seed."""
    weight_C: np.ndarray
    """The same for all seeds: it is of the truth in the windows."""
    flops: float

    @property
    def means(self) -> np.ndarray:
        """Score of every seed, (S,)."""
        score_S: np.ndarray = self.clips_SC @ self.weight_C / self.weight_C.sum()
        return score_S

    @property
    def by_seed(self) -> dict[int, float]:
        return dict(zip(self.seeds, self.means.tolist(), strict=True))


class BootstrapTable:
    """Setting -> its scores, all in one form and on the same clips."""

    def __init__(
        self,
        metric: MetricFacts,
        rows: dict[str, Scored],
        video_of: Sequence[str],
        spreads: Mapping[str, SeedVariance],
    ) -> None:
        """`video_of`: video of every clip. `spreads`: of every setting's score."""
        self.rows, self.spreads = rows, spreads
        self.sign = 1 if metric.higher_is_better else -1
        self.range = metric.range
        number = {video: place for place, video in enumerate(sorted(set(video_of)))}
        self.video_C = np.array([number[video] for video in video_of])
        self.videos = len(number)
        self.column = {name: place for place, name in enumerate(self.rows)}
        self.resampled = self._resampled()

    def scores(self, name: str) -> tuple[float, ...]:
        return tuple(self.rows[name].means.tolist())

    def interval(self, name: str) -> Interval:
        resampled = self.resampled[:, self.column[name]] + self.spreads[name].draws(RESAMPLES)
        return interval_of(self.rows[name].means.mean(), resampled, self.range)

    def gain(
        self, name: str, reference: str, paired: SeedVariance | None
    ) -> tuple[float, np.ndarray]:
        """The gain, and the same for every resample. `paired`: of the gain itself, where both have
        the same seeds."""
        ours, theirs = self.rows[name], self.rows[reference]
        resampled = self.sign * (
            self.resampled[:, self.column[name]] - self.resampled[:, self.column[reference]]
        )
        if paired:
            noise = paired.draws(RESAMPLES)
        else:
            noise = self.spreads[name].draws(RESAMPLES) + self.spreads[reference].draws(
                RESAMPLES, stream=1
            )
        return self.sign * float(ours.means.mean() - theirs.means.mean()), resampled + noise

    def against(self, name: str, reference: str) -> np.ndarray:
        """By how much each clip is better, mean over seeds, (C,)."""
        better_C: np.ndarray = self.sign * (
            self.rows[name].clips_SC.mean(0) - self.rows[reference].clips_SC.mean(0)
        )
        return better_C

    def _resampled(self) -> np.ndarray:
        """Mean over seeds of every setting, with the videos resampled: (RESAMPLES, settings)."""
        rows = self.rows.values()
        sums_VK = np.stack(
            [self._by_video(row.clips_SC.mean(0) * row.weight_C) for row in rows], axis=1
        )
        weights_VK = np.stack([self._by_video(row.weight_C) for row in rows], axis=1)
        return bootstrap_columns(sums_VK, weights_VK, RESAMPLES, np.random.default_rng(0))

    def _by_video(self, values_C: np.ndarray) -> np.ndarray:
        return np.bincount(self.video_C, values_C, self.videos)


def two_sided(resampled: np.ndarray, videos: int) -> float:
    """p of no gain: twice the share of resampled gains on the rarer side of 0, the observed one
    counted with them, since a p from draws is never 0 (Phipson and Smyth, 2010). Nor is it below
    what any paired test could show with so few videos."""
    rarer = min(
        (resampled < TIE).sum(), (resampled > -TIE).sum()
    )  # a rounding error is on both sides
    return float(min(1.0, max(2 * (rarer + 1) / (len(resampled) + 1), 2.0 ** (1 - videos))))


def interval_of(score: float, resampled: np.ndarray, within: tuple[float, float]) -> Interval:
    low, high = np.clip(np.percentile(resampled, [2.5, 97.5]), *within)
    return Interval(score=float(score), low=float(low), high=float(high))
