"""Parts of transformers over the N tokens of one frame; frames do not see each other. Parameter
names are as published."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.errors import BadInput

Gelu = Literal["none", "tanh"]
"""GELU as it is, or approximated by a tanh, which is what flax calls GELU."""


def check_heads(where: str, heads: int, width: int) -> None:
    """Raises BadInput unless every head is equally wide."""
    if width % heads:
        legal = ", ".join(str(n) for n in range(1, width + 1) if width % n == 0)
        raise BadInput(
            f"{where}: heads must divide the width of the tokens, found {heads} heads for width "
            f"{width}",
            f"set temporal.heads to one of {legal}, or choose another model.width",
        )


class Attention(nn.Module):
    """Multi-head attention with the parameters, and the initialisation, of
    torch.nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)

    def flops(self, tokens: int) -> int:
        """Operations of one frame with N = `tokens` queries and as many keys."""
        return 8 * tokens * self.width**2 + 4 * tokens**2 * self.width

    def _attend(
        self, q_FND: torch.Tensor, k_FMD: torch.Tensor, v_FMD: torch.Tensor
    ) -> torch.Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q_FND, k_FMD, v_FMD)
        )
        attended = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class SelfAttention(Attention):
    """Queries, keys and values from the same tokens."""

    def forward(self, x_FND: torch.Tensor) -> torch.Tensor:
        return self._attend(
            *F.linear(x_FND, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        )


class CrossAttention(Attention):
    """Keys and values from other tokens. The queries are projected apart: those of many frames can
    be made at once."""

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., D)."""
        return F.linear(x, self.in_proj_weight[: self.width], self.in_proj_bias[: self.width])

    def forward(self, q_FND: torch.Tensor, kv_FMD: torch.Tensor) -> torch.Tensor:
        """`q_FND` is what `queries` gave."""
        k, v = F.linear(
            kv_FMD, self.in_proj_weight[self.width :], self.in_proj_bias[self.width :]
        ).chunk(2, dim=-1)
        return self._attend(q_FND, k, v)


class Mlp(nn.Module):
    """Linear, GELU, linear, with dropout after each."""

    def __init__(self, width: int, hidden: int, dropout: float, gelu: Gelu = "none") -> None:
        super().__init__()
        self.gelu = gelu
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x), approximate=self.gelu))))

    def flops(self, tokens: int) -> int:
        return 2 * tokens * (self.fc1.weight.numel() + self.fc2.weight.numel())


class DropPath(nn.Module):
    """Drops a whole residual branch for a random share of the samples of the first axis, and scales
    up the rest."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.share == 0:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.share
        return x * kept / (1 - self.share)


class SpatialBlock(nn.Module):
    """x + MHSA(LN x), then x + MLP(LN x)."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        eps: float = 1e-5,
        gelu: Gelu = "none",
    ) -> None:
        super().__init__()
        self.sa_norm = nn.LayerNorm(width, eps)
        self.sa_attn = SelfAttention(width, heads, dropout)
        self.mlp_norm = nn.LayerNorm(width, eps)
        self.mlp = Mlp(width, hidden, dropout, gelu)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_FND: torch.Tensor) -> torch.Tensor:
        x_FND = x_FND + self.drop_path(self.sa_attn(self.sa_norm(x_FND)))
        return x_FND + self.drop_path(self.mlp(self.mlp_norm(x_FND)))

    def flops(self, tokens: int) -> int:
        """Operations of one frame of N = `tokens`."""
        return self.sa_attn.flops(tokens) + self.mlp.flops(tokens)
