"""Residual layers over time, each token position on its own: what modules share that differ only in
the mixer of a layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import nn

from pipeline.models.temporal.contract import State, TemporalModule


class Mixer(nn.Module, ABC):
    """Mixes over time, time first: (T, B, N, D) and its parts of the state -> (T, B, N, D) and
    those parts after."""

    @abstractmethod
    def forward(self, x_TBND: torch.Tensor, state: State) -> tuple[torch.Tensor, State]: ...

    @abstractmethod
    def state_shapes(self, tokens: int) -> tuple[tuple[int, ...], ...]:
        """As in the contract."""

    @abstractmethod
    def flops(self, frames: int, tokens: int) -> int:
        """As in the contract."""


class ResidualLayer(nn.Module):
    """x + Dropout(mixer(LN x))."""

    def __init__(self, width: int, mixer: Mixer, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mixer = mixer
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_TBND: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        y_TBND, after = self.mixer(self.norm(x_TBND), state)
        # Under autocast a mixer may give its state in another type than it got it.
        after = tuple(part.to(old.dtype) for part, old in zip(after, state, strict=True))
        return x_TBND + self.dropout(y_TBND), after


class ResidualStack(TemporalModule):
    """Residual layers, then a LayerNorm. State: the parts of every layer in turn."""

    def __init__(self, width: int, settings: Any, mixers: Sequence[Mixer]) -> None:
        """One layer per mixer; `settings.dropout` is the dropout of each."""
        super().__init__(width, settings)
        self.layers = nn.ModuleList(
            ResidualLayer(width, mixer, settings.dropout) for mixer in mixers
        )
        self.output_norm = nn.LayerNorm(width)

    def _run(self, x_BTND: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        batch, _, tokens, _ = x_BTND.shape
        before = self.initial_state(batch, tokens) if state is None else state
        parts = len(before) // len(self.layers)
        after: State = ()
        x = x_BTND.transpose(0, 1)  # time first: one frame is one contiguous slab
        for i, layer in enumerate(self.layers):
            x, layer_state = layer(x, before[parts * i : parts * (i + 1)])
            after += layer_state
        return self.output_norm(x.transpose(0, 1)), after

    def state_shapes(self, tokens: int) -> tuple[tuple[int, ...], ...]:
        return sum((mixer.state_shapes(tokens) for mixer in self._mixers()), ())

    def flops(self, frames: int, tokens: int) -> int:
        return sum(mixer.flops(frames, tokens) for mixer in self._mixers())

    def _mixers(self) -> list[Mixer]:
        return [layer.mixer for layer in cast(Iterable[ResidualLayer], self.layers)]
