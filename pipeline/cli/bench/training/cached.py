"""A training step from a cache against the same step on tokens that lie on the device already,
decoded: what is left of it is the model and its optimiser.

Both ways are the loop that every training runs, on the same batches of the same cache, in turn.
Seconds are those from one step's end to the next, beginning after those that find the batches read
which were read ahead before there was anything to do beside it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.cache.cache import Cache
from pipeline.cli.bench.timing import Tell, frozen, median_ratio, summary
from pipeline.config.cache_spec import CacheSpec
from pipeline.config.recipe import Recipe
from pipeline.datasets.manifest import manifest
from pipeline.device import chosen
from pipeline.extract import extract
from pipeline.models.profile import timed
from pipeline.records import Batch, OnDevice
from pipeline.train.loop import TrainLoop
from pipeline.train.setup import RunContext, make_trainers, open_windows
from pipeline.train.trainer import TrainProgress
from pipeline.train.windows.reader import BATCHES_IN_MEMORY
from pipeline.train.windows.source import BatchSource
from pipeline.train.windows.windows import Windows

WAYS = ("cached", "resident")
BATCHES = 8
"""Batches that steps take in turn."""
CLIPS_PER_CLASS = 4
WARM_STEPS = BATCHES_IN_MEMORY + 1
"""Steps before those that are timed."""


class _FewBatches:
    """Windows of which the first batches come again and again."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def train(
        self, batch_size: int, steps: Sequence[int], rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[int, Batch]]:
        """As that of `Windows`, of step modulo `BATCHES`."""
        numbers = [step % BATCHES for step in steps]
        batches = self.windows.train(batch_size, numbers, rank, world_size)
        for step, (_, batch) in zip(steps, batches, strict=True):
            yield step, batch

    def on_device(self, batch: Batch, device: torch.device) -> OnDevice:
        """As that of `Windows`."""
        return self.windows.on_device(batch, device)


class _Resident(_FewBatches):
    """The same batches, read, moved and decoded beforehand."""

    def __init__(self, windows: Windows, batch_size: int, device: torch.device) -> None:
        super().__init__(windows)
        read = windows.train(batch_size, range(BATCHES))
        self.batches = [batch for _, batch in read]
        self._tokens = {_place(batch): windows.on_device(batch, device) for batch in self.batches}

    def train(
        self, batch_size: int, steps: Sequence[int], rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[int, Batch]]:
        """As above."""
        for step in steps:
            yield step, self.batches[step % BATCHES]

    def on_device(self, batch: Batch, device: torch.device) -> OnDevice:
        """As above."""
        return self._tokens[_place(batch)]


def _place(batch: Batch) -> int:
    """Where a batch lies in memory, which its micro batches share."""
    return batch.time_s_BT.ctypes.data


class _Round(NamedTuple):
    """The timed steps of one run."""

    step_s: float
    """Mean seconds of a step."""
    losses: list[float]
    parts: dict[str, float]
    """Seconds of a step that the loop counts for waiting (`data`), for what is moved and decoded
    (`tokens`), and for model and optimiser (`steps`)."""


