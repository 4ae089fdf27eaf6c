"""Presentation times of decoded frames, judged before they are believed.

Frames come in the order in which they are shown. The times that a file gives them may be missing,
stand twice, leap away for a few frames, or be set back for good. A time is judged against those
before and after it and against the decode times, so that a bad one changes its own frame alone:

- A time to which later times do not hold, though it leaps away from those before it, is stray. The
  frame gets a time between its good neighbours.
- A leap to which later times hold is a gap in the recording, and stays. One of more than a day is
  another clock, such as one that wraps: all later times are moved back by as much.
- A time that does not come after the previous one is not believed. The frame gets a time between
  its neighbours, unless later times go on from there: then the file's clock was set back, and all
  of them are moved on by as much.

Times with which nothing is wrong pass through unchanged, bit for bit.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from statistics import median
from typing import Generic, NamedTuple, TypeVar

Frame = TypeVar("Frame")

LOOK_AHEAD = 32
"""Frames that a doubtful time is compared with. Up to half as many stray ones in a row are seen."""
REORDERED = 16
"""Frames by which a codec reorders at most (H.264, HEVC)."""
LEAP = 3.0
"""A step this many times as long as the usual one makes a time doubtful."""
USUAL_STEPS = 8
"""The last steps, whose median is the usual one."""
STRAY_RISES = 3
"""Times that lie too early are errors if they are this few, though they rise; more of them are a
clock that was set back."""
LONE_S = 3600.0
"""So far from all others, the very first or last time is stray: no other one can tell."""
ANOTHER_CLOCK_S = 86400.0
"""No gap in a recording is as long."""
EVEN = 1e-3
"""Steps that differ by this share of their length are equal but for rounding."""


class Stamp(NamedTuple):
    """The times that a file has for a decoded frame, in seconds."""

    shown_s: float | None
    """Presentation time. None: the file has none."""
    decoded_s: float | None = None
    """Decode time of the packet that the frame is from. None: not known."""

    def lead_s(self) -> float:
        """By how much the frame is shown after it is decoded; NaN if that is not known."""
        if self.shown_s is None or self.decoded_s is None:
            return math.nan
        return self.shown_s - self.decoded_s


def presentation_times(
    frames: Iterator[tuple[Frame, Stamp]], interval_s: float, look_ahead: int = LOOK_AHEAD
) -> Iterator[tuple[Frame, float]]:
    """Every frame with its time in seconds; times strictly increase.

    `interval_s` lies between two frames where no time says otherwise. At most `look_ahead` frames
    are held back, and only one while times rise by steps of the usual length. The first frame of a
    file without any times is shown at 0.
    """
    later = _Later(frames, look_ahead)
    clock = _Clock(interval_s)
    while (upcoming := later.pop()) is not None:
        frame, stamp = upcoming
        yield frame, clock.time_s(stamp, later)


def in_order_shown(frames: Iterator[tuple[Frame, Stamp]]) -> Iterator[tuple[Frame, Stamp]]:
    """For files that have decode times only, where a frame comes with that of its own packet: the
    k-th frame shown gets the k-th of these times.

    Packets that gave no frame thus leave a gap, and frames may have been reordered by up to
    `REORDERED` places.
    """
    waiting: deque[tuple[Frame, Stamp]] = deque()
    times_s: list[float] = []

    def first() -> tuple[Frame, Stamp]:
        frame, stamp = waiting.popleft()
        return frame, stamp if stamp.shown_s is None else Stamp(heapq.heappop(times_s))

    for frame, stamp in frames:
        waiting.append((frame, stamp))
        if stamp.shown_s is not None:
            heapq.heappush(times_s, stamp.shown_s)
        if len(waiting) > REORDERED:
            yield first()
    while waiting:
        yield first()


class _Later(Generic[Frame]):
    """The frames to come, none of which is taken from its source before it is asked for."""

    def __init__(self, frames: Iterator[tuple[Frame, Stamp]], limit: int) -> None:
        self._frames, self.limit = frames, limit
        self._held: deque[tuple[Frame, Stamp]] = deque()

    def pop(self) -> tuple[Frame, Stamp] | None:
        """The next frame, no longer held; None at the end."""
        return self._held.popleft() if self._held else next(self._frames, None)

    def times_s(self, count: int) -> list[float]:
        """What the file says of the next `count` frames, fewer at the end; NaN for nothing."""
        while len(self._held) < count and (upcoming := next(self._frames, None)) is not None:
            self._held.append(upcoming)
        return [math.nan if stamp.shown_s is None else stamp.shown_s for _, stamp in self._held][
            :count
        ]


class _Clock:
    """Gives one frame after the other its time."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._previous_s = -math.inf
        self._steps_s: deque[float] = deque(maxlen=USUAL_STEPS)
        self._offset_s = 0.0
        """By how much times are moved on where the file's clock was set back; below 0 where it
        leapt to another."""
        self._lead_s = -math.inf
        """How far a time that was believed lay after its decode time, at most."""

    def time_s(self, stamp: Stamp, later: _Later[Frame]) -> float:
        """The time of the next frame."""
        time_s = self._judged(stamp, later)
        if self._previous_s > -math.inf:
            self._steps_s.append(time_s - self._previous_s)
        self._previous_s = time_s
        return time_s

    def _judged(self, stamp: Stamp, later: _Later[Frame]) -> float:
        if stamp.shown_s is None:
            return self._substitute_s(later)
        time_s = self._on_s(stamp.shown_s)
        if time_s <= self._previous_s:
            step_s = self._set_back_step_s(stamp.shown_s, later)
            if step_s is None:
                return self._substitute_s(later)
            time_s = self._previous_s + min(step_s, self._interval_s)
            self._offset_s = time_s - stamp.shown_s
        elif self._is_stray(time_s, stamp, later):
            return self._substitute_s(later)
        elif time_s - self._previous_s > ANOTHER_CLOCK_S and self._previous_s > -math.inf:
            time_s = self._previous_s + self._usual_step_s()
            self._offset_s = time_s - stamp.shown_s
        if stamp.decoded_s is not None:
            self._lead_s = max(self._lead_s, stamp.lead_s())
        return time_s

    def _on_s(self, shown_s: float) -> float:
        """A time of the file, moved on while its clock is set back, or back where it is another."""
        is_own = shown_s > self._previous_s and self._offset_s >= 0
        return shown_s if is_own else shown_s + self._offset_s

    def _later_s(self, later: _Later[Frame], count: int) -> list[float]:
        return [self._on_s(shown_s) for shown_s in later.times_s(count)]

    def _is_doubtful(self, time_s: float, later: _Later[Frame]) -> bool:
        """Whether a time after the previous one needs a closer look: it leaps away from it, or the
        next time lies between the two."""
        if self._steps_s:
            next_s = self._later_s(later, 1)
            return self._leaps(time_s) or any(self._previous_s < at_s < time_s for at_s in next_s)
        # No step is known yet: the first three times are compared with each other.
        times_s = [self._previous_s, time_s, *self._later_s(later, 2)]
        times_s = times_s[1:] if self._previous_s == -math.inf else times_s[:3]
        steps_s = [after_s - before_s for before_s, after_s in pairwise(times_s)]
        return not (len(steps_s) == 2 and 0 < steps_s[0] <= LEAP * steps_s[1])

    def _leaps(self, time_s: float) -> bool:
        return time_s - self._previous_s > LEAP * self._usual_step_s()

    def _usual_step_s(self) -> float:
        return median(self._steps_s) if self._steps_s else self._interval_s

    def _is_stray(self, time_s: float, stamp: Stamp, later: _Later[Frame]) -> bool:
        """Whether a time after the previous one is contradicted by times that follow or, where too
        few do, by its decode time."""
        if not self._is_doubtful(time_s, later):
            return False
        later_s = self._later_s(later, later.limit)
        rise_through, _ = _longest_rise(later_s, time_s)
        rise_past, place = _longest_rise(later_s, self._previous_s)
        if rise_past > 1 + rise_through:
            return True
        if self._previous_s == -math.inf:
            return rise_past > 0 and self._is_stray_first(stamp, later_s[place] - time_s)
        leaps = self._leaps(time_s)
        if leaps and not rise_through and any(self._previous_s < at_s < time_s for at_s in later_s):
            return True
        if len(later_s) == later.limit or not leaps:
            return False
        step_s = time_s - self._previous_s
        if not later_s and step_s > LONE_S:
            return True
        # Where frames are reordered, the decode times of the last ones lie before a gap anyway.
        is_in_order = -math.inf < self._lead_s < self._usual_step_s()
        return is_in_order and stamp.lead_s() > self._lead_s + step_s / 2

    def _is_stray_first(self, stamp: Stamp, step_s: float) -> bool:
        """Whether the very first time is stray, which is by `step_s` earlier than the next good
        one: no frame is shown long before it is decoded."""
        return step_s > LONE_S or -stamp.lead_s() > step_s / 2

    def _set_back_step_s(self, shown_s: float, later: _Later[Frame]) -> float | None:
        """The step by which times go on from one that lies too early, evenly and for longer than
        errors do; None if they do not."""
        times_s = [shown_s, *later.times_s(USUAL_STEPS)]
        if any(self._on_s(time_s) > self._previous_s for time_s in times_s[: STRAY_RISES + 1]):
            return None
        steps_s = [after_s - before_s for before_s, after_s in pairwise(times_s)]
        usual_s = median(steps_s) if steps_s else self._interval_s
        return usual_s if all(0 < step_s <= LEAP * usual_s for step_s in steps_s) else None

    def _substitute_s(self, later: _Later[Frame]) -> float:
        """A time for a frame whose own is missing or bad: an interval after the previous one, but
        early enough for all such frames to come before the next good time."""
        later_s = self._later_s(later, later.limit)
        rise, place = _longest_rise(later_s, self._previous_s)
        is_first = self._previous_s == -math.inf
        # Headers say the average interval, which a single stray time spoils.
        usual_s = self._usual_step_s()
        interval_s = usual_s if self._interval_s > LEAP * usual_s else self._interval_s
        if not rise:
            return 0.0 if is_first else self._previous_s + interval_s
        if is_first:
            return later_s[place] - (place + 1) * interval_s
        even_s = (later_s[place] - self._previous_s) / (place + 2)
        # Where frames are missing between the two, an interval is nearer the truth than an even
        # share; where it is that share but for rounding, it is kept as it is.
        time_s = self._previous_s + (interval_s if interval_s <= even_s * (1 + EVEN) else even_s)
        return max(time_s, math.nextafter(self._previous_s, math.inf))


def _longest_rise(times_s: list[float], after_s: float) -> tuple[int, int]:
    """(length, place of its first time) of a longest series of times that rise and all lie after
    `after_s`; of several, the one that begins first."""
    latest_s: list[float] = []
    """The latest beginning of a series of 1, 2, ... times, below 0 so that they ascend."""
    first = -1
    for place in range(len(times_s) - 1, -1, -1):
        if not times_s[place] > after_s:
            continue
        length = bisect_left(latest_s, -times_s[place]) + 1
        if length >= len(latest_s):
            first = place
        latest_s[length - 1 : length] = [-times_s[place]]
    return len(latest_s), first
