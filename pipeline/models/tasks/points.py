"""Point tracking: place and visibility of points in every frame, each told in one (arXiv
2605.19137, as for Perception Test).

Streaming: the told place asks every frame's tokens in turn. Window: it asks the tokens of all
frames, once for every two of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

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
from pipeline.models.tasks.parts.canvas import Canvas, colour
from pipeline.models.tasks.parts.followers import SURE, FollowedPoints, FollowingSettings
from pipeline.models.tasks.parts.query_readout import (
    FourierFeatures,
    Head,
    QueryDecoder,
    feature_mlp,
    token_projection,
)
from pipeline.models.tasks.parts.tapvid import FRAME_PX, frames_counted, tapvid
from pipeline.models.tasks.parts.tracked import TrackedPoints
from pipeline.models.tasks.parts.trackers import follow_points
from pipeline.records import TokenShape

FRAMES_PER_QUERY = 2
"""Frames that one query of the window form answers for."""
SEEN = 0.5
"""An answer above it says that the point is visible."""
HUBER_PX, UNCERTAIN_PX = 4.0, 6.0
"""Error in pixels above which the loss of a place is linear, and above which a place counts as
uncertain, as in TAPIR (arXiv 2306.08637)."""


class Settings(FollowingSettings):
    heads: int = Field(default=8, ge=1)
    """Attention heads of the readout, which must divide readout_width; the paper has 8."""
    queries: Literal["first", "strided"] = "first"
    """As in TAP-Vid. "first": a track is told where it is first visible, the frames after it count.
    "strided": it is told once in every `stride`-th frame in which it is visible, all other frames
    count."""
    stride: int = Field(default=5, ge=1)
    """Frames between the queries of "strided"."""
    points: int = Field(default=64, ge=1)
    """Tracks of a training window at most, drawn at random; evaluation takes all."""
    train_queries: Literal["first", "random"] = "first"
    """Frame in which a track is told in training. "first": where it is first visible, which suits a
    query that does not say its time; "random": any in which it is visible, as Kubric's own point
    tracking data are made."""
    unknown: Literal["ignored", "occluded"] = "ignored"
    """Meaning of a track without a place in a frame in which another track has one: nothing, or
    that the point is not visible, as Perception Test's own score has it."""
    visible_if: Literal["visible", "visible and certain"] = "visible"
    """When a point is said to be visible: sigmoid(visibility) > 0.5, as the paper's code has it, or
    sigmoid(visibility) * sigmoid(-uncertainty) > 0.5, as in TAPIR."""
    position_weight: float = Field(default=0.05, ge=0)
    """Weight of the Huber loss of places, in pixels of a frame of 256 x 256. The paper does not
    say; TAPIR has 0.05."""
    visibility_weight: float = Field(default=1.0, ge=0)
    """Weight of the cross-entropy of the visibility."""
    uncertainty_weight: float = Field(default=1.0, ge=0)
    """Weight of the cross-entropy of the uncertainty: is the predicted place more than 6 px off?"""


