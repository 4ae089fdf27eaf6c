"""The variance over seeds says what other seeds would have scored: how far the mean over a point's
seeds may be from the mean over all seeds there are.

Two or three scores of one point know their own spread badly; those of all points of a sweep know it
better. The score of a point with a seed is taken as the sum of three parts: the point's mean, what
the seed does to all points alike, and what it does to this one.
- The common part is seen once per seed, however many points there are. It keeps Student's t of S -
  1 degrees of freedom, for S seeds. Where points are near copies of each other, as those of several
  codecs are, this is all there is.
- The own part has a variance s^2 in every point, of d degrees of freedom. These are moderated
  (Smyth, Statistical Applications in Genetics and Molecular Biology 3, 2004): the true ones are
  taken as drawn around a prior s0^2 that is worth d0 degrees of freedom, both from the mean and the
  variance of log s^2 over points. Each becomes (d0 s0^2 + d s^2) / (d0 + d) with d0 + d degrees of
  freedom, though no more than all points have together. Unlike in that paper, none becomes less
  than s^2: a point that varies much among points that do not keeps its variance.

Gains over one reference are a table of the same kind: score minus the reference's, seed by seed.
What the reference owes to its own seeds is in all of them alike, so that it is a common part, known
from S values and never shrunk.

In simulation intervals hold the truth 95 to 99 times in 100 over the ten points of a sweep; that of
a single point whose spread is three times that of all others, 86 to 90 times.

Shape letters: S seeds, K points.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.train.bootstrap import TIE

MIN_POINTS = 4
"""Points with the same seeds that know more together than each alone; below this it is Student's t
of each."""


@dataclass(frozen=True)
class SeedVariance:
    """Standard errors of the mean over a point's seeds, with their degrees of freedom."""

    common: float
    """Standard error of what seeds do to all points alike."""
    common_freedom: float
    own: float
    """Standard error of what seeds do to this point alone."""
    own_freedom: float

    def draws(self, count: int, stream: int = 0) -> np.ndarray:
        """(count,) draws of what other seeds would have added to the mean. Draws of another
        `stream` are independent of these."""
        rng = np.random.default_rng(stream)
        common = self.common * rng.standard_t(self.common_freedom, count)
        total: np.ndarray = common + self.own * rng.standard_t(self.own_freedom, count)
        return total


def seed_variances(scores: Mapping[str, Mapping[int, float]]) -> dict[str, SeedVariance]:
    """Point -> its variance over seeds, from point -> seed -> score. A point that lost seeds
    borrows from those that did not, and may have a single one left.

    Where there are too few points to borrow from, a single seed has a variance of 0: it knows
    nothing of others.
    """
    scores = dict(sorted(scores.items()))  # sums do not depend on the order of the points
    counts = Counter(tuple(sorted(of)) for of in scores.values() if len(of) > 1)
    seeds = max(counts, key=lambda seeds: (counts[seeds], seeds), default=())
    num_complete = counts[seeds]
    if num_complete < MIN_POINTS:
        return {name: _student(of.values()) for name, of in scores.items()}
    complete = {name: of for name, of in scores.items() if of.keys() == set(seeds)}
    table_KS = np.array([[of[seed] for seed in seeds] for of in complete.values()])
    seed_effect_S = table_KS.mean(0) - table_KS.mean()
    seed_effect = dict(zip(seeds, seed_effect_S.tolist(), strict=True))
    freedom_K, variance_K = np.zeros(len(scores)), np.zeros(len(scores))
    for index, (name, of) in enumerate(scores.items()):
        residual_S = np.array(
            [score - seed_effect.get(seed, 0.0) for seed, score in sorted(of.items())]
        )
        # The seed effects were estimated from the complete points, which costs them freedom.
        kept = 1 - 1 / num_complete if name in complete else 1
        freedom_K[index] = (len(of) - 1) * kept
        squares = ((residual_S - residual_S.mean()) ** 2).sum()
        variance_K[index] = squares / max(freedom_K[index], TIE)
    moderated_K, moderated_freedom_K = moderated(variance_K, freedom_K)
    count_K = np.array([len(of) for of in scores.values()])
    common_K = seed_effect_S.std(ddof=1) / np.sqrt(count_K)
    own_K = np.sqrt(np.maximum(moderated_K, variance_K) / count_K)
    columns = (common_K.tolist(), own_K.tolist(), moderated_freedom_K.tolist())
    return {
        name: SeedVariance(common, len(seeds) - 1, own, own_freedom)
        for name, common, own, own_freedom in zip(scores, *columns, strict=True)
    }


def moderated(variance_K: np.ndarray, freedom_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(K,) posterior variances and (K,) their degrees of freedom, from sample variances and theirs.

    Variances of 0 tell nothing of the prior, since a logarithm cannot be taken; they are moderated
    all the same. A point without degrees of freedom gets the prior. Where variances differ no more
    than by chance, all become the pooled one.
    """
    usable = (freedom_K > 0) & (variance_K > TIE**2)
    half = torch.from_numpy(freedom_K[usable] / 2)
    logs = np.log(variance_K[usable]) - (torch.digamma(half) - torch.log(half)).numpy()
    excess = logs.var(ddof=1) - float(torch.polygamma(1, half).mean()) if len(logs) > 1 else 0.0
    pooled_freedom = freedom_K.sum()
    if excess <= 0:
        pooled = (freedom_K * variance_K).sum() / pooled_freedom
        return np.full_like(variance_K, pooled), np.full_like(freedom_K, pooled_freedom)
    prior_half = torch.tensor(trigamma_inverse(excess), dtype=torch.float64)
    prior = float(np.exp(logs.mean()) * torch.exp(torch.digamma(prior_half)) / prior_half)
    prior_freedom = 2 * float(prior_half)
    freedom = prior_freedom + freedom_K
    posterior_K = (prior_freedom * prior + freedom_K * variance_K) / freedom
    return posterior_K, np.minimum(freedom, pooled_freedom)


def trigamma_inverse(value: float) -> float:
    """y > 0 with trigamma(y) = value, by Newton's method on 1 / trigamma, which is convex: it comes
    down from above."""
    y, step = 0.5 + 1 / value, -1.0
    while -step > 1e-9 * y:
        trigamma, slope = (
            float(torch.polygamma(n, torch.tensor(y, dtype=torch.float64))) for n in (1, 2)
        )
        step = trigamma * (1 - trigamma / value) / slope
        y += step
    return y


def _student(scores: Collection[float]) -> SeedVariance:
    """Student's t of one point's scores alone."""
    count = len(scores)
    error = float(np.std(list(scores), ddof=1)) / count**0.5 if count > 1 else 0.0
    return SeedVariance(common=error, common_freedom=max(count - 1, 1), own=0.0, own_freedom=1)
