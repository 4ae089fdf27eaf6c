"""What is said or asked of a window reads the tokens of its video: blocks of attention.

Shape letters: M tokens of all frames, Q of what is said, P the width of the blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

BLOCKS = 2
"""Blocks of such a readout."""


class VideoTokens(nn.Module):
    """Temporal outputs of all frames as (B, M, P), each with the embedding of its time. How many a
    frame has may differ from window to window: which place they are from, they say themselves."""

    def __init__(self, width: int, readout_width: int, frames: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Linear(width, readout_width)
        self.time = nn.Parameter(0.02 * torch.randn(1, frames, 1, readout_width))

    def forward(self, x_BTND: torch.Tensor) -> torch.Tensor:
        tokens_BMP: torch.Tensor = (self.proj(self.norm(x_BTND)) + self.time).flatten(1, 2)
        return tokens_BMP


class CrossBlock(nn.Module):
    """x += attention of x to itself, if it has any; x += attention of x to the video; x += MLP.
    Norms come first."""

    def __init__(
        self, width: int, heads: int, *, to_itself: bool, video_width: int | None = None
    ) -> None:
        """`video_width`: that of the video's tokens; None: as wide as x."""
        super().__init__()
        self.to_itself = _Attention(width, heads, width) if to_itself else None
        self.to_video = _Attention(width, heads, video_width or width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self,
        x_BQP: torch.Tensor,
        video_BMP: torch.Tensor,
        seen_BQQ: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`seen_BQQ` says which others each of x sees, (B, 1, Q) where all see the same; None:
        all."""
        if self.to_itself is not None:
            x_BQP = x_BQP + self.to_itself(x_BQP, None, seen_BQQ)
        x_BQP = x_BQP + self.to_video(x_BQP, video_BMP)
        return x_BQP + self.mlp(x_BQP)


class _Attention(nn.Module):
    """Attention of several heads to x itself, or to something else."""

    def __init__(self, width: int, heads: int, other_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query_proj = nn.Linear(width, width)
        self.key_value_proj = nn.Linear(other_width, 2 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self,
        x_BQP: torch.Tensor,
        other_BMP: torch.Tensor | None,
        seen_BQM: torch.Tensor | None = None,
    ) -> torch.Tensor:
        x_BQP = self.norm(x_BQP)
        key_value = self.key_value_proj(x_BQP if other_BMP is None else other_BMP)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query_proj(x_BQP), *key_value.chunk(2, -1))
        )
        mask = None if seen_BQM is None else seen_BQM[:, None]
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        read_BQP: torch.Tensor = self.out_proj(read.transpose(1, 2).flatten(2))
        return read_BQP