class PointQuery(nn.Module):
    """Places xy (..., 2) -> queries (..., width)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fourier_enc = FourierFeatures()
        self.point_mlp = feature_mlp(2, hidden)
        self.to_query = nn.Linear(hidden, width)

    def encode(self, point: torch.Tensor) -> torch.Tensor:
        query: torch.Tensor = self.to_query(self.point_mlp(self.fourier_enc(point)))
        return query


class StreamingPoints(StreamingReadout, PointQuery):
    """(B, T, Q, 4) of points told as `point` (B, Q, 2) in `frame` (B, Q): x, y, logits of
    visibility and uncertainty.

    Each frame's from its own tokens. Points share keys and values, and do not meet. A frame that
    the stream never reaches, or that lies before it, is never told: nothing is overwritten.
    """

    def __init__(self, width: int, *, readout_width: int, heads: int, hidden: int) -> None:
        super().__init__(readout_width, hidden)
        self.proj_to_readout = token_projection(width, readout_width)
        self.readout = QueryDecoder(readout_width, heads)
        self.prediction_head = Head(readout_width, readout_width // 2, 4)

    def forward(self, x_BTND: torch.Tensor, query: Query) -> torch.Tensor:
        batch, frames = x_BTND.shape[:2]
        query_BQD = self.encode(query["point"]).repeat_interleave(frames, dim=0)
        raw = self._read(x_BTND.flatten(0, 1), query_BQD).unflatten(0, (batch, frames))
        return with_query_frame(
            raw, query, torch.arange(frames, device=raw.device).expand(batch, -1)
        )

    def start(self, query: Query) -> Query:
        """The query, encoded once, and the number of the frame to come."""
        return query | {
            "query": self.encode(query["point"]),
            "time": torch.zeros_like(query["frame"][:, :1]),
        }

    def step(self, x_BND: torch.Tensor, state: Query) -> tuple[torch.Tensor, Query]:
        raw = self._read(x_BND, state["query"]).unsqueeze(1)
        return with_query_frame(raw, state, state["time"]).squeeze(1), state | {
            "time": state["time"] + 1
        }

    def _read(self, x_BND: torch.Tensor, query_BQD: torch.Tensor) -> torch.Tensor:
        read = self.readout(query_BQD.unsqueeze(2), self.proj_to_readout(x_BND)).squeeze(2)
        raw: torch.Tensor = self.prediction_head(read)
        return raw


class WindowPointQuery(PointQuery):
    """Places (B, Q, 2) -> G queries of each, (B, Q, G, width), which a learned embedding tells
    apart."""

    def __init__(self, width: int, hidden: int, copies: int) -> None:
        super().__init__(width, hidden)
        self.temporal_embed = nn.Parameter(0.02 * torch.randn(1, copies, width))

    def forward(self, point_BQ2: torch.Tensor) -> torch.Tensor:
        return self.encode(point_BQ2).unsqueeze(2) + self.temporal_embed


class WindowPoints(nn.Module):
    """As `StreamingPoints`, from the tokens of all frames: each of T / 2 copies of a query predicts
    two frames.

    The copies of one point see each other. An odd T has one frame more predicted than there is,
    which is dropped. As published, only the temporal module tells the tokens of different frames
    apart.
    """

    def __init__(
        self, width: int, *, readout_width: int, heads: int, hidden: int, frames: int
    ) -> None:
        super().__init__()
        self.frames = frames
        self.proj_to_readout = token_projection(width, readout_width)
        self.point_query_encoder = WindowPointQuery(
            readout_width, hidden, -(-frames // FRAMES_PER_QUERY)
        )
        self.readout = QueryDecoder(readout_width, heads)
        self.prediction_head = Head(readout_width, readout_width // 2, FRAMES_PER_QUERY * 4)

    def forward(self, x_BTND: torch.Tensor, query: Query) -> torch.Tensor:
        batch, frames = x_BTND.shape[:2]
        assert frames == self.frames
        tokens = self.proj_to_readout(x_BTND.flatten(1, 2))
        raw = self.prediction_head(
            self.readout(self.point_query_encoder(query["point"]), tokens)
        )  # (B, Q, G, 8)
        raw = raw.unflatten(-1, (FRAMES_PER_QUERY, 4)).flatten(2, 3).transpose(1, 2)[:, :frames]
        return with_query_frame(
            raw, query, torch.arange(frames, device=raw.device).expand(batch, -1)
        )


def with_query_frame(raw_BTQ4: torch.Tensor, query: Query, time_BT: torch.Tensor) -> torch.Tensor:
    """A head's numbers -> x, y, logits; in the frame where a point is told: its place, +10, -10."""
    predicted = torch.cat([raw_BTQ4[..., :2].sigmoid(), raw_BTQ4[..., 2:]], dim=-1)
    point = query["point"].to(predicted.dtype)
    prompt = torch.cat(
        [point, torch.full_like(point[..., :1], SURE), torch.full_like(point[..., :1], -SURE)],
        dim=-1,
    )
    here = query["frame"].unsqueeze(1) == time_BT.unsqueeze(2)
    return torch.where(here.unsqueeze(-1), prompt.unsqueeze(1), predicted)


