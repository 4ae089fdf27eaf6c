"""Writing a store, with the checksums of chunks and files, against plain sequential writing of
files of the same size."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.cache.shard.page_cache import evict
from pipeline.cli.bench.memory import peak_bytes
from pipeline.cli.bench.store.read import WINDOW, random_tokens
from pipeline.cli.bench.store.readers import BATCH_FRAMES, shard_frames, write_store
from pipeline.cli.bench.temporal import surroundings
from pipeline.cli.bench.timing import Tell, summary

WAYS = ("plain", "stillframe")
"""The first is the reference."""


def write_speed(windows: int, repeats: int, folder: Path | None, tell: Tell) -> dict[str, Any]:
    """GB/s until everything is synced, in turn. `folder`: on the disk to measure; a temporary one
    if None."""
    tokens_FND = random_tokens(windows * WINDOW[0])
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / "written"
        for repeat in range(repeats + 1):
            for index, way in enumerate(WAYS if repeat % 2 else reversed(WAYS)):
                tell(repeat * len(WAYS) + index, (repeats + 1) * len(WAYS), way)
                path.mkdir()
                begin = time.perf_counter()
                write_store(path, tokens_FND) if way == "stillframe" else _write_plain(
                    path, tokens_FND
                )
                seconds[way].append(time.perf_counter() - begin)
                evict(path)
                shutil.rmtree(path)
        path.mkdir()
        peak = peak_bytes(lambda: write_store(path, tokens_FND), cpu)
    rates = {
        way: [tokens_FND.nbytes / 1e9 / elapsed_s for elapsed_s in taken[1:]]
        for way, taken in seconds.items()
    }  # the first warms up
    return {
        "file_bytes": tokens_FND.nbytes,
        "repeats": repeats,
        "machine": f"{surroundings(cpu)['device']}, {os.cpu_count()} processors",
        "peak_bytes": peak,
        "ways": {
            way: summary(seconds[way][1:])
            | {
                "gb_per_s": statistics.median(rates[way]),
                "ratio": statistics.median(
                    ours / theirs for ours, theirs in zip(rates[way], rates[WAYS[0]], strict=True)
                ),
            }
            for way in WAYS
        },
    }


def _write_plain(folder: Path, tokens_FND: np.ndarray) -> None:
    """Writes the batches that a store is written in into plain files of as many frames as a shard,
    each synced."""
    step = shard_frames(tokens_FND)
    for first in range(0, len(tokens_FND), step):
        shard = tokens_FND[first : first + step]
        with (folder / str(first)).open("wb", buffering=0) as file:
            for start in range(0, len(shard), BATCH_FRAMES):
                file.write(shard[start : start + BATCH_FRAMES].data)
            os.fsync(file.fileno())
