"""A training step of forecasts against one of a classification with the same mixer, temporal module
and windows, by the head and by how much it is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from pipeline.cli.bench.memory import peak_bytes
from pipeline.cli.bench.timing import Tell, frozen, median_ratio, seconds_of, summary
from pipeline.config import plugins
from pipeline.config.recipe import Recipe
from pipeline.datasets.manifest.targets import collate
from pipeline.device import chosen
from pipeline.models.step_memory import example_truth
from pipeline.models.tasks.contract import make_task
from pipeline.models.video_model import VideoModel
from pipeline.records import OnDevice, TokenShape

REFERENCE = "classify"
"""What all steps are compared with."""
LABELS = tuple("abcdefgh")


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
    steps = {name: _step(table | {"task": task}, shape, device) for name, task in tasks.items()}
    with frozen():
        seconds, peaks = _in_turn(steps, repeats, device, tell)
    found = {
        name: summary(seconds[name])
        | {
            "peak_bytes": peaks[name],
            "ratio": median_ratio(seconds[name], seconds[REFERENCE]),
        }
        for name in steps
    }
    return {"repeats": repeats, "batch": recipe.training.batch_size, "steps": found}


def _step(table: Mapping[str, Any], shape: TokenShape, device: torch.device) -> Callable[[], None]:
    recipe = plugins.validate(Recipe, table, "bench forecast")
    torch.manual_seed(0)
    task = make_task(recipe, LABELS)
    model = VideoModel(recipe, shape, task).to(device).train()
    batch, frames = recipe.training.batch_size, recipe.windows.frames
    one = {name: array[0] for name, array in example_truth(task, frames).items()}
    truth = collate([{name: np.array(array) for name, array in one.items()}] * batch)
    targets = {name: torch.from_numpy(array).to(device) for name, array in truth.items()}
    tokens = batch, frames
    device_batch = OnDevice(
        torch.randn(*tokens, shape.special_tokens, shape.width, device=device),
        {
            layer: torch.randn(*tokens, shape.patch_tokens, shape.width, device=device)
            for layer in model.layers
        },
        targets,
    )

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        for form, prediction in model.predict(device_batch, task).items():
            task.loss(form, prediction.float(), model.truth(device_batch, task)).backward()

    return step


def _in_turn(
    steps: Mapping[str, Callable[[], None]], repeats: int, device: torch.device, tell: Tell
) -> tuple[dict[str, list[float]], dict[str, int | None]]:
    """Seconds of each repeat, and peak bytes of a warm step, of all steps."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    peaks = {}
    for number, (name, step) in enumerate(steps.items()):
        tell(number, len(steps), f"memory of {name}")
        step()
        peaks[name] = peak_bytes(step, device)
    for repeat in range(repeats):
        for number, (name, step) in enumerate(steps.items()):
            tell(repeat * len(steps) + number, repeats * len(steps), f"time of {name}")
            seconds[name].append(seconds_of(step, device))
    return seconds, peaks
