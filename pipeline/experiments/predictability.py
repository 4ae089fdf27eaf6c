"""How predictable the videos of a cache are in its encoder, before anything is trained: the skill
of forecasts that learn little, for every layer and horizon."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipeline.config import plugins
from pipeline.config.recipe import Recipe, WindowSettings
from pipeline.errors import BadInput
from pipeline.experiments.baselines import BaselineEvaluation, evaluate_baselines
from pipeline.train.setup import RunContext
from pipeline.train.windows.windows import Windows

HORIZONS_S = (0.25, 0.5, 1.0, 2.0)
"""Seconds ahead that are told where none are asked for."""
LONGEST_SHARE = 0.6
"""Share of a clip that a horizon may take, so that there are frames to tell from."""
SAME_RATE = 1.01
"""Rates that differ by less, as 29.97 and 30 do, are the same."""
BATCH = 16
"""Windows that are looked at together; changes no result."""


def predictability(
    context: RunContext,
    split: str = "val",
    ahead_s: Sequence[float] = (),
    fps: float | None = None,
    windows: int = 1,
) -> BaselineEvaluation:
    """Scores of `damped`, `linear` and `mean` beside a copy on the task `forecast`, in every layer
    of the cache.

    `ahead_s`: horizons in seconds, ascending; empty: those of `HORIZONS_S` that are more than a
    frame away and that most clips are long enough for. Windows take cached frames at `fps`, by
    default all of them, and so many lie in each clip. Raises BadInput where videos differ in their
    rate and none is given, and where no clip is long enough.
    """
    clip_rates, lengths_s = _rates_and_lengths(context, split)
    rate = fps or context.cache.fps or _common(clip_rates, split)
    longest_s = LONGEST_SHARE * float(np.median(lengths_s))
    fitting = tuple(each for each in HORIZONS_S if round(each * rate) > 1 and each <= longest_s)
    horizons_s = tuple(ahead_s) or fitting or (longest_s,)
    steps = round(max(horizons_s) * rate)
    table = {
        "name": "predictability",
        "task": {"name": "forecast", "horizons_s": horizons_s},
        "temporal": {"name": "identity"},
        # A quarter of a window tells nothing, see `models.tasks.forecasts.pairs`.
        "windows": {
            "frames": math.ceil((steps + 1) * 4 / 3) + 1,
            "fps": rate,
            "eval_windows": windows,
        },
        "training": {"steps": 1, "batch_size": BATCH},
    }
    recipe = plugins.validate(Recipe, table, "predictability")
    return evaluate_baselines(recipe, context, split)


def _rates_and_lengths(context: RunContext, split: str) -> tuple[list[float], list[float]]:
    """Cached frames per second of every clip of a split, and its seconds, both of window time."""
    every_frame = WindowSettings(frames=1, every=1)
    windows = Windows(
        context.cache, context.manifest, split, every_frame, None, (), context.allow_missing
    )
    clips = list(zip(windows.index.clips, windows.index.clip_rows, strict=True))
    rates = [clip.speed / rows.step_s for clip, rows in clips]
    return rates, [len(rows) / rate for (_, rows), rate in zip(clips, rates, strict=True)]


def _common(rates: Sequence[float], split: str) -> float:
    """The rate of videos whose every frame is cached. Raises BadInput where they differ in it."""
    least, most = min(rates), max(rates)
    if most > SAME_RATE * least:
        raise BadInput(
            f"the cached videos of split '{split}' have from {least:.4g} to {most:.4g} frames per "
            "second",
            f"--fps {least:.4g}, or less",
        )
    return least
