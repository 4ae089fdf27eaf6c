"""Frames of a live source while they come: decoded in a process of their own, the newest one at
hand, times kept true, lost connections made again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from pipeline.child_python import module_command, search_path
from pipeline.errors import BadVideo
from pipeline.video.live import process as live_process
from pipeline.video.live.process import LENGTHS
from pipeline.video.live.source import LiveSource

BACK_OFF_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Waits before a lost address is tried again; it is given up after the last of them."""
START_S = 120
"""Seconds after which a process that has not started never will."""
TICK_S = 0.2
"""Between two looks at a source that is silent."""
LEAP_S = 10.0
"""A time further ahead than this of the clock on the wall is that of another clock."""


class LiveFrame(NamedTuple):
    """A frame of a live source."""

    pixels_HWC: np.ndarray
    """uint8 RGB, upright."""
    time_s: float
    """After the first frame, by the source's own presentation times."""
    pixel_aspect: float
    """Width of a pixel over its height."""
    decode_s: float
    """Seconds that decoding it took, without waiting for its bytes."""
    interval_s: float
    """Seconds from one frame to the next, as the source says."""
    missed: int
    """Frames since the last one that was looked at, which nobody had time for."""


class LiveFrames:
    """The frames of a live source, from first to last. A frame that comes while the last one is
    still looked at takes the place of one that waits: nobody falls behind. With `every_frame` the
    source waits instead.

    An address whose connection is lost is connected again. Times then go on by the clock on the
    wall, as over a gap; so they do where the source sets its clock anew.
    """

    def __init__(
        self,
        source: LiveSource,
        every_frame: bool = False,
        timeout_s: float = 10.0,
        say: Callable[[str], None] = print,
    ) -> None:
        """`timeout_s`: silence after which a source has stalled. `say` is told of what goes on."""
        self.source, self.every_frame, self.timeout_s, self.say = (
            source,
            every_frame,
            timeout_s,
            say,
        )
        self.came = 0
        """Frames that were decoded."""
        self.dropped = 0
        """Of these, those that came while nobody had time for them."""
        self.damaged = 0
        """Frames and packets that could not be decoded, and were passed over."""
        self._clock = _Clock(source, every_frame)

    def __iter__(self) -> Iterator[LiveFrame]:
        """Raises BadVideo where the source cannot be opened, stalls, breaks off for good or ends
        without a frame."""
        attempt, name = 0, self.source.name
        while True:
            connection = _Connection(self)
            try:
                for frame in connection.frames():
                    attempt = 0
                    yield frame
                if not self.came:
                    raise BadVideo(f"{name}: ends before its first frame")
                return
            except _Lost as lost:
                reason = str(lost)
            finally:
                connection.close()
            if not self.source.is_address or not self.came:
                raise BadVideo(f"{name}: {reason}", self._hint(reason))
            if attempt == len(BACK_OFF_S):
                raise BadVideo(f"{name}: {reason}; given up after {attempt} attempts")
            self.say(f"{name}: {reason}; connecting again in {BACK_OFF_S[attempt]:g} s")
            time.sleep(BACK_OFF_S[attempt])
            self._clock.is_new = True
            attempt += 1

    def _hint(self, reason: str) -> str:
        return "wait longer: --timeout-s SECONDS" if reason.startswith("no frame for") else ""


class _Lost(Exception):
    """The source is not there any more, or was not in the first place."""


class _Clock:
    """A source's presentation times as seconds after its first frame, ascending."""

    def __init__(self, source: LiveSource, every_frame: bool) -> None:
        self.is_paced = not source.is_live and not every_frame
        self.every_frame = every_frame
        self.is_new = True
        """Whether the next time is that of a new connection."""
        self._offset_s = self._begin_s = 0.0
        self._last_s: float | None = None
        self._last_at_s = 0.0
        """When the last frame came, by the clock on the wall."""

    def of(self, stamp_s: float | None, interval_s: float) -> float:
        """The time of a frame that comes now, with the container's time, if it has one."""
        now_s = time.monotonic()
        if self._last_s is None:
            time_s = 0.0
            self._begin_s = now_s
        else:
            passed_s = now_s - self._last_at_s
            next_s = self._last_s + interval_s
            time_s = next_s if stamp_s is None else stamp_s - self._offset_s
            far_s = self._last_s + max(passed_s, interval_s) + LEAP_S
            if self.is_new:
                time_s = self._last_s + max(passed_s, interval_s)
            elif time_s <= self._last_s or (time_s > far_s and not self.every_frame):
                time_s = next_s
        if stamp_s is not None:
            self._offset_s = stamp_s - time_s
        self.is_new, self._last_s, self._last_at_s = False, time_s, now_s
        return time_s

    def ahead_s(self, time_s: float) -> float:
        """Seconds by which a frame has come too early for its time."""
        return self._begin_s + time_s - time.monotonic() if self.is_paced else 0.0


