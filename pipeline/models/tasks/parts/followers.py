"""Readouts that follow a place: every frame's answer is a step away from the last one, and training
begins at an answer that needs none.

Before training a place stands still. Where a place is told, it is the answer itself; before that it
stands still too. Readouts that begin at a tracker are in `tracked`.

Shape letters: B batch, O objects or points, N tokens of a frame, D their width, R the readout's.
Places are cxcywh in the square.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import nn

from pipeline.models.tasks.contract import Query, StreamingReadout
from pipeline.models.tasks.parts.likeness import box_weights, pooled
from pipeline.models.tasks.parts.query_readout import (
    FourierFeatures,
    QueryDecoder,
    TrackingSettings,
    feature_mlp,
    token_projection,
)
from pipeline.models.tasks.parts.search import Search, half_sides, patch_grid, zero_linear
from pipeline.models.tasks.parts.trackers import patch_size
from pipeline.records import TokenShape

LOOK_KEPT = 0.9
"""Share of the look of an object that an update keeps."""
GROWTH, FASTEST_GROWTH = 0.25, 0.5
"""Logarithm of the growth of a box's side for an answer of 1, and at most in one frame."""
SMALLEST = 0.02
"""Side below which no followed box shrinks, of the square."""
SURE = 10.0
"""Logit of the visibility, and minus that of the uncertainty, in the frame where a point is
told."""
VISIBLE = 2.0
"""Logit of the visibility of a point that stands still, where training begins."""


class FollowingSettings(TrackingSettings):
    """These settings are what both kinds of tracking readout let a recipe choose beyond the
    paper."""

    start: Literal["absolute", "still", "likeness"] = "absolute"
    """Where training begins. absolute: nowhere, every frame's place is said anew, as in the paper;
    still: at a place that stands still, answers are steps away from the last one; likeness: at the
    tracker that learns nothing and follows the cached tokens (the baseline `likeness`), answers are
    steps away from its places, and for boxes how much they grew. With much less data than the
    paper's, absolute stays below a place that stands still."""
    reads: Literal["tokens", "likeness", "both"] = "tokens"
    """What an answer is made of. tokens: attention over all tokens of the frame, as in the paper;
    likeness: how alike the tokens around the last place are to those of the told and the last one,
    as maps (start still) or as the outline of what the tracker carried (start likeness), and
    nothing of what they are or where, so that it holds of other objects; both: their sum. likeness
    and both want a start other than absolute, a start likeness wants them."""
    look: Literal["none", "told", "updated"] = "none"
    """What the attention is told of the object beside its place: nothing, as in the paper; the
    tokens under the told place, averaged; or these, moved a tenth towards the tokens under every
    later answer."""

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.start == "absolute" and (self.reads != "tokens" or self.look != "none"):
            raise ValueError('reads and look want start = "still" or "likeness"')
        if self.start == "likeness" and self.reads == "tokens":
            raise ValueError('start = "likeness" wants reads = "likeness" or "both"')
        if self.look != "none" and self.reads == "likeness":
            raise ValueError('look wants reads = "tokens" or "both"')
        return self


class PlaceAttention(nn.Module):
    """Places and looks of objects ask all tokens of a frame for `outputs` numbers, 0 before
    training."""

    def __init__(self, width: int, settings: FollowingSettings, outputs: int) -> None:
        super().__init__()
        read = settings.readout_width
        self.tokens = token_projection(width, read)
        self.fourier = FourierFeatures()
        self.place = nn.Sequential(
            feature_mlp(4, settings.hidden), nn.GELU(), nn.Linear(settings.hidden, read)
        )
        self.look = nn.Linear(width, read) if settings.look != "none" else None
        self.decoder = QueryDecoder(read, settings.heads)
        self.head = nn.Sequential(nn.Linear(read, read), nn.GELU(), zero_linear(read, outputs))

    def forward(
        self, x_BND: torch.Tensor, place_BO4: torch.Tensor, look_BOD: torch.Tensor | None
    ) -> torch.Tensor:
        query_BOR = self.place(self.fourier(place_BO4))
        if self.look is not None:
            query_BOR = query_BOR + self.look(look_BOD)
        read = self.decoder(query_BOR.unsqueeze(2), self.tokens(x_BND)).squeeze(2)
        with torch.autocast(x_BND.device.type, enabled=False):
            numbers: torch.Tensor = self.head(read.to(self.head[0].weight.dtype))
        return numbers


