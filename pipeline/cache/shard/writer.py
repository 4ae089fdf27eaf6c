"""Writes shard files. Bytes pass through the writer once: while one thread writes them, past the
page cache where that is quicker (`direct`), another hashes them."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd

from pipeline.cache.layout import shard_file
from pipeline.cache.shard.direct import DirectWriter, is_on_disk
from pipeline.cache.shard.format import (
    ALIGNMENT,
    CRC_BYTES,
    MISSING,
    ShardLayout,
    fill_value,
    read_index,
)

WRITE_BEHIND = 16 << 20
"""After so many bytes in the page cache the disk is told to start."""
HASH_BEHIND = 64 << 20
"""Bytes that may be written and not hashed yet."""
PARTS_AT_ONCE = 512
"""Less than the 1024 buffers that one `writev` takes."""


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
        self._direct = DirectWriter(layout.shard_frames * layout.row_bytes)
        self._is_direct = False
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
        self._is_direct = is_on_disk(self._file.fileno())
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
        if self._is_direct:
            self._direct.write(self._file.fileno(), parts)
        else:
            self._put_behind(self._file.fileno(), parts)
        self._wait(HASH_BEHIND)

    def _put_behind(self, handle: int, parts: list[np.ndarray]) -> None:
        """Writes into the page cache, from where the disk takes it meanwhile."""
        _write_all(handle, parts)
        if self._size - self._started >= WRITE_BEHIND and hasattr(os, "posix_fadvise"):
            # On Linux this starts the writing of what is not on the disk yet, and waits for
            # nothing.
            os.posix_fadvise(
                handle, self._started, self._size - self._started, os.POSIX_FADV_DONTNEED
            )
            self._started = self._size

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
        if self._is_direct:
            self._direct.finish(self._file.fileno())
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
