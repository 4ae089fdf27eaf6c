"""Frames -> the encoder's square: resize and crop, with the affine kept that says where each pixel comes from."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F


def to_square(
    pixels_FHWC: torch.Tensor,
    size_px: int,
    fit: Literal["crop", "squash"],
    resample: Literal["bilinear", "bicubic"],
    pixel_aspect: float = 1.0,
) -> tuple[torch.Tensor, np.ndarray]:
    """uint8 (F, H, W, 3) -> uint8 (F, 3, size_px, size_px) on the same device, antialiased, and the affine (2, 3).

    crop: the frame, as shown with its pixel aspect, is resized until its short side is `size_px`, its long side rounded to
    whole pixels, and the centre is cut out. Of a frame longer than 2:1 only the central 2:1 is resized, which bounds memory and
    moves the result by half a pixel at most. squash: both sides are resized to `size_px`.

    The affine maps (x, y, 1), normalised to [0, 1] in the source frame, to (x, y) normalised to [0, 1] in the square. It is
    that of the pixels, roundings included. The CPU resizes in uint8 and rounds between the axes, other devices in float32: they
    differ by a level or so, by more only where enlarging overshoots.
    """
    _, height, width, _ = pixels_FHWC.shape
    if fit == "squash":
        return _resize(pixels_FHWC, (size_px, size_px), resample).contiguous(), np.eye(2, 3)
    shown_hw = (float(height), width * pixel_aspect)
    rows, resized_h, top, scale_y, shift_y = _centre(height, shown_hw[0] / min(shown_hw), size_px)
    columns, resized_w, left, scale_x, shift_x = _centre(width, shown_hw[1] / min(shown_hw), size_px)
    resized = _resize(pixels_FHWC[:, rows, columns], (resized_h, resized_w), resample)
    square = resized[:, :, top : top + size_px, left : left + size_px].contiguous()
    return square, np.array([[scale_x, 0, shift_x], [0, scale_y, shift_y]])


def _centre(stored_px: int, aspect: float, size_px: int) -> tuple[slice, int, int, float, float]:
    """One axis of the crop: source pixels to read, their number after resizing, where the square begins, and scale and shift.

    `aspect` is the shown length of this axis over that of the short one, at least 1.
    """
    read_px = stored_px if aspect <= 2 else math.ceil(stored_px * 2 / aspect)
    begin_px = (stored_px - read_px) // 2
    resized_px = max(size_px, round(size_px * aspect * read_px / stored_px))
    crop_px = (resized_px - size_px) // 2
    scale = stored_px / read_px * resized_px / size_px
    shift = -(begin_px / read_px * resized_px + crop_px) / size_px
    return slice(begin_px, begin_px + read_px), resized_px, crop_px, scale, shift


def _resize(pixels_FHWC: torch.Tensor, size_hw: tuple[int, int], resample: str) -> torch.Tensor:
    """(F, H, W, 3) -> (F, 3, *size_hw), uint8. The permuted view is channels-last, on which torch's uint8 kernel is fast."""
    pixels_FCHW = pixels_FHWC.permute(0, 3, 1, 2)
    if pixels_FCHW.device.type == "cpu":
        return F.interpolate(pixels_FCHW, size_hw, mode=resample, antialias=True)
    resized = F.interpolate(pixels_FCHW.float(), size_hw, mode=resample, antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)
