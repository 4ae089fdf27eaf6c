"""Files of `torch.save`: a pickle, and the numbers of its tensors beside it.

Both of torch's formats are read, the zip archive and, before torch 1.6, one stream after another.
Nothing is executed.
"""

from __future__ import annotations

import io
import math
import sys
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from pipeline.config.pickles import MOST_BYTES, Symbol
from pipeline.config.regular_files import OpenedFile, open_regular
from pipeline.train.weights.pickled import (
    DTYPES,
    StoredTensor,
    TensorStorage,
    read_torch_pickle,
)

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""The first two pickles of a file in the older format."""


class TorchFile(OpenedFile):
    """An open file of `torch.save`.

    Raises OSError where it cannot be read, and ValueError, IndexError, KeyError, zipfile.BadZipFile
    and others where it is no such file, or is damaged.
    """

    content: Any
    """What was saved, as inert values; tensors are `StoredTensor`."""

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = open_regular(path)
        try:
            self._size = path.stat().st_size
            self._read = 0
            self._numbers: dict[str, torch.Tensor] = {}
            is_zip = self._file.read(4) == b"PK\x03\x04"
            self._file.seek(0)
            self._archive = _Archive(self._file) if is_zip else _Legacy(self._file, self._size)
            self.content = self._archive.content
        except BaseException:
            self._file.close()
            raise

    def tensor(self, stored: StoredTensor) -> torch.Tensor:
        """A copy of a tensor of `content`. Raises ValueError where its description does not hold
        together: no more numbers are made than the file has."""
        storage = stored.storage
        if not isinstance(storage, TensorStorage):
            raise ValueError("its numbers are stored in a way that is not known")
        numbers = self._storage(storage)
        if stored.dtype is not None:
            name = stored.dtype.name if isinstance(stored.dtype, Symbol) else None
            if name not in DTYPES:
                raise ValueError("its number format is not known")
            numbers = numbers.view(torch.uint8).view(DTYPES[name])
        elif storage.dtype is None:
            raise ValueError("its number format is not said")
        size, stride = _whole_numbers(stored.size), _whole_numbers(stored.stride)
        (offset,) = _whole_numbers((stored.offset,))
        count = math.prod(size)
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        if count > numbers.numel() or (count and last >= numbers.numel()):
            raise ValueError("it is larger than what is stored of it")
        return numbers.as_strided(size, stride, offset).clone()

    def _storage(self, storage: TensorStorage) -> torch.Tensor:
        """The numbers of a storage, one after the other."""
        if storage.key not in self._numbers:
            dtype = storage.dtype or torch.uint8
            size_bytes = storage.count * dtype.itemsize
            self._read += size_bytes
            # Entries of an archive may lie over each other, each of them as large as the file.
            if storage.count < 0 or self._read > self._size:
                raise ValueError("it holds more numbers than the file has bytes")
            data = bytearray(self._archive.storage(storage.key, size_bytes))
            numbers = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            self._numbers[storage.key] = numbers
        return self._numbers[storage.key]


class _Archive:
    """The format of today: a zip archive, in which nothing is compressed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._zip = zipfile.ZipFile(file)
        names = [name for name in self._zip.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise ValueError("the archive holds no data.pkl, as torch.save writes one")
        self._root = names[0].removesuffix("data.pkl")
        order = self._root + "byteorder"
        if order in self._zip.namelist() and self._bytes(order, 64) != sys.byteorder.encode():
            raise ValueError("it was written on a machine of another byte order")
        self.content, _ = read_torch_pickle(io.BytesIO(self._bytes(names[0], MOST_BYTES)))

    def storage(self, key: str, size_bytes: int) -> bytes:
        data = self._bytes(f"{self._root}data/{key}", size_bytes)
        if len(data) != size_bytes:
            raise ValueError(f"storage {key} has {len(data)} bytes, wanted {size_bytes}")
        return data

    def _bytes(self, name: str, most: int) -> bytes:
        entry = self._zip.getinfo(name)
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > most:
            raise ValueError(f"its entry {name} is compressed, or too large")
        return self._zip.read(entry)


class _Legacy:
    """The format before torch 1.6: pickles, then the number of elements and the bytes of every
    storage."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        magic, _ = read_torch_pickle(file)
        if magic != LEGACY_MAGIC or read_torch_pickle(file)[0] != LEGACY_PROTOCOL:
            raise ValueError("it was not written by torch.save")
        read_torch_pickle(file)  # of the machine that wrote it
        self.content, storages = read_torch_pickle(file)
        keys, _ = read_torch_pickle(file)
        self._offsets: dict[str, int] = {}
        for key in keys:
            storage = storages[key]
            count = int.from_bytes(file.read(8), "little", signed=True)
            self._offsets[key] = file.tell()
            end = file.tell() + storage.count * (storage.dtype or torch.uint8).itemsize
            if count != storage.count or count < 0 or end > size:
                raise ValueError("it was cut short or changed")
            file.seek(end)

    def storage(self, key: str, size_bytes: int) -> bytes:
        self._file.seek(self._offsets[key])
        return self._file.read(size_bytes)


def _whole_numbers(values: Any) -> tuple[int, ...]:
    """`values` if they are a few whole numbers, none below 0. Raises ValueError."""
    if not isinstance(values, tuple) or not all(type(x) is int and x >= 0 for x in values):
        raise ValueError("its shape is no row of whole numbers")
    if len(values) > 16:
        raise ValueError("it has too many axes")
    return values
