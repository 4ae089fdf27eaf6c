"""Contract of a storage: a tree of files under names such as `receipts/00017.json`.

What a cache asks of it is little, and none of it depends on clocks or on locks of a file system:
files appear whole or not at all, and a name is taken only once. Methods raise OSError as the system
does; whoever knows what was being done says so to the user.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

Span = tuple[int, int]
"""Bytes [start, stop) of a file."""


class Storage(ABC):
    """A tree of files. Names are relative and have forward slashes; a folder is what has files
    below it."""

    @abstractmethod
    def __str__(self) -> str:
        """The path or URL as a user writes it on the command line."""

    @property
    @abstractmethod
    def address(self) -> str:
        """The path or URL that is the same from any working folder."""

    @property
    def name(self) -> str:
        """The last part of the path or URL."""
        return str(self).rstrip("/").rpartition("/")[2]

    @property
    @abstractmethod
    def parent(self) -> Storage:
        """The folder that this storage is in."""

    @abstractmethod
    def below(self, name: str) -> Storage:
        """The folder `name` in this storage, as a storage."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a file."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Writes a file, which is whole or as it was, whatever happens meanwhile."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Writes a file that is not there yet; False, and nothing is written, if it is."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Files and folders directly in a folder, sorted; none if it is not there."""

    @abstractmethod
    def sizes(self, folder: str) -> dict[str, int]:
        """Every file below a folder, relative to it -> bytes. Sorted; empty if it is not there."""

    @abstractmethod
    def digest(self, name: str) -> str:
        """SHA-256 of a file as hexadecimal digits."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Removes a file, or a folder with all below it, if it is there."""

    @abstractmethod
    def stage(self, name: str) -> Path:
        """An empty local folder in which the folder `name` can be written before it is
        published."""

    @abstractmethod
    def publish(self, staged: Path, name: str) -> None:
        """Makes a staged folder, whose files are synced, the folder `name`, durably; another one
        that was there is replaced."""

    @abstractmethod
    def link(self, source: str, staged: Path) -> bool:
        """Puts a file of this storage into a staged folder without copying its bytes; False where
        that cannot be done."""

    @abstractmethod
    def local(self, folder: str) -> Path:
        """A local folder with the files directly in `folder`."""

    @abstractmethod
    def zarr(self, name: str) -> Any:
        """The argument with which `zarr.open_group` opens the group `name`."""

    @abstractmethod
    def forget(self, name: str) -> bool:
        """Drops what is kept here of a file that is far away, so that it is fetched anew; False
        where nothing is kept."""

    @abstractmethod
    def open(self, name: str, spans: Sequence[Span]) -> BinaryIO:
        """A local file, unbuffered, that holds at least these bytes of the file `name`, each at its
        own offset."""
