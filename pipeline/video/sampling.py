"""One rule says which frame stands for an instant: the one on screen then, which is the last frame
whose time is not after it.

Extraction keeps the frames that are on screen at the instants of its rate (or every n-th frame, or
all of them). A window takes those of the cached frames that are on screen at its own instants. A
stream does both, frame by frame: it keeps what the cache keeps, and answers at the instants of the
windows. All of them count instants with `first_instant`, so that they agree to the frame at any
rates, through gaps and at variable rates.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import numpy as np

from pipeline.records import Rate, Stride

TOLERANCE_S = 1e-3
"""Matroska and FLV round times to 1 ms: a frame this late still counts as shown at an instant, but
never more than half its distance to the frame before, which is less at 500 frames per second."""

Times = TypeVar("Times", float, np.ndarray)


def shown_from_s(time_s: Times, previous_s: Times) -> Times:
    """The earliest instant at which a frame that appears at `time_s`, after one that appeared at
    `previous_s`, counts as on screen."""
    shown_s: Times = time_s - np.minimum(TOLERANCE_S, (time_s - previous_s) / 2)
    return shown_s


def first_instant(time_s: float, previous_s: float, start_s: float, fps: float) -> int:
    """Number k of the first of the instants start_s + k / fps at which a frame is on screen that
    appears at `time_s`, after one that appeared at `previous_s`. Below 0 where that is before
    `start_s`.

    A frame is on screen from its own first instant to before that of the next frame; where both are
    the same, it is on screen at none.
    """
    return math.ceil((shown_from_s(time_s, previous_s) - start_s) * fps)


def first_instants(time_s_F: np.ndarray, start_s: float, fps: float) -> np.ndarray:
    """(F,) int64: `first_instant` of consecutive frames with ascending times. What came before the
    first one, if anything did, came at `start_s`."""
    previous_s_F = np.concatenate([np.minimum(time_s_F[:1], start_s), time_s_F[:-1]])
    instants_F: np.ndarray = np.ceil((shown_from_s(time_s_F, previous_s_F) - start_s) * fps)
    return instants_F.astype(np.int64)


def frames_on_screen(time_s_F: np.ndarray, start_s: float, fps: float, count: int) -> np.ndarray:
    """(count,) int64: index into the ascending times of the frame that is on screen at each of the
    instants start_s + k / fps, k = 0 .. count - 1. The first frame also stands for what is before
    it, the last for what is after it."""
    first_F = first_instants(time_s_F, start_s, fps)
    return np.maximum(np.searchsorted(first_F, np.arange(count), side="right") - 1, 0)


def frame_on_screen(time_s_F: np.ndarray, instant_s: float) -> int:
    """Index into the ascending times of the frame that is on screen at one instant."""
    return int(frames_on_screen(time_s_F, instant_s, 1.0, 1)[0])


def are_sampled(time_s_F: np.ndarray, end_s: float, fps: float) -> np.ndarray:
    """(F,) bool: which frames of a video, the last of which ends at `end_s`, are on screen at one
    of the instants time_s_F[0] + k / fps, k = 0, 1, ..."""
    times_s = np.append(time_s_F, end_s)
    return np.diff(first_instants(times_s, float(times_s[0]), fps)) > 0


def frames_apart(stride: Stride, native_fps: float | None) -> int:
    """n, where every n-th frame of a video of `native_fps` frames per second is kept; 1 where
    nobody knows the video's rate."""
    return max(1, round((native_fps or stride.fps) / stride.fps))


class Sampler:
    """Decides, frame by frame, which frames of a video a rate keeps."""

    def __init__(
        self, rate: Rate, first_s: float, begin_s: float, native_fps: float | None
    ) -> None:
        """`first_s` is when the video's first frame appears, `begin_s` when the first one does that
        is asked about, `native_fps` its own rate."""
        self.rate, self.first_s = rate, first_s
        self._passed = 0
        """Instants, or frames, before the next frame."""
        if rate is not None and not isinstance(rate, Stride):
            self._passed = first_instant(begin_s, first_s, first_s, rate)
        self._apart = frames_apart(rate, native_fps) if isinstance(rate, Stride) else 1

    def keeps(self, time_s: float, next_s: float) -> bool:
        """Whether the next frame is kept, which is on screen from `time_s` to `next_s`."""
        passed = self._passed
        if self.rate is None or isinstance(self.rate, Stride):
            self._passed += 1
            return passed % self._apart == 0
        self._passed = first_instant(next_s, time_s, self.first_s, self.rate)
        return self._passed > passed


