"""A folder of a file system as a storage, and how a file is written so that it is whole or as it
was."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pipeline.cache.storage.contract import Span, Storage
from pipeline.cache.storage.own_folders import REPLACE_LINK, own_folder
from pipeline.cache.storage.processes import is_running, machine_tag
from pipeline.config.regular_files import open_regular, read_regular
from pipeline.errors import StillframeError

PARTIAL = ".partial"
"""End of the name of what is not finished."""
ASIDE = re.compile(r"\..+\.([0-9]{1,10})-([0-9a-f]{8})(?:[0-9a-f]{8})?\.partial")
"""A file that is being written: by which process, and of which machine, which versions before 0.5.0
left out."""
ABANDONED_S = 3600.0
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL
NO_HARD_LINKS = {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""What a file system says that has no hard links."""


class LocalFolder(Storage):
    """A folder of a file system."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def address(self) -> str:
        return str(self.path.absolute())

    @property
    def parent(self) -> LocalFolder:
        return LocalFolder(self.path.absolute().parent)

    def below(self, name: str) -> LocalFolder:
        return LocalFolder(self.path / name)

    def read(self, name: str) -> bytes:
        return read_regular(self.path / name)

    def write(self, name: str, data: bytes) -> None:
        try:
            with self._own_folder(name, create=True) as (folder, file):
                _write(folder, file, data)
        except OSError as error:
            raise _unwritable(self.path / name, error) from error

    def create(self, name: str, data: bytes) -> bool:
        # A link to a whole file, since a file created by its own name is there before its bytes.
        with self._own_folder(name, create=True) as (folder, file):
            aside = _aside(file)
            try:
                with _new_file(folder, aside) as whole:
                    whole.write(data)
                try:
                    os.link(aside, file, src_dir_fd=folder, dst_dir_fd=folder)
                except OSError as error:
                    if error.errno not in NO_HARD_LINKS:
                        raise
                    with _new_file(folder, file) as plain:
                        plain.write(data)
            except (
                FileExistsError,
                FileNotFoundError,
            ):  # the second: whoever has the name cleared up beside it
                return False
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(aside, dir_fd=folder)
        return True

    def exists(self, name: str) -> bool:
        return (self.path / name).is_file()

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(path.name for path in (self.path / folder).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def sizes(self, folder: str) -> dict[str, int]:
        base = self.path / folder
        files = (path for path in base.rglob("*") if path.is_file())
        return {path.relative_to(base).as_posix(): path.stat().st_size for path in sorted(files)}

    def digest(self, name: str) -> str:
        with open_regular(self.path / name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]

    def remove(self, name: str) -> None:
        # Not there: gone already, or another worker is removing it too.
        with suppress(FileNotFoundError), self._own_folder(name) as (folder, last):
            if _is_folder(folder, last):
                # Renamed first: it is there whole or not at all for whoever is about to rename or
                # read it.
                gone = _aside(last)
                os.rename(last, gone, src_dir_fd=folder, dst_dir_fd=folder)
                _remove_tree(folder, gone)
            else:
                os.unlink(last, dir_fd=folder)

    def stage(self, name: str) -> Path:
        staged = f"{name}.{_token()}{PARTIAL}"
        with self._own_folder(staged, create=True) as (folder, last):
            os.mkdir(last, dir_fd=folder)
        return self.path / staged

    def publish(self, staged: Path, name: str) -> None:
        for inner in [*(inner for inner in staged.rglob("*") if inner.is_dir()), staged]:
            sync(inner)
        with self._own_folder(name) as (folder, last):
            while not renamed(staged.name, last, folder):
                # Another worker may be about to vouch for the same.
                if _is_folder(folder, last) and self._is_same(staged, name):
                    _remove_tree(folder, staged.name)
                    break
                self.remove(name)
            os.fsync(folder)

    def _is_same(self, staged: Path, name: str) -> bool:
        staged_folder = LocalFolder(staged)
        sizes = staged_folder.sizes("")
        return sizes == self.sizes(name) and all(
            staged_folder.digest(file) == self.digest(f"{name}/{file}") for file in sizes
        )

    def link(self, source: str, staged: Path) -> bool:
        try:
            staged.parent.mkdir(parents=True, exist_ok=True)
            os.link(self.path / source, staged, follow_symlinks=False)
            if staged.is_symlink():  # it would lead out of the cache that it becomes a part of
                staged.unlink()
                return False
        except OSError:
            return False
        return True

    @contextmanager
    def _own_folder(self, name: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
        if create:
            make_folder(self.path)
        with own_folder(self.path, name, create=create) as (folder, last):
            yield folder, last

    def local(self, folder: str) -> Path:
        return self.path / folder

    def zarr(self, name: str) -> Path:
        return self.path / name

    def forget(self, name: str) -> bool:
        return False

    def open(self, name: str, spans: Sequence[Span]) -> BinaryIO:
        return open_regular(f"{self.path}/{name}", 0)


def write_atomically(path: Path, data: bytes) -> None:
    """Aside, sync, rename, sync the folder: the file is whole or as it was. A link of that name is
    replaced, not followed. What killed processes left aside in that folder is removed. Raises
    StillframeError."""
    try:
        make_folder(path.parent)
        with own_folder(path.parent, path.name) as (folder, file):
            _clear_asides(folder)
            _write(folder, file, data)
    except OSError as error:
        raise _unwritable(path, error) from error


@contextmanager
def written_whole(base: Path, name: str) -> Iterator[BinaryIO]:
    """A file to write to, as large as it may be, which takes the name below `base` once all is
    written and synced; until then that name is as it was. Folders are made, and none is followed if
    it is a link. What killed processes left aside there is removed. Raises OSError."""
    with own_folder(base, name, create=True) as (folder, file):
        _clear_asides(folder)
        with _whole(folder, file) as stream:
            yield stream


def _unwritable(path: Path, error: OSError) -> StillframeError:
    return StillframeError(
        f"cannot write {path}: {error.strerror}",
        REPLACE_LINK
        if error.errno == errno.ELOOP
        else "nothing before it is lost; free space or fix access, rerun",
    )


def make_folder(path: Path) -> None:
    """A folder with its parents, durably: what is synced in a folder whose own name is not may be
    lost with it."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def sync(path: Path) -> None:
    """Makes the bytes of a file, or the names in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def renamed(name: str | Path, new: str | Path, folder: int | None = None) -> bool:
    """Renames a folder; False, and nothing is done, if there is another one with something in it,
    or a file or a link. `folder`: descriptor of the folder that both names are in."""
    try:
        os.rename(name, new, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        return False
    return True


# Names in an open folder, none of which is followed if it is a link


def _write(folder: int, name: str, data: bytes) -> None:
    with _whole(folder, name) as file:
        file.write(data)


@contextmanager
def _whole(folder: int, name: str) -> Iterator[BinaryIO]:
    aside = _aside(name)
    try:
        with _new_file(folder, aside) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(aside, dir_fd=folder)
        raise
    os.fsync(folder)


def _new_file(folder: int, name: str) -> BinaryIO:
    return os.fdopen(os.open(name, NEW_FILE, 0o666, dir_fd=folder), "wb")


def _is_folder(folder: int, name: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _remove_tree(folder: int, name: str) -> None:
    """Removes a folder that others may be removing, too."""
    while _is_folder(folder, name):
        with suppress(FileNotFoundError):
            shutil.rmtree(name, dir_fd=folder)


def _clear_asides(folder: int) -> None:
    """Removes files that processes which are no more were writing: those of this machine at once,
    of which it cannot be asked once nothing has changed for an hour."""
    for name in os.listdir(folder):
        if found := ASIDE.fullmatch(name):
            pid, tag = found.groups()
            with suppress(FileNotFoundError):
                facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
                is_here = tag == machine_tag()
                is_gone = (
                    not is_running(int(pid))
                    if is_here
                    else time.time() - facts.st_mtime > ABANDONED_S
                )
                if stat.S_ISREG(facts.st_mode) and is_gone:
                    os.unlink(name, dir_fd=folder)


def _aside(name: str) -> str:
    return f".{name}.{_token()}{PARTIAL}"


def _token() -> str:
    """A random name, new each time: no two machines, processes or threads that write the same thing
    touch each other's files."""
    return f"{os.getpid()}-{machine_tag()}{secrets.token_hex(4)}"
