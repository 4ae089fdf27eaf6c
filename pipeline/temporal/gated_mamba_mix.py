"""GMMix: in every layer attention within the frame and a gated Mamba over time (arXiv 2605.19137; names as published).

Per layer, z = spatial block of x, m = Dropout(Mamba(LN z)) over time, h = z + m, u = sigmoid(W [z; h] + b) and the output is
(1 - u) z + u h = z + u m: the gate decides, per token and channel, how much of what time says is let in.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from pydantic import Field
from torch import nn

from pipeline import plugins
from pipeline.temporal import State, TemporalModule
from pipeline.temporal._mamba import MambaBlock
from pipeline.temporal._spatial import SpatialBlock, check_heads


class Settings(plugins.Settings):
    """The defaults are the paper's."""

    layers: int = Field(default=4, ge=1)
    """Pairs of a spatial and a temporal block."""
    heads: int = Field(default=16, ge=1)
    """Attention heads of the spatial blocks; must divide the width."""
    state: int = Field(default=16, ge=1)
    """State size per channel."""
    expand: int = Field(default=2, ge=1)
    """Inner width of Mamba over the width."""
    conv: int = Field(default=4, ge=1)
    """Frames that the causal convolution sees."""
    mlp_ratio: float = Field(default=4, gt=0)
    """Hidden width of the spatial MLP over the width."""
    gate_hidden: int = Field(default=0, ge=0)
    """Hidden width of the gate; 0: a linear gate."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Of attention weights, in the MLP, and after Mamba."""
    drop_path: float = Field(default=0.1, ge=0, lt=1)
    """Share of frames that skip a residual branch of the spatial block."""


class Temporal(TemporalModule):
    """State: for each layer the last inputs of the convolution and the state of the scan, (B, N, ...) each."""

    Settings = Settings

    def __init__(self, width: int, settings: Any) -> None:
        """Raises BadInput if `settings.heads` does not divide `width`."""
        super().__init__(width, settings)
        check_heads("[temporal] gated_mamba_mix", settings.heads, width)
        layers = range(settings.layers)
        self.spatial_blocks = nn.ModuleList(
            SpatialBlock(width, settings.heads, settings.mlp_ratio, settings.dropout, settings.drop_path) for _ in layers
        )
        self.mamba_blocks = nn.ModuleList(
            MambaBlock(width, settings.state, settings.expand, settings.conv, settings.dropout) for _ in layers
        )
        self.gates = nn.ModuleList(_gate(width, settings.gate_hidden) for _ in layers)
        self.output_norm = nn.LayerNorm(width)

    def _run(self, x_BTND: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        batch, _, tokens, _ = x_BTND.shape
        before = self.initial_state(batch, tokens) if state is None else state
        after: State = ()
        x = x_BTND.transpose(0, 1)  # time first: what the scan wants
        for i, (spatial, mamba, gate) in enumerate(zip(self.spatial_blocks, self.mamba_blocks, self.gates, strict=True)):
            z = spatial(x.flatten(0, 1)).view_as(x)
            m, layer_state = mamba(z, before[2 * i : 2 * i + 2])
            x = z + torch.sigmoid(gate(torch.cat([z, z + m], dim=-1))) * m
            after += layer_state
        return self.output_norm(x.transpose(0, 1)), after

    def state_shapes(self, tokens: int) -> tuple[tuple[int, ...], ...]:
        return sum((block.mamba.state_shapes(tokens) for block in cast(Iterable[MambaBlock], self.mamba_blocks)), ())

    def flops(self, frames: int, tokens: int) -> int:
        hidden = self.settings.gate_hidden
        gate = 4 * self.width**2 if hidden == 0 else 6 * self.width * hidden
        spatial = sum(block.flops(tokens) for block in cast(Iterable[SpatialBlock], self.spatial_blocks))
        mamba = sum(block.mamba.flops(tokens) for block in cast(Iterable[MambaBlock], self.mamba_blocks))
        return frames * (spatial + mamba + self.settings.layers * tokens * gate)


def _gate(width: int, hidden: int) -> nn.Module:
    if hidden == 0:
        return nn.Linear(2 * width, width)
    return nn.Sequential(nn.Linear(2 * width, hidden), nn.GELU(), nn.Linear(hidden, width))
