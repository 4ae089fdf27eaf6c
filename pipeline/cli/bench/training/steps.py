"""Training steps on tokens of random numbers, timed in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from pipeline.cli.bench.memory import peak_bytes
from pipeline.cli.bench.timing import Tell, seconds_of
from pipeline.config.recipe import Recipe
from pipeline.datasets.manifest.targets import collate
from pipeline.models.step_memory import example_truth
from pipeline.models.tasks.contract import make_task
from pipeline.models.video_model import VideoModel, parameter_groups
from pipeline.records import OnDevice, TokenShape

LABELS = tuple("abcdefgh")


class TrainingStep:
    """The forward and backward pass of a batch of a recipe."""

    def __init__(self, recipe: Recipe, shape: TokenShape, device: torch.device) -> None:
        """`shape` is what a cache holds of one frame; the batch has the patches that training
        keeps of it."""
        torch.manual_seed(0)
        self.recipe, self.task = recipe, make_task(recipe, LABELS)
        self.model = VideoModel(recipe, shape, self.task).to(device).train()
        batch, frames = recipe.training.batch_size, recipe.windows.frames
        one = {name: array[0] for name, array in example_truth(self.task, frames).items()}
        truth = collate([{name: np.array(array) for name, array in one.items()}] * batch)
        tokens = batch, frames
        patches = recipe.windows.patches_kept(shape.grid_hw)
        self.device_batch = OnDevice(
            torch.randn(*tokens, shape.special_tokens, shape.width, device=device),
            {
                layer: torch.randn(*tokens, patches, shape.width, device=device)
                for layer in self.model.layers
            },
            {name: torch.from_numpy(array).to(device) for name, array in truth.items()},
        )

    def __call__(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None
        truth = self.model.truth(self.device_batch, self.task)
        losses = [
            self.task.loss(form, prediction.float(), truth)
            for form, prediction in self.model.predict(self.device_batch, self.task).items()
        ]
        torch.stack(losses).sum().backward()


class OptimisedStep(TrainingStep):
    """The same, and the optimiser's step."""

    def __init__(self, recipe: Recipe, shape: TokenShape, device: torch.device) -> None:
        super().__init__(recipe, shape, device)
        settings = recipe.training
        groups = parameter_groups(self.model, settings.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, settings.learning_rate, settings.betas)

    def __call__(self) -> None:
        super().__call__()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.training.clip_norm)
        self.optimizer.step()


def steps_in_turn(
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
