"""Trackers that learn nothing: a box or a point goes where tokens are alike, frame by frame.

They are what cached tokens can do by themselves, and so a measure for everything that is trained on
them. What is followed is a mask, the share of every patch that it has. Each token of another frame
asks the tokens of a frame where the mask is known which of them it is most like, and takes over
what those have of it (label propagation, as in arXiv 2006.14613). The place then moves until it
lies beside the centroid of what was taken over as it did where it was told (mean shift, Comaniciu
and Meer, IEEE Transactions on Pattern Analysis and Machine Intelligence 24, 2002): in a video that
stands still, it stands still.

The constants were chosen once, by the boxes of five sequences of DAVIS 2016 (blackswan, camel,
cows, dog, libby): layer 8 of a ViT-Ti/16 at 112 and 224 px, windows of 8 frames at 6 fps. Half or
twice of each scores nearly the same there, and they suited points as they were. `SEEN` is from
points of training clips of the built-in room with the same encoder.

Frames are compared one by one, so that memory is that of P * P cosines for each window. Shape
letters as in `likeness`, and T frames of a window, P = h * w patches.
"""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import is_fake

from pipeline.models.tasks.parts.likeness import (
    box_weights,
    centroid,
    directions,
    near,
    patch_centres,
    sampled,
)

SHARPNESS = 20.0
"""Inverse temperature of the softmax over cosines by which a token asks."""
REACH = 0.15
"""Standard deviation, in sides of the square, of how far a token is thought to have moved."""
SHIFTS = 5
"""Steps of the mean shift."""
SEEN = 0.1
"""Share of the way from the likeness of a frame's average token to 1, beyond which a point is
visible: no cosine, as those of one encoder are all higher than those of another."""
LEAST_VOTE = 1e-6
"""Share that every token has of what is followed, so that a place is known where none is alike."""
LEAST_SPREAD = 1e-6
"""Distance of a frame's average token from a look, below which all of them have that look."""


Memory = dict[str, torch.Tensor]
"""What a tracker knows when the next frame comes, name -> (B, ...): of the same shapes in every
frame."""


def follow_boxes(tokens_BThwD: torch.Tensor, box_BO4: torch.Tensor) -> torch.Tensor:
    """Boxes xyxy of the first frame -> (B, T, O, 4) xyxy, the told ones first.

    A frame asks the first one and the one before it. The window of the mean shift has half a box
    and half a patch as its standard deviation; the size of a box stays.
    """
    grid_hw = tokens_BThwD.shape[2], tokens_BThwD.shape[3]
    far_PP = far_apart(grid_hw, tokens_BThwD.device)
    low_BO2, high_BO2 = box_BO4.float().chunk(2, dim=-1)
    half_BO2 = (high_BO2 - low_BO2) / 2
    first_BPD, *later = (directions(frame.flatten(1, 2)) for frame in tokens_BThwD.unbind(1))
    memory, _ = tell_boxes(first_BPD, (low_BO2 + high_BO2) / 2, half_BO2, far_PP, grid_hw)
    places = [memory["place"]]
    for now_BPD in later:
        memory, _ = next_boxes(now_BPD, memory, far_PP, grid_hw)
        places.append(memory["place"])
    place_BTO2, half_B1O2 = torch.stack(places, dim=1), half_BO2.unsqueeze(1)
    return torch.cat([place_BTO2 - half_B1O2, place_BTO2 + half_B1O2], dim=-1)


def tell_boxes(
    now_BPD: torch.Tensor,
    place_BO2: torch.Tensor,
    half_BO2: torch.Tensor,
    far_PP: torch.Tensor,
    grid_hw: tuple[int, int],
) -> tuple[Memory, torch.Tensor]:
    """The memory after the frame in which boxes are told, by their centres and half their sides,
    and how its tokens, of which `now_BPD` are the directions, asked one another, (B, P, P)."""
    asks_BPP = asked(now_BPD, now_BPD, far_PP)
    own_BOP = carried(box_mask(place_BO2, half_BO2, grid_hw), asks_BPP)
    memory = {
        "first": now_BPD,
        "last": now_BPD,
        "told": place_BO2,
        "place": place_BO2,
        "half": half_BO2,
        "beside": beside(own_BOP, place_BO2, box_window(half_BO2, grid_hw), grid_hw),
    }
    return memory, asks_BPP


def next_boxes(
    now_BPD: torch.Tensor, memory: Memory, far_PP: torch.Tensor, grid_hw: tuple[int, int]
) -> tuple[Memory, tuple[torch.Tensor, torch.Tensor]]:
    """The memory after one frame more, and how its tokens asked those of the told frame and of the
    one before, (B, P, P) each."""
    half_BO2 = memory["half"]
    asks = asked(now_BPD, memory["first"], far_PP), asked(now_BPD, memory["last"], far_PP)
    masks = (box_mask(memory[name], half_BO2, grid_hw) for name in ("told", "place"))
    of_told, of_last = (carried(mask, asks_BPP) for mask, asks_BPP in zip(masks, asks, strict=True))
    place_BO2 = settled(
        (of_told + of_last) / 2,
        memory["place"],
        box_window(half_BO2, grid_hw),
        memory["beside"],
        grid_hw,
    )
    return memory | {"last": now_BPD, "place": place_BO2}, asks


