"""Which two runs go together, of which one reads what the other forecasts, and how far ahead that
can be: asked before any work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from pipeline.config.toml_tables import differences
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import BadInput
from pipeline.models.tasks.contract import FRAME_EMBEDDINGS, STREAMING, make_task, task_class
from pipeline.models.tasks.forecasts.pairs import most_steps_ahead
from pipeline.train.run import Run
from pipeline.train.weights.seen_videos import SeenVideos

SLACK = 0.01
"""Share by which whole steps may be longer than a horizon that was learnt."""
LISTED = 3
"""Differences that an error names at most."""


def require_pair(reader: Run, forecaster: Run) -> None:
    """Refuses a run that forecasts no tokens, one whose answers are not of single frames, and two
    that follow other frames or tokens than each other. Raises BadInput."""
    if not task_class(forecaster.recipe).tells_tokens:
        raise BadInput(
            f"run {forecaster.path} is no forecaster: its task is '{forecaster.recipe.task.name}'",
            "train one on the same cache: stillframe train pretrain_forecast CACHE",
        )
    if task_class(reader.recipe).by_frame is None:
        raise BadInput(
            f"run {reader.path} says nothing that could be told ahead: an answer of task "
            f"'{reader.recipe.task.name}' is not about a single frame",
            "give a run whose answers are, as those of depth, boxes, points and classify are",
        )
    if FRAME_EMBEDDINGS in make_task(reader.recipe, reader.header.labels).example_texts(1):
        raise BadInput(
            f"run {reader.path} begins with embeddings of frames, and those of later ones are not "
            "forecast",
            "give a run of classify without prompts, or of another task",
        )
    for run in (reader, forecaster):
        _require_streaming(run)
    _require_same_tokens(reader, forecaster)
    step, other = (run.recipe.windows.step() for run in (reader, forecaster))
    if step != other:
        paces = [run.recipe.windows for run in (reader, forecaster)]
        found = " and ".join(
            f"fps = {pace.fps:g}" if pace.fps else f"every = {pace.every}" for pace in paces
        )
        raise BadInput(
            f"runs {reader.path} and {forecaster.path} follow frames at another pace: windows."
            f"{found}",
            "train both at one",
        )


def _require_streaming(run: Run) -> None:
    """Refuses a run that cannot follow a stream frame by frame."""
    unlike = run.recipe.windows.unlike_a_stream
    if unlike is not None:
        raise BadInput(
            f"run {run.path} cannot be followed frame by frame: it was trained with "
            f"windows.{unlike}",
            "give a run with windows.fps or windows.every, without controls",
        )
    forms = make_task(run.recipe, run.header.labels).forms
    if STREAMING not in forms:
        setting = 'task.memory = "state"' if "memory" in run.recipe.task.table() else "task.forms"
        raise BadInput(
            f"run {run.path} answers only in the form {', '.join(forms)}, and not frame by frame",
            f"train one with the form '{STREAMING}': {setting}",
        )


def _require_same_tokens(reader: Run, forecaster: Run) -> None:
    """Refuses a run that reads other tokens than the other one forecasts."""
    read, told = (
        {name: part for name, part in run.header.spec.items() if name != "name"}
        | {"identity": run.header.encoder, "cache": run.header.cache.model_dump(exclude={"name"})}
        for run in (reader, forecaster)
    )
    if read["cache"] != told["cache"]:
        changed = differences(read, told)
        more = f" and {len(changed) - LISTED} more" if len(changed) > LISTED else ""
        raise BadInput(
            f"run {reader.path} reads other tokens than run {forecaster.path} forecasts; "
            f"read / forecast: {'; '.join(changed[:LISTED])}{more}",
            f"train a forecaster on the cache {reader.header.cache.name}",
        )
    layers, (*_, layer) = (
        run.recipe.model.layers_of(run.spec.encoder.settings.layers) for run in (reader, forecaster)
    )
    if layers != (layer,):
        raise BadInput(
            f"run {reader.path} reads layer {', '.join(map(str, layers))}, "
            f"run {forecaster.path} forecasts layer {layer} alone",
            f"train a run that reads that one: --set 'model.layers=[{layer}]'",
        )


def require_unseen(forecaster: Run, manifest: Manifest) -> str:
    """Refuses a forecaster that was trained on videos which the manifest holds out. Returns what is
    to be said where nobody knows, or ""."""
    seen = SeenVideos.read(forecaster)
    seen.require_unseen(manifest, forecaster)
    return seen.note


def beyond_training(forecaster: Run, ahead_s: Sequence[float]) -> str:
    """What is to be said where more is asked of a forecaster than it has learnt, or ""."""
    longest_s = forecaster.recipe.task.settings.horizons_s[-1]
    if max(ahead_s) <= longest_s * (1 + SLACK):
        return ""
    return f"run {forecaster.path} has learnt to tell up to {longest_s:g} s ahead, and no more"


def horizons_of(
    asked_s: Sequence[float], step_s: float | None, frames: int | None = None
) -> tuple[float, ...]:
    """How far ahead answers are told, ascending, in seconds: whole steps of `step_s`, each nearest
    to what is asked for; as asked, where steps depend on the video (None).

    `frames`: those of a window, in which what is told must come; None in a stream. Raises BadInput
    for what is no later frame, the same one twice, or too far ahead.
    """
    for ahead_s in asked_s:
        if not 0 < ahead_s < math.inf:
            raise BadInput(
                f"what is told ahead is of a later frame: wanted more than 0 s, found {ahead_s:g}",
                "--ahead 0.5",
            )
    asked_s = sorted(asked_s)
    if step_s is None:
        return tuple(asked_s)
    rate = f"windows at {1 / step_s:g} frames per second"
    steps = [round(ahead_s / step_s) for ahead_s in asked_s]
    if steps[0] < 1:
        raise BadInput(
            f"{asked_s[0]:g} s ahead is less than half a step of {rate}",
            f"ask for the next frame: --ahead {step_s:.3g}",
        )
    for (one_s, step), (other_s, next_step) in pairwise(zip(asked_s, steps, strict=True)):
        if step == next_step:
            raise BadInput(
                f"{one_s:g} s and {other_s:g} s ahead are the same frame of {rate}",
                "leave one of them out",
            )
    most = None if frames is None else most_steps_ahead(frames)
    if most is not None and steps[-1] > most:
        raise BadInput(
            f"windows of {frames} frames, {step_s:.3g} s apart, are too short for what comes in "
            f"{asked_s[-1]:g} s",
            f"ask for at most --ahead {most * step_s:.3g}" if most else "train with longer windows",
        )
    return tuple(step * step_s for step in steps)
