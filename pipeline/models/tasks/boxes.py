"""Box tracking: a box per object and frame, told the boxes of the first frame (arXiv 2605.19137, as
for Waymo).

Streaming: the box predicted for a frame asks for the next one's. Window: all T boxes of an object
at once, from the tokens of all frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from pipeline.datasets.manifest.targets import Arrays, unmap_xy
from pipeline.models.tasks.contract import (
    WINDOW,
    Baseline,
    Metric,
    Query,
    StreamingReadout,
    TaskPlugin,
)
from pipeline.models.tasks.parts.canvas import WHITE, Canvas, colour
from pipeline.models.tasks.parts.followers import FollowedBoxes, FollowingSettings
from pipeline.models.tasks.parts.query_readout import (
    FourierFeatures,
    Head,
    QueryDecoder,
    feature_mlp,
    token_projection,
)
from pipeline.models.tasks.parts.tracked import TrackedBoxes
from pipeline.models.tasks.parts.trackers import follow_boxes
from pipeline.records import TokenShape

SUCCESS_IOU = 0.5
"""IoU above which a box counts as a success."""


class Settings(FollowingSettings):
    heads: int = Field(default=4, ge=1)
    """Attention heads of the readout, which must divide readout_width; the paper has 4."""
    objects: int = Field(default=25, ge=1)
    """Objects of a training window at most, drawn at random; evaluation takes all. 4DS has up to
    25."""
    l1_weight: float = Field(default=1.0, ge=0)
    """Weight of the (smooth) L1 loss on cx, cy, w, h. The paper does not say; 1 is that of arXiv
    2512.01342."""
    l1_beta: float = Field(default=0.0, ge=0)
    """Error below which the L1 loss is quadratic, where 1 is the side of the square. 0: plain
    L1."""
    giou_weight: float = Field(default=0.5, ge=0)
    """Weight of the generalised IoU loss. The paper does not say; 0.5 is that of arXiv
    2512.01342."""


class BoxQuery(nn.Module):
    """Boxes cxcywh (..., 4) -> queries (..., width)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fourier_enc = FourierFeatures()
        self.bbox_encoder = feature_mlp(4, hidden)
        self.to_query = nn.Linear(hidden, width)

    def forward(self, box: torch.Tensor) -> torch.Tensor:
        query: torch.Tensor = self.to_query(self.bbox_encoder(self.fourier_enc(box)))
        return query


class BoxReadout(nn.Module):
    """Every object's box asks the tokens for its boxes in `frames` frames. Objects share keys and
    values, and do not meet."""

    def __init__(
        self, width: int, *, readout_width: int, heads: int, hidden: int, frames: int = 1
    ) -> None:
        super().__init__()
        self.proj_to_readout = token_projection(width, readout_width)
        self.bbox_query_encoder = BoxQuery(readout_width, hidden)
        self.readout = QueryDecoder(readout_width, heads)
        self.bbox_head = Head(readout_width, readout_width, 4 * frames)

    def read(self, tokens_BMD: torch.Tensor, box_BO4: torch.Tensor) -> torch.Tensor:
        """(B, O, frames * 4), cxcywh."""
        query_BO1D = self.bbox_query_encoder(box_BO4).unsqueeze(2)
        boxes: torch.Tensor = self.bbox_head(
            self.readout(query_BO1D, self.proj_to_readout(tokens_BMD)).squeeze(2)
        )
        return boxes


class StreamingBoxes(StreamingReadout, BoxReadout):
    """Boxes (B, T, O, 4), each frame's from its own tokens and the box before it, through which no
    gradient flows.

    As published, with features up to 2^15 pi x: they magnify a box's rounding error some
    thousandfold per frame, so that the same window in another batch agrees on the whole, but not in
    every digit.
    """

    def step(self, x_BND: torch.Tensor, state: Query) -> tuple[torch.Tensor, Query]:
        box_BO4 = self.read(x_BND, state["box"])
        return box_BO4, {"box": box_BO4.detach()}


class WindowBoxes(BoxReadout):
    """Boxes (B, T, O, 4) from the tokens of all frames; as published, only the temporal module
    tells the frames apart."""

    def forward(self, x_BTND: torch.Tensor, query: Query) -> torch.Tensor:
        return (
            self.read(x_BTND.flatten(1, 2), query["box"])
            .unflatten(-1, (x_BTND.shape[1], 4))
            .transpose(1, 2)
        )


