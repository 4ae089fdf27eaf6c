"""One step of a trained model as one function: tokens of a frame and the states before it -> what
the task says of it, and the states after. It keeps no state itself, and knows no number of streams.

Frame by frame it is `VideoModel.step` and the task's `answer`. What a readout remembers is found by
taking two frames: what it gives back as it got it is the same throughout a stream, and is made anew
of what the stream is told; the rest is state.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from pipeline.cache.layout import SPECIAL, layer_name
from pipeline.errors import BadInput
from pipeline.exchange.ports import (
    ANSWER,
    CAPTIONS,
    FEATURES,
    FRAME_EMBEDDING,
    FREE_AXES,
    LIKENESS,
    MEANINGS,
    RESET,
    TOLD_IN,
    Port,
    Ports,
    StatePort,
    with_letters,
)
from pipeline.models.profile import example_query
from pipeline.models.tasks.contract import (
    BY_FRAME,
    FRAME_EMBEDDINGS,
    PATCHES,
    STREAMING,
    Query,
    TaskPlugin,
)
from pipeline.models.temporal.contract import State
from pipeline.models.video_model import VideoModel
from pipeline.records import TokenShape

Tensors = dict[str, torch.Tensor]
SIZES = {"B": 3, "Q": 5, "L": 7, "K": 6}
"""Sizes of the free axes where a step is written down: exporters take 0 and 1 for fixed, and no two
are the same."""
OTHER_SIZES = {"B": 2, "Q": 9, "L": 8, "K": 11}
"""Sizes that tell which axes are free."""


class Said(NamedTuple):
    """What comes of one frame."""

    prediction: torch.Tensor
    y_BND: torch.Tensor
    temporal: State
    remembered: Query
    """What the readout remembers, but for what it was given and gives back as it is."""


class ModelStep(nn.Module):
    """In evaluation mode and float32, on the CPU."""

    def __init__(self, model: VideoModel, task: TaskPlugin, shape: TokenShape) -> None:
        """`shape` is that of a cached frame. Raises BadInput where the model has no streaming
        form."""
        super().__init__()
        self.model, self.task, self.streaming = model, task, model.streaming
        query = example_query(task)
        self.frame = (*_token_ports(model, shape), *_embedding_ports(query))
        self.told = (*_told_ports(query), *_caption_ports(task))
        self.memory: dict[str, int] = {}
        """Parts that the readout remembers, each with its place among the states."""
        self._has_time = True
        self.ports = self._found()

    @property
    def inputs(self) -> tuple[Port, ...]:
        """All that goes in."""
        return self.ports.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        """All that comes out, the states last."""
        return self.ports.all_outputs

    def forward(self, inputs: Tensors) -> Tensors:
        """Inputs and outputs as `ports` names them, (B, ...) each."""
        kept = [inputs[f"state_{i}"] for i in range(len(self.ports.states))]
        count = len(kept) - len(self.memory)
        temporal = tuple(
            rows_where(inputs[RESET], torch.zeros_like(part), part) for part in kept[:count]
        )
        remembered = dict(zip(self.memory, kept[count:], strict=True))
        said = self._step(inputs, temporal, remembered)
        states = (*said.temporal, *(said.remembered[name] for name in self.memory))
        return self._outputs(inputs, said) | {f"next_state_{i}": p for i, p in enumerate(states)}

    def _step(self, inputs: Tensors, temporal: State, remembered: Query) -> Said:
        """One frame after what is remembered, which is nothing of the readout before the first."""
        patches = [inputs[layer_name(layer)] for layer in self.model.layers]
        special = inputs.get(SPECIAL, patches[-1][:, :0])  # of an encoder that has none
        y_BND, temporal = self.model.temporal.step(self.model.tokens_of(special, patches), temporal)
        memory = self.streaming.start(self.query(inputs))
        for name, part in remembered.items():
            start = memory.get(name, torch.zeros_like(part))
            memory[name] = rows_where(inputs[RESET], start, part)
        seen = {PATCHES: patches[-1]} if self.model.sees_patches else {}
        if FRAME_EMBEDDING in inputs:
            seen[FRAME_EMBEDDINGS] = inputs[FRAME_EMBEDDING]
        prediction, after = self.streaming.step(y_BND, memory | seen)
        changed = {k: v for k, v in after.items() if k not in seen and v is not memory.get(k)}
        return Said(prediction, y_BND, temporal, changed)

    def _outputs(self, inputs: Tensors, said: Said) -> Tensors:
        """But for the states."""
        answer = self.answer(said.prediction)
        outputs = {ANSWER: answer}
        if CAPTIONS in inputs:
            text_BKE = self.task.of_texts(inputs[CAPTIONS])
            outputs[LIKENESS] = (text_BKE @ answer.unsqueeze(-1)).squeeze(-1)
        return outputs | {FEATURES: said.y_BND}

    def query(self, inputs: Tensors) -> Query:
        """What the readout is told at the start of the streams."""
        names = [port.name for port in self.told if port.name != CAPTIONS]
        query = {name: inputs[name] for name in names}
        for name, of in TOLD_IN.items():
            if of in query:
                shape = query[of].shape[:2]
                query[name] = torch.zeros(shape, dtype=torch.int64, device=query[of].device)
        return query

    def answer(self, prediction: torch.Tensor) -> torch.Tensor:
        """The readout's prediction for a frame -> what the task says of it, without a time axis."""
        answer = self.task.answer(STREAMING, prediction.unsqueeze(1))
        return answer.squeeze(1) if self._has_time else answer

    def example(self, sizes: dict[str, int] | None = None, seed: int = 0) -> Tensors:
        """Inputs of all names, of streams that go on; `sizes` of the free axes."""
        generator = torch.Generator().manual_seed(seed)
        return {
            port.name: numbers_for(port, sizes or SIZES, generator) for port in self.ports.inputs
        }

    @torch.no_grad()
    def _found(self) -> Ports:
        """Takes two frames with sizes of each kind to see what there is."""
        one, other = (self._rehearsed(sizes) for sizes in (SIZES, OTHER_SIZES))
        letters = {size: letter for letter, size in SIZES.items()}

        def port(name: str, part: torch.Tensor, second: torch.Tensor) -> dict[str, Any]:
            try:
                shape = with_letters(part.shape, second.shape, letters)
            except KeyError as error:
                raise BadInput(
                    f"'{name}' of this model has an axis of size {error} that is no batch and no "
                    "axis of what a stream is told",
                    "such a model cannot leave as one step",
                ) from error
            return {"dtype": str(part.dtype).removeprefix("torch."), "shape": shape}

        outputs = tuple(
            Port(name=name, meaning=self._meaning(name), **port(name, part, other[0][name]))
            for name, part in one[0].items()
        )
        parts = [(f"the temporal module, part {i}", part) for i, part in enumerate(one[1])]
        parts += [(f"the readout, its '{name}'", part) for name, part in one[2].items()]
        seconds = (*other[1], *other[2].values())
        states = tuple(
            StatePort(input=f"state_{i}", output=f"next_state_{i}", of=of, **port(of, part, second))
            for i, ((of, part), second) in enumerate(zip(parts, seconds, strict=True))
        )
        self.memory = {name: len(one[1]) + place for place, name in enumerate(one[2])}
        return Ports(frame=self.frame, told=self.told, states=states, outputs=outputs)

    def _rehearsed(self, sizes: dict[str, int]) -> tuple[Tensors, State, Query]:
        """Outputs and states after two frames."""
        generator = torch.Generator().manual_seed(0)
        inputs = {
            each.name: numbers_for(each, sizes, generator) for each in (*self.frame, *self.told)
        }
        inputs[RESET] = torch.zeros(sizes["B"], dtype=torch.bool)
        state = self.model.temporal.initial_state(sizes["B"], self.model.tokens_per_frame)
        first = self._step(inputs, state, {})
        second = self._step(inputs, first.temporal, first.remembered)
        self._has_time = _has_time_axis(self.task, second.prediction)
        return self._outputs(inputs, second), second.temporal, second.remembered

    def _meaning(self, name: str) -> str:
        if name != ANSWER:
            return MEANINGS[name]
        said = (type(self.task).answer.__doc__ or "").strip().split("\n\n")[0]
        return " ".join(said.split())