class Follower(nn.Module):
    """Says numbers about each object; remembers what lay around its places."""

    def __init__(
        self, width: int, settings: FollowingSettings, shape: TokenShape, outputs: int
    ) -> None:
        super().__init__()
        self.width, self.settings, self.grid_hw = width, settings, shape.grid_hw
        reads = settings.reads
        self.attention = None if reads == "likeness" else PlaceAttention(width, settings, outputs)
        self.search = (
            None
            if reads == "tokens"
            else Search(
                width,
                shape.grid_hw,
                keys=min(width, settings.readout_width),
                hidden=settings.hidden,
                outputs=outputs,
            )
        )

    def start(self, told_BO4: torch.Tensor) -> Query:
        """What is remembered before the first frame."""
        memory = {"place": told_BO4}
        if self.search is not None:
            memory |= self.search.start(told_BO4)
        if self.settings.look != "none":
            memory["look"] = told_BO4.new_zeros(*told_BO4.shape[:2], self.width)
        return memory

    def forward(
        self,
        x_BND: torch.Tensor,
        memory: Query,
        begins_BO: torch.Tensor,
    ) -> tuple[torch.Tensor, Query]:
        """Tokens of one frame -> numbers (B, O, outputs), of which the first two are a step in
        halves of the search's sides, and the memory as it is where objects begin (bool), told in
        this very frame."""
        place, numbers = memory["place"], []
        if self.attention is not None:
            if "look" in memory:
                new = looks(x_BND, place, self.grid_hw)
                memory |= {"look": torch.where(begins_BO.unsqueeze(-1), new, memory["look"])}
            numbers.append(self.attention(x_BND, place, memory.get("look")))
        if self.search is not None:
            said, first = self.search.find(self.search.key_maps(x_BND), place, memory, begins_BO)
            numbers.append(said)
            memory |= {"first": first}
        return torch.stack(numbers).sum(0), memory

    def moved(self, place_BO4: torch.Tensor, step_BO2: torch.Tensor) -> torch.Tensor:
        """The centres (B, O, 2) of places after a step."""
        patch_2 = patch_size(self.grid_hw, place_BO4.device)
        return place_BO4[..., :2] + step_BO2 * half_sides(place_BO4, patch_2)

    def remember(self, x_BND: torch.Tensor, place_BO4: torch.Tensor, memory: Query) -> Query:
        """The memory after a frame whose answer was `place_BO4`."""
        memory |= {"place": place_BO4}
        if self.search is not None:
            memory |= {"last": self.search.samples(self.search.key_maps(x_BND), place_BO4)}
        if self.settings.look == "updated":
            memory |= {"look": updated_look(memory["look"], x_BND, place_BO4, self.grid_hw)}
        return memory


def looks(x_BND: torch.Tensor, place_BO4: torch.Tensor, grid_hw: tuple[int, int]) -> torch.Tensor:
    """The tokens under every place, averaged: (B, O, D)."""
    centre, size = place_BO4.chunk(2, dim=-1)
    corners_BO4 = torch.cat([centre - size / 2, centre + size / 2], dim=-1)
    weights_BOhw = box_weights(corners_BO4, grid_hw)
    return pooled(patch_grid(x_BND, grid_hw), weights_BOhw).to(x_BND.dtype)


