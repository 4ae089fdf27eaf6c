"""Likeness of tokens: templates under boxes and at places, maps, and the places in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.models.tasks.parts import likeness

GRID = (4, 6)


def tokens(grid_hw: tuple[int, int] = GRID, width: int = 16, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, *grid_hw, width, generator=torch.Generator().manual_seed(0))


def test_the_weights_of_a_box_are_the_areas_that_it_shares_with_patches() -> None:
    box = torch.tensor([[[0.25, 0.25, 0.75, 0.5], [0.1, 0.0, 0.3, 0.9]]])
    weights = likeness.box_weights(box, GRID)
    fine = 600  # each patch in so many steps, by counting
    y, x = (np.arange(fine) + 0.5) / fine, (np.arange(fine) + 0.5) / fine
    for number, (x1, y1, x2, y2) in enumerate(box[0].tolist()):
        inside = ((y >= y1) & (y < y2))[:, None] & ((x >= x1) & (x < x2))
        counted = inside.reshape(GRID[0], fine // GRID[0], GRID[1], fine // GRID[1]).sum((1, 3))
        np.testing.assert_allclose(weights[0, number], counted / counted.sum(), atol=1e-3)


@pytest.mark.parametrize(
    ("box", "row", "column"),
    [
        ((0.5, 0.5, 0.5, 0.5), 2, 3),  # no area
        ((1.5, -0.9, 1.9, -0.2), 0, 5),  # outside of the square
        ((0.4, 0.9, 0.2, 0.8), 3, 1),  # corners swapped
        ((0.0, 0.0, 0.0, 0.0), 0, 0),  # an object that is not there
    ],
)
def test_a_box_without_area_has_the_patch_nearest_to_its_centre(
    box: tuple[float, ...], row: int, column: int
) -> None:
    weights = likeness.box_weights(torch.tensor([[box]]), GRID)[0, 0]
    assert weights[row, column] == 1 and weights.sum() == 1


def test_a_box_around_all_pools_the_mean_and_one_patch_its_own_token() -> None:
    x = tokens()
    boxes = torch.tensor([[-1.0, -1, 2, 2], [2 / 6, 1 / 4, 3 / 6, 2 / 4]]).expand(2, -1, -1)
    pooled = likeness.pooled(x, likeness.box_weights(boxes, GRID))
    torch.testing.assert_close(pooled[:, 0], x.mean((1, 2)))
    torch.testing.assert_close(pooled[:, 1], x[:, 1, 2])


def test_tokens_are_sampled_between_the_centres_of_patches() -> None:
    x = tokens()
    centres = likeness.patch_centres(GRID)
    places = torch.stack([centres[1, 2], (centres[1, 2] + centres[2, 3]) / 2, centres[0, 0] * 0])
    read = likeness.sampled(x, places.expand(2, -1, -1))
    torch.testing.assert_close(read[:, 0], x[:, 1, 2])
    torch.testing.assert_close(read[:, 1], x[:, 1:3, 2:4].mean((1, 2)))
    torch.testing.assert_close(read[:, 2], x[:, 0, 0])


def test_likeness_is_the_cosine_whatever_the_lengths_and_the_precision() -> None:
    x, template = tokens(), tokens((1, 3))[:, 0]
    cosine = torch.nn.functional.cosine_similarity(x[:, None], template[:, :, None, None], dim=-1)
    found = likeness.likeness(x * 7, template * 0.1)
    assert found.shape == (2, 3, *GRID) and found.dtype == torch.float32
    torch.testing.assert_close(found, cosine)
    half = likeness.likeness(x.half(), template.half())
    assert half.dtype == torch.float32 and (half - cosine).abs().max() < 1e-3


def test_what_has_no_length_is_alike_to_nothing() -> None:
    x = tokens()
    x[:, 0, 0] = 0
    found = likeness.likeness(x, torch.zeros(2, 1, 16))
    assert (found == 0).all()
    assert (likeness.likeness(x, x[:, 1, 1:2])[:, :, 0, 0] == 0).all()


def test_a_peak_is_its_patch_and_two_equal_ones_have_their_middle() -> None:
    logits = torch.full((1, 2, *GRID), -1e4)
    logits[0, 0, 3, 4] = 5
    logits[0, 1, 1, 2] = logits[0, 1, 1, 3] = 5
    centres = likeness.patch_centres(GRID)
    middle = (centres[1, 2] + centres[1, 3]) / 2
    expected = torch.stack([centres[3, 4], middle])[None]
    torch.testing.assert_close(likeness.centroid(logits), expected)
    torch.testing.assert_close(likeness.soft_argmax(logits, 1), expected)
    first = torch.stack([centres[3, 4], centres[1, 2]])[None]
    torch.testing.assert_close(likeness.argmax(logits), first)


def test_a_soft_argmax_does_not_hear_of_a_second_peak_far_away() -> None:
    logits = torch.zeros(1, 1, *GRID)
    logits[0, 0, 0, 0], logits[0, 0, 3, 5] = 9, 8.9
    peak = likeness.soft_argmax(logits, 1)[0, 0]
    assert (peak < torch.tensor([1.5 / 6, 1.5 / 4])).all()
    assert (likeness.centroid(logits)[0, 0] > 0.3).all()


def test_a_search_window_is_a_gaussian_with_a_reach_in_each_direction() -> None:
    centre, sigma = torch.tensor([[[0.5, 0.25]]]), torch.tensor([[[0.1, 0.5]]])
    window = likeness.near(centre, sigma, GRID).exp()
    x, y = likeness.patch_centres(GRID).unbind(-1)
    expected = torch.exp(-(((x - 0.5) / 0.1) ** 2 + ((y - 0.25) / 0.5) ** 2) / 2)
    torch.testing.assert_close(window[0, 0], expected)


def test_gradients_reach_tokens_and_templates() -> None:
    x, box = tokens().requires_grad_(), torch.tensor([[[0.1, 0.1, 0.6, 0.6]]] * 2)
    template = likeness.pooled(x, likeness.box_weights(box, GRID))
    likeness.centroid(10 * likeness.likeness(x, template)).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().sum() > 0
