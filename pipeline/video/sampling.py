"""One rule says which frame stands for an instant: the one on screen then, which is the last frame
whose time is not after it.

Extraction keeps the frames that are on screen at the instants of its rate. A window takes those of
the cached frames that are on screen at its own instants. A stream does both, frame by frame: it
keeps what the cache keeps, and answers at the instants of the windows. All of them count instants
with `first_instant`, so that they agree to the frame at any rates, through gaps and at variable
rates.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np

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
    """(F,) int64: `first_instant` of consecutive frames with ascending times. The first frame is on
    screen from its own time on."""
    previous_s_F = np.concatenate([time_s_F[:1], time_s_F[:-1]])
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


def sampled_for_s(time_s_F: np.ndarray, fps: float | None) -> np.ndarray:
    """(F,) seconds: the instant for which a cache of `fps` frames per second kept each of a video's
    frames, all of whose cached frames these are; of a cache of every frame (None), their own
    times."""
    if fps is None:
        return time_s_F
    first_s = float(time_s_F[0])
    return first_s + first_instants(time_s_F, first_s, fps) / fps


class StreamClock:
    """Counts, while the cached frames of a video come one after the other, at how many instants of
    a stream each is on screen.

    The stream begins at the instant for which the cache kept the frame that is on screen at
    `start_s`, in seconds after the first frame, as a window does that begins with this frame; its
    instants are 1 / fps apart.
    """

    def __init__(self, fps: float, cached_fps: float | None, start_s: float = 0.0) -> None:
        self.fps, self.cached_fps, self.start_s = fps, cached_fps, start_s
        self._first_s = self._time_s = self._previous_s = math.nan
        self._begin_s: float | None = None
        """The first instant, once it is known."""
        self._answered = 0
        """Instants before the first one of the last frame."""

    @property
    def has_begun(self) -> bool:
        """Whether an instant has been counted."""
        return self._begin_s is not None

    def frame(self, time_s: float) -> int:
        """The next frame appears at `time_s`: at how many instants that before it was on screen; 0
        where there was none."""
        if math.isnan(self._time_s):
            self._first_s = self._previous_s = self._time_s = time_s
            return 0
        count = self.end(time_s)
        self._previous_s, self._time_s = self._time_s, time_s
        return count

    def end(self, end_s: float) -> int:
        """At how many instants the last frame is on screen, which stays until `end_s`."""
        if self._begin_s is None:
            if shown_from_s(end_s, self._time_s) <= self._first_s + self.start_s:
                return 0
            self._begin_s = self._sampled_for_s()
        before = max(first_instant(end_s, self._time_s, self._begin_s, self.fps), 0)
        count, self._answered = before - self._answered, before
        return count

    def _sampled_for_s(self) -> float:
        """`sampled_for_s` of the last frame."""
        if self.cached_fps is None:
            return self._time_s
        number = first_instant(self._time_s, self._previous_s, self._first_s, self.cached_fps)
        return self._first_s + number / self.cached_fps
