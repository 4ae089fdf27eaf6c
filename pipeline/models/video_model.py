"""The trained part of the video model: layer mixer -> projection -> temporal module -> readouts,
over a window or as a stream.

The input is what the cache holds: special tokens of the last layer and the patches of every
recorded layer, ascending.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pipeline.config.recipe import PARTS, Part, Recipe
from pipeline.datasets.manifest.targets import TOKENS, Arrays
from pipeline.errors import BadInput
from pipeline.models.mixers import layer_mixer
from pipeline.models.tasks.contract import (
    FRAME_EMBEDDINGS,
    PATCHES,
    STREAMING,
    WINDOW,
    Query,
    StreamingReadout,
    TaskPlugin,
)
from pipeline.models.temporal.contract import NotFinite, State, TemporalModule, make_temporal
from pipeline.records import Batch, OnDevice, TokenShape

TRIVIAL = "trivial"
"""Name of the trivial answer among those that need no training."""


class StreamState(NamedTuple):
    """The state that a stream remembers between two frames."""

    temporal: State
    readout: Query


class VideoModel(nn.Module):
    """The model that a recipe trains on a cache. Its initial weights depend on the recipe and on
    torch's random state alone."""

    temporal: TemporalModule

    def __init__(self, recipe: Recipe, shape: TokenShape, task: TaskPlugin) -> None:
        """`shape` is what the cache holds of one frame. Raises BadInput where the width does not
        suit the temporal module."""
        super().__init__()
        frames, eval_frames = recipe.windows.frames, recipe.windows.eval_frames
        differs = eval_frames not in (None, frames)
        if WINDOW in task.forms and differs and not task.reads_any_length:
            raise BadInput(
                f"recipe '{recipe.name}': the form '{WINDOW}' reads {frames} frames at once, "
                f"no other number; windows.eval_frames is {eval_frames}",
                'leave windows.eval_frames out, or set task.forms = ["streaming"]',
            )
        model = recipe.model
        self.use_special_tokens = model.tokens == "all"
        self.tokens_per_frame = shape.patch_tokens + (
            shape.special_tokens if self.use_special_tokens else 0
        )
        """N, the tokens of one frame that the temporal module sees."""
        width = model.width or shape.width
        self.layers = layers_read(recipe, shape)
        """Recorded layers whose patches it reads, ascending."""
        self.mixer = layer_mixer(model.mixer, shape.width, len(self.layers))
        self.projection = nn.Linear(shape.width, width) if model.width else nn.Identity()
        self.temporal = make_temporal(recipe, width)
        self.stretch: int | None = None
        """Frames after which training keeps what the temporal module gives and remembers, and
        nothing of what it computes between; None: it keeps all."""
        if recipe.training.gradient_checkpointing:
            self.stretch = math.ceil(math.sqrt(frames))
        self.sees_patches = task.sees_patches
        self.readouts = nn.ModuleDict(
            {
                form: task.readout(form, width, recipe.windows.frames, shape)
                for form in (*task.forms, *task.aids)
            }
        )
        self.aids = task.aids
        """Those of the readouts that training alone uses."""
        self.taken_over = _parts_taken_over(recipe, self)
        """Parts whose weights come from another run."""
        self._frozen: list[nn.Module] = []
        if recipe.init is not None and recipe.init.frozen:
            self._frozen = [self.part(name) for name in self.taken_over]
        for part in self._frozen:
            part.requires_grad_(False)

    def part(self, name: Part) -> nn.Module:
        """One of the parts that do not depend on the task."""
        module = getattr(self, name)
        assert isinstance(module, nn.Module)
        return module

    def train(self, mode: bool = True) -> Self:
        """Frozen parts stay in evaluation mode: what they do is what they have learnt, with no
        dropout, and with the statistics that their batch norms have."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def forward(
        self,
        special_BTSD: torch.Tensor,
        patches_BTPD: Sequence[torch.Tensor],
        query: Query | None = None,
    ) -> dict[str, torch.Tensor]:
        """The prediction of every form: (B, T, ...) for streaming, (B, ...) for window; in training
        mode of every aid, too. `query` is what the task's `query` gives."""
        y_BTND = self.features(special_BTSD, patches_BTPD)
        told = (query or {}) | self._seen(patches_BTPD)
        return {
            form: readout(y_BTND, told)
            for form, readout in self.readouts.items()
            if self.training or form not in self.aids
        }

    def predict(self, device_batch: OnDevice, task: TaskPlugin) -> dict[str, torch.Tensor]:
        """The prediction of every form for windows as they come from a cache, which may hold more
        layers than the model reads."""
        patches = [device_batch.patches[layer] for layer in self.layers]
        query = task.query(self.truth(device_batch, task))
        predictions: dict[str, torch.Tensor] = self(device_batch.special_BTSD, patches, query)
        return predictions

    def truth(self, device_batch: OnDevice, task: TaskPlugin) -> dict[str, torch.Tensor]:
        """The targets of windows; where tokens are the truth, those of the last layer that is
        read."""
        if TOKENS not in task.needs:
            return device_batch.targets
        return device_batch.targets | {TOKENS: device_batch.patches[self.layers[-1]].float()}

    def answers(self, device_batch: OnDevice, task: TaskPlugin) -> Arrays:
        """form -> predictions as the task scores them, on the CPU. Raises NotFinite where one holds
        NaN: it is no answer, and is neither scored nor drawn."""
        with torch.inference_mode():
            predictions = self.predict(device_batch, task)
            return {
                form: array_of_answer(form, task.answer(form, prediction))
                for form, prediction in predictions.items()
            }

    def features(
        self, special_BTSD: torch.Tensor, patches_BTPD: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Outputs of the temporal module, (B, T, N, width)."""
        x_BTND = self.tokens_of(special_BTSD, patches_BTPD)
        if self.stretch is None or not self.training:
            y_BTND, _ = self.temporal(x_BTND)
            return y_BTND
        outputs: list[torch.Tensor] = []
        state: State | None = None
        for part_BTND in x_BTND.split(self.stretch, dim=1):
            y_BTND, state = checkpoint(self.temporal, part_BTND, state, use_reentrant=False)
            outputs.append(y_BTND)
        return torch.cat(outputs, dim=1)

    def start(self, batch: int, query: Query | None = None) -> StreamState:
        """The state of B streams before their first frame."""
        return StreamState(
            self.temporal.initial_state(batch, self.tokens_per_frame),
            self.streaming.start(query or {}),
        )

    def step(
        self,
        special_BSD: torch.Tensor,
        patches_BPD: Sequence[torch.Tensor],
        state: StreamState,
        of_frame: Query | None = None,
    ) -> tuple[torch.Tensor, StreamState]:
        """One frame of a stream: the streaming form's prediction, (B, ...), and the state after.
        `of_frame`: what the query has of every frame, of this one.

        Frame by frame equals `forward` in eval mode.
        """
        y_BND, temporal = self.temporal.step(
            self.tokens_of(special_BSD, patches_BPD), state.temporal
        )
        seen = self._seen(patches_BPD) | (of_frame or {})
        prediction, readout = self.streaming.step(y_BND, state.readout | seen)
        kept = {name: part for name, part in readout.items() if name not in seen}
        return prediction, StreamState(temporal, kept)

    def _seen(self, patches: Sequence[torch.Tensor]) -> Query:
        """The frames' own patches, for readouts that see them."""
        return {PATCHES: patches[-1]} if self.sees_patches else {}

    @property
    def streaming(self) -> StreamingReadout:
        """The streaming form's readout. Raises BadInput if the recipe did not train it."""
        if STREAMING not in self.readouts:
            raise BadInput(
                f"this model answers only in the form {', '.join(self.readouts)} "
                "and cannot follow a stream",
                'add "streaming" to task.forms in the recipe and train again',
            )
        readout = self.readouts[STREAMING]
        assert isinstance(readout, StreamingReadout)
        return readout

    def parameter_counts(self) -> dict[str, int]:
        """Trained parameters of each part, frozen ones left out; the projection counts with the
        mixer."""
        parts = {
            "mixer": (self.mixer, self.projection),
            "temporal": (self.temporal,),
            "readout": (self.readouts,),
        }
        return {
            name: sum(p.numel() for part in modules for p in part.parameters() if p.requires_grad)
            for name, modules in parts.items()
        }

    def tokens_of(self, special: torch.Tensor, patches: Sequence[torch.Tensor]) -> torch.Tensor:
        """(..., S, D) and L times (..., P, D) -> (..., N, width): special tokens in front, then the
        mixed patches."""
        dtype = next(self.parameters()).dtype
        tokens = self.mixer([layer_patches.to(dtype) for layer_patches in patches])
        if self.use_special_tokens:
            tokens = torch.cat([special.to(dtype), tokens], dim=-2)
        return self.projection(tokens)


def with_truth(batch: Batch, device_batch: OnDevice, task: TaskPlugin, layer: int) -> Batch:
    """The batch with its whole truth on the CPU, as the task scores by it; where tokens are the
    truth, those of `layer`."""
    targets = batch.targets
    if TOKENS in task.needs:
        targets = targets | {TOKENS: device_batch.patches[layer].float().cpu().numpy()}
    return replace(batch, targets=task.for_scoring(targets))


def untrained_answers(
    task: TaskPlugin,
    statistics: Arrays,
    grid_hw: tuple[int, int],
    batch: Batch,
    device_batch: OnDevice,
    layers: Sequence[int],
) -> dict[str, dict[int | None, np.ndarray]]:
    """Name of a baseline -> layer -> its answers to a batch, for all layers that are there. The
    trivial one, first, has no layer, nor have those that look at embeddings of frames. `batch` has
    its whole truth, which is of the last of `layers` where it is tokens; then baselines look at
    that one alone."""
    answers: dict[str, dict[int | None, np.ndarray]] = {
        TRIVIAL: {None: task.trivial(batch.targets, statistics)}
    }
    query = task.query(device_batch.targets)
    looked_at = layers[-1:] if TOKENS in task.needs else tuple(device_batch.patches)
    by_layer = FRAME_EMBEDDINGS not in query
    with torch.inference_mode():
        for name, baseline in task.baselines.items():
            for layer in looked_at if by_layer else layers[-1:]:
                tokens_BThwD = device_batch.patches[layer].unflatten(2, grid_hw)
                answer = baseline(tokens_BThwD, query, statistics)
                answers.setdefault(name, {})[layer if by_layer else None] = answer.cpu().numpy()
    return answers


def array_of_answer(form: str, answer: torch.Tensor) -> np.ndarray:
    """An answer of any shape as an array. Raises NotFinite where it holds NaN."""
    array = answer.cpu().numpy()
    lost = int(np.isnan(array).sum())
    if lost:
        raise NotFinite(
            f"{lost} of {array.size} numbers of the model's answers in form '{form}' are NaN",
            "its training has diverged, or its weights are damaged: take another checkpoint, or "
            "train again with a lower training.learning_rate",
        )
    return array


def layers_read(recipe: Recipe, shape: TokenShape) -> tuple[int, ...]:
    """Returns those of the cached layers that the model reads. Raises BadInput where one is not
    there."""
    layers = recipe.model.layers_of(shape.layers)
    if missing := sorted(set(layers) - set(shape.layers)):
        wants, has = (", ".join(map(str, names)) for names in (missing, shape.layers))
        raise BadInput(
            f"recipe '{recipe.name}' reads layer {wants}, the cache has {has}",
            "change model.layers, or add the layer to the spec and extract again: "
            "what is there is kept",
        )
    return layers


def _parts_taken_over(recipe: Recipe, model: VideoModel) -> tuple[Part, ...]:
    """The parts of a model that go on from another run. Raises BadInput for one without weights."""
    if recipe.init is None:
        return ()
    have_weights = tuple(name for name in PARTS if model.part(name).state_dict())
    parts = recipe.init.parts or have_weights
    without = {
        "mixer": f'model.mixer = "{recipe.model.mixer}"',
        "projection": "model.width unset",
        "temporal": f'temporal.name = "{recipe.temporal.name}"',
    }
    for name in parts:
        if name not in have_weights:
            raise BadInput(
                f"recipe '{recipe.name}': init.parts names the {name}, which has no weights with "
                f"{without[name]}",
                f"leave '{name}' out of init.parts",
            )
    return parts


def parameter_groups(
    model: nn.Module, weight_decay: float, factors: Mapping[str, float] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """Groups of trained parameters for the optimiser: with and without weight decay, and each of
    these again for every other factor of the learning rate, which `factors` has by the beginning of
    parameters' names. A group says its own as `factor`.

    Decay is for what multiplies activations: parameters `...weight` of two or more dimensions.
    Biases, norms, learned queries and embeddings are left alone, as is common for transformers, and
    so are a state space model's A_log and D, as in the code of Mamba (arXiv 2312.00752).
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {(True, 1.0): [], (False, 1.0): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_decayed = parameter.ndim > 1 and name.endswith("weight")
            factor = next((f for begin, f in factors.items() if name.startswith(begin)), 1.0)
            groups.setdefault((is_decayed, factor), []).append(parameter)
    return [
        {"params": params, "weight_decay": weight_decay * is_decayed, "factor": factor}
        for (is_decayed, factor), params in groups.items()
    ]
