"""Files that others may have made are opened only if they are regular files, and are read up to a
bound.

Where a file is expected there may be a named pipe, which makes whoever opens it wait for ever, a
device or a socket; and a file may be larger than memory, since one with holes takes no room on a
disk. Symbolic links to regular files are followed: people put files on other disks.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO, BinaryIO, Self

MOST_BYTES = 1 << 30
"""Bytes of a file that is read as a whole."""
STEP_BYTES = 1 << 20
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class OpenedFile:
    """A reader that keeps one file open: a context manager, which closes the file at its end."""

    _file: IO[bytes]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def open_regular(path: Path | str, buffering: int = -1) -> BinaryIO:
    """A regular file, open for reading bytes. Raises OSError, with the kind of what is there in
    `strerror`; never waits for anybody to write."""
    # First, since a device may act when it is opened. Not by way of `Path`, which costs as much
    # again: every read of a window opens a shard.
    _require_regular(os.stat(path), path)  # noqa: PTH116
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _require_regular(os.fstat(handle), path)
        return os.fdopen(handle, "rb", buffering)
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: Path | str, most_bytes: int = MOST_BYTES) -> bytes:
    """The content of a regular file. Raises OSError: EFBIG where it has more than `most_bytes`."""
    with open_regular(path, 0) as file:
        pieces, size = [], 0
        if os.fstat(file.fileno()).st_size > most_bytes:
            raise _too_large(path, most_bytes)
        while piece := file.read(STEP_BYTES):
            pieces.append(piece)
            size += len(piece)
            if size > most_bytes:  # it grows, or its file system knows no sizes
                raise _too_large(path, most_bytes)
    return b"".join(pieces)


def _require_regular(facts: os.stat_result, path: Path | str) -> None:
    if not stat.S_ISREG(facts.st_mode):
        kind = KINDS.get(stat.S_IFMT(facts.st_mode), "something else")
        number = errno.EISDIR if stat.S_ISDIR(facts.st_mode) else errno.EINVAL
        raise OSError(number, f"it is {kind}, not a regular file", str(path))


def _too_large(path: Path | str, most_bytes: int) -> OSError:
    return OSError(errno.EFBIG, f"it has more than {most_bytes:,} bytes", str(path))
