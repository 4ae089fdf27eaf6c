"""Trackers without training: they follow what is there, stand still where all does, and never answer with no number."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from pipeline.models.tasks.parts.trackers import (
    LEAST_VOTE,
    REACH,
    SHARPNESS,
    SHIFTS,
    follow_boxes,
    follow_points,
)

SIDE, WIDTH = 8, 64
PATHS = {
    "across": [(2, 1), (3, 1), (4, 1), (5, 1)],
    "down and back": [(1, 0), (1, 2), (2, 3), (1, 2)],
    "still": [(3, 3)] * 4,
}
"""Column and row of a square of 3 x 3 patches, frame by frame."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moving_square(path: list[tuple[int, int]], seed: int = 0) -> torch.Tensor:
    """Tokens (1, T, h, w, D) of a square whose patches all look different, on a ground that looks the same all over."""
    ground, *looks = torch.randn(10, WIDTH, generator=generator(seed))
    frames = []
    for column, row in path:
        frame = ground.expand(SIDE, SIDE, -1).clone()
        frame[row : row + 3, column : column + 3] = torch.stack(looks).unflatten(0, (3, 3))
        frames.append(frame)
    return torch.stack(frames).unsqueeze(0)


def boxes_of(path: list[tuple[int, int]]) -> torch.Tensor:
    """xyxy (1, T, 1, 4)."""
    corner = torch.tensor(path, dtype=torch.float32)
    return (torch.cat([corner, corner + 3], dim=-1) / SIDE)[None, :, None]


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_square_that_moves_is_followed_exactly(path):
    truth = boxes_of(path)
    followed = follow_boxes(moving_square(path), truth[:, 0])
    assert (followed - truth).abs().max() < 1e-3 / SIDE


@pytest.mark.parametrize("told", range(4))
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_point_is_followed_both_ways_from_the_frame_in_which_it_is_told(path, told):
    truth = boxes_of(path)[..., :2] + torch.tensor([1.5, 0.5]) / SIDE
    frame = torch.tensor([[told]])
    followed = follow_points(moving_square(path), truth[:, told], frame)
    assert (followed[..., :2] - truth).abs().max() < 1e-3 / SIDE
    assert (followed[..., 2] == 1).all()


def test_a_point_whose_look_is_gone_is_not_visible():
    path = PATHS["across"]
    tokens = moving_square(path)
    tokens[:, 2:] = tokens[:, :1, :1, :1]  # nothing but the ground
    told = boxes_of(path)[:, 0, :, :2] + 1.5 / SIDE
    seen = follow_points(tokens, told, torch.zeros(1, 1, dtype=torch.int64))[..., 2]
    assert seen.flatten().tolist() == [1, 1, 0, 0]


def test_in_a_still_video_whatever_is_told_stays_where_it_is():
    tokens = torch.randn(2, 1, 5, 7, 16, generator=generator()).expand(-1, 6, -1, -1, -1)
    box = torch.tensor([[[0.1, 0.2, 0.55, 0.8], [0.9, 0.9, 1.0, 1.0], [0.0, 0, 1, 1]]] * 2)
    assert (follow_boxes(tokens, box) - box[:, None]).abs().max() < 1e-6
    point, frame = box[..., :2], torch.tensor([[0, 3, 5]] * 2)
    assert (follow_points(tokens, point, frame)[..., :2] - point[:, None]).abs().max() < 1e-6


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_where_all_tokens_are_the_same_nothing_moves(scale):
    """Every place is as alike as every other, and so are tokens without length."""
    tokens = torch.full((1, 4, 6, 6, 8), scale)
    box = torch.tensor([[[0.3, 0.3, 0.6, 0.9]]])
    assert (follow_boxes(tokens, box) - box[:, None]).abs().max() < 1e-6
    point = torch.tensor([[[0.31, 0.77]]])
    followed = follow_points(tokens, point, torch.zeros(1, 1, dtype=torch.int64))
    assert (followed[..., :2] - point[:, None]).abs().max() < 1e-6


def test_objects_that_are_not_there_or_beyond_the_square_have_finite_boxes():
    boxes = [[0, 0, 0, 0], [1.2, 1.2, 1.5, 1.4], [-0.5, 0, -0.1, 1], [0.5, 0.5, 0.5, 0.9]]
    tokens = 1e3 * torch.randn(1, 5, 4, 4, 8, generator=generator())
    followed = follow_boxes(tokens.half(), torch.tensor([boxes], dtype=torch.float32))
    assert followed.dtype == torch.float32 and followed.isfinite().all()
    told = torch.tensor([[[0.0, 0.0], [1.7, -0.4]]])
    points = follow_points(tokens, told, torch.tensor([[0, 4]]))
    assert points.isfinite().all() and ((points[..., 2] == 0) | (points[..., 2] == 1)).all()


