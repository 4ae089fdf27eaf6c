"""What is new at every token position: the difference to a mean that fades at a learned rate.

y = LN(x + W (x - h)), where h follows x slowly.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import nn

from pipeline.config import plugins
from pipeline.models.temporal.contract import State, TemporalModule


class Settings(plugins.Settings):
    keep: float = Field(default=0.8, gt=0, lt=1)
    """Share of the mean that is kept from one frame to the next, before training."""


class Temporal(TemporalModule):
    """State: one (B, N, D), the mean."""

    Settings = Settings

    def __init__(self, width: int, settings: Any) -> None:
        super().__init__(width, settings)
        self.keep_logit_D = nn.Parameter(torch.logit(torch.full((width,), settings.keep)))
        self.out_proj = nn.Linear(width, width)
        self.output_norm = nn.LayerNorm(width)

    def _run(self, x_BTND: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        batch, _, tokens, _ = x_BTND.shape
        (h_BND,) = self.initial_state(batch, tokens) if state is None else state
        keep_D, changes = torch.sigmoid(self.keep_logit_D), []
        for x_BND in x_BTND.unbind(1):
            changes.append(x_BND - h_BND)
            h_BND = x_BND + keep_D * (h_BND - x_BND)
        y_BTND = x_BTND + self.out_proj(torch.stack(changes, dim=1))
        return self.output_norm(y_BTND), (h_BND,)

    def state_shapes(self, tokens: int) -> tuple[tuple[int, ...], ...]:
        return ((tokens, self.width),)

    def flops(self, frames: int, tokens: int) -> int:
        return frames * tokens * (2 * self.width**2 + 4 * self.width)