def follow_points(
    tokens_BThwD: torch.Tensor, point_BO2: torch.Tensor, frame_BO: torch.Tensor
) -> torch.Tensor:
    """Places told as `point_BO2`, each in its frame of `frame_BO` -> (B, T, O, 3): x, y, and 1
    where the point is said to be visible, else 0.

    A frame asks the one where a point is told, and starts from the place in the frame before. The
    window of the mean shift has a patch as its standard deviation. A point is visible where the
    token at its place is clearly more like the told one than the frame's tokens are on average.
    """
    grid_hw = tokens_BThwD.shape[2], tokens_BThwD.shape[3]
    far_PP = far_apart(grid_hw, tokens_BThwD.device)
    memory = start_points(point_BO2.float(), frame_BO, tuple(tokens_BThwD.shape[2:]))
    frames = [directions(frame.flatten(1, 2)) for frame in tokens_BThwD.unbind(1)]
    for time, now_BPD in enumerate(frames):
        memory, _ = tell_points(now_BPD, frame_BO == time, memory, far_PP, grid_hw)
    answers = []
    for time, now_BPD in enumerate(frames):
        memory, _ = next_points(now_BPD, memory, far_PP, grid_hw)
        is_here = (frame_BO == time).unsqueeze(-1)
        memory |= {"place": torch.where(is_here, memory["told"], memory["place"])}
        seen = (alike(now_BPD, memory, grid_hw) > SEEN).unsqueeze(-1) | is_here
        answers.append(torch.cat([memory["place"], seen.float()], dim=-1))
    return torch.stack(answers, dim=1)


def start_points(
    point_BO2: torch.Tensor, frame_BO: torch.Tensor, shape_hwD: tuple[int, ...]
) -> Memory:
    """The memory before the first frame, with room for the tokens of S frames in which points are
    told, by `frame_BO`."""
    # Of fake tensors, which are made to count operations, nobody knows how many are alike.
    times_S = frame_BO.flatten()[:1] if is_fake(frame_BO) else frame_BO.unique()
    high, wide, width = shape_hwD
    return {
        "sources": point_BO2.new_zeros(point_BO2.shape[0], len(times_S), high * wide, width),
        "told_in": (frame_BO.unsqueeze(-1) == times_S).to(point_BO2.dtype),
        "told": point_BO2,
        "place": point_BO2,
        "beside": torch.zeros_like(point_BO2),
        "look": point_BO2.new_zeros(*point_BO2.shape[:2], width),
    }


def tell_points(
    now_BPD: torch.Tensor,
    is_here_BO: torch.Tensor,
    memory: Memory,
    far_PP: torch.Tensor,
    grid_hw: tuple[int, int],
) -> tuple[Memory, torch.Tensor]:
    """The memory after a frame in which some points are told (bool), and how its tokens asked one
    another, (B, P, P)."""
    told_BO2, here_BO1 = memory["told"], is_here_BO.unsqueeze(-1)
    asks_BPP = asked(now_BPD, now_BPD, far_PP)
    own_BOP = carried(point_mask(told_BO2, grid_hw), asks_BPP)
    beside_BO2 = beside(own_BOP, told_BO2, point_window(told_BO2, grid_hw), grid_hw)
    look_BOD = directions(sampled(now_BPD.unflatten(1, grid_hw), told_BO2))
    return memory | {
        "sources": with_source(memory["sources"], now_BPD, is_here_BO, memory),
        "beside": torch.where(here_BO1, beside_BO2, memory["beside"]),
        "look": torch.where(here_BO1, look_BOD, memory["look"]),
    }, asks_BPP


def next_points(
    now_BPD: torch.Tensor, memory: Memory, far_PP: torch.Tensor, grid_hw: tuple[int, int]
) -> tuple[Memory, torch.Tensor]:
    """The memory after one frame more, and how its tokens asked those of the S frames in which
    points are told, (B, P, S * P)."""
    told_BO2 = memory["told"]
    asks = asked_of_sources(now_BPD, memory["sources"], far_PP)
    votes_BOP = carried(told_masks(memory, grid_hw), asks)
    window_BO2 = point_window(told_BO2, grid_hw)
    place_BO2 = settled(votes_BOP, memory["place"], window_BO2, memory["beside"], grid_hw)
    return memory | {"place": place_BO2}, asks


def with_source(
    sources_BSPK: torch.Tensor, now_BPK: torch.Tensor, is_here_BO: torch.Tensor, memory: Memory
) -> torch.Tensor:
    """The tokens of the S frames, with those of one in which points are told (bool)."""
    is_source_BS = (memory["told_in"].bool() & is_here_BO.unsqueeze(-1)).any(1)
    return torch.where(is_source_BS[..., None, None], now_BPK.unsqueeze(1), sources_BSPK)