class Task(TaskPlugin):
    """Boxes of the objects that are there in the window's first frame.

    A prediction is cxcywh (B, T, O, 4), an answer xyxy, both in the square. The first frame, whose
    boxes are told, is not scored, but enters the loss: what a stream says of it is what it asks
    with next.
    """

    Settings = Settings
    needs = ("boxes",)
    truth_settings = ("objects",)
    by_frame = ("boxes_valid",)
    asks = "boxes"
    metrics = (
        Metric("mIoU", higher_is_better=True, perfect=1.0, worst=0.0),
        Metric("success_0.5", higher_is_better=True, perfect=1.0, worst=0.0),
    )

    def __init__(self, settings: Any, labels: tuple[str, ...]) -> None:
        super().__init__(settings, labels)
        # A tracker follows cached tokens.
        self.sees_patches = settings.start == "likeness"

    @property
    def forms(self) -> tuple[str, ...]:
        forms: tuple[str, ...] = self.settings.forms
        return forms

    def prepare(self, targets: Arrays, rng: np.random.Generator | None) -> Arrays:
        """The objects that are present in the first frame; one that never is where there are
        none."""
        # What a crop has left a rounding error of is no object.
        valid = targets["boxes_valid"] & (
            targets["boxes"][..., 2:] > targets["boxes"][..., :2]
        ).all(-1)
        objects = np.flatnonzero(valid[0])
        if rng is not None and len(objects) > self.settings.objects:
            objects = np.sort(rng.choice(objects, self.settings.objects, replace=False))
        if not len(objects):
            return {
                "boxes": np.zeros((len(valid), 1, 4), np.float32),
                "boxes_valid": np.zeros((len(valid), 1), bool),
            }
        return {"boxes": targets["boxes"][:, objects], "boxes_valid": valid[:, objects]}

    def query(self, targets: dict[str, torch.Tensor]) -> Query:
        """box (B, O, 4): cxcywh in the first frame."""
        return {"box": to_cxcywh(targets["boxes"][:, 0])}

    def readout(self, form: str, width: int, frames: int, shape: TokenShape) -> nn.Module:
        settings = self.settings
        if settings.start == "likeness":
            return TrackedBoxes(width, settings, shape)
        if settings.start == "still":
            return FollowedBoxes(width, settings, shape)
        size = {
            "readout_width": settings.readout_width,
            "heads": settings.heads,
            "hidden": settings.hidden,
        }
        return (
            WindowBoxes(width, frames=frames, **size)
            if form == WINDOW
            else StreamingBoxes(width, **size)
        )

    def loss(
        self,
        form: str,
        prediction: torch.Tensor,
        targets: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """Mean over all object-frames with truth of the weighted L1 (mean of four) and 1 - GIoU."""
        valid = targets["boxes_valid"]
        predicted_M4, truth_M4 = prediction[valid], targets["boxes"][valid]
        count = max(1, len(truth_M4))
        l1 = F.smooth_l1_loss(
            predicted_M4, to_cxcywh(truth_M4), beta=self.settings.l1_beta, reduction="sum"
        ) / (4 * count)
        giou = (1 - generalised_iou(to_xyxy(predicted_M4), truth_M4)).sum() / count
        return self.settings.l1_weight * l1 + self.settings.giou_weight * giou

    def terms(self, targets: Arrays) -> float:
        """Counts the object-frames of the windows that have truth."""
        return float(targets["boxes_valid"].sum())

    def answer(self, form: str, prediction: torch.Tensor) -> torch.Tensor:
        """xyxy (B, T, O, 4), not cut at the square's edges."""
        return to_xyxy(prediction)

    def score(self, answer: np.ndarray, targets: Arrays) -> dict[str, np.ndarray]:
        """mIoU: mean intersection over union of all object-frames with truth after the first frame;
        success_0.5: the share of them where it is above 0.5. A box without area, with corners
        swapped, or with one that is no finite number, has IoU 0."""
        counted = scored(targets)
        overlap = np.where(counted, iou(answer, targets["boxes"]), 0)
        count = np.maximum(1, counted.sum((1, 2)))
        return {
            "mIoU": overlap.sum((1, 2)) / count,
            "success_0.5": (overlap > SUCCESS_IOU).sum((1, 2)) / count,
        }

    def weight(self, targets: Arrays) -> np.ndarray:
        """(B,) float64: how many object-frames are scored, so that every object in every frame
        counts the same."""
        return scored(targets).sum((1, 2)).astype(np.float64)

    def trivial(self, targets: Arrays, statistics: Arrays) -> np.ndarray:
        """The first frame's boxes, standing still."""
        return np.broadcast_to(targets["boxes"][:, :1], targets["boxes"].shape).copy()

    @property
    def baselines(self) -> Mapping[str, Baseline]:
        """likeness: the first frame's boxes, moved to where tokens are like those under them."""
        return {"likeness": lambda tokens, query, _: follow_boxes(tokens, to_xyxy(query["box"]))}

    def plain(self, answer: np.ndarray, affine_23: np.ndarray) -> dict[str, Any]:
        """boxes: xyxy of every object, in the source frame."""
        corners_O22 = unmap_xy(answer[0].reshape(-1, 2, 2), affine_23)
        return {"boxes": corners_O22.reshape(-1, 4).round(5).tolist()}

    def draw(self, pixels_THWC: np.ndarray, answer: np.ndarray, targets: Arrays) -> np.ndarray:
        """Frames enlarged to at least 384 px: predicted boxes solid, in one colour per object, and
        its IoU; true ones dashed and white. In the first frame they are what the task is told."""
        valid_TO = targets.get("boxes_valid", np.zeros(answer.shape[:2], bool))
        truth_TO4 = targets.get("boxes", np.zeros_like(answer))
        overlap_TO = iou(answer, truth_TO4)
        objects = np.flatnonzero(valid_TO.any(0)) if targets else np.arange(answer.shape[1])
        frames = []
        for time, pixels in enumerate(pixels_THWC):
            canvas = Canvas(pixels)
            for number in objects.tolist():
                canvas.box(answer[time, number], colour(number))
                if valid_TO[time, number]:
                    truth = truth_TO4[time, number]
                    canvas.box(truth, WHITE, dashed=True)
                    words = f"IoU {overlap_TO[time, number]:.2f}" if time else "told"
                    canvas.text(truth[:2], words, colour(number))
            if valid_TO[time].any():
                dashed = "truth" if time else "told"
                canvas.text((0.02, 0.93), f"solid: prediction, dashed: {dashed}")
            frames.append(canvas.pixels)
        return np.stack(frames)


def scored(targets: Arrays) -> np.ndarray:
    """(B, T, O) bool: object-frames with truth after the first frame."""
    counted = targets["boxes_valid"].copy()
    counted[:, 0] = False
    return counted


def to_cxcywh(xyxy: torch.Tensor) -> torch.Tensor:
    """Corners (..., 4) -> centre and size (..., 4)."""
    low, high = xyxy.chunk(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def to_xyxy(cxcywh: torch.Tensor) -> torch.Tensor:
    """Centre and size (..., 4) -> corners (..., 4)."""
    centre, size = cxcywh.chunk(2, dim=-1)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def iou(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes xyxy (..., 4), in float64; 0 where either has no area, or
    the prediction is not finite."""

    def area(
        low_x: np.ndarray, low_y: np.ndarray, high_x: np.ndarray, high_y: np.ndarray
    ) -> np.ndarray:
        return np.maximum(high_x - low_x, 0) * np.maximum(high_y - low_y, 0)

    predicted = np.where(np.isfinite(predicted).all(-1, keepdims=True), predicted, 0)
    # The coordinate first: low x, low y, high x, high y.
    p, t = (np.moveaxis(boxes.astype(np.float64), -1, 0) for boxes in (predicted, truth))
    common = area(*np.maximum(p[:2], t[:2]), *np.minimum(p[2:], t[2:]))
    union = area(*p) + area(*t) - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def generalised_iou(predicted_M4: torch.Tensor, truth_M4: torch.Tensor) -> torch.Tensor:
    """IoU minus the share of the smallest enclosing box that neither covers, (M,) in -1..1 (arXiv
    1902.09630).

    `truth_M4` has area; a predicted box with corners swapped has none.
    """
    low_p, high_p = predicted_M4.chunk(2, dim=-1)
    low_t, high_t = truth_M4.chunk(2, dim=-1)
    common = (torch.minimum(high_p, high_t) - torch.maximum(low_p, low_t)).clamp(min=0).prod(-1)
    union = (high_p - low_p).clamp(min=0).prod(-1) + (high_t - low_t).prod(-1) - common
    enclosing = (torch.maximum(high_p, high_t) - torch.minimum(low_p, low_t)).prod(-1)
    return common / union - (enclosing - union) / enclosing
