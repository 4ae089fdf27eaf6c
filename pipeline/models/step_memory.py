"""Memory of a training step, counted before one is made: the step is run on torch's fake tensors,
which have a shape and no content, and what is alive at every moment is added up.

So the count knows every activation that the backward pass keeps, of any temporal module and task,
and takes no memory itself. It leaves out what kernels need for themselves while they run, and
memory that the allocator holds on to.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.config.plugins import Settings
from pipeline.config.recipe import Recipe
from pipeline.datasets.manifest.targets import (
    CLASSES,
    CLASSES_VALID,
    MAPPED,
    TOKENS,
    Arrays,
    collate,
)
from pipeline.models.tasks.contract import TaskPlugin, make_task
from pipeline.models.video_model import VideoModel, layers_read, parameter_groups
from pipeline.records import OnDevice, TokenShape

FLOAT32_BYTES = 4
EVAL_BATCH = 64
"""Windows per batch in evaluation at most."""
PLENTY = 1000
"""Bytes of memory that a byte of the model's tokens comes to at the very most; it is 10 to 300 in
the shipped recipes."""
OVERHEAD = 1.15
"""What kernels need while they run, and freed memory that the allocator holds on to: as measured
over the shipped recipes."""
STARTED_BYTES = 110 * 10**6
"""What the first step brings in: libraries, threads, and what these keep."""
SECONDS = 4.0
"""Length of a window whose times are not known yet."""
EXAMPLES = 64
"""Objects and points of a window whose truth is not known yet: more than a task takes of them."""
MASKED = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten._index_put_impl_.default,
)
"""What reads or writes under a mask: how much that is, only the numbers themselves would say."""


class NotCounted(Exception):
    """What a step takes is not known: a plug-in of it cannot run on tensors without content."""


class StepMemory(Settings):
    """Bytes that training one run takes in float32, beside the tokens of its batches."""

    weights: int
    """Parameters, buffers, gradients and the optimiser's two moments, which are there all the
    time."""
    activations: int
    """The most that the forward and backward pass of a micro batch hold beside these."""
    evaluation: int
    """The most that answering an evaluation batch holds beside these."""
    checkpoint: int
    """A checkpoint on its way to the disk."""
    truth: int
    """Truth of one window in training."""


class _LiveBytes(TorchDispatchMode):
    """Adds up the memory of all tensors that are made while it is on, and forgets each when its
    last user lets go of it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return True  # what the model asks of its numbers is whether they are finite
        if func in MASKED:
            args = (args[0], _all_chosen(args[1]), *args[2:])
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, size).atexit = False

    def _drop(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size

    def peak_from_now(self) -> int:
        """Forgets earlier peaks; what is alive now."""
        self.peak = self.now
        return self.now


def _all_chosen(indices: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Indices that choose everything where a mask would choose an unknown part of it."""
    chosen: list[torch.Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool:
            size = index.numel()
            chosen += [index.new_empty(size, dtype=torch.int64) for _ in range(index.ndim)]
        else:
            chosen.append(index)
    return chosen


@dataclass(frozen=True)
class TrainingMemory:
    """Memory that training some recipes side by side takes on a CPU, beside what the program takes
    by itself."""

    recipes: Sequence[Recipe]
    """Alike in windows and batches."""
    shape: TokenShape
    """Of a cached frame."""
    labels: tuple[str, ...]
    token_bytes: int
    """Bytes of a stored token."""
    batches_read: int
    """Batches that are in memory as they are stored: those read ahead, and the one in use."""
    evaluation_windows: int
    """Windows of the evaluation split."""

    def is_plenty(self, free_bytes: int) -> bool:
        """Whether so much is free that there is nothing to count."""
        training, frames = self.recipes[0].training, self.recipes[0].windows.frames
        width = sum(recipe.model.width or self.shape.width for recipe in self.recipes)
        tokens = self.shape.patch_tokens + self.shape.special_tokens
        batch = training.batch_size // training.accumulate * frames * tokens
        return PLENTY * batch * width * FLOAT32_BYTES < free_bytes

    def peak_bytes(self, accumulate: int | None = None) -> int:
        """The most that is taken at any moment, in steps of `accumulate` parts where it is given.

        Windows are taken to hold as many objects as their task takes. Takes about a second a
        recipe, and leaves torch's random state alone. Raises NotCounted.
        """
        windows, training = self.recipes[0].windows, self.recipes[0].training
        micro_batch = training.batch_size // (accumulate or training.accumulate)
        held_out = min(evaluation_batch(micro_batch), self.evaluation_windows)
        layers = {layer for recipe in self.recipes for layer in layers_read(recipe, self.shape)}
        patches = self.shape.patch_tokens
        all_tokens, read_tokens = (
            self.shape.special_tokens + len(layers) * count
            for count in (patches, windows.patches_kept(self.shape.grid_hw))
        )
        runs = [
            step_memory(recipe, self.shape, self.labels, micro_batch, held_out)
            for recipe in self.recipes
        ]

        def stored(count: int, tokens: int) -> int:
            """Batches as they are read, of so many windows of so many tokens, with the truth beside
            them."""
            return self.batches_read * count * (tokens * self.token_bytes + runs[0].truth)

        def decoded(count: int, tokens: int) -> int:
            return count * tokens * self.shape.width * FLOAT32_BYTES

        tokens = windows.frames * read_tokens
        eval_tokens = windows.held_out_frames * all_tokens
        always = stored(training.batch_size, tokens) + sum(run.weights for run in runs)
        always += decoded(micro_batch, tokens)
        most = max(
            max(run.activations for run in runs),
            max(run.checkpoint for run in runs),
            stored(held_out, eval_tokens)
            + decoded(held_out, eval_tokens)
            + max(run.evaluation for run in runs),
        )
        return STARTED_BYTES + round(OVERHEAD * (always + most))

    def warning(self, peak_bytes: int, free_bytes: int) -> str:
        """What to say where training takes more than is free: how much, and the setting that mends
        it."""
        training = self.recipes[0].training
        batch_size, micro_batch = training.batch_size, training.batch_size // training.accumulate
        parts = [part for part in range(1, batch_size + 1) if batch_size % part == 0]
        finest = self.peak_bytes(accumulate=batch_size)
        # Memory is a constant, and a share for every window that a step holds at once.
        slope = (peak_bytes - finest) / max(1, micro_batch - 1)
        least = {part: round(finest + slope * (batch_size // part - 1)) for part in parts}
        fitting = next((part for part in parts if least[part] < free_bytes), batch_size)
        too_much = ", which is too much still: lower windows.frames or model.width"
        also = "" if least[fitting] < free_bytes else too_much
        return (
            f"training takes about {gigabytes(peak_bytes)} at its peak, {gigabytes(free_bytes)} "
            "are free: the system may kill it without a word; next: training.accumulate = "
            f"{fitting} takes about {gigabytes(least[fitting])}{also}"
        )


def evaluation_batch(micro_batch: int) -> int:
    """Windows per batch in evaluation: no more than a step has at once, so that what can be trained
    can be evaluated. Changes no result."""
    return min(EVAL_BATCH, micro_batch)


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def step_memory(
    recipe: Recipe,
    shape: TokenShape,
    labels: tuple[str, ...],
    windows: int,
    evaluation_windows: int,
) -> StepMemory:
    """The memory of a step of `recipe` on micro batches of so many `windows` on frames of `shape`,
    and of its evaluation on batches of `evaluation_windows`. Raises NotCounted."""
    try:
        with torch.random.fork_rng(devices=[]):
            return _counted(recipe, shape, labels, windows, evaluation_windows)
    except Exception as error:  # plug-ins do what they like, which fails in many ways
        raise NotCounted(str(error)) from error


def _counted(
    recipe: Recipe,
    shape: TokenShape,
    labels: tuple[str, ...],
    windows: int,
    evaluation_windows: int,
) -> StepMemory:
    frames, eval_frames = recipe.windows.frames, recipe.windows.held_out_frames
    task = make_task(recipe, labels)
    truth, eval_truth = (example_truth(task, count) for count in (frames, eval_frames))
    with FakeTensorMode(), _LiveBytes() as live:
        task = make_task(recipe, labels)
        model = VideoModel(recipe, shape, task)
        trained = nn.ModuleDict({"model": model, "task": task})
        optimizer = torch.optim.AdamW(parameter_groups(trained, 0.0))
        learning = [parameter for parameter in trained.parameters() if parameter.requires_grad]
        for parameter in learning:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        weights = live.now
        gradients = sum(parameter.nbytes for parameter in learning)
        patches = shape.patch_tokens
        kept = recipe.windows.patches_kept(shape.grid_hw)
        batch = _batch(model, shape, kept, truth, (windows, frames))
        activations = _training_peak(live, model, task, batch)
        held_out = evaluation_windows, eval_frames
        batch = _batch(model, shape, patches, eval_truth, held_out)
        evaluation = _evaluation_peak(live, model, task, batch)
    return StepMemory(
        weights=weights,
        activations=activations,
        evaluation=evaluation,
        checkpoint=weights - gradients,
        truth=sum(array[0].nbytes for array in truth.values()),
    )


def _training_peak(live: _LiveBytes, model: VideoModel, task: TaskPlugin, batch: OnDevice) -> int:
    before = live.peak_from_now()
    predictions = model.train().predict(batch, task)
    losses = [
        task.loss(form, prediction.float(), model.truth(batch, task))
        for form, prediction in predictions.items()
    ]
    torch.stack(losses).sum().backward()
    return live.peak - before


def _evaluation_peak(live: _LiveBytes, model: VideoModel, task: TaskPlugin, batch: OnDevice) -> int:
    before = live.peak_from_now()
    with torch.no_grad():
        for form, prediction in model.eval().predict(batch, task).items():
            task.answer(form, prediction)
    return live.peak - before


def _batch(
    model: VideoModel, shape: TokenShape, patches: int, truth: Arrays, size: tuple[int, int]
) -> OnDevice:
    """Windows and frames, as many as `size` says, of fake tokens with so many patches, and fake
    truth beside them."""
    return OnDevice(
        torch.zeros(*size, shape.special_tokens, shape.width),
        {layer: torch.zeros(*size, patches, shape.width) for layer in model.layers},
        {
            name: torch.zeros(size[0], *array.shape[1:], dtype=torch.from_numpy(array[:0]).dtype)
            for name, array in truth.items()
        },
    )


def example_truth(task: TaskPlugin, frames: int) -> Arrays:
    """Targets (1, ...) of a window that holds more objects and points than the task takes of
    them."""
    source = {
        "boxes": np.tile(np.array([0, 0, 1, 1], np.float32), (EXAMPLES, 1, 1)),
        "points": np.full((EXAMPLES, 1, 2), 0.5, np.float32),
        "visible": np.ones((EXAMPLES, 1), bool),
        "pose": np.eye(4)[None],
    }
    rows, all_T = np.zeros(frames, np.int64), np.ones(frames, bool)
    identity_T23 = np.tile(np.eye(2, 3), (frames, 1, 1))
    truth: Arrays = {"time_s": np.arange(frames, dtype=np.float64)} if "pose" in task.needs else {}
    texts = task.example_texts(frames)
    for name in task.needs:
        if name in texts:
            continue
        if name == "label":
            truth["label"] = np.array(0)
        elif name == TOKENS:
            truth["seen_s"] = np.arange(frames) * SECONDS / max(1, frames - 1)
        elif name == CLASSES:
            truth[CLASSES] = np.ones((frames, len(task.labels)), bool)
            truth[CLASSES_VALID] = all_T
        elif name == "depth_m":
            side = task.dense_px or 1
            truth["depth_m"] = np.ones((frames, side, side), np.float32)
        else:
            truth |= MAPPED[name](source, rows, all_T, identity_T23)
    return collate([task.prepare(truth | texts, np.random.default_rng(0))])
