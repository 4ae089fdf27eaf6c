"""Answers about a live source: at every instant the newest frame, however long a step takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from pipeline.errors import count_text
from pipeline.train.stream import Seen, Stream
from pipeline.video.live.frames import LiveFrame, LiveFrames

REMEMBERED = 1000
"""Answers whose times are kept for the medians."""


class LiveAnswers:
    """The answers of a stream about the frames of a live source, see `Stream.step`.

    The first frame at or after every instant of the run's pace is answered. Where a step took so
    long that frames went by, the newest one is, and the instants before it are left out. State is
    kept where a lost connection was made again: the time between is a gap in the video.
    """

    def __init__(
        self, stream: Stream, frames: LiveFrames, asked: Mapping[str, Any] | None = None
    ) -> None:
        self.stream, self.frames, self.asked = stream, frames, asked
        self.left_out = 0
        """Instants without an answer, since their frames were dropped."""
        self._spent_s: deque[tuple[float, float, float]] = deque(maxlen=REMEMBERED)

    def __iter__(self) -> Iterator[Seen]:
        last_s: float | None = None
        missed = 0
        for frame in self.frames:
            if last_s is None:
                self.stream.reset(self.asked, 1 / frame.interval_s)
            missed += frame.missed
            if not self._is_due(frame, last_s):
                continue
            if last_s is not None:
                self.left_out += self._instants(missed, frame.time_s - last_s)
            missed, last_s = 0, frame.time_s
            seen = self.stream.step(frame.pixels_HWC, frame.time_s, frame.pixel_aspect)
            self._spent_s.append((frame.decode_s, self.stream.encode_s, self.stream.step_s))
            yield seen

    def _is_due(self, frame: LiveFrame, last_s: float | None) -> bool:
        if not self.stream.is_due(frame.time_s):
            return False
        # After a frame that came late for its instant, the next instant may be too near.
        pace = self.stream.pace
        return last_s is None or pace.in_rows or frame.time_s - last_s >= pace.size / 2

    def _instants(self, missed: int, after_s: float) -> int:
        """Instants that went by with frames that nobody had time for."""
        pace = self.stream.pace
        if pace.in_rows:
            return missed
        return max(0, min(missed, round(after_s / pace.size) - 1))

    def summary(self) -> list[str]:
        """Sentences for people: what was left out, and what took how long."""
        frames, lines = self.frames, []
        if frames.dropped:
            lines.append(
                f"{frames.dropped} of {frames.came} frames dropped, which came while a step was "
                f"computing; {count_text(self.left_out, 'instant')} without an answer"
            )
        if frames.damaged:
            lines.append(f"{count_text(frames.damaged, 'damaged picture')} passed over")
        if self._spent_s:
            decode, encode, step = (
                f"{1000 * median(part):.1f} ms" for part in zip(*self._spent_s, strict=True)
            )
            lines.append(f"medians: decode {decode}, encode {encode}, step {step}")
        return lines
