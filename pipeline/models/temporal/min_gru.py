"""A minimal gated recurrent unit over time at every token position (minGRU, arXiv 2410.01201,
section 3.1).

Gate and candidate see the frame alone, so all products run over the whole window at once; what
remains in time order is h_t = (1 - z_t) h_{t-1} + z_t c_t, element by element. Tokens do not see
each other.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import nn

from pipeline.config import plugins
from pipeline.models.temporal.contract import Gate, State
from pipeline.models.temporal.layers.recurrence import linear_recurrence
from pipeline.models.temporal.layers.stacks import Mixer, ResidualStack


class Settings(plugins.Settings):
    """Depth, inner width and dropout are those of `mamba`, so that the two compare like with
    like."""

    layers: int = Field(default=4, ge=1)
    """Recurrent layers, each with its own residual."""
    expand: int = Field(default=2, ge=1)
    """Width of the recurrent state h over the width."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout after each layer."""


class MinGru(Mixer):
    """z = sigmoid(W_z x), c = W_h x. State: h, (B, N, E) with E = expand * D.

    The candidate is linear, as in section 3.1. The paper's positive g(c) is what a scan in log
    space needs (appendix B); here h is a weighted mean of candidates, made step by step, which is
    stable as it is, and it may be negative.
    """

    def __init__(self, width: int, expand: int) -> None:
        super().__init__()
        self.inner = expand * width
        self.gate = nn.Linear(width, self.inner)
        self.let_in = Gate("lets the frame in")
        self.candidate = nn.Linear(width, self.inner)
        self.out_proj = nn.Linear(self.inner, width)
        # A gate that starts near sigmoid(-1) = 0.27 remembers a few frames, so that gradients reach
        # back from the start.
        nn.init.constant_(self.gate.bias, -1.0)

    def forward(self, x_TBND: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        gate_TBNE = self.gate(x_TBND)
        # In at least float32: what is kept is near 1, where bfloat16 has no steps left.
        gate_TBNE = gate_TBNE.to(torch.promote_types(gate_TBNE.dtype, torch.float32))
        keep_TBNE, let_in_TBNE = torch.sigmoid(-gate_TBNE), self.let_in(torch.sigmoid(gate_TBNE))
        h_TBNE = linear_recurrence(keep_TBNE, let_in_TBNE * self.candidate(x_TBND), state[0])
        return self.out_proj(h_TBNE), (h_TBNE[-1].clone(),)

    def state_shapes(self, tokens: int) -> tuple[tuple[int, ...], ...]:
        return ((tokens, self.inner),)

    def flops(self, frames: int, tokens: int) -> int:
        products = sum(part.weight.numel() for part in (self.gate, self.candidate, self.out_proj))
        return 2 * frames * tokens * (products + self.inner)


class Temporal(ResidualStack):
    """Per layer x <- x + Dropout(W_o minGRU(LN x))."""

    Settings = Settings

    def __init__(self, width: int, settings: Any) -> None:
        super().__init__(
            width, settings, [MinGru(width, settings.expand) for _ in range(settings.layers)]
        )