def step_speed(
    spec: CacheSpec | None,
    cache: Path | None,
    recipe: Recipe,
    steps: int,
    repeats: int,
    device: torch.device | None,
    tell: Tell,
) -> dict[str, Any]:
    """Seconds of a step of `recipe` either way, in `repeats` rounds of `steps`, on `cache`, or on
    one made of the built-in world as `spec` says.

    Then of a batch alone, while nothing else computes: reading it in one thread, moving it, and
    its codec.
    """
    device = chosen(device)
    with tempfile.TemporaryDirectory() as scratch, frozen():
        folder = Path(scratch)
        opened = Cache(cache) if cache else _made(spec, folder, device, tell)
        settings = {
            "steps": WARM_STEPS + steps + 1,  # the last one has the evaluation in it
            "epochs": None,
            "accumulate": 1,
            "evaluate_every": None,
            "checkpoint_every": 10**9,
        }
        training = recipe.training.model_copy(update=settings)
        recipe = recipe.model_copy(update={"training": training})
        context = RunContext.of(opened, device=device)
        _, windows, _ = open_windows([recipe], context)
        resident = _Resident(windows, training.batch_size, device)
        sources: dict[str, BatchSource] = {"cached": _FewBatches(windows), "resident": resident}
        rounds: dict[str, list[_Round]] = {way: [] for way in WAYS}
        for number in range(-1, repeats):  # the first round warms up
            for way in WAYS if number % 2 else WAYS[::-1]:
                tell(max(0, number), repeats, way)
                found = _round(recipe, context, sources[way], folder / f"{way}{number}")
                rounds[way] += [found] if number >= 0 else []
        alone = _alone(windows, training.batch_size, device, repeats)
    seconds = {way: [each.step_s for each in rounds[way]] for way in WAYS}
    parts = {
        way: {
            name: statistics.median(each.parts[name] for each in rounds[way])
            for name in rounds[way][0].parts
        }
        for way in WAYS
    }
    shape, example = opened.shape, resident.batches[0]
    tokens = shape.special_tokens + len(windows.reader.layers) * shape.patch_tokens
    return {
        "size": {
            "windows": f"{training.batch_size} x {recipe.windows.frames} frames",
            "tokens": f"{tokens} of {shape.width}",
            "codec": opened.cache_spec.codec.name,
            "batch_bytes": sum(array.nbytes for array in example.arrays.values()),
            "device": str(device),
            "threads": torch.get_num_threads(),
            "steps": steps,
        },
        "repeats": repeats,
        "steps": {way: summary(seconds[way]) for way in WAYS},
        "ratio": median_ratio(*(seconds[way] for way in WAYS)),
        "ratios": [a / b for a, b in zip(*(seconds[way] for way in WAYS), strict=True)],
        "parts": parts,
        "alone": alone,
        "equal": all(a.losses == b.losses for a, b in zip(*rounds.values(), strict=True)),
    }


def _made(spec: CacheSpec | None, folder: Path, device: torch.device, tell: Tell) -> Cache:
    """A cache of a few videos of the built-in world."""
    assert spec is not None
    tell(0, 1, "rendering videos")
    videos = manifest.build("world", None, folder / "world", {"clips_per_class": CLIPS_PER_CLASS})
    tell(0, 1, "extracting")
    return extract.extract(spec, videos, folder / "caches", device)


def _round(recipe: Recipe, context: RunContext, source: BatchSource, run: Path) -> _Round:
    """Trains a new run of `recipe` in the folder `run` on the batches of `source`."""
    tasks, windows, held_out = open_windows([recipe], context)
    trainers = make_trainers({run: recipe}, tasks, windows, context)
    ends: list[float] = []
    losses: list[float] = []
    seconds: list[dict[str, float]] = []

    def after(progress: TrainProgress) -> None:
        ends.append(time.perf_counter())
        losses.append(progress.loss)
        seconds.append(dict(progress.seconds))

    TrainLoop(trainers, source, held_out, context, after).fit()
    first, last = WARM_STEPS - 1, len(ends) - 2
    count = last - first
    parts = {
        name: (seconds[last][name] - seconds[first][name]) / count
        for name in ("data", "tokens", "steps")
    }
    return _Round((ends[last] - ends[first]) / count, losses, parts)


def _alone(
    windows: Windows, batch_size: int, device: torch.device, repeats: int
) -> dict[str, float]:
    """Median seconds of one batch: read by one thread, moved to the device, decoded there."""
    refs = [windows.order.batch(step, batch_size, 0, 1) for step in range(BATCHES)]
    found: dict[str, list[float]] = {"read": [], "move": [], "decode": []}
    reader = windows.reader
    for number in range(repeats * BATCHES):
        read_s, batch = timed(partial(windows.read, refs[number % BATCHES]), device)
        move_s, moved = timed(partial(reader.moved, batch.arrays, device), device)
        decode_s, _ = timed(partial(reader.decoded, moved), device)
        for name, spent_s in (("read", read_s), ("move", move_s), ("decode", decode_s)):
            found[name].append(spent_s)
    return {name: statistics.median(spent) for name, spent in found.items()}
