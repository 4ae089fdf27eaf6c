"""GMMix: in every layer attention within the frame and a gated Mamba over time (arXiv 2605.19137;
names as published).

Per layer, z = spatial block of x, m = Dropout(Mamba(LN z)) over time, h = z + m, u = sigmoid(W [z;
h] + b) and the output is (1 - u) z + u h = z + u m: the gate decides, per token and channel, how
much of what time says is let in.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import nn

from pipeline.models.temporal.contract import Gate
from pipeline.models.temporal.layers.stacks import MambaMixSettings, MambaStack, spatial_blocks


class Settings(MambaMixSettings):
    """The defaults are the paper's."""

    gate_hidden: int = Field(default=0, ge=0)
    """Hidden width of the gate; 0: a linear gate."""


class Temporal(MambaStack):
    """Per layer x <- z + u m."""

    Settings = Settings

    def __init__(self, width: int, settings: Any) -> None:
        """Raises BadInput if `settings.heads` does not divide `width`."""
        super().__init__(
            width, settings, spatial_blocks("[temporal] gated_mamba_mix", width, settings)
        )
        self.gates = nn.ModuleList(
            _gate(width, settings.gate_hidden) for _ in range(settings.layers)
        )
        self.admits = Gate("lets the past in")

    def _admitted(self, layer: int, z_TBND: torch.Tensor, m_TBND: torch.Tensor) -> torch.Tensor:
        return (
            self.admits(
                torch.sigmoid(self.gates[layer](torch.cat([z_TBND, z_TBND + m_TBND], dim=-1)))
            )
            * m_TBND
        )

    def flops(self, frames: int, tokens: int) -> int:
        hidden = self.settings.gate_hidden
        gate = 4 * self.width**2 if hidden == 0 else 6 * self.width * hidden
        return super().flops(frames, tokens) + self.settings.layers * frames * tokens * gate


def _gate(width: int, hidden: int) -> nn.Module:
    if hidden == 0:
        return nn.Linear(2 * width, width)
    return nn.Sequential(nn.Linear(2 * width, hidden), nn.GELU(), nn.Linear(hidden, width))
