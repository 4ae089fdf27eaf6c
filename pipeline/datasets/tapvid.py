"""TAP-Vid: point tracks by hand or of a simulator, on DAVIS, Kinetics and RGB-stacking, and RoboTAP
(Doersch et al., NeurIPS 2022).

    root/**/tapvid_davis.pkl           {name: example}
    root/**/tapvid_rgb_stacking.pkl    [example, ...]
    root/**/0000_of_0010.pkl           [example, ...]: TAP-Vid-Kinetics, as generate_tapvid.py of
                                       the data set writes it

An example is {"video": uint8 (T, H, W, 3), or JPEG bytes (T,); "points": (N, T, 2) x, y in [0, 1];
"occluded": (N, T)}.

The files are pickles, which are programs. They are not run: they are read instruction by
instruction as plain data, nothing in them is imported or called, and what is no array of numbers is
refused. Frames are laid out as images with the same pixels, JPEG bytes as they are and others as
uncompressed PPM: as many bytes as the pickles have. Memory holds one frame at a time.

Coordinates are taken as they stand, as evaluation_datasets.py of github.com/google-deepmind/tapnet
takes them. All clips are `val`: the data are for evaluation. Videos of Kinetics have 25 frames per
second; the others name none, and 24 is that of DAVIS.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from pipeline.datasets.formats.annotations import few
from pipeline.datasets.formats.pickled_arrays import PickledArrays, StoredArray
from pipeline.datasets.formats.recordings import (
    FramesSettings,
    Image,
    Recording,
    RecordingDataset,
    Stretch,
)
from pipeline.errors import BadInput, in_one_line
from pipeline.records import Clip

KEYS = ("video", "points", "occluded")
SUFFIXES = (".pkl", ".pickle")
DAVIS_FPS, OTHER_FPS = 24.0, 25.0
MOST_NAME = 200
"""Characters of a name that becomes a folder."""


class Settings(FramesSettings):
    """Where frames are laid out, and how fast they are shown."""

    video_fps: float | None = Field(default=None, gt=0, le=1000)
    """Frame rate of the videos, which the pickles do not hold. None: 24 in files whose name has
    `davis`, else 25."""


class Dataset(RecordingDataset):
    """One clip per video."""

    Settings = Settings

    def recordings(self) -> Iterator[Recording]:
        """Clips in the order of the files. A file that cannot be read as plain arrays is listed
        with the reason, and so is a video that is none."""
        self._truth: dict[str, dict[str, np.ndarray]] = {}
        paths = [
            folder / name
            for folder, _, files in self.walk()
            for name in files
            if name.lower().endswith(SUFFIXES)
        ]
        if not paths:
            raise BadInput(
                f"{self.official} holds no pickle of TAP-Vid",
                f"wanted files that end in {' or '.join(SUFFIXES)}, such as tapvid_davis.pkl; "
                "unpack the archive first",
            )
        for path in paths:
            try:
                with PickledArrays(path) as opened:
                    yield from self._read(path, opened, alone=len(paths) == 1)
            except BadInput as error:
                self.reject(self.where(path), error.message)
            except OSError as error:
                self.reject(self.where(path), f"cannot be read: {error.strerror}")
            except Exception as error:  # a file of any other kind fails in many ways
                reason = textwrap.shorten(str(error) or type(error).__name__, 200)
                text = f"cannot be read as plain arrays, and nothing in it is executed: {reason}"
                self.reject(self.where(path), in_one_line(text))

    def targets(self, clip: Clip) -> dict[str, np.ndarray]:
        """Points and visibility in every frame."""
        return self._truth[clip.clip_id]

    def _read(self, path: Path, opened: PickledArrays, alone: bool) -> Iterator[Recording]:
        content = opened.content
        if isinstance(content, list):
            named = {f"{number:04d}": example for number, example in enumerate(content)}
            alone = False  # the numbers of a file say nothing by themselves
        elif isinstance(content, dict):
            named = content
        else:
            raise BadInput("holds neither a list of videos nor videos by name")
        used: set[int] = set()
        for key, example in named.items():
            name = key if alone else f"{path.stem}/{key}"
            where = in_one_line(
                f"{self.where(path)} {textwrap.shorten(key, 60) or 'without a name'}"
            )
            try:
                if not _is_a_name(key):
                    raise ValueError("its name cannot be that of a folder")
                yield self._recording(name, path, opened, example, used)
            except ValueError as error:
                self.reject(where, in_one_line(str(error)))

    def _recording(
        self, name: str, path: Path, opened: PickledArrays, example: Any, used: set[int]
    ) -> Recording:
        """Raises ValueError where an example is not as documented."""
        if not isinstance(example, Mapping) or any(key not in example for key in KEYS):
            found = few(list(example)) if isinstance(example, Mapping) else "no dictionary"
            raise ValueError(f"wanted {', '.join(KEYS)}, found {found or 'nothing'}")
        images = _images(path, opened, example["video"], used)
        arrays = {}
        for key in KEYS[1:]:
            if not isinstance(example[key], StoredArray):
                raise ValueError(f"{key} is no array")
            try:
                arrays[key] = opened.array(example[key])
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
        points, occluded = arrays["points"], arrays["occluded"]
        if points.ndim != 3 or points.shape[1:] != (len(images), 2) or not len(points):
            raise ValueError(f"points are {points.shape}, wanted (N, {len(images)}, 2)")
        if occluded.shape != points.shape[:2]:
            raise ValueError(f"occluded is {occluded.shape}, points are {points.shape}")
        fps = self.settings.video_fps
        if fps is None:
            fps = DAVIS_FPS if "davis" in path.stem.lower() else OTHER_FPS
        time_s = np.arange(len(images)) / fps
        visible = ~occluded.astype(bool)
        # Where an occluded point is, nobody knows; that it is hidden is known, and counts.
        points = np.where(visible[..., None] | np.isfinite(points), points, 0)
        self._truth[name] = {
            "points": points.astype(np.float32),
            "visible": visible & np.isfinite(points).all(-1),
            "points_time_s": time_s,
        }
        return Recording(name, "val", images, time_s)


def _images(path: Path, opened: PickledArrays, video: Any, used: set[int]) -> list[Image]:
    """Where the frames of a video lie in the file. Raises ValueError."""
    if isinstance(video, StoredArray) and opened.dtype(video).kind != "O":
        shape, dtype = opened.shape(video), opened.dtype(video)
        span = opened.span(video.data)
        if dtype.kind == "S" and len(shape) == 1:
            spans = [
                (span.offset + row * dtype.itemsize, dtype.itemsize) for row in range(shape[0])
            ]
            head, suffix = b"", ".jpg"
        elif dtype == np.uint8 and len(shape) == 4 and shape[3] == 3 and not video.is_fortran:
            frames, height, width, _ = shape
            size = height * width * 3
            spans = [(span.offset + row * size, size) for row in range(frames)]
            head, suffix = b"P6\n%d %d\n255\n" % (width, height), ".ppm"
        else:
            raise ValueError(f"video is {dtype} {shape}, wanted uint8 (T, H, W, 3) or bytes (T,)")
    else:
        frames = video.data if isinstance(video, StoredArray) else video
        if not isinstance(frames, list):
            raise ValueError("video is no array")
        described = [opened.span(frame) for frame in frames]
        spans, head, suffix = [(frame.offset, frame.length) for frame in described], b"", ".jpg"
    if not spans or min(length for _, length in spans) < 1:
        raise ValueError("video has no frames")
    starts = {offset for offset, _ in spans}
    # One stretch of the file that stands for many videos would fill the disk.
    if len(starts) < len(spans) or used & starts:
        raise ValueError("its frames are those of another video")
    used |= starts
    return [Stretch(path, offset, length, suffix, head) for offset, length in spans]


def _is_a_name(key: str) -> bool:
    """Whether a text is a plain name of a folder."""
    plain = key.isprintable() and not set(key) & set("/\\:") and not key.startswith(".")
    return plain and 0 < len(key.encode(errors="replace")) <= MOST_NAME
