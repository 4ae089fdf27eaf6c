"""What can happen to a process, made to happen inside it: death, a stop or an error at its n-th file operation, a cut of power.

File operations are those that change something: opened for writing, made, renamed, linked, removed, synced. They are seen
through Python's audit events, and syncs through `os.fsync` itself, so this needs no tracer and no rights.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.cache import leases
from pipeline.cache.storage.local import PARTIAL
from pipeline.extract import store_builder
from pipeline.models.encoders import address

CHANGES = {"os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.truncate"}
NEEDS_SPACE = {"open", "os.mkdir", "os.rename", "os.link", "fsync"}
"""Operations that a full or broken disk may refuse."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
BACKGROUND = ("feed", "leases")
"""Threads that touch nothing but leases, whose loss is harmless."""


def apply(faults: Mapping[str, Any]) -> None:
    """Arms this process: `log`, `timing`, `clock_s`, and `kill_at`, `stop_at`, `fail_at` with `errno`, or `cuts`."""
    if "log" in faults:
        count_work(Path(faults["log"]))
    if "timing" in faults:
        leases.RENEW_S, leases.EXPIRE_S, leases.LOOK_S = faults["timing"]
    if "clock_s" in faults:
        real = time.time
        time.time = lambda: real() + faults["clock_s"]
    root = Path(faults.get("root", "/nowhere"))
    if "kill_at" in faults:
        watch(root, nth(faults["kill_at"], lambda _: os.kill(os.getpid(), signal.SIGKILL)))
    if "stop_at" in faults:
        watch(root, nth(faults["stop_at"], lambda _: os.kill(os.getpid(), signal.SIGSTOP)))
    if "fail_at" in faults:
        watch(root, nth(faults["fail_at"], refuse(faults["errno"])), NEEDS_SPACE)
    if "cuts" in faults:
        PowerCuts(root, Path(faults["cuts"])).start()


