"""Drawn frames -> .mp4 files and contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.video.stream import VideoStream

SHEET_FRAMES = 4
"""Frames of a clip in a contact sheet."""


class VideoFile:
    """An H.264 .mp4, written frame by frame; it appears under its name when it is whole."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self._aside = path.with_name(f".{path.name}.partial")
        self._stream: VideoStream | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = av.open(self._aside, "w", format="mp4")
        return self

    def append(self, pixels_HWC: np.ndarray) -> None:
        """uint8 RGB, all of one size; an odd side repeats its last row or column, as the codec wants even ones."""
        height, width = pixels_HWC.shape[:2]
        even = np.pad(pixels_HWC, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._stream is None:
            rate = Fraction(self.fps).limit_denominator(1001)
            self._stream = self._file.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "veryfast"})
            self._stream.height, self._stream.width = even.shape[:2]
            self._stream.pix_fmt = "yuv420p"
        self._file.mux(self._stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._stream is not None:
            self._file.mux(self._stream.encode(None))
        self._file.close()
        if kind is None and self._stream is not None:
            self._aside.replace(self.path)
        else:
            self._aside.unlink(missing_ok=True)


def contact_sheet(path: Path, clips: Sequence[np.ndarray]) -> None:
    """One row for each clip, (T, H, W, 3) uint8: frames spread evenly over it, the last always among them."""
    rows = []
    for pixels_THWC in clips:
        places = np.unique(np.linspace(0, len(pixels_THWC) - 1, SHEET_FRAMES).round().astype(int))
        rows.append(np.concatenate(list(pixels_THWC[places]), axis=1))
    width = max(row.shape[1] for row in rows)
    sheet = np.concatenate([np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w", format="image2") as file:
        stream = file.add_stream("png", rate=1)
        stream.height, stream.width = sheet.shape[:2]
        stream.pix_fmt = "rgb24"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(sheet), format="rgb24")))
        file.mux(stream.encode(None))
