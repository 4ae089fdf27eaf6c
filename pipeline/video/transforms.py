"""Frames into the encoder's squares: resize and crop, with the affine that says where each pixel
comes from."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.config.cache_spec import FrameSettings, View
from pipeline.device import Upload, Uploads
from pipeline.records import Frames

LONGEST, LONGEST_PUBLISHED = 2, 16
"""Long side over short side up to which all of a frame is resized: antialiased, and without that,
where the released code of the paper, which resizes all of it, is to be met to the pixel."""


class SentFrames(NamedTuple):
    """`Frames` that lie on a device, or will."""

    pixels: Upload
    time_s: np.ndarray
    pixel_aspect: float = 1.0


class FrameTransforms:
    """The squares that encoders see of some frames: one that several of them see is made once."""

    def __init__(self, frames: Frames | SentFrames, uploads: Uploads) -> None:
        """The frames are on their way to the device of `uploads` from here on."""
        self.frames = frames
        self._sent = (
            frames.pixels if isinstance(frames, SentFrames) else uploads.start(frames.pixels_FHWC)
        )
        self._pixels: dict[bytes, torch.Tensor] = {}
        self._squares: dict[tuple[Any, ...], tuple[torch.Tensor, np.ndarray]] = {}

    @property
    def frame_bytes(self) -> int:
        """Bytes of one decoded frame."""
        return self._sent.tensor[0].numel()

    def squares(
        self, settings: FrameSettings, mask: np.ndarray, view: View | None
    ) -> tuple[torch.Tensor, np.ndarray]:
        """Squares of the frames of `mask`, levels (f, 3, size_px, size_px), uint8, or float32
        where they are not antialiased, and the affine (2, 3) from the source frame to them; `view`
        None is the base."""
        key = (
            *(settings.size_px, settings.fit, settings.resample),
            *(settings.antialias, settings.pixel_aspect, mask.tobytes(), view),
        )
        if key not in self._squares:
            self._squares[key] = self._make(settings, mask, view)
        return self._squares[key]

    def _make(
        self, settings: FrameSettings, mask: np.ndarray, view: View | None
    ) -> tuple[torch.Tensor, np.ndarray]:
        if mask.tobytes() not in self._pixels:
            pixels_FHWC = self._sent.on_device()
            if not mask.all():  # a copy only where needed; of slices, for which no device waits
                pixels_FHWC = torch.cat([pixels_FHWC[i : i + 1] for i in np.flatnonzero(mask)])
            self._pixels[mask.tobytes()] = pixels_FHWC
        pixels_FHWC = self._pixels[mask.tobytes()]
        if view is None:
            return resize_and_crop(
                pixels_FHWC,
                settings.size_px,
                settings.fit,
                settings.resample,
                self.frames.pixel_aspect if settings.pixel_aspect else 1.0,
                settings.antialias,
            )
        squares_FCHW, affine_23 = self.squares(settings, mask, None)
        if view.crop is not None:
            squares_FCHW, affine_23 = crop_view(
                pixels_FHWC,
                affine_23,
                view.crop,
                settings.size_px,
                settings.resample,
                settings.antialias,
            )
        return (
            flip_horizontally(squares_FCHW, affine_23) if view.flip else (squares_FCHW, affine_23)
        )


def resize_and_crop(
    pixels_FHWC: torch.Tensor,
    size_px: int,
    fit: Literal["crop", "squash"],
    resample: Literal["bilinear", "bicubic"],
    pixel_aspect: float = 1.0,
    antialias: bool = True,
) -> tuple[torch.Tensor, np.ndarray]:
    """uint8 (F, H, W, 3) -> levels (F, 3, size_px, size_px) on the same device, and the affine (2,
    3). Levels are uint8; without `antialias`, which is the way of the released code of the paper,
    they are float32 from 0 to 255, not rounded.

    crop: the frame, as shown with its pixel aspect, is resized until its short side is `size_px`,
    its long side rounded to whole pixels, and the centre is cut out. Of a frame longer than
    `LONGEST` only the central part of that shape is resized, which bounds memory and moves the
    result by half a pixel at most. squash: both sides are resized to `size_px`.

    The affine maps (x, y, 1), normalised to [0, 1] in the source frame, to (x, y) normalised to [0,
    1] in the square. It is that of the pixels, roundings included. The CPU resizes antialiased in
    uint8 and rounds between the axes, other devices in float32: they differ by a level or so, by
    more only where enlarging overshoots.
    """
    _, height, width, _ = pixels_FHWC.shape
    if fit == "squash":
        squares = _resize(pixels_FHWC, (size_px, size_px), resample, antialias)
        return squares.contiguous(), np.eye(2, 3)
    shown_hw = (float(height), width * pixel_aspect)
    rows, resized_h, top, scale_y, shift_y = _centre_crop_axis(
        height, shown_hw[0], min(shown_hw), size_px, antialias
    )
    columns, resized_w, left, scale_x, shift_x = _centre_crop_axis(
        width, shown_hw[1], min(shown_hw), size_px, antialias
    )
    resized = _resize(pixels_FHWC[:, rows, columns], (resized_h, resized_w), resample, antialias)
    square = resized[:, :, top : top + size_px, left : left + size_px].contiguous()
    return square, np.array([[scale_x, 0, shift_x], [0, scale_y, shift_y]])


def _centre_crop_axis(
    stored_px: int, shown_px: float, short_px: float, size_px: int, antialias: bool
) -> tuple[slice, int, int, float, float]:
    """One axis of the crop: source pixels to read, their number after resizing, where the square
    begins, and scale and shift.

    `shown_px` is the length of this axis in square pixels, `short_px` that of the shorter one.
    """
    aspect, longest = shown_px / short_px, LONGEST if antialias else LONGEST_PUBLISHED
    read_px = stored_px if aspect <= longest else math.ceil(stored_px * longest / aspect)
    begin_px = (stored_px - read_px) // 2
    # The last bit decides where halves go: each way multiplies in its own order, old caches and the
    # released code in theirs.
    resized = size_px * aspect * read_px / stored_px
    if not antialias:
        resized = shown_px * (size_px / short_px) * (read_px / stored_px)
    resized_px = max(size_px, round(resized))
    crop_px = (resized_px - size_px) // 2
    scale = stored_px / read_px * resized_px / size_px
    shift = -(begin_px / read_px * resized_px + crop_px) / size_px
    return slice(begin_px, begin_px + read_px), resized_px, crop_px, scale, shift


def crop_view(
    pixels_FHWC: torch.Tensor,
    affine_23: np.ndarray,
    crop: tuple[float, float, float, float],
    size_px: int,
    resample: Literal["bilinear", "bicubic"],
    antialias: bool = True,
) -> tuple[torch.Tensor, np.ndarray]:
    """The part `crop` (x0, y0, x1, y1 in [0, 1]) of the square that `affine_23` leads to, as a
    square of `size_px` of its own.

    Resampled from the source's pixels, so that a part has the detail that the square has lost. The
    affine is that of the new square's pixels, which are whole: its edges lie within one of them of
    those of `crop`.
    """
    _, height, width, _ = pixels_FHWC.shape
    x0, y0, x1, y1 = crop
    rows, resized_h, top, scale_y, shift_y = _crop_view_axis(
        height, affine_23[1, 1], affine_23[1, 2], y0, y1, size_px
    )
    columns, resized_w, left, scale_x, shift_x = _crop_view_axis(
        width, affine_23[0, 0], affine_23[0, 2], x0, x1, size_px
    )
    resized = _resize(pixels_FHWC[:, rows, columns], (resized_h, resized_w), resample, antialias)
    part = resized[:, :, top : top + size_px, left : left + size_px].contiguous()
    return part, np.array([[scale_x, 0, shift_x], [0, scale_y, shift_y]])


def _crop_view_axis(
    stored_px: int, scale: float, shift: float, start: float, stop: float, size_px: int
) -> tuple[slice, int, int, float, float]:
    """One axis of a part [start, stop) of the square, with what `_centre_crop_axis` returns. Half a
    part more is read on either side, for the filter."""
    first_px, last_px = ((position - shift) / scale * stored_px for position in (start, stop))
    margin_px = (last_px - first_px) / 2
    begin_px, end_px = (
        max(0, math.floor(first_px - margin_px)),
        min(stored_px, math.ceil(last_px + margin_px)),
    )
    read_px = end_px - begin_px
    resized_px = max(size_px, round(size_px * read_px / (last_px - first_px)))
    centre_px = ((first_px + last_px) / 2 - begin_px) / read_px * resized_px
    crop_px = min(max(0, round(centre_px - size_px / 2)), resized_px - size_px)
    new_scale = stored_px / read_px * resized_px / size_px
    return (
        slice(begin_px, end_px),
        resized_px,
        crop_px,
        new_scale,
        -(begin_px / read_px * resized_px + crop_px) / size_px,
    )


def flip_horizontally(
    squares_FCHW: torch.Tensor, affine_23: np.ndarray
) -> tuple[torch.Tensor, np.ndarray]:
    """Squares mirrored left to right, and their affine: x becomes 1 - x."""
    return squares_FCHW.flip(-1), np.array([[-1.0, 0, 1], [0, 1, 0]]) @ np.vstack(
        [affine_23, [0, 0, 1]]
    )


def _resize(
    pixels_FHWC: torch.Tensor, size_hw: tuple[int, int], resample: str, antialias: bool
) -> torch.Tensor:
    """(F, H, W, 3) -> (F, 3, *size_hw), uint8, or float32 without `antialias`. The permuted view is
    channels-last, on which torch's uint8 kernel is fast."""
    pixels_FCHW = pixels_FHWC.permute(0, 3, 1, 2)
    if pixels_FCHW.device.type == "cpu" and antialias:
        return F.interpolate(pixels_FCHW, size_hw, mode=resample, antialias=True)
    resized = F.interpolate(pixels_FCHW.float(), size_hw, mode=resample, antialias=antialias)
    resized = resized.clamp_(0, 255)
    return resized.round_().to(torch.uint8) if antialias else resized
