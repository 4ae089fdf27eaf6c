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

from pipeline.models.tasks.parts.likeness import (
    box_weights,
    centroid,
    directions,
    likeness,
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


def follow_boxes(tokens_BThwD: torch.Tensor, box_BO4: torch.Tensor) -> torch.Tensor:
    """Boxes xyxy of the first frame -> (B, T, O, 4) xyxy, the told ones first.

    A frame asks the first one and the one before it. The window of the mean shift has half a box
    and half a patch as its standard deviation; the size of a box stays.
    """
    grid_hw = tokens_BThwD.shape[2], tokens_BThwD.shape[3]
    far_PP = far_apart(grid_hw, tokens_BThwD.device)
    low_BO2, high_BO2 = box_BO4.float().chunk(2, dim=-1)
    place_BO2, half_BO2 = (low_BO2 + high_BO2) / 2, (high_BO2 - low_BO2) / 2
    sigma_BO2 = half_BO2.clamp(min=0) + _patch_size(tokens_BThwD) / 2

    def mask_at(place_BO2: torch.Tensor) -> torch.Tensor:
        box = torch.cat([place_BO2 - half_BO2, place_BO2 + half_BO2], dim=-1)
        return box_weights(box, grid_hw).flatten(2)

    first_BPD = before_BPD = directions(tokens_BThwD[:, 0].flatten(1, 2))
    told_mask = mask = mask_at(place_BO2)
    own_mask = _votes(first_BPD, first_BPD, told_mask, far_PP)
    beside_BO2 = beside(own_mask, place_BO2, sigma_BO2, grid_hw)
    places = [place_BO2]
    for frame_BhwD in tokens_BThwD.unbind(1)[1:]:
        now_BPD = directions(frame_BhwD.flatten(1, 2))
        votes = _votes(now_BPD, first_BPD, told_mask, far_PP)
        votes = (votes + _votes(now_BPD, before_BPD, mask, far_PP)) / 2
        place_BO2 = settled(votes, place_BO2, sigma_BO2, beside_BO2, grid_hw)
        before_BPD, mask = now_BPD, mask_at(place_BO2)
        places.append(place_BO2)
    place_BTO2, half_B1O2 = torch.stack(places, dim=1), half_BO2.unsqueeze(1)
    return torch.cat([place_BTO2 - half_B1O2, place_BTO2 + half_B1O2], dim=-1)


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
    told_BO2 = point_BO2.float()
    sigma_BO2 = _patch_size(tokens_BThwD).expand_as(told_BO2)
    told_mask = _bilinear(told_BO2, grid_hw)
    sources = [
        (directions(tokens_BThwD[:, index]), (frame_BO == index).unsqueeze(-1))
        for index in frame_BO.unique().tolist()
    ]
    beside_BO2 = torch.zeros_like(told_BO2)
    look_BOD = tokens_BThwD.new_zeros(
        (*frame_BO.shape, tokens_BThwD.shape[-1]), dtype=torch.float32
    )
    for source_BhwD, is_told in sources:
        source_BPD = source_BhwD.flatten(1, 2)
        own_mask = _votes(source_BPD, source_BPD, told_mask, far_PP)
        beside_BO2 = beside_BO2 + is_told * beside(own_mask, told_BO2, sigma_BO2, grid_hw)
        look_BOD = look_BOD + is_told * directions(sampled(source_BhwD, told_BO2))
    place_BO2, answers = told_BO2, []
    for time, frame_BhwD in enumerate(tokens_BThwD.unbind(1)):
        now_BhwD = directions(frame_BhwD)
        votes = torch.zeros_like(told_mask)
        for source_BhwD, is_told in sources:
            now_BPD, source_BPD = now_BhwD.flatten(1, 2), source_BhwD.flatten(1, 2)
            votes = votes + is_told * _votes(now_BPD, source_BPD, told_mask, far_PP)
        place_BO2 = settled(votes, place_BO2, sigma_BO2, beside_BO2, grid_hw)
        is_here = (frame_BO == time).unsqueeze(-1)
        place_BO2 = torch.where(is_here, told_BO2, place_BO2)
        here_BO = (directions(sampled(now_BhwD, place_BO2)) * look_BOD).sum(-1)
        average_BO = likeness(now_BhwD, look_BOD).mean((-2, -1))
        seen_BO1 = (here_BO > average_BO + SEEN * (1 - average_BO)).unsqueeze(-1) | is_here
        answers.append(torch.cat([place_BO2, seen_BO1.float()], dim=-1))
    return torch.stack(answers, dim=1)


def far_apart(grid_hw: tuple[int, int], device: torch.device) -> torch.Tensor:
    """(P, P): what is taken from the logits for the way between two patches."""
    centres_P2 = patch_centres(grid_hw, device).flatten(0, 1)
    return torch.cdist(centres_P2, centres_P2).square() / (2 * REACH**2)


def _patch_size(tokens_BThwD: torch.Tensor) -> torch.Tensor:
    """(2,): width and height of a patch."""
    high, wide = tokens_BThwD.shape[2:4]
    return torch.tensor([1 / wide, 1 / high], device=tokens_BThwD.device)


def _bilinear(xy_BO2: torch.Tensor, grid_hw: tuple[int, int]) -> torch.Tensor:
    """(B, O, P): weights by which `sampled` reads the patches."""
    patches = grid_hw[0] * grid_hw[1]
    one_of_each = torch.eye(patches, device=xy_BO2.device).unflatten(0, grid_hw)
    return sampled(one_of_each.expand(len(xy_BO2), -1, -1, -1), xy_BO2)


def _votes(
    now_BPD: torch.Tensor, then_BPD: torch.Tensor, mask_BOP: torch.Tensor, far_PP: torch.Tensor
) -> torch.Tensor:
    """(B, O, P): the mask of the frame `then` as the tokens of the frame `now` take it over; both
    are directions."""
    logits_BPP = SHARPNESS * now_BPD @ then_BPD.transpose(1, 2) - far_PP
    return mask_BOP @ logits_BPP.softmax(-1).transpose(1, 2)


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
