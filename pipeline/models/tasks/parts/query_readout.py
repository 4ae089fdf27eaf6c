"""Parts of the tracking readouts: places become queries, which read tokens by cross-attention.

As in arXiv 2605.19137, which follows 4DS (arXiv 2412.15212); parameter names as published.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from pipeline.models.tasks.parts.attention_readout import AttentionSettings

BASES = 16


class TrackingSettings(AttentionSettings):
    """These settings are what both kinds of tracking readout let a recipe choose."""

    readout_width: int = Field(default=256, ge=2)
    """Width of queries, keys and values; the paper has 1024."""
    hidden: int = Field(default=128, ge=1)
    """Width of the network that turns the Fourier features of a place into a query; the paper has
    512."""


class FourierFeatures(nn.Module):
    """sin and cos of 2^k pi x, k = 0..15, of every coordinate: (..., C) -> (..., 32 C). In at least
    float32."""

    freqs: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("freqs", 2.0 ** torch.arange(BASES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        angle = x.unsqueeze(-1) * self.freqs * math.pi
        return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)


def feature_mlp(coordinates: int, hidden: int) -> nn.Sequential:
    """Fourier features of a place with `coordinates` numbers -> (..., hidden)."""
    return nn.Sequential(
        nn.Linear(2 * BASES * coordinates, hidden), nn.GELU(), nn.Linear(hidden, hidden)
    )


def token_projection(width: int, readout_width: int) -> nn.Module:
    """Tokens to the readout's width; nothing where they have it."""
    return nn.Identity() if width == readout_width else nn.Linear(width, readout_width)


class DecoderLayer(nn.Module):
    """Pre-norm transformer decoder layer with ReLU: self-attention, cross-attention, feed-forward
    of 4 times the width.

    Queries come in groups of G: a group's queries see each other, and nothing of other groups. All
    share the tokens' keys and values.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm1, self.norm2, self.norm3 = (
            nn.LayerNorm(width),
            nn.LayerNorm(width),
            nn.LayerNorm(width),
        )

    def forward(self, x_BQGD: torch.Tensor, tokens_BMD: torch.Tensor) -> torch.Tensor:
        x_BQGD = x_BQGD + self._within(self.norm1(x_BQGD))
        asking = self.norm2(x_BQGD).flatten(1, 2)
        read, _ = self.multihead_attn(asking, tokens_BMD, tokens_BMD, need_weights=False)
        x_BQGD = x_BQGD + read.view_as(x_BQGD)
        return x_BQGD + self.linear2(F.relu(self.linear1(self.norm3(x_BQGD))))

    def _within(self, x_BQGD: torch.Tensor) -> torch.Tensor:
        """Self-attention inside every group."""
        if (
            x_BQGD.shape[2] == 1
        ):  # a query alone gives itself all of its attention: its value is what it reads
            _, _, value = self.self_attn.in_proj_weight.chunk(3)
            _, _, bias = self.self_attn.in_proj_bias.chunk(3)
            alone: torch.Tensor = self.self_attn.out_proj(F.linear(x_BQGD, value, bias))
            return alone
        x = x_BQGD.flatten(0, 1)
        read, _ = self.self_attn(x, x, x, need_weights=False)
        return read.view_as(x_BQGD)


class QueryDecoder(nn.Module):
    """Queries (B, Q, G, D) and tokens (B, M, D) -> (B, Q, G, D): one decoder layer, then a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([DecoderLayer(width, heads)])
        self.output_norm = nn.LayerNorm(width)

    def forward(self, x_BQGD: torch.Tensor, tokens_BMD: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x_BQGD = layer(x_BQGD, tokens_BMD)
        return self.output_norm(x_BQGD)


class Head(nn.Sequential):
    """width -> hidden (GELU) -> outputs. Not in bfloat16, also under autocast: below 1 it has steps
    of 1/256 of the frame."""

    def __init__(self, width: int, hidden: int, outputs: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            out: torch.Tensor = super().forward(x.to(next(self.parameters()).dtype))
        return out
