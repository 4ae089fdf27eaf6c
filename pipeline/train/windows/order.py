"""The order decides which window is read when.

The order is a pure function of (seed, step, rank, world size), and its seed is `windows.seed`,
whatever draws the weights. Sample number g of the endless training stream is the window at index
g mod n of the permutation of epoch g div n, and a batch is the next B samples. So no clip is
dropped, every rank has the same number of steps, and going on in mid-epoch needs one integer. In
which of the cache's views a sample is seen, and in which direction it is read, is drawn alike.

A clip has one window in an epoch, which may lie anywhere in it, or, where clips count by length
(`windows.per_clip`), as many as it holds, each of which lies anywhere in a part of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice

import numpy as np

from pipeline.config.recipe import WindowSettings
from pipeline.train.windows.index import WindowRef


@dataclass(frozen=True)
class SampleOrder:
    """The order of the windows of `clips` clips."""

    clips: int
    settings: WindowSettings
    counts: np.ndarray | None = field(default=None, compare=False)
    """(clips,) windows of each clip in an epoch; None: one."""

    @cached_property
    def _ends(self) -> np.ndarray:
        """(clips,) windows of an epoch up to and with those of each clip, in the order of clips."""
        assert self.counts is not None
        return np.cumsum(self.counts)

    @property
    def windows(self) -> int:
        """Windows of an epoch."""
        return self.clips if self.counts is None else int(self._ends[-1])

    def sample(self, number: int) -> WindowRef:
        """Sample `number` of the endless training stream."""
        epoch, index = divmod(number, self.windows)
        views, both_directions = self.settings.views, self.settings.both_directions
        shares = 3 if both_directions else 1 if len(views) == 1 else 2
        order, drawn = _epoch(self.settings.seed, epoch, self.windows, shares)
        window = int(order[index])
        clip, part, parts = self._place(window)
        position = (part + float(drawn[0][window])) / parts
        view = views[0] if len(views) == 1 else views[int(drawn[1][window] * len(views))]
        backwards = both_directions and bool(drawn[2][window] < 0.5)
        return WindowRef(clip, position, number, view, backwards)

    def _place(self, window: int) -> tuple[int, int, int]:
        """The clip of a window, and which of how many parts of the clip it lies in."""
        if self.counts is None:
            return window, 0, 1
        clip, parts = int(np.searchsorted(self._ends, window, side="right")), self.counts
        return clip, window - int(self._ends[clip] - parts[clip]), int(parts[clip])

    def batch(self, step: int, batch_size: int, rank: int, world_size: int) -> list[WindowRef]:
        """This rank's part of the batch of a training step. `world_size` divides `batch_size`."""
        numbers = range(step * batch_size + rank, (step + 1) * batch_size, world_size)
        return [self.sample(number) for number in numbers]

    def evaluation(self, rank: int = 0, world_size: int = 1) -> Iterator[WindowRef]:
        """Every clip in order: `eval_windows` for each of its windows in an epoch, spread evenly
        over it; of these, this rank's share."""
        return islice(self._evaluation(), rank, None, world_size)

    def some_of_evaluation(self, most: int) -> Iterator[WindowRef]:
        """The first `most` windows of evaluation; where clips count by length, as many that are
        spread over all of them, since the first may be of few clips."""
        step = 1 if self.counts is None else -(-self.windows * self.settings.eval_windows // most)
        return islice(self._evaluation(), 0, most * step, step)

    def _evaluation(self) -> Iterator[WindowRef]:
        for clip in range(self.clips):
            windows = 1 if self.counts is None else int(self.counts[clip])
            for position in _spread(windows * self.settings.eval_windows):
                yield WindowRef(clip, position)


@lru_cache(maxsize=64)
def _spread(count: int) -> list[float]:
    """Places of so many windows that are spread evenly over their clip, ends included."""
    positions: list[float] = [0.5] if count == 1 else np.linspace(0, 1, count).tolist()
    return positions


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, windows: int, shares: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Order of the windows in an epoch; and for each window up to three numbers in [0, 1), of which
    the first `shares` are kept: where in its part of the clip it lies, where among the views the
    one it is seen in, and in which direction it is read."""
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
    order = rng.permutation(windows).astype(np.min_scalar_type(windows))
    return order, [rng.random(windows) for _ in range(shares)]
