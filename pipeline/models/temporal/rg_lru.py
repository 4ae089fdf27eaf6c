"""A real-gated linear recurrent unit over time at every token position, as in TRecViT (arXiv
2412.14294, section 3).

The block is Griffin's (arXiv 2402.19427, sections 2.3 and 2.4), without its MLP, as published for
TRecViT: there a ViT block follows. Tokens do not see each other.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from pipeline.config import plugins
from pipeline.models.temporal.contract import Gate, State
from pipeline.models.temporal.layers.recurrence import causal_conv, linear_recurrence
from pipeline.models.temporal.layers.spatial_attention import check_heads
from pipeline.models.temporal.layers.stacks import Mixer, ResidualStack

SHARPNESS = 8.0
"""c of a = exp(-c softplus(Lambda) r)."""
RADIUS_RANGE = (0.6, 0.999)
"""Range of exp(-softplus(Lambda)) at initialisation. Griffin starts at 0.9; TRecViT found 0.6
better by 0.6 points of top-1."""


class Settings(plugins.Settings):
    """Width and convolution are TRecViT's; depth and dropout are those of `mamba`, so that the two
    compare like with like."""

    layers: int = Field(default=4, ge=1)
    """Recurrent layers, each with its own residual."""
    expand: int = Field(default=2, ge=1)
    """Width of the recurrent state h over the width."""
    heads: int = Field(default=16, ge=1)
    """Blocks of the gates' block-diagonal weights; must divide the width."""
    conv: int = Field(default=4, ge=1)
    """Frames that the causal convolution sees."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout after each layer."""


class BlockDiagonal(nn.Module):
    """`heads` linear maps side by side, each on its own share of the channels."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        size = width // heads
        self.weight = nn.Parameter(nn.init.normal_(torch.empty(heads, size, size), std=size**-0.5))
        self.bias = nn.Parameter(torch.zeros(heads, size))

    def forward(self, x_TRE: torch.Tensor) -> torch.Tensor:
        x_HMI = (
            x_TRE.flatten(0, 1).unflatten(-1, self.bias.shape).transpose(0, 1)
        )  # M = T * R tokens, I channels of a head
        y_HMI = torch.baddbmm(self.bias.unsqueeze(1), x_HMI, self.weight)
        return y_HMI.transpose(0, 1).reshape(x_TRE.shape)


class RgLru(nn.Module):
    """h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t x_t), a_t = exp(-c softplus(Lambda) r_t), with gates
    r and i of x_t."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.input_gate = BlockDiagonal(width, heads)
        self.a_gate = BlockDiagonal(width, heads)
        self.decay = Gate("keeps the state")
        # Uniform over the area of the ring, as for complex eigenvalues; then the inverse of r =
        # exp(-softplus(Lambda)).
        low, high = (radius**2 for radius in RADIUS_RANGE)
        rate = -0.5 * torch.empty(width).uniform_(low, high).log()
        self.a_param = nn.Parameter(rate.expm1().log())

    def forward(self, x_TRE: torch.Tensor, h_RE: torch.Tensor) -> torch.Tensor:
        """h of every frame. The decay is made in at least float32: near 1 bfloat16 would have no
        steps left."""
        dtype = torch.promote_types(x_TRE.dtype, torch.float32)
        r, i, x = (part.to(dtype) for part in (self.a_gate(x_TRE), self.input_gate(x_TRE), x_TRE))
        log_a = -SHARPNESS * F.softplus(self.a_param) * torch.sigmoid(r)
        # The smallest normal number keeps the slope of the root finite where a gate is shut so far
        # that a is exactly 1.
        scale = torch.sqrt((-torch.expm1(2 * log_a)).clamp(min=torch.finfo(dtype).tiny))
        return linear_recurrence(self.decay(log_a.exp()), scale * torch.sigmoid(i) * x, h_RE)


class RecurrentBlock(Mixer):
    """W_out(GELU(W_y x) * RG-LRU(conv(W_x x))).

    State: the last inputs of the convolution, (B, N, conv - 1, E), and h, (B, N, E), with E =
    expand * D.
    """

    def __init__(self, width: int, expand: int, heads: int, conv: int) -> None:
        super().__init__()
        self.inner = expand * width
        self.linear_y = nn.Linear(width, self.inner)
        self.linear_x = nn.Linear(width, self.inner)
        self.conv_1d = nn.Conv1d(self.inner, self.inner, conv, groups=self.inner)
        self.rg_lru = RgLru(self.inner, heads)
        self.linear_out = nn.Linear(self.inner, width)

    def forward(self, x_TBND: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        conv_RHE, h_RE = (part.flatten(0, 1) for part in state)
        x_TRD = x_TBND.flatten(1, 2)
        assert self.conv_1d.bias is not None
        x_TRE, conv_RHE = causal_conv(
            self.linear_x(x_TRD), conv_RHE, self.conv_1d.weight, self.conv_1d.bias
        )
        h_TRE = self.rg_lru(x_TRE, h_RE)
        y_TRD = self.linear_out(F.gelu(self.linear_y(x_TRD)) * h_TRE)
        return y_TRD.view_as(x_TBND), (
            conv_RHE.view_as(state[0]),
            h_TRE[-1].clone().view_as(state[1]),
        )

    def state_shapes(self, tokens: int) -> tuple[tuple[int, ...], ...]:
        return (tokens, self.conv_1d.kernel_size[0] - 1, self.inner), (tokens, self.inner)

    def flops(self, frames: int, tokens: int) -> int:
        weights = self.linear_y, self.linear_x, self.conv_1d, self.linear_out
        gates = self.rg_lru.input_gate.weight.numel() + self.rg_lru.a_gate.weight.numel()
        return (
            2
            * frames
            * tokens
            * (sum(part.weight.numel() for part in weights) + gates + self.inner)
        )


class Temporal(ResidualStack):
    """Per layer x <- x + Dropout(recurrent block of LN x)."""

    Settings = Settings

    def __init__(self, width: int, settings: Any) -> None:
        """Raises BadInput if `settings.heads` does not divide `width`."""
        check_heads("[temporal] rg_lru", settings.heads, width)
        make = settings.expand, settings.heads, settings.conv
        super().__init__(
            width, settings, [RecurrentBlock(width, *make) for _ in range(settings.layers)]
        )
