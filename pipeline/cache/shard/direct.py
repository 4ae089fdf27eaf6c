"""Bytes between a disk and memory past the page cache (`O_DIRECT`): those that it has no room for,
and those that nobody reads soon.

They go by way of large pages, of which a request to the disk takes many megabytes, and of small
ones half of one. So a window that was read before, and is in memory no more, comes at twice the
speed for an eighth of the processor time, and shards are written at twice the speed; what lies in
the page cache stays there. That holds for file systems on a disk of this machine: others gather and
read ahead in ways of their own.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.cache.shard.page_cache import FilePart

LARGE_PAGE = 2 << 20
STAGED_BYTES = 4 << 20
"""Most bytes of a read or a write, which takes as much memory."""
BLOCK = 4096
"""Reads and writes begin and end at multiples of a block of any disk."""
NEAR = 256 << 10
"""Bytes between two parts of a file that take less time to read than a second read to begin."""
FILE_SYSTEMS = {"ext3", "ext4", "xfs", "btrfs", "f2fs", "overlay"}
HAS_DIRECT = hasattr(os, "O_DIRECT") and hasattr(mmap, "MADV_HUGEPAGE")


def large_pages(size_bytes: int) -> np.ndarray:
    """(size_bytes,) zeros, in large pages where there are some to be had."""
    memory = mmap.mmap(-1, size_bytes + LARGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # of a kernel that has none
        memory.madvise(mmap.MADV_HUGEPAGE)
    all_B = np.frombuffer(memory, np.uint8)
    begin = -all_B.ctypes.data % LARGE_PAGE
    return all_B[begin : begin + size_bytes]


class _Staging(threading.local):
    """Memory of a thread that the disk reads into."""

    def __init__(self) -> None:
        self.bytes_B = large_pages(STAGED_BYTES)


_staging = _Staging()


def copy_direct(file: BinaryIO, parts: Sequence[FilePart]) -> bool:
    """Fills `parts` from the disk. False where the file system has no such reads; some may be
    filled then. Raises EOFError, OSError."""
    if not is_on_disk(file.fileno()):
        return False
    try:
        with _direct(file.fileno()):
            _copy_staged(file.fileno(), parts)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def _copy_staged(handle: int, parts: Sequence[FilePart]) -> None:
    staged_B, start, stop = _staging.bytes_B, 0, 0
    for index, (offset, out) in enumerate(parts):
        done = 0
        while done < len(out):
            at = offset + done
            if not start <= at < stop:
                start = at // BLOCK * BLOCK
                most = min(-(-(_end(parts[index:]) - start) // BLOCK) * BLOCK, STAGED_BYTES)
                stop = start + os.preadv(handle, [staged_B[:most].data], start)
                if stop <= at:
                    raise EOFError(f"ends before byte {offset + len(out)}")
            count = min(len(out) - done, stop - at)
            out[done : done + count] = staged_B[at - start : at - start + count]
            done += count


def _end(parts: Sequence[FilePart]) -> int:
    """Where the first of some parts ends, with those that follow it closely."""
    end = parts[0][0] + len(parts[0][1])
    for offset, out in parts[1:]:
        if not end <= offset <= end + NEAR:
            break
        end = offset + len(out)
    return end


class DirectWriter:
    """Writes files one after the other, each from its beginning to its end, in steps of 4 MiB; its
    memory is taken for the first."""

    def __init__(self, most_bytes: int) -> None:
        """`most_bytes`: of the largest file."""
        self._size = min(-(-most_bytes // BLOCK) * BLOCK, STAGED_BYTES)
        self._staged_B = np.empty(0, np.uint8)
        self._waiting = self._offset = 0

    def write(self, handle: int, parts: Sequence[np.ndarray]) -> None:
        """Adds bytes to an open file. Raises OSError."""
        if not len(self._staged_B):
            self._staged_B = large_pages(self._size)
        for part in parts:
            done = 0
            while done < len(part):
                count = min(len(part) - done, self._size - self._waiting)
                self._staged_B[self._waiting :][:count] = part[done : done + count]
                self._waiting, done = self._waiting + count, done + count
                if self._waiting == self._size:
                    self._put(handle, self._size)

    def finish(self, handle: int) -> None:
        """Writes what still waits; the next bytes are those of another file. Raises OSError."""
        self._put(handle, self._waiting // BLOCK * BLOCK)
        _write_all(handle, self._staged_B[: self._waiting], self._offset)
        self._waiting = self._offset = 0

    def _put(self, handle: int, count: int) -> None:
        """Writes so many of the bytes that wait, whole blocks."""
        try:
            with _direct(handle):
                _write_all(handle, self._staged_B[:count], self._offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _write_all(handle, self._staged_B[:count], self._offset)
        rest = self._waiting - count
        self._staged_B[:rest] = self._staged_B[count : self._waiting]
        self._waiting, self._offset = rest, self._offset + count


def _write_all(handle: int, data_B: np.ndarray, offset: int) -> None:
    done = 0
    while done < len(data_B):
        done += os.pwrite(handle, data_B[done:].data, offset + done)


@contextmanager
def _direct(handle: int) -> Iterator[None]:
    """Reads and writes of an open file pass the page cache by. Raises OSError."""
    import fcntl  # which Windows lacks

    flags = fcntl.fcntl(handle, fcntl.F_GETFL)
    fcntl.fcntl(handle, fcntl.F_SETFL, flags | os.O_DIRECT)
    try:
        yield
    finally:
        fcntl.fcntl(handle, fcntl.F_SETFL, flags)


def is_on_disk(handle: int) -> bool:
    """Whether an open file lies on a file system of which it is known that the page cache is better
    passed by."""
    return HAS_DIRECT and _file_system(os.fstat(handle).st_dev) in FILE_SYSTEMS


@lru_cache(maxsize=64)
def _file_system(device: int) -> str:
    """The kind of file system on a device, such as ext4; "" if the system does not say."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in mounts.splitlines():
        of_mount, _, of_file_system = line.partition(" - ")
        if of_mount.split()[2] == number:
            return of_file_system.split()[0]
    return ""
