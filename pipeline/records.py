"""Records that travel between the rooms. Arrays carry their times, and check themselves.

Shape letters, the same in every file: B batch, T frames of a window, F frames of a video or store,
L recorded layers, P patch tokens, S special tokens, N = S + P, D width, H and W pixels, C channels.
All ranges are half-open: [start, stop).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch


Clock = Literal["first_frame", "file"]
"""What second 0 of a clip and of its truth is: its video's first frame, as players count, or that
of the clock of the video file."""
SAME_S = 1e-6
"""Seconds written in decimals differ from those of a file, which counts in ticks, by less."""


class Video(NamedTuple):
    """One source file, or one folder of images."""

    video_id: str
    source: str
    """Path relative to the dataset's root, with forward slashes."""
    image_fps: float | None = None
    """Frame rate of an image folder; None for a video file, which knows its own times."""


class Stride(NamedTuple):
    """Every n-th frame of a video is kept, whenever it is shown."""

    fps: float | None = None
    """n is the video's own rate over this one, rounded to a whole number, halves to the even one,
    and at least 1; the frames then count as evenly this many a second. None: n is `every`."""
    every: int = 1


Rate = float | Stride | None
"""Which frames of a video are kept: those on screen at so many instants per second, or every n-th
one, or (None) all."""


class Step(NamedTuple):
    """From one frame of a window to the next."""

    size: float
    in_rows: bool = False
    """Whether `size` counts cached frames; otherwise it is in seconds of the video."""


@dataclass(frozen=True)
class Clip:
    """A labelled stretch [start_s, stop_s) of a video, and how to read it."""

    clip_id: str
    video_id: str
    source: str
    split: str
    start_s: float = 0.0
    stop_s: float | None = None
    """None: up to the end of the video."""
    label: str | None = None
    reverse: bool = False
    """Read backwards in time."""
    speed: float = 1.0
    """Seconds of source time that pass in one second of window time."""
    image_fps: float | None = None
    clock: Clock = "first_frame"
    """What `start_s`, `stop_s` and the times of the clip's truth count from."""
    group: str | None = None
    """What the clip was cut or recorded from: a source video, a person, a place. All clips of a
    group belong into one split; None: the clip's video is all that is known."""

    def __post_init__(self) -> None:
        if not self.clip_id or not self.video_id or not self.source or not self.split:
            raise ValueError("clip_id, video_id, source and split must not be empty")
        if self.group == "":
            raise ValueError("group must not be empty: leave it out")
        if not self.start_s >= 0 or (self.stop_s is not None and not self.stop_s > self.start_s):
            raise ValueError(f"wanted 0 <= start_s < stop_s, found [{self.start_s}, {self.stop_s})")
        if not self.speed > 0:
            raise ValueError(f"speed must be above 0, found {self.speed}")

    @property
    def video(self) -> Video:
        return Video(self.video_id, self.source, self.image_fps)

    def zero_s(self, first_s: float) -> float:
        """Presentation time that is second 0 of this clip, where the first frame of its video has
        the presentation time `first_s`."""
        return first_s if self.clock == "first_frame" else 0.0

    def stretch_s(self, first_s: float) -> tuple[float, float | None]:
        """[start, stop) of the clip as presentation times; None: up to the end of the video.

        `first_s` is that of the first frame. A clip that starts at 0 starts with it, also where the
        file's clock begins below 0.
        """
        zero_s = self.zero_s(first_s)
        start_s = zero_s + self.start_s if self.start_s else min(zero_s, first_s)
        if self.clock == "file" or self.stop_s is None:
            return start_s, self.stop_s
        return start_s, zero_s + self.stop_s - SAME_S


