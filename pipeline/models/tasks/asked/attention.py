"""Attention of a text to itself and to a video: a block of a pre-norm transformer decoder without
a causal mask (arXiv 1706.03762)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class _Attention(nn.Module):
    """x -> W_o softmax(Q K / sqrt(d)) V, with Q linear in `x` and K, V in `memory`."""

    def __init__(self, width: int, memory_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_proj = nn.Linear(width, width)
        self.key_proj = nn.Linear(memory_width, width)
        self.value_proj = nn.Linear(memory_width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self, x_BLP: torch.Tensor, memory_BMD: torch.Tensor, valid_BM: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, L, P). `valid_BM`: the part of the memory that is looked at, in each row one token or
        more; None: all of it."""
        query, key, value = (
            proj(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj, tokens in (
                (self.query_proj, x_BLP),
                (self.key_proj, memory_BMD),
                (self.value_proj, memory_BMD),
            )
        )
        mask = None if valid_BM is None else valid_BM[:, None, None]
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        read_BLP: torch.Tensor = self.out_proj(read.transpose(1, 2).flatten(2))
        return read_BLP


class TextBlock(nn.Module):
    """text += Attention(text, text); text += Attention(text, video); text += MLP(text), each of a
    LayerNorm of the text."""

    def __init__(self, width: int, video_width: int, heads: int) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = _Attention(width, width, heads)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = _Attention(width, video_width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_fc1 = nn.Linear(width, 4 * width)
        self.mlp_fc2 = nn.Linear(4 * width, width)

    def forward(
        self, text_BLP: torch.Tensor, valid_BL: torch.Tensor, video_BMD: torch.Tensor
    ) -> torch.Tensor:
        """(B, L, P). Where `valid_BL` is False there is no text."""
        normed_BLP = self.self_norm(text_BLP)
        text_BLP = text_BLP + self.self_attention(normed_BLP, normed_BLP, valid_BL)
        text_BLP = text_BLP + self.cross_attention(self.cross_norm(text_BLP), video_BMD)
        hidden_BLP = F.gelu(self.mlp_fc1(self.mlp_norm(text_BLP)))
        return text_BLP + self.mlp_fc2(hidden_BLP)