def asked_of_sources(
    now_BPK: torch.Tensor, sources_BSPK: torch.Tensor, far_PP: torch.Tensor
) -> torch.Tensor:
    """(B, P, S * P): as `asked`, each of S frames by itself."""
    asks_BSPP = asked(now_BPK.unsqueeze(1), sources_BSPK, far_PP)
    return asks_BSPP.transpose(1, 2).flatten(2)


def told_masks(memory: Memory, grid_hw: tuple[int, int]) -> torch.Tensor:
    """(B, O, S * P): the mask of every point in the frame in which it is told, 0 in others."""
    mask_BOP = point_mask(memory["told"], grid_hw)
    return (memory["told_in"].unsqueeze(-1) * mask_BOP.unsqueeze(2)).flatten(2)


def alike(now_BPD: torch.Tensor, memory: Memory, grid_hw: tuple[int, int]) -> torch.Tensor:
    """(B, O): how far the look of a point's place is from that of the average token, 0, to that of
    the told place, 1."""
    here_BOD = directions(sampled(now_BPD.unflatten(1, grid_hw), memory["place"]))
    here_BO = (here_BOD * memory["look"]).sum(-1)
    average_BO = (memory["look"] @ now_BPD.mean(1).unsqueeze(-1)).squeeze(-1)
    return (here_BO - average_BO) / (1 - average_BO).clamp(min=LEAST_SPREAD)


def far_apart(grid_hw: tuple[int, int], device: torch.device | None = None) -> torch.Tensor:
    """(P, P): what is taken from the logits for the way between two patches."""
    centres_P2 = patch_centres(grid_hw, device).flatten(0, 1)
    return torch.cdist(centres_P2, centres_P2).square() / (2 * REACH**2)


def patch_size(grid_hw: tuple[int, int], device: torch.device | None = None) -> torch.Tensor:
    """(2,): width and height of a patch."""
    high, wide = grid_hw
    return torch.tensor([1 / wide, 1 / high], device=device)


def box_window(half_BO2: torch.Tensor, grid_hw: tuple[int, int]) -> torch.Tensor:
    """(B, O, 2): standard deviations of the window around a box."""
    return half_BO2.clamp(min=0) + patch_size(grid_hw, half_BO2.device) / 2


def point_window(xy_BO2: torch.Tensor, grid_hw: tuple[int, int]) -> torch.Tensor:
    """(B, O, 2): standard deviations of the window around a point."""
    return patch_size(grid_hw, xy_BO2.device).expand_as(xy_BO2)


def box_mask(
    place_BO2: torch.Tensor, half_BO2: torch.Tensor, grid_hw: tuple[int, int]
) -> torch.Tensor:
    """(B, O, P): the share of every patch in a box."""
    box_BO4 = torch.cat([place_BO2 - half_BO2, place_BO2 + half_BO2], dim=-1)
    return box_weights(box_BO4, grid_hw).flatten(2)


def point_mask(xy_BO2: torch.Tensor, grid_hw: tuple[int, int]) -> torch.Tensor:
    """(B, O, P): weights by which `sampled` reads the patches."""
    patches = grid_hw[0] * grid_hw[1]
    one_of_each = torch.eye(patches, device=xy_BO2.device).unflatten(0, grid_hw)
    return sampled(one_of_each.expand(xy_BO2.shape[0], -1, -1, -1), xy_BO2)


def asked(now_BPD: torch.Tensor, then_BPD: torch.Tensor, far_PP: torch.Tensor) -> torch.Tensor:
    """(B, P, P): what every token of the frame `now` takes over from each of the frame `then`, in
    shares that sum to 1; both are directions."""
    return (SHARPNESS * now_BPD @ then_BPD.transpose(-1, -2) - far_PP).softmax(-1)


def carried(mask_BOP: torch.Tensor, asks_BPP: torch.Tensor) -> torch.Tensor:
    """(B, O, P): the mask of one frame as the tokens of another one take it over."""
    return mask_BOP @ asks_BPP.transpose(1, 2)


def beside(
    mask_BOP: torch.Tensor, xy_BO2: torch.Tensor, sigma_BO2: torch.Tensor, grid_hw: tuple[int, int]
) -> torch.Tensor:
    """(B, O, 2): centroid of a mask as seen from a place, in a Gaussian window around it."""
    logits_BOhw = (mask_BOP + LEAST_VOTE).log().unflatten(2, grid_hw)
    return centroid(logits_BOhw + near(xy_BO2, sigma_BO2, grid_hw)) - xy_BO2


def settled(
    mask_BOP: torch.Tensor,
    xy_BO2: torch.Tensor,
    sigma_BO2: torch.Tensor,
    beside_BO2: torch.Tensor,
    grid_hw: tuple[int, int],
) -> torch.Tensor:
    """The place near `xy_BO2` beside which the mask has its centroid at `beside_BO2`."""
    for _ in range(SHIFTS):
        xy_BO2 = xy_BO2 + beside(mask_BOP, xy_BO2, sigma_BO2, grid_hw) - beside_BO2
    return xy_BO2
