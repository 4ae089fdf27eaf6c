"""`decode_rates` and `decode_at` in a process of their own, watched: a decoder that hangs, crashes
or eats all memory is a listed failure.

One process decodes many videos, one at a time, and is replaced when it dies. A crash is tried again
once and a kill from outside twice, from the first frame that has not been handed over: decoding is
deterministic, so the result is the same.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import mmap
import os
import select
import signal
import subprocess
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import Field

from pipeline.child_python import module_command, search_path
from pipeline.config.plugins import Settings
from pipeline.errors import BadVideo
from pipeline.records import Frames, Rate
from pipeline.video.damage import DamagedFrames, LostPicture
from pipeline.video.decode import BLOCK_FRAMES, FrameBlock
from pipeline.video.frame_counts import FrameCounts
from pipeline.video.isolated import decode_process
from pipeline.video.isolated.decode_process import COUNT_BYTES, read_count
from pipeline.video.isolated.packets import Packets

TICK_S = 0.2
"""Seconds between two looks at a silent process. A wait counts as no more than this, so that a
suspended program blames no video."""
START_S = 120
"""Seconds after which a process that has not started never will."""
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}
"""No threads for linear algebra, which take memory; and glibc keeps the memory of one picture for
the next."""
END_S = 10
"""Seconds that a process may take to die."""
TIMES_AT_ONCE = 1024
"""Presentation times in one request, which must fit into a packet."""
ATTEMPTS = {True: 3, False: 2}
"""Whether it was killed from outside -> deaths over one video after which it is listed."""


class DecodeLimits(Settings):
    """Limits at which decoding a video is given up."""

    stall_s: float = Field(default=60, gt=0)
    """Seconds of waiting in which no picture was decoded."""
    video_s: float | None = Field(default=None, gt=0)
    """Seconds of waiting for one video. None: 600, or 20 times the length that its header promises,
    whichever is more."""
    memory_mb: int = Field(default=4096, ge=128)
    """Private memory of the decoding process, in MiB; without a video it takes 80. Frames handed
    over do not count."""


class Decoder:
    """A decoding process that is started when first needed. A context manager; to be used by one
    thread at a time."""

    def __init__(self, limits: DecodeLimits | None = None) -> None:
        self.limits = limits or DecodeLimits()
        self._process: _Process | None = None
        self._busy = self._closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process. May be called by any thread: a wait in `decode` then ends with
        OSError."""
        with self._lock:
            self._closed = True
            if self._process:
                self._process.process.kill()
                if not self._busy:
                    self._process.end()

    @property
    def pid(self) -> int | None:
        """The process that decodes now."""
        return self._process.pid if self._process else None

    def decode(
        self,
        path: Path,
        rates: Sequence[Rate],
        image_fps: float | None = None,
        counted: FrameCounts | None = None,
        block_frames: int = BLOCK_FRAMES,
    ) -> Iterator[FrameBlock]:
        """Yields what `decode_rates` yields, and raises what it raises; one video at a time.
        `counted` is filled at the end.

        A block lies in shared memory and holds a file descriptor while any part of its pixels is
        referred to. Raises BadVideo also if a limit is exceeded or the process keeps dying over
        this video; OSError if it cannot be started.
        """
        request = {"rates": list(rates), "block_frames": block_frames}
        return self._blocks(path, image_fps, request, counted or FrameCounts())

    def decode_at(
        self,
        path: Path,
        time_s_F: np.ndarray,
        image_fps: float | None = None,
        counted: FrameCounts | None = None,
    ) -> Iterator[Frames]:
        """Yields what the function `decode_at` returns, and raises what it raises, and what
        `decode` raises. `counted` is filled before the frames are handed over."""
        for first in range(0, len(time_s_F), TIMES_AT_ONCE):
            request = {"time_s": time_s_F[first : first + TIMES_AT_ONCE].tolist()}
            for block in self._blocks(path, image_fps, request, counted or FrameCounts()):
                yield block.frames

    def _blocks(
        self, path: Path, image_fps: float | None, what: dict[str, Any], counted: FrameCounts
    ) -> Iterator[FrameBlock]:
        """Asks for a video, and again for what is still missing where the process dies over it."""
        assert not self._busy, "one video at a time"
        self._busy = True
        watch = _Watch(path, self.limits, counted)
        request: dict[str, Any] = what | {"path": str(path), "image_fps": image_fps, "skip": 0}
        try:
            while True:
                process = self._ready_process()
                try:
                    process.ask(request)
                    while (block := watch.next(process)) is not None:
                        request["skip"] += len(block.frames)
                        yield block
                    return
                except _ProcessDied:
                    if self._closed:
                        raise OSError(
                            errno.ECANCELED, "decoding was cancelled", str(path)
                        ) from None
                    watch.died(process.end())
        finally:
            self._busy = False
            if self._process and (self._closed or not self._process.idle):
                self._process.end()

    def _ready_process(self) -> _Process:
        """A living process that waits for work."""
        for attempt in (1, 2, 3):
            with self._lock:
                if self._closed:
                    raise OSError(errno.ECANCELED, "the decoder is closed")
                if self._process and self._process.alive:
                    return self._process
                if self._process:
                    self._process.end()
                self._process = process = _Process(self.limits.memory_mb)
            with contextlib.suppress(_ProcessDied):
                if process.receive(START_S) is not None:
                    return process
            status = process.end()
            if status >= 0 or attempt == 3:
                break
        raise OSError(errno.ECHILD, f"the decoding process did not start: {_death_text(status)}")


