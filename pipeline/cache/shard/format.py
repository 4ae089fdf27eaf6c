"""A shard file: its chunks, each with a CRC-32C after it, then the index: offset and length of
every chunk, and a CRC-32C.

That is Zarr's sharding codec with the inner codecs `bytes`, `zstd` if asked for, and `crc32c`.
Chunks begin at multiples of 64 bytes, which the index allows: the kernel copies such rows a third
faster.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, BinaryIO, Literal

import google_crc32c
import numpy as np

from pipeline.errors import BadInput

Compression = Literal["none", "zstd"]

MISSING = np.iinfo(np.uint64).max
"""Offset and length of a chunk that a shard does not hold (Zarr v3 sharding codec)."""
VERIFY = "run: stillframe verify CACHE"
ALIGNMENT = 64
"""Bytes of a processor's cache line."""
CRC_BYTES = 4
Run = tuple[int, int, int, int]
"""Rows that follow each other in one chunk: index of the first among those that are asked for, how
many, chunk of their shard, and the first in that chunk."""


SteppedRun = tuple[int, int, int, int, int]
"""As a `Run`, of rows that lie equally far apart; last how far, in rows."""


@dataclass(frozen=True)
class ShardLayout:
    """Layout of the shards of one array."""

    shape: tuple[int, ...]
    """Shape of one row."""
    dtype: np.dtype[Any]
    chunk_frames: int
    shard_frames: int
    compression: Compression = "none"
    checksums: bool = True
    """Whether a CRC-32C follows every chunk. What is written has them; older stores have none."""

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def chunks(self) -> int:
        """Chunks of one shard."""
        return self.shard_frames // self.chunk_frames

    @property
    def index_bytes(self) -> int:
        """Bytes of the index: offset and length of every chunk, and a CRC-32C."""
        return self.chunks * 16 + CRC_BYTES


def fill_value(dtype: np.dtype[Any]) -> float | int:
    """NaN where there is one, so that what was never written cannot pass for a feature; all bits
    set is NaN as bfloat16."""
    if dtype.kind == "f":
        return float("nan")
    return int(np.iinfo(dtype).max) if dtype.kind == "u" else 0


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """An array as np.empty gives, on a boundary of a cache line: what numpy allocates lies 16 bytes
    off, and reads into that are slower."""
    size = math.prod(shape) * dtype.itemsize
    return aligned(np.empty(size + ALIGNMENT, np.uint8), shape, dtype)


def aligned(buffer_B: np.ndarray, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """An array in a buffer that is longer by `ALIGNMENT`, from the first boundary on."""
    start = -buffer_B.ctypes.data % ALIGNMENT
    size = math.prod(shape) * dtype.itemsize
    return buffer_B[start : start + size].view(dtype).reshape(shape)


def read_index(file: BinaryIO, name: str, layout: ShardLayout) -> np.ndarray:
    """(chunks, 2) offset and length of every chunk of an open shard. Raises BadInput if the index
    is not what was written."""
    start = max(0, os.fstat(file.fileno()).st_size - layout.index_bytes)
    data = os.pread(file.fileno(), layout.index_bytes, start)
    if len(data) != layout.index_bytes or google_crc32c.value(data[:-4]) != int.from_bytes(
        data[-4:], "little"
    ):
        raise BadInput(f"shard {name} is damaged: its index does not match its checksum", VERIFY)
    index = np.frombuffer(data[:-CRC_BYTES], "<u8").reshape(-1, 2)
    offset_C, length_C = index[index[:, 0] != MISSING].T
    if (offset_C > start).any() or (length_C > start - offset_C).any():
        raise BadInput(f"shard {name} is damaged: its index names bytes outside of it", VERIFY)
    return index


def equal_runs(values: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first, stop) of each run of equal values."""
    first = 0
    for index in range(1, len(values) + 1):
        if index == len(values) or values[index] != values[first]:
            yield first, index
            first = index


def runs_by_shard(
    rows: tuple[int, ...], layout: ShardLayout
) -> list[tuple[int, int, int, list[Run]]]:
    """Number of each shard that rows lie in, one after the other, (first, stop) of its rows among
    them, and their runs."""
    return _runs_by_shard(rows, layout.shard_frames, layout.chunk_frames)


@lru_cache(maxsize=1024)  # the arrays of a store are asked for the same rows in turn
def _runs_by_shard(
    rows: tuple[int, ...], shard_frames: int, chunk_frames: int
) -> list[tuple[int, int, int, list[Run]]]:
    def runs(first: int, stop: int) -> Iterator[Run]:
        for index in range(first + 1, stop + 1):
            goes_on = index < stop and rows[index] == rows[index - 1] + 1
            if not goes_on or rows[index] % chunk_frames == 0:
                chunk, within = divmod(rows[first] % shard_frames, chunk_frames)
                yield first, index - first, chunk, within
                first = index

    return [
        (rows[first] // shard_frames, first, stop, list(runs(first, stop)))
        for first, stop in equal_runs([row // shard_frames for row in rows])
    ]


@lru_cache(maxsize=1024)
def stepped_runs_by_shard(
    rows: tuple[int, ...], shard_frames: int, chunk_frames: int
) -> list[tuple[int, list[SteppedRun]]]:
    """Number of each shard that rows lie in, one after the other, and their runs."""
    shards: list[tuple[int, list[SteppedRun]]] = []
    for index, row in enumerate(rows):
        number, (chunk, within) = row // shard_frames, divmod(row % shard_frames, chunk_frames)
        if not shards or shards[-1][0] != number:
            shards.append((number, []))
        runs = shards[-1][1]
        step = within - (runs[-1][3] + (runs[-1][1] - 1) * runs[-1][4]) if runs else 0
        if runs and runs[-1][2] == chunk and step > 0 and runs[-1][4] in (0, step):
            first, count, _, begin, _ = runs[-1]
            runs[-1] = first, count + 1, chunk, begin, step
        else:
            runs.append((index, 1, chunk, within, 0))
    return shards
