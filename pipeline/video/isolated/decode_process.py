"""The decoding process that `sandbox` starts: decodes the videos it is asked for, under its limits,
and hands the blocks over.

It speaks JSON in packets of a socketpair. Pixels travel in anonymous shared memory: a buffer's
descriptor is sent once, and the buffer is filled again when its reader has let go of it. Nothing
has a name, so no kill leaves anything behind. What has been counted lies in shared memory too,
where it can be read at any moment, after a crash as well; what is damaged is told before each
block.

It never runs ahead by more than `BLOCKS_AHEAD` blocks, and ends with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import BadVideo
from pipeline.records import Frames, Stride
from pipeline.video.damage import DamagedFrames
from pipeline.video.decode import BLOCK_BYTES, FrameBlock, decode_at, decode_rates
from pipeline.video.frame_counts import FrameCounts
from pipeline.video.isolated.packets import Packets

BLOCKS_AHEAD = 4
"""Blocks handed over and not taken yet."""
ENTRIES_AT_ONCE = 128
"""Stretches of damaged frames in one packet."""
COUNT_BYTES = 5 * 8
PR_SET_PDEATHSIG = 1


class SharedCount(FrameCounts):
    """`FrameCounts`, written through to memory that the parent reads."""

    def __init__(self, memory: mmap.mmap) -> None:
        super().__init__()
        self._memory = np.frombuffer(memory, np.float64)
        self._write()

    def restart(self) -> None:
        super().restart()
        self._write()

    def promise(self, pictures: int | None, length_s: float | None) -> None:
        super().promise(pictures, length_s)
        self._write()

    def picture(self, time_s: float, end_s: float) -> None:
        super().picture(time_s, end_s)
        self._write()

    def _write(self) -> None:
        known = (self.first_s, self.header, self.header_s)
        self._memory[:] = [
            self.decoded,
            self.end_s,
            *[math.nan if value is None else value for value in known],
        ]


def read_count(memory: mmap.mmap) -> FrameCounts:
    """The counts that a `SharedCount` has written."""
    decoded, end_s, *known = np.frombuffer(memory, np.float64).tolist()
    first_s, header, header_s = [None if math.isnan(value) else value for value in known]
    return FrameCounts(
        int(decoded), end_s, first_s, None if header is None else int(header), header_s
    )


class Outlet:
    """Hands blocks to the parent: in buffers that are used again, and no more than a few ahead."""

    def __init__(self, channel: Packets) -> None:
        self.channel = channel
        self.buffers: dict[int, np.ndarray] = {}
        self.free: list[int] = []
        self.to_forget: list[int] = []
        self.buffer_count = 0
        self.unsent: dict[int, tuple[int, int]] = {}
        """Descriptor and size of buffers that the parent does not know yet."""
        self.filling: int | None = None
        self.credits = 0
        self.told: tuple[list[DamagedFrames], int] = ([], 0)
        """Stretches of damaged frames, and number of lost pictures, that the parent knows."""

    def request(self) -> dict[str, Any] | None:
        """The next video; None once the parent is gone."""
        if self.filling is not None:  # the last video failed before its last block was complete
            self.free.append(self.filling)
            self.filling = None
        while packet := self.channel.receive()[0]:
            message = json.loads(packet)
            self.free += message["free"]
            if "path" in message:
                self.credits, self.told = BLOCKS_AHEAD, ([], 0)
                return dict(message)
        return None

    def allocate(self, shape: tuple[int, ...]) -> np.ndarray:
        """A buffer for a block that `send` will hand over next."""
        self._take_credits(wait=False)
        size = math.prod(shape)
        fitting = [number for number in self.free if self.buffers[number].size >= size]
        if fitting:
            self.filling = fitting[-1]
            self.free.remove(self.filling)
        else:
            self._forget_free()
            self.filling, self.buffer_count = self.buffer_count, self.buffer_count + 1
            # Untouched pages cost nothing, so a buffer is made to fit any block of ordinary frames.
            capacity = max(size, BLOCK_BYTES)
            fd = self.channel.new_memory("stillframe-block", capacity)
            self.buffers[self.filling] = np.frombuffer(mmap.mmap(fd, capacity), np.uint8)
            self.unsent[self.filling] = fd, capacity
        return self.buffers[self.filling][:size].reshape(shape)

    def _forget_free(self) -> None:
        """Gives back the memory of buffers that are too small."""
        for number in self.free:
            del self.buffers[number]
            if number in self.unsent:
                os.close(self.unsent.pop(number)[0])
            else:
                self.to_forget.append(number)
        self.free = []

    def send(self, block: FrameBlock) -> None:
        """Hands over a block, whose pixels lie in the buffer that was allocated last; waits for the
        parent where too many are under way."""
        assert self.filling is not None
        while not self.credits:
            self._take_credits(wait=True)
        self.credits -= 1
        frames = block.frames
        message = {
            "block": self.filling,
            "forget": self.to_forget,
            "shape": frames.pixels_FHWC.shape,
            "time_s": frames.time_s.tolist(),
            "aspect": frames.pixel_aspect,
            "kept": block.kept_RF.tolist(),
            "damaged": block.damaged_F.tolist(),
        }
        if self.filling in self.unsent:
            fd, capacity = self.unsent.pop(self.filling)
            self.channel.send(json.dumps(message | {"new_bytes": capacity}).encode(), [fd])
            os.close(fd)
        else:
            self.say(message)
        self.to_forget, self.filling = [], None

    def tell_damage(self, counted: FrameCounts) -> None:
        """Sends what the parent does not know yet of damaged frames and lost pictures."""
        (damaged, lost), known = self.told, len(self.told[0])
        if damaged and counted.damaged[known - 1 : known] != damaged[-1:]:
            known -= 1  # the last stretch has grown
        for first in range(known, len(counted.damaged), ENTRIES_AT_ONCE):
            entries = counted.damaged[first : first + ENTRIES_AT_ONCE]
            self.say({"damaged_from": first, "entries": entries})
        for first in range(lost, len(counted.lost), ENTRIES_AT_ONCE):
            self.say({"lost_from": first, "entries": counted.lost[first : first + ENTRIES_AT_ONCE]})
        self.told = list(counted.damaged), len(counted.lost)

    def say(self, message: dict[str, Any]) -> None:
        """Sends one message as JSON."""
        self.channel.send(json.dumps(message).encode())

    def _take_credits(self, wait: bool) -> None:
        """Reads what the parent has sent: each packet allows one more block, and names buffers that
        are free again."""
        try:
            while packet := self.channel.receive(wait=wait)[0]:
                self.free += json.loads(packet)["free"]
                self.credits += 1
                wait = False
        except BlockingIOError:
            return
        raise BrokenPipeError  # the parent is gone


def serve(channel: Packets, memory: mmap.mmap) -> None:
    """Decodes video after video until the parent is gone."""
    outlet = Outlet(channel)
    gc.freeze()
    outlet.say({"ready": True})
    while (request := outlet.request()) is not None:
        outlet.say(_decode_video(request, outlet, SharedCount(memory)))
        # PyAV's containers and streams refer to each other: left alone, the decoders of many videos
        # pile up.
        gc.collect()


def _decode_video(request: dict[str, Any], outlet: Outlet, counted: FrameCounts) -> dict[str, Any]:
    """Sends the blocks of one video; the message with which it ends."""
    try:
        for block in _blocks(request, outlet, counted):
            outlet.tell_damage(counted)
            outlet.send(block)
    except BadVideo as error:
        outlet.tell_damage(counted)
        return {"bad": [error.message, error.hint]}
    except MemoryError:
        return {"memory": True}
    except OSError as error:
        return {"os": [error.errno, error.strerror or str(error), error.filename]}
    except Exception as error:  # a decoder may raise anything on a broken file
        return {"raised": f"{type(error).__name__}: {error}"}
    outlet.tell_damage(counted)
    return {"done": True}


def _blocks(request: dict[str, Any], outlet: Outlet, counted: FrameCounts) -> Iterator[FrameBlock]:
    """The blocks that a request still lacks, each in the buffer that was allocated last."""
    path, image_fps, skip = Path(request["path"]), request["image_fps"], request["skip"]
    if "time_s" not in request:
        yield from decode_rates(
            path,
            [Stride(*rate) if isinstance(rate, list) else rate for rate in request["rates"]],
            image_fps,
            counted,
            skip=skip,
            block_frames=request["block_frames"],
            allocate=outlet.allocate,
        )
        return
    time_s_F = np.array(request["time_s"][skip:])
    # All of them are decoded before the first is handed over: a seek may have led too far.
    for frames in decode_at(path, time_s_F, image_fps, counted) if len(time_s_F) else ():
        pixels_FHWC = outlet.allocate(frames.pixels_FHWC.shape)
        pixels_FHWC[:] = frames.pixels_FHWC
        copied = Frames(pixels_FHWC, frames.time_s, frames.pixel_aspect)
        are_damaged = [counted.is_damaged(time_s) for time_s in frames.time_s]
        yield FrameBlock(copied, np.ones((1, len(frames)), bool), np.array(are_damaged))


def run_decode_process(arguments: Sequence[str]) -> None:
    """Limits this process, then serves its parent. `arguments`: descriptors of the channel and of
    the shared count, and the limit of memory in MiB."""
    channel_fd, count_fd, memory_mb = map(int, arguments)
    if sys.platform == "linux":  # elsewhere it ends when it next has something to say
        # Also sent when only the thread ends that started this process; the sandbox then starts
        # another.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Private memory: buffers are shared and do not count. A lower limit of the system stays.
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = memory_mb << 20 if most == resource.RLIM_INFINITY else min(memory_mb << 20, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the parent is gone
        serve(Packets(socket.socket(fileno=channel_fd)), mmap.mmap(count_fd, COUNT_BYTES))


if __name__ == "__main__":
    run_decode_process(sys.argv[1:])
