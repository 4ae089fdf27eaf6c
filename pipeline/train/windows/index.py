"""The index says which clips of a split have windows, and which rows of the cache each window is.

A window begins when a cached frame appears, and takes the cached frame that is on screen at each of
its instants, as extraction and streams do (`pipeline.video.sampling`): every k-th one where its
rate allows it, while a frame that stays on screen is taken again. What lies past the end of a short
clip repeats its last frame (as the paper does), or its first where it is read backwards; the times
in the batch, and the truth, are always those of the frames that were read.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from pipeline.cache.cache import Cache
from pipeline.cache.layout import TIMES
from pipeline.config.cache_spec import BASE, CacheSpec
from pipeline.config.recipe import WindowSettings
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import BadInput
from pipeline.records import Clip, Step
from pipeline.video.sampling import (
    TOLERANCE_S,
    clock_of,
    counting,
    frame_on_screen,
    frames_taken,
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
    clock_E: np.ndarray
    """(F + 1,) the times by which windows pick them, see `pipeline.video.sampling.clock_of`, and
    when the clip ends by that clock: no instant lies there or later."""
    step: Step
    """From one frame of a window to the next."""
    first_s: float
    """Presentation time of the first frame of its video."""
    zero_s: float
    """Presentation time that is second 0 of the clip's truth."""

    def __len__(self) -> int:
        return len(self.time_s)

    @cached_property
    def step_s(self) -> float:
        """Seconds of the video from one frame of a window to the next, as a rule."""
        if not self.step.in_rows:
            return self.step.size
        return self.step.size * _row_s(self.time_s)

    def taken(self, first: int, num_frames: int) -> list[int]:
        """The frames of a window that begins with frame `first`; F stands for those that lie past
        the end."""
        return frames_taken(self.clock_E, first, self.step, num_frames)

    def last_start(self, num_frames: int) -> int:
        """The last frame that a window can begin with and end in the clip; 0 if there is none."""
        window = (num_frames - 1) * self.step.size
        guess = max(0, bisect_right(self.clock_E, self.clock_E[-1] - window) - 1)
        guess = min(guess, len(self) - 1)
        while guess and self.taken(guess, num_frames)[-1] == len(self):
            guess -= 1
        while guess + 1 < len(self) and self.taken(guess + 1, num_frames)[-1] < len(self):
            guess += 1
        return guess


@dataclass(frozen=True)
class WindowRows:
    """One window as rows of a store, in the order in which they are read, and their times in
    seconds. A row may come more than once."""

    ref: WindowRef
    store: int
    rows_T: np.ndarray
    time_s_T: np.ndarray
    kept_P: np.ndarray | None = None
    """Mask of the patch tokens of each frame that are read; None: all."""