def rows_where(condition_B: torch.Tensor, yes: torch.Tensor, no: torch.Tensor) -> torch.Tensor:
    """`yes` in the rows of which the condition holds, else `no`, (B, ...)."""
    condition = condition_B.reshape(-1, *[1] * (no.ndim - 1))
    if no.dtype == torch.bool:  # of which onnxruntime cannot choose
        return (condition & yes) | (~condition & no)
    return torch.where(condition, yes, no)


def numbers_for(port: Port, sizes: dict[str, int], generator: torch.Generator) -> torch.Tensor:
    """Numbers as a port might get them."""
    shape = [sizes[axis] if isinstance(axis, str) else axis for axis in port.shape]
    if port.dtype == "bool":
        return torch.rand(shape, generator=generator) < 0.7
    if port.dtype.startswith("int"):
        return torch.zeros(shape, dtype=getattr(torch, port.dtype))
    if port.name in ("box", "point"):
        return 0.2 + 0.4 * torch.rand(shape, generator=generator)
    numbers = torch.randn(shape, generator=generator)
    is_unit = port.name in (CAPTIONS, FRAME_EMBEDDING)
    return nn.functional.normalize(numbers, dim=-1) if is_unit else numbers


def _has_time_axis(task: TaskPlugin, prediction: torch.Tensor) -> bool:
    """Whether the task's answer to a window has an axis for its frames."""
    two, three = (
        task.answer(STREAMING, torch.stack([prediction] * frames, dim=1)).shape for frames in (2, 3)
    )
    return two != three


