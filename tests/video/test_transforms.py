"""Resize and crop to the encoder's square: the pixels, and the affine that says where they come
from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.on_device import BOTH, CPU, named
from support.views import blurred, most, noise, resize_then_crop

from pipeline.video.transforms import resize_and_crop


@pytest.mark.parametrize("on", BOTH)
@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width", "aspect", "resized_hw"),
    [
        (72, 128, 1.0, (32, 57)),
        (128, 72, 1.0, (57, 32)),
        (33, 41, 1.0, (32, 40)),
        (20, 20, 1.0, (32, 32)),
        (48, 60, 4 / 3, (32, 53)),
        (48, 60, 0.5, (51, 32)),
    ],
)
def test_crop_is_resize_then_crop(height, width, aspect, resized_hw, resample, on):
    pixels = noise(height, width)
    square, affine = resize_and_crop(pixels.to(named(on)), 32, "crop", resample, aspect)
    assert most(square, resize_then_crop(pixels, resized_hw, 32, resample)) <= (
        2 if named(on) == CPU else 1
    )
    top, left = ((side - 32) // 2 for side in resized_hw)
    np.testing.assert_allclose(
        affine, [[resized_hw[1] / 32, 0, -left / 32], [0, resized_hw[0] / 32, -top / 32]]
    )


@pytest.mark.parametrize(("height", "width"), [(48, 200), (200, 48)])
def test_what_lies_beyond_two_to_one_does_not_matter(height, width):
    pixels = blurred(height, width)
    square, _ = resize_and_crop(pixels, 32, "crop", "bicubic")
    whole_hw = (round(32 * height / 48), round(32 * width / 48))
    assert (
        most(square, resize_then_crop(pixels, whole_hw, 32, "bicubic")) <= 6
    )  # half a pixel of these waves
    outside = pixels.clone()
    for side in (outside[:, : max(0, height - 96) // 2], outside[:, :, : max(0, width - 96) // 2]):
        side.fill_(255)
    torch.testing.assert_close(
        resize_and_crop(outside, 32, "crop", "bicubic")[0], square, rtol=0, atol=0
    )


@pytest.mark.parametrize("on", BOTH)
@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_squash_takes_everything(resample, on):
    pixels = noise(30, 71)
    square, affine = resize_and_crop(pixels.to(named(on)), 16, "squash", resample, pixel_aspect=2.0)
    assert most(square, resize_then_crop(pixels, (16, 16), 16, resample)) <= (
        2 if named(on) == CPU else 1
    )
    np.testing.assert_array_equal(affine, [[1, 0, 0], [0, 1, 0]])


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(40, 400),
    width=st.integers(40, 400),
    aspect=st.sampled_from([1.0, 64 / 51, 4 / 3, 0.5, 2.5]),
    fit=st.sampled_from(["crop", "squash"]),
    x=st.floats(0.2, 0.8),
    y=st.floats(0.2, 0.8),
)
def test_affine_leads_to_the_marker(height, width, aspect, fit, x, y):
    """A round spot painted at (x, y) of the source is found where the affine says."""
    shown = min(height, width * aspect) if fit == "crop" else None
    rows, columns = (np.arange(height) + 0.5) / height - y, (np.arange(width) + 0.5) / width - x
    # Radius 8 % of the shown short side (crop) or of either side (squash).
    across = (columns * width * aspect / shown if shown else columns) / 0.08
    down = (rows * height / shown if shown else rows) / 0.08
    spot = np.exp(-0.5 * (down[:, None] ** 2 + across[None] ** 2))
    pixels = torch.from_numpy((spot * 255).round().astype(np.uint8))[None, :, :, None].expand(
        1, -1, -1, 3
    )
    square, affine = resize_and_crop(pixels, 64, fit, "bilinear", aspect)
    expected = affine @ [x, y, 1]
    if not ((expected > 0.3) & (expected < 0.7)).all():
        return  # the spot is cut by the crop
    mass = square[0, 0].numpy().astype(float)
    centres = (np.arange(64) + 0.5) / 64
    found = np.array([mass.sum(0) @ centres, mass.sum(1) @ centres]) / mass.sum()
    np.testing.assert_allclose(found, expected, atol=0.25 / 64)
    widths = [
        np.sqrt(mass.sum(axis) @ (centres - at) ** 2 / mass.sum()) for axis, at in enumerate(found)
    ]
    assert widths[0] == pytest.approx(widths[1], rel=0.1)


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 5000), (5000, 1), (3, 2), (2, 4999), (1080, 7)]
)
def test_extreme_shapes(height, width, fit):
    pixels = torch.tensor([10, 128, 250], dtype=torch.uint8).expand(1, height, width, 3)
    square, affine = resize_and_crop(pixels, 24, fit, "bicubic")
    assert square.shape == (1, 3, 24, 24)
    assert square.is_contiguous()
    for channel, level in enumerate((10, 128, 250)):
        assert (square[0, channel] == level).all()
    np.testing.assert_allclose(
        affine @ [0.5, 0.5, 1],
        [0.5, 0.5],
        atol=0.51 / 24 + 0.51 / min(height, width) * (fit == "crop"),
    )