class WindowIndex:
    """The clips that can be read, and the rows of their windows; reads nothing itself."""

    def __init__(
        self,
        clips: Sequence[Clip],
        clip_rows: Sequence[ClipRows],
        skipped: Mapping[str, str],
        num_frames: int,
        settings: WindowSettings,
        of_whole_clips: bool = False,
    ) -> None:
        """`clips` and `clip_rows` belong together one by one. Windows have `num_frames` frames (T),
        or, `of_whole_clips`, as many as their clip has."""
        self.clips, self.clip_rows = tuple(clips), tuple(clip_rows)
        self.skipped = dict(skipped)
        """clip_id -> why it is left out."""
        self.num_frames, self.settings = num_frames, settings
        self.of_whole_clips = of_whole_clips
        self._last_starts: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.clips)

    def locate(self, ref: WindowRef) -> WindowRows:
        """The rows and times of one window."""
        clip, rows = self.clips[ref.clip], self.clip_rows[ref.clip]
        taken_T = np.array(rows.taken(self._start(ref), self.frames_of(ref.clip)))
        frames_T = np.minimum(taken_T, len(rows) - 1)
        if clip.reverse != ref.backwards:
            # The frame that is read last, the earliest, stands for what lies past the end.
            read_T = taken_T[taken_T < len(rows)][::-1]
            frames_T = np.pad(read_T, (0, len(taken_T) - len(read_T)), mode="edge")
        return WindowRows(ref, rows.store, rows.first_row + frames_T, rows.time_s[frames_T])

    def frames_of(self, index: int) -> int:
        """The frames of a window of a clip."""
        if not self.of_whole_clips:
            return self.num_frames
        rows = self.clip_rows[index]
        return max(1, _instants(float(rows.clock_E[-1] - rows.clock_E[0]), rows.step))

    def last_start(self, index: int) -> int:
        """The last frame that a window of a clip can begin with."""
        if self.of_whole_clips:
            return 0
        if index not in self._last_starts:
            self._last_starts[index] = self.clip_rows[index].last_start(self.num_frames)
        return self._last_starts[index]

    def _start(self, ref: WindowRef) -> int:
        """The first frame of a window: the one on screen at its position. Position 1 is the last
        with which all of the window lies in the clip."""
        rows, last = self.clip_rows[ref.clip], self.last_start(ref.clip)
        begin, end = float(rows.clock_E[0]), float(rows.clock_E[last + 1])
        frame = bisect_right(rows.clock_E, begin + ref.position * (end - begin)) - 1
        return min(frame, last)

    @cached_property
    def padded(self) -> int:
        """The number of clips that are shorter than their window, so that their last frame is
        repeated."""
        return sum(self._is_padded(index) for index in range(len(self)))

    @cached_property
    def slower(self) -> int:
        """The number of clips with fewer frames per second than their window asks for, so that
        frames are repeated."""
        return sum(self.is_slower(index) for index in range(len(self)))

    def instants(self) -> Iterator[int]:
        """Instants of every clip, a step of its windows apart."""
        for rows in self.clip_rows:
            yield _instants(float(rows.clock_E[-1] - rows.clock_E[0]), rows.step)

    def _is_padded(self, index: int) -> bool:
        rows = self.clip_rows[index]
        if self.settings.span == "clip":
            return len(rows) < self.num_frames
        if self.of_whole_clips:
            return False
        return rows.taken(0, self.num_frames)[-1] == len(rows)

    def is_slower(self, index: int) -> bool:
        """Whether a clip has fewer frames per second than its window asks for."""
        rows = self.clip_rows[index]
        if self.settings.span == "clip" or len(rows) < 2:
            return False
        # Half a step more than asked for is rounding of timestamps, and no lower rate.
        most = 1.5 * rows.step.size + TOLERANCE_S
        return float(np.median(np.diff(rows.clock_E[:-1]))) > most


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
    num_frames = settings.frames if split == "train" else settings.held_out_frames
    rows_or_reason = [
        cache.hole(clip) or clip_rows_of(cache, clip, settings, num_frames) for clip in clips
    ]
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
    used_clips, clip_rows = zip(*covered, strict=True)
    whole_clips = split != "train" and settings.eval_frames == "clip"
    index = WindowIndex(used_clips, clip_rows, skipped, num_frames, settings, whole_clips)
    if settings.fps is not None and index.slower == len(index):
        raise BadInput(
            f"windows want {settings.fps:g} frames per second, "
            f"every video of split '{split}' has fewer in {cache}",
            "lower windows.fps",
        )
    return index


