"""The whole path on the built-in world, as readable lists of steps: one task by three modules, few
labels with a pre-training and without, and five tasks by two modules."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.cache.cache import Cache
from pipeline.cache.status import status
from pipeline.config.cache_spec import CacheSpec, load_spec
from pipeline.config.recipe import Recipe, load_recipe
from pipeline.config.shipped import shipped
from pipeline.datasets.manifest import manifest
from pipeline.extract import extract as stage_one
from pipeline.extract.execution import Execution
from pipeline.models.tasks.contract import STREAMING
from pipeline.report.report import report
from pipeline.train import loop
from pipeline.train.bootstrap import Interval
from pipeline.train.evaluate import evaluate
from pipeline.train.evaluation import Evaluation, difference
from pipeline.train.run import Run
from pipeline.train.setup import RunContext
from pipeline.train.visualize import draw

RECIPES = ("demo_identity", "demo_gru", "demo_gated_mamba_mix")
TASKS = ("classify", "boxes", "points", "depth", "pose")
ROOM = {"scene": "room", "rooms": 1, "clips_per_class": 60, "val_fraction": 0.2}
"""One room for all clips: what a little data and an encoder of random weights can learn."""
DRAWN = 3
"""Clips drawn for each task."""
FROM_SCRATCH, PRETRAINED = "few_labels", "few_labels_pretrained"
"""Runs that are trained on few of the labels."""

OnStep = Callable[[str, float, float], None]
"""(what, done, total)"""


def demo(
    out: Path,
    spec: Path,
    on_step: OnStep,
    say: Callable[[str], None],
    world: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> tuple[list[Evaluation], Path, Cache]:
    """Makes videos, caches their tokens, trains three temporal modules on that one cache, and
    reports.

    Every step goes on from what it finds in `out`. `world` are settings of the data set,
    `overrides` are keys of the recipes. Returns the evaluations, the path of the page and the
    cache.
    """
    cache_spec = load_spec(spec)
    videos = _render(out / "world", world or {}, on_step)
    say(f"{out / 'world'}: {len(videos.clips)} clips of {len(videos.labels)} kinds of motion")
    cache = _extract(cache_spec, videos, out, on_step, say)
    runs, results = [], []
    for name in RECIPES:
        recipe = load_recipe(shipped("recipe")[name], overrides)
        runs.append(_train(recipe, cache, out / "runs" / name, on_step))
        results.append(evaluate(runs[-1], cache))
        say(f"{runs[-1].path}: trained")
    return results, report(runs, out / "report")[0], cache


def demo_few_labels(
    out: Path,
    cache: Cache,
    on_step: OnStep,
    say: Callable[[str], None],
    overrides: Sequence[str] = (),
) -> tuple[list[Evaluation], Interval]:
    """Few labels of the clips in a cache: pre-trains a temporal module on all training clips
    without their labels, then trains with a share of the labels, from scratch and from there.

    Goes on from what it finds in `out`. Returns the evaluations of the forecasts, from scratch and
    pre-trained, and by how much the last is better than the one before, with its 95 % interval.
    """
    source, results = out / "runs" / "demo_forecast", []
    for run, name, changes in (
        (source, "demo_forecast", []),
        (out / "runs" / FROM_SCRATCH, "demo_few_labels", []),
        (out / "runs" / PRETRAINED, "demo_few_labels", [f"init.run={json.dumps(str(source))}"]),
    ):
        recipe = load_recipe(shipped("recipe")[name], [*changes, *overrides])
        results.append(evaluate(_train(recipe, cache, run, on_step), cache))
        say(f"{run}: trained")
    return results, difference(results[2], results[1], STREAMING)


def demo_tasks(
    out: Path,
    spec: Path,
    tasks: Sequence[str],
    on_step: OnStep,
    say: Callable[[str], None],
    world: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, tuple[list[Evaluation], Interval]]:
    """`tasks` in the room of the built-in world, all from one cache: each without a temporal module
    and with one.

    Goes on from what it finds in `out`, draws the temporal module's answers, and writes a page for
    each task. Returns for every task the two evaluations, identity first, and by how much the
    temporal module is better, with its 95 % interval.
    """
    cache_spec = load_spec(spec)
    videos = _render(out / "room", ROOM | dict(world or {}), on_step)
    say(f"{out / 'room'}: {len(videos.clips)} clips of a room")
    cache = _extract(cache_spec, videos, out, on_step, say)
    of_tasks = {}
    for task in tasks:
        results, runs = [], []
        for changes in (["temporal={name='identity'}"], []):
            recipe = load_recipe(shipped("recipe")[f"demo_{task}"], [*changes, *overrides])
            runs.append(
                _train(recipe, cache, out / "runs" / f"demo_{task}_{recipe.temporal.name}", on_step)
            )
            results.append(evaluate(runs[-1], cache))
            say(f"{runs[-1].path}: trained")
        sheet = draw(runs[-1], RunContext.of(cache), DRAWN)
        say(f"{sheet}: drawn")
        report(runs, out / "report" / task)
        gain = difference(results[1], results[0], next(iter(results[0].forms)))
        better_up = results[0].metrics[0].higher_is_better
        of_tasks[task] = (results, gain if better_up else negated(gain))
    return of_tasks


def _render(out: Path, world: Mapping[str, Any], on_step: OnStep) -> manifest.Manifest:
    return manifest.build("world", None, out, dict(world), partial(on_step, "rendering videos"))


def _extract(
    spec: CacheSpec,
    videos: manifest.Manifest,
    out: Path,
    on_step: OnStep,
    say: Callable[[str], None],
) -> Cache:
    how = Execution(
        on_progress=lambda state: on_step("extracting tokens", state.frames, state.frames_planned)
    )
    cache = stage_one.extract_all([spec], videos, out / "caches", how)[0]
    say(f"{cache}: {status(cache).frames} frames")
    return cache


def _train(recipe: Recipe, cache: Cache, out: Path, on_step: OnStep) -> Run:
    return loop.train(
        recipe,
        cache,
        out,
        on_progress=lambda state: on_step(f"training {out.name}", state.step, state.steps),
    )


def negated(gain: Interval) -> Interval:
    """The interval of the negative."""
    if gain.low is None or gain.high is None:
        return Interval(score=-gain.score, low=None, high=None)
    return Interval(score=-gain.score, low=-gain.high, high=-gain.low)
