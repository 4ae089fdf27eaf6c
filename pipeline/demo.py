"""The whole path on the built-in world, as one readable list of steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import extract as stage_one
from pipeline import manifest, train
from pipeline.evaluate import evaluate
from pipeline.report import report
from pipeline.spec import load_recipe, load_spec, shipped_recipes

RECIPES = ("demo_identity", "demo_gru", "demo_gated_mamba_mix")

OnStep = Callable[[str, float, float], None]
"""(what, done, total)"""


def demo(
    out: Path,
    spec: Path,
    on_step: OnStep,
    say: Callable[[str], None],
    world: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> tuple[list[dict[str, Any]], Path]:
    """Makes videos, caches their tokens, trains three temporal modules on that one cache, and reports.

    Every step goes on from what it finds in `out`. `world` are settings of the data set, `overrides` are keys of the recipes.
    Returns the evaluations and the path of the page.
    """
    cache_spec = load_spec(spec)
    videos = manifest.build(
        "world", None, out / "world", dict(world or {}), lambda done, total: on_step("rendering videos", done, total)
    )
    say(f"{out / 'world'}: {len(videos.clips)} clips of {len(videos.labels)} kinds of motion")

    cache = stage_one.extract(
        cache_spec,
        videos,
        out / "caches",
        on_progress=lambda state: on_step("extracting tokens", state.frames, state.frames_planned),
    )
    say(f"{cache.path}: {cache.status()['frames']} frames")

    runs, results = [], []
    for name in RECIPES:
        recipe = load_recipe(shipped_recipes()[name], overrides)
        run = train.train(
            recipe,
            cache,
            out / "runs" / name,
            on_progress=lambda state, name=name: on_step(f"training {name}", state.step, state.steps),  # type: ignore[misc]
        )
        results.append(evaluate(run, cache))
        runs.append(run)
        say(f"{run.path}: trained")
    return results, report(runs, out / "report")