class Task(TaskPlugin):
    """Points of the tracks that are visible in some frame of the window.

    targets["query_frame"] (Q,) int64: where each is told. A prediction is x, y in the square and
    logits of visibility and uncertainty, (B, T, Q, 4); an answer is x, y and a number that is above
    0.5 where the point is said to be visible. Loss and scores look at the same frames, see
    `queries`: what is told is not asked.
    """

    Settings = Settings
    needs = ("points",)
    truth_settings = ("points", "queries", "stride", "train_queries", "unknown")
    by_frame = ("points_valid",)
    asks = "points"
    metrics = (
        Metric("AJ", higher_is_better=True, perfect=1.0, worst=0.0),
        Metric("delta_avg", higher_is_better=True, perfect=1.0, worst=0.0),
        Metric("OA", higher_is_better=True, perfect=1.0, worst=0.0),
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
        """The tracks to follow, one for every query, with `query_frame`; one that is nowhere known
        where there are none."""
        valid = targets["points_valid"]
        visible = targets["visible"] & valid
        if self.settings.unknown == "occluded":
            valid = np.broadcast_to(valid.any(1, keepdims=True), valid.shape)
        track, frame = self._query_track_and_frame(visible, rng)
        if not len(track):
            frames = len(visible)
            nowhere = np.zeros((frames, 1), bool)
            points = np.zeros((frames, 1, 2), np.float32)
            return {
                "points": points,
                "points_valid": nowhere,
                "visible": nowhere,
                "query_frame": np.zeros(1, np.int64),
            }
        return {
            "points": targets["points"][:, track],
            "points_valid": valid[:, track],
            "visible": visible[:, track],
            "query_frame": frame,
        }

    def _query_track_and_frame(
        self, visible_TQ: np.ndarray, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Track and frame of every query."""
        settings = self.settings
        if rng is None and settings.queries == "strided":
            strided_frame, track = np.nonzero(visible_TQ[:: settings.stride])
            return track, strided_frame * settings.stride
        track = np.flatnonzero(visible_TQ.any(0))
        if rng is not None and len(track) > settings.points:
            track = np.sort(rng.choice(track, settings.points, replace=False))
        if rng is None or settings.train_queries == "first":
            return track, visible_TQ[:, track].argmax(0)
        return track, np.where(
            visible_TQ[:, track], rng.random((len(visible_TQ), len(track))), -1
        ).argmax(0)

    def query(self, targets: dict[str, torch.Tensor]) -> Query:
        """point (B, Q, 2) and the frame (B, Q) in which it is there."""
        frame = targets["query_frame"]
        point = targets["points"].gather(1, frame[:, None, :, None].expand(-1, 1, -1, 2)).squeeze(1)
        return {"point": point, "frame": frame}

    def readout(self, form: str, width: int, frames: int, shape: TokenShape) -> nn.Module:
        settings = self.settings
        if settings.start == "likeness":
            return TrackedPoints(width, settings, shape)
        if settings.start == "still":
            return FollowedPoints(width, settings, shape)
        size = {
            "readout_width": settings.readout_width,
            "heads": settings.heads,
            "hidden": settings.hidden,
        }
        return (
            WindowPoints(width, frames=frames, **size)
            if form == WINDOW
            else StreamingPoints(width, **size)
        )

    def loss(
        self,
        form: str,
        prediction: torch.Tensor,
        targets: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """TAPIR's: Huber loss of places and cross-entropy of uncertainty where the point is
        visible, and cross-entropy of visibility; each summed over the point-frames that count and
        divided by their number."""
        time_T = torch.arange(prediction.shape[1], device=prediction.device)
        counted = targets["points_valid"] & frames_counted(
            targets["query_frame"], time_T, self.settings.queries
        )
        predicted_M4, visible_M = prediction[counted], targets["visible"][counted]
        seen_M4, truth_M2 = predicted_M4[visible_M], targets["points"][counted][visible_M]
        squared_px = ((seen_M4[:, :2] - truth_M2) * FRAME_PX).square().sum(-1)
        # The root is taken only where it is used: its slope at 0 is infinite.
        far = HUBER_PX * (squared_px.clamp(min=HUBER_PX**2).sqrt() - HUBER_PX / 2)
        position = torch.where(squared_px < HUBER_PX**2, squared_px / 2, far).sum()
        uncertain = (squared_px > UNCERTAIN_PX**2).to(seen_M4.dtype)
        uncertainty = F.binary_cross_entropy_with_logits(seen_M4[:, 3], uncertain, reduction="sum")
        visibility = F.binary_cross_entropy_with_logits(
            predicted_M4[:, 2], visible_M.to(predicted_M4.dtype), reduction="sum"
        )
        weighted = (
            self.settings.position_weight * position
            + self.settings.visibility_weight * visibility
            + self.settings.uncertainty_weight * uncertainty
        )
        return weighted / max(1, len(predicted_M4))

    def _counted(self, targets: Arrays) -> np.ndarray:
        """(B, T, Q) bool: point-frames that are scored."""
        time_T = np.arange(targets["visible"].shape[1])
        return targets["points_valid"] & frames_counted(
            targets["query_frame"], time_T, self.settings.queries
        )

    def terms(self, targets: Arrays) -> float:
        """Counts the point-frames of the windows that enter the loss."""
        return float(self._counted(targets).sum())

    def answer(self, form: str, prediction: torch.Tensor) -> torch.Tensor:
        """x, y, visible (B, T, Q, 3)."""
        visible = prediction[..., 2:3].sigmoid()
        if self.settings.visible_if == "visible and certain":
            visible = visible * (-prediction[..., 3:]).sigmoid()
        return torch.cat([prediction[..., :2], visible], dim=-1)

    def score(self, answer: np.ndarray, targets: Arrays) -> dict[str, np.ndarray]:
        """Average Jaccard, share of visible points within 1 to 16 px of 256, accuracy of
        visibility; see `parts.tapvid`. An answer that is not finite is wrong: far from any place,
        and visible where the point is not."""
        finite = np.isfinite(answer).all(axis=-1)
        xy = np.where(finite[..., None], answer[..., :2], np.inf)
        said_visible = np.where(finite, answer[..., 2] > SEEN, ~targets["visible"])
        return tapvid(
            xy, said_visible, targets["points"], targets["visible"], self._counted(targets)
        )

    def weight(self, targets: Arrays) -> np.ndarray:
        """(B,) float64: windows count the same, as TAP-Vid's videos do; 0 where no point is visible
        in a frame that counts."""
        seen = self._counted(targets) & targets["visible"]
        return np.any(seen, axis=(1, 2)).astype(np.float64)

    def of_frames(self, targets: Arrays, from_BT: np.ndarray) -> Arrays:
        """A point counts from the frame on in which it is told: before that nobody can know of
        it."""
        known = super().of_frames(targets, from_BT)
        is_known_BTQ = targets["query_frame"][:, None] <= from_BT[..., None]
        return known | {"points_valid": known["points_valid"] & is_known_BTQ}

    def trivial(self, targets: Arrays, statistics: Arrays) -> np.ndarray:
        """The told place in every frame, always visible."""
        point_B1Q2 = np.take_along_axis(
            targets["points"], targets["query_frame"][:, None, :, None], axis=1
        )
        visible_B1Q1 = np.ones_like(point_B1Q2[..., :1])
        return np.concatenate([point_B1Q2, visible_B1Q1], axis=-1).repeat(
            targets["points"].shape[1], axis=1
        )

    @property
    def baselines(self) -> Mapping[str, Baseline]:
        """likeness: each point goes where tokens are like the one at its told place, and is visible
        where one is."""
        return {
            "likeness": lambda tokens, query, _: follow_points(
                tokens, query["point"], query["frame"]
            )
        }

    def plain(self, answer: np.ndarray, affine_23: np.ndarray) -> dict[str, Any]:
        """points: x, y in the source frame, and whether each is said to be visible."""
        xy_Q2 = unmap_xy(answer[0, :, :2], affine_23)
        return {"points": xy_Q2.round(5).tolist(), "visible": (answer[0, :, 2] > SEEN).tolist()}

    def draw(self, pixels_THWC: np.ndarray, answer: np.ndarray, targets: Arrays) -> np.ndarray:
        """Frames enlarged to at least 384 px, one colour per query: predicted points as discs,
        hollow where said to be occluded; true ones as crosses, where visible. In "first" a query is
        drawn from its own frame on."""
        visible_TQ = targets.get("visible", np.zeros(answer.shape[:2], bool))
        query_frame_Q = targets.get("query_frame", np.zeros(answer.shape[1], np.int64))
        followed_Q = targets["points_valid"].any(0) if targets else np.ones(answer.shape[1], bool)
        frames = []
        for time, pixels in enumerate(pixels_THWC):
            canvas = Canvas(pixels)
            begun_Q = (query_frame_Q <= time) | (self.settings.queries == "strided")
            for number in np.flatnonzero(followed_Q & begun_Q).tolist():
                x, y, seen = answer[time, number]
                canvas.point(np.array([x, y]), colour(number), hollow=seen <= SEEN)
                if visible_TQ[time, number]:
                    canvas.cross(targets["points"][time, number], colour(number))
            frames.append(canvas.pixels)
        return np.stack(frames)
