"""Write a store, see `store`: token arrays straight into shards (`shard/`), the metadata and the
small arrays through zarr-python."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from pipeline.cache.layout import CHUNK_CHECKSUMS
from pipeline.cache.shard.format import Compression, ShardLayout, fill_value
from pipeline.cache.shard.writer import ShardWriter

WRITERS = 4
"""Threads that write, each one array at a time: while one waits for the disk, it takes the bytes of
another."""


class StoreWriter:
    """Writes one store into an empty folder that nobody reads; `finish` returns what the receipt
    must say of its files."""

    def __init__(
        self,
        folder: Path,
        arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
        chunk_frames: int,
        shard_frames: int,
        compression: Compression = "none",
    ) -> None:
        """`arrays`: name -> (shape of one frame, dtype)."""
        self.folder = folder
        self.writers = {
            name: ShardWriter(
                folder, name, ShardLayout(shape, dtype, chunk_frames, shard_frames, compression)
            )
            for name, (shape, dtype) in arrays.items()
        }
        self._threads = ThreadPoolExecutor(min(len(arrays), WRITERS), "write")

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Adds rows (f, ...) of every token array but those that were adopted. They are the
        writer's now, and must not be changed."""
        assert arrays.keys() <= self.writers.keys()
        added = [
            self._threads.submit(self.writers[name].append, array) for name, array in arrays.items()
        ]
        wait(added)  # for all, whatever befalls one: the rows are in use
        for each in added:
            each.result()

    def adopt_shards(self, name: str, rows: int, files: Mapping[str, tuple[int, str]]) -> None:
        """Takes over all shards of a token array, which lie in the folder already, synced:
        relative path -> (bytes, sha256)."""
        self.writers[name].adopt(rows, files)

    def close(self) -> None:
        """Gives an unfinished store up; what is written of it stays where it is."""
        self._threads.shutdown()
        for writer in self.writers.values():
            writer.close()

    def finish(
        self,
        small: Mapping[str, np.ndarray],
        attributes: Mapping[str, Any],
        *,
        lists_checksums: bool = True,
    ) -> dict[str, tuple[int, str]]:
        """Writes the small arrays and all metadata, and syncs every file. Returns relative path ->
        (bytes, sha256). `lists_checksums`: whether the attributes tell the checksum of every chunk,
        as they do since format 3."""
        assert len({writer.rows for writer in self.writers.values()}) == 1
        for writer in self.writers.values():
            writer.complete()
        # What follows from the rows is made ready while the last of them are hashed and synced.
        checksums = {
            name: np.array(writer.checksums, ">u4").tobytes().hex()
            for name, writer in self.writers.items()
        }
        listed = {CHUNK_CHECKSUMS: checksums} if lists_checksums else {}
        # Into memory: zarr writes files by hard links, which some file systems do not have.
        written: dict[str, Any] = {}
        group = zarr.create_group(
            MemoryStore(written), zarr_format=3, attributes={**attributes, **listed}
        )
        for name, writer in self.writers.items():
            layout = writer.layout
            group.create_array(
                name,
                shape=(writer.rows, *layout.shape),
                chunks=(layout.chunk_frames, *layout.shape),
                shards=(layout.shard_frames, *layout.shape),
                dtype=layout.dtype,
                fill_value=fill_value(layout.dtype),
                compressors=[
                    *([ZstdCodec(level=0)] if layout.compression == "zstd" else []),
                    Crc32cCodec(),
                ],
            )
        for name, array in small.items():
            chunks = tuple(max(1, length) for length in array.shape)
            stored = group.create_array(
                name,
                shape=array.shape,
                chunks=chunks,
                dtype=array.dtype,
                fill_value=fill_value(array.dtype),
                compressors=None,
            )
            if array.size:
                stored[:] = array
        self._threads.shutdown()
        files: dict[str, tuple[int, str]] = {}
        for writer in self.writers.values():
            files |= writer.finish()
        for relative, buffer in sorted(written.items()):
            data = buffer.to_bytes()
            path = self.folder / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            files[relative] = len(data), hashlib.sha256(data).hexdigest()
        return dict(sorted(files.items()))
