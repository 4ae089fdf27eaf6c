"""The only file that knows the layout on disk: write a store, read rows, verify a cache.

A cache is `cache.json` (spec, encoder identity, plan), `manifest/` (a copy), `stores/00017.zarr` and `receipts/00017.json`.
A store is a Zarr v3 group that plain `zarr.open_group` reads; it exists for readers only when its receipt exists, and the
receipt is written last: everything is written aside, synced, renamed, and only then vouched for. So a kill at any byte
loses at most the store in flight.

Token arrays are sharded and uncompressed: a shard file is its chunks one after the other, then the index (offset and length
of each chunk, then a CRC-32C), exactly as the Zarr sharding codec defines. That lets the writer stream and hash a shard
without holding it, and the reader fetch any row with one `preadv` into the batch. zarr-python itself writes the metadata
and the small arrays.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import zarr

from pipeline.errors import BadInput
from pipeline.places import Place, Span
from pipeline.spec import BASE

MISSING = np.iinfo(np.uint64).max
"""Offset and length of a chunk that a shard does not hold (Zarr v3 sharding codec)."""
VERIFY = "run: stillframe verify CACHE"


def token_arrays(
    layers: tuple[int, ...], special_tokens: int, patch_tokens: int, views: Iterable[str] = (BASE,)
) -> dict[str, int]:
    """Stored name of every token array -> tokens per frame. Encoders without special tokens have no `special`."""
    named = {"special": special_tokens} if special_tokens else {}
    named |= {layer_name(layer): patch_tokens for layer in layers}
    return {in_view(view, name): tokens for view in views for name, tokens in named.items()}


def in_view(view: str, name: str) -> str:
    """Stored name of an array of a view: `flip/layer_11`. Those of the base lie at the top."""
    return name if view == BASE else f"{view}/{name}"


def view_of(name: str) -> str:
    """The view that a stored array belongs to."""
    return name.rpartition("/")[0] or BASE


def layer_name(layer: int) -> str:
    """Stored name of a layer's patch tokens."""
    return f"layer_{layer}"


def stored_name(array: str, key: str) -> str:
    """Name on disk of a codec's array: `layer_11`, or `layer_11_scale` for its sibling `scale`."""
    return f"{array}_{key}" if key else array


