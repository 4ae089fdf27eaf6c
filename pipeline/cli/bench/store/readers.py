"""Ways to keep frames of tokens on disk and to read windows of them, each as its own documentation
has it done fast."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache.storage.local import LocalFolder
from pipeline.cache.store import StoreReader
from pipeline.cache.store_writer import StoreWriter
from pipeline.train.windows.reader import RowsToRead, read_in_turn

STORE, ARRAY = "00000.zarr", "layer_11"
CHUNK_FRAMES, SHARD_BYTES, BATCH_FRAMES = 8, 256_000_000, 32

Read = Callable[[Sequence[int], np.ndarray], None]
"""Reads the windows whose first frames are given into a (B, T, N, D) array."""


@dataclass(frozen=True)
class Reader:
    """One way to read: on the frames that `write` put into a folder, `open` gives a `Read` for
    windows of T frames."""

    name: str
    package: str
    """The package that must be installed for this reader."""
    files: str
    """Readers of the same files have the same name here."""
    write: Callable[[Path, np.ndarray, int], None]
    """(empty folder, (F, N, D) tokens, T)"""
    open: Callable[[Path, int], AbstractContextManager[Read]]
    """(folder, T)"""


def shard_frames(tokens_FND: np.ndarray) -> int:
    return max(1, SHARD_BYTES // tokens_FND[0].nbytes // CHUNK_FRAMES) * CHUNK_FRAMES


def write_store(folder: Path, tokens_FND: np.ndarray, frames: int = 0) -> None:
    del frames  # of a window: a store is written as it comes
    path = folder / STORE
    path.mkdir()
    writer = StoreWriter(
        path,
        {ARRAY: (tokens_FND.shape[1:], tokens_FND.dtype)},
        CHUNK_FRAMES,
        shard_frames(tokens_FND),
    )
    for first in range(0, len(tokens_FND), BATCH_FRAMES):
        writer.append({ARRAY: tokens_FND[first : first + BATCH_FRAMES]})
    writer.finish({}, {})


def _each(read: Callable[[int, np.ndarray], None]) -> Read:
    """One window after the other, each into a (T, N, D) array."""

    def read_all(starts: Sequence[int], batch: np.ndarray) -> None:
        for first, out in zip(starts, batch, strict=True):
            read(first, out)

    return read_all


@contextmanager
def _stillframe(folder: Path, _: int) -> Iterator[Read]:
    reader = StoreReader(LocalFolder(folder), STORE)

    def read(starts: Sequence[int], batch: np.ndarray) -> None:
        read_in_turn(
            [
                RowsToRead(reader, ARRAY, np.arange(first, first + len(out)), out)
                for first, out in zip(starts, batch, strict=True)
            ]
        )

    yield read


@contextmanager
def _zarr(folder: Path, _: int) -> Iterator[Read]:
    import zarr

    array: Any = zarr.open_group(folder / STORE, mode="r")[ARRAY]

    def read(first: int, out: np.ndarray) -> None:
        out[:] = array[first : first + len(out)]

    yield _each(read)


@contextmanager
def _zarrs(folder: Path, frames: int) -> Iterator[Read]:
    import zarr

    with (
        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}),
        _zarr(folder, frames) as read,
    ):
        yield read


@contextmanager
def _tensorstore(folder: Path, _: int) -> Iterator[Read]:
    import tensorstore

    kvstore = {"driver": "file", "path": str(folder / STORE / ARRAY)}
    array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, open=True, read=True).result()

    def read(first: int, out: np.ndarray) -> None:
        out[:] = array[first : first + len(out)].read().result()

    yield _each(read)


def _write_npy(folder: Path, tokens_FND: np.ndarray, _: int) -> None:
    np.save(folder / "tokens.npy", tokens_FND)


@contextmanager
def _memory_map(folder: Path, _: int) -> Iterator[Read]:
    array = np.load(folder / "tokens.npy", mmap_mode="r")

    def read(first: int, out: np.ndarray) -> None:
        out[:] = array[first : first + len(out)]

    yield _each(read)


def _write_hdf5(folder: Path, tokens_FND: np.ndarray, _: int) -> None:
    import h5py

    with h5py.File(folder / "tokens.h5", "w") as file:
        file["tokens"] = tokens_FND


@contextmanager
def _hdf5(folder: Path, _: int) -> Iterator[Read]:
    import h5py

    with h5py.File(folder / "tokens.h5") as file:
        array = file["tokens"]
        yield _each(lambda first, out: array.read_direct(out, np.s_[first : first + len(out)]))


def _write_safetensors(folder: Path, tokens_FND: np.ndarray, _: int) -> None:
    from safetensors.numpy import save_file

    save_file({"tokens": tokens_FND}, folder / "tokens.safetensors")


@contextmanager
def _safetensors(folder: Path, _: int) -> Iterator[Read]:
    from safetensors import safe_open

    with safe_open(folder / "tokens.safetensors", framework="numpy") as file:
        tokens = file.get_slice("tokens")

        def read(first: int, out: np.ndarray) -> None:
            out[:] = tokens[first : first + len(out)]

        yield _each(read)


def _write_webdataset(folder: Path, tokens_FND: np.ndarray, frames: int) -> None:
    import webdataset

    with webdataset.TarWriter(str(folder / "windows.tar"), encoder=False) as tar:
        for first in range(0, len(tokens_FND) - frames + 1, frames):
            tar.write(
                {"__key__": f"{first:08}", "bin": tokens_FND[first : first + frames].tobytes()}
            )


@contextmanager
def _webdataset(folder: Path, _: int) -> Iterator[Read]:
    import webdataset
    from webdataset.tariterators import group_by_keys, tar_file_expander

    def opened(shards: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for (
            shard
        ) in shards:  # of what it opens itself, a file that is not read to its end is left open
            with Path(shard["url"]).open("rb") as stream:
                yield shard | {"stream": stream}

    shards = webdataset.SimpleShardList(str(folder / "windows.tar"))
    windows = webdataset.DataPipeline(shards, opened, tar_file_expander, group_by_keys).repeat()
    with closing(iter(windows)) as samples:

        def read(first: int, out: np.ndarray) -> None:
            del first  # a tar file is read in its own order
            out[:] = np.frombuffer(next(samples)["bin"], out.dtype).reshape(out.shape)

        yield _each(read)


def _write_litdata(folder: Path, tokens_FND: np.ndarray, frames: int) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for index, first in enumerate(range(0, len(tokens_FND) - frames + 1, frames)):
        writer[index] = tokens_FND[first : first + frames]
    writer.done()
    writer.merge()


@contextmanager
def _litdata(folder: Path, frames: int) -> Iterator[Read]:
    from litdata import StreamingDataset

    samples = StreamingDataset(str(folder))

    def read(first: int, out: np.ndarray) -> None:
        out[:] = samples[first // frames]

    yield _each(read)


OURS, MEMORY_MAP = "stillframe", "memory-map copy"
IN_ORDER, WHOLE = "webdataset", "litdata"
"""Windows in the order of the file; windows only where they were cut when written."""
READERS = (
    Reader(OURS, "numpy", "store", write_store, _stillframe),
    Reader(MEMORY_MAP, "numpy", "npy", _write_npy, _memory_map),
    Reader("h5py", "h5py", "hdf5", _write_hdf5, _hdf5),
    Reader("safetensors", "safetensors", "safetensors", _write_safetensors, _safetensors),
    Reader("tensorstore", "tensorstore", "store", write_store, _tensorstore),
    Reader("zarr + zarrs", "zarrs", "store", write_store, _zarrs),
    Reader("zarr-python", "zarr", "store", write_store, _zarr),
    Reader(IN_ORDER, "webdataset", "webdataset", _write_webdataset, _webdataset),
    Reader(WHOLE, "litdata", "litdata", _write_litdata, _litdata),
)
