"""Two stacks of layers over time that several modules are: `ResidualStack`, whose modules differ in
the mixer of a layer alone, and `MambaStack`, which the paper's Mamba modules share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from pydantic import Field
from torch import nn

from pipeline.config import plugins
from pipeline.models.temporal.contract import State, TemporalModule
from pipeline.models.temporal.layers.mamba import MambaBlock
from pipeline.models.temporal.layers.spatial_attention import SpatialBlock, check_heads


class Mixer(nn.Module, ABC):
    """Mixes over time, time first: (T, B, N, D) and its parts of the state -> (T, B, N, D) and
    those parts after."""

    @abstractmethod
    def forward(self, x_TBND: torch.Tensor, state: State) -> tuple[torch.Tensor, State]: ...

    @abstractmethod
    def state_shapes(self, tokens: int) -> tuple[tuple[int, ...], ...]:
        """Shape of each part of one stream's state for frames of N = `tokens`, without B."""

    @abstractmethod
    def flops(self, frames: int, tokens: int) -> int:
        """Operations of one window, counted as the contract of a temporal module says."""


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


class MambaSettings(plugins.Settings):
    """The defaults are the paper's."""

    layers: int = Field(default=4, ge=1)
    """Mamba blocks; a spatial block before each where the module has them."""
    state: int = Field(default=16, ge=1)
    """State size per channel."""
    expand: int = Field(default=2, ge=1)
    """Inner width of Mamba over the width."""
    conv: int = Field(default=4, ge=1)
    """Frames that the causal convolution sees."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout after Mamba and, in spatial blocks, of attention weights and in the MLP."""


class MambaMixSettings(MambaSettings):
    """The defaults are the paper's."""

    heads: int = Field(default=16, ge=1)
    """Attention heads of the spatial blocks; must divide the width."""
    mlp_ratio: float = Field(default=4, gt=0)
    """Hidden width of the spatial MLP over the width."""
    drop_path: float = Field(default=0.1, ge=0, lt=1)
    """Share of frames that skip a residual branch of the spatial block."""


class MambaStack(TemporalModule):
    """Per layer z = spatial block of x, if there is one, m = Dropout(Mamba(LN z)) over time and x
    <- z + m; then a LayerNorm.

    State: for each layer the last inputs of the convolution and the state of the scan, (B, N, ...)
    each.
    """

    def __init__(
        self, width: int, settings: Any, spatial_blocks: Sequence[SpatialBlock] = ()
    ) -> None:
        """`spatial_blocks`: none, or one per layer."""
        super().__init__(width, settings)
        self.spatial_blocks = nn.ModuleList(spatial_blocks)
        self.mamba_blocks = nn.ModuleList(
            MambaBlock(width, settings.state, settings.expand, settings.conv, settings.dropout)
            for _ in range(settings.layers)
        )
        self.output_norm = nn.LayerNorm(width)

    def _run(self, x_BTND: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        after: State = ()
        x = x_BTND.transpose(0, 1)  # time first: what the scan wants
        for i, mamba in enumerate(self.mamba_blocks):
            z = self.spatial_blocks[i](x.flatten(0, 1)).view_as(x) if self.spatial_blocks else x
            # None, not zeros, is handed on: a kernel that takes no state can then begin a stream.
            m, layer_state = mamba(z, None if state is None else state[2 * i : 2 * i + 2])
            x = z + self._admitted(i, z, m)
            after += layer_state
        return self.output_norm(x.transpose(0, 1)), after

    def _admitted(self, layer: int, z_TBND: torch.Tensor, m_TBND: torch.Tensor) -> torch.Tensor:
        """The part of `m_TBND` that is added to `z_TBND`: all of it."""
        return m_TBND

    def state_shapes(self, tokens: int) -> tuple[tuple[int, ...], ...]:
        return sum(
            (
                block.mamba.state_shapes(tokens)
                for block in cast(Iterable[MambaBlock], self.mamba_blocks)
            ),
            (),
        )

    def flops(self, frames: int, tokens: int) -> int:
        spatial = sum(
            block.flops(tokens) for block in cast(Iterable[SpatialBlock], self.spatial_blocks)
        )
        return frames * (
            spatial
            + sum(
                block.mamba.flops(tokens) for block in cast(Iterable[MambaBlock], self.mamba_blocks)
            )
        )


def spatial_blocks(where: str, width: int, settings: MambaMixSettings) -> list[SpatialBlock]:
    """One per layer. Raises BadInput, which begins with `where`, if `settings.heads` does not
    divide `width`."""
    check_heads(where, settings.heads, width)
    hidden = int(width * settings.mlp_ratio)
    return [
        SpatialBlock(width, settings.heads, hidden, settings.dropout, settings.drop_path)
        for _ in range(settings.layers)
    ]
