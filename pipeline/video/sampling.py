"""One rule says which frame stands for an instant: the one on screen then, which is the last frame
whose time is not after it.

Extraction keeps the frames that are on screen at the instants of its rate (or every n-th frame, or
all of them). A window takes those of the cached frames that are on screen at its own instants, by a
clock that makes its steps even wherever the rates allow it (`counting`), and that never drifts away
from frames that come as often as its instants (`Instants`). A stream does both, frame by frame: it
keeps what the cache keeps, and answers at the instants of the windows.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import NamedTuple, TypeVar

import numpy as np

from pipeline.records import Rate, Step, Stride

TOLERANCE_S = 1e-3
"""Matroska and FLV round times to 1 ms: a frame this late still counts as shown at an instant, but
never more than half its distance to the frame before, which is less at 500 frames per second."""
DRIFT = 1 / 500
"""Rates that differ by less count as the same: those of NTSC are 1 / 1000 below a whole number."""

Times = TypeVar("Times", float, np.ndarray)


def shown_from_s(time_s: Times, previous_s: Times, tolerance_s: float = TOLERANCE_S) -> Times:
    """The earliest instant at which a frame that appears at `time_s`, after one that appeared at
    `previous_s`, counts as on screen."""
    shown_s: Times = time_s - np.minimum(tolerance_s, (time_s - previous_s) / 2)
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


def frame_on_screen(time_s_F: np.ndarray, instant_s: float) -> int:
    """Index into the ascending times of the frame that is on screen at one instant. The first frame
    also stands for what is before it, the last for what is after it."""
    first_F = first_instants(time_s_F, instant_s, 1.0)
    return max(int(np.searchsorted(first_F, 0, side="right")) - 1, 0)


def are_sampled(time_s_F: np.ndarray, end_s: float, fps: float) -> np.ndarray:
    """(F,) bool: which frames of a video, the last of which ends at `end_s`, are on screen at one
    of the instants time_s_F[0] + k / fps, k = 0, 1, ..."""
    times_s = np.append(time_s_F, end_s)
    return np.diff(first_instants(times_s, float(times_s[0]), fps)) > 0


def frames_apart(stride: Stride, native_fps: float | None) -> int:
    """n, where every n-th frame of a video of `native_fps` frames per second is kept; 1 where
    nobody knows the video's rate and it matters."""
    if stride.fps is None:
        return stride.every
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


class Count(NamedTuple):
    """How cached frames count where windows count them, instead of looking at their times."""

    fps: float
    """So many that come one after the other count as evenly one second (or one row)."""
    by_stay: bool
    """Whether a frame counts for longer that stays on screen for longer than it should."""


def counting(cached: Rate, step: Step) -> Count | None:
    """How the frames that `cached` keeps count for windows of this step; None: their presentation
    times do.

    They count one by one where the step is one of cached frames, or whole steps of the cache's own
    rate: however unevenly a rate falls on the frames of a video, the windows then take every k-th
    cached frame. A frame that stays on screen for more than two and a half steps of the rate, or
    with the two before it for more than five (in a gap, at a variable rate, in a video slower than
    three fifths of the rate), counts for as long as it stays. What a stride of a rate kept counts
    evenly, as in the released code of the paper.
    """
    if step.in_rows:
        return Count(1.0, by_stay=False)
    if isinstance(cached, Stride):
        return None if cached.fps is None else Count(cached.fps, by_stay=False)
    if cached is None:
        return None
    steps = step.size * cached
    is_whole = round(steps) >= 1 and abs(steps - round(steps)) <= DRIFT * steps
    return Count(cached, by_stay=True) if is_whole else None


def clock_of(time_s_F: np.ndarray, count: Count | None) -> np.ndarray:
    """(F,) ascending: the times by which windows pick the cached frames of a video, all of which
    are given by their presentation times."""
    if count is None or len(time_s_F) < 2:
        return time_s_F
    stay_s_E = np.diff(time_s_F)
    earlier_s = np.concatenate([stay_s_E[:1], stay_s_E[:1], stay_s_E])
    counts_E = counts_once(stay_s_E, earlier_s[1:-1] + earlier_s[:-2], count)
    clock_F: np.ndarray = np.cumsum([0.0, *np.where(counts_E, 1 / count.fps, stay_s_E)])
    return clock_F


