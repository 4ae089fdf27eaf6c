"""A shard file: its chunks, each with a CRC-32C after it, then the index: offset and length of
every chunk, and a CRC-32C.

That is Zarr's sharding codec with the inner codecs `bytes`, `zstd` if asked for, and `crc32c`.
Chunks begin at multiples of 64 bytes, which the index allows: the kernel copies such rows a third
faster. Bytes pass through the writer once: while one thread writes them, another hashes them, and
the disk starts on them long before the shard is closed.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd

from pipeline.cache.layout import shard_file
from pipeline.cache.page_cache import (
    FilePart,
    announce,
    copy_past,
    copy_resident,
    resident,
)
from pipeline.cache.storage.contract import Span
from pipeline.errors import BadInput

Compression = Literal["none", "zstd"]

MISSING = np.iinfo(np.uint64).max
"""Offset and length of a chunk that a shard does not hold (Zarr v3 sharding codec)."""
VERIFY = "run: stillframe verify CACHE"
ALIGNMENT = 64
"""Bytes of a processor's cache line."""
CRC_BYTES = 4
WRITE_BEHIND = 16 << 20
"""After so many bytes the disk is told to start."""
HASH_BEHIND = 64 << 20
"""Bytes that may be written and not hashed yet."""
PARTS_AT_ONCE = 512
"""Less than the 1024 buffers that one `writev` takes."""
FIRST_STEP, STEP = 4 << 10, 128 << 10
"""Bytes of the first of a run of reads, and the most of one. The kernel takes the run for a
sequential read: it reads ahead, in large pages that are also copied faster ever after, and they
grow from the size of the first read on. A whole window at once is a random read to it, at half the
speed, and so is what `madvise` and `posix_fadvise` ask for."""
LEAST_GAP = 64 << 10
"""Bytes between two stretches of a file that are worth a request to a disk of its own."""

Run = tuple[int, int, int, int]
"""Rows that follow each other in one chunk: index of the first among those that are asked for, how
many, chunk of their shard, and the first in that chunk."""


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
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


