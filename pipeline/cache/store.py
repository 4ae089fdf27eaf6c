"""Read the rows of a store: a Zarr v3 group that plain `zarr.open_group` reads (`layout` names what
is in it), which exists for readers only when its receipt exists (`commit`).

Token arrays are sharded; `shard/` knows the bytes of a shard file. Uncompressed rows are read
straight into the batch, compressed ones through zarr-python.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec
from zarr.storage import LocalStore

from pipeline.cache.layout import CHUNK_CHECKSUMS, shard_file
from pipeline.cache.shard.format import (
    MISSING,
    VERIFY,
    ShardLayout,
    equal_runs,
    read_index,
    runs_by_shard,
    stepped_runs_by_shard,
)
from pipeline.cache.shard.page_cache import announce, copy_mapped, mapped
from pipeline.cache.shard.reader import (
    chunk_checksum,
    copy_kept,
    part_of_row,
    read_kept,
    read_parts,
    spans_of,
)
from pipeline.cache.storage.contract import Span, Storage
from pipeline.cache.storage.local import LocalFolder
from pipeline.config.regular_files import open_regular
from pipeline.errors import BadInput, StillframeError

CONTENT = "content differs from its checksum"
"""What is said of a file or a chunk that is not what was written."""


class RegularFiles(LocalStore):
    """A folder for zarr in which nothing but regular files is opened: at a named pipe, zarr would
    wait for ever."""

    async def get(
        self, key: str, prototype: Any = None, byte_range: Any = None
    ) -> zarr.core.buffer.Buffer | None:
        path = self.root / key
        if path.exists() and not path.is_dir():
            open_regular(path).close()
        return await super().get(key, prototype, byte_range)


class StoreReader:
    """Reads rows of a finished store; safe to share between threads."""

    def __init__(self, storage: Storage, name: str) -> None:
        """Opens the store `name`, such as `stores/00017.zarr`, of a cache that lies in
        `storage`."""
        self.storage, self.name = storage, name
        self._arrays: dict[str, Any] = {}
        self._layouts: dict[str, ShardLayout] = {}
        self._chunks_of_shard: dict[tuple[str, int], np.ndarray] = {}
        self._begins: dict[tuple[str, int], tuple[str, list[int]]] = {}
        """Array and number of a shard -> the path of its file, where it lies on this machine, and
        where its chunks begin."""
        self._checksums: dict[str, np.ndarray | None] = {}
        self._vouched: dict[str, bytearray] = {}
        try:
            place = storage.zarr(name)
            place = RegularFiles(place, read_only=True) if isinstance(place, Path) else place
            self.group = zarr.open_group(place, mode="r")
        except StillframeError:
            raise
        except Exception as error:  # damaged metadata makes zarr raise errors of many types
            raise BadInput(f"store {self} cannot be opened: {error}", VERIFY) from error

    def __str__(self) -> str:
        return f"{self.storage}/{self.name}"

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the group: fingerprint of the cache, and ids of the videos."""
        return dict(self.group.attrs)

    def small(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A whole small array, such as `time_s`, which must have this shape, in one chunk: what its
        metadata says takes no memory before it is compared. Raises BadInput."""
        array = self._array(name)
        chunk = tuple(max(1, length) for length in shape)
        if (array.shape, array.chunks) != (shape, chunk) or np.dtype(array.dtype).kind not in "fi":
            raise BadInput(
                f"array '{name}' of store {self} holds {array.dtype} {array.shape} in chunks of "
                f"{array.chunks}, wanted numbers {shape} in one chunk",
                VERIFY,
            )
        try:
            return np.asarray(array[:])
        except StillframeError:
            raise
        except Exception as error:  # a damaged chunk makes zarr raise errors of many types
            raise BadInput(
                f"array '{name}' of store {self} cannot be read: {error}", VERIFY
            ) from error

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array, its rows first."""
        return self._array(name).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """Type of an array as it is stored."""
        return np.dtype(self._array(name).dtype)

    def read_general(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Rows of a token array through zarr-python, checksums compared: the reference that
        `read_into` must equal."""
        array = self._array(name)
        out = np.empty((len(rows), *array.shape[1:]), array.dtype)
        frames = array.chunks[0]
        for first, stop in equal_runs([row // frames for row in rows.tolist()]):
            chunk = int(rows[first]) // frames
            out[first:stop] = np.asarray(array[chunk * frames : (chunk + 1) * frames])[
                rows[first:stop] - chunk * frames
            ]
        return out

    def read_into(
        self, name: str, rows: np.ndarray, out: np.ndarray, kept_P: np.ndarray | None = None
    ) -> bool:
        """Rows of a token array straight into `out` (len(rows), tokens, ...), which must be
        contiguous: all of their tokens, or those that are kept, which a mask over all says. Returns
        whether all are known to have been in memory."""
        layout = self.layout(name)
        assert len(out) == len(rows) and out.flags.c_contiguous
        shape = out.shape[1:] if kept_P is None else (len(kept_P), *out.shape[2:])
        if (shape, out.dtype) != (layout.shape, layout.dtype):
            raise BadInput(
                f"array '{name}' of store {self} holds {layout.dtype} {layout.shape} for a frame, "
                f"the cache says {out.dtype} {shape}",
                VERIFY,
            )
        target = out.reshape(-1).view(np.uint8)
        rows_T = tuple(rows.tolist())
        if self._is_copied(name, rows_T, target, kept_P):
            return True
        out_bytes = len(target) // max(1, len(rows))
        were_there, part = True, part_of_row(layout.row_bytes, kept_P)
        for number, first, stop, runs in runs_by_shard(rows_T, layout):
            chunks = [chunk for _, _, chunk, _ in runs]
            were_there &= (again := self._vouch(name, number, chunks))
            if layout.compression != "none":
                whole = self.read_general(name, rows[first:stop])
                out[first:stop] = whole if kept_P is None else whole[:, kept_P]
                continue
            begins = self._chunks(name, number)[chunks, 0].tolist()
            parts, spans = [], []
            for begin, (at, count, _, within) in zip(begins, runs, strict=True):
                offset = begin + within * layout.row_bytes
                parts.append((offset, target[at * out_bytes :][: count * out_bytes]))
                spans += spans_of(offset, count, layout.row_bytes, part)
            with self.open_shard(name, number, spans) as file:
                try:
                    were_there &= (
                        read_parts(file, parts, again=again)
                        if kept_P is None
                        else read_kept(file, parts, layout.row_bytes, kept_P, again=again)
                    )
                except EOFError as error:
                    raise BadInput(f"shard {self.shard(name, number)} {error}", VERIFY) from error
                except OSError as error:
                    raise self._unreadable(name, number, error) from error
        return were_there

    def _is_copied(
        self, name: str, rows: tuple[int, ...], target: np.ndarray, kept_P: np.ndarray | None
    ) -> bool:
        """Whether rows could be copied from shards that are mapped, out of chunks that have been
        compared: the quick way of reading what is in memory, without opening a file for it."""
        layout, vouched = self.layout(name), self._vouched.get(name)
        if vouched is None or layout.compression != "none":
            return False
        if kept_P is not None:
            return self._is_kept_copied(name, rows, target, kept_P)
        row_bytes, out = layout.row_bytes, target.reshape(len(rows), layout.row_bytes)
        for number, runs in stepped_runs_by_shard(rows, layout.shard_frames, layout.chunk_frames):
            path, begins = self._begins.get((name, number), ("", []))
            if not begins:
                return False
            parts, first = [], number * layout.chunks
            for at, count, chunk, within, step in runs:
                if not vouched[first + chunk]:
                    return False
                offset = begins[chunk] + within * row_bytes
                parts.append((offset, step * row_bytes, out[at : at + count]))
            if not copy_mapped(path, parts):
                return False
        return True

    def _is_kept_copied(
        self, name: str, rows: tuple[int, ...], target: np.ndarray, kept_P: np.ndarray
    ) -> bool:
        """As `_is_copied`, of those tokens that are kept."""
        layout, vouched = self.layout(name), self._vouched[name]
        out_bytes = len(target) // max(1, len(rows))
        for number, _, _, runs in runs_by_shard(rows, layout):
            path, begins = self._begins.get((name, number), ("", []))
            first = number * layout.chunks
            if not begins or not all(vouched[first + chunk] for _, _, chunk, _ in runs):
                return False
            offsets = (begins[chunk] + within * layout.row_bytes for _, _, chunk, within in runs)
            outs = (target[at * out_bytes :][: count * out_bytes] for at, count, _, _ in runs)
            parts = list(zip(offsets, outs, strict=True))
            if not copy_kept(partial(mapped, path), parts, layout.row_bytes, kept_P):
                return False
        return True

    def ask(self, name: str, rows: np.ndarray, kept_P: np.ndarray | None = None) -> None:
        """Lets the disk begin with rows that are read next, where it reads but a part of each:
        where it reads all, it is as fast by itself."""
        layout = self.layout(name)
        part = part_of_row(layout.row_bytes, kept_P)
        if part == (0, layout.row_bytes):
            return
        for number, _, _, runs in runs_by_shard(tuple(rows.tolist()), layout):
            index, vouched = self._chunks(name, number), self._vouched_chunks(name)
            spans: list[Span] = []
            for _, count, chunk, within in runs:
                start, length = index[chunk].tolist()
                if vouched[number * layout.chunks + chunk] and layout.compression == "none":
                    offset = start + within * layout.row_bytes
                    spans += spans_of(offset, count, layout.row_bytes, part)
                else:
                    spans.append((start, start + length))
            with self.open_shard(name, number, spans) as file:
                announce(file, spans)

    def _vouched_chunks(self, name: str) -> bytearray:
        """Chunk of a token array -> whether it was compared in this process."""
        if name not in self._vouched:
            chunk_frames = self.layout(name).chunk_frames
            self._vouched[name] = bytearray(-(-self.shape(name)[0] // chunk_frames))
        return self._vouched[name]

    def _vouch(self, name: str, number: int, chunks: Sequence[int]) -> bool:
        """Compares chunks of a shard with what the store vouches for, each at its first read in
        this process. Returns whether none is new. Raises BadInput."""
        layout, first = self.layout(name), number * self.layout(name).chunks
        vouched = self._vouched_chunks(name)
        new = [chunk for chunk in chunks if not vouched[first + chunk]]
        if not new:
            return True
        for chunk, problem in zip(new, self.chunk_problems(name, number, new), strict=True):
            if problem and self._forget(name, number):
                (problem,) = self.chunk_problems(name, number, [chunk])
            if problem:
                rows = (first + chunk) * layout.chunk_frames
                raise BadInput(
                    f"shard {self.shard(name, number)} is damaged: rows [{rows}, "
                    f"{rows + layout.chunk_frames}) of the store: {problem}",
                    f"see it all: stillframe verify {self.storage}; "
                    f"mend it: stillframe verify {self.storage} --repair",
                )
            vouched[first + chunk] = True
        return False

    def chunk_problems(self, name: str, number: int, chunks: Sequence[int]) -> list[str]:
        """What is wrong with each of some chunks of a shard, "" where it is as written: its content
        is compared with the checksum that the store lists for its place, or with its own in stores
        that list none. Nothing is compared in the oldest, whose chunks have no checksums. Raises
        BadInput where the shard cannot be opened or its index is damaged."""
        places = self._chunks(name, number)[list(chunks)].tolist()
        first, listed = number * self.layout(name).chunks, self._listed_checksums(name)
        wanted = [None if listed is None else int(listed[first + chunk]) for chunk in chunks]
        spans = [(start, start + length) for start, length in places if start != MISSING]
        with self.open_shard(name, number, spans) as file:
            return [
                self._chunk_problem(name, file, start, length, checksum)
                for (start, length), checksum in zip(places, wanted, strict=True)
            ]

    def _chunk_problem(
        self, name: str, file: BinaryIO, start: int, length: int, wanted: int | None
    ) -> str:
        if start == MISSING:
            return "missing"
        if not self.layout(name).checksums:
            return ""
        try:
            content, own = chunk_checksum(file, start, length)
        except EOFError as error:
            return str(error)
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        return "" if content == own and wanted in (None, content) else CONTENT

    def _listed_checksums(self, name: str) -> np.ndarray | None:
        """CRC-32C of every chunk of a token array, as the store's attributes have them; None in
        older stores. Raises BadInput where there are not as many as chunks."""
        if name not in self._checksums:
            listed = self.attributes.get(CHUNK_CHECKSUMS)
            if listed is None:
                self._checksums[name] = None
                return None
            chunks = -(-self.shape(name)[0] // self.layout(name).chunk_frames)
            try:
                numbers = np.frombuffer(bytes.fromhex(listed[name]), ">u4")
            except (KeyError, TypeError, ValueError):
                numbers = np.zeros(0, ">u4")
            if len(numbers) != chunks:
                raise BadInput(
                    f"store {self} does not list the checksums of the {chunks} chunks of '{name}'",
                    VERIFY,
                )
            self._checksums[name] = numbers
        return self._checksums[name]

    def shard(self, name: str, number: int) -> str:
        """The shard as a user finds it, for messages."""
        return f"{self}/{self._shard_file(name, number)}"

    def open_shard(self, name: str, number: int, spans: Sequence[Span]) -> BinaryIO:
        """A shard, opened for every read: a cache of terabytes has more of them than a process may
        hold open. Raises BadInput."""
        try:
            return self.storage.open(f"{self.name}/{self._shard_file(name, number)}", spans)
        except OSError as error:
            raise self._unreadable(name, number, error) from error

    def _shard_file(self, name: str, number: int) -> str:
        return shard_file(name, number, len(self.layout(name).shape))

    def _forget(self, name: str, number: int) -> bool:
        """Whether a shard is far away and was kept here: it is fetched anew, since what is wrong
        may be so in the copy alone."""
        return self.storage.forget(f"{self.name}/{self._shard_file(name, number)}")

    def _unreadable(self, name: str, number: int, error: OSError) -> BadInput:
        return BadInput(
            f"shard {self.shard(name, number)} cannot be read: {error.strerror}", VERIFY
        )

    def index(self, name: str, number: int) -> np.ndarray:
        """(chunks, 2) offset and length of each chunk of a shard, checked."""
        with self.open_shard(name, number, []) as file:
            size = os.fstat(file.fileno()).st_size
        layout = self.layout(name)
        with self.open_shard(name, number, [(max(0, size - layout.index_bytes), size)]) as file:
            return read_index(file, self.shard(name, number), layout)

    def layout(self, name: str) -> ShardLayout:
        """Layout of the shards of a token array."""
        if name not in self._layouts:
            self._layouts[name] = _layout_of(self._array(name), f"array '{name}' of store {self}")
        return self._layouts[name]

    def _array(self, name: str) -> Any:
        if name not in self._arrays:
            try:
                self._arrays[name] = self.group[name]
            except StillframeError:
                raise
            except Exception as error:  # damaged metadata makes zarr raise errors of many types
                raise BadInput(
                    f"array '{name}' of store {self} cannot be opened: {error}", VERIFY
                ) from error
        return self._arrays[name]

    def _chunks(self, name: str, number: int) -> np.ndarray:
        """(chunks, 2) offset and length of the chunks of a shard that hold rows: its index is read
        and checked once."""
        if (name, number) not in self._chunks_of_shard:
            rows = self.shape(name)[0] - number * self.layout(name).shard_frames
            try:
                index = self.index(name, number)
            except BadInput:
                if not self._forget(name, number):
                    raise
                index = self.index(name, number)
            chunks = -(-rows // self.layout(name).chunk_frames)
            self._chunks_of_shard[name, number] = index[:chunks]
            if isinstance(self.storage, LocalFolder):
                begins = index[:chunks, 0].tolist()
                self._begins[name, number] = self.shard(name, number), begins
        return self._chunks_of_shard[name, number]


def _layout_of(array: Any, where: str) -> ShardLayout:
    """The layout that the metadata of a Zarr array describes. Raises BadInput for codecs that
    `shard` does not know."""
    codec = array.metadata.codecs[0]
    inner = codec.codecs if isinstance(codec, ShardingCodec) else ()
    if not inner or not all(
        isinstance(codec, BytesCodec | ZstdCodec | Crc32cCodec) for codec in inner
    ):
        names = ", ".join(str(codec.to_dict()["name"]) for codec in inner or (codec,))
        raise BadInput(
            f"{where} has the codecs {names}, wanted a shard of bytes, zstd and crc32c", VERIFY
        )
    return ShardLayout(
        array.shape[1:],
        np.dtype(array.dtype),
        array.chunks[0],
        array.shards[0],
        "zstd" if any(isinstance(codec, ZstdCodec) for codec in inner) else "none",
        any(isinstance(codec, Crc32cCodec) for codec in inner),
    )