def _token_ports(model: VideoModel, shape: TokenShape) -> list[Port]:
    """What the model reads of a frame in a cache."""
    ports = []
    if model.use_special_tokens and shape.special_tokens:
        size = shape.special_tokens, shape.width
        meaning = MEANINGS[SPECIAL]
        ports.append(Port(name=SPECIAL, dtype="float32", shape=("B", *size), meaning=meaning))
    for layer in model.layers:
        size = shape.patch_tokens, shape.width
        meaning = f"patch tokens of layer {layer}, counted from 0, row by row"
        ports.append(
            Port(name=layer_name(layer), dtype="float32", shape=("B", *size), meaning=meaning)
        )
    return ports


def _embedding_ports(query: Query) -> list[Port]:
    if FRAME_EMBEDDINGS not in query:
        return []
    shape, meaning = ("B", query[FRAME_EMBEDDINGS].shape[-1]), MEANINGS[FRAME_EMBEDDING]
    return [Port(name=FRAME_EMBEDDING, dtype="float32", shape=shape, meaning=meaning)]


def _told_ports(query: Query) -> list[Port]:
    """What a stream is told, as the example of a query has it."""
    ports = []
    for name, part in query.items():
        if name in BY_FRAME or name in TOLD_IN:
            continue
        second, *others = part.shape[1:] or [None]
        axes = [axis for axis in (FREE_AXES.get(name, second), *others) if axis is not None]
        dtype = str(part.dtype).removeprefix("torch.")
        meaning = MEANINGS.get(name, "what the stream is told")
        ports.append(Port(name=name, dtype=dtype, shape=("B", *axes), meaning=meaning))
    return ports


def _caption_ports(task: TaskPlugin) -> list[Port]:
    if not task.asked_in_words:
        return []
    width = task.example_texts(1)[CAPTIONS].shape[-1]
    shape, meaning = ("B", "K", width), MEANINGS[CAPTIONS]
    return [Port(name=CAPTIONS, dtype="float32", shape=shape, meaning=meaning)]
