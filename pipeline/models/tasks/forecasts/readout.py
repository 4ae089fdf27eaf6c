"""The readout that tells tokens ahead: a head says how they change, and what it says is added to
the present ones, in the space in which the loss compares them."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, field_validator, model_validator

from pipeline.models.tasks.contract import PATCHES, Query, StreamingReadout
from pipeline.models.tasks.forecasts.errors import between, normalised, spread
from pipeline.models.tasks.forecasts.heads import ForecastHead, HeadSettings, taken
from pipeline.records import TokenShape

SPACES = ("normed", "raw", "standardised")
"""Targets, in the order of the rows of `change` in `errors.gathered`."""


class ForecastSettings(HeadSettings):
    """These settings say what of a window is told ahead, and what it is compared with."""

    horizons_s: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    """Seconds ahead that are scored, ascending, beside the next frame; the last is also the longest
    that training asks for."""
    horizons: int = Field(default=4, ge=1)
    """Horizons of a training window, drawn between a frame and the longest one."""
    pairs: int = Field(default=4, ge=1)
    """Pairs of frames of a training window for every horizon."""
    places: int = Field(default=24, ge=1)
    """Places that a training pair is asked for, drawn at random; all where there are fewer."""
    target: Literal["normed", "raw", "standardised"] = "normed"
    """The tokens whose error is the loss. normed: each with mean 0 and variance 1; raw: as they
    are; standardised: each channel with mean 0 and variance 1 over the training videos."""
    residual: bool = True
    """Whether what is said is added to the present tokens. Without it, training begins far from a
    copy, and seldom gets there."""

    @field_validator("horizons_s")
    @classmethod
    def _ascend(cls, horizons_s: tuple[float, ...]) -> tuple[float, ...]:
        if not horizons_s or min(horizons_s) <= 0 or list(horizons_s) != sorted(set(horizons_s)):
            raise ValueError("wanted at least one number of seconds above 0, ascending")
        return horizons_s

    @model_validator(mode="after")
    def _head_fits(self) -> Self:
        if self.head == "mlp" and self.memory == "all":
            raise ValueError('memory = "all" wants head = "attention"')
        if self.readout_width % self.heads:
            raise ValueError(
                f"heads must divide readout_width, found {self.heads} heads for width "
                f"{self.readout_width}"
            )
        return self


class ForecastReadout(StreamingReadout):
    """Tokens as they will leave the codec: (B, M, Q, D) for the pairs of a query; without pairs, as
    in a stream, (B, T, K + 1, P, D): the present ones, then those of all `ahead_s_K`."""

    ahead_s_K: torch.Tensor
    """Seconds ahead that a stream is told: `horizons_s`, until others are asked for."""
    channel_mean: torch.Tensor
    channel_std: torch.Tensor
    change_K: torch.Tensor
    """Mean absolute change of the target over each scored horizon, by which losses are divided."""
    change_ahead_s_K: torch.Tensor
    """The seconds of these horizons; all 0 before anything is known."""

    def __init__(self, width: int, shape: TokenShape, settings: ForecastSettings) -> None:
        super().__init__()
        self.grid_hw = shape.grid_hw
        self.head = ForecastHead(width, shape.grid_hw, settings, shape.width)
        self.space, self.residual = settings.target, settings.residual
        self.register_buffer("ahead_s_K", torch.tensor(settings.horizons_s), persistent=False)
        # Of the training videos; all that is kept of them goes with the weights.
        self.register_buffer("channel_mean", torch.zeros(shape.width))
        self.register_buffer("channel_std", torch.ones(shape.width))
        self.register_buffer("change_K", torch.ones(len(settings.horizons_s) + 1))
        self.register_buffer("change_ahead_s_K", torch.zeros(len(settings.horizons_s) + 1))

    def forward(self, x_BTND: torch.Tensor, query: Query) -> torch.Tensor:
        if "from" not in query:
            return super().forward(x_BTND, query)
        return self.said(
            x_BTND, query[PATCHES], query["from"], query["ahead_s"], query.get("place")
        )

    def step(self, x_BND: torch.Tensor, state: Query) -> tuple[torch.Tensor, Query]:
        patches_B1PD, horizons = state[PATCHES].unsqueeze(1), len(self.ahead_s_K)
        frame_BK = torch.zeros(x_BND.shape[0], horizons, dtype=torch.int64, device=x_BND.device)
        ahead_s_BK = self.ahead_s_K.expand(x_BND.shape[0], -1)
        said_BKPD = self.said(x_BND.unsqueeze(1), patches_B1PD, frame_BK, ahead_s_BK)
        return torch.cat([patches_B1PD.to(said_BKPD.dtype), said_BKPD], dim=1), state

    def said(
        self,
        x_BTND: torch.Tensor,
        patches_BTPD: torch.Tensor,
        from_BM: torch.Tensor,
        ahead_s_BM: torch.Tensor,
        place_BMQ: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What the head says, as tokens. In float32, also under autocast."""
        change_BMQD = self.head(x_BTND, from_BM, ahead_s_BM, place_BMQ)
        with torch.autocast(x_BTND.device.type, enabled=False):
            change_BMQD = change_BMQD.float()
            present_BMQD = taken(patches_BTPD, from_BM, place_BMQ).float()
            mean, deviation = self.scale(present_BMQD)
            return (present_BMQD if self.residual else mean) + deviation * change_BMQD

    def scale(self, present: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is taken from forecasts of `present` tokens, and what they are then divided by, to
        be near the target."""
        if self.space == "normed":
            return spread(present)
        if self.space == "standardised":
            return self.channel_mean, self.channel_std
        return torch.zeros_like(self.channel_mean), torch.ones_like(self.channel_std)

    def target(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens as the loss compares them."""
        if self.space == "normed":
            return normalised(tokens)
        mean, deviation = self.scale(tokens)
        return (tokens - mean) / deviation

    def usual_change(self, ahead_s: torch.Tensor) -> torch.Tensor:
        """Mean absolute change of the target in so many seconds, over the training videos."""
        return between(ahead_s, self.change_ahead_s_K, self.change_K)
