"""Stores of numbers that tell where they are, and readers that find nothing in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from pipeline.cache import store
from pipeline.cache.shard import reader
from pipeline.cache.store_writer import StoreWriter

STORE = "00000.zarr"


def write(
    path: Path,
    arrays: dict[str, np.ndarray],
    chunk: int,
    shard: int,
    batch: int,
    compression: str = "none",
) -> dict[str, tuple[int, str]]:
    path.mkdir(parents=True)
    kinds = {name: (array.shape[1:], array.dtype) for name, array in arrays.items()}
    writer = StoreWriter(path, kinds, chunk, shard, compression)
    frames = len(next(iter(arrays.values())))
    with closing(writer):
        for first in range(0, frames, batch):
            writer.append({name: array[first : first + batch] for name, array in arrays.items()})
        return writer.finish({"time_s": np.arange(frames) / 3}, {"videos": ["a", "b"]})


def values(frames: int, *shape: int, dtype: str = "float16") -> np.ndarray:
    count = frames * int(np.prod(shape))
    return (1 + np.arange(count) % 2039).astype(dtype).reshape(frames, *shape)


@contextmanager
def reads(maps: bool) -> Iterator[None]:
    """With maps, what is in memory is copied from them; without, every byte is read."""
    with pytest.MonkeyPatch.context() as patch:
        if not maps:
            patch.setattr(reader, "copy_resident", lambda *_: False)
            patch.setattr(reader, "resident", lambda *_: None)
            patch.setattr(store, "copy_mapped", lambda *_: False)
            patch.setattr(store, "mapped", lambda *_: None)
        yield
