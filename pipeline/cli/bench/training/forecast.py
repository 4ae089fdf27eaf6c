"""A training step of forecasts against one of a classification with the same mixer, temporal module
and windows, by the head and by how much it is asked."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.cli.bench.timing import Tell, frozen, median_ratio, summary
from pipeline.cli.bench.training.steps import TrainingStep, steps_in_turn
from pipeline.config import plugins
from pipeline.config.recipe import Recipe
from pipeline.device import chosen
from pipeline.records import TokenShape

REFERENCE = "classify"
"""What all steps are compared with."""


def variants(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Name -> keys of the task that differ from those of the recipe."""
    settings = recipe.task.settings
    other_head = "attention" if settings.head == "mlp" else "mlp"
    return {
        "as in the recipe": {},
        f"head {other_head}": {"head": other_head},
        "all places": {"places": 10**6},
        "twice the places": {"places": 2 * settings.places},
        "twice the pairs": {"pairs": 2 * settings.pairs},
        "twice the horizons": {"horizons": 2 * settings.horizons},
        "twice the blocks": {"blocks": 2 * settings.blocks},
    }


def forecast_steps(
    recipe: Recipe, shape: TokenShape, repeats: int, device: torch.device | None, tell: Tell
) -> dict[str, Any]:
    """Name of a step -> median seconds, peak bytes, and both as ratios to those of `REFERENCE`,
    which is timed in turn with all others: forward and backward pass of a batch of the recipe."""
    device = chosen(device)
    table = recipe.canonical()
    reader = {"name": "classify", "readout_width": 64, "heads": 4, "forms": ["streaming"]}
    tasks = {REFERENCE: reader}
    tasks |= {name: table["task"] | keys for name, keys in variants(recipe).items()}
    recipes = {
        name: plugins.validate(Recipe, table | {"task": task}, "bench forecast")
        for name, task in tasks.items()
    }
    steps = {name: TrainingStep(of_task, shape, device) for name, of_task in recipes.items()}
    with frozen():
        seconds, peaks = steps_in_turn(steps, repeats, device, tell)
    found = {
        name: summary(seconds[name])
        | {
            "peak_bytes": peaks[name],
            "ratio": median_ratio(seconds[name], seconds[REFERENCE]),
        }
        for name in steps
    }
    return {"repeats": repeats, "batch": recipe.training.batch_size, "steps": found}
