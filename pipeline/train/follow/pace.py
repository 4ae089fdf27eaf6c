"""How far a training may go on what has come of its cache, and which windows it draws.

A training of S samples over n windows draws each of them S / n times. One that follows its cache
does the same, in another order: the more often a window is still due, the likelier it is drawn.
While a share s of the windows is there, it may take `BEFORE_WHOLE` s^2 of its samples. So what
comes late is learnt among all that came before, few windows are not learnt by heart while there are
few, and at the end every window has been drawn as often as any other.
"""

from __future__ import annotations

import math

import numpy as np

BEFORE_WHOLE = 0.5
"""Share of a training that may be done before its cache is whole."""


def allowed_samples(samples: int, windows: int, of: int) -> int:
    """How many of its `samples` a training may draw with `windows` there of the `of` windows of an
    epoch, before the cache is whole."""
    return int(BEFORE_WHOLE * samples * min(1.0, windows / of) ** 2)


class Pace:
    """How often each window that is there has been drawn (W of them), and which come next: a pure
    function of the seed, of when windows came, and of the number of a round."""

    def __init__(self, samples: int, seed: int) -> None:
        """`samples`: those of the whole training. `seed`: that of the windows."""
        self.samples, self.seed = samples, seed
        self.drawn_W = np.zeros(0, np.int64)

    def add(self, windows: int) -> None:
        """So many windows have come; they get the next numbers."""
        self.drawn_W = np.append(self.drawn_W, np.zeros(windows, np.int64))

    @property
    def seen(self) -> int:
        """How many windows have been drawn at least once."""
        return int((self.drawn_W > 0).sum())

    def draw(self, number: int, count: int, of: int) -> tuple[np.ndarray, np.ndarray]:
        """The windows of round `number`, as (count,) int64 in the order in which they are read, and
        (3, count) numbers in [0, 1) for whatever else is drawn of each. `of`: windows of an epoch
        over the whole cache. No window comes again in a round before all that are due have come."""
        rng = np.random.Generator(np.random.Philox(key=np.array([self.seed, number], np.uint64)))
        share = self.samples / of
        passes: list[np.ndarray] = []
        left = count
        while left:
            is_due = self.drawn_W < math.ceil(share)
            due = np.flatnonzero(is_due) if is_due.any() else np.arange(len(self.drawn_W))
            # Without replacement, by weights: see Efraimidis and Spirakis, 2006.
            weights = np.maximum(share - self.drawn_W[due], 1e-3)
            keys = np.log(1 - rng.random(len(due))) / weights
            taken = due if len(due) <= left else due[np.argpartition(-keys, left - 1)[:left]]
            self.drawn_W[taken] += 1
            passes.append(rng.permutation(taken))
            left -= len(taken)
        return np.concatenate(passes), rng.random((3, count))
