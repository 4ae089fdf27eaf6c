"""Forecasting the cache: what the state after a frame says of the patch tokens of later ones, for
pre-training on video without labels.

The truth is the cache itself, and a forecast is what is added to the present tokens: before
training it copies them, which is hard to beat (arXiv 2604.04913 scores the same way). It answers
for any number of seconds ahead; of every training window it is asked for a few pairs of frames and
some of their places. The skill is 1 - error / error of copying, over all pairs and videos together,
so that still video, which nobody can forecast better than by copying, does not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import nn

from pipeline.config.recipe import WindowSettings
from pipeline.datasets.manifest.targets import TOKENS, Arrays
from pipeline.errors import BadInput
from pipeline.models.tasks.contract import (
    PATCHES,
    STREAMING,
    WINDOW,
    Baseline,
    Metric,
    Query,
    StreamingReadout,
    TaskPlugin,
)
from pipeline.models.tasks.forecasts.errors import (
    BY_HORIZON,
    KINDS,
    STILL,
    between,
    copied,
    errors,
    extrapolated,
    gathered,
    mean_so_far,
    normalised,
    spread,
)
from pipeline.models.tasks.forecasts.heads import ForecastHead, HeadSettings, taken
from pipeline.models.tasks.forecasts.pairs import drawn_pairs, scored_pairs, step_of, told
from pipeline.records import TokenShape

BETA = 0.1
"""Error below which the loss is quadratic, in units of its target."""
PAIRS_EACH = 4
"""Pairs of a window that are scored for every horizon."""
LEAST_WEIGHT, GREATEST_WEIGHT = 0.25, 4.0
"""What a patch counts in the loss, where those that move count more."""
STILL_ERROR = "still error"
"""Name of the error over the quarter of the patches that change least, in units of the error of
copying over all patches: a forecast should leave alone what stays."""
NEXT = "next frame"
"""Name of the horizon that is one frame away."""
SPACES = ("normed", "raw", "standardised")
"""Targets, in the order of the rows of `change` in `errors.gathered`."""


class Settings(HeadSettings):
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
    moving: bool = False
    """Whether patches count in the loss by how far they move, from a quarter to four times."""

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
    in a stream, (B, T, K + 1, P, D): the present ones, then those of all `horizons_s`."""

    ahead_s_K: torch.Tensor
    channel_mean: torch.Tensor
    channel_std: torch.Tensor
    change_K: torch.Tensor
    """Mean absolute change of the target over each scored horizon, by which losses are divided."""
    change_ahead_s_K: torch.Tensor
    """The seconds of these horizons; all 0 before anything is known."""

    def __init__(self, width: int, shape: TokenShape, settings: Settings) -> None:
        super().__init__()
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
        frame_BK = torch.zeros(len(x_BND), horizons, dtype=torch.int64, device=x_BND.device)
        ahead_s_BK = self.ahead_s_K.expand(len(x_BND), -1)
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


