"""Videos whose frames spell their own address, and specs of small caches of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pipeline.cache.cache import Cache
from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.models.encoders import address

FPS = 10

LENGTHS = {
    "a/v0.mp4": 31,
    "a/v1.mp4": 8,
    "a/v2.mp4": 17,
    "b/v3.mp4": 24,
    "b/v4.mp4": 5,
    "b/v5.mp4": 40,
}
"""Source -> frames. The number in the name is the video number that its frames spell."""

SIDE_BY_SIDE = "PYTEST_XDIST_WORKER" in os.environ
"""Whether other tests run at the same time: then they are as many as there are cores."""

THREADS = 1 if SIDE_BY_SIDE else 2
"""Of torch."""


def write_video(path: Path, frames: list[np.ndarray], fps: int = FPS) -> Path:
    """An H.264 file of uint8 RGB frames (H, W, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "12"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def address_video(path: Path, video: int, frames: int, size_px: int = 64) -> Path:
    return write_video(path, [address.paint(video, frame, size_px) for frame in range(frames)])


def address_spec(**changes: object) -> CacheSpec:
    """A spec of several small stores, each of several shards of several chunks."""
    table = {
        "name": "address",
        "encoder": {
            "name": "address",
            "layers": [2, 5],
            "width": 8,
            "grid": 3,
            "special_tokens": 2,
        },
        "frames": {"size_px": 64},
        "store": {"chunk_frames": 4, "shard_mb": 0.0012, "store_mb": 0.0072, "batch_frames": 7},
    }
    return plugins.validate(CacheSpec, table | changes, "test")


@dataclass(frozen=True)
class Material:
    """A folder of address videos, its manifest and its cache."""

    root: Path
    manifest: Manifest
    cache: Cache
    spec: CacheSpec
