"""The command line as a test sees it, and a place where every step has been taken by command. Loaded by conftest.py."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import main

SPEC = """
[encoder]
name = "address"
layers = [2, 5]
width = 8
grid = 3
special_tokens = 2
[frames]
size_px = 64
[store]
chunk_frames = 4
shard_mb = 0.0012
store_mb = 0.0072
batch_frames = 7
"""
"""The same as `conftest.address_spec`."""
VIT = """
[encoder]
name = "transformers"
layers = [0, 7]
seed = 0
[encoder.config]
model_type = "vit"
hidden_size = 16
intermediate_size = 16
num_hidden_layers = 2
num_attention_heads = 2
patch_size = 32
image_size = 64
[frames]
size_px = 64
"""
RECIPE = """
[task]
name = "classify"
readout_width = 8
heads = 2
[temporal]
name = "identity"
[windows]
frames = 4
fps = 10
[training]
steps = 3
batch_size = 2
warmup_steps = 1
"""


@dataclasses.dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, which must hold this and nothing else."""
        return json.loads(self.out)


def call(*arguments: object) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Result(code, out.getvalue(), err.getvalue())


def process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def fine(*arguments: object) -> Result:
    result = call(*arguments)
    assert (result.code, result.err) == (0, ""), result
    return result


def assert_refused(result: Result, *parts: object, out: bool = False) -> None:
    """Exit code 2 and one line on stderr that holds all `parts`."""
    assert result.code == 2, result
    assert bool(result.out) == out, result
    assert re.fullmatch(r"error: [^\n]+\n", result.err), result.err
    assert "Traceback" not in result.err
    for part in parts:
        assert str(part) in result.err


def digest(folder: Path) -> dict[str, str]:
    """Every file below -> sha256, but for logs, which have times."""
    found, above = {}, len(str(folder)) + 1
    for place, _, names in os.walk(folder):  # far quicker than rglob, and hundreds of tests look
        for name in names:
            path = f"{place}/{name}"
            if name not in ("extract.lock", "log.txt") and os.path.isfile(path):  # noqa: PTH113
                found[path[above:]] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return dict(sorted(found.items()))


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder in which every step has been taken by command."""

    folder: Path
    videos: Path
    spec: Path
    recipe: Path
    data: Path
    cache: Path
    run: Path


@pytest.fixture(scope="session")
def place(videos, tmp_path_factory) -> Place:
    """Read only."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(videos, folder / "videos")
    for name, text in (("address.toml", SPEC), ("vit.toml", VIT), ("tiny.toml", RECIPE)):
        (folder / name).write_text(text)
    data, run = folder / "data", folder / "runs/tiny"
    fine("manifest", "folder", folder / "videos", "--out", data, "--set", "val_fraction=0.3")
    fine("extract", folder / "address.toml", data, "--out", folder / "caches")
    (cache,) = (folder / "caches").iterdir()
    fine("train", folder / "tiny.toml", cache, "--out", run)
    fine("evaluate", run)
    return Place(
        folder, folder / "videos", folder / "address.toml", folder / "tiny.toml", data, cache, run
    )


@pytest.fixture
def cache(place, tmp_path) -> Path:
    """A copy of the cache to damage."""
    return Path(shutil.copytree(place.cache, tmp_path / "caches" / place.cache.name))


@pytest.fixture
def run(place, tmp_path) -> Path:
    """A copy of the run to damage."""
    return Path(shutil.copytree(place.run, tmp_path / "run"))


@pytest.fixture(scope="session")
def slow_cache(place, tmp_path_factory) -> Path:
    """Four frames a second, which step unevenly over videos of ten."""
    out = tmp_path_factory.mktemp("slow")
    result = call("extract", place.spec, place.data, "--out", out, "--set", "frames.fps=4")
    assert result.code == 0 and "would be even" in result.err, result
    (path,) = out.iterdir()
    return path
