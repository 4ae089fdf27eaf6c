"""Small real media files for tests, written with PyAV, and how to read them back whole."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pipeline.errors import BadVideo
from pipeline.records import Frames
from pipeline.video.decode import BLOCK_FRAMES, decode_rates
from support.paths import SHARED

SHARED_CLIPS = SHARED / "clips"


def grey(level: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A frame of one grey level: tells which frame it is, whatever the codec."""
    return np.full((height, width, 3), level, np.uint8)


def encode(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: int = 10,
    times_s: Sequence[float] | None = None,
    ticks_per_s: int = 1000,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    rotation: int | None = None,
    mirrored: bool = False,
    aspect: Fraction | None = None,
    colorspace: int | None = None,
    color_range: int | None = None,
    flags: int = 0,
) -> Path:
    """A video of RGB (H, W, 3) or RGBA frames, at `times_s`, rounded to ticks, or evenly at `rate`."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = None
        for number, pixels in enumerate(frames):
            if stream is None:
                stream = container.add_stream(codec, rate=rate, options=options or {})
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt = pix_fmt
                stream.codec_context.flags |= flags
                if times_s is not None:
                    stream.codec_context.time_base = Fraction(1, ticks_per_s)
                if rotation is not None:
                    stream.set_display_rotation(rotation, hflip=mirrored)
                if aspect is not None:
                    stream.codec_context.sample_aspect_ratio = aspect
                if colorspace is not None:
                    stream.codec_context.colorspace = colorspace
                if color_range is not None:
                    stream.codec_context.color_range = color_range
            frame = av.VideoFrame.from_ndarray(
                pixels, format="rgba" if pixels.shape[2] == 4 else "rgb24"
            )
            frame = frame.reformat(
                format=pix_fmt, dst_colorspace=colorspace, dst_color_range=color_range
            )
            frame.time_base = Fraction(1, rate if times_s is None else ticks_per_s)
            frame.pts = number if times_s is None else round(times_s[number] * ticks_per_s)
            container.mux(stream.encode(frame))
        assert stream is not None
        container.mux(stream.encode())
    if codec == "libsvtav1":
        # It makes this thread a real-time one, for good: encoders whose threads wait for each other
        # by spinning would then hold all cores, and never end.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def tone(path: Path, codec: str, seconds: float = 0.5) -> Path:
    """A sound file without pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=16000, layout="mono")
        silence = np.zeros((1, int(16000 * seconds)), np.int16)
        frame = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def packet_spans(path: Path) -> list[tuple[int, int]]:
    """Offset and size in the file of every packet of its first video track."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def decode(
    path: Path, fps: float | None, image_fps: float | None = None, block_frames: int = BLOCK_FRAMES
) -> Iterator[Frames]:
    """The frames of a video at one rate, decoded in this process."""
    for block in decode_rates(path, [fps], image_fps, block_frames=block_frames):
        yield block.frames


def read(
    path: Path, fps: float | None = None, **options
) -> tuple[list[np.ndarray], np.ndarray, str]:
    """All frames, their times, and the reason if reading ended with BadVideo."""
    frames, times_s, reason = [], [], ""
    try:
        for block in decode(path, fps, **options):
            frames += list(block.pixels_FHWC)
            times_s += list(block.time_s)
    except BadVideo as error:
        reason = error.message
    return frames, np.array(times_s), reason