class Task(TaskPlugin):
    """targets["tokens"] (B, T, P, D) beside pairs of frames, see `forecasts.pairs`; in training
    also `place` (B, M, Q) float32 in [0, 1), the places that a pair is asked for, as shares of P.

    An answer is (B, M, P, D): tokens of every place and scored pair.
    """

    Settings = Settings
    needs = (TOKENS,)
    truth_settings = ("horizons_s", "horizons", "pairs", "places")
    keeps_answers = False
    sees_patches = True

    def __init__(self, settings: Any, labels: tuple[str, ...]) -> None:
        super().__init__(settings, labels)
        self.horizons = (NEXT, *(f"{ahead_s:g} s" for ahead_s in settings.horizons_s))
        self.metrics = (
            *(Metric(f"{kind}skill", higher_is_better=True, perfect=1.0) for kind in KINDS),
            Metric(STILL_ERROR, higher_is_better=False, perfect=0.0),
            *(
                Metric(f"{kind}skill, {horizon}", higher_is_better=True, perfect=1.0, at=horizon)
                for kind in BY_HORIZON
                for horizon in self.horizons
            ),
        )
        # No part of the task's own weights: the model has it, and moves it between devices.
        self._made: tuple[ForecastReadout, ...] = ()

    @property
    def forms(self) -> tuple[str, ...]:
        return (STREAMING,) if self.settings.memory == "state" else (WINDOW,)

    def require_windows(self, windows: WindowSettings, step_s: float | None) -> None:
        """Refuses windows that are too short for the horizons, horizons that are the same frame,
        and windows of one frame alone. `step_s`: seconds from one frame to the next, if it is the
        same everywhere."""
        if windows.still is not None:
            raise BadInput(
                "windows.still shows one frame alone, and there is nothing to forecast",
                "leave windows.still out",
            )
        frames = min(windows.frames, windows.eval_frames or windows.frames)
        if step_s is None:
            return
        steps = [1, *(round(ahead_s / step_s) for ahead_s in self.settings.horizons_s)]
        for (name, step), (other, next_step) in zip(
            list(zip(self.horizons, steps, strict=True))[:-1],
            list(zip(self.horizons, steps, strict=True))[1:],
            strict=True,
        ):
            if step >= next_step:
                raise BadInput(
                    f"horizons '{name}' and '{other}' are the same frame of windows at "
                    f"{1 / step_s:g} frames per second",
                    "raise windows.fps, or leave one out of task.horizons_s",
                )
        if steps[-1] + frames // 4 >= frames:
            needed = next(n for n in range(1, 10**9) if steps[-1] + n // 4 < n)
            raise BadInput(
                f"windows of {frames} frames, {step_s:.3g} s apart, are too short for a forecast "
                f"{self.horizons[-1]} ahead",
                f"set windows.frames to at least {needed}, or shorten task.horizons_s",
            )

    def prepare(self, targets: Arrays, rng: np.random.Generator | None) -> Arrays:
        settings, seen_s_T = self.settings, targets["seen_s"]
        if rng is None:
            pairs = scored_pairs(seen_s_T, (0.0, *settings.horizons_s), PAIRS_EACH)
            return pairs | {"step_s": np.array(step_of(seen_s_T), np.float32)}
        pairs = drawn_pairs(
            seen_s_T, settings.horizons_s[-1], settings.horizons, settings.pairs, rng
        )
        place_MQ = rng.random((len(pairs["from"]), settings.places), np.float32)
        return pairs | {"place": place_MQ}

    def query(self, targets: dict[str, torch.Tensor]) -> Query:
        """from (B, M) and ahead_s (B, M) of pairs, and in training place (B, M, Q): int64."""
        query: Query = {
            name: targets[name] for name in ("from", "ahead_s", "step_s") if name in targets
        }
        place_BMQ = self._place(targets)
        return query if place_BMQ is None else query | {"place": place_BMQ}

    def _place(self, targets: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """The patches that training pairs are asked for; None: all, where a draw has as many."""
        if "place" not in targets or targets["place"].shape[-1] >= targets[TOKENS].shape[2]:
            return None
        return (targets["place"] * targets[TOKENS].shape[2]).long()

    def readout(self, form: str, width: int, frames: int, shape: TokenShape) -> nn.Module:
        self._made = (ForecastReadout(width, shape, self.settings),)
        return self._made[0]

    def fit(self, statistics: Arrays) -> None:
        (readout,) = self._made
        row = SPACES.index(self.settings.target)
        known = {
            "channel_mean": statistics["channel_mean"],
            "channel_std": statistics["channel_std"],
            "change_K": statistics["change"][row],
            "change_ahead_s_K": statistics["ahead_s"],
        }
        for name, array in known.items():
            getattr(readout, name).copy_(torch.from_numpy(array))

    def loss(
        self, form: str, prediction: torch.Tensor, targets: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Mean over pairs of the smooth L1 between forecast and target, in units of the usual
        change over so many seconds: near 1 for copies."""
        (readout,) = self._made
        tokens_BTPD, place_BMQ = targets[TOKENS], self._place(targets)
        from_BM, to_BM = targets["from"], targets["to"]
        present_BMQD, future_BMQD = (
            taken(tokens_BTPD, frame, place_BMQ) for frame in (from_BM, to_BM)
        )
        mean, deviation = readout.scale(present_BMQD)
        error_BMQ = F.smooth_l1_loss(
            (prediction - mean) / deviation,
            readout.target(future_BMQD),
            beta=BETA,
            reduction="none",
        ).mean(-1)
        if self.settings.moving:
            change_BMQ = (readout.target(future_BMQD) - readout.target(present_BMQD)).norm(dim=-1)
            share = change_BMQ / change_BMQ.mean(-1, keepdim=True).clamp(min=1e-9)
            error_BMQ = error_BMQ * share.clamp(LEAST_WEIGHT, GREATEST_WEIGHT)
        usual_BM = readout.usual_change(targets["ahead_s"]).clamp(min=1e-6)
        counted_BM = targets["paired"] & told(normalised(tokens_BTPD), from_BM, to_BM)
        loss_BM = torch.where(counted_BM, error_BMQ.mean(-1) / usual_BM, 0)
        return loss_BM.sum() / targets["paired"].sum().clamp(min=1)

    def terms(self, targets: Arrays) -> float:
        """Counts the pairs of the windows."""
        return float(targets["paired"].sum())

    def answer(self, form: str, prediction: torch.Tensor) -> torch.Tensor:
        return prediction.float()

    def score(self, answer: np.ndarray, targets: Arrays) -> dict[str, np.ndarray]:
        """name -> 1 - error / error of copying, of every window; 0 where nothing changes."""
        made = errors(torch.from_numpy(answer), targets)
        of_copies, by_metric = self.metric_weights(targets), self._by_metric(made, targets)
        nothing = np.ones(len(answer))
        shares = {
            name: np.divide(by_metric[name], error, out=nothing.copy(), where=error > 0)
            for name, error in of_copies.items()
        }
        return {name: share if name == STILL_ERROR else 1 - share for name, share in shares.items()}

    def metric_weights(self, targets: Arrays) -> dict[str, np.ndarray]:
        """The errors of copying, by which skills are weighted: their mean is then the skill of all
        windows together."""
        of_copies = self._by_metric(errors(copied(targets), targets), targets)
        return of_copies | {STILL_ERROR: of_copies[self.metrics[0].name]}

    def weight(self, targets: Arrays) -> np.ndarray:
        return self.metric_weights(targets)[self.metrics[0].name]

    def _by_metric(self, errors_BM: np.ndarray, targets: Arrays) -> dict[str, np.ndarray]:
        """(B,) errors of every metric's pairs together, of all kinds of `errors`."""
        by_kind = dict(zip(KINDS, errors_BM, strict=False))
        sums = {f"{kind}skill": of_kind.sum(1) for kind, of_kind in by_kind.items()}
        sums[STILL_ERROR] = errors_BM[STILL].sum(1)
        for kind in BY_HORIZON:
            for number, horizon in enumerate(self.horizons):
                of_horizon = np.where(targets["horizon"] == number, by_kind[kind], 0)
                sums[f"{kind}skill, {horizon}"] = of_horizon.sum(1)
        return sums

    def statistics(self, targets: Iterable[Arrays]) -> Arrays:
        return gathered(targets, len(self.horizons))

    def trivial(self, targets: Arrays, statistics: Arrays) -> np.ndarray:
        """A copy of the present tokens, whose skill is 0."""
        tokens_BMPD: np.ndarray = copied(targets).numpy()
        return tokens_BMPD

    @property
    def baselines(self) -> Mapping[str, Baseline]:
        """damped: on the way from the present tokens to the mean of their place, as far as is best
        over the training videos; linear: as tokens went from the frame before; mean: that of a
        place's tokens so far."""
        return {
            "damped": _damped,
            "linear": lambda tokens, query, _: extrapolated(
                _patches(tokens), query["from"], query["ahead_s"], query["step_s"]
            ),
            "mean": lambda tokens, query, _: mean_so_far(_patches(tokens), query["from"]),
        }

    def plain(self, answer: np.ndarray, affine_23: np.ndarray) -> dict[str, Any]:
        """changes: horizon in seconds -> how far tokens are said to go, as the root mean square of
        normalised tokens' change; 1.41 is as far as tokens are that have nothing in common."""
        now, *ahead = torch.from_numpy(answer[0])
        _, deviation = spread(now)
        changes = {
            f"{ahead_s:g}": round(((later - now) / deviation).square().mean().sqrt().item(), 4)
            for ahead_s, later in zip(self.settings.horizons_s, ahead, strict=True)
        }
        return {"changes": changes}


def _patches(tokens_BThwD: torch.Tensor) -> torch.Tensor:
    return tokens_BThwD.flatten(2, 3).float()


def _damped(tokens_BThwD: torch.Tensor, query: Query, statistics: Arrays) -> torch.Tensor:
    device = tokens_BThwD.device
    known = {name: torch.from_numpy(array).to(device) for name, array in statistics.items()}
    now = taken(_patches(tokens_BThwD), query["from"])
    mean, deviation = spread(now)
    kept_BM = between(query["ahead_s"], known["ahead_s"], known["kept"])[..., None, None]
    return mean + deviation * (known["mean"] + kept_BM * (normalised(now) - known["mean"]))
