"""What the state after a frame says of the tokens of a later one.

Queries ask for places and seconds ahead, and do not meet, so that a loss may ask for some places
alone: it is the same on average, for a fraction of the cost. Keys are temporal outputs of the frame
that tells, never its tokens: what moves must be in the state. The last layer is zero before
training, so that a forecast which adds to the present tokens begins as a copy of them.

Shape letters: B batch, T frames, M pairs of frames, Q queries of each, N tokens of a temporal
output, of which the last P are patches, W their width, R the head's.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from pipeline.config import plugins

TIMES = 16
"""Frequencies of the seconds ahead, from a sixteenth to eight per second."""


class HeadSettings(plugins.Settings):
    """These settings describe the head, which is thrown away when the weights go on."""

    head: Literal["attention", "mlp"] = "attention"
    """The way a place is asked for. attention: its own output, and by cross-attention those of the
    whole frame, so that what arrives from a neighbour is seen; mlp: its own output alone."""
    memory: Literal["state", "all"] = "state"
    """Temporal outputs that attention reads. state: those of the frame that tells, so that its
    state must hold what moves; all: those of all frames up to it, which no stream can do, and which
    asks less of the state."""
    readout_width: int = Field(default=96, ge=8)
    """Width of the head. A strong head leaves little for the state to learn."""
    heads: int = Field(default=4, ge=1)
    """Attention heads; must divide readout_width."""
    blocks: int = Field(default=1, ge=1)
    """Layers of the head."""


class Block(nn.Module):
    """Cross-attention to the temporal outputs, if there is any, then an MLP of twice the width;
    pre-norm, residual."""

    def __init__(self, width: int, heads: int, attends: bool) -> None:
        super().__init__()
        self.heads = heads
        if attends:
            self.query_norm = nn.LayerNorm(width)
            self.query = nn.Linear(width, width)
            self.key_value = nn.Linear(width, 2 * width)
            self.out = nn.Linear(width, width)
        self.attends = attends
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(
        self,
        x_GQR: torch.Tensor,
        keys_GNR: torch.Tensor | None,
        seen_GQN: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Groups of queries, each with keys of its own; `seen_GQN` (bool) are those that a query
        may see, None: all."""
        if self.attends:
            assert keys_GNR is not None
            query = self._split(self.query(self.query_norm(x_GQR)))
            key, value = map(self._split, self.key_value(keys_GNR).chunk(2, dim=-1))
            mask = None if seen_GQN is None else seen_GQN.unsqueeze(1)
            read = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
            x_GQR = x_GQR + self.out(read.transpose(1, 2).flatten(2))
        mixed: torch.Tensor = x_GQR + self.mlp(self.norm(x_GQR))
        return mixed

    def _split(self, x_GNR: torch.Tensor) -> torch.Tensor:
        return x_GNR.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class ForecastHead(nn.Module):
    """Temporal outputs, places and seconds ahead -> (B, M, Q, `outputs`), zeros before training."""

    frequencies: torch.Tensor

    def __init__(
        self, width: int, grid_hw: tuple[int, int], settings: HeadSettings, outputs: int
    ) -> None:
        """`width` is W; `grid_hw` the rows and columns of the P patches."""
        super().__init__()
        read = settings.readout_width
        self.patches, self.memory = grid_hw[0] * grid_hw[1], settings.memory
        self.attends = settings.head == "attention"
        self.tokens = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, read))
        self.place = nn.Parameter(_sinusoids(grid_hw, read))
        self.ahead = nn.Sequential(nn.Linear(2 * TIMES, read), nn.GELU(), nn.Linear(read, read))
        self.blocks = nn.ModuleList(
            Block(read, settings.heads, self.attends) for _ in range(settings.blocks)
        )
        self.norm = nn.LayerNorm(read)
        self.out = nn.Linear(read, outputs)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        steps = torch.linspace(-4, 3, TIMES)
        self.register_buffer("frequencies", 2**steps, persistent=False)

    def forward(
        self,
        x_BTNW: torch.Tensor,
        from_BM: torch.Tensor,
        ahead_s_BM: torch.Tensor,
        place_BMQ: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What outputs `from_BM` say of places `place_BMQ` (int64; None: all P, in order),
        `ahead_s_BM` seconds later."""
        special = x_BTNW.shape[2] - self.patches
        if self.memory == "state" or not self.attends:  # of the frames that tell alone
            x_BTNW = taken(x_BTNW, from_BM)
            frame_BM = torch.arange(from_BM.shape[1], device=from_BM.device).expand_as(from_BM)
        else:
            frame_BM = from_BM
        keys_BTNR = self.tokens(x_BTNW)
        placed = keys_BTNR[:, :, special:] + self.place
        keys_BTNR = torch.cat([keys_BTNR[:, :, :special], placed], dim=2)
        query_BMQR = taken(placed, frame_BM, place_BMQ) + self._time(ahead_s_BM).unsqueeze(2)
        groups_GQR, keys_GNR, seen = query_BMQR.flatten(0, 1), None, None
        if self.attends and self.memory == "state":
            keys_GNR = keys_BTNR.flatten(0, 1)
        elif self.attends:
            groups_GQR = query_BMQR.flatten(1, 2)
            keys_GNR, seen = self._past(keys_BTNR, from_BM, query_BMQR.shape[2])
        for block in self.blocks:
            groups_GQR = block(groups_GQR, keys_GNR, seen)
        said: torch.Tensor = self.out(self.norm(groups_GQR))
        return said.reshape(*query_BMQR.shape[:3], -1)

    def _past(
        self, keys_BTNR: torch.Tensor, from_BM: torch.Tensor, queries: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All outputs of a window as keys, and which of them a query may see: (B, T N, R) and
        (B, M Q, T N)."""
        frames, tokens = keys_BTNR.shape[1:3]
        times_T = torch.arange(frames, device=from_BM.device)
        seen_BMT = times_T <= from_BM.unsqueeze(-1)
        seen = seen_BMT.repeat_interleave(queries, 1).repeat_interleave(tokens, 2)
        return keys_BTNR.flatten(1, 2), seen

    def _time(self, ahead_s_BM: torch.Tensor) -> torch.Tensor:
        """(B, M, R): the seconds ahead."""
        angle = 2 * math.pi * ahead_s_BM.unsqueeze(-1).to(self.frequencies) * self.frequencies
        embedded: torch.Tensor = self.ahead(torch.cat([angle.sin(), angle.cos()], dim=-1))
        return embedded


def taken(
    x_BTPD: torch.Tensor, frame_BM: torch.Tensor, place_BMQ: torch.Tensor | None = None
) -> torch.Tensor:
    """(B, M, Q, D): of frames `frame_BM` the tokens at `place_BMQ`; None: all of them."""
    batch = torch.arange(x_BTPD.shape[0], device=x_BTPD.device)
    if place_BMQ is None:
        return x_BTPD[batch[:, None], frame_BM]
    return x_BTPD[batch[:, None, None], frame_BM.unsqueeze(-1), place_BMQ]


def _sinusoids(grid_hw: tuple[int, int], width: int) -> torch.Tensor:
    """(P, width): where every patch lies, as training begins."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in grid_hw), indexing="ij")
    frequencies = 2.0 ** torch.linspace(-1, 3, math.ceil(width / 4))
    angle = torch.stack([y, x], -1).reshape(-1, 2, 1) * math.pi * frequencies
    return 0.1 * torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :width]