class _Connection:
    """One life of the decoding process, and a thread that reads what it says."""

    def __init__(self, owner: LiveFrames) -> None:
        self.owner = owner
        self._news = threading.Condition()
        self._frame: LiveFrame | None = None
        self._missed = 0
        self._end: dict[str, Any] | None = None
        self._closed = threading.Event()
        self._silent_since_s: float | None = time.monotonic()
        self._limit_s: float = START_S
        self.process = subprocess.Popen(
            [*module_command(live_process.__name__), json.dumps(asdict(owner.source))],
            stdin=None if owner.source.url == "pipe:0" else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": search_path()},
            start_new_session=True,  # Ctrl-C is for the parent, which then ends this process
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def frames(self) -> Iterator[LiveFrame]:
        """The newest frame, again and again, until the source ends. Raises _Lost."""
        while (frame := self._next()) is not None:
            yield frame

    def _next(self) -> LiveFrame | None:
        with self._news:
            while self._frame is None:
                if self._end is not None:
                    self._require_end(self._end)
                    return None
                since_s = self._silent_since_s
                if since_s is not None and time.monotonic() - since_s > self._limit_s:
                    raise _Lost(f"no frame for {self._limit_s:g} s")
                self._news.wait(TICK_S)
            frame, self._frame = self._frame._replace(missed=self._missed), None
            self._missed = 0
            self._news.notify_all()
            return frame

    def _require_end(self, end: dict[str, Any]) -> None:
        """Raises _Lost where the last message is not that of a whole stream."""
        if "end" in end:
            return
        if "refused" in end:
            raise _Lost(f"cannot be opened: {end['refused']}")
        if "broke" in end:
            raise _Lost(end["broke"])
        status = self.process.wait()
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
        raise _Lost(f"its decoder died, {how}")

    def _read(self) -> None:
        """Takes messages until the last one."""
        while True:
            message, pixels = self._message()
            if "ready" in message:
                self._limit_s = self.owner.timeout_s
                continue
            if "shape" not in message:
                with self._news:
                    self._end = message
                    self._news.notify_all()
                return
            self._offer(message, pixels)
            if self._closed.is_set():
                return

    def _message(self) -> tuple[dict[str, Any], bytearray]:
        """The next message; an empty one when the process is gone."""
        assert self.process.stdout is not None
        self._silent_since_s = time.monotonic()
        head = self.process.stdout.read(LENGTHS.size)
        if len(head) < LENGTHS.size:
            return {}, bytearray()
        text_bytes, pixel_bytes = LENGTHS.unpack(head)
        text, pixels = self.process.stdout.read(text_bytes), bytearray(pixel_bytes)
        count = self.process.stdout.readinto(pixels)  # type: ignore[attr-defined]
        self._silent_since_s = None
        if len(text) < text_bytes or count < pixel_bytes:
            return {}, bytearray()
        return json.loads(text), pixels

    def _offer(self, message: dict[str, Any], pixels: bytearray) -> None:
        """Lays a frame where it is taken from, at its time."""
        owner = self.owner
        time_s = owner._clock.of(message["time_s"], message["interval_s"])
        if (ahead_s := owner._clock.ahead_s(time_s)) > 0:
            self._closed.wait(ahead_s)
        pixels_HWC = np.frombuffer(pixels, np.uint8).reshape(message["shape"])
        frame = LiveFrame(
            pixels_HWC, time_s, message["aspect"], message["decode_s"], message["interval_s"], 0
        )
        with self._news:
            owner.came += 1
            owner.damaged = max(owner.damaged, message["damaged"])
            if owner.every_frame:
                self._news.wait_for(lambda: self._frame is None or self._closed.is_set())
            elif self._frame is not None:
                owner.dropped += 1
                self._missed += 1
            self._frame = frame
            self._news.notify_all()

    def close(self) -> None:
        """Ends process and thread."""
        self._closed.set()
        with self._news:
            self._news.notify_all()
        self.process.kill()
        self.process.wait()
        self._thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
