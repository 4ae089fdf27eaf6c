"""A sweep against its members one by one: the same runs, trained and scored, from one read or from
a read each.

Two cases. `reading`: members so small that reading is most of the work, and stores that never stay
in memory, as of a cache too large for it. `computing`: members whose steps are the work, stores in
memory. Each is measured with both ways in turn.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.cache.cache import Cache
from pipeline.cache.shard.page_cache import evict
from pipeline.cache.storage.local import LocalFolder
from pipeline.cli.bench.timing import Tell, summary
from pipeline.config import plugins
from pipeline.config.recipe import Recipe
from pipeline.device import chosen
from pipeline.errors import BadInput
from pipeline.train.evaluate import evaluate_together
from pipeline.train.loop import train_together
from pipeline.train.setup import RunContext
from pipeline.train.trainer import TrainProgress

CASES = ("reading", "computing")
SMALL = {"temporal": {"name": "identity"}, "model": {"mixer": "last", "width": 4}}
"""Tables of the recipe in whose place these are where reading is the work."""
SMALL_READOUT = {"readout_width": 4, "heads": 1, "hidden": 4}
"""Settings of the task, of those that it has."""
COLD_STEPS = 4
"""After so many, stores are dropped from memory again. Seconds of that do not count."""


def sweep_speed(
    cache: Cache,
    recipe: Recipe,
    members: int,
    steps: int,
    repeats: int,
    device: torch.device | None,
    tell: Tell,
) -> dict[str, Any]:
    """Seconds of `members` runs of `recipe` on `cache`, that differ in their seeds: one by one, and
    side by side."""
    if not isinstance(cache.storage, LocalFolder):
        raise BadInput(
            f"bench sweep drops stores from memory, and {cache} lies elsewhere",
            "give a cache on this machine's disk",
        )
    device = chosen(device)
    result: dict[str, Any] = {"members": members, "steps": steps, "cache": str(cache), "cases": {}}
    for case in CASES:
        recipes = _members(recipe, case, members, steps)
        alone, together = list[float](), list[float]()
        for repeat in range(-1, repeats):  # the first round warms up
            tell(max(0, repeat), repeats, case)
            for way in (alone, together) if repeat % 2 else (together, alone):
                spent = _seconds(recipes, cache, way is together, case == "reading", device)
                if repeat >= 0:
                    way.append(spent)
        result["cases"][case] = {
            "alone": summary(alone),
            "together": summary(together),
            "ratio": statistics.median(b / a for a, b in zip(alone, together, strict=True)),
        }
    return result


def _members(recipe: Recipe, case: str, count: int, steps: int) -> list[Recipe]:
    start = recipe.canonical()
    if case == "reading":
        task = start["task"]
        start |= SMALL | {
            "task": task | {name: value for name, value in SMALL_READOUT.items() if name in task}
        }
    training = start["training"] | {
        "steps": steps,
        "epochs": None,
        "evaluate_every": None,
        "checkpoint_every": steps,
    }
    return [
        plugins.validate(
            Recipe,
            start | {"name": f"seed{seed}", "training": training | {"seed": seed}},
            recipe.name,
        )
        for seed in range(count)
    ]


def _seconds(
    recipes: Sequence[Recipe], cache: Cache, shared: bool, cold: bool, device: torch.device
) -> float:
    """Seconds of training and scoring all recipes anew. `cold`: no store stays in memory."""
    with tempfile.TemporaryDirectory() as scratch:
        runs = {Path(scratch) / recipe.name: recipe for recipe in recipes}
        reads = [runs] if shared else [{path: recipe} for path, recipe in runs.items()]
        spent = 0.0

        def forget() -> None:
            nonlocal spent
            begin = time.perf_counter()
            evict(cache.path)
            spent -= time.perf_counter() - begin

        def after(progress: TrainProgress) -> None:
            if cold and progress.run == first and progress.step % COLD_STEPS == 0:
                forget()

        for read in reads:
            first = next(iter(read)).name
            begin = time.perf_counter()
            if cold:
                forget()
            again = Cache(cache.storage)
            context = RunContext.of(again, device=device)
            evaluate_together(train_together(read, context, after), context)
            spent += time.perf_counter() - begin
        return spent