def updated_look(
    look_BOD: torch.Tensor,
    x_BND: torch.Tensor,
    place_BO4: torch.Tensor,
    grid_hw: tuple[int, int],
) -> torch.Tensor:
    """The look of objects, moved towards the tokens under an answer."""
    return LOOK_KEPT * look_BOD + (1 - LOOK_KEPT) * looks(x_BND, place_BO4, grid_hw)


class FollowedBoxes(StreamingReadout):
    """Boxes cxcywh (B, T, O, 4) of objects told as `box` (B, O, 4), in the first frame of a stream.

    No gradient flows from one frame's box into the next one's.
    """

    def __init__(self, width: int, settings: FollowingSettings, shape: TokenShape) -> None:
        super().__init__()
        self.follower = Follower(width, settings, shape, outputs=4)

    def start(self, query: Query) -> Query:
        """The memory of the follower, and whether the first frame is past."""
        box_BO4 = query["box"]
        return self.follower.start(box_BO4) | {
            "begun": torch.zeros_like(box_BO4[..., 0], dtype=torch.bool)
        }

    def step(self, x_BND: torch.Tensor, state: Query) -> tuple[torch.Tensor, Query]:
        last_BO4, begins_BO = state["place"], ~state["begun"]
        numbers_BO4, state = self.follower(x_BND, state, begins_BO)
        step, growth = numbers_BO4.chunk(2, dim=-1)
        growth = (GROWTH * growth).clamp(-FASTEST_GROWTH, FASTEST_GROWTH)
        size = (last_BO4[..., 2:] * growth.exp()).clamp(min=SMALLEST)
        moved_BO4 = torch.cat([self.follower.moved(last_BO4, step), size], dim=-1)
        box_BO4 = torch.where(begins_BO.unsqueeze(-1), last_BO4, moved_BO4)
        state = self.follower.remember(x_BND, box_BO4.detach(), state)
        return box_BO4, state | {"begun": torch.ones_like(begins_BO)}


class FollowedPoints(StreamingReadout):
    """(B, T, Q, 4) of points told as `point` (B, Q, 2) in `frame` (B, Q): x, y, logits of
    visibility and uncertainty.

    In frames before its own a point stands where it will be told. No gradient flows from one
    frame's place into the next one's.
    """

    def __init__(self, width: int, settings: FollowingSettings, shape: TokenShape) -> None:
        super().__init__()
        self.follower = Follower(width, settings, shape, outputs=4)

    def start(self, query: Query) -> Query:
        """The memory of the follower, when the points are told, and the number of the frame to
        come."""
        told_BQ4 = torch.cat([query["point"], torch.zeros_like(query["point"])], dim=-1)
        return self.follower.start(told_BQ4) | {
            "frame": query["frame"],
            "time": torch.zeros_like(query["frame"][:, :1]),
        }

    def step(self, x_BND: torch.Tensor, state: Query) -> tuple[torch.Tensor, Query]:
        last_BQ4, frame, time = state["place"], state["frame"], state["time"]
        numbers_BQ4, state = self.follower(x_BND, state, frame == time)
        step, logits = numbers_BQ4.chunk(2, dim=-1)
        moved_BQ2 = self.follower.moved(last_BQ4, step)
        xy_BQ2 = torch.where((frame < time).unsqueeze(-1), moved_BQ2, last_BQ4[..., :2])
        place_BQ4 = torch.cat([xy_BQ2.detach(), last_BQ4[..., 2:]], dim=-1)
        state = self.follower.remember(x_BND, place_BQ4, state)
        answer = torch.cat([xy_BQ2, point_logits(logits, frame == time)], dim=-1)
        return answer, state | {"time": time + 1}


def point_logits(logits_BQ2: torch.Tensor, is_told_BQ: torch.Tensor) -> torch.Tensor:
    """Logits of visibility and uncertainty: visible before training, surely so where told."""
    told, start = logits_BQ2.new_tensor([SURE, -SURE]), logits_BQ2.new_tensor([VISIBLE, 0.0])
    return torch.where(is_told_BQ.unsqueeze(-1), told, logits_BQ2 + start)