class ShardWriter:
    """Streams the rows of one array into shard files; threads of its own hash and sync them: of two
    shards, one is hashed to its end while the next is begun."""

    def __init__(self, store: Path, name: str, layout: ShardLayout) -> None:
        """Writes the array `name` of the store in folder `store`."""
        assert layout.shard_frames % layout.chunk_frames == 0 and layout.checksums
        self.store, self.name, self.layout = store, name, layout
        self.rows = 0
        self.checksums: list[int] = []
        """CRC-32C of every chunk so far."""
        self._hashing, self._next_hashing, self._syncing = (
            ThreadPoolExecutor(1, f"{job} {name}") for job in ("hash", "hash", "sync")
        )
        self._done: dict[str, tuple[int, Any]] = {}
        self._adopted: dict[str, tuple[int, str]] = {}
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._hashed: deque[tuple[Future[None], int]] = deque()
        self._synced: Future[None] | None = None
        self._index = np.empty(0)
        self._size = self._started = self._crc = 0
        self._chunk = (
            np.empty((layout.chunk_frames, *layout.shape), layout.dtype)
            if layout.compression == "zstd"
            else None
        )

    def append(self, rows: np.ndarray) -> None:
        """The rows are the writer's from now on: they may still be hashed while the next ones are
        written."""
        layout = self.layout
        assert rows.shape[1:] == layout.shape and rows.dtype == layout.dtype, (
            rows.shape,
            rows.dtype,
            layout,
        )
        rows = np.ascontiguousarray(rows)
        parts: list[np.ndarray] = []
        while len(rows):
            piece = rows[: layout.chunk_frames - self.rows % layout.chunk_frames]
            if self._file is None:
                self._open_shard()
            parts += self._piece(piece)
            self.rows, rows = self.rows + len(piece), rows[len(piece) :]
            if self.rows % layout.shard_frames == 0:
                self._close_shard(parts)
                parts = []
            elif len(parts) > PARTS_AT_ONCE:
                self._put(parts)
                parts = []
        if parts:
            self._put(parts)

    def adopt(self, rows: int, files: Mapping[str, tuple[int, str]]) -> None:
        """Takes over all `rows`, which lie there already, synced: relative path -> (bytes,
        sha256). The files must be as written: the checksums of their chunks are believed."""
        self.rows, self._adopted = rows, dict(files)
        chunks = -(-rows // self.layout.chunk_frames)
        for number in range(-(-rows // self.layout.shard_frames)):
            path = self.store / shard_file(self.name, number, len(self.layout.shape))
            with path.open("rb", buffering=0) as file:
                index = read_index(file, str(path), self.layout)
                for end in index[: chunks - len(self.checksums)].sum(1).tolist():
                    crc = os.pread(file.fileno(), CRC_BYTES, end - CRC_BYTES)
                    self.checksums.append(int.from_bytes(crc, "little"))

    def complete(self) -> None:
        """Fills the last chunk up and writes the last shard to its end, which may still have to be
        hashed and synced."""
        if self._adopted:
            return
        padding, rows = -self.rows % self.layout.chunk_frames, self.rows
        if padding:
            self.append(
                np.full(
                    (padding, *self.layout.shape), fill_value(self.layout.dtype), self.layout.dtype
                )
            )
        if self._file is not None:
            self._close_shard([])
        self.rows = rows

    def finish(self) -> dict[str, tuple[int, str]]:
        """Waits until a complete array is hashed and synced. Returns path relative to the store ->
        (bytes, sha256)."""
        if self._adopted:
            self.close()
            return self._adopted
        self._wait(0)
        if self._synced is not None:
            self._synced.result()
        self.close()
        return {path: (size, digest.hexdigest()) for path, (size, digest) in self._done.items()}

    def close(self) -> None:
        """Lets go of the threads, and of a shard that will not be finished."""
        for threads in (self._hashing, self._next_hashing, self._syncing):
            threads.shutdown()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open_shard(self) -> None:
        number = self.rows // self.layout.shard_frames
        path = self.store / shard_file(self.name, number, len(self.layout.shape))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb", buffering=0)
        self._hash = hashlib.sha256()
        self._hashing, self._next_hashing = self._next_hashing, self._hashing
        self._index = np.full((self.layout.chunks, 2), MISSING, "<u8")
        self._size = self._started = self._crc = 0

    def _piece(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the bytes that the file gets for rows of one chunk; after the last of them its
        checksum, and zeros up to the next boundary."""
        first, frames = self.rows % self.layout.chunk_frames, self.layout.chunk_frames
        last = first + len(rows) == frames
        chunk = self.rows % self.layout.shard_frames // frames
        if first == 0:
            self._index[chunk] = self._size, 0
        data: np.ndarray | None = rows.reshape(-1).view(np.uint8)
        if self._chunk is not None:
            self._chunk[first : first + len(rows)] = rows
            data = np.frombuffer(Zstd(level=0).encode(self._chunk), np.uint8) if last else None
        if data is not None:
            self._crc = google_crc32c.extend(self._crc, data)
            self._size += len(data)
            yield data
        if last:
            self._index[chunk, 1] = self._size + CRC_BYTES - self._index[chunk, 0]
            self.checksums.append(self._crc)
            tail = self._crc.to_bytes(CRC_BYTES, "little")
            tail += bytes(-(self._size + CRC_BYTES) % ALIGNMENT)
            self._size, self._crc = self._size + len(tail), 0
            yield np.frombuffer(tail, np.uint8)

    def _put(self, parts: list[np.ndarray]) -> None:
        """Writes in this thread while the other one hashes."""
        assert self._file is not None
        self._hashed.append(
            (self._hashing.submit(_update, self._hash, parts), sum(map(len, parts)))
        )
        handle = self._file.fileno()
        _write_all(handle, parts)
        if self._size - self._started >= WRITE_BEHIND and hasattr(os, "posix_fadvise"):
            # On Linux this starts the writing of what is not on the disk yet, and waits for
            # nothing.
            os.posix_fadvise(
                handle, self._started, self._size - self._started, os.POSIX_FADV_DONTNEED
            )
            self._started = self._size
        self._wait(HASH_BEHIND)

    def _wait(self, most: int) -> None:
        """Waits until no more than `most` bytes are still to be hashed."""
        while self._hashed and sum(size for _, size in self._hashed) > most:
            self._hashed.popleft()[0].result()

    def _close_shard(self, parts: list[np.ndarray]) -> None:
        """Writes the last parts and the index; syncs while the next shard goes on."""
        assert self._file is not None
        index = self._index.tobytes()
        index += google_crc32c.value(index).to_bytes(CRC_BYTES, "little")
        self._put([*parts, np.frombuffer(index, np.uint8)])
        if self._synced is not None:
            self._synced.result()
        path = Path(self._file.name).relative_to(self.store).as_posix()
        self._done[path] = self._size + len(index), self._hash
        self._synced = self._syncing.submit(_sync_and_close, self._file)
        self._file = None


def _update(digest: Any, parts: Sequence[np.ndarray]) -> None:
    for part in parts:
        digest.update(part)


def _write_all(handle: int, parts: Sequence[np.ndarray]) -> None:
    parts = list(parts)
    while parts:
        written = os.writev(handle, parts)  # type: ignore[arg-type]
        while parts and written >= len(parts[0]):
            written -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][written:]


def _sync_and_close(file: BinaryIO) -> None:
    with file:
        os.fsync(file.fileno())


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


def chunk_checksum(file: BinaryIO, start: int, length: int) -> tuple[int, int]:
    """CRC-32C of the content of the chunk at `start` of an open shard, and the one that was written
    after it; `length` counts both. Raises EOFError, OSError."""
    chunk_B = resident(file, start, start + length)
    if chunk_B is None:
        chunk_B = np.empty(length, np.uint8)
        read_parts(file, [(start, chunk_B)])
    content = google_crc32c.value(chunk_B[:-CRC_BYTES])
    return content, int.from_bytes(chunk_B[-CRC_BYTES:].tobytes(), "little")


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


def read_parts(file: BinaryIO, parts: Sequence[FilePart], *, again: bool = False) -> bool:
    """Fills every part with the bytes at its offset. Returns whether all were in memory. `again`:
    they have been read before, so what is not there any more the memory has no room for, and it is
    read past the page cache. Raises EOFError, OSError."""
    if copy_resident(file, parts):
        return True
    if not (again and copy_past(file, parts)):
        for part in parts:
            _read(file, part, FIRST_STEP)
    return False


def read_kept(
    file: BinaryIO,
    parts: Sequence[FilePart],
    row_bytes: int,
    kept_P: np.ndarray,
    *,
    again: bool = False,
) -> bool:
    """Fills every part with those tokens of its rows that are kept: rows of `row_bytes` follow each
    other from its offset on, and each holds as many tokens as the mask `kept_P`. Returns whether
    all rows were in memory. `again`: as for `read_parts`. Raises EOFError, OSError.

    From memory those tokens alone are copied, from a disk `spans_of` is read.
    """
    there = partial(resident, file)
    if copy_kept(there, parts, row_bytes, kept_P):
        return True
    places_K, part = np.flatnonzero(kept_P), part_of_row(row_bytes, kept_P)
    kept_bytes = len(places_K) * (row_bytes // len(kept_P))
    if part == (0, row_bytes):
        if again and _copy_kept_past(file, parts, row_bytes, kept_P):
            return False
    else:  # where all is read, the kernel reads ahead by itself
        rows = [(offset, len(out) // kept_bytes) for offset, out in parts]
        announce(file, [span for each in rows for span in spans_of(*each, row_bytes, part)])
    first, end = part
    row_B = aligned_empty((row_bytes,), np.dtype(np.uint8))
    for offset, out in parts:
        for number, of_row in enumerate(out.reshape(-1, kept_bytes)):
            _read(file, (offset + number * row_bytes + first, row_B[first:end]))
            _take(row_B, of_row, places_K, row_bytes // len(kept_P))
    return False


def _copy_kept_past(
    file: BinaryIO, parts: Sequence[FilePart], row_bytes: int, kept_P: np.ndarray
) -> bool:
    """Does what `read_kept` does by way of whole rows, past the page cache; False where that cannot
    be done."""
    places_K, token_bytes = np.flatnonzero(kept_P), row_bytes // len(kept_P)
    rows = [
        (offset, np.empty(len(out) // (len(places_K) * token_bytes) * row_bytes, np.uint8))
        for offset, out in parts
    ]
    if not copy_past(file, rows):
        return False
    for (_, rows_B), (_, out) in zip(rows, parts, strict=True):
        _take(rows_B, out, places_K, token_bytes)
    return True


def copy_kept(
    there: Callable[[int, int], np.ndarray | None],
    parts: Sequence[FilePart],
    row_bytes: int,
    kept_P: np.ndarray,
) -> bool:
    """Does what `read_kept` does where `there`, which gives bytes [start, stop) of the file, says
    that they are in memory; else False, and nothing is done."""
    places_K = np.flatnonzero(kept_P)
    kept_bytes = len(places_K) * (row_bytes // len(kept_P))
    spans = [(offset, offset + len(out) // kept_bytes * row_bytes) for offset, out in parts]
    start = min([start for start, _ in spans])
    rows_B = there(start, max([stop for _, stop in spans]))
    if rows_B is None:
        return False
    for (first, stop), (_, out) in zip(spans, parts, strict=True):
        _take(rows_B[first - start : stop - start], out, places_K, row_bytes // len(kept_P))
    return True


def _take(rows_B: np.ndarray, out: np.ndarray, places_K: np.ndarray, token_bytes: int) -> None:
    """Copies the tokens at some places of rows, of which `out` has room for as many."""
    out_FKt = out.reshape(-1, len(places_K), token_bytes)
    tokens_FPt = rows_B.reshape(len(out_FKt), -1, token_bytes)
    # With "raise", numpy would fill a copy first.
    np.take(tokens_FPt, places_K, axis=1, out=out_FKt, mode="clip")


def part_of_row(row_bytes: int, kept_P: np.ndarray | None) -> Span:
    """The bytes of a row that a disk is asked for: all, since a page holds several tokens and the
    kernel reads ahead, except what comes before the first and after the last token that is kept,
    where that is much."""
    if kept_P is None or row_bytes < LEAST_GAP:
        return 0, row_bytes
    places_K, token_bytes = np.flatnonzero(kept_P), row_bytes // len(kept_P)
    first, end = int(places_K[0]) * token_bytes, (int(places_K[-1]) + 1) * token_bytes
    return (first, end) if row_bytes - (end - first) >= LEAST_GAP else (0, row_bytes)


def spans_of(offset: int, rows: int, row_bytes: int, part: Span) -> list[Span]:
    """Bytes of a shard that a disk is asked for where a part of each of so many rows is read, which
    follow each other from `offset` on: one span where that is all of them."""
    first, end = part
    if end - first == row_bytes:
        return [(offset, offset + rows * row_bytes)]
    begins = range(offset, offset + rows * row_bytes, row_bytes)
    return [(begin + first, begin + end) for begin in begins]


def _read(file: BinaryIO, part: FilePart, first_step: int = STEP) -> None:
    """Fills a part with the bytes at its offset. Raises EOFError, OSError."""
    (offset, out), done = part, 0
    while done < len(out):
        step = min(max(first_step, 3 * done), STEP)
        got = os.preadv(file.fileno(), [out[done : done + step].data], offset + done)
        if got == 0:
            raise EOFError(f"ends before byte {offset + len(out)}")
        done += got
