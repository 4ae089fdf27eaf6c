"""Readouts whose training begins at a tracker that learns nothing: boxes and points go where the
cached tokens of the frames are alike, as in `trackers`, and what is learnt leads away from there.

The tracker carries a mask from frame to frame. What is learnt sees the *outline* of what was
carried, compared with that of the told mask carried to its own frame: how much there is, how far it
spreads, and how places now lie to the places they came from, on the cached tokens and on those that
the temporal module made of them. These few numbers are neither tokens nor places in the frame; both
axes have the same weights, and mirrored outlines give mirrored steps. So what is learnt of few
objects, or of rendered ones, holds of others. The tracker goes its own way: no step,
right or wrong, changes what it does next.

Shape letters: B batch, O objects or points, N tokens of a frame, P = h * w patches, the last P of
the N; Q tokens that are asked, which are those of one frame or of several; D width of the cached
tokens, K that of the temporal outputs, whose directions are called keys. The axis of size 2 is x,
y.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import nn

from pipeline.models.tasks.contract import PATCHES, Query, StreamingReadout
from pipeline.models.tasks.parts.followers import (
    FollowingSettings,
    PlaceAttention,
    looks,
    point_logits,
    updated_look,
)
from pipeline.models.tasks.parts.likeness import directions, near, patch_centres
from pipeline.models.tasks.parts.search import zero_linear
from pipeline.models.tasks.parts.trackers import (
    LEAST_VOTE,
    alike,
    asked,
    asked_of_sources,
    box_mask,
    box_window,
    carried,
    far_apart,
    next_boxes,
    next_points,
    patch_size,
    point_mask,
    point_window,
    start_points,
    tell_boxes,
    tell_points,
    told_masks,
    with_source,
)
from pipeline.records import TokenShape

WINDOWS = 2.5
"""Standard deviations of the window in which an outline is taken, in those of the tracker's."""
LEAST_MASK = 1e-3
"""Share of a mask below which it makes no difference how much was carried."""
NOTHING = 1e-12
"""Share of a mask that every token has, also where the window has none of the grid."""
SCALE, LIMIT = 4.0, 2.0
"""What differences of outlines are multiplied by, and limited to, for the network."""
GROWTH, MOST_GROWTH = 0.25, 1.5
"""Logarithm of the growth of a box's side since it was told, for an answer of 1, and at most."""


class Outline(NamedTuple):
    """What a carried mask looks like around a place, for each axis."""

    even: torch.Tensor
    """(B, O, 2, 4): logarithms of its sum, of how far it spreads and of how far the places that it
    came from do, and how many of the latter's steps go with one of its own."""
    odd: torch.Tensor
    """(B, O, 2, 2): its centroid beside the place, and that of where it came from beside the told
    place, in windows."""

    def beyond(self, own_BO26: torch.Tensor) -> Outline:
        """What is not so in the outline `own_BO26`, which is `flat`."""
        even, odd = own_BO26.split([4, 2], dim=-1)
        compared = (SCALE * (self.even - even)).clamp(-LIMIT, LIMIT)
        return Outline(compared, (self.odd - odd).clamp(-1, 1))

    @property
    def flat(self) -> torch.Tensor:
        """(B, O, 2, 6)."""
        return torch.cat(self, dim=-1)


