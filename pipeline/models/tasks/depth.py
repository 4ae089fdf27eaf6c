"""Metric depth of every frame: one learned query per patch of the map (arXiv 2605.19137, as for
ScanNet).

Streaming: a query answers for patch x patch pixels of one frame, from that frame's tokens. Window:
for the same pixels of two frames in a row, from the tokens of all frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

import numpy as np
import torch
from matplotlib import colormaps
from pydantic import Field, model_validator
from torch import nn

from pipeline.datasets.manifest.targets import Arrays
from pipeline.models.tasks.contract import WINDOW, Metric, Query, StreamingReadout, TaskPlugin
from pipeline.models.tasks.parts.attention_readout import AttentionReadout, AttentionSettings
from pipeline.models.tasks.parts.canvas import SIDE_PX, Canvas, concat_width
from pipeline.records import TokenShape

FRAMES_PER_QUERY = 2
"""Frames that one query of the window form answers for."""
BINS = 10_000
"""Steps of the valid range to which the median of the training truth is known."""
SCALED = ", median-scaled"
LEGEND_PX, TICKS = 40, 5
"""Height of the colour scale under a drawing, and depths written on it."""


class Settings(AttentionSettings):
    readout_width: int = Field(default=1024, ge=1)
    """Width of keys, values and queries."""
    heads: int = Field(default=16, ge=1)
    """Attention heads of the readout; must divide readout_width."""
    size_px: int = Field(default=224, ge=1)
    """Side of the depth map."""
    patch_px: int = Field(default=8, ge=1)
    """Side of the patch that one query answers for; must divide size_px."""
    min_m: float = Field(default=0.001, gt=0)
    """Nearest depth that counts, in the loss and in the metrics; what lies outside is unknown.
    0.001 to 10 for ScanNet."""
    max_m: float = Field(default=10.0, gt=0)
    """Farthest depth that counts."""
    output: Literal["metres", "log_metres"] = "metres"
    """Meaning of the raw numbers of the readout. "metres": as published, with no activation; a
    prediction may be negative."""
    loss: Literal["l1", "l2", "log_l1"] = "l2"
    """Error of a pixel: |d - d'|, its square, or |log d - log d'|, which needs output =
    "log_metres". Neither the paper nor the code of the protocol it follows (4DS, arXiv 2412.15212)
    says; both show the raw output as linear depth, and "l2" is plain regression of that."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.size_px % self.patch_px:
            raise ValueError(
                f"patch_px must divide size_px, found patches of {self.patch_px} for {self.size_px}"
            )
        if self.min_m >= self.max_m:
            raise ValueError(f"min_m must be less than max_m, found {self.min_m} and {self.max_m}")
        if self.loss == "log_l1" and self.output != "log_metres":
            raise ValueError(
                'loss = "log_l1" needs output = "log_metres": '
                "raw metres may be negative and have no logarithm"
            )
        return self


