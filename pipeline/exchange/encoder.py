"""The encoder before an exported step, as a file of its own: a square of pixels -> the tokens that
the step reads, under the same names.

What happens in between in training is the codec of the cache. What it cuts off, the file cuts off,
too; that it rounds, the file leaves out, and how much answers differ by that is measured.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pipeline.cache.layout import SPECIAL, layer_name
from pipeline.errors import BadInput
from pipeline.exchange.loaded import LoadedStep
from pipeline.exchange.parity import Parity, RunFollower, as_arrays
from pipeline.exchange.ports import ANSWER, FRAME_EMBEDDING, Port, Ports
from pipeline.exchange.step import ModelStep, Tensors
from pipeline.train.stream import Stream

PIXELS = "pixels"
ASKED = 8
"""Squares that a file is asked about, two at a time."""
COARSE = 8
"""Pixels of a square for each random one: what is drawn is smooth, as photographs are."""


class EncoderStep(nn.Module):
    """Levels of a square, (B, 3, H, W) -> tokens. In evaluation mode, on the CPU."""

    def __init__(self, stream: Stream, step: ModelStep) -> None:
        """`stream`: the run as it follows a video, with its encoder and codecs. Raises BadInput
        where the encoder does not compute in float32."""
        super().__init__()
        precision = stream.encoder.identity.get("precision", "float32")
        if precision != "float32":
            raise BadInput(
                f"encoder '{stream.spec.encoder.name}' computes in {precision}, which other tools "
                "round in other places: its tokens would not be those of the cache",
                "leave --encoder out",
            )
        self.stream, self.outputs = stream, step.ports.frame
        size_px = stream.spec.frames.size_px
        self.inputs = (
            Port(
                name=PIXELS,
                dtype="float32",
                shape=("B", 3, size_px, size_px),
                meaning="levels of red, green and blue, 0 to 255, of the square of a frame",
            ),
        )

    @property
    def ports(self) -> Ports:
        """As those of a step, without states."""
        return Ports(frame=self.inputs, told=(), states=(), outputs=self.outputs)

    def forward(self, inputs: Tensors) -> Tensors:
        """Inputs and outputs by name."""
        tokens, codecs = self.stream.encoder(inputs[PIXELS]), self.stream.codecs
        found = {layer_name(layer): part for layer, part in tokens.patches_NPD.items()}
        found[SPECIAL] = tokens.special_NSD
        kept = {name: codec.kept(found[name].float()) for name, codec in codecs.items()}
        head = self.stream.image_head
        if head is not None:
            read = kept[SPECIAL][:, 0] if head.reads_cls else kept[layer_name(head.last_layer)]
            kept[FRAME_EMBEDDING] = head(read)
        return {port.name: kept[port.name] for port in self.outputs}

    def example(self, frames: int, seed: int = 0) -> Tensors:
        """Smooth squares of random colours, in whole levels."""
        size_px = self.stream.spec.frames.size_px
        generator = torch.Generator().manual_seed(seed)
        side = max(2, size_px // COARSE)
        levels = 255 * torch.rand(frames, 3, side, side, generator=generator)
        size = (size_px, size_px)
        return {PIXELS: functional.interpolate(levels, size, mode="bilinear").round()}


@torch.no_grad()
def compared_tokens(encoder: EncoderStep, file: LoadedStep) -> Parity:
    """What a file makes of some squares, beside what the encoder makes of them."""
    parity, torch_s, file_s = Parity(), [], []
    for at in range(0, ASKED, 2):
        squares = encoder.example(2, seed=at)
        wanted = as_arrays(encoder(squares))
        said, _ = file("both", as_arrays(squares), want_states=False)
        for name, array in said.items():
            parity.see(name, array, wanted[name], at)
        one = {PIXELS: squares[PIXELS][:1]}
        begin = time.perf_counter()
        encoder(one)
        torch_s.append(time.perf_counter() - begin)
        _, seconds = file("one", as_arrays(one), want_states=False)
        file_s.append(seconds)
    parity.torch_ms, parity.file_ms = (1000 * statistics.median(s) for s in (torch_s, file_s))
    return parity


@torch.no_grad()
def without_rounding(encoder: EncoderStep, step: ModelStep) -> tuple[float, float]:
    """The most that answers differ where the codec does not round, over a stream of squares, and
    the largest answer."""
    stream, sizes = encoder.stream, {"B": 1, "Q": 5, "L": 7, "K": 6}
    told = {port.name: step.example(sizes)[port.name] for port in step.told}
    plain, rounded = RunFollower(step, told), RunFollower(step, told)
    differences, largest = [0.0], [0.0]
    for at in range(ASKED):
        tokens = encoder(encoder.example(1, seed=at))
        stored = {
            name: _stored(stream, name, part) if name in stream.codecs else part
            for name, part in tokens.items()
        }
        one, other = plain(tokens)[ANSWER], rounded(stored)[ANSWER]
        differences.append(float(np.abs(one - other).max(initial=0)))
        largest.append(float(np.abs(other).max(initial=0)))
    return max(differences), max(largest)


def _stored(stream: Stream, name: str, tokens_BND: torch.Tensor) -> torch.Tensor:
    """Tokens after a trip through the codec."""
    arrays = stream.codecs[name].encode(tokens_BND)
    return stream.codecs[name].decode({key: torch.from_numpy(part) for key, part in arrays.items()})
