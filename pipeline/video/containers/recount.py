"""How many frames a file can hold, where its header promises what cannot be true.

A clock that is set back makes hours of a second, a recording that nobody finished leaves a count of
four thousand millions, and some writers state their clock's 90,000 ticks as a rate. Plans are made
from such promises: so the packets of the beginning are counted where a promise is out of proportion
to the size of the file, and the rest of it is taken to be like them.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import av
from av.container import InputContainer
from av.video.stream import VideoStream

FRAME_BYTES = 32
"""Of a frame, on the average over a file: pictures in which nothing moves take as few."""
MOST_FPS = 240
"""Frames per second that are believed of a file that does not count its frames."""
CLOCKED = {"mpegts", "mpeg"}
"""Containers whose duration is made of the first and the last time in the file."""
COUNT_BYTES, CLOCKED_BYTES = 64 << 20, 8 << 20
"""Of the beginning of a file: counted where the header is not believed; and to find out whether to
believe a container that has no header."""
FAR = 8
"""A promise that exceeds what was counted by this factor is wrong, whatever varies within a
file."""


class Claims(NamedTuple):
    """What is said of a video."""

    frames: int | None
    length_s: float | None
    fps: float | None

    @property
    def promised(self) -> float:
        """The frames that this amounts to, by its largest word."""
        by_clock = self.length_s * self.fps if self.length_s and self.fps else 0.0
        return max(self.frames or 0, by_clock)


def bytes_to_count(claims: Claims, container: InputContainer) -> int:
    """How much of the file to read before these claims are believed; 0: they are in proportion."""
    too_many = claims.promised * FRAME_BYTES > container.size
    too_fast = claims.fps is not None and claims.fps > MOST_FPS and claims.frames is None
    if too_many or too_fast:
        return COUNT_BYTES
    return CLOCKED_BYTES if container.format.name in CLOCKED else 0


def recounted(
    claims: Claims, container: InputContainer, stream: VideoStream, limit_bytes: int
) -> Claims:
    """The claims, with those replaced that exceed by far what is counted in the first `limit_bytes`
    of the file. `container` has just been opened, and is read."""
    times_s, num_packets, read_bytes = list[float](), 0, 0
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            num_packets += 1
            time = packet.pts if packet.dts is None else packet.dts
            if time is not None:
                times_s.append(float(time * packet.time_base))
            read_bytes = max(read_bytes + packet.size, packet.pos or 0)
            if read_bytes >= limit_bytes:
                break
        else:
            read_bytes = container.size
    except av.FFmpegError:
        read_bytes = container.size  # what can be read counts
    if not num_packets:
        return Claims(None, None, claims.fps)
    rest = container.size / max(1, read_bytes)
    frames, (_, length_s, fps) = round(num_packets * rest), claims
    if span := _span(times_s):
        interval_s, span_s = span
        if fps is not None and fps * interval_s > FAR:
            fps = 1 / interval_s
        if length_s is not None and length_s > FAR * rest * span_s:
            length_s = rest * span_s
    mended = Claims(claims.frames, length_s, fps)
    return mended._replace(frames=frames) if mended.promised > FAR * frames else mended


def _span(times_s: Sequence[float]) -> tuple[float, float] | None:
    """The usual interval of times, and how long they last: where a clock is set back it goes on as
    before, and what it had jumped ahead is taken back."""
    steps_s = [after - before for before, after in itertools.pairwise(times_s)]
    forward_s = [step for step in steps_s if step > 0]
    if not forward_s:
        return None
    interval_s = statistics.median(forward_s)
    lasts_s, jumps_s = interval_s, list[float]()
    for step in steps_s:
        if step > 0:
            lasts_s += step
            jumps_s += [step] if step > FAR * interval_s else []
            continue
        lasts_s += interval_s
        taken_back = [jump for jump in jumps_s if abs(jump + step) < jump / 2]
        if taken_back:
            lasts_s -= taken_back[-1]
            jumps_s.remove(taken_back[-1])
    return interval_s, lasts_s
