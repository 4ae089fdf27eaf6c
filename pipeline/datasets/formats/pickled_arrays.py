"""Arrays of numpy in a pickle, as descriptions of where their numbers lie.

The pickle is read by `pipeline.config.pickles`, which imports and calls nothing. Of what numpy
writes, arrays of plain numbers, of bytes and lists of bytes are taken apart here, as protocols 0 to
5 have them; all else stays `OPAQUE`. Numbers are read when they are asked for, so that a pickle of
many gigabytes takes no more memory than one of its arrays.

After `ndarray.__reduce_ex__` of numpy 1 and 2, and `numpy.lib.format`, which names the data types.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.config.pickles import OPAQUE, PickleMachine, Span, Symbol, read_pickle
from pipeline.config.regular_files import OpenedFile, open_regular

MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
EMPTY_ARRAYS = {f"{module}._reconstruct" for module in MODULES}
WHOLE_ARRAYS = {"numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"}
KINDS = "biufS"
"""Data types that are read: bool, whole numbers, floating point, bytes of one length."""
MOST_AXES = 8


@dataclass
class StoredType:
    """A data type, by the name and byte order that the pickle gives it; nothing was checked."""

    name: Any
    order: Any = None
    is_plain: bool = True


@dataclass
class StoredArray:
    """An array; nothing in it was checked, not even types."""

    shape: Any = None
    dtype: Any = None
    is_fortran: Any = False
    data: Any = field(default=OPAQUE, repr=False)
    """`Span` or bytes; a list of these for an array of objects."""


class _ArrayMachine(PickleMachine):
    """Knows the forms in which numpy writes arrays."""

    def called(self, maker: Any, arguments: Any) -> Any:
        name = maker.name if isinstance(maker, Symbol) else None
        if not isinstance(arguments, tuple):
            return OPAQUE
        if name in EMPTY_ARRAYS:
            return StoredArray()
        if name == "numpy.dtype" and arguments:
            return StoredType(arguments[0])
        if name in WHOLE_ARRAYS and len(arguments) == 4:
            data, dtype, shape, order = arguments
            return StoredArray(shape, dtype, order == "F", data)
        if name == "_codecs.encode" and len(arguments) == 2 and arguments[1] == "latin1":
            text = arguments[0]  # how protocols 0 to 2 write bytes
            return text.encode("latin-1") if isinstance(text, str) else OPAQUE
        return super().called(maker, arguments)

    def filled(self, made: Any, state: Any) -> None:
        if isinstance(made, StoredArray) and isinstance(state, tuple) and len(state) == 5:
            _, made.shape, made.dtype, made.is_fortran, made.data = state
        elif isinstance(made, StoredType) and isinstance(state, tuple) and len(state) >= 5:
            made.order = state[1]
            made.is_plain = all(part is None for part in state[2:5])


class PickledArrays(OpenedFile):
    """An open pickle. Raises OSError where it cannot be read, and ValueError, IndexError, KeyError
    and others where it is none, or is damaged."""

    content: Any
    """What was pickled, as inert values; arrays are `StoredArray`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = open_regular(path)
        try:
            self._size = path.stat().st_size
            self.content = read_pickle(self._file, _ArrayMachine())
        except BaseException:
            self._file.close()
            raise

    def dtype(self, stored: StoredArray) -> np.dtype[Any]:
        """The data type of an array; that of objects is "O". Raises ValueError where it is none of
        those that are read."""
        found = stored.dtype
        if isinstance(found, StoredType) and isinstance(found.name, str) and found.is_plain:
            order = found.order if found.order in ("<", ">") else ""
            if found.name in ("O", "O4", "O8"):
                return np.dtype("O")
            kind, size = found.name[:1], found.name[1:]
            if kind in KINDS and size.isdecimal() and len(size) < 10:
                try:
                    return np.dtype(f"{order}{found.name}")
                except TypeError as error:
                    raise ValueError(f"its data type {found.name[:20]} is not known") from error
        raise ValueError("its data type is none that is read")

    def shape(self, stored: StoredArray) -> tuple[int, ...]:
        """The shape of an array, which fits the bytes that are there. Raises ValueError."""
        shape = stored.shape
        if not isinstance(shape, tuple) or len(shape) > MOST_AXES:
            raise ValueError("its shape is no row of whole numbers")
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError("its shape is no row of whole numbers")
        dtype = self.dtype(stored)
        if dtype.kind == "O":
            held, wanted = len(stored.data) if isinstance(stored.data, list) else -1, 1
        else:
            held, wanted = _length(stored.data), dtype.itemsize
        if held != math.prod(shape) * wanted:
            raise ValueError(f"it holds {held} bytes or objects, which its shape {shape} does not")
        return shape

    def span(self, data: Any) -> Span:
        """Where bytes lie in the file, of those long enough to be described. Raises ValueError
        where they were short, or lie beyond its end."""
        if not isinstance(data, Span):
            raise ValueError("its bytes are few or none")
        if data.offset + data.length > self._size:
            raise ValueError("the file ends inside of it")
        return data

    def array(self, stored: StoredArray) -> np.ndarray:
        """A copy of an array of numbers. Raises ValueError where it is none, or is too large for
        the file."""
        shape, dtype = self.shape(stored), self.dtype(stored)
        if dtype.kind not in "biuf":
            raise ValueError("it holds no numbers")
        data = stored.data
        if isinstance(data, Span):
            self._file.seek(self.span(data).offset)
            data = self._file.read(data.length)
        flat = np.frombuffer(data, dtype)
        if stored.is_fortran is True:
            return flat.reshape(shape, order="F").copy()
        return flat.reshape(shape).copy()


def _length(data: Any) -> int:
    """Bytes, described or there; -1 where they are none."""
    if isinstance(data, Span):
        return data.length
    return len(data) if isinstance(data, bytes | bytearray) else -1
