"""Attention of every token position over its own past: the reference that is not recurrent (arXiv
1706.03762, section 3.2).

A frame sees itself and `history` frames before it, so a stream may run for ever in a memory of
fixed size. Order is told by a learned bias per head and age (after arXiv 1910.10683, section 2.1).
Tokens do not see each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from pipeline.config import plugins
from pipeline.models.temporal.contract import State, TemporalModule
from pipeline.models.temporal.layers.spatial_attention import Mlp, check_heads


class Settings(plugins.Settings):
    layers: int = Field(default=4, ge=1)
    """Pairs of attention and MLP, each with its own residual."""
    heads: int = Field(default=16, ge=1)
    """Attention heads; must divide the width."""
    history: int = Field(default=64, ge=1)
    """Frames before its own that a frame can look back at."""
    mlp_ratio: float = Field(default=4, gt=0)
    """Hidden width of the MLP over the width."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of attention weights, after attention, and in the MLP."""


class TimeAttention(nn.Module):
    """Multi-head attention along the time of each token position. S counts the frames that can be
    seen."""

    def __init__(self, width: int, heads: int, history: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        # No bias: that of the keys would add the same to all scores of a frame, which the softmax
        # does not see.
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width)
        self.age_bias = nn.Parameter(torch.zeros(heads, history + 1))

    def forward(
        self, x_BNTD: torch.Tensor, past: State | None, age_TS: torch.Tensor, seen_BTS: torch.Tensor
    ) -> tuple[torch.Tensor, State]:
        """`past` holds keys and values, (B, N, heads, S - T, d); those of all S frames are given
        back."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(2, 3)
            for part in self.qkv(x_BNTD).chunk(3, dim=-1)
        )
        if past is not None:
            k, v = torch.cat([past[0], k], dim=3), torch.cat([past[1], v], dim=3)
        bias_BHTS = self.age_bias[:, age_TS].where(seen_BTS.unsqueeze(1), -torch.inf)
        scores_BNHTS = (q * q.shape[-1] ** -0.5) @ k.mT + bias_BHTS.unsqueeze(1)
        weights_BNHTS = F.dropout(scores_BNHTS.softmax(-1), self.dropout, self.training)
        return self.out_proj((weights_BNHTS @ v).transpose(2, 3).flatten(3)), (k, v)


class CausalBlock(nn.Module):
    """x + Dropout(attention(LN x)), then x + MLP(LN x)."""

    def __init__(self, width: int, settings: Settings) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = TimeAttention(width, settings.heads, settings.history, settings.dropout)
        self.dropout = nn.Dropout(settings.dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * settings.mlp_ratio), settings.dropout)

    def forward(
        self, x_BNTD: torch.Tensor, past: State | None, age_TS: torch.Tensor, seen_BTS: torch.Tensor
    ) -> tuple[torch.Tensor, State]:
        y_BNTD, past = self.attention(self.attention_norm(x_BNTD), past, age_TS, seen_BTS)
        x_BNTD = x_BNTD + self.dropout(y_BNTD)
        return x_BNTD + self.mlp(self.mlp_norm(x_BNTD)), past

    def products(self) -> int:
        """Multiplications by weights per token."""
        weights = self.attention.qkv, self.attention.out_proj, self.mlp.fc1, self.mlp.fc2
        return sum(part.weight.numel() for part in weights)


class Temporal(TemporalModule):
    """State: which of the `history` cached frames are real (1) and which are not (0), (B, history),
    oldest first; then for each layer their keys and their values, (B, N, heads, history, D / heads)
    each."""

    Settings = Settings

    def __init__(self, width: int, settings: Any) -> None:
        """Raises BadInput if `settings.heads` does not divide `width`."""
        super().__init__(width, settings)
        check_heads("[temporal] causal_attention", settings.heads, width)
        self.layers = nn.ModuleList(CausalBlock(width, settings) for _ in range(settings.layers))
        self.output_norm = nn.LayerNorm(width)

    def _run(self, x_BTND: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        batch, frames, _, _ = x_BTND.shape
        dtype = self.output_norm.weight.dtype
        real_BS = x_BTND.new_ones(batch, frames, dtype=dtype)
        if state is not None:
            real_BS = torch.cat([state[0], real_BS], dim=1)
        seen = torch.arange(real_BS.shape[1], device=x_BTND.device)
        age_TS = seen[-frames:].unsqueeze(1) - seen
        seen_BTS = (age_TS >= 0) & (age_TS <= self.settings.history) & (real_BS > 0.5).unsqueeze(1)
        age_TS = age_TS.clamp(0, self.settings.history)

        after: State = (self._latest(real_BS, 1),)
        x_BNTD = x_BTND.transpose(1, 2).contiguous()
        for i, block in enumerate(self.layers):
            past = None if state is None else state[2 * i + 1 : 2 * i + 3]
            x_BNTD, past = block(x_BNTD, past, age_TS, seen_BTS)
            after += tuple(self._latest(part.to(dtype), 3) for part in past)
        return self.output_norm(x_BNTD.transpose(1, 2)), after

    def _latest(self, x: torch.Tensor, time: int) -> torch.Tensor:
        """The last `history` frames along axis `time`, zeros before the first. A copy: a view would
        keep the window alive."""
        missing = self.settings.history - x.shape[time]
        if missing <= 0:
            return x.narrow(time, -missing, self.settings.history).clone(
                memory_format=torch.contiguous_format
            )
        shape = list(x.shape)
        shape[time] = missing
        return torch.cat([x.new_zeros(shape), x], dim=time)

    def state_shapes(self, tokens: int) -> tuple[tuple[int, ...], ...]:
        heads = self.settings.heads
        cache = tokens, heads, self.settings.history, self.width // heads
        return ((self.settings.history,), *(cache,) * (2 * self.settings.layers))

    def flops(self, frames: int, tokens: int) -> int:
        """Operations of a window without a past. Scores that the mask hides are counted: they are
        computed."""
        products = sum(block.products() for block in cast(Iterable[CausalBlock], self.layers))
        return frames * tokens * (2 * products + self.settings.layers * 4 * frames * self.width)
