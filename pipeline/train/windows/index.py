"""The index says which clips of a split have windows, and which rows of the cache each window is.

A window has instants, and at each it takes the cached frame that is on screen then, as extraction
and streams do (`pipeline.video.sampling`): a frame that stays on screen is taken again. Its first
instant is one for which the cache kept a frame, so that windows at the cache's own rate take every
frame once. What lies past the end of a short clip repeats its last frame (as the paper does), or
its first where it is read backwards; the times in the batch, and the truth, are always those of the
frames that were read.
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
from pipeline.records import Clip, Stride
from pipeline.video.sampling import (
    clock_s,
    counted_s,
    first_instant,
    frame_on_screen,
    frames_on_screen,
    sampled_for_s,
    shown_from_s,
)


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
    backwards: bool = False
    """Whether it is read against the direction of its clip."""


@dataclass(frozen=True)
class ClipRows:
    """One clip as rows of a store: consecutive cached frames (F)."""

    store: int
    first_row: int
    time_s: np.ndarray
    """(F,) presentation times in seconds. The first frame is on screen where the clip starts."""
    clock_s: np.ndarray
    """(F,) the times by which windows pick them, see `pipeline.video.sampling.clock_s`."""
    sampled_for_s: np.ndarray
    """(F,) the instants for which the cache kept them, by that clock."""
    end_s: float
    """Where the clip ends, by that clock: no instant lies there or later."""
    first_s: float
    """Presentation time of the first frame of its video."""
    zero_s: float
    """Presentation time that is second 0 of the clip's truth."""

    @property
    def gone_s(self) -> float:
        """The first instant at which the last frame is no longer on screen."""
        return shown_from_s(self.end_s, float(self.clock_s[-1]))

    def instants(self, start_s: float, fps: float) -> int:
        """The number of instants start_s + k / fps that lie in the clip; at least one."""
        return max(1, first_instant(self.end_s, float(self.clock_s[-1]), start_s, fps))


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
        fps: float | None,
    ) -> None:
        """`clips` and `clip_rows` belong together one by one. Windows have `num_frames` frames (T)
        at `fps` frames per second of window time; None: spread evenly over their clip."""
        self.clips, self.clip_rows = tuple(clips), tuple(clip_rows)
        self.skipped = dict(skipped)
        """clip_id -> why it is left out."""
        self.num_frames, self.fps = num_frames, fps

    def __len__(self) -> int:
        return len(self.clips)

    def locate(self, ref: WindowRef) -> WindowRows:
        """The rows and times of one window."""
        clip, rows = self.clips[ref.clip], self.clip_rows[ref.clip]
        fps, start_s = self.rate(ref.clip), self._start_s(ref)
        frames_T = frames_on_screen(rows.clock_s, start_s, fps, self.num_frames)
        if clip.reverse != ref.backwards:
            # The frame that is read last, the earliest, stands for what lies past the end.
            read_T = frames_T[: rows.instants(start_s, fps)][::-1]
            frames_T = np.pad(read_T, (0, self.num_frames - len(read_T)), mode="edge")
        return WindowRows(ref, rows.store, rows.first_row + frames_T, rows.time_s[frames_T])

    def rate(self, index: int) -> float:
        """Instants per second of the video in the windows of one clip."""
        if self.fps is not None:
            return self.fps / self.clips[index].speed
        rows = self.clip_rows[index]
        return self.num_frames / (rows.end_s - float(rows.sampled_for_s[0]))

    def _start_s(self, ref: WindowRef) -> float:
        """The first instant of a window: that of the cached frame which is on screen at its
        position. Position 1 is the last from which all instants lie in the clip."""
        rows = self.clip_rows[ref.clip]
        window_s = (self.num_frames - 1) / self.rate(ref.clip)
        starts_s_F, too_late_s = rows.sampled_for_s, rows.gone_s - window_s
        spare_s = max(0.0, too_late_s - float(starts_s_F[0]))
        frame = frame_on_screen(starts_s_F, float(starts_s_F[0]) + ref.position * spare_s)
        latest = int(np.searchsorted(starts_s_F, too_late_s)) - 1
        return float(starts_s_F[max(0, min(frame, latest))])

    @cached_property
    def padded(self) -> int:
        """The number of clips that are shorter than their window, so that their last frame is
        repeated."""
        return sum(self._is_padded(index) for index in range(len(self)))

    @cached_property
    def slower(self) -> int:
        """The number of clips with fewer frames per second than their window asks for, so that
        frames are repeated."""
        return sum(self._is_slower(index) for index in range(len(self)))

    def _is_padded(self, index: int) -> bool:
        rows = self.clip_rows[index]
        if self.fps is None:
            return len(rows.time_s) < self.num_frames
        return rows.instants(float(rows.sampled_for_s[0]), self.rate(index)) < self.num_frames

    def _is_slower(self, index: int) -> bool:
        clock_s = self.clip_rows[index].clock_s
        if self.fps is None or len(clock_s) < 2:
            return False
        # Half a step more than asked for is rounding of timestamps, and no lower rate.
        return float(np.median(np.diff(clock_s))) > 1.5 / self.rate(index)


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
    if settings.fps is not None and index.slower == len(index):
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
    rate = cache.cache_spec.frames.kept
    clock_s_F = clock_s(time_s, rate)
    first_s = cache.first_s(clip.video_id)
    sampled_for_s_F = sampled_for_s(clock_s_F, rate, first_s)
    length_s = _frame_length_s(time_s, cache.fps)
    end_s = float(sampled_for_s_F[-1]) + length_s
    start_s, stop_s = clip.stretch_s(first_s)
    first, stop = frame_on_screen(time_s, start_s), len(time_s)
    if stop_s is not None:
        stop = int(np.searchsorted(time_s, stop_s))
        if isinstance(rate, Stride):
            stop_s = counted_s(float(time_s[0]), float(stop), rate)
        end_s = min(end_s, stop_s)
    if stop <= first or start_s >= time_s[-1] + length_s:
        return _nothing_in(clip, first_s, time_s)
    return ClipRows(
        location.store,
        location.start + first,
        time_s[first:stop],
        clock_s_F[first:stop],
        sampled_for_s_F[first:stop],
        end_s,
        first_s,
        clip.zero_s(first_s),
    )


