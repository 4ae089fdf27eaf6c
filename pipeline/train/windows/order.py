"""The order decides which window is read when.

The order is a pure function of (seed, step, rank, world size), and its seed is `windows.seed`,
whatever draws the weights. Sample number g of the endless training stream is the clip at index
g mod n of the permutation of epoch g div n, and a batch is the next B samples. So no clip is
dropped, every rank has the same number of steps, and going on in mid-epoch needs one integer. In
which of the cache's views a sample is seen, and in which direction it is read, is drawn alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np

from pipeline.config.recipe import WindowSettings
from pipeline.train.windows.index import WindowRef


@dataclass(frozen=True)
class SampleOrder:
    """The order of the windows of `clips` clips."""

    clips: int
    settings: WindowSettings

    def sample(self, number: int) -> WindowRef:
        """Sample `number` of the endless training stream."""
        epoch, index = divmod(number, self.clips)
        order, positions, view_shares, directions = _epoch(self.settings.seed, epoch, self.clips)
        clip, views = int(order[index]), self.settings.views
        view = views[int(view_shares[clip] * len(views))]
        backwards = self.settings.both_directions and bool(directions[clip] < 0.5)
        return WindowRef(clip, float(positions[clip]), number, view, backwards)

    def batch(self, step: int, batch_size: int, rank: int, world_size: int) -> list[WindowRef]:
        """This rank's part of the batch of a training step. `world_size` divides `batch_size`."""
        numbers = range(step * batch_size + rank, (step + 1) * batch_size, world_size)
        return [self.sample(number) for number in numbers]

    def evaluation(self, rank: int = 0, world_size: int = 1) -> Iterator[WindowRef]:
        """Every clip in order, `eval_windows` windows of each spread evenly over it; of these, this
        rank's share."""
        count = self.settings.eval_windows
        positions = [0.5] if count == 1 else np.linspace(0, 1, count).tolist()
        refs = (WindowRef(clip, position) for clip in range(self.clips) for position in positions)
        return islice(refs, rank, None, world_size)


@lru_cache(maxsize=8)
def _epoch(seed: int, epoch: int, clips: int) -> tuple[np.ndarray, ...]:
    """Order of the clips in an epoch; clip by clip, where in it its window lies, in [0, 1), where
    among the views the one it is seen in, in [0, 1), and a number in [0, 1) for the direction."""
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
    return rng.permutation(clips), *(rng.random(clips) for _ in range(3))
