"""Attention readout: learned queries read tokens by cross-attention (arXiv 2605.19137; parameter
names as published)."""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import nn

from pipeline.config import plugins


class AttentionSettings(plugins.Settings):
    """These settings are what every task with attention readouts lets a recipe choose; a task adds
    its defaults."""

    forms: tuple[Literal["streaming", "window"], ...] = Field(
        default=("streaming", "window"), min_length=1
    )
    """Readouts to train."""
    readout_width: int = Field(ge=1)
    """Width of keys, values and queries."""
    heads: int = Field(ge=1)
    """Attention heads of the readout; must divide readout_width."""

    @field_validator("forms")
    @classmethod
    def _distinct(cls, forms: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(forms)) != len(forms):
            raise ValueError("names a form twice")
        return forms

    @model_validator(mode="after")
    def _equal_heads(self) -> Self:
        if self.readout_width % self.heads:
            raise ValueError(
                f"heads must divide readout_width, "
                f"found {self.heads} heads for width {self.readout_width}"
            )
        return self


class AttentionReadout(nn.Module):
    """token = query + W_o softmax(query K / sqrt(d)) V; token += MLP(LN token); output = W token.

    Queries are parameters and have no projection. K and V are linear in LN(tokens) of
    `readout_width`.
    """

    temporal_posenc: torch.Tensor | None

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        readout_width: int,
        heads: int,
        queries: int = 1,
        frames: int | None = None,
    ) -> None:
        """`frames`: the T of a window's learned temporal embedding; None: no embedding, frames are
        read one by one."""
        super().__init__()
        assert readout_width % heads == 0
        self.readout_width = readout_width
        self.input_norm = nn.LayerNorm(width)
        posenc = None if frames is None else nn.Parameter(0.02 * torch.randn(1, frames, 1, width))
        self.register_parameter("temporal_posenc", posenc)
        self.key_proj = nn.Linear(width, readout_width)
        self.value_proj = nn.Linear(width, readout_width)
        self.query = nn.Parameter(0.02 * torch.randn(queries, heads, readout_width // heads))
        self.out_proj = nn.Linear(readout_width, readout_width)
        self.mlp_norm = nn.LayerNorm(readout_width)
        self.mlp_fc1 = nn.Linear(readout_width, 4 * readout_width)
        self.mlp_fc2 = nn.Linear(4 * readout_width, readout_width)
        self.classifier = nn.Linear(readout_width, outputs)

    def read(self, x_BMD: torch.Tensor) -> torch.Tensor:
        """B sets of M tokens each -> (B, Q, outputs)."""
        return self._read(self.input_norm(x_BMD))

    def read_window(self, x_BTND: torch.Tensor) -> torch.Tensor:
        """All T * N tokens at once, with the temporal embedding -> (B, Q, outputs)."""
        return self._read(
            (self.input_norm(x_BTND) + self._embedding(x_BTND.shape[1])).flatten(1, 2)
        )

    def _read(self, x_BMD: torch.Tensor) -> torch.Tensor:
        queries, heads = self.query.shape[:2]
        # What is cheaper: the queries seen as tokens, or the tokens seen as keys and values.
        attend = (
            self._attend_to_tokens if 2 * queries * heads <= self.readout_width else self._attend
        )
        token_BQP = self.query.flatten(1) + self.out_proj(attend(x_BMD))
        token_BQP = token_BQP + self.mlp_fc2(F.gelu(self.mlp_fc1(self.mlp_norm(token_BQP))))
        return self.classifier(token_BQP)

    def _attend(self, x_BMD: torch.Tensor) -> torch.Tensor:
        """softmax(query K / sqrt(d)) V of all heads, (B, Q, P)."""
        query = self.query.expand(x_BMD.shape[0], -1, -1, -1).transpose(1, 2)
        key, value = (
            proj(x_BMD).unflatten(-1, (query.shape[1], -1)).transpose(1, 2)
            for proj in (self.key_proj, self.value_proj)
        )
        read = F.scaled_dot_product_attention(query.to(key.dtype), key, value)
        return read.transpose(1, 2).flatten(2)

    def _attend_to_tokens(self, x_BMD: torch.Tensor) -> torch.Tensor:
        """The same without keys and values: query (W_k x + b_k) = (query W_k) x + query b_k, and
        weights that sum to 1 pass through W_v and b_v."""
        queries, heads, head_width = self.query.shape
        query_QHd = self.query / head_width**0.5
        key_HdD = self.key_proj.weight.unflatten(0, (heads, head_width))
        key_bias_Hd = self.key_proj.bias.unflatten(0, (heads, head_width))
        scores_BMJ = F.linear(
            x_BMD,
            torch.einsum("qhd,hdm->qhm", query_QHd, key_HdD).flatten(0, 1),
            (query_QHd * key_bias_Hd).sum(-1).flatten(),
        )
        read_BJD = scores_BMJ.transpose(1, 2).softmax(-1) @ x_BMD
        value_HdD = self.value_proj.weight.unflatten(0, (heads, head_width))
        read_BQHd = torch.einsum(
            "bqhm,hdm->bqhd", read_BJD.unflatten(1, (queries, heads)), value_HdD
        )
        return read_BQHd.flatten(2) + self.value_proj.bias

    def _embedding(self, frames: int) -> torch.Tensor:
        """The temporal embedding, (1, T, 1, D)."""
        assert self.temporal_posenc is not None
        return in_time(self.temporal_posenc, frames)


def in_time(posenc_1T1D: torch.Tensor, frames: int) -> torch.Tensor:
    """A temporal embedding, (1, `frames`, 1, D), resized linearly in time if the window is not as
    long as in training."""
    if frames == posenc_1T1D.shape[1]:
        return posenc_1T1D
    over_time_1DT = posenc_1T1D[:, :, 0].transpose(1, 2)
    return F.interpolate(over_time_1DT, size=frames, mode="linear").transpose(1, 2).unsqueeze(2)
