"""The mean of all frames so far, and a LayerNorm: a control that sees every frame and no order.

What a module gains over it is what it makes of the order of frames; what it gains over `identity`
may be no more than several looks. In the streaming form alone: the window form reads the means of
all frames side by side, and from those the order can be told.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipeline.config import plugins
from pipeline.models.temporal.contract import State, TemporalModule


class Settings(plugins.Settings):
    """No keys."""


class Temporal(TemporalModule):
    """y_t = LN((x_1 + ... + x_t) / t). State: the mean so far, (B, N, D), and t, (B, 1)."""

    Settings = Settings

    def __init__(self, width: int, settings: Any) -> None:
        super().__init__(width, settings)
        self.output_norm = nn.LayerNorm(width)

    def _run(self, x_BTND: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        batch, frames, tokens, _ = x_BTND.shape
        before = self.initial_state(batch, tokens) if state is None else state
        # In at least float32: bfloat16 does not count beyond 256.
        exact = torch.promote_types(x_BTND.dtype, torch.float32)
        mean_BND, seen_B1 = (part.to(exact) for part in before)
        count_BT = seen_B1 + torch.arange(1, frames + 1, dtype=exact, device=x_BTND.device)
        sum_B1ND = (mean_BND * seen_B1[:, :, None])[:, None]
        mean_BTND = (sum_B1ND + x_BTND.to(exact).cumsum(1)) / count_BT[:, :, None, None]
        after = mean_BTND[:, -1].clone(), count_BT[:, -1:].clone()
        return self.output_norm(mean_BTND.to(x_BTND.dtype)), after

    def state_shapes(self, tokens: int) -> tuple[tuple[int, ...], ...]:
        return (tokens, self.width), (1,)

    def flops(self, frames: int, tokens: int) -> int:
        return 2 * frames * tokens * self.width
