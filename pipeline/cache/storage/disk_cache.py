"""Cache, on a local disk and up to a bound, of what was fetched from object stores.

```
<folder>/
  lock              held while somebody makes room; says how many bytes are taken
  files/<key>/      one remote file: `data`, sparse and of its full size, and `blocks`, a byte for
                    each that is there; or one remote folder: `data` is a folder of whole files
  aside/            what is being made: new entries, stores before their upload, entries on their
                    way out
```

Any number of threads and processes use one such folder at once. A key stands for one version of a
file, so that blocks of two never meet. A block counts when its byte says so, which is after its
data is synced. Whole entries go, least recently used first; whoever has a file of one open can read
on.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from pipeline.cache.storage.contract import Span
from pipeline.cache.storage.local import renamed
from pipeline.errors import BadInput, StillframeError

FOLDER_VARIABLE, BOUND_VARIABLE = "STILLFRAME_DISK_CACHE", "STILLFRAME_DISK_CACHE_GB"
DEFAULT_GB = 20
BLOCK_BYTES = 1 << 20
"""A block is fetched whole. Windows lie anywhere: larger blocks would bring more of what was not
asked for."""
RUN_BLOCKS = 16
"""Neighbouring blocks that one request fetches, at most."""
FILL = 0.9
"""Share of the bound up to which the folder is full after room was made: making room looks at every
entry."""
PAGE_BYTES, ENTRY_BYTES = 4096, 16384
"""Bytes that a file system rounds to, and that an entry takes beside its data."""
STRAY_S = 60.0
"""Seconds after which something aside that nobody holds was left by a kill."""

FOLDER_MODE, FILE_MODE = 0o700, 0o600
Put = Callable[[int, bytes], None]
Fetch = Callable[[Sequence[Span], Put], None]
"""Puts the bytes of every span, each at its offset."""


class DiskCache:
    """A bounded folder on a local disk."""

    def __init__(self, folder: Path, bound_bytes: int) -> None:
        if bound_bytes < BLOCK_BYTES + 2 * ENTRY_BYTES:
            raise BadInput(
                f"{BOUND_VARIABLE} allows {bound_bytes:,} bytes, and one block of a file takes "
                f"{BLOCK_BYTES:,}",
                f"set {BOUND_VARIABLE} to {_gb(4 * BLOCK_BYTES)} or more",
            )
        self.folder, self.bound_bytes = folder, bound_bytes
        self._held: dict[Path, int] = {}
        with self._writing():
            # What is fetched with this user's keys is for this user.
            for path in (folder, folder / "files", folder / "aside"):
                path.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
            (folder / "lock").touch(FILE_MODE)

    def open(self, key: str, size: int, spans: Sequence[Span], fetch: Fetch) -> BinaryIO:
        """A file of `size` bytes that holds at least these spans, as far as it reaches; missing
        blocks are fetched first."""
        folder = self._folder(key)
        reach = [
            range(start // BLOCK_BYTES, -(-min(stop, size) // BLOCK_BYTES)) for start, stop in spans
        ]
        requested = sorted({block for blocks in reach for block in blocks})
        while True:
            data, marks = self._entry(folder, size)
            file = os.fdopen(data, "rb", buffering=0)
            try:
                if not _missing(marks, requested):
                    return file
                fcntl.flock(marks, fcntl.LOCK_EX)  # who waits here finds what another has fetched
                missing = _missing(marks, requested)
                if not missing:
                    return file
                if self._make_room(folder, size, data, missing, requested):
                    self._fill(size, data, marks, missing, fetch)
                    return file
                file.close()
            except BaseException:
                file.close()
                raise
            finally:
                os.close(marks)

    def copy(self, key: str, size: int, fill: Callable[[Path], None]) -> Path:
        """A folder of whole files of `size` bytes together, put there by `fill`. It stays as long
        as this process lives."""
        folder = self._folder(key)
        while folder not in self._held:
            try:
                handle = os.open(folder, os.O_RDONLY)
            except FileNotFoundError:
                self._make_copy(folder, size, fill)
                continue
            fcntl.flock(handle, fcntl.LOCK_SH)
            if _is_at(handle, folder):
                self._held[folder] = handle
            else:  # thrown out meanwhile
                os.close(handle)
        os.utime(folder / "blocks")
        return folder / "data"

    def drop(self, key: str) -> None:
        """Throws a file out, if it is there: its blocks are fetched anew."""
        with self._writing():
            self._throw_out(self._folder(key))

    def aside(self) -> Path:
        """An empty folder of this process, until it is discarded. Clears what killed processes
        left."""
        for path in (self.folder / "aside").iterdir():
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > STRAY_S and not _is_held(path):
                    shutil.rmtree(path, ignore_errors=True)
        path = self._new_aside()
        self._held[path] = os.open(path, os.O_RDONLY)
        fcntl.flock(self._held[path], fcntl.LOCK_SH)
        return path

    def discard(self, aside: Path) -> None:
        """Removes a folder that `aside` gave."""
        shutil.rmtree(aside, ignore_errors=True)
        os.close(self._held.pop(aside))

    # Entries

    def _folder(self, key: str) -> Path:
        return (
            self.folder / "files" / hashlib.sha256(f"{BLOCK_BYTES} {key}".encode()).hexdigest()[:32]
        )

    def _entry(self, folder: Path, size: int) -> tuple[int, int]:
        """Handles of `data` and `blocks` of one and the same entry, which is laid out if it is not
        there."""
        with self._writing():
            while True:
                try:
                    handle = os.open(folder, os.O_RDONLY)
                except FileNotFoundError:
                    self._create_entry(folder, size)
                    continue
                try:
                    marks = os.open("blocks", os.O_RDWR, dir_fd=handle)
                    os.utime(marks)
                    try:
                        return os.open("data", os.O_RDWR, dir_fd=handle), marks
                    except OSError:
                        os.close(marks)
                        raise
                except FileNotFoundError:
                    if _is_at(handle, folder):  # it is not on its way out, it is broken
                        self._throw_out(folder)
                finally:
                    os.close(handle)

    def _create_entry(self, folder: Path, size: int) -> None:
        aside = self._new_aside()
        (aside / "data").touch(FILE_MODE)
        os.truncate(aside / "data", size)
        (aside / "blocks").touch(FILE_MODE)
        (aside / "blocks").write_bytes(bytes(-(-size // BLOCK_BYTES)))
        _move(aside, folder)

    def _make_copy(self, folder: Path, size: int, fill: Callable[[Path], None]) -> None:
        self._require_bound(size + ENTRY_BYTES)
        aside = self.aside()
        try:
            (aside / "data").mkdir(FOLDER_MODE)
            (aside / "blocks").touch(FILE_MODE)
            fill(aside / "data")
            with self._writing(), self._counting() as counter:
                self._reserve(counter, size + ENTRY_BYTES)
                _move(aside, folder)
        finally:
            self.discard(aside)

    def _new_aside(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder / "aside"))

    def _throw_out(self, folder: Path) -> None:
        """First out of sight, so that nobody ever sees half of an entry."""
        aside = self._new_aside()
        with suppress(FileNotFoundError):
            folder.rename(aside / "out")
        shutil.rmtree(aside, ignore_errors=True)

    def _fill(self, size: int, data: int, marks: int, missing: Sequence[int], fetch: Fetch) -> None:
        def put(offset: int, piece: bytes) -> None:
            with self._writing():
                done = 0
                while done < len(piece):
                    done += os.pwrite(data, memoryview(piece)[done:], offset + done)

        fetch([_span(run[0], run[-1], size) for run in _neighbours(missing)], put)
        with self._writing():
            # So that no block counts after a loss of power whose bytes were lost.
            getattr(os, "fdatasync", os.fsync)(data)  # macOS has the second alone
            for block in missing:
                os.pwrite(marks, b"\1", block)

    # Room

    def _make_room(
        self, folder: Path, size: int, data: int, missing: Sequence[int], requested: Sequence[int]
    ) -> bool:
        """Takes the disk space of the missing blocks; False if for that the entry itself had to
        go."""
        need, whole = (
            sum(_taken(block, size) for block in blocks) + ENTRY_BYTES
            for blocks in (missing, requested)
        )
        with self._writing(), self._counting() as counter:
            if not self._reserve(counter, need, folder, whole):
                return False
            for block in missing:
                start, stop = _span(block, block, size)
                if hasattr(os, "posix_fallocate"):  # elsewhere a full disk shows at the write
                    os.posix_fallocate(data, start, stop - start)
        return True

    @contextmanager
    def _counting(self) -> Iterator[BinaryIO]:
        """The file that says how many bytes are taken. What is reserved must be taken before it is
        let go."""
        with (self.folder / "lock").open("a+b") as counter:
            fcntl.flock(counter, fcntl.LOCK_EX)
            yield counter

    def _reserve(
        self, counter: BinaryIO, need: int, own: Path | None = None, whole: int = 0
    ) -> bool:
        """Counts `need` more bytes, after throwing out what was not used for longest.

        Where the entry `own` is in the way itself, it goes too, and nothing is counted: it then
        starts anew and needs `whole`.
        """
        counter.seek(0)
        counted = counter.read()
        used, own_bytes = int(counted) if counted.isdigit() else self.bound_bytes, 0
        if used + need > self.bound_bytes:
            used, own_bytes = self._evict(
                min(self.bound_bytes - need, int(FILL * self.bound_bytes)), own
            )
        fits = used + need <= self.bound_bytes
        if not fits:
            self._require_bound(used - own_bytes + max(need, whole))
            assert own is not None
            self._throw_out(own)
        counter.truncate(0)
        counter.write(str(used + need if fits else used - own_bytes).encode())
        return fits

    def _require_bound(self, size: int) -> None:
        if size > self.bound_bytes:
            raise BadInput(
                f"{BOUND_VARIABLE} allows {_gb(self.bound_bytes)} GB in {self.folder}, and "
                f"{_gb(size)} GB are needed at once",
                f"set {BOUND_VARIABLE} to {_gb(2 * size)} or more",
            )

    def _evict(self, room: int, own: Path | None) -> tuple[int, int]:
        """Throws entries out until the others take at most `room` bytes. Returns what all take, and
        `own` of that."""
        entries = []
        for folder in (self.folder / "files").iterdir():
            with suppress(FileNotFoundError):  # going at this moment
                entries.append(((folder / "blocks").stat().st_mtime_ns, _bytes_of(folder), folder))
        own_bytes = sum(size for _, size, folder in entries if folder == own)
        if own_bytes <= ENTRY_BYTES:  # empty yet, and counted with what it needs
            own_bytes = 0
        used = sum(size for _, size, folder in entries if folder != own) + own_bytes + ENTRY_BYTES
        for _, size, folder in sorted(entries):
            if used > room and folder != own and not _is_held(folder):
                self._throw_out(folder)
                used -= size
        return used, own_bytes

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StillframeError(
                f"the disk cache {self.folder} cannot be written: {error.strerror}",
                f"free space or fix access there, set {FOLDER_VARIABLE} to another folder, or "
                f"lower {BOUND_VARIABLE}",
            ) from error


def disk_cache() -> DiskCache:
    """The disk cache that the environment names. Raises BadInput."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stillframe"
    text = os.environ.get(BOUND_VARIABLE) or str(DEFAULT_GB)
    try:
        bound_bytes = int(float(text) * 1e9)
    except (ValueError, OverflowError) as error:
        raise BadInput(
            f"{BOUND_VARIABLE} is '{text}', wanted a number of gigabytes",
            f"for example {DEFAULT_GB}",
        ) from error
    return _shared(Path(os.environ.get(FOLDER_VARIABLE) or home).absolute(), bound_bytes)


