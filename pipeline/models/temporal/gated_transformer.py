"""RVM_RNN: a gated recurrence whose candidate is made by a transformer (arXiv 2605.19137; names as
published).

Per frame x with the state s before it: u = sigmoid(W_ux x + W_us s), r = sigmoid(W_rx x + W_rs s),
h = transformer of x that reads r * LN(s), s <- (1 - u) s + u h; the output is LN(s). Frames go one
after the other, also in training.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from pydantic import Field
from torch import nn

from pipeline.config import plugins
from pipeline.models.temporal.contract import Gate, State, TemporalModule
from pipeline.models.temporal.layers.spatial_attention import (
    CrossAttention,
    Mlp,
    SelfAttention,
    check_heads,
)

INNER_EPS = 1e-6
"""Epsilon of every LayerNorm but that of the output, which has torch's default."""
PUBLISHED_HEADS = {384: 8, 768: 12, 1024: 16}
"""Width of ViT-S, B and L -> its attention heads."""


class Settings(plugins.Settings):
    """The defaults are the paper's."""

    layers: int = Field(default=4, ge=1)
    """Blocks of the transformer."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads; must divide the width. None: 8, 12 or 16 for widths of 384, 768 or 1024,
    else heads as near to 64 channels wide as can be."""
    mlp_ratio: float = Field(default=4, gt=0)
    """Hidden width of the MLP over the width."""


def default_heads(width: int) -> int:
    """The published choice for widths 384, 768 and 1024 (8, 12, 16); else the divisor of `width`
    that makes heads as near to 64 wide as can be, and of two such the larger."""
    divisors = (heads for heads in range(width, 0, -1) if width % heads == 0)
    return PUBLISHED_HEADS.get(width) or min(divisors, key=lambda heads: abs(width // heads - 64))


class GatedBlock(nn.Module):
    """x + CA(LN x, kv), then x + MLP(LN x), then x + MHSA(LN x)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.ca_norm = nn.LayerNorm(width, eps=INNER_EPS)
        self.ca_attn = CrossAttention(width, heads, dropout=0)
        self.mlp_norm = nn.LayerNorm(width, eps=INNER_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio), dropout=0)
        self.sa_norm = nn.LayerNorm(width, eps=INNER_EPS)
        self.sa_attn = SelfAttention(width, heads, dropout=0)

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        return self.ca_attn.queries(self.ca_norm(x))

    def forward(
        self, x_BND: torch.Tensor, q_BND: torch.Tensor, kv_BND: torch.Tensor
    ) -> torch.Tensor:
        """`q_BND` is `queries(x_BND)`."""
        x_BND = x_BND + self.ca_attn(q_BND, kv_BND)
        x_BND = x_BND + self.mlp(self.mlp_norm(x_BND))
        return x_BND + self.sa_attn(self.sa_norm(x_BND))

    def flops(self, tokens: int) -> int:
        """Operations of one frame of N = `tokens`."""
        return self.ca_attn.flops(tokens) + self.mlp.flops(tokens) + self.sa_attn.flops(tokens)


class Transformer(nn.Module):
    """Blocks and a LayerNorm. All blocks read the same keys and values."""

    def __init__(self, width: int, layers: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GatedBlock(width, heads, mlp_ratio) for _ in range(layers))
        self.output_norm = nn.LayerNorm(width, eps=INNER_EPS)

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        """Queries (..., D) of the first block, for any number of frames."""
        return self._blocks()[0].queries(x)

    def forward(
        self, x_BND: torch.Tensor, q_BND: torch.Tensor, kv_BND: torch.Tensor
    ) -> torch.Tensor:
        """`q_BND` is `queries(x_BND)`."""
        first, *later_blocks = self._blocks()
        x_BND = first(x_BND, q_BND, kv_BND)
        for block in later_blocks:
            x_BND = block(x_BND, block.queries(x_BND), kv_BND)
        return self.output_norm(x_BND)

    def flops(self, tokens: int) -> int:
        """Operations of one frame of N = `tokens`."""
        return sum(block.flops(tokens) for block in self._blocks())

    def _blocks(self) -> list[GatedBlock]:
        return list(cast(Iterable[GatedBlock], self.layers))


class Temporal(TemporalModule):
    """State: one (B, N, D), before the output norm."""

    Settings = Settings

    def __init__(self, width: int, settings: Any) -> None:
        """Raises BadInput if `settings.heads` does not divide `width`."""
        super().__init__(width, settings)
        heads = settings.heads or default_heads(width)
        check_heads("[temporal] gated_transformer", heads, width)
        self.input_update, self.input_reset, self.state_update, self.state_reset = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        self.update = Gate("lets the frame in")
        self.state_layer_norm = nn.LayerNorm(width, eps=INNER_EPS)
        self.transformer = Transformer(width, settings.layers, heads, settings.mlp_ratio)
        self.output_norm = nn.LayerNorm(width)

    def _run(self, x_BTND: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        batch, _, tokens, _ = x_BTND.shape
        (s_BND,) = self.initial_state(batch, tokens) if state is None else state
        x_TBND = x_BTND.transpose(0, 1)  # time first: the loop takes one frame after the other
        # What does not wait for the state is made for all frames at once.
        ahead = (
            x_TBND,
            self.transformer.queries(x_TBND),
            self.input_update(x_TBND),
            self.input_reset(x_TBND),
        )
        states = []
        for x_BND, q_BND, update_BND, reset_BND in zip(*ahead, strict=True):
            update_BND = torch.sigmoid(update_BND + self.state_update(s_BND))
            reset_BND = torch.sigmoid(reset_BND + self.state_reset(s_BND))
            h_BND = self.transformer(x_BND, q_BND, reset_BND * self.state_layer_norm(s_BND))
            s_BND = s_BND + self.update(update_BND) * (h_BND - s_BND)
            states.append(s_BND)
        return self.output_norm(torch.stack(states, dim=1)), (s_BND,)

    def state_shapes(self, tokens: int) -> tuple[tuple[int, ...], ...]:
        return ((tokens, self.width),)

    def flops(self, frames: int, tokens: int) -> int:
        return frames * (8 * tokens * self.width**2 + self.transformer.flops(tokens))
