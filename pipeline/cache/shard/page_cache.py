"""Bytes of files that are in memory already, copied out of maps that stay, without a system call
for them: the hot rows of `stillframe bench read`.

Only pages that are in memory are touched: a fault that the disk answers with an error would end the
process, while a read that fails is one sentence. So the kernel is asked first, and what it does not
have is left to `read`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

FilePart = tuple[int, np.ndarray]
"""Offset in a file, and where the bytes from there go."""
RowsOfFile = tuple[int, int, np.ndarray]
"""Offset of a row in a file, the bytes from there to the next, and where they go: (rows, bytes)."""
MAPS = 128
"""Files that are mapped at a time, those read last: each holds a file descriptor."""

_Key = tuple[int, int, int]
_maps: OrderedDict[_Key, np.ndarray] = OrderedDict()
_lock = threading.Lock()
_mincore = getattr(ctypes.CDLL(None), "mincore", None)
if _mincore is not None:
    _mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


def copy_resident(file: BinaryIO, parts: Sequence[FilePart]) -> bool:
    """Fills `parts` from the page cache; False, and nothing is done, if any of their bytes is not
    in memory or lies past the end."""
    return _copied(_mapped(file), [(offset, 0, out[None]) for offset, out in parts])


def copy_mapped(path: str, parts: Sequence[RowsOfFile]) -> bool:
    """As `copy_resident`, of rows of a file that has been mapped and is not opened again; False
    also where there is none at `path`."""
    return _copied(_known(path), parts)


def mapped(path: str, start: int, stop: int) -> np.ndarray | None:
    """As `resident`, of a file that has been mapped and is not opened again; None also where there
    is none at `path`."""
    return _there(_known(path), start, stop)


def _known(path: str) -> np.ndarray | None:
    """The file at `path` as bytes, if it is mapped."""
    try:
        # By way of `Path` it costs as much again.
        facts = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    key = (facts.st_dev, facts.st_ino, facts.st_size)
    with _lock:
        mapped_B = _maps.get(key)
        if mapped_B is not None:
            _maps.move_to_end(key)
        return mapped_B


def _there(mapped_B: np.ndarray | None, start: int, stop: int) -> np.ndarray | None:
    """Bytes [start, stop) of a mapped file, if they are in memory."""
    if mapped_B is None or stop > len(mapped_B) or not _is_resident(mapped_B, start, stop):
        return None
    return mapped_B[start:stop]


def _copied(mapped_B: np.ndarray | None, parts: Sequence[RowsOfFile]) -> bool:
    """Whether `parts` of a mapped file were in memory, and have been filled from there."""
    if mapped_B is None:
        return False
    start, stop = len(mapped_B), 0
    for offset, step_bytes, out in parts:
        start = min(start, offset)
        stop = max(stop, offset + (len(out) - 1) * step_bytes + out.shape[1])
    if start >= stop or stop > len(mapped_B) or not _is_resident(mapped_B, start, stop):
        return False
    for offset, step_bytes, out in parts:
        # Of all ways to look at the bytes so, the one that takes the least time.
        out[:] = np.ndarray(out.shape, np.uint8, mapped_B, offset, (step_bytes, 1))
    return True


def resident(file: BinaryIO, start: int, stop: int) -> np.ndarray | None:
    """Bytes [start, stop) of a file where they lie in the page cache; None if any of them is not in
    memory or lies past the end."""
    return _there(_mapped(file), start, stop)


def announce(file: BinaryIO, spans: Sequence[tuple[int, int]]) -> None:
    """Has the kernel begin with spans of a file that are read next, all at once, and with no byte
    beside them."""
    if hasattr(os, "posix_fadvise"):
        for start, stop in spans:
            os.posix_fadvise(file.fileno(), start, stop - start, os.POSIX_FADV_WILLNEED)


def unmap_all() -> None:
    """Unmaps all files: no page of a mapped one can be evicted."""
    with _lock:
        _maps.clear()


def evict(folder: Path) -> bool:
    """Drops the files below `folder` from the page cache, after they are written back. False where
    the system cannot."""
    unmap_all()
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as raw:
                os.fsync(raw.fileno())
                os.posix_fadvise(raw.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def _mapped(file: BinaryIO) -> np.ndarray | None:
    """An open file as bytes, mapped once for all who read it. None where it cannot be known what is
    in memory."""
    facts = os.fstat(file.fileno())
    # Of the files of others Linux says that all is in memory.
    if _mincore is None or facts.st_size == 0 or facts.st_uid != os.geteuid():
        return None
    key = (facts.st_dev, facts.st_ino, facts.st_size)
    with _lock:
        if key in _maps:
            _maps.move_to_end(key)
        else:
            try:
                _maps[key] = np.frombuffer(
                    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8
                )
            except OSError:
                return None
            if len(_maps) > MAPS:
                _maps.popitem(last=False)  # unmapped when its last reader is done
        return _maps[key]


def _is_resident(mapped_B: np.ndarray, start: int, stop: int) -> bool:
    """Whether all pages of bytes [start, stop) are in memory now."""
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    count = -(-(stop - first) // mmap.PAGESIZE)
    pages = ctypes.create_string_buffer(count + 1)
    assert _mincore is not None
    asked = _mincore(mapped_B.ctypes.data + first, stop - first, pages)
    return asked == 0 and len(pages.value) == count  # Linux says 1 or 0 of a page
