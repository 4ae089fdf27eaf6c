"""Camera motion from frame to frame: pooled tokens, a small head, learned balancing (arXiv
2605.19137, as for nuScenes).

Nine numbers a frame: where camera t stands in the frame of camera t - 1, in metres (x right, y
down, z forward), and how it is turned against it, as six numbers. Frame 0 has no camera before it,
hence no truth. Streaming only, as published.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from pipeline.config import plugins
from pipeline.datasets.manifest.targets import Arrays
from pipeline.models.tasks.contract import STREAMING, Metric, Query, StreamingReadout, TaskPlugin
from pipeline.models.tasks.parts.canvas import Canvas, colour, concat_width
from pipeline.models.tasks.parts.rotation import (
    angle,
    from_six,
    mean_rotation,
    part_of_turn,
    to_six,
)
from pipeline.records import TokenShape

TRUTH, PREDICTION = colour(0), colour(1)
PANEL_PX, PAPER = 384, 40
"""Side and grey of the panel beside the frame."""


class Settings(plugins.Settings):
    readout_width: int = Field(default=1024, ge=1)
    """Width of the pooled tokens before the head; a linear layer leads there from any other."""
    hidden: int = Field(default=512, ge=1)
    """Width of the head's hidden layer."""
    norm: Literal["l1", "l2"] = "l2"
    """Norm of the two errors: the translation in metres, and the difference of the rotation
    matrices. The paper does not say. "l2": the translation error is then what the first metric
    measures."""
    balance: Literal["learned", "fixed"] = "learned"
    """Weighing of the two errors. "learned": by one log variance s each, exp(-s) error + s
    (Kendall and Cipolla 2017, "Geometric Loss Functions for Camera Pose Regression"), as in the
    paper."""
    translation_weight: float = Field(default=1.0, gt=0)
    """Weight of the translation error; where the balance is learned, the one it starts from."""
    rotation_weight: float = Field(default=1.0, gt=0)
    """Weight of the rotation error, likewise."""
    per_s: float | None = Field(default=None, gt=0)
    """Seconds that a predicted motion is of, so that steps of different lengths ask for the same: a
    true motion is scaled to so long, as if it were steady, and answers are scaled back to the steps
    of the window before they are scored. None: a motion is that of a step (the paper), which is the
    same where steps are even and of this length."""


class FrameMotion(StreamingReadout):
    """Motion (B, T, 9) of every frame from the mean of its tokens; parameter names as published."""

    def __init__(self, width: int, readout_width: int, hidden: int) -> None:
        super().__init__()
        self.proj_to_readout = (
            nn.Linear(width, readout_width) if width != readout_width else nn.Identity()
        )
        self.pose_head = nn.Sequential(
            nn.LayerNorm(readout_width),
            nn.Linear(readout_width, hidden),
            nn.GELU(),
            nn.Linear(hidden, 9),
        )

    def forward(self, x_BTND: torch.Tensor, query: Query) -> torch.Tensor:
        return self._read(x_BTND)

    def step(self, x_BND: torch.Tensor, state: Query) -> tuple[torch.Tensor, Query]:
        return self._read(x_BND), state

    def _read(self, x: torch.Tensor) -> torch.Tensor:
        """(..., N, D) -> (..., 9). The mean is taken first: it commutes with the projection."""
        motion: torch.Tensor = self.pose_head(self.proj_to_readout(x.mean(dim=-2)))
        return motion