def test_what_is_told_is_said_again_in_its_frame():
    tokens = torch.randn(2, 4, 5, 5, 8, generator=generator(3))
    box = torch.tensor([[[0.1, 0.2, 0.4, 0.7]], [[0.5, 0.5, 0.8, 0.9]]])
    assert (follow_boxes(tokens, box)[:, 0] - box).abs().max() < 1e-6
    point, frame = torch.rand(2, 3, 2, generator=generator(4)), torch.tensor([[0, 2, 3], [1, 1, 0]])
    followed = follow_points(tokens, point, frame)
    for window, number in itertools.product(range(2), range(3)):
        said = followed[window, frame[window, number], number]
        assert said.tolist() == [*point[window, number].tolist(), 1]


def test_windows_and_objects_do_not_see_each_other():
    tokens = torch.randn(2, 3, 4, 4, 8, generator=generator(5))
    corner = torch.rand(2, 2, 2, generator=generator(6)) / 2
    box, frame = torch.cat([corner, corner + 0.3], dim=-1), torch.tensor([[0, 1], [2, 0]])
    alone = follow_boxes(tokens[1:], box[1:, :1])
    torch.testing.assert_close(follow_boxes(tokens, box)[1:, :, :1], alone, atol=1e-5, rtol=0)
    alone = follow_points(tokens[1:], corner[1:, :1], frame[1:, :1])
    together = follow_points(tokens, corner, frame)
    torch.testing.assert_close(together[1:, :, :1], alone, atol=1e-5, rtol=0)


def test_boxes_are_those_of_plain_loops():
    """The same method again, patch by patch in float64."""
    side, frames = 5, 4
    tokens = torch.randn(1, frames, side, side, 12, generator=generator(8)).cumsum(1)
    box = np.array([0.21, 0.33, 0.62, 0.97])
    found = follow_boxes(tokens, torch.tensor(box, dtype=torch.float32)[None, None])[0, :, 0]
    X = tokens[0].flatten(1, 2).double().numpy()
    X /= np.linalg.norm(X, axis=-1, keepdims=True)
    places = [((p % side + 0.5) / side, (p // side + 0.5) / side) for p in range(side * side)]

    def covered(box: np.ndarray) -> np.ndarray:
        share = []
        for x, y in places:
            width = min(box[2], x + 0.5 / side) - max(box[0], x - 0.5 / side)
            height = min(box[3], y + 0.5 / side) - max(box[1], y - 0.5 / side)
            share.append(max(width, 0) * max(height, 0))
        return np.array(share) / sum(share)

    def votes(now: int, then: int, mask: np.ndarray) -> np.ndarray:
        taken = []
        for p, (x, y) in enumerate(places):
            way = np.array([(x - a) ** 2 + (y - b) ** 2 for a, b in places])
            asks = np.exp(SHARPNESS * X[then] @ X[now, p] - way / (2 * REACH**2))
            taken.append(asks @ mask / asks.sum())
        return np.array(taken)

    def beside(mask: np.ndarray, box: np.ndarray) -> np.ndarray:
        centre, sigma = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 + 0.5 / side
        window = [
            np.exp(-(((np.array(place) - centre) / sigma) ** 2).sum() / 2) for place in places
        ]
        share = (mask + LEAST_VOTE) * window
        return share @ np.array(places) / share.sum() - centre

    told = mask = covered(box)
    wanted, boxes = beside(votes(0, 0, told), box), [box]
    for now in range(1, frames):
        taken = (votes(now, 0, told) + votes(now, now - 1, mask)) / 2
        for _ in range(SHIFTS):
            box = box + np.tile(beside(taken, box) - wanted, 2)
        mask = covered(box)
        boxes.append(box)
    assert abs(boxes[-1] - boxes[0]).max() > 0.01
    np.testing.assert_allclose(found, boxes, atol=2e-4)


def test_a_frame_that_comes_later_changes_nothing_before_it():
    tokens = torch.randn(1, 5, 5, 5, 8, generator=generator(7))
    box = torch.tensor([[[0.2, 0.2, 0.6, 0.6]]])
    torch.testing.assert_close(follow_boxes(tokens, box)[:, :3], follow_boxes(tokens[:, :3], box))