def watch(root: Path, act: Callable[[str], None], wanted: set[str] | None = None) -> None:
    """Calls `act` with the path before every file operation below `root` that changes something."""

    def event(name: str, arguments: tuple[Any, ...]) -> None:
        if name not in CHANGES and not (
            name == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        ):
            return
        if wanted and name not in wanted:
            return
        path = (
            os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
        )
        # A path that is not absolute is relative to a folder that is being removed.
        if not path.startswith("/") or Path(path).is_relative_to(root):
            act(path)

    real = os.fsync

    def fsync(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        if path.is_relative_to(root):
            act(str(path))
        real(handle)

    os.fsync = fsync
    sys.addaudithook(event)


def nth(count: int, act: Callable[[str], None]) -> Callable[[str], None]:
    left = [count]
    lock = threading.Lock()

    def tick(path: str) -> None:
        with lock:
            left[0] -= 1
            now = left[0] == 0
        if now:
            act(path)

    return tick


def refuse(errno: int) -> Callable[[str], None]:
    def act(path: str) -> None:
        raise OSError(errno, os.strerror(errno), path)

    return act


def count_work(log: Path) -> None:
    """Notes every batch that is encoded, as the video number of each frame, and every store that is committed."""
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    encode, commit = address.Encoder.__call__, store_builder.StoreBuilder.commit

    def encoded(self: address.Encoder, pixels: Any) -> Any:
        tokens = encode(self, pixels)
        videos = address.read(tokens.special_NSD[:, 0]).video
        os.write(handle, f"encoded {os.getpid()} {' '.join(map(str, videos))}\n".encode())
        return tokens

    def committed(self: store_builder.StoreBuilder, *arguments: Any) -> Any:
        receipt = commit(self, *arguments)
        os.write(handle, f"committed {os.getpid()} {self.store}\n".encode())
        return receipt

    address.Encoder.__call__ = encoded
    store_builder.StoreBuilder.commit = committed


class PowerCuts:
    """Writes what a disk may hold if power fails now, before every file operation, into numbered folders.

    Sure to be there is a file's content as of its last sync, and a folder's names as of its own. What came later may be there
    or not, and a name may be there without its bytes:

    names synced, bytes synced: nothing that was not synced has survived
    names now, bytes synced: the disk wrote names early and bytes late
    all now but one name, which is not there yet or still the old file
    mixed: each folder and each file as one or the other, or half a file
    """

    def __init__(self, root: Path, out: Path) -> None:
        self.root, self.out = root, out
        self.handles: dict[int, int] = {}
        """inode -> a handle that keeps it from being given to another file."""
        self.synced_bytes: dict[int, bytes] = {}
        self.synced_names: dict[int, dict[str, int]] = {}
        self.seen: set[str] = set()
        self.random = random.Random(0)
        self.lock = threading.RLock()
        self.busy = False

    def start(self) -> None:
        real = os.fsync

        def fsync(handle: int) -> None:
            real(handle)
            with self.lock:
                self.sync(os.fstat(handle))

        os.fsync = fsync
        self.synced_names[self.keep(self.root)] = self.names(self.root)
        watch(self.root, lambda _: self.cut())

    def cut(self) -> None:
        if threading.current_thread().name.startswith(BACKGROUND):
            return
        with self.lock:
            if self.busy:  # our own reading
                return
            self.busy = True
            try:
                folders = self.folders()
                late = [self.keep(folder) for folder in folders if PARTIAL not in str(folder)]
                for state in self.states(
                    {self.keep(folder): self.names(folder) for folder in folders}, late
                ):
                    self.write(state)
            finally:
                self.busy = False

    def sync(self, facts: os.stat_result) -> None:
        busy, self.busy = self.busy, True
        for path in [self.root, *self.root.rglob("*")]:
            with suppress(FileNotFoundError):  # a lease that was given back
                if path.stat().st_ino == facts.st_ino:
                    self.keep(path)
                    if stat.S_ISDIR(facts.st_mode):
                        self.synced_names[facts.st_ino] = self.names(path)
                    else:
                        self.synced_bytes[facts.st_ino] = path.read_bytes()
        self.busy = busy

    def folders(self) -> list[Path]:
        return [self.root, *(path for path in self.root.rglob("*") if path.is_dir())]

    def names(self, folder: Path) -> dict[str, int]:
        return {
            path.name: self.keep(path) for path in folder.iterdir() if path.parent.name != "leases"
        }

    def keep(self, path: Path) -> int:
        inode = path.stat().st_ino
        if inode not in self.handles:
            self.handles[inode] = os.open(path, os.O_RDONLY)
        return inode

    def states(
        self, now: dict[int, dict[str, int]], late: list[int]
    ) -> Iterator[dict[str, bytes | None]]:
        def synced(inode: int) -> bytes:
            return self.synced_bytes.get(inode, b"")

        def current(inode: int) -> bytes:
            return os.pread(self.handles[inode], os.fstat(self.handles[inode]).st_size, 0)

        def either(inode: int) -> bytes:
            # A file that was not touched since its last sync is sure to be whole.
            old, new = synced(inode), current(inode)
            return new if new == old else self.random.choice((old, new, new[: len(new) // 2]))

        yield self.tree(self.synced_names, synced)
        yield self.tree(self.synced_names | now, synced)
        for folder in late:
            before = self.synced_names.get(folder, {})
            for name, inode in now[folder].items():
                if before.get(name) != inode:
                    names = {other: there for other, there in now[folder].items() if other != name}
                    old = {name: before[name]} if name in before else {}
                    yield self.tree(self.synced_names | now | {folder: names | old}, current)
        yield self.tree(
            self.synced_names
            | {i: names for i, names in now.items() if self.random.random() < 0.5},
            either,
        )

    def tree(
        self, names: Mapping[int, Mapping[str, int]], content: Callable[[int], bytes]
    ) -> dict[str, bytes | None]:
        """Path -> content, None for a folder."""
        found: dict[str, bytes | None] = {}

        def visit(inode: int, path: str) -> None:
            for name, inner in names.get(inode, {}).items():
                if stat.S_ISDIR(os.fstat(self.handles[inner]).st_mode):
                    found[f"{path}{name}"] = None
                    visit(inner, f"{path}{name}/")
                else:
                    found[f"{path}{name}"] = content(inner)

        visit(self.root.stat().st_ino, "")
        return found

    def write(self, state: Mapping[str, bytes | None]) -> None:
        key = hashlib.sha256(repr(sorted(state.items())).encode()).hexdigest()
        if key in self.seen:
            return
        folder = self.out / f"{len(self.seen):05d}"
        self.seen.add(key)
        folder.mkdir(parents=True)
        for name, data in state.items():
            if data is None:
                (folder / name).mkdir()
            else:
                (folder / name).write_bytes(data)
