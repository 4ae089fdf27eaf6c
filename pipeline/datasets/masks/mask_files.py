"""One image of masks: which pixels are which object.

The rule is that of davis2017-evaluation: 0 is the background, every other value an object, 255 is
void, unless it is the only value beside 0.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from pipeline.errors import BadVideo
from pipeline.video.probe import open_image

VOID = 255


def read_mask(path: Path, width: int, height: int) -> np.ndarray:
    """uint8 (H, W): palette indices or grey levels, as they are stored. Raises BadVideo where the
    image cannot be read or is not of this size."""
    container, stream = open_image(path)
    with container:
        try:
            frame = next(container.decode(stream), None)
        except av.FFmpegError as error:
            raise BadVideo(f"{path.name} cannot be decoded: {error.strerror}") from error
        if frame is None:
            raise BadVideo(f"{path.name} holds no picture")
        if frame.format.name not in ("pal8", "gray"):
            raise BadVideo(
                f"{path.name} is a {frame.format.name} image, wanted a palette or 8-bit grey"
            )
        content = frame.to_ndarray()
    mask: np.ndarray = content[0] if isinstance(content, tuple) else content
    if mask.shape != (height, width):
        raise BadVideo(
            f"{path.name} is {mask.shape[1]}x{mask.shape[0]}, the images are {width}x{height}"
        )
    return mask


def values_of(mask_HW: np.ndarray) -> list[int]:
    """The values in an image of masks, without 0, in order."""
    found: list[int] = (
        np.flatnonzero(np.bincount(mask_HW.ravel(), minlength=256)[1:]) + 1
    ).tolist()
    return found


def objects_among(values: set[int]) -> list[int]:
    """The objects among all values of a sequence, in order: void is none, unless it is alone."""
    return sorted(values if values == {VOID} else values - {VOID})


def box_of(own_HW: np.ndarray) -> np.ndarray:
    """xyxy in pixel edges of the smallest box around the pixels of an object, of which there is at
    least one."""
    rows, columns = np.flatnonzero(own_HW.any(1)), np.flatnonzero(own_HW.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)