class _ShardWriter:
    """Streams the rows of one array into shard files, hashing as it goes."""

    def __init__(
        self, store: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], chunk_frames: int, shard_frames: int
    ) -> None:
        assert shard_frames % chunk_frames == 0
        self.store, self.name, self.shape, self.dtype = store, name, shape, dtype
        self.chunk_frames, self.shard_frames = chunk_frames, shard_frames
        self.chunk_bytes = chunk_frames * int(np.prod(shape)) * dtype.itemsize
        self.rows = 0
        self.files: dict[str, tuple[int, str]] = {}
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()

    def append(self, array: np.ndarray) -> None:
        assert array.shape[1:] == self.shape and array.dtype == self.dtype, (array.shape, array.dtype, self.shape, self.dtype)
        array = np.ascontiguousarray(array)
        while len(array):
            room = self.shard_frames - self.rows % self.shard_frames
            part, array = array[:room], array[room:]
            self._put(part.reshape(-1).view(np.uint8).data)
            self.rows += len(part)
            if self.rows % self.shard_frames == 0:
                self._close_shard(self.shard_frames)

    def finish(self) -> None:
        """Pads the last chunk with the fill value and closes the last shard."""
        held = self.rows % self.shard_frames
        if self._file is not None:
            padding = -held % self.chunk_frames
            if padding:
                fill = np.full((padding, *self.shape), _fill_value(self.dtype), self.dtype)
                self._put(fill.reshape(-1).view(np.uint8).data)
            self._close_shard(held)

    def close(self) -> None:
        """Lets go of a shard that will not be finished."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _put(self, data: memoryview) -> None:
        if self._file is None:
            path = self._path()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
            self._hash = hashlib.sha256()
        self._file.write(data)
        self._hash.update(data)

    def _path(self) -> Path:
        parts = ["c", str(self.rows // self.shard_frames), *["0"] * len(self.shape)]
        return self.store.joinpath(self.name, *parts)

    def _close_shard(self, held: int) -> None:
        assert self._file is not None
        index = np.full((self.shard_frames // self.chunk_frames, 2), MISSING, "<u8")
        chunks = -(-held // self.chunk_frames)
        index[:chunks, 0] = np.arange(chunks) * self.chunk_bytes
        index[:chunks, 1] = self.chunk_bytes
        data = index.tobytes()
        self._put(memoryview(data + google_crc32c.value(data).to_bytes(4, "little")))
        path, size = Path(self._file.name), self._file.tell()
        _sync(self._file)
        self.close()
        self.files[path.relative_to(self.store).as_posix()] = size, self._hash.hexdigest()


class StoreWriter:
    """Writes one store into an empty folder that nobody reads; `finish` returns what the receipt must say of its files."""

    def __init__(
        self,
        folder: Path,
        arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
        chunk_frames: int,
        shard_frames: int,
    ) -> None:
        """`arrays`: name -> (shape of one frame, dtype)."""
        self.folder = folder
        self.writers = {
            name: _ShardWriter(folder, name, shape, dtype, chunk_frames, shard_frames)
            for name, (shape, dtype) in arrays.items()
        }

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """(f, ...) rows of every token array, but for those that are `held`."""
        assert arrays.keys() <= self.writers.keys()
        for name, array in arrays.items():
            self.writers[name].append(array)

    def held(self, name: str, rows: int, files: Mapping[str, tuple[int, str]]) -> None:
        """The shards of a token array lie in the folder already, synced: relative path -> (bytes, sha256)."""
        self.writers[name].rows = rows
        self.writers[name].files |= files

    def close(self) -> None:
        """Gives an unfinished store up; what is written of it stays where it is."""
        for writer in self.writers.values():
            writer.close()

    def finish(self, small: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
        """Writes the small arrays and all metadata, and syncs every file. Returns relative path -> (bytes, sha256)."""
        assert len({writer.rows for writer in self.writers.values()}) == 1
        files: dict[str, tuple[int, str]] = {}
        group = zarr.create_group(self.folder, zarr_format=3, attributes=dict(attributes))
        for name, writer in self.writers.items():
            writer.finish()
            files |= writer.files
            group.create_array(
                name,
                shape=(writer.rows, *writer.shape),
                chunks=(writer.chunk_frames, *writer.shape),
                shards=(writer.shard_frames, *writer.shape),
                dtype=writer.dtype,
                fill_value=_fill_value(writer.dtype),
                compressors=None,
            )
        for name, array in small.items():
            chunks = tuple(max(1, length) for length in array.shape)
            stored = group.create_array(
                name, shape=array.shape, chunks=chunks, dtype=array.dtype, fill_value=_fill_value(array.dtype), compressors=None
            )
            if array.size:
                stored[:] = array
        for path in sorted(self.folder.rglob("*")):
            relative = path.relative_to(self.folder).as_posix()
            if path.is_file() and relative not in files:
                with path.open("rb") as file:
                    files[relative] = path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
                    _sync(file)
        return dict(sorted(files.items()))


class StoreReader:
    """Reads rows of a finished store; safe to share between threads."""

    def __init__(self, place: Place, name: str) -> None:
        """The store `name` (`stores/00017.zarr`) of a cache's place."""
        self.place, self.name = place, name
        try:
            self.group = zarr.open_group(place.zarr(name), mode="r")
        except Exception as error:  # damaged metadata makes zarr raise errors of many types
            raise BadInput(f"store {self} cannot be opened: {error}", VERIFY) from error

    def __str__(self) -> str:
        return f"{self.place}/{self.name}"

    @cached_property
    def attributes(self) -> dict[str, Any]:
        return dict(self.group.attrs)

    def small(self, name: str) -> np.ndarray:
        """A whole small array, such as `time_s`."""
        return np.asarray(self._array(name)[:])

    def shape(self, name: str) -> tuple[int, ...]:
        return self._array(name).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(self._array(name).dtype)

    def read_general(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Rows of a token array through zarr-python: the reference that `read_into` must equal."""
        array = self._array(name)
        if len(rows) == 0:
            return np.empty((0, *array.shape[1:]), array.dtype)
        low = int(rows.min())
        return np.asarray(array[low : int(rows.max()) + 1])[rows - low]

    def read_into(self, name: str, rows: np.ndarray, out: np.ndarray) -> None:
        """Rows of a token array straight into `out` (len(rows), ...), which must be contiguous."""
        array = self._array(name)
        assert out.shape == (len(rows), *array.shape[1:]) and out.dtype == array.dtype and out.flags.c_contiguous
        if len(rows) == 0:
            return
        row_bytes = out[0].nbytes
        target = out.reshape(-1).view(np.uint8)
        shard_frames, chunk_frames = array.shards[0], array.chunks[0]
        for number, first, stop in _runs(rows // shard_frames):
            shard, offsets = self._shard(name, number)
            reads = []
            for first_run, count in _steps(rows[first:stop], chunk_frames):
                at = first + first_run
                within = int(rows[at]) % shard_frames
                offset = int(offsets[within // chunk_frames]) + within % chunk_frames * row_bytes
                reads.append((offset, target[at * row_bytes : (at + count) * row_bytes]))
            with self._open(shard, [(offset, offset + len(out)) for offset, out in reads]) as file:
                for offset, out in reads:
                    _read_exactly(file, f"{self.place}/{shard}", offset, out)

    def _array(self, name: str) -> Any:
        if name not in self._arrays:
            try:
                self._arrays[name] = self.group[name]
            except Exception as error:  # as above
                raise BadInput(f"array '{name}' of store {self} cannot be opened: {error}", VERIFY) from error
        return self._arrays[name]

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        return {}

    @cached_property
    def _shards(self) -> dict[tuple[str, int], tuple[str, np.ndarray]]:
        return {}

    def _shard(self, name: str, number: int) -> tuple[str, np.ndarray]:
        """Name of a shard in the place, and the offset of each of its chunks: its index is read and checked once."""
        key = (name, number)
        if key not in self._shards:
            array = self._array(name)
            shard = "/".join([self.name, name, "c", str(number), *["0"] * (array.ndim - 1)])
            chunks = array.shards[0] // array.chunks[0]
            with self._open(shard, []) as file:
                size, index_bytes = os.fstat(file.fileno()).st_size, chunks * 16 + 4
            with self._open(shard, [(max(0, size - index_bytes), size)]) as file:
                tail = os.pread(file.fileno(), index_bytes, max(0, size - index_bytes))
            if len(tail) != index_bytes or google_crc32c.value(tail[:-4]) != int.from_bytes(tail[-4:], "little"):
                raise BadInput(f"shard {self.place}/{shard} is damaged: its index does not match its checksum", VERIFY)
            self._shards[key] = shard, np.frombuffer(tail[:-4], "<u8").reshape(chunks, 2)[:, 0]
        return self._shards[key]

    def _open(self, shard: str, spans: Sequence[Span]) -> BinaryIO:
        """Opened for every read: a cache of terabytes has more shards than a process may hold open."""
        try:
            return self.place.open(shard, spans)
        except OSError as error:
            raise BadInput(f"shard {self.place}/{shard} cannot be read: {error.strerror}", VERIFY) from error


def _read_exactly(file: BinaryIO, path: str, offset: int, out: np.ndarray) -> None:
    done = 0
    while done < len(out):
        got = os.preadv(file.fileno(), [out[done:].data], offset + done)
        if got == 0:
            raise BadInput(f"shard {path} ends before byte {offset + len(out)}", VERIFY)
        done += got


def _runs(values: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(value, first, stop) of each stretch of equal values."""
    bounds = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    for first, stop in pairwise(bounds):
        yield int(values[first]), first, stop


def _steps(rows: np.ndarray, chunk_frames: int) -> Iterator[tuple[int, int]]:
    """(first, count) of each stretch of consecutive rows inside one chunk: what one read fetches."""
    breaks = np.flatnonzero((np.diff(rows) != 1) | (rows[1:] % chunk_frames == 0)) + 1
    bounds = [0, *breaks.tolist(), len(rows)]
    for first, stop in pairwise(bounds):
        yield first, stop - first


def check_files(
    place: Place, store: str, files: Mapping[str, tuple[int, str]], content_up_to: float = float("inf")
) -> dict[str, str]:
    """Relative path -> what is wrong with it: missing, of another size, of other content, or not in the receipt.

    The content of files of more than `content_up_to` bytes is not compared.
    """
    problems = {}
    found = place.sizes(store)
    for relative, (size, digest) in files.items():
        if relative not in found:
            problems[relative] = "missing"
        elif found[relative] != size:
            problems[relative] = f"{found[relative]} bytes, receipt says {size}"
        elif size <= content_up_to and place.digest(f"{store}/{relative}") != digest:
            problems[relative] = "content differs from its checksum"
    return problems | dict.fromkeys(sorted(found.keys() - files.keys()), "not in the receipt")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _fill_value(dtype: np.dtype[Any]) -> float | int:
    """NaN where there is one, so that what was never written cannot pass for a feature; all bits set is NaN as bfloat16."""
    if dtype.kind == "f":
        return float("nan")
    return int(np.iinfo(dtype).max) if dtype.kind == "u" else 0