class _ProcessDied(Exception):
    """The process is gone; all that it sent has been received."""


class _Process:
    """One life of the decoding process."""

    def __init__(self, memory_mb: int) -> None:
        self.channel, child_channel = Packets.pair()
        count_fd = self.channel.new_memory("stillframe-count", COUNT_BYTES)
        try:
            self.count = mmap.mmap(count_fd, COUNT_BYTES)
            inherited = (child_channel.fileno(), count_fd)
            self.process = subprocess.Popen(
                [
                    *module_command(decode_process.__name__),
                    *map(str, (*inherited, memory_mb)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=inherited,
                env=os.environ | ENVIRONMENT | {"PYTHONPATH": search_path()},
                start_new_session=True,  # Ctrl-C is for the parent, which then ends this process
            )
        except BaseException:
            self.channel.close()
            raise
        finally:
            child_channel.close()
            os.close(count_fd)
        self.idle, self.gone = True, False
        self.pid = self.process.pid
        self.buffers: dict[int, mmap.mmap] = {}
        self.free: deque[int] = deque()
        """Buffers whose pixels nobody refers to any more; filled by whichever thread lets go of
        them."""
        self.readable = select.poll()
        self.readable.register(self.channel, select.POLLIN)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def ask(self, request: dict[str, Any]) -> None:
        """Sends the request for one video."""
        self.idle = False
        self.count[:] = bytes(COUNT_BYTES)
        self._say(request)

    def _say(self, message: dict[str, Any]) -> None:
        free = [self.free.popleft() for _ in range(len(self.free))]
        with contextlib.suppress(
            BrokenPipeError, ConnectionResetError
        ):  # `receive` will say so, after what was sent before
            self.channel.send(json.dumps(message | {"free": free}).encode())

    def receive(self, timeout_s: float) -> dict[str, Any] | FrameBlock | None:
        """The next message, or None after `timeout_s` without one. Raises _Died."""
        if not self.readable.poll(math.ceil(timeout_s * 1000)):
            return None
        try:
            packet, fds = self.channel.receive()
        except ConnectionResetError:
            return None  # said once, before what is still to be read
        if not packet:
            self.gone = True
            raise _ProcessDied
        message: dict[str, Any] = json.loads(packet)
        return self._block(message, fds) if "block" in message else message

    def _block(self, message: dict[str, Any], fds: list[int]) -> FrameBlock:
        number = message["block"]
        for gone in message["forget"]:
            del self.buffers[gone]
        if "new_bytes" in message:
            if not fds:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            try:
                self.buffers[number] = mmap.mmap(fds[0], message["new_bytes"])
            finally:
                os.close(fds[0])
        pixels = np.frombuffer(self.buffers[number], np.uint8, math.prod(message["shape"]))
        # Runs when the last view of the pixels is gone.
        weakref.finalize(pixels, self.free.append, number).atexit = False
        self._say({})
        frames = Frames(
            pixels.reshape(message["shape"]), np.array(message["time_s"]), message["aspect"]
        )
        return FrameBlock(frames, np.array(message["kept"]), np.array(message["damaged"]))

    def end(self) -> int:
        """Ends the process; its exit status, negative for a signal. Idempotent."""
        status = -signal.SIGKILL
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self.gone:
                self.process.wait(END_S)
        self.process.kill()
        # It may be stuck in the kernel, as on a dead network disk: then it ends when that lets go.
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self.process.wait(END_S)
        self.channel.close()
        self.count.close()
        self.buffers.clear()
        return status


class _Watch:
    """Waits for the blocks of one video, within its limits."""

    def __init__(self, path: Path, limits: DecodeLimits, counted: FrameCounts) -> None:
        self.path, self.limits, self.counted = path, limits, counted
        self.waited_s = 0.0
        self.deaths: list[int] = []

    def next(self, process: _Process) -> FrameBlock | None:
        """The next block, or None at the end of the video."""
        silent_s, seen = 0.0, read_count(process.count).decoded
        while True:
            begin_s = time.monotonic()
            try:
                message = process.receive(TICK_S)
            finally:
                count = read_count(process.count)
                self._update_counts(count)
            if isinstance(message, FrameBlock):
                return message
            if message is not None and "entries" in message:
                self._update_damage(message)
                continue
            if message is not None:
                self._end(process, message)
                return None
            waited_s = min(TICK_S, time.monotonic() - begin_s)
            silent_s, seen = (silent_s + waited_s if count.decoded == seen else 0.0), count.decoded
            self.waited_s += waited_s
            if silent_s >= self.limits.stall_s:
                raise self._give_up(
                    f"decoder made no progress for {self.limits.stall_s:g} s",
                    "raise the limit stall_s",
                )
            if self.waited_s >= self._video_s():
                raise self._give_up(
                    f"decoding took more than {self._video_s():g} s", "raise the limit video_s"
                )

    def _update_counts(self, count: FrameCounts) -> None:
        """Takes over what is counted; an attempt that was cut short takes back nothing."""
        if count.decoded > self.counted.decoded:
            self.counted.decoded, self.counted.end_s = count.decoded, count.end_s
        if self.counted.first_s is None:
            self.counted.first_s = count.first_s
        if count.header_s is not None or count.header is not None:
            self.counted.promise(count.header, count.header_s)

    def _update_damage(self, message: dict[str, Any]) -> None:
        """Takes over what is damaged; an attempt that begins anew tells all of it again."""
        if "lost_from" in message:
            lost = [LostPicture(*entry) for entry in message["entries"]]
            self.counted.lost[message["lost_from"] :] = lost
        else:
            damaged = [DamagedFrames(*entry) for entry in message["entries"]]
            self.counted.damaged[message["damaged_from"] :] = damaged

    def _video_s(self) -> float:
        return self.limits.video_s or max(600.0, 20 * (self.counted.header_s or 0))

    def _end(self, process: _Process, message: dict[str, Any]) -> None:
        if "memory" in message:  # the process is not used again: its heap is full
            limit = f"decoding needs more than {self.limits.memory_mb} MB"
            raise self._give_up(limit, "raise the limit memory_mb")
        process.idle = True
        if "bad" in message:
            raise BadVideo(*message["bad"])
        if "os" in message:
            raise OSError(*message["os"])
        if "raised" in message:
            raise BadVideo(f"{self.path.name}: decoder raised {message['raised']}")
        assert "done" in message

    def died(self, status: int) -> None:
        """Counts a death of the process, by its exit status. Raises BadVideo where there were too
        many over this video."""
        self.deaths.append(status)
        killed = status == -signal.SIGKILL
        if sum((death == -signal.SIGKILL) == killed for death in self.deaths) < ATTEMPTS[killed]:
            return
        how = " and ".join(dict.fromkeys(map(_death_text, self.deaths)))
        hint = "the system may be short of memory: use fewer decoders" if killed else ""
        raise self._give_up(f"decoder died {len(self.deaths)} times, {how}", hint)

    def _give_up(self, why: str, hint: str) -> BadVideo:
        counted = self.counted
        return BadVideo(
            f"{self.path.name}: {why}, stopped after {counted.decoded} frames at "
            f"{counted.end_s:.1f} s",
            hint,
        )


def _death_text(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"with exit code {status}"
