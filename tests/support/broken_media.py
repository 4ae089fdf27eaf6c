"""Videos that a decoder cannot survive: one without end, and one that wants more memory than it may
have."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from pipeline.video import reader
from pipeline.video.isolated.sandbox import DecodeLimits, Decoder
from support.media import encode


def noise(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    source = np.random.default_rng(0)
    return [source.integers(0, 256, (height, width, 3), np.uint8) for _ in range(count)]


def images(folder: Path, frames: list[np.ndarray]) -> Path:
    folder.mkdir()
    for number, frame in enumerate(frames):
        encode(folder / f"{number}.png", [frame], codec="png", pix_fmt="rgb24")
    return folder


def hanging_video(path: Path, frames: list[np.ndarray] | None = None) -> Path:
    """A damaged Matroska file, a terabyte of zeros after its last good frame: libav looks for the
    next one, byte by byte. Its 20 frames, or those given, come 10 a second. The suffix may be
    another: libav goes by the content."""
    written = encode(
        path.with_suffix(".mkv"), frames or noise(20), codec="mpeg4", options={"g": "1"}
    )
    os.truncate(written, 1 << 40)
    return written.rename(path)


def memory_bomb(folder: Path) -> Path:
    """A folder of two images and a third whose header promises 16000 x 16000 pixels: 768 MB."""
    images(folder, noise(2))
    header = b"IHDR" + struct.pack(">IIBBBBB", 16000, 16000, 8, 2, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(bytes(48001))
    parts = [
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in (header, pixels)
    ]
    (folder / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return folder


def impatient(patch: pytest.MonkeyPatch, **limits: float) -> None:
    """Readers that were given no limits give a video up after a second without a picture, or at
    these limits."""
    given = DecodeLimits(**(limits or {"stall_s": 1}))
    patch.setattr(reader, "Decoder", lambda own: Decoder(own or given))
