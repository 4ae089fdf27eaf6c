"""A setting costs, beside its score, trained parameters, operations, streaming latency and state:
they are counted and measured here.

Operations are those of one window (B = 1) in the forward pass, 2 for a multiply and add. Mixer,
projection and readouts: matrix products, convolutions and attention, as torch counts them. Temporal
module: its own formula, which has recurrences and scans too (9 * inner width * state size per token
for Mamba), since torch cannot see what is element-wise. Norms and activations are left out. A task
that wants to be told what to follow is told one box or point.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config.plugins import Settings
from pipeline.config.recipe import Recipe
from pipeline.datasets.manifest.targets import MAPPED, collate
from pipeline.device import chosen
from pipeline.models.tasks.contract import (
    BY_FRAME,
    PATCHES,
    STREAMING,
    Query,
    TaskPlugin,
    make_task,
)
from pipeline.models.video_model import VideoModel
from pipeline.records import TokenShape

WARM_FRAMES, TIMED_FRAMES = 4, 20
"""Frames of the stream that tells the latency: those that warm up, and those that are timed."""
PROMPTS = {"boxes": (0.25, 0.25, 0.75, 0.75), "points": (0.5, 0.5)}
"""Target -> what a task is told to follow, in the source frame."""
Result = TypeVar("Result")


class Cost(Settings):
    """The cost of the trained part of a model: mixer, temporal module, readouts."""

    parameters: int
    """Number of trained parameters."""
    flops: float
    """Operations of the forward pass over one window."""
    latency_ms: float | None
    """Median time of one streaming step, B = 1, after the encoder; None where the streaming form is
    not trained."""
    state_bytes: int
    """Bytes that one stream remembers: the temporal module's state and the streaming readout's."""


def cost(
    recipe: Recipe, shape: TokenShape, labels: tuple[str, ...], device: torch.device | None = None
) -> Cost:
    """Returns what `recipe` costs on frames of `shape`, with the latency on `device` in float32.
    Leaves torch's random state alone."""
    device = chosen(device)
    with torch.random.fork_rng(devices=[]):
        model, task = _make_model(recipe, shape, labels)
        special_BSD = torch.randn(1, shape.special_tokens, shape.width).to(device)
        patches_BPD = [
            torch.randn(1, shape.patch_tokens, shape.width).to(device) for _ in model.layers
        ]
    model.to(device).eval()
    state_bytes, seconds = model.temporal.state_bytes(model.tokens_per_frame), []
    if STREAMING in model.readouts:
        query = {name: part.to(device) for name, part in example_query(task).items()}
        of_frame = {name: query.pop(name)[:, 0] for name in BY_FRAME if name in query}
        with torch.inference_mode():
            state = model.start(1, query)
            for _ in range(WARM_FRAMES + TIMED_FRAMES):
                step_s, (_, state) = timed(
                    partial(model.step, special_BSD, patches_BPD, state, of_frame), device
                )
                seconds.append(step_s)
        state_bytes += sum(part.nbytes for part in state.readout.values())
    return Cost(
        parameters=sum(model.parameter_counts().values()),
        flops=sum(flops(recipe, shape, labels).values()),
        latency_ms=1000 * statistics.median(seconds[WARM_FRAMES:]) if seconds else None,
        state_bytes=state_bytes,
    )


def flops(
    recipe: Recipe, shape: TokenShape, labels: tuple[str, ...], *, in_training: bool = False
) -> dict[str, int]:
    """Operations of `mixer` (with the projection), `temporal` and `readout` (all forms) for one
    window, in training with its aids, and without the patches that it leaves out.

    Nothing is computed and no weights are made: tensors are torch's fake ones, which have a shape
    and no content.
    """
    with FakeTensorMode():
        model, task = _make_model(recipe, shape, labels)
        frames = recipe.windows.frames
        query = example_query(task, frames, in_training=in_training)
        all_patches = shape.patch_tokens
        kept = recipe.windows.patches_kept(shape.grid_hw) if in_training else all_patches
        tokens = model.tokens_per_frame - (all_patches - kept)
        patches = [torch.zeros(1, frames, kept, shape.width) for _ in model.layers]
        tokens_BTND = torch.zeros(1, frames, tokens, shape.width)
        y_BTND = torch.zeros(1, frames, tokens, model.temporal.width)
        told = query | ({PATCHES: patches[-1]} if task.sees_patches else {})
        return {
            "mixer": counted(lambda: (model.mixer(patches), model.projection(tokens_BTND))),
            "temporal": model.temporal.flops(frames, tokens),
            "readout": counted(
                lambda: [
                    readout(y_BTND, told)
                    for form, readout in model.readouts.items()
                    if in_training or form not in model.aids
                ]
            ),
        }


def example_query(task: TaskPlugin, frames: int = 1, *, in_training: bool = False) -> Query:
    """What the task wants to be told of a window: one box or point to follow from the first frame
    on, or texts."""
    if texts := task.example_texts(frames):
        truth = collate([task.prepare(texts, np.random.default_rng(0) if in_training else None)])
        return task.query({name: torch.from_numpy(array) for name, array in truth.items()})
    if task.asks is None:
        return {}
    arrays = {
        task.asks: np.array([[PROMPTS[task.asks]]], np.float32),
        "visible": np.ones((1, 1), bool),
    }
    truth = MAPPED[task.asks](arrays, np.zeros(1, np.int64), np.ones(1, bool), np.eye(2, 3)[None])
    targets = collate([task.prepare(truth, None)])
    return task.query({name: torch.from_numpy(array) for name, array in targets.items()})


def counted(call: Callable[[], object]) -> int:
    """Operations of `call` as torch counts them: matrix products and convolutions only."""
    # The counter does not know the fused attention of CPUs; the plain one is two products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def timed(call: Callable[[], Result], device: torch.device) -> tuple[float, Result]:
    """Seconds until `device` is done with it, and what `call` gave."""
    synchronize(device)
    begin = time.perf_counter()
    result = call()
    synchronize(device)
    return time.perf_counter() - begin, result


def synchronize(device: torch.device) -> None:
    """Waits until `device` is done with what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _make_model(
    recipe: Recipe, shape: TokenShape, labels: tuple[str, ...]
) -> tuple[VideoModel, TaskPlugin]:
    task = make_task(recipe, labels)
    return VideoModel(recipe, shape, task), task