@dataclass(frozen=True)
class Frames:
    """Consecutive decoded frames of one size, upright as a viewer shows them, with their
    presentation times."""

    pixels_FHWC: np.ndarray
    """uint8 RGB."""
    time_s: np.ndarray
    """(F,) float64, strictly increasing."""
    pixel_aspect: float = 1.0
    """Width of one pixel over its height."""

    def __post_init__(self) -> None:
        shape = self.pixels_FHWC.shape
        if len(shape) != 4 or shape[3] != 3 or self.pixels_FHWC.dtype != np.uint8:
            raise ValueError(
                f"pixels must be uint8 (F, H, W, 3), found {self.pixels_FHWC.dtype} {shape}"
            )
        if self.time_s.shape != shape[:1]:
            raise ValueError(f"time_s must be ({shape[0]},), found {self.time_s.shape}")

    def __len__(self) -> int:
        return len(self.time_s)

    def __repr__(self) -> str:
        return f"Frames({self.pixels_FHWC.shape}, {self.time_s[:1]}..{self.time_s[-1:]} s)"


@dataclass(frozen=True)
class TokenShape:
    """What an encoder yields for one frame: L layers of P = grid_h x grid_w patch tokens, and S
    special tokens, all D wide."""

    width: int
    grid_hw: tuple[int, int]
    special_tokens: int
    layers: tuple[int, ...]
    """0-based block outputs that are recorded."""

    @property
    def patch_tokens(self) -> int:
        return self.grid_hw[0] * self.grid_hw[1]

    @property
    def tokens_per_frame(self) -> int:
        """L * P + S: what one frame costs in the cache."""
        return len(self.layers) * self.patch_tokens + self.special_tokens


@dataclass(frozen=True)
class Tokens:
    """Tokens of N frames: specials (CLS, then registers) of the last layer, and patches, row by
    row, of each recorded layer."""

    special_NSD: torch.Tensor
    patches_NPD: dict[int, torch.Tensor]
    """layer -> (N, P, D)."""

    def __post_init__(self) -> None:
        frames, _, width = self.special_NSD.shape
        for layer, patches in self.patches_NPD.items():
            if patches.ndim != 3 or patches.shape[0] != frames or patches.shape[2] != width:
                raise ValueError(
                    f"layer {layer}: wanted ({frames}, P, {width}), found {tuple(patches.shape)}"
                )

    def __len__(self) -> int:
        return len(self.special_NSD)

    def __repr__(self) -> str:
        patches = {layer: tuple(array.shape) for layer, array in self.patches_NPD.items()}
        return f"Tokens(special {tuple(self.special_NSD.shape)}, patches {patches})"


@dataclass(frozen=True)
class Batch:
    """B windows of T frames, still in the codec's form: decoding happens on the training device."""

    arrays: dict[str, Any]
    """Stored name (`special`, `layer_11`, and a codec's siblings) -> array (B, T, ...)."""
    time_s_BT: np.ndarray
    """Presentation time in the source of every frame, float64."""
    clip_index: np.ndarray
    """(B,) index of each window's clip in the windows that the batch is from."""
    targets: dict[str, Any] = field(default_factory=dict)
    """Name of a target -> array (B, ...), as the task has prepared it."""
    sent: dict[str, Any] = field(default_factory=dict)
    """Arrays and targets that are on their way to the training device already: each an `Upload`."""

    def __len__(self) -> int:
        return len(self.clip_index)

    def micro_batches(self, count: int) -> list[Batch]:
        """The windows of this batch in `count` batches of equal size, which share its memory."""
        size = len(self) // count
        cuts = [slice(first, first + size) for first in range(0, size * count, size)]
        return [
            Batch(
                {name: array[cut] for name, array in self.arrays.items()},
                self.time_s_BT[cut],
                self.clip_index[cut],
                {name: array[cut] for name, array in self.targets.items()},
                {name: upload.part(cut) for name, upload in self.sent.items()},
            )
            for cut in cuts
        ]

    def __repr__(self) -> str:
        shapes = {name: tuple(array.shape) for name, array in self.arrays.items()}
        return f"Batch({len(self)} windows, {shapes})"


class OnDevice(NamedTuple):
    """B windows where the models are: tokens that left the codec, and their truth."""

    special_BTSD: torch.Tensor
    patches: dict[int, torch.Tensor]
    """layer -> (B, T, P, D), where P counts the patches that the windows keep."""
    targets: dict[str, torch.Tensor]
