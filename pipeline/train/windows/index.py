"""The index says which clips of a split have windows, and which rows of the cache each window is.

A window's frames are asked for in seconds and the nearest cached frame of the clip is taken, so
that variable frame rate, rounding of timestamps and a cache of a higher rate all read right. What
lies past the end of a short clip repeats its last frame (as the paper does); the times in the
batch, and the truth, are always those of the frames that were read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from pipeline.cache.cache import Cache
from pipeline.cache.layout import TIMES
from pipeline.config.cache_spec import BASE
from pipeline.config.recipe import WindowSettings
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import BadInput
from pipeline.records import Clip

TIE_S = 1e-6
"""Distances this close count as equal: a window in the middle of a clip often falls half way
between frames, and rounding must not decide frame by frame which neighbour is taken."""


class WindowRef(NamedTuple):
    """One window to read."""

    clip: int
    """Index of its clip in the window index."""
    position: float
    """Where in the clip the window lies: 0 is the first possible start, 1 the last."""
    number: int | None = None
    """Number of the sample in the training stream; None in evaluation, where nothing is drawn at
    random."""
    view: str = BASE


@dataclass(frozen=True)
class ClipRows:
    """One clip as rows of a store: consecutive cached frames, and the times of these in seconds."""

    store: int
    first_row: int
    time_s: np.ndarray


@dataclass(frozen=True)
class WindowRows:
    """One window as rows of a store, in the order in which they are read, and their times in
    seconds. A row may come more than once."""

    ref: WindowRef
    store: int
    rows_T: np.ndarray
    time_s_T: np.ndarray


class WindowIndex:
    """The clips that can be read, and the rows of their windows; reads nothing itself."""

    def __init__(
        self,
        clips: Sequence[Clip],
        clip_rows: Sequence[ClipRows],
        skipped: Mapping[str, str],
        num_frames: int,
        fps: float,
    ) -> None:
        """`clips` and `clip_rows` belong together one by one. Windows have `num_frames` frames (T)
        at `fps` frames per second of window time."""
        self.clips, self.clip_rows = tuple(clips), tuple(clip_rows)
        self.skipped = dict(skipped)
        """clip_id -> why it is left out."""
        self.num_frames, self.fps = num_frames, fps

    def __len__(self) -> int:
        return len(self.clips)

    def locate(self, ref: WindowRef) -> WindowRows:
        """The rows and times of one window."""
        clip, clip_rows = self.clips[ref.clip], self.clip_rows[ref.clip]
        start_s = float(clip_rows.time_s[0]) + ref.position * max(0.0, self._spare_s(ref.clip))
        asked_s = window_times(start_s, self.num_frames, self.fps, clip.speed, clip.reverse)
        frames_T = nearest_frames(clip_rows.time_s, asked_s)
        return WindowRows(
            ref, clip_rows.store, clip_rows.first_row + frames_T, clip_rows.time_s[frames_T]
        )

    @cached_property
    def padded(self) -> int:
        """The number of clips that are shorter than their window, so that their last frame is
        repeated."""
        return sum(self._spare_s(index) < 0 for index in range(len(self)))

    @cached_property
    def slower(self) -> int:
        """The number of clips with fewer frames per second than their window asks for, so that
        frames are repeated."""
        return sum(self._is_slower(index) for index in range(len(self)))

    def _spare_s(self, index: int) -> float:
        """By how many seconds the clip is longer than a window; negative if it is shorter."""
        time_s = self.clip_rows[index].time_s
        window_s = (self.num_frames - 1) * self.clips[index].speed / self.fps
        return float(time_s[-1] - time_s[0]) - window_s

    def _is_slower(self, index: int) -> bool:
        time_s = self.clip_rows[index].time_s
        step_s = self.clips[index].speed / self.fps
        # Half a step more than asked for is rounding of timestamps, and no lower rate.
        return len(time_s) > 1 and float(np.median(np.diff(time_s))) > 1.5 * step_s


def window_times(
    start_s: float, frames: int, fps: float, speed: float, reverse: bool
) -> np.ndarray:
    """(T,) source times of a window whose earliest frame is at `start_s`, in the order they are
    read."""
    time_s = start_s + np.arange(frames) * (speed / fps)
    return time_s[::-1] if reverse else time_s


def nearest_frames(time_s: np.ndarray, asked_s: np.ndarray) -> np.ndarray:
    """Index into ascending `time_s` of the frame nearest to each asked time; the earlier one of two
    equally near."""
    if len(time_s) == 1:
        return np.zeros(len(asked_s), np.int64)
    after = np.clip(np.searchsorted(time_s, asked_s), 1, len(time_s) - 1)
    before = after - 1
    return np.where(asked_s - time_s[before] <= time_s[after] - asked_s + TIE_S, before, after)


def index_windows(
    cache: Cache,
    manifest: Manifest,
    split: str,
    clips: Sequence[Clip],
    settings: WindowSettings,
    allow_missing: bool,
) -> WindowIndex:
    """The index of `clips`, which are those of `split` that are used.

    Raises BadInput: clips that the cache does not cover, unless `allow_missing`, which leaves them
    out and lists them in `skipped`; no clip that is left; clips that all have a lower rate than the
    windows ask for.
    """
    rows_or_reason = [cache.hole(clip) or clip_rows_of(cache, clip) for clip in clips]
    skipped = {
        clip.clip_id: reason
        for clip, reason in zip(clips, rows_or_reason, strict=True)
        if isinstance(reason, str)
    }
    if skipped and not allow_missing:
        clip_id, reason = next(iter(skipped.items()))
        raise BadInput(
            f"cache {cache} has holes: {len(skipped)} of {len(clips)} clips of split '{split}' "
            f"are not covered, the first is {clip_id}: {reason}",
            f"finish extraction, or see them with: stillframe status {cache}; "
            "--allow-missing goes on without them",
        )
    covered = [
        (clip, rows)
        for clip, rows in zip(clips, rows_or_reason, strict=True)
        if isinstance(rows, ClipRows)
    ]
    if not covered:
        raise BadInput(
            f"split '{split}' of {manifest.folder} has no clip that {cache} covers",
            "extract its videos first",
        )
    num_frames = settings.frames if split == "train" else settings.eval_frames or settings.frames
    used_clips, clip_rows = zip(*covered, strict=True)
    index = WindowIndex(used_clips, clip_rows, skipped, num_frames, settings.fps)
    if index.slower == len(index):
        raise BadInput(
            f"windows want {settings.fps:g} frames per second, "
            f"every video of split '{split}' has fewer in {cache}",
            "lower windows.fps",
        )
    return index


def clip_rows_of(cache: Cache, clip: Clip) -> ClipRows | str:
    """Where the frames of a covered clip lie, or why there are none."""
    location = cache.locations[clip.video_id]
    time_s = cache.small_array(location.store, TIMES)[location.start : location.stop]
    first = int(np.searchsorted(time_s, clip.start_s))
    stop = len(time_s) if clip.stop_s is None else int(np.searchsorted(time_s, clip.stop_s))
    if stop <= first:
        end = "its end" if clip.stop_s is None else f"{clip.stop_s:g}"
        cached = f"its video is cached from {time_s[0]:.3f} to {time_s[-1]:.3f} s"
        return f"no cached frame in [{clip.start_s:g}, {end}) s; {cached}"
    return ClipRows(location.store, location.start + first, time_s[first:stop])


def require_rate(
    settings: WindowSettings, clips: Sequence[Clip], fps: float | None, where: str
) -> None:
    """Refuses windows of a higher rate than the `fps` frames per second that `where` holds (None:
    every frame)."""
    asked_fps = settings.fps / min((clip.speed for clip in clips), default=1.0)
    if fps is not None and asked_fps > fps * (1 + 1e-6):
        raise BadInput(
            f"windows want {asked_fps:g} frames per second, {where} holds {fps:g}",
            f"set windows.fps to at most {fps * settings.fps / asked_fps:g}, "
            "or extract with a higher frames.fps",
        )


def clips_of(manifest: Manifest, split: str, settings: WindowSettings) -> list[Clip]:
    """Clips of a split: of the training split, those of the share that is used."""
    clips = [manifest.clips[index] for index in manifest.split(split)]
    if split != "train" or settings.train_fraction == 1:
        return clips
    kept = share_of_videos(clips, settings.train_fraction, settings.seed)
    return [clip for clip in clips if clip.video_id in kept]


def share_of_videos(clips: Sequence[Clip], fraction: float, seed: int) -> set[str]:
    """ids of the videos in a share of a split: of every label alike, at least one, and nested for
    one seed."""
    # Backwards, so that a video counts with its first label.
    label_of = {clip.video_id: clip.label or "" for clip in reversed(clips)}
    by_label: dict[str, list[str]] = {}
    for video_id in sorted(label_of):
        by_label.setdefault(label_of[video_id], []).append(video_id)
    kept: set[str] = set()
    for label, videos in by_label.items():
        order = np.random.default_rng([seed, *label.encode(errors="surrogateescape")]).permutation(
            len(videos)
        )
        # 1e-9: 0.07 of 100 videos is 7, though 0.07 * 100 is a little more in floating point.
        kept |= {videos[index] for index in order[: math.ceil(fraction * len(videos) - 1e-9)]}
    return kept
