"""No mixing over time: a LayerNorm. The baseline that tells what the image model alone knows."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipeline.config import plugins
from pipeline.models.temporal.contract import State, TemporalModule


class Settings(plugins.Settings):
    """No keys."""


class Temporal(TemporalModule):
    """y_t = LN(x_t); the state is empty."""

    Settings = Settings

    def __init__(self, width: int, settings: Any) -> None:
        super().__init__(width, settings)
        self.output_norm = nn.LayerNorm(width)

    def _run(self, x_BTND: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        return self.output_norm(x_BTND), ()

    def state_shapes(self, tokens: int) -> tuple[tuple[int, ...], ...]:
        return ()

    def flops(self, frames: int, tokens: int) -> int:
        return 0
