"""Shared material: videos whose frames spell their own address, and caches made from them."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from pipeline.cache.cache import Cache
from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec
from pipeline.datasets.manifest import manifest
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.extract import extract
from pipeline.models.encoders import address

pytest_plugins = ["commands", "pages", "ray_cluster", "slurm"]

FPS = 10
LENGTHS = {"a/v0.mp4": 31, "a/v1.mp4": 8, "a/v2.mp4": 17, "b/v3.mp4": 24, "b/v4.mp4": 5, "b/v5.mp4": 40}
"""Source -> frames. The number in the name is the video number that its frames spell."""


SIDE_BY_SIDE = "PYTEST_XDIST_WORKER" in os.environ
"""Whether other tests run at the same time: then they are as many as there are cores."""
THREADS = 1 if SIDE_BY_SIDE else 2
"""Of torch."""
if SIDE_BY_SIDE:
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
torch.set_num_threads(THREADS)  # also of fixtures that live longer than a test


LONG = ("audit", "cli", "damage", "demo", "derive", "engines", "model", "one_pass", "page", "ranks", "remote", "report")
LONG += ("sweep", "sweep_engines", "temporal", "train", "world")
"""Files that take twenty seconds and more. They come first: no worker is left with one when the others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)


@pytest.fixture(scope="module", autouse=True)
def _frozen():
    """A million objects of libraries, which no measurement of memory need look through. Benches let go of them at their end."""
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def _threads():
    torch.set_num_threads(THREADS)


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
        "encoder": {"name": "address", "layers": [2, 5], "width": 8, "grid": 3, "special_tokens": 2},
        "frames": {"size_px": 64},
        "store": {"chunk_frames": 4, "shard_mb": 0.0012, "store_mb": 0.0072, "batch_frames": 7},
    }
    return plugins.check(CacheSpec, table | changes, "test")


@dataclass(frozen=True)
class Material:
    """A folder of address videos, its manifest and its cache."""

    root: Path
    manifest: Manifest
    cache: Cache
    spec: CacheSpec


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """Six address videos under two labels. Read only."""
    root = tmp_path_factory.mktemp("videos")
    for video, (source, frames) in enumerate(LENGTHS.items()):
        address_video(root / source, video, frames)
    return root


@pytest.fixture(scope="session")
def built(videos, tmp_path_factory) -> Manifest:
    """Their manifest. Read only."""
    return manifest.build("folder", videos, tmp_path_factory.mktemp("manifest"), {"val_fraction": 0.3})


@pytest.fixture(scope="session")
def material(videos, built, tmp_path_factory) -> Material:
    """Their cache. Read only."""
    spec = address_spec()
    return Material(videos, built, extract.extract(spec, built, tmp_path_factory.mktemp("caches")), spec)
