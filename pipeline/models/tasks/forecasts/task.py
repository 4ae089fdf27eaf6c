"""What tasks have in common that tell tokens ahead: which pairs of frames they are asked for, their
readout, and the answers that learn little."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from pipeline.config.recipe import WindowSettings
from pipeline.datasets.manifest.targets import TOKENS, Arrays
from pipeline.errors import BadInput
from pipeline.models.tasks.contract import STREAMING, WINDOW, Baseline, Query, TaskPlugin
from pipeline.models.tasks.forecasts.errors import (
    between,
    copied,
    extrapolated,
    gathered,
    mean_so_far,
    normalised,
    spread,
    with_normalised,
)
from pipeline.models.tasks.forecasts.heads import taken
from pipeline.models.tasks.forecasts.pairs import (
    drawn_pairs,
    most_steps_ahead,
    scored_pairs,
    step_of,
)
from pipeline.models.tasks.forecasts.readout import SPACES, ForecastReadout
from pipeline.models.tasks.parts.canvas import SIDE_PX, Canvas, concat_width
from pipeline.models.tasks.parts.token_colours import principal_colours
from pipeline.records import TokenShape

PAIRS_EACH = 4
"""Pairs of a window that are scored for every horizon."""
NEXT = "next frame"
"""Name of the horizon that is one frame away."""


class TellingTask(TaskPlugin):
    """targets["tokens"] (B, T, P, D) beside pairs of frames, see `forecasts.pairs`; in training
    also `place` (B, M, Q) float32 in [0, 1), the places that a pair is asked for, as shares of P.

    An answer is (B, M, P, D): tokens of every place and scored pair.
    """

    needs = (TOKENS,)
    truth_settings = ("horizons_s", "horizons", "pairs", "places")
    keeps_answers: ClassVar[bool] = False
    sees_patches = True

    def __init__(self, settings: Any, labels: tuple[str, ...]) -> None:
        super().__init__(settings, labels)
        self.horizons = (NEXT, *(f"{ahead_s:g} s" for ahead_s in settings.horizons_s))
        self.told_s: tuple[float, ...] = settings.horizons_s
        """Seconds ahead that a stream is told."""
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
        frames = min(windows.frames, windows.held_out_frames)
        if step_s is None:
            return
        steps = [1, *(round(ahead_s / step_s) for ahead_s in self.settings.horizons_s)]
        told = zip(self.horizons, steps, strict=True)
        for (name, step), (other, next_step) in pairwise(told):
            if step >= next_step:
                raise BadInput(
                    f"horizons '{name}' and '{other}' are the same frame of windows at "
                    f"{1 / step_s:g} frames per second",
                    "raise windows.fps, or leave one out of task.horizons_s",
                )
        if steps[-1] > most_steps_ahead(frames):
            needed = next(n for n in range(1, 10**9) if steps[-1] <= most_steps_ahead(n))
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
        place_BMQ = self.place(targets)
        return query if place_BMQ is None else query | {"place": place_BMQ}

    def place(self, targets: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """The patches that training pairs are asked for; None: all, where a draw has as many."""
        if "place" not in targets or targets["place"].shape[-1] >= targets[TOKENS].shape[2]:
            return None
        return (targets["place"] * targets[TOKENS].shape[2]).long()

    def readout(self, form: str, width: int, frames: int, shape: TokenShape) -> nn.Module:
        self._made = (ForecastReadout(width, shape, self.settings),)
        return self._made[0]

    def look_ahead(self, ahead_s: Sequence[float]) -> None:
        (readout,) = self._made
        self.told_s = tuple(ahead_s)
        readout.ahead_s_K = torch.tensor(self.told_s, device=readout.ahead_s_K.device)

    def by_horizon(
        self, name: str, values_BM: np.ndarray, targets: Arrays
    ) -> dict[str, np.ndarray]:
        """Name of a metric at each horizon -> sums (B,) over its pairs, float64."""
        return {
            f"{name}, {horizon}": np.where(targets["horizon"] == number, values_BM, 0).sum(
                1, dtype=np.float64
            )
            for number, horizon in enumerate(self.horizons)
        }

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

    def terms(self, targets: Arrays) -> float:
        """Counts the pairs of the windows."""
        return float(targets["paired"].sum())

    def answer(self, form: str, prediction: torch.Tensor) -> torch.Tensor:
        return prediction.float()

    def for_scoring(self, targets: Arrays) -> Arrays:
        """What `forecasts.errors.with_normalised` gives."""
        return targets if "counted" in targets else with_normalised(targets)

    def statistics(self, targets: Iterable[Arrays]) -> Arrays:
        return gathered(targets, len(self.horizons))

    def trivial(self, targets: Arrays, statistics: Arrays) -> np.ndarray:
        """A copy of the present tokens, whose skill is 0."""
        tokens_BMPD: np.ndarray = copied(targets).numpy()
        return tokens_BMPD

    def plain(self, answer: np.ndarray, affine_23: np.ndarray) -> dict[str, Any]:
        """changes: horizon in seconds -> how far tokens are said to go, as the root mean square of
        normalised tokens' change; 1.41 is as far as tokens are that have nothing in common."""
        now, *ahead = torch.from_numpy(answer[0])
        _, deviation = spread(now)
        changes = {
            f"{ahead_s:g}": round(((later - now) / deviation).square().mean().sqrt().item(), 4)
            for ahead_s, later in zip(self.told_s, ahead, strict=True)
        }
        return {"changes": changes}

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

    def draw(self, pixels_THWC: np.ndarray, answer: np.ndarray, targets: Arrays) -> np.ndarray:
        """frame | its tokens | what was told of them before, each with three main components of
        the tokens as red, green and blue; (T, H, W, 3). Of what was told for a frame, that from the
        longest time before is drawn, which is written on it; nothing, where nothing was told. In a
        stream the tokens of now stand beside those told for all horizons."""
        if targets:
            return np.stack(list(self._told_and_true(pixels_THWC, answer, targets)))
        colours_TKPC = np.stack(principal_colours(list(answer)))
        words = ["tokens now", *(f"told for {ahead_s:g} s" for ahead_s in self.told_s)]
        return np.stack(
            [
                self._in_a_row(pixels_HWC, list(zip(words, colours_KPC, strict=True)))
                for pixels_HWC, colours_KPC in zip(pixels_THWC, colours_TKPC, strict=True)
            ]
        )

    def _told_and_true(
        self, pixels_THWC: np.ndarray, answer: np.ndarray, targets: Arrays
    ) -> Iterator[np.ndarray]:
        true_TPC, told_MPC = principal_colours([targets[TOKENS], answer])
        for time, pixels_HWC in enumerate(pixels_THWC):
            pairs = np.flatnonzero(targets["paired"] & (targets["to"] == time))
            panels = [("tokens", true_TPC[time])]
            if len(pairs):
                pair = pairs[targets["ahead_s"][pairs].argmax()]
                panels.append((f"told {targets['ahead_s'][pair]:.2f} s before", told_MPC[pair]))
            else:
                panels.append(("nothing told", np.zeros_like(true_TPC[time])))
            yield self._in_a_row(pixels_HWC, panels)

    def _in_a_row(
        self, pixels_HWC: np.ndarray, panels: Sequence[tuple[str, np.ndarray]]
    ) -> np.ndarray:
        """A frame, and beside it patches (P, 3) uint8 in their places, with a word on each."""
        row, (readout,) = [Canvas(pixels_HWC).pixels], self._made
        for words, colours_PC in panels:
            grid_hw3 = colours_PC.reshape(*readout.grid_hw, 3)
            scale = math.ceil(SIDE_PX / min(readout.grid_hw))
            canvas = Canvas(grid_hw3.repeat(scale, 0).repeat(scale, 1))
            canvas.text((0.02, 0.02), words)
            row.append(canvas.pixels)
        return concat_width(row)


def _patches(tokens_BThwD: torch.Tensor) -> torch.Tensor:
    return tokens_BThwD.flatten(2, 3).float()


def _damped(tokens_BThwD: torch.Tensor, query: Query, statistics: Arrays) -> torch.Tensor:
    device = tokens_BThwD.device
    known = {name: torch.from_numpy(array).to(device) for name, array in statistics.items()}
    now = taken(_patches(tokens_BThwD), query["from"])
    mean, deviation = spread(now)
    kept_BM = between(query["ahead_s"], known["ahead_s"], known["kept"])[..., None, None]
    return mean + deviation * (known["mean"] + kept_BM * (normalised(now) - known["mean"]))
