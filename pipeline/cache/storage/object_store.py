"""An object store as a storage: S3, Google Cloud Storage, or another that fsspec knows.

An object appears whole, by one request or by the last one of an upload in parts; there is nothing
to sync or to rename. What is read often is read from blocks in the local `disk_cache`: once
fetched, they cost no request. A name is taken by a PUT that the store refuses if the object is
there; in a store that knows no such PUT two workers may take one name, which costs time and never
data (see `leases.py`).
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import fsspec

from pipeline.cache.storage.contract import Span, Storage
from pipeline.cache.storage.disk_cache import FILE_MODE, Put, disk_cache
from pipeline.cache.storage.retry import AT_ONCE, PART_BYTES, Network
from pipeline.errors import StillframeError

STREAM_BYTES = 8 << 20
"""A file that is read from end to end is fetched in pieces of this size, a few ahead."""
CHANGES = 5
"""Times that a file may change while it is read."""
VERSION = ("ETag", "etag", "generation", "mtime", "created", "last_modified", "LastModified")
"""Facts of an object that differ when it is rewritten, as stores name them; the first that is there
counts."""

_CLAIMING, _CLAIMED = threading.Lock(), set[str]()
"""URLs of what this process has created and not removed again."""

T = TypeVar("T")


class ObjectFacts(NamedTuple):
    """Size and version of an object: those of a rewritten one differ."""

    size: int
    version: str


class ObjectChanged(Exception):
    """An object is no longer the version that was asked for."""


class ObjectStorage(Storage):
    """A tree of objects below a URL. Safe to share between threads.

    What was listed or read once is taken to stay, until this storage is told or sees otherwise:
    blocks of two versions of an object never meet in what `open` gives.
    """

    def __init__(self, url: str, network: Network | None = None) -> None:
        self.url = url.rstrip("/")
        self.network = network or Network(url)
        self.disk = disk_cache()
        self.root = self.network.path(self.url)
        self._facts: dict[str, ObjectFacts] = {}

    def __str__(self) -> str:
        return self.url

    @property
    def address(self) -> str:
        return self.url

    @property
    def parent(self) -> ObjectStorage:
        above = self.url.rpartition("/")[0]
        return self if above.endswith("/") else ObjectStorage(above, self.network)

    def below(self, name: str) -> ObjectStorage:
        return ObjectStorage(f"{self.url}/{name}", self.network)

    # Whole files

    def read(self, name: str) -> bytes:
        data: bytes = self._call(name, self.network.fs.cat_file, self._path(name))
        return data

    def write(self, name: str, data: bytes) -> None:
        self._facts.pop(name, None)
        self._call(name, self.network.fs.pipe_file, self._path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Data that two processes write must differ: whose answer is lost knows the object for its
        own by them."""
        url = _join(self.url, name)
        with _CLAIMING:
            try:
                self._call(name, self.network.fs.pipe_file, self._path(name), data, mode="create")
            except FileExistsError:
                if url in _CLAIMED or self._content(name) != data:
                    return False
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
                if self.exists(name):
                    return False
                self.write(name, data)
            _CLAIMED.add(url)
        return True

    def exists(self, name: str) -> bool:
        try:
            return bool(self._info(name)["type"] == "file")
        except FileNotFoundError:
            return False

    def _content(self, name: str) -> bytes | None:
        with suppress(FileNotFoundError):
            return self.read(name)
        return None

    def digest(self, name: str) -> str:
        def read() -> str:
            digest = hashlib.sha256()
            for piece in self._stream(name, self._facts_of(name)):
                digest.update(piece)
            return digest.hexdigest()

        return self._unchanged(name, read)

    # Folders

    def names(self, folder: str) -> list[str]:
        paths = self._listed(folder, self.network.fs.ls)
        return sorted({path.rstrip("/").rpartition("/")[2] for path in paths})

    def sizes(self, folder: str) -> dict[str, int]:
        sizes = {}
        for path, info in self._listed(folder, self.network.fs.find).items():
            if info["type"] == "file" and not path.endswith(
                "/"
            ):  # such an object is what consoles draw as a folder
                relative = path.removeprefix(self._path(folder)).lstrip("/")
                sizes[relative] = info["size"]
                self._facts[_join(folder, relative)] = _facts(info)
        return dict(sorted(sizes.items()))

    def remove(self, name: str) -> None:
        def remove(below: str) -> None:
            self._facts.pop(below, None)
            _CLAIMED.discard(_join(self.url, below))
            with suppress(FileNotFoundError):  # gone already, or another worker is removing it too
                self._call(below, self.network.fs.rm_file, self._path(below))

        files = [_join(name, below) for below in self.sizes(name)]
        list(self.network.pool.map(remove, files or [name]))

    # Uploads

    def stage(self, name: str) -> Path:
        return self.disk.aside()

    def publish(self, staged: Path, name: str) -> None:
        """Objects that lie there are replaced one by one, since another worker may be vouching for
        the same ones."""
        before = self.sizes(name)
        files = {
            path.relative_to(staged).as_posix(): path
            for path in staged.rglob("*")
            if path.is_file()
        }

        def upload(relative: str) -> None:
            file, inner = files[relative], _join(name, relative)
            self._facts.pop(inner, None)
            if file.stat().st_size <= PART_BYTES:
                self.write(inner, file.read_bytes())
            else:
                self._call(
                    inner,
                    self.network.bulk.put_file,
                    str(file),
                    self._path(inner),
                    **self.network.in_parts,
                )

        list(self.network.pool.map(upload, files))
        for relative in before.keys() - files.keys():
            self.remove(_join(name, relative))
        self.disk.discard(staged)

    def link(self, source: str, staged: Path) -> bool:
        return False

    # Reading through the disk cache

    def local(self, folder: str) -> Path:
        def read() -> Path:
            infos = [
                info
                for info in self._listed(folder, self.network.fs.ls).values()
                if info["type"] == "file"
            ]
            files = {info["name"].rpartition("/")[2]: _facts(info) for info in infos}

            def fill(target: Path) -> None:
                for name, facts in files.items():
                    (target / name).touch(FILE_MODE)
                    with (target / name).open("wb") as file:
                        file.writelines(self._stream(_join(folder, name), facts))
                        file.flush()
                        os.fsync(file.fileno())

            key = f"{_join(self.url, folder)} {sorted(files.items())}"
            return self.disk.copy(key, sum(facts.size for facts in files.values()), fill)

        return self._unchanged(folder, read)

    def zarr(self, name: str) -> Any:
        return fsspec.FSMap(
            name, _Files(self, {_join(name, file): size for file, size in self.sizes(name).items()})
        )

    def open(self, name: str, spans: Sequence[Span]) -> BinaryIO:
        def read() -> BinaryIO:
            facts = self._facts_of(name)

            def fetch(runs: Sequence[Span], put: Put) -> None:
                list(
                    self.network.pool.map(
                        lambda run: put(run[0], self._get(name, facts, *run)), runs
                    )
                )
                self._require_same(name, facts)

            return self.disk.open(self._disk_key(name, facts), facts.size, spans, fetch)

        return self._unchanged(name, read)

    def forget(self, name: str) -> bool:
        try:
            self.disk.drop(self._disk_key(name, self._facts_of(name)))
        except FileNotFoundError:
            return False
        return True

    def _disk_key(self, name: str, facts: ObjectFacts) -> str:
        return f"{_join(self.url, name)} {facts}"

    # Requests

    def _path(self, name: str) -> str:
        return _join(self.root, name)

    def _call(self, name: str, request: Callable[..., T], *arguments: Any, **options: Any) -> T:
        return self.network.call(_join(self.url, name), request, *arguments, **options)

    def _info(self, name: str) -> Mapping[str, Any]:
        self.network.fs.invalidate_cache()
        info: Mapping[str, Any] = self._call(name, self.network.fs.info, self._path(name))
        return info

    def _listed(self, folder: str, listing: Callable[..., Any]) -> dict[str, Mapping[str, Any]]:
        """Path -> what the store says of it, for all that `listing` finds below a folder."""
        self.network.fs.invalidate_cache()
        try:
            listed = self._call(folder, listing, self._path(folder), detail=True)
        except FileNotFoundError:
            return {}
        infos = listed.values() if isinstance(listed, dict) else listed
        itself = self._path(folder).strip("/")
        return {info["name"]: info for info in infos if info["name"].strip("/") != itself}

    def _facts_of(self, name: str) -> ObjectFacts:
        if name not in self._facts:
            info = self._info(name)
            if info["type"] != "file":
                raise IsADirectoryError(
                    errno.EISDIR, os.strerror(errno.EISDIR), _join(self.url, name)
                )
            self._facts[name] = _facts(info)
        return self._facts[name]

    def _unchanged(self, name: str, read: Callable[[], T]) -> T:
        """Returns what `read` makes of an object or folder, and reads again where that was
        rewritten meanwhile."""
        for _ in range(CHANGES):
            try:
                return read()
            except ObjectChanged:
                self._facts.pop(name, None)
        raise StillframeError(
            f"{_join(self.url, name)} was rewritten {CHANGES} times while it was read",
            "stop who writes to it, then run again",
        )

    def _require_same(self, name: str, facts: ObjectFacts) -> None:
        if _facts(self._info(name)) != facts:
            raise ObjectChanged

    def _get(self, name: str, facts: ObjectFacts, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of an object."""

        def get() -> bytes:
            data: bytes = self.network.fs.cat_file(self._path(name), start=start, end=stop)
            if len(data) != stop - start:
                self._require_same(name, facts)
                raise ConnectionError(f"{len(data)} bytes came, wanted {stop - start}")
            return data

        try:
            return self._call(name, get)
        except OSError as error:
            if error.errno == errno.EINVAL:  # there are no such bytes
                self._require_same(name, facts)
            raise

    def _stream(self, name: str, facts: ObjectFacts) -> Iterator[bytes]:
        """An object from end to end, a few pieces ahead. Raises ObjectChanged where it is not the
        one that the facts are of."""
        if facts.size <= STREAM_BYTES:
            data = self.read(name)
            if len(data) != facts.size:
                raise ObjectChanged
            yield data
            return
        ahead: deque[Future[bytes]] = deque()
        for start in range(0, facts.size, STREAM_BYTES):
            stop = min(start + STREAM_BYTES, facts.size)
            ahead.append(self.network.pool.submit(self._get, name, facts, start, stop))
            if len(ahead) == AT_ONCE // 2:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
        self._require_same(name, facts)


class _Files(fsspec.AbstractFileSystem):
    """Files of an object store for zarr-python, which thus reads through the same blocks, with the
    same patience."""

    cachable = False
    protocol = "stillframe"

    def __init__(self, storage: ObjectStorage, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.storage, self.files = storage, sizes

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        first, stop, _step = slice(start, end).indices(self.files[path])
        with self.storage.open(path, [(first, stop)]) as file:
            return os.pread(file.fileno(), stop - first, first)


def _facts(info: Mapping[str, Any]) -> ObjectFacts:
    version = next((info[key] for key in VERSION if info.get(key)), "")
    return ObjectFacts(
        info["size"], str(version.timestamp() if isinstance(version, datetime) else version)
    )


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name
