"""A folder of a file system as a storage, and how a file is written so that it is whole or as it
was."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from pipeline.cache.storage.contract import Span, Storage
from pipeline.errors import StillframeError

PARTIAL = ".partial"
"""End of the name of what is not finished."""


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
        return (self.path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        write_atomically(self.path / name, data)

    def create(self, name: str, data: bytes) -> bool:
        # A link to a whole file, since a file created by its own name is there before its bytes.
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = _aside(path)
        try:
            aside.write_bytes(data)
            try:
                os.link(aside, path)
            except PermissionError:  # a file system without hard links
                with path.open("xb") as file:
                    file.write(data)
        except (
            FileExistsError,
            FileNotFoundError,
        ):  # the second: whoever has the name cleared up beside it
            return False
        finally:
            aside.unlink(missing_ok=True)
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
        with (self.path / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def remove(self, name: str) -> None:
        path = self.path / name
        with suppress(FileNotFoundError):  # gone already, or another worker is removing it too
            if path.is_dir() and not path.is_symlink():
                # Renamed first: it is there whole or not at all for whoever is about to rename or
                # read it.
                gone = _aside(path)
                path.rename(gone)
                _remove_tree(gone)
            else:
                path.unlink()

    def stage(self, name: str) -> Path:
        staged = self.path / f"{name}.{_token()}{PARTIAL}"
        make_folder(staged.parent)
        staged.mkdir()
        return staged

    def publish(self, staged: Path, name: str) -> None:
        path = self.path / name
        for folder in [*(inner for inner in staged.rglob("*") if inner.is_dir()), staged]:
            sync(folder)
        while not renamed(staged, path):
            if self._is_same(staged, name):  # another worker may be about to vouch for it
                _remove_tree(staged)
                break
            self.remove(name)
        sync(path.parent)

    def _is_same(self, staged: Path, name: str) -> bool:
        staged_folder = LocalFolder(staged)
        sizes = staged_folder.sizes("")
        return sizes == self.sizes(name) and all(
            staged_folder.digest(file) == self.digest(f"{name}/{file}") for file in sizes
        )

    def link(self, source: str, staged: Path) -> bool:
        try:
            staged.parent.mkdir(parents=True, exist_ok=True)
            os.link(self.path / source, staged)
        except OSError:
            return False
        return True

    def local(self, folder: str) -> Path:
        return self.path / folder

    def zarr(self, name: str) -> Path:
        return self.path / name

    def open(self, name: str, spans: Sequence[Span]) -> BinaryIO:
        return (self.path / name).open("rb", buffering=0)


def write_atomically(path: Path, data: bytes) -> None:
    """Aside, sync, rename, sync the folder: the file is whole or as it was. Raises
    StillframeError."""
    aside = _aside(path)
    try:
        make_folder(path.parent)
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise StillframeError(
            f"cannot write {path}: {error.strerror}",
            "nothing before it is lost; free space or fix access, rerun",
        ) from error


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


def renamed(folder: Path, path: Path) -> bool:
    """Renames a folder; False, and nothing is done, if there is another one with something in
    it."""
    try:
        folder.rename(path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    return True


def _remove_tree(path: Path) -> None:
    """Removes a folder that others may be removing, too."""
    while path.exists():
        with suppress(FileNotFoundError):
            shutil.rmtree(path)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_token()}{PARTIAL}")


def _token() -> str:
    """A random name, new each time: no two machines, processes or threads that write the same thing
    touch each other's files."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"
