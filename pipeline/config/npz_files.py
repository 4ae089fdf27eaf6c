"""Archives of NumPy arrays (.npz) that hold weights, read with one sentence on what is wrong with
them.

Nothing is unpickled. Shapes are read from the headers of the arrays and compared with the size of
the file before memory is taken: weights hardly compress, so what an archive claims to unpack to can
be held against what it has.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast

import numpy as np

from pipeline.config.regular_files import OpenedFile, open_regular
from pipeline.errors import BadInput

MAGIC = b"\x93NUMPY\x01\x00"
"""How an array begins in the one version of its format whose headers are short."""
MOST_DIRECTORY_BYTES = 2**22
"""Bytes of the archive's directory, room for some tens of thousands of arrays."""
MOST_UNPACKED = 8
"""Bytes of all arrays together for each byte of the file."""
NUMBERS = (2, 4, 8)
"""Bytes of the floating-point numbers that are read."""


class _Entry(NamedTuple):
    """An array in the archive, by its header."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    header_bytes: int


class _Bounded:
    """A file of which no more than `most` bytes are read at once: the directory of an archive is
    read in one piece, as long as the archive says."""

    most: float = MOST_DIRECTORY_BYTES

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, count: int = -1) -> bytes:
        if count > self.most:
            raise ValueError("its directory is too long")
        return self._file.read(MOST_DIRECTORY_BYTES if count < 0 else count)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class NpzFile(OpenedFile):
    """An open archive. `shapes` is known at once, and numbers are read array by array.

    Raises BadInput, which names the file and has `hint`, for a file that cannot be read, is no such
    archive or is damaged; for pickled objects and anything else that is no floating-point number;
    for an array without numbers.
    """

    shapes: dict[str, tuple[int, ...]]
    """Name -> shape, in the order of the file."""

    def __init__(self, path: Path, what: str, hint: str) -> None:
        """`what` the file is, for errors."""
        self._where, self._hint = f"{what} {path}", hint
        try:
            self._file = open_regular(path)
        except OSError as error:
            raise BadInput(f"{self._where} cannot be read: {error.strerror}", hint) from error
        try:
            self._entries = self._directory(os.fstat(self._file.fileno()).st_size)
        except MemoryError:
            raise
        except (
            Exception
        ) as error:  # zipfile and numpy fail in many ways over what they did not foresee
            self._file.close()
            raise self._refusal(error) from error
        except BaseException:
            self._file.close()
            raise
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}

    def array(self, name: str) -> np.ndarray:
        """One array as float32, all of whose numbers are finite."""
        entry = self._entries[name]
        try:
            data = self._zip.read(entry.info)
            numbers = np.frombuffer(data, entry.dtype, offset=entry.header_bytes)
            order: Literal["C", "F"] = "F" if entry.fortran_order else "C"
            with np.errstate(over="ignore"):
                array = numbers.reshape(entry.shape, order=order).astype(np.float32)
        except MemoryError:
            raise
        except Exception as error:  # see above
            raise self._refusal(error) from error
        if bad := array.size - int(np.isfinite(array).sum()):
            raise BadInput(
                f"{self._where}: {bad} of {array.size} numbers of array {short(name)} are not "
                "finite in float32",
                self._hint,
            )
        return array

    def _directory(self, size_bytes: int) -> dict[str, _Entry]:
        bounded = _Bounded(self._file)
        self._zip = zipfile.ZipFile(cast(IO[bytes], bounded))
        bounded.most = math.inf
        infos = self._zip.infolist()
        # A file may have holes, and entries may lie over each other: the smaller counts.
        packed_bytes = min(size_bytes, sum(info.compress_size for info in infos))
        if sum(info.file_size for info in infos) > MOST_UNPACKED * packed_bytes:
            raise ValueError(
                f"its arrays would unpack to more than {MOST_UNPACKED} times what is stored of them"
            )
        entries: dict[str, _Entry] = {}
        for info in infos:
            name = info.filename.removesuffix(".npy")
            if name == info.filename or name in entries:
                raise ValueError(f"its entry {short(info.filename)} is no array, or is there twice")
            entries[name] = self._header(info, name)
        return entries

    def _header(self, info: zipfile.ZipInfo, name: str) -> _Entry:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"array {short(name)} is compressed in a way that is not read")
        with self._zip.open(info) as stream:
            start = stream.read(len(MAGIC) + 2)
            if not start.startswith(MAGIC):
                raise ValueError(f"array {short(name)} is not in NumPy's format, version 1")
            length = start[len(MAGIC) :]
            header = length + stream.read(int.from_bytes(length, "little"))
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header))
        if dtype.hasobject:
            raise ValueError(f"array {short(name)} holds pickled objects, which are not read")
        if dtype.kind != "f" or dtype.itemsize not in NUMBERS:
            raise ValueError(
                f"array {short(name)} holds numbers of type {short(str(dtype))}; wanted float16, "
                "float32 or float64"
            )
        header_bytes = len(MAGIC) + len(header)
        count = math.prod(shape)
        if count < 1 or min(shape, default=1) < 1:
            raise ValueError(f"array {short(name)} holds no numbers")
        if header_bytes + count * dtype.itemsize != info.file_size:
            raise ValueError(f"array {short(name)} is not as long as its shape {shape} says")
        return _Entry(info, shape, dtype, fortran_order, header_bytes)

    def _refusal(self, error: Exception) -> BadInput:
        text = " ".join((str(error) or type(error).__name__).split())
        return BadInput(
            f"{self._where} is no .npz archive of weights, or is damaged: {text}", self._hint
        )


def short(name: str) -> str:
    """A name from a file as an error shows it: strangers choose how long it is."""
    return name if len(name) <= 100 else f"{name[:100]}..."


def sha256_of(path: Path) -> str:
    """What sha256sum says of a regular file; the same file is not read twice. Raises OSError."""
    facts = path.stat()
    return _sha256(str(path.absolute()), facts.st_ino, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: str, _inode: int, _size: int, _mtime_ns: int) -> str:
    with open_regular(path) as data:
        return hashlib.file_digest(cast(Any, data), "sha256").hexdigest()
