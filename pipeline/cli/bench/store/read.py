"""Windows of T frames out of files: every reader on the same tokens, in memory and from the disk.

Windows do not overlap, and a round reads all of them in a new order, so that what `dd` reads of the
same file is comparable. Readers take turns in every round. One thread reads batch after batch into
the same memory; what a reader does with knowing the windows of a batch, and what it starts by
itself, is its own affair.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.cache.shard.format import aligned_empty
from pipeline.cache.shard.page_cache import evict
from pipeline.cli.bench.store.readers import (
    IN_ORDER,
    MEMORY_MAP,
    OURS,
    READERS,
    WHOLE,
    Reader,
)
from pipeline.cli.bench.temporal import surroundings
from pipeline.cli.bench.timing import Tell, summary
from pipeline.errors import BadInput, StillframeError

WINDOW = (16, 201, 384)
"""T, N, D: a window of a ViT-S at 224 px."""
DTYPE = np.dtype("float16")
BATCH = 8
SEQUENTIAL, BLOCK_SIZES = "dd", ("1M", "4M", "16M")
BEFORE = f"{OURS}, read before"
"""Windows that have been read and that the memory does not hold any more, as in later epochs over a
cache that is larger: their checksums have been compared, and they are read past the page cache."""
REFERENCES = {"hot": MEMORY_MAP, "cold": SEQUENTIAL}
"""The readers whose speeds all others are divided by: the copy from a memory map, and sequential
reading of the store's shards."""


def random_tokens(frames: int, seed: int = 0) -> np.ndarray:
    """(F, N, D) float16 of a standard normal distribution."""
    rng = np.random.default_rng(seed)
    tokens = np.empty((frames, *WINDOW[1:]), DTYPE)
    for first in range(0, frames, WINDOW[0]):
        tokens[first : first + WINDOW[0]] = rng.standard_normal(
            tokens[first : first + WINDOW[0]].shape, np.float32
        )
    return tokens


def read_speed(windows: int, repeats: int, folder: Path | None, tell: Tell) -> dict[str, Any]:
    """GB/s of every reader that is installed. `folder`: on the disk to measure; a temporary one if
    None."""
    if not hasattr(os, "posix_fadvise"):
        raise BadInput(
            "bench read drops files from memory with posix_fadvise, which this system lacks",
            "run it on Linux",
        )
    readers = [reader for reader in READERS if find_spec(reader.package)]
    tokens_FND = random_tokens(
        (windows + 1) * WINDOW[0] - 1
    )  # so that every first frame within a window has its windows
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        folders = {reader.files: Path(scratch) / reader.files for reader in readers}
        for done, (files, path) in enumerate(folders.items()):
            tell(done, len(folders), f"writing {files}")
            path.mkdir()
            next(reader for reader in readers if reader.files == files).write(
                path, tokens_FND, WINDOW[0]
            )
            evict(path)
        seconds = _in_turn(readers, folders, tokens_FND, windows, repeats, tell)
        shard_bytes = sum(_sizes(_shards(folders["store"])))
    window_bytes = int(np.prod(WINDOW)) * DTYPE.itemsize
    return {
        "window": {"shape": WINDOW, "dtype": str(DTYPE), "bytes": window_bytes},
        "windows": windows,
        "file_bytes": shard_bytes,
        "repeats": repeats,
        "machine": f"{surroundings(torch.device('cpu'))['device']}, {os.cpu_count()} processors",
        "references": REFERENCES,
        "readers": {
            state: _figures(of_state, REFERENCES[state], windows * window_bytes, shard_bytes)
            for state, of_state in seconds.items()
        },
        "missing": {
            reader.name: f"pip install {reader.package}"
            for reader in READERS
            if reader not in readers
        },
    }