_shared = lru_cache(maxsize=None)(DiskCache)


def _move(aside: Path, folder: Path) -> None:
    if not renamed(aside, folder):  # another was quicker
        shutil.rmtree(aside)


def _missing(marks: int, requested: Sequence[int]) -> list[int]:
    """The requested blocks that `marks` says are not there."""
    present = os.pread(marks, requested[-1] + 1, 0) if requested else b""
    return [block for block in requested if not present[block]]


def _neighbours(blocks: Sequence[int]) -> Iterator[Sequence[int]]:
    """Neighbouring blocks, up to `RUN_BLOCKS` together."""
    first = 0
    for here, (block, after) in enumerate(pairwise([*blocks, -1]), 1):
        if after != block + 1 or here - first == RUN_BLOCKS:
            yield blocks[first:here]
            first = here


def _span(first: int, last: int, size: int) -> Span:
    """The bytes of the blocks `first` to `last` of a file."""
    return first * BLOCK_BYTES, min((last + 1) * BLOCK_BYTES, size)


def _taken(block: int, size: int) -> int:
    """Bytes that a block takes on the disk."""
    start, stop = _span(block, block, size)
    return -(-(stop - start) // PAGE_BYTES) * PAGE_BYTES


def _bytes_of(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in (folder, *folder.rglob("*")))


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _is_held(folder: Path) -> bool:
    """Whether a living process keeps a folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g}"