def outline(
    mask_BOQ: torch.Tensor,
    asks_BPQ: torch.Tensor,
    came_from_BO2: torch.Tensor,
    place_BO2: torch.Tensor,
    window_BO2: torch.Tensor,
    grid_hw: tuple[int, int],
) -> Outline:
    """The outline around `place_BO2` of a mask of tokens that were `asked`, with its places beside
    `came_from_BO2`."""
    centres_P2 = patch_centres(grid_hw, mask_BOQ.device).flatten(0, 1)
    at_Q2 = centres_P2.repeat(mask_BOQ.shape[-1] // len(centres_P2), 1)
    moments = torch.cat([mask_BOQ, *(mask_BOQ * at_Q for at_Q in at_Q2.unbind(-1))], dim=1)
    three = (3, mask_BOQ.shape[1])
    carried_BOP, *places = carried(moments, asks_BPQ).unflatten(1, three).unbind(1)
    known_BOP = carried_BOP + LEAST_VOTE
    beside_BOP2 = torch.stack(places, dim=-1) - (
        carried_BOP.unsqueeze(-1) * came_from_BO2.unsqueeze(2)
    )
    from_BOP2 = came_from_BO2.unsqueeze(2) + beside_BOP2 / known_BOP.unsqueeze(-1)
    in_window_BOP = near(place_BO2, WINDOWS * window_BO2, grid_hw).flatten(2).exp()
    share_BOP1 = (in_window_BOP * known_BOP).clamp(min=NOTHING).unsqueeze(-1)
    total_BO2 = share_BOP1.sum(2)
    share_BOP1 = share_BOP1 / total_BO2.unsqueeze(2)

    def mean(what_BOP2: torch.Tensor) -> torch.Tensor:
        return (share_BOP1 * what_BOP2).sum(2)

    now_BO2, then_BO2 = mean(centres_P2.expand_as(from_BOP2)), mean(from_BOP2)
    away_BOP2, came_BOP2 = centres_P2 - now_BO2.unsqueeze(2), from_BOP2 - then_BO2.unsqueeze(2)
    # No mask is known better than by parts of a patch.
    least_2 = patch_size(grid_hw, mask_BOQ.device).square() / 12
    spread, came = (mean(what.square()) + least_2 for what in (away_BOP2, came_BOP2))
    even = [
        (total_BO2 + LEAST_MASK).log().expand_as(spread),
        spread.log() / 2,
        came.log() / 2,
        mean(away_BOP2 * came_BOP2) / spread,
    ]
    odd = [(now_BO2 - place_BO2) / window_BO2, (then_BO2 - came_from_BO2) / window_BO2]
    return Outline(torch.stack(even, dim=-1), torch.stack(odd, dim=-1))


class OutlineReader(nn.Module):
    """Outlines of places -> steps (B, O, 2) in windows, and `outputs` numbers of each axis,
    (B, O, 2, outputs); all 0 before training."""

    def __init__(self, outlines: int, known: int, *, hidden: int, outputs: int) -> None:
        """`outlines` are compared with those of the told mask; `known` numbers of each axis are
        there beside them."""
        super().__init__()
        self.steps = 2 * outlines
        self.network = nn.Sequential(
            nn.Linear(2 * 4 * outlines + known, hidden),
            nn.GELU(),
            zero_linear(hidden, self.steps + outputs),
        )

    def forward(
        self, outlines: list[Outline], known_BO2E: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        even = torch.cat([outline.even for outline in outlines], dim=-1)
        odd = torch.cat([outline.odd for outline in outlines], dim=-1)
        said = self.network(torch.cat([even, even.flip(-2), known_BO2E], dim=-1))
        shares, numbers = said.split([self.steps, said.shape[-1] - self.steps], dim=-1)
        return (shares * odd).sum(-1), numbers


class Tracked(StreamingReadout):
    """What boxes and points that begin at a tracker have in common. In float32, also under
    autocast."""

    far_PP: torch.Tensor

    def __init__(
        self,
        width: int,
        settings: FollowingSettings,
        shape: TokenShape,
        *,
        outlines: int,
        known: int,
        outputs: int,
    ) -> None:
        """`outlines` of the cached tokens, and as many of the temporal outputs of `width`; the
        others as for `OutlineReader`."""
        super().__init__()
        self.shape, self.width, self.settings = shape, width, settings
        self.reader = OutlineReader(2 * outlines, known, hidden=settings.hidden, outputs=outputs)
        self.attention = PlaceAttention(width, settings, 4) if settings.reads == "both" else None
        self.register_buffer("far_PP", far_apart(shape.grid_hw), persistent=False)

    def step(self, x_BND: torch.Tensor, state: Query) -> tuple[torch.Tensor, Query]:
        with torch.autocast(x_BND.device.type, enabled=False):
            x_BND, now_BPD = x_BND.to(self.far_PP.dtype), directions(state[PATCHES])
            keys_BPK = directions(x_BND[:, x_BND.shape[1] - self.shape.patch_tokens :])
            memory = {name: part for name, part in state.items() if name != PATCHES}
            return self.follow(now_BPD, keys_BPK, x_BND, memory)

    @abstractmethod
    def follow(
        self, now_BPD: torch.Tensor, keys_BPK: torch.Tensor, x_BND: torch.Tensor, memory: Query
    ) -> tuple[torch.Tensor, Query]:
        """As `step`, with the directions of the cached patches and of the temporal outputs."""

    def attended(
        self, x_BND: torch.Tensor, place_BO4: torch.Tensor, begins_BO: torch.Tensor, memory: Query
    ) -> tuple[torch.Tensor, Query]:
        """What attention says of places cxcywh, (B, O, 4), zeros without it, and the memory of
        their looks."""
        if self.attention is None:
            return torch.zeros_like(place_BO4), memory
        if "look_read" in memory:
            new = looks(x_BND, place_BO4, self.shape.grid_hw)
            look = torch.where(begins_BO.unsqueeze(-1), new, memory["look_read"])
            memory = memory | {"look_read": look}
        return self.attention(x_BND, place_BO4, memory.get("look_read")), memory

    def start_look(self, place_BO2: torch.Tensor) -> Query:
        """The looks that attention is told, before the first frame."""
        if self.settings.look == "none":
            return {}
        return {"look_read": place_BO2.new_zeros(*place_BO2.shape[:2], self.width)}

    def update_look(self, x_BND: torch.Tensor, place_BO4: torch.Tensor, memory: Query) -> Query:
        """The memory after a frame whose answer was `place_BO4`."""
        if self.settings.look != "updated":
            return memory
        look = updated_look(memory["look_read"], x_BND, place_BO4, self.shape.grid_hw)
        return memory | {"look_read": look}

    def known(self, place_BO2: torch.Tensor, window_BO2: torch.Tensor) -> torch.Tensor:
        """(B, O, 2, 2): how large a window is, in patches, and how many lie between the place and
        the nearer edge of the square."""
        patch_2 = patch_size(self.shape.grid_hw, place_BO2.device)
        room_BO2 = (torch.minimum(place_BO2, 1 - place_BO2) / window_BO2).clamp(0.0, LIMIT)
        return torch.stack([(window_BO2 / patch_2).log(), room_BO2], dim=-1)


class TrackedBoxes(Tracked):
    """Boxes cxcywh (B, T, O, 4) of objects told as `box` (B, O, 4), in the first frame of a stream:
    before training those of `trackers.follow_boxes`."""

    def __init__(self, width: int, settings: FollowingSettings, shape: TokenShape) -> None:
        super().__init__(width, settings, shape, outlines=2, known=2, outputs=1)

    def start(self, query: Query) -> Query:
        """The memory of the tracker, keys of the same frames, outlines of the told boxes in their
        own, and whether the first frame is past."""
        centre, size = query["box"].float().chunk(2, dim=-1)
        batch, objects = centre.shape[:2]
        blank_BPD = centre.new_zeros(batch, self.shape.patch_tokens, self.shape.width)
        blank_BPK = centre.new_zeros(batch, self.shape.patch_tokens, self.width)
        return {
            "first": blank_BPD,
            "last": blank_BPD,
            "told": centre,
            "place": centre,
            "half": size / 2,
            "beside": torch.zeros_like(centre),
            "first_keys": blank_BPK,
            "last_keys": blank_BPK,
            "own": centre.new_zeros(batch, objects, 2, 2, 6),
            "begun": torch.zeros(batch, dtype=torch.bool, device=centre.device),
        } | self.start_look(centre)

    def follow(
        self, now_BPD: torch.Tensor, keys_BPK: torch.Tensor, x_BND: torch.Tensor, memory: Query
    ) -> tuple[torch.Tensor, Query]:
        grid_hw, begins_B = self.shape.grid_hw, ~memory["begun"]
        told_BO2, half_BO2 = memory["told"], memory["half"]
        window_BO2 = box_window(half_BO2, grid_hw)
        told_mask = box_mask(told_BO2, half_BO2, grid_hw)
        told, asks_own = tell_boxes(now_BPD, told_BO2, half_BO2, self.far_PP, grid_hw)
        own = [
            outline(told_mask, asks, told_BO2, told_BO2, window_BO2, grid_hw).flat
            for asks in (asks_own, asked(keys_BPK, keys_BPK, self.far_PP))
        ]
        told |= {"first_keys": keys_BPK, "last_keys": keys_BPK, "own": torch.stack(own, dim=2)}
        memory = memory | {name: where(begins_B, part, memory[name]) for name, part in told.items()}
        last_BO2 = memory["place"]
        last_mask = box_mask(last_BO2, half_BO2, grid_hw)
        memory, asks_cached = next_boxes(now_BPD, memory, self.far_PP, grid_hw)
        place_BO2 = where(begins_B, told_BO2, memory["place"])
        asks_keys = [
            asked(keys_BPK, memory[name], self.far_PP) for name in ("first_keys", "last_keys")
        ]
        outlines = [
            outline(mask, asks, came_from, place_BO2, window_BO2, grid_hw).beyond(own)
            for own, both in zip(memory["own"].unbind(2), (asks_cached, asks_keys), strict=True)
            for mask, asks, came_from in (
                (told_mask, both[0], told_BO2),
                (last_mask, both[1], last_BO2),
            )
        ]
        step, growth = self.reader(outlines, self.known(place_BO2, window_BO2))
        tracked_BO4 = torch.cat([place_BO2, 2 * half_BO2], dim=-1)
        begins_BO = begins_B.unsqueeze(-1).expand(told_BO2.shape[:2])
        attended, memory = self.attended(x_BND, tracked_BO4, begins_BO, memory)
        growth = GROWTH * (growth.squeeze(-1) + attended[..., 2:])
        centre = place_BO2 + (step + attended[..., :2]) * window_BO2
        size = 2 * half_BO2 * growth.clamp(-MOST_GROWTH, MOST_GROWTH).exp()
        box_BO4 = where(begins_B, tracked_BO4, torch.cat([centre, size], dim=-1))
        memory = self.update_look(x_BND, box_BO4.detach(), memory)
        return box_BO4, memory | {
            "place": place_BO2,
            "last_keys": keys_BPK,
            "begun": torch.ones_like(begins_B),
        }


class TrackedPoints(Tracked):
    """(B, T, Q, 4) of points told as `point` (B, Q, 2) in `frame` (B, Q): x, y, logits of
    visibility and uncertainty. From its own frame on a point is, before training, where
    `trackers.follow_points` has it, and said to be visible; before that it stands where it will be
    told."""

    def __init__(self, width: int, settings: FollowingSettings, shape: TokenShape) -> None:
        super().__init__(width, settings, shape, outlines=1, known=3, outputs=2)

    def start(self, query: Query) -> Query:
        """The memory of the tracker, keys of the same frames, outlines of the told points in their
        own, when they are told, and the number of the frame to come."""
        point, frame = query["point"].float(), query["frame"]
        memory = start_points(point, frame, (*self.shape.grid_hw, self.shape.width))
        sources_BSPK = memory["sources"].new_zeros(*memory["sources"].shape[:3], self.width)
        return (
            memory
            | {
                "key_sources": sources_BSPK,
                "own": point.new_zeros(*frame.shape, 2, 2, 6),
                "frame": frame,
                "time": torch.zeros_like(frame[:, :1]),
            }
            | self.start_look(point)
        )

    def follow(
        self, now_BPD: torch.Tensor, keys_BPK: torch.Tensor, x_BND: torch.Tensor, memory: Query
    ) -> tuple[torch.Tensor, Query]:
        grid_hw, time, frame = self.shape.grid_hw, memory["time"], memory["frame"]
        told_BQ2, is_here = memory["told"], memory["frame"] == memory["time"]
        window_BQ2 = point_window(told_BQ2, grid_hw)
        memory, asks_own = tell_points(now_BPD, is_here, memory, self.far_PP, grid_hw)
        own_mask = point_mask(told_BQ2, grid_hw)
        own = [
            outline(own_mask, asks, told_BQ2, told_BQ2, window_BQ2, grid_hw).flat
            for asks in (asks_own, asked(keys_BPK, keys_BPK, self.far_PP))
        ]
        memory |= {
            "own": where(is_here, torch.stack(own, dim=2), memory["own"]),
            "key_sources": with_source(memory["key_sources"], keys_BPK, is_here, memory),
        }
        memory, asks_cached = next_points(now_BPD, memory, self.far_PP, grid_hw)
        memory["place"] = place_BQ2 = where(frame < time, memory["place"], told_BQ2)
        asks_keys = asked_of_sources(keys_BPK, memory["key_sources"], self.far_PP)
        masks_BQP = told_masks(memory, grid_hw)
        outlines = [
            outline(masks_BQP, asks, told_BQ2, place_BQ2, window_BQ2, grid_hw).beyond(own)
            for own, asks in zip(memory["own"].unbind(2), (asks_cached, asks_keys), strict=True)
        ]
        alike_BQ2 = alike(now_BPD, memory, grid_hw).unsqueeze(-1).expand_as(place_BQ2)
        known = self.known(place_BQ2, window_BQ2)
        known = torch.cat([known, alike_BQ2.unsqueeze(-1)], dim=-1)
        step, logits = self.reader(outlines, known)
        tracked_BQ4 = torch.cat([place_BQ2, torch.zeros_like(place_BQ2)], dim=-1)
        attended, memory = self.attended(x_BND, tracked_BQ4, is_here, memory)
        moved_BQ2 = place_BQ2 + (step + attended[..., :2]) * window_BQ2
        xy_BQ2 = where(frame < time, moved_BQ2, told_BQ2)
        place_BQ4 = torch.cat([xy_BQ2.detach(), torch.zeros_like(xy_BQ2)], dim=-1)
        memory = self.update_look(x_BND, place_BQ4, memory)
        logits_BQ2 = point_logits(logits.mean(2) + attended[..., 2:], is_here)
        return torch.cat([xy_BQ2, logits_BQ2], dim=-1), memory | {"time": time + 1}


def where(condition: torch.Tensor, yes: torch.Tensor, no: torch.Tensor) -> torch.Tensor:
    """As `torch.where`, with a condition of the first axes."""
    axes = yes.ndim - condition.ndim
    return torch.where(condition.reshape(*condition.shape, *[1] * axes), yes, no)