def _in_turn(
    readers: Sequence[Reader],
    folders: dict[str, Path],
    tokens_FND: np.ndarray,
    windows: int,
    repeats: int,
    tell: Tell,
) -> dict[str, dict[str, list[float]]]:
    """hot or cold -> reader -> seconds of each round. The first round warms up."""
    rng = np.random.default_rng(0)
    batch = aligned_empty((BATCH, *WINDOW), DTYPE)
    seconds: dict[str, dict[str, list[float]]] = {"hot": {}, "cold": {}}
    for repeat in range(repeats + 1):
        order = rng.permutation(windows) * WINDOW[0]
        for index in rng.permutation(len(readers)).tolist():
            reader = readers[index]
            tell(repeat * len(readers) + index, (repeats + 1) * len(readers), reader.name)
            # Windows begin anywhere, except where windows are what was written.
            starts = order if reader.name in (IN_ORDER, WHOLE) else order + rng.integers(WINDOW[0])
            starts = np.sort(starts) if reader.name == IN_ORDER else starts
            taken = _round(reader, folders[reader.files], starts.tolist(), batch, tokens_FND)
            for (state, name), elapsed_s in taken.items():
                seconds[state].setdefault(name, []).append(elapsed_s)
        seconds["cold"].setdefault(SEQUENTIAL, []).append(_sequential(folders["store"]))
    shown = [BEFORE, *(reader.name for reader in readers), SEQUENTIAL]
    return {
        state: {name: of[name][1:] for name in shown if name in of} for state, of in seconds.items()
    }


def _round(
    reader: Reader, path: Path, starts: Sequence[int], batch: np.ndarray, tokens_FND: np.ndarray
) -> dict[tuple[str, str], float]:
    """(hot or cold, reader) -> seconds from the disk, and from memory: of the last of three passes,
    when all that a reader keeps is there."""
    passes = [("cold", reader.name), ("hot", reader.name), ("hot", reader.name)]
    if reader.name == OURS:
        passes.append(("cold", BEFORE))
    taken = {}
    with reader.open(path, WINDOW[0]) as read:
        for state, name in passes:
            if state == "cold":
                evict(path)
            begin = time.perf_counter()
            for first in range(0, len(starts), BATCH):
                of_batch = starts[first : first + BATCH]
                read(of_batch, batch[: len(of_batch)])
            taken[state, name] = time.perf_counter() - begin
    for start, out in zip(of_batch, batch, strict=False):
        if not np.array_equal(out, tokens_FND[start : start + WINDOW[0]]):
            raise StillframeError(
                f"{reader.name} read other tokens than were written",
                "its speed means nothing; report it",
            )
    return taken


def _sequential(store: Path) -> float:
    """Seconds in which `dd` reads the shards of a store from the disk, one after the other, with
    the block size that suits the disk best just now."""
    return min(_sequential_by(size, store) for size in BLOCK_SIZES)


def _sequential_by(block_size: str, store: Path) -> float:
    evict(store)
    begin = time.perf_counter()
    for shard in _shards(store):
        subprocess.run(
            ["dd", f"if={shard}", f"of={os.devnull}", f"bs={block_size}"],
            check=True,
            stderr=subprocess.DEVNULL,
        )
    return time.perf_counter() - begin


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _shards(store: Path) -> list[Path]:
    return [path for path in _files(store) if path.suffix != ".json"]


def _sizes(files: Sequence[Path]) -> list[int]:
    return [file.stat().st_size for file in files]


def _figures(
    seconds: dict[str, list[float]], reference: str, window_bytes: int, shard_bytes: int
) -> dict[str, Any]:
    """Reader -> times, GB/s by their median, and the median of its rounds' ratios to the reference
    in the same rounds."""
    read_bytes = {name: shard_bytes if name == SEQUENTIAL else window_bytes for name in seconds}
    rates = {
        name: [read_bytes[name] / 1e9 / elapsed_s for elapsed_s in taken]
        for name, taken in seconds.items()
    }
    return {
        name: summary(taken)
        | {
            "gb_per_s": statistics.median(rates[name]),
            "ratio": statistics.median(
                ours / theirs for ours, theirs in zip(rates[name], rates[reference], strict=True)
            ),
        }
        for name, taken in seconds.items()
    }