def counts_once(stay_s: Times, before_s: Times, count: Count) -> Times:
    """bool: whether a frame that stays on screen for `stay_s`, after two that stayed for `before_s`
    together, counts as one, whatever its time is."""
    is_short = (stay_s <= 2.5 / count.fps + TOLERANCE_S) & (
        stay_s + before_s <= 5 / count.fps + 2 * TOLERANCE_S
    )
    once: Times = is_short | (not count.by_stay)
    return once


class Instants:
    """The instants of a window or a stream, one after the other, by the clock of `clock_of`.

    They are a step apart. One that lies within a millisecond or a 500th of a step of the moment at
    which a frame appears is moved there, so that neither rounded times nor a rate that is a little
    off (29.97 at 30, 15 or 10) add up to a frame that is taken twice or left out.
    """

    def __init__(self, step: Step, begin: float) -> None:
        self.step, self.instant = step.size, begin
        self.tolerance = TOLERANCE_S + DRIFT * step.size

    def is_before(self, appears: float, previous: float) -> bool:
        """Whether the instant is over when a frame appears after one that did at `previous`."""
        return self.instant < appears - min(self.tolerance, (appears - previous) / 2)

    def take(self, appeared: float) -> None:
        """Goes on to the next instant; at this one the frame is on screen that had `appeared`."""
        is_near = self.instant - appeared <= self.tolerance
        self.instant = (appeared if is_near else self.instant) + self.step


def frames_taken(clock_E: np.ndarray, first: int, step: Step, count: int) -> list[int]:
    """The frames that are on screen at `count` instants, the first of which is when frame `first`
    appears. (F + 1,) ascending times say when each of F frames appears and when the last one ends;
    F stands for instants after that."""
    instants, last = Instants(step, float(clock_E[first])), len(clock_E) - 1
    taken, frame = [], first
    for _ in range(count):
        frame = bisect_right(clock_E, instants.instant, frame) - 1
        if frame < last and not instants.is_before(clock_E[frame + 1], clock_E[frame]):
            frame += 1
        taken.append(frame)
        instants.take(float(clock_E[frame]))
    return taken


class StreamClock:
    """Counts, while the cached frames of a video come one after the other, at how many instants of
    a stream each is on screen.

    The stream begins with the frame that is on screen at `start_s`, in seconds after the first
    frame, as a window does that begins with this frame; its instants are a step apart.
    """

    def __init__(self, step: Step, cached: Rate, start_s: float = 0.0) -> None:
        self.step, self.start_s = step, start_s
        self.count = counting(cached, step)
        self._first_s = self._last_s = self._clock = math.nan
        """When the video's first frame and the last one appear, and the latter by `clock_of`."""
        self._stays_s: tuple[float, ...] = ()
        """How long the two frames before the last one were on screen, as far as there were
        such."""
        self._instants: Instants | None = None

    @property
    def has_begun(self) -> bool:
        """Whether an instant has been counted."""
        return self._instants is not None

    def frame(self, time_s: float, first_s: float) -> int:
        """The next frame appears at `time_s`, in a video whose first frame appears at `first_s`: at
        how many instants that before it was on screen; 0 where there was none."""
        count, self._first_s = self.end(time_s), first_s
        if math.isnan(self._clock):
            self._clock = 0.0 if self.count else time_s
        else:
            self._clock = self._clock_at(time_s)
            self._stays_s = (*self._stays_s[-1:], time_s - self._last_s)
        self._last_s = time_s
        return count

    def end(self, end_s: float) -> int:
        """At how many instants the last frame is on screen, which stays until `end_s`; 0 where
        there was none."""
        if math.isnan(self._clock):
            return 0
        if self._instants is None:
            if shown_from_s(end_s, self._last_s) <= self._first_s + self.start_s:
                return 0
            self._instants = Instants(self.step, self._clock)
        ends, count = self._clock_at(end_s), 0
        while self._instants.is_before(ends, self._clock):
            self._instants.take(self._clock)
            count += 1
        return count

    def _clock_at(self, end_s: float) -> float:
        """The time by `clock_of` at which the last frame ends, if that is at `end_s`."""
        if self.count is None:
            return end_s
        stay_s = end_s - self._last_s
        first_s, *_ = (*self._stays_s, stay_s)
        last_s = self._stays_s[-1] if self._stays_s else stay_s
        once = counts_once(stay_s, last_s + first_s, self.count)
        return self._clock + (1 / self.count.fps if once else stay_s)