def clip_rows_of(
    cache: Cache, clip: Clip, settings: WindowSettings, num_frames: int
) -> ClipRows | str:
    """Where the frames of a covered clip lie, for windows of `num_frames`, or why there are
    none."""
    location = cache.locations[clip.video_id]
    time_s = cache.small_array(location.store, TIMES)[location.start : location.stop]
    first_s = cache.first_s(clip.video_id)
    length_s = 1 / cache.fps if cache.fps else _row_s(time_s)
    end_s = float(time_s[-1]) + length_s
    start_s, stop_s = clip.stretch_s(first_s)
    first, stop = frame_on_screen(time_s, start_s), len(time_s)
    if stop_s is not None:
        stop = int(np.searchsorted(time_s, stop_s))
        end_s = min(end_s, stop_s)
    if stop <= first or start_s >= time_s[-1] + length_s:
        return _nothing_in(clip, first_s, time_s)
    step = settings.step(clip.speed)
    # Of a whole clip the parts are equally long, whatever the cache counts.
    count = counting(cache.cache_spec.frames.kept, step) if step else None
    step = step or Step((end_s - float(time_s[first])) / num_frames)
    clock_E = clock_of(np.append(time_s[:stop], end_s), count)
    return ClipRows(
        location.store,
        location.start + first,
        time_s[first:stop],
        clock_E[first:],
        step,
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


def _row_s(time_s: np.ndarray) -> float:
    """Seconds that most cached frames stay on screen, and the last one is taken to where the cache
    has no rate. A single frame stays for a second."""
    return float(np.median(np.diff(time_s))) if len(time_s) > 1 else 1.0


def require_rate(
    settings: WindowSettings, clips: Sequence[Clip], fps: float | None, where: str
) -> None:
    """Refuses windows of a higher rate than the `fps` frames per second that `where` holds (None:
    every frame), and windows of whole clips where clips differ in speed."""
    if settings.span == "clip":
        speeds = sorted({clip.speed for clip in clips})
        if len(speeds) > 1:
            found = " and ".join(f"{speed:g}" for speed in speeds)
            raise BadInput(
                f"clips are played at speeds of {found}, which windows of whole clips do not show",
                'set windows.fps, and leave windows.span = "clip" out',
            )
        return
    slowest = min((clip.speed for clip in clips), default=1.0)
    if settings.every is not None:
        if settings.every * slowest < 1:
            raise BadInput(
                f"windows.every = {settings.every} is {settings.every * slowest:g} cached frames "
                f"a step for clips that are played at {slowest:g} times their speed",
                f"set windows.every to at least {math.ceil(1 / slowest)}",
            )
        return
    assert settings.fps is not None
    asked_fps = settings.fps / slowest
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


def windows_in(instants: int, frames: int) -> int:
    """Windows of so many frames that so many instants of a clip hold end to end, rounded, halves
    up, and at least one."""
    return max(1, (2 * instants + frames) // (2 * frames))


def _instants(length: float, step: Step) -> int:
    """Instants in a clip of that length, in seconds or in cached frames, as the step is."""
    return math.ceil(length / step.size - 1e-6)


def expected_windows(manifest: Manifest, settings: WindowSettings, spec: CacheSpec) -> int:
    """Windows of an epoch over a cache of `spec`, as far as the headers of the videos tell; a clip
    whose length they do not tell has one."""
    clips = clips_of(manifest, "train", settings)
    return sum(expected_windows_of(clip, manifest, settings, spec) for clip in clips)


def expected_windows_of(
    clip: Clip, manifest: Manifest, settings: WindowSettings, spec: CacheSpec
) -> int:
    """Those of one clip, see `expected_windows`."""
    if settings.per_clip == "one":
        return 1
    facts, stop_s = manifest.facts.get(clip.video_id), clip.stop_s
    step = settings.step(clip.speed)
    assert step is not None
    if facts is not None and facts.duration_s is not None:
        end_s = facts.duration_s + (facts.start_s if clip.clock == "file" else 0.0)
        stop_s = end_s if stop_s is None else min(stop_s, end_s)
    length = 0.0 if stop_s is None else max(0.0, stop_s - clip.start_s)
    if step.in_rows:
        every_frame = 0.0 if facts is None else (facts.fps or 0.0) / spec.frames.every
        length *= spec.frames.rate or every_frame
    return windows_in(_instants(length, step), settings.frames)


def share_of_videos(clips: Sequence[Clip], fraction: float, seed: int) -> set[str]:
    """ids of the videos in a share of a split: of every label alike, at least one, and nested for
    one seed. Raises BadInput where that is less than one video of any label."""
    # Backwards, so that a video counts with its first label.
    label_of = {clip.video_id: clip.label or "" for clip in reversed(clips)}
    by_label: dict[str, list[str]] = {}
    for video_id in sorted(label_of):
        by_label.setdefault(label_of[video_id], []).append(video_id)
    label, most = max(by_label.items(), key=lambda item: len(item[1]), default=("", []))
    if most and fraction * len(most) < 1 - 1e-9:
        raise BadInput(
            f"windows.train_fraction = {fraction:g} is less than one video of each label: the most "
            f"have {len(most)}" + (f", those of '{label}'" if label else ""),
            f"set windows.train_fraction to at least {math.ceil(1e4 / len(most)) / 1e4:g}",
        )
    kept: set[str] = set()
    for label, videos in by_label.items():
        order = np.random.default_rng([seed, *label.encode(errors="surrogateescape")]).permutation(
            len(videos)
        )
        # 1e-9: 0.07 of 100 videos is 7, though 0.07 * 100 is a little more in floating point.
        count = max(1, math.ceil(fraction * len(videos) - 1e-9))
        kept |= {videos[index] for index in order[:count]}
    return kept