def _nothing_in(clip: Clip, first_s: float, time_s_F: np.ndarray) -> str:
    """What is said of a clip that holds none of the cached frames of its video, which have the
    presentation times `time_s_F`."""
    until = "its end" if clip.stop_s is None else f"{clip.stop_s:g}"
    asked = f"no cached frame in [{clip.start_s:g}, {until}) s"
    cached = f"its video is cached from {time_s_F[0]:.3f} to {time_s_F[-1]:.3f} s"
    if clip.clock == "file":
        return f"{asked}; {cached}"
    after_s = time_s_F - first_s
    return (
        f"{asked} after the first frame; its video is cached from {after_s[0]:.3f} to "
        f"{after_s[-1]:.3f} s after it ({time_s_F[0]:.3f} to {time_s_F[-1]:.3f} s on the clock of "
        "the file)"
    )


def _frame_length_s(time_s: np.ndarray, fps: float | None) -> float:
    """Seconds that the last cached frame of a video stays on screen: a step of the cache's rate,
    or, where it has every frame, as long as most of them do. A single frame stays for a second."""
    if fps is not None:
        return 1 / fps
    return float(np.median(np.diff(time_s))) if len(time_s) > 1 else 1.0


def require_rate(
    settings: WindowSettings, clips: Sequence[Clip], fps: float | None, where: str
) -> None:
    """Refuses windows of a higher rate than the `fps` frames per second that `where` holds (None:
    every frame), and windows of whole clips where clips differ in speed."""
    if settings.fps is None:
        speeds = sorted({clip.speed for clip in clips})
        if len(speeds) > 1:
            found = " and ".join(f"{speed:g}" for speed in speeds)
            raise BadInput(
                f"clips are played at speeds of {found}, which windows of whole clips do not show",
                'set windows.fps, and leave windows.span = "clip" out',
            )
        return
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
