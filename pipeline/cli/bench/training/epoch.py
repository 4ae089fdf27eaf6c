"""An epoch with the encoder in the loop against one from the cache: same windows, same batches,
same model, same steps.

Without the cache, as many threads decode as processes do in extraction, ahead of the step. Both
read ahead in the same threads. Seconds are those of the loop: no evaluation, no checkpoint.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.cache.cache import Cache
from pipeline.cli.bench.timing import Tell, summary
from pipeline.config.cache_spec import CacheSpec
from pipeline.config.recipe import Recipe
from pipeline.datasets.manifest import manifest
from pipeline.device import chosen
from pipeline.experiments.planning.uncached import UncachedReader
from pipeline.extract import extract
from pipeline.extract.worker import load_encoder
from pipeline.models.profile import synchronize
from pipeline.models.tasks.contract import TaskPlugin
from pipeline.timing import Timed
from pipeline.train.loop import TrainLoop
from pipeline.train.run import read_metrics
from pipeline.train.setup import RunContext, make_trainers, open_windows
from pipeline.train.windows.index import WindowRows
from pipeline.train.windows.reader import WindowReader
from pipeline.train.windows.windows import Windows

WAYS = ("cached", "uncached")
BESIDE = ("read", "decode")
"""Parts that go on in threads of their own."""


class _TimedReader(WindowReader):
    """Another reader whose reading is timed, and which waits until its tokens are made."""

    def __init__(self, reader: WindowReader, reading: str, making: str) -> None:
        """`reading` and `making` name the two parts."""
        super().__init__(reader.cache, reader.layers)
        self.reader, self.reading, self.making, self.clock = reader, reading, making, Timed()

    def read(self, windows: Sequence[WindowRows]) -> dict[str, Any]:
        with self.clock.timed(self.reading):
            return self.reader.read(windows)

    def tokens(
        self, arrays: dict[str, Any], device: torch.device
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        tokens = self.reader.tokens(arrays, device)
        synchronize(device)
        return tokens


class Epoch(NamedTuple):
    """One epoch of runs that train side by side."""

    seconds: float
    """Seconds that the epoch of all runs takes."""
    steps: int
    losses: list[list[float]]
    """Run by run, the loss of every step."""
    parts: dict[str, float]
    """Seconds; `read` and `decode` go on beside the others, and are no part of the sum."""


def _train(
    recipes: Sequence[Recipe],
    tasks: Sequence[TaskPlugin],
    windows: Windows,
    reader: _TimedReader,
    held_out: Windows,
    runs: Path,
    context: RunContext,
) -> Epoch:
    """Trains a new run of each recipe, in a folder in `runs`, side by side on `windows`, which
    `reader` reads."""
    windows.reader = reader
    timing = ExitStack()

    def begin(*_: object) -> None:
        synchronize(context.device)
        timing.enter_context(reader.clock.timed("optimiser"))

    def end(*_: object) -> None:
        synchronize(context.device)
        timing.close()

    trainers = make_trainers(
        {runs / f"{recipe.training.seed}": recipe for recipe in recipes}, tasks, windows, context
    )
    for trainer in trainers:
        trainer.optimizer.register_step_pre_hook(begin)
        trainer.optimizer.register_step_post_hook(end)
    TrainLoop(trainers, windows, held_out, context).fit()
    data, tokens, steps = (
        sum(trainer.progress.seconds[what] for trainer in trainers)
        for what in ("data", "tokens", "steps")
    )
    parts = reader.clock.seconds
    parts |= {"waiting": data, reader.making: tokens, "model": steps - parts["optimiser"]}
    losses = [[line["loss"] for line in read_metrics(trainer.run.path)] for trainer in trainers]
    return Epoch(data + tokens + steps, trainers[0].step, losses, parts)


def epoch_speed(
    spec: CacheSpec,
    recipe: Recipe,
    clips_per_class: int,
    ablations: int,
    decoders: int,
    device: torch.device | None,
    tell: Tell,
) -> dict[str, Any]:
    """An epoch of each of `ablations` runs on the built-in world, with and without a cache, in
    turn; other seeds each time.

    Then an epoch of all of them side by side, as a sweep trains them.
    """
    device = chosen(device)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tell(0, ablations, "rendering videos")
        videos = manifest.build(
            "world", None, folder / "world", {"clips_per_class": clips_per_class}
        )
        tell(0, ablations, "extracting")
        begin = time.perf_counter()
        cache = extract.extract(spec, videos, folder / "caches", device, decoders)
        extract_s = time.perf_counter() - begin
        recipes = [
            recipe.model_copy(
                update={"training": recipe.training.model_copy(update={"seed": seed})}
            )
            for seed in range(ablations)
        ]
        cached, uncached = _in_turn(recipes, cache, folder, decoders, device, tell)
        tell(ablations, ablations, "one sweep")
        sweep = epoch("cached", recipes, cache, folder / "sweep", decoders, device)
    steps, shape = cached[0].steps, cache.shape
    return {
        "size": {
            "frames": sum(receipt.frames for receipt in cache.receipts.values()),
            "windows": f"{recipe.training.batch_size} x {recipe.windows.frames} frames",
            "tokens": f"{shape.tokens_per_frame} of {shape.width}",
            "steps": steps,
            "device": str(device),
            "decoders": decoders,
        },
        "extract_s": extract_s,
        "epochs": {
            name: summary([e.seconds for e in of_way])
            | {"step_s": statistics.median(e.seconds for e in of_way) / steps}
            for name, of_way in (("cached", cached), ("uncached", uncached))
        },
        "ratio": statistics.median(
            b.seconds / a.seconds for a, b in zip(cached, uncached, strict=True)
        ),
        "parts_of_a_step": {
            name: {
                part: statistics.median(e.parts[part] for e in of_way) / steps
                for part in of_way[0].parts
            }
            for name, of_way in (("cached", cached), ("uncached", uncached))
        },
        "sweep_s": sweep.seconds,
        "runs": {
            "uncached": sum(e.seconds for e in uncached),
            "cached": extract_s + sum(e.seconds for e in cached),
            "sweep": extract_s + sweep.seconds,
        },
    }


def _in_turn(
    recipes: Sequence[Recipe],
    cache: Cache,
    folder: Path,
    decoders: int,
    device: torch.device,
    tell: Tell,
) -> list[list[Epoch]]:
    """For each of `WAYS`, an epoch of every recipe alone."""
    epochs: dict[str, list[Epoch]] = {name: [] for name in WAYS}
    for number in range(-1, len(recipes)):  # the first round warms up
        for name in WAYS if number % 2 else WAYS[::-1]:
            tell(max(0, number), len(recipes), name)
            alone = [recipes[max(0, number)]]
            epochs[name].append(
                epoch(name, alone, cache, folder / f"{name}{number}", decoders, device)
            )
    return [epochs[name][1:] for name in WAYS]


def epoch(
    name: str,
    recipes: Sequence[Recipe],
    cache: Cache,
    runs: Path,
    decoders: int,
    device: torch.device,
    epochs: float = 1,
) -> Epoch:
    """One epoch, or several, of new runs that differ in their seeds, side by side, `cached` or
    `uncached`."""
    schedule = {"steps": None, "epochs": epochs, "evaluate_every": None, "checkpoint_every": 10**9}
    recipes = [
        recipe.model_copy(update={"training": recipe.training.model_copy(update=schedule)})
        for recipe in recipes
    ]
    context = RunContext.of(cache, device=device)
    tasks, windows, held_out = open_windows(recipes, context)
    if name == "cached":
        cached = _TimedReader(windows.reader, "read", "codec")
        return _train(recipes, tasks, windows, cached, held_out, runs, context)
    with UncachedReader(windows, load_encoder(cache, device), decoders, device) as reader:
        uncached = _TimedReader(reader, "decode", "encode")
        return _train(recipes, tasks, windows, uncached, held_out, runs, context)
