"""Shared material: videos whose frames spell their own address, and caches made from them."""

from __future__ import annotations

import gc
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from support.material import LENGTHS, SIDE_BY_SIDE, THREADS, Material, address_spec, address_video

from pipeline.cache.parts.parted import PartedCache
from pipeline.cli import console
from pipeline.datasets.manifest import manifest
from pipeline.datasets.manifest.edit import write_parts
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.datasets.manifest.parts import PartedManifest
from pipeline.extract import extract
from pipeline.extract.execution import Execution
from pipeline.extract.in_parts import extract_parts

pytest_plugins = [
    "support.commands",
    "support.hub",
    "support.on_device",
    "support.pages",
    "support.ray_cluster",
    "support.slurm",
]


if SIDE_BY_SIDE:
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As where a shell runs the tests in the background: processes that tests start would ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
console.out.width = console.LOG_COLUMNS  # whatever COLUMNS says where tests are run
torch.set_num_threads(THREADS)  # also of fixtures that live longer than a test


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests come first, so that no worker is left with one when the others
    are done: workers take whole files."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="module", autouse=True)
def _frozen():
    """A million objects of libraries, which no measurement of memory need look through. Benches let
    go of them at their end."""
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def _threads():
    console.out.width = console.LOG_COLUMNS  # whatever COLUMNS says where tests are run


torch.set_num_threads(THREADS)


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
    return manifest.build(
        "folder", videos, tmp_path_factory.mktemp("manifest"), {"val_fraction": 0.3}
    )


@pytest.fixture(scope="session")
def parts(built, tmp_path_factory) -> PartedManifest:
    """The six videos, two a part. Read only."""
    return write_parts([built], tmp_path_factory.mktemp("parts") / "data", 2)


@pytest.fixture(scope="session")
def parted(parts, tmp_path_factory) -> PartedCache:
    """Their cache in parts. Read only."""
    return extract_parts(
        address_spec(), parts, tmp_path_factory.mktemp("parted"), Execution(torch.device("cpu"))
    )


@pytest.fixture(scope="session")
def material(videos, built, tmp_path_factory) -> Material:
    """Their cache. Read only."""
    spec = address_spec()
    return Material(
        videos, built, extract.extract(spec, built, tmp_path_factory.mktemp("caches")), spec
    )
