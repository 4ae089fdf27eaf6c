"""The process that decodes one live source: it opens it, and writes frame after frame to its
standard output. Whatever libav does in it, hang or crash, its parent goes on.

A message is two lengths, JSON, and pixels. First comes {"ready"}; then frames; at the end one of
{"end"}, {"refused": why} (it could not be opened) and {"broke": why}.
"""

from __future__ import annotations

import contextlib
import json
import signal
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from pipeline.video.live.source import LiveSource, RawFrames
from pipeline.video.probe import frame_rate
from pipeline.video.rgb import Picture, deinterlaced, upright_rgb

LENGTHS = struct.Struct("<II")
"""Bytes of the JSON and of the pixels that follow."""
MEMORY_MB = 4096
"""Private memory of the process, as for files."""
PR_SET_PDEATHSIG = 1
UNKNOWN_FPS = 25.0


class FrameWriter:
    """Writes messages to the parent; waits while it does not read."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def say(self, message: dict[str, Any], pixels_HWC: np.ndarray | None = None) -> None:
        """One message."""
        text = json.dumps(message).encode()
        pixels = b"" if pixels_HWC is None else pixels_HWC.tobytes()
        self.file.write(LENGTHS.pack(len(text), len(pixels)) + text)
        self.file.write(pixels)
        self.file.flush()


class Decoding:
    """One source, from its opening to its end."""

    def __init__(self, outlet: FrameWriter) -> None:
        self.outlet = outlet
        self.waited_s = 0.0
        """Spent in waiting for bytes, which is not the decoder's time."""
        self.damaged = 0
        """Frames and packets that cannot be decoded, or are not what was encoded."""

    def container(self, source: LiveSource) -> dict[str, Any]:
        """Decodes a container; the message with which it ends."""
        try:
            opened = av.open(
                source.url,
                format=source.format,
                options=dict(source.options),
                metadata_errors="replace",
            )
        except (av.FFmpegError, ValueError) as error:
            return {"refused": _reason(error)}
        with opened:
            if not opened.streams.video:
                return {"refused": "has no video"}
            stream = opened.streams.video[0]
            try:
                self._send(deinterlaced(self._pictures(opened, stream)), stream)
            except av.FFmpegError as error:
                return {"broke": _reason(error)}
        return {"end": True}

    def _pictures(self, container: InputContainer, stream: VideoStream) -> Iterator[Picture]:
        packets = container.demux(stream)
        while True:
            begin_s = time.perf_counter()
            packet = next(packets, None)
            self.waited_s += time.perf_counter() - begin_s
            if packet is None:
                return
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                self.damaged += 1
                continue
            for frame in frames:
                assert isinstance(frame, av.VideoFrame)
                if frame.is_corrupt:
                    self.damaged += 1
                    continue
                aspect = stream.sample_aspect_ratio or 1
                time_s = np.nan if frame.time is None else float(frame.time)
                yield Picture(frame, time_s, time_s, float(aspect))

    def _send(self, pictures: Iterator[Picture], stream: VideoStream) -> None:
        converter, begin_s = VideoReformatter(), time.perf_counter()
        interval_s = 1 / (frame_rate(stream) or UNKNOWN_FPS)
        for picture in pictures:
            pixels_HWC, aspect = upright_rgb(picture, converter)
            now_s = time.perf_counter()
            message = {
                "shape": pixels_HWC.shape,
                "time_s": None if np.isnan(picture.time_s) else picture.time_s,
                "aspect": aspect,
                "interval_s": interval_s,
                "decode_s": now_s - begin_s - self.waited_s,
                "damaged": self.damaged,
            }
            self.outlet.say(message, pixels_HWC)
            begin_s, self.waited_s = time.perf_counter(), 0.0

    def raw(self, frames: RawFrames, file: BinaryIO) -> dict[str, Any]:
        """Passes raw frames on; the message with which they end."""
        shape, number = (frames.height, frames.width, 3), 0
        while True:
            data = file.read(frames.frame_bytes)
            if not data:
                return {"end": True}
            if len(data) < frames.frame_bytes:
                return {
                    "broke": f"ends in frame {number}, after {len(data)} of its "
                    f"{frames.frame_bytes} bytes: not a whole number of frames of "
                    f"{frames.width}x{frames.height}"
                }
            message = {
                "shape": shape,
                "time_s": number / frames.fps,
                "aspect": 1.0,
                "interval_s": 1 / frames.fps,
                "decode_s": 0.0,
                "damaged": 0,
            }
            self.outlet.say(message, np.frombuffer(data, np.uint8))
            number += 1


def _reason(error: Exception) -> str:
    strerror = getattr(error, "strerror", None)
    return str(strerror or error)


def _limit() -> None:
    """Ends with the parent, leaves no core behind, and takes no more memory than a file's decoder;
    where the system knows such limits."""
    if sys.platform != "linux":
        return
    import ctypes
    import resource

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MEMORY_MB << 20 if most == resource.RLIM_INFINITY else min(MEMORY_MB << 20, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def run_live_process(text: str) -> None:
    """Decodes the source that `text` describes, as JSON of `LiveSource`."""
    _limit()
    table = json.loads(text)
    raw = table.pop("raw")
    options = tuple((key, value) for key, value in table.pop("options"))
    source = LiveSource(**table, options=options, raw=None if raw is None else RawFrames(**raw))
    outlet = FrameWriter(sys.stdout.buffer)
    decoding = Decoding(outlet)
    with contextlib.suppress(BrokenPipeError):  # the parent is gone
        outlet.say({"ready": True})
        try:
            if source.raw is not None:
                end = decoding.raw(source.raw, sys.stdin.buffer)
            else:
                end = decoding.container(source)
        except MemoryError:
            end = {"broke": f"decoding needs more than {MEMORY_MB} MB"}
        outlet.say(end)


if __name__ == "__main__":
    run_live_process(sys.argv[1])