class Task(TaskPlugin):
    """targets["motion"]: (B, T, 9) float32, the truth in the form of a prediction;
    targets["motion_valid"]: (B, T). With `per_s` also targets["step_s"]: (B, T) float32, the
    seconds from the frame before."""

    Settings = Settings
    needs = ("pose",)
    truth_settings = ("per_s",)
    drops_patches = True  # the mean of some tokens is nearly that of all
    mirrorable = False  # the camera of a mirror image moves otherwise
    metrics = (
        Metric("RPE_tr", higher_is_better=False, perfect=0.0, unit="mm"),
        Metric("RPE_tr, RMSE", higher_is_better=False, perfect=0.0, unit="mm"),
        Metric("RPE_rot", higher_is_better=False, perfect=0.0, unit="deg"),
        Metric("RPE_rot, RMSE", higher_is_better=False, perfect=0.0, unit="deg"),
    )

    def __init__(self, settings: Any, labels: tuple[str, ...]) -> None:
        super().__init__(settings, labels)
        self.weights = (settings.translation_weight, settings.rotation_weight)
        if settings.balance == "learned":
            self.log_variance = nn.Parameter(-torch.tensor(self.weights).log())

    @property
    def forms(self) -> tuple[str, ...]:
        return (STREAMING,)

    def prepare(self, targets: Arrays, rng: np.random.Generator | None) -> Arrays:
        """Motions from poses (T, 4, 4), camera to world; a motion is known where both of its poses
        are."""
        pose, has_pose = torch.from_numpy(targets["pose"]), targets["pose_valid"]
        turn, position = pose[:, :3, :3], pose[:, :3, 3]
        # In float64, since world coordinates may be large, and by the transpose, since unknown
        # poses are zeros, which have no inverse.
        to_before = turn[:-1].transpose(-1, -2)
        shift = (to_before @ (position[1:] - position[:-1])[..., None])[..., 0]
        motion = torch.cat([shift, to_six(to_before @ turn[1:])], dim=-1).numpy()
        valid = np.concatenate([[False], has_pose[1:] & has_pose[:-1]])
        first = np.zeros((1, 9))
        motion = np.concatenate([first, motion])
        if self.settings.per_s is None:
            known = np.where(valid[:, None], motion, 0).astype(np.float32)
            return {"motion": known, "motion_valid": valid}
        step_s = np.abs(np.diff(targets["time_s"], prepend=targets["time_s"][:1]))
        valid &= step_s > 0  # a frame that comes twice says nothing of how fast the camera moves
        share = self.settings.per_s / np.where(valid, step_s, 1)
        known = np.where(valid[:, None], in_other_time(motion, share), 0).astype(np.float32)
        return {"motion": known, "motion_valid": valid, "step_s": step_s.astype(np.float32)}

    def readout(self, form: str, width: int, frames: int, shape: TokenShape) -> nn.Module:
        return FrameMotion(width, self.settings.readout_width, self.settings.hidden)

    def loss(
        self,
        form: str,
        prediction: torch.Tensor,
        targets: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """Both errors' means over the known steps, balanced; 0 where none is known."""
        valid = targets["motion_valid"]
        truth = torch.where(valid[..., None], targets["motion"], 0).to(prediction.dtype)
        order = 1 if self.settings.norm == "l1" else 2
        shift = torch.linalg.vector_norm(prediction[..., :3] - truth[..., :3], order, dim=-1)
        turn = (from_six(prediction[..., 3:]) - from_six(truth[..., 3:])).flatten(-2)
        errors = torch.stack([shift, torch.linalg.vector_norm(turn, order, dim=-1)])
        means = torch.where(valid, errors, 0).sum(dim=(1, 2)) / valid.sum().clamp(min=1)
        if self.settings.balance == "learned":
            balanced = torch.exp(-self.log_variance) * means + self.log_variance
        else:
            balanced = means.new_tensor(self.weights) * means
        return balanced.sum() * valid.any()

    def terms(self, targets: Arrays) -> float:
        """Counts the steps of the windows that have a known motion."""
        return float(targets["motion_valid"].sum())

    def answer(self, form: str, prediction: torch.Tensor) -> torch.Tensor:
        """Motions as predicted, (B, T, 9)."""
        return prediction

    def score(self, answer: np.ndarray, targets: Arrays) -> dict[str, np.ndarray]:
        """Relative pose error per step (Sturm et al. 2012, between neighbouring frames), without
        any alignment or scaling.

        "RPE_tr" and "RPE_rot": mean over a window's steps, so that over all windows it is the mean
        over all steps. "..., RMSE": root mean square over a window's steps; over all windows the
        mean of these, weighted by steps. A step whose translation or rotation is NaN makes
        the error of it NaN in its window.
        """
        predicted, truth = (
            torch.from_numpy(self._of_steps(motion, targets)).double()
            for motion in (answer, targets["motion"])
        )
        shift_m = torch.linalg.vector_norm(predicted[..., :3] - truth[..., :3], dim=-1)
        shift_mm = 1000 * shift_m.numpy()
        turn_rad = angle(from_six(predicted[..., 3:]), from_six(truth[..., 3:]))
        turn_deg = torch.rad2deg(turn_rad).numpy()
        scores = {}
        for name, error_BT in (("RPE_tr", shift_mm), ("RPE_rot", turn_deg)):
            scores[name] = _mean(error_BT, targets["motion_valid"])
            scores[f"{name}, RMSE"] = np.sqrt(_mean(error_BT**2, targets["motion_valid"]))
        return scores

    def _of_steps(self, motion: np.ndarray, targets: Arrays) -> np.ndarray:
        """Motions (..., 9) of `per_s` seconds each as those of the window's own steps."""
        if self.settings.per_s is None or not targets:
            return motion
        return in_other_time(motion, targets["step_s"] / self.settings.per_s)

    def weight(self, targets: Arrays) -> np.ndarray:
        """Counts the steps of each window that have a known motion."""
        return targets["motion_valid"].sum(axis=1).astype(np.float64)

    def statistics(self, targets: Iterable[Arrays]) -> Arrays:
        """Sums over the known motions: how many, their translations and their rotation matrices."""
        count, shift, turn = (
            0,
            torch.zeros(3, dtype=torch.float64),
            torch.zeros(3, 3, dtype=torch.float64),
        )
        for batch in targets:
            motion_M9 = torch.from_numpy(batch["motion"][batch["motion_valid"]]).double()
            count += len(motion_M9)
            shift += motion_M9[:, :3].sum(0)
            turn += from_six(motion_M9[:, 3:]).sum(0)
        return {"count": np.array(count), "shift": shift.numpy(), "turn": turn.numpy()}

    def trivial(self, targets: Arrays, statistics: Arrays) -> np.ndarray:
        """Always the mean motion: mean translation, and the rotation nearest to the mean of the
        matrices."""
        shift = statistics["shift"] / max(1, int(statistics["count"]))
        turn = to_six(mean_rotation(torch.from_numpy(statistics["turn"]))).numpy()
        return np.tile(np.concatenate([shift, turn]), (*targets["motion_valid"].shape, 1))

    def plain(self, answer: np.ndarray, affine_23: np.ndarray) -> dict[str, Any]:
        """Shift (x, y, z), and the rows of the rotation matrix, from the camera of the frame before
        to this one's; with `per_s`, those of so many seconds, which stand beside them."""
        turn = from_six(torch.from_numpy(answer[0, 3:]).double())
        of_s = {} if self.settings.per_s is None else {"per_s": self.settings.per_s}
        return {
            "shift_m": answer[0, :3].astype(np.float64).round(4).tolist(),
            "rotation": turn.numpy().round(6).tolist(),
            **of_s,
        }

    def draw(self, pixels_THWC: np.ndarray, answer: np.ndarray, targets: Arrays) -> np.ndarray:
        """Every frame beside the paths so far, seen from above; (T, H, W, 3). Steps without truth
        count as none in both."""
        valid = targets["motion_valid"] if targets else np.ones(len(answer), bool)
        motions = [("prediction", self._of_steps(answer, targets), PREDICTION)] + (
            [("truth", self._of_steps(targets["motion"], targets), TRUTH)] if targets else []
        )
        paths = [
            (name, path(np.where(valid[:, None], motion, 0)), ink) for name, motion, ink in motions
        ]
        centre, side_m = _view(np.concatenate([places_S2 for _, places_S2, _ in paths]))
        drawn = []
        for t, pixels_HWC in enumerate(pixels_THWC):
            canvas = Canvas(np.full((PANEL_PX, PANEL_PX, 3), PAPER, np.uint8))
            for row, (name, places_S2, ink) in enumerate(paths):
                xy_S2 = 0.5 + (places_S2 - centre) * [1, -1] / side_m
                for xy in xy_S2[: t + 2]:
                    canvas.point(xy, ink, hollow=name == "truth")
                canvas.cross(xy_S2[t + 1], ink)
                canvas.text(np.array([0.02, 0.02 + 0.06 * row]), name, ink)
            canvas.text(
                np.array([0.02, 0.86]),
                self._words(answer[t], {name: array[t] for name, array in targets.items()}),
            )
            canvas.text(np.array([0.02, 0.92]), f"from above, {side_m:.3g} m wide")
            drawn.append(concat_width([Canvas(pixels_HWC).pixels, canvas.pixels]))
        return np.stack(drawn)

    def _words(self, answer: np.ndarray, targets: Arrays) -> str:
        """Says how far one step of the answer goes, and how far it is off."""
        gone = f"step {1000 * np.linalg.norm(self._of_steps(answer, targets)[:3]):.0f} mm"
        if not targets:
            return gone
        if not targets["motion_valid"]:
            return f"{gone}, no truth"
        scores = self.score(
            answer[None, None], {name: array[None, None] for name, array in targets.items()}
        )
        return f"{gone}, off by {scores['RPE_tr'][0]:.0f} mm, {scores['RPE_rot'][0]:.1f} deg"


def in_other_time(motion: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Steady motions (..., 9) in `share` (...,) times the time, float64."""
    share = np.asarray(share, np.float64)
    turn = from_six(torch.from_numpy(motion[..., 3:]).double())
    turned = to_six(part_of_turn(turn, torch.from_numpy(share)))
    shift = motion[..., :3].astype(np.float64) * share[..., None]
    return np.concatenate([shift, turned.numpy()], axis=-1)


def path(motion_T9: np.ndarray) -> np.ndarray:
    """Places (T + 1, 2) of the cameras, metres: x right and z forward of the camera before the
    first. Zeros are no motion."""
    turn_T33 = from_six(torch.from_numpy(motion_T9[:, 3:]).double()).numpy()
    places, heading = [np.zeros(3)], np.eye(3)
    for shift, turn in zip(motion_T9[:, :3].astype(np.float64), turn_T33, strict=True):
        places.append(places[-1] + heading @ shift)
        heading = heading @ turn
    return np.stack(places)[:, [0, 2]]


def _view(places_M2: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre and side in metres of a square that holds all places with a margin; never less than 10
    cm."""
    low, high = places_M2.min(0), places_M2.max(0)
    return (low + high) / 2, max(0.1, 1.6 * float((high - low).max()))


def _mean(values_BT: np.ndarray, valid_BT: np.ndarray) -> np.ndarray:
    """Mean over each window's valid steps, (B,); 0 where there is none."""
    return np.where(valid_BT, values_BT, 0).sum(axis=1) / np.maximum(1, valid_BT.sum(axis=1))