class PatchReadout(nn.Module):
    """An attention readout whose queries each give a block of `span` frames x patch x patch;
    parameter names as published.

    T frames take ceil(T / span) blocks in time; what the last one says beyond frame T is dropped.
    """

    def __init__(self, width: int, frames: int, span: int, settings: Settings) -> None:
        super().__init__()
        self.span, self.patch, self.grid = (
            span,
            settings.patch_px,
            settings.size_px // settings.patch_px,
        )
        self.frames, self.blocks = frames, -(-frames // span)
        self.readout = AttentionReadout(
            width,
            span * self.patch**2,
            readout_width=settings.readout_width,
            heads=settings.heads,
            queries=self.blocks * self.grid**2,
            frames=frames,
        )

    def forward(self, x_BTND: torch.Tensor) -> torch.Tensor:
        """Raw numbers (B, T, H, W), for the T that the readout was made for."""
        assert x_BTND.shape[1] == self.frames, (
            f"made for {self.frames} frames, found {x_BTND.shape[1]}"
        )
        read = self.readout.read_window(x_BTND)
        blocks = read.view(
            read.shape[0], self.blocks, self.grid, self.grid, self.span, self.patch, self.patch
        )
        side = self.grid * self.patch
        return blocks.permute(0, 1, 4, 2, 5, 3, 6).reshape(read.shape[0], -1, side, side)[
            :, : self.frames
        ]


class FrameDepth(StreamingReadout):
    """Raw numbers (B, T, H, W), every frame from its own tokens: to the readout a frame is a window
    of one."""

    def __init__(self, readout: PatchReadout) -> None:
        super().__init__()
        self.readout = readout

    def forward(self, x_BTND: torch.Tensor, query: Query) -> torch.Tensor:
        return self._read(x_BTND.flatten(0, 1)).unflatten(0, x_BTND.shape[:2])

    def step(self, x_BND: torch.Tensor, state: Query) -> tuple[torch.Tensor, Query]:
        return self._read(x_BND), state

    def _read(self, x_BND: torch.Tensor) -> torch.Tensor:
        depth_BHW: torch.Tensor = self.readout(x_BND.unsqueeze(1)).squeeze(1)
        return depth_BHW


class WindowDepth(nn.Module):
    """Raw numbers (B, T, H, W) from the tokens of all frames."""

    def __init__(self, readout: PatchReadout) -> None:
        super().__init__()
        self.readout = readout

    def forward(self, x_BTND: torch.Tensor, query: Query) -> torch.Tensor:
        depth_BTHW: torch.Tensor = self.readout(x_BTND)
        return depth_BTHW


class Task(TaskPlugin):
    """targets["depth_m"]: (B, T, H, W) float32, metres; 0 where unknown."""

    Settings = Settings
    needs = ("depth_m",)
    truth_settings = ("size_px",)
    by_frame = ("depth_m",)
    metrics = tuple(
        metric
        for suffix in ("", SCALED)
        for metric in (
            Metric(f"AbsRel{suffix}", higher_is_better=False, perfect=0.0),
            Metric(f"delta_1{suffix}", higher_is_better=True, perfect=1.0, worst=0.0),
            Metric(f"RMSE{suffix}", higher_is_better=False, perfect=0.0, unit="m"),
        )
    )
    keeps_answers = False

    @property
    def forms(self) -> tuple[str, ...]:
        forms: tuple[str, ...] = self.settings.forms
        return forms

    @property
    def dense_px(self) -> int:
        size_px: int = self.settings.size_px
        return size_px

    def readout(self, form: str, width: int, frames: int, shape: TokenShape) -> nn.Module:
        if form == WINDOW:
            return WindowDepth(PatchReadout(width, frames, FRAMES_PER_QUERY, self.settings))
        return FrameDepth(PatchReadout(width, 1, 1, self.settings))

    def loss(
        self,
        form: str,
        prediction: torch.Tensor,
        targets: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """Mean error over the batch's valid pixels; 0 where none is."""
        valid = self._valid(targets["depth_m"])
        truth = torch.where(valid, targets["depth_m"], 1)
        log = self.settings.loss == "log_l1"
        error = (prediction - truth.log() if log else self._metres(prediction) - truth).abs()
        if self.settings.loss == "l2":
            error = error.square()
        return torch.where(valid, error, 0).sum() / valid.sum().clamp(min=1)

    def terms(self, targets: Arrays) -> float:
        """Counts the valid pixels of the windows."""
        return float(self._valid(targets["depth_m"]).sum())

    def answer(self, form: str, prediction: torch.Tensor) -> torch.Tensor:
        """Depth in metres, (B, T, H, W), as predicted: not yet brought into the valid range."""
        return self._metres(prediction)

    def score(self, answer: np.ndarray, targets: Arrays) -> dict[str, np.ndarray]:
        """Over a window's valid pixels: AbsRel, mean |d - d'| / d; delta_1, share with max(d / d',
        d' / d) < 1.25; RMSE.

        Predictions are brought into the valid range first, so that one that is not positive counts
        as the nearest depth. Median-scaled: before that, multiplied by median(d) / median(d') of
        the window; left as they are where the median prediction is not positive and finite. One
        that is NaN makes AbsRel and RMSE of its window NaN, and is not within 1.25.
        """
        rows = [self._errors(*window) for window in zip(targets["depth_m"], answer, strict=True)]
        return {
            metric.name: np.array(column)
            for metric, column in zip(self.metrics, zip(*rows, strict=True), strict=True)
        }

    def weight(self, targets: Arrays) -> np.ndarray:
        """1 for a window with a valid pixel, else 0: every window counts alike, however sparse its
        truth."""
        depth_m = targets["depth_m"]
        return self._valid(depth_m).reshape(len(depth_m), -1).any(axis=1).astype(np.float64)

    def statistics(self, targets: Iterable[Arrays]) -> Arrays:
        """Counts the valid pixels in each step of the valid range."""
        counts = np.zeros(BINS)
        for batch in targets:
            depth_m = batch["depth_m"]
            counts += np.histogram(
                depth_m[self._valid(depth_m)], BINS, (self.settings.min_m, self.settings.max_m)
            )[0]
        return {"counts": counts}

    def trivial(self, targets: Arrays, statistics: Arrays) -> np.ndarray:
        """Always the median depth of the training truth, to half a step of the valid range (0.5 mm
        for ScanNet)."""
        below = statistics["counts"].cumsum()
        step = int(np.searchsorted(below, below[-1] / 2))
        step_m = (self.settings.max_m - self.settings.min_m) / BINS
        return np.full(targets["depth_m"].shape, self.settings.min_m + (step + 0.5) * step_m)

    def plain(self, answer: np.ndarray, affine_23: np.ndarray) -> dict[str, Any]:
        """Nearest, median and farthest depth; the map itself has tens of thousands of numbers."""
        nearest, median, farthest = (
            np.quantile(answer.astype(np.float64), [0, 0.5, 1]).round(4).tolist()
        )
        return {"nearest_m": nearest, "median_m": median, "farthest_m": farthest}

    def draw(self, pixels_THWC: np.ndarray, answer: np.ndarray, targets: Arrays) -> np.ndarray:
        """frame | truth | prediction over their one colour scale; (T, H, W, 3). What is unknown is
        black.

        The scale goes from the window's nearest to its farthest truth; without truth, over the
        valid range.
        """
        low_m, high_m = self.settings.min_m, self.settings.max_m
        panels = {"frame": [Canvas(pixels_HWC).pixels for pixels_HWC in pixels_THWC]}
        if targets:
            truth_THW, valid_THW = targets["depth_m"], self._valid(targets["depth_m"])
            if valid_THW.any():
                low_m, high_m = float(truth_THW[valid_THW].min()), float(truth_THW[valid_THW].max())
            panels["truth, black: unknown"] = [
                _enlarged(depth_to_rgb(truth_HW, low_m, high_m) * valid_HW[..., None])
                for truth_HW, valid_HW in zip(truth_THW, valid_THW, strict=True)
            ]
        panels["prediction"] = [
            _enlarged(depth_to_rgb(depth_HW, low_m, high_m)) for depth_HW in answer
        ]
        rows = zip(*panels.values(), strict=True)
        return np.stack(
            [_with_words(concat_width(row), list(panels), low_m, high_m) for row in rows]
        )

    def _errors(self, truth_THW: np.ndarray, predicted_THW: np.ndarray) -> list[float]:
        """One window's value of every metric; 0 where nothing is valid."""
        valid_THW = self._valid(truth_THW)
        if not valid_THW.any():
            return [0.0] * len(self.metrics)
        truth_M = truth_THW[valid_THW].astype(np.float64)
        predicted_M = predicted_THW[valid_THW].astype(np.float64)
        median_m = np.median(predicted_M)
        values = []
        scalable = 0 < median_m < np.inf
        for factor in (1.0, np.median(truth_M) / median_m if scalable else 1.0):
            within_M = (predicted_M * factor).clip(self.settings.min_m, self.settings.max_m)
            error_M = np.abs(within_M - truth_M)
            close_M = np.maximum(within_M, truth_M) < 1.25 * np.minimum(within_M, truth_M)
            values += [np.mean(error_M / truth_M), np.mean(close_M), np.sqrt(np.mean(error_M**2))]
        return [float(value) for value in values]

    def _valid(self, depth_m: Any) -> Any:
        """Mask of the depths that count, in metres, for an array or a tensor."""
        return (depth_m >= self.settings.min_m) & (depth_m <= self.settings.max_m)

    def _metres(self, raw: torch.Tensor) -> torch.Tensor:
        return raw.exp() if self.settings.output == "log_metres" else raw


def depth_to_rgb(depth_HW: np.ndarray, low_m: float, high_m: float) -> np.ndarray:
    """uint8 (H, W, 3): near is red, far is blue."""
    share = ((depth_HW - low_m) / max(high_m - low_m, 1e-6)).clip(0, 1)
    return (colormaps["turbo_r"](share)[..., :3] * 255).astype(np.uint8)


def _enlarged(pixels: np.ndarray) -> np.ndarray:
    """Every pixel as a whole square, in all at least as large as a drawn frame: nothing is invented
    between them."""
    times = -(-SIDE_PX // len(pixels))
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def _with_words(row_HWC: np.ndarray, names: list[str], low_m: float, high_m: float) -> np.ndarray:
    """The panels under their names and over a strip of the colour scale."""
    height, width = row_HWC.shape[:2]
    strip_HW = np.linspace(low_m, high_m, width)[None].repeat(LEGEND_PX, axis=0)
    canvas = Canvas(np.concatenate([row_HWC, depth_to_rgb(strip_HW, low_m, high_m)]))
    for column, name in enumerate(names):
        canvas.text(np.array([column / len(names) + 0.01, 0.01]), name)
    for share in np.linspace(0, 0.92, TICKS):
        depth_m = low_m + (high_m - low_m) * share
        canvas.text(
            np.array([share, (height + 0.25 * LEGEND_PX) / (height + LEGEND_PX)]),
            f"| {depth_m:.2f} m",
        )
    return canvas.pixels