def counted_s(first_s: float, number: Times, stride: Stride) -> Times:
    """The time by which the frame is picked that has this number among those that a stride kept:
    they count as evenly `stride.fps` a second, as in the released code of the paper."""
    time_s: Times = first_s + number / stride.fps
    return time_s


def clock_s(time_s_F: np.ndarray, rate: Rate) -> np.ndarray:
    """(F,) seconds: the times by which windows pick a video's cached frames, all of which are
    given: their presentation times; of a stride those of `counted_s`."""
    if isinstance(rate, Stride):
        return counted_s(float(time_s_F[0]), np.arange(len(time_s_F), dtype=float), rate)
    return time_s_F


def sampled_for_s(clock_s_F: np.ndarray, rate: Rate, first_s: float) -> np.ndarray:
    """(F,) seconds: the instants for which a cache kept a video's frames, all of whose times by
    `clock_s` are given. Those of a rate in frames per second are multiples of a step after
    `first_s`, when the video's first frame appears; otherwise they are the frames' own."""
    if rate is None or isinstance(rate, Stride):
        return clock_s_F
    return first_s + first_instants(clock_s_F, first_s, rate) / rate


class _Moment(NamedTuple):
    """When something happens in a stream: presentation time, and time by the clock of windows."""

    time_s: float
    clock_s: float


class StreamClock:
    """Counts, while the cached frames of a video come one after the other, at how many instants of
    a stream each is on screen.

    The stream begins at the instant for which the cache kept the frame that is on screen at
    `start_s`, in seconds after the first frame, as a window does that begins with this frame; its
    instants are 1 / fps apart.
    """

    def __init__(self, fps: float, cached: Rate, start_s: float = 0.0) -> None:
        self.fps, self.cached, self.start_s = fps, cached, start_s
        self._first_s = math.nan
        """When the video's first frame appears."""
        self._last: _Moment | None = None
        """Where the last frame appears."""
        self._previous: _Moment | None = None
        """Where the one before it appears; before the first one, the video begins."""
        self._frames = 0
        self._begin_s: float | None = None
        """The first instant, by the clock of windows, once it is known."""
        self._answered = 0
        """Instants before the first one of the last frame."""

    @property
    def has_begun(self) -> bool:
        """Whether an instant has been counted."""
        return self._begin_s is not None

    def frame(self, time_s: float, first_s: float) -> int:
        """The next frame appears at `time_s`, in a video whose first frame appears at `first_s`: at
        how many instants that before it was on screen; 0 where there was none."""
        count, self._first_s = self.end(time_s), first_s
        appears = self._moment(time_s)
        self._previous, self._last = self._last or self._moment(first_s), appears
        self._frames += 1
        return count

    def end(self, end_s: float) -> int:
        """At how many instants the last frame is on screen, which stays until `end_s`; 0 where
        there was none."""
        if self._last is None:
            return 0
        last, end = self._last, self._moment(end_s)
        if self._begin_s is None:
            if shown_from_s(end_s, last.time_s) <= self._first_s + self.start_s:
                return 0
            self._begin_s = self._sampled_for_s(last)
        before = max(first_instant(end.clock_s, last.clock_s, self._begin_s, self.fps), 0)
        count, self._answered = before - self._answered, before
        return count

    def _moment(self, time_s: float) -> _Moment:
        """The moment at which the next frame appears, or the video ends."""
        if isinstance(self.cached, Stride):
            return _Moment(time_s, counted_s(self._first_s, self._frames, self.cached))
        return _Moment(time_s, time_s)

    def _sampled_for_s(self, last: _Moment) -> float:
        """`sampled_for_s` of the last frame."""
        if self.cached is None or isinstance(self.cached, Stride):
            return last.clock_s
        assert self._previous is not None
        number = first_instant(last.clock_s, self._previous.clock_s, self._first_s, self.cached)
        return self._first_s + number / self.cached
