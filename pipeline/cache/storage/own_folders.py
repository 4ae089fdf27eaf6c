"""Folders of a cache, reached step by step and never through a symbolic link.

A cache may come from a stranger, and a link in it may lead to any folder of the user. Whatever is
written or removed is therefore named relative to a descriptor of the folder that it is in, which
was opened link by link: nothing outside is touched, also if a folder becomes a link meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

FOLDER = os.O_RDONLY | os.O_DIRECTORY
IS_A_LINK = "it is a symbolic link, and nothing is written or removed through one"
REPLACE_LINK = "a cache is changed in its own folder alone: put a real folder in place of the link"


@contextmanager
def own_folder(base: Path, name: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
    """A descriptor of the folder in which `name`, a path relative to `base`, lies, and the last
    part of the name.

    `base` itself is the user's, and may be reached through links. `create` makes folders that are
    not there, durably. Raises OSError: ELOOP where a folder on the way is a symbolic link, EINVAL
    where the name leads out of `base`. Errors of what is done with the descriptor get whole paths.
    """
    *folders, last = PurePosixPath(name).parts
    if PurePosixPath(name).is_absolute() or ".." in (*folders, last):
        raise OSError(errno.EINVAL, "it leads out of its folder", str(base / name))
    handle, here = os.open(base, FOLDER), base
    try:
        for folder in folders:
            inner = _opened(handle, folder, create)
            os.close(handle)
            handle, here = inner, here / folder
        yield handle, last
    except OSError as error:
        if isinstance(error.filename, str):
            error.filename = str(here / error.filename)
        raise
    finally:
        os.close(handle)


def _opened(handle: int, folder: str, create: bool) -> int:
    """A descriptor of a folder in the folder `handle`."""
    if create:
        with suppress(FileExistsError):
            os.mkdir(folder, dir_fd=handle)
            os.fsync(handle)
    try:
        return os.open(folder, FOLDER | os.O_NOFOLLOW, dir_fd=handle)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and stat.S_ISLNK(
            os.stat(folder, dir_fd=handle, follow_symlinks=False).st_mode
        ):
            raise OSError(errno.ELOOP, IS_A_LINK, folder) from error
        raise
