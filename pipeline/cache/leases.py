"""Leases, by which the workers of one cache tell each other who is at work on which store.

A lease is a file that is created only if it is not there, and rewritten every few seconds while its
holder lives. One that does not change for a while is void, as is at once that of a process of this
machine that is no more. Nothing rests on clocks that agree or on locks of a network file system.
Two workers may in rare moments hold the same store: that costs time and never data, since a store
is written aside and every writer of it writes the same bytes.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import NamedTuple, Protocol, Self, TypeVar

from pipeline.cache.cache import Cache
from pipeline.cache.commit import clear_partial
from pipeline.cache.layout import LEASES, lease_file, store_number
from pipeline.cache.storage.contract import Storage
from pipeline.cache.storage.local import PARTIAL
from pipeline.cache.storage.processes import machine, started
from pipeline.config.json_files import json_value
from pipeline.errors import StillframeError

RENEW_S = 5.0
"""Seconds between two signs of life."""
EXPIRE_S = 60.0
"""Seconds without one after which a lease is void."""
LOOK_S = 1.0
"""Seconds between two looks at what others hold."""


@dataclass(frozen=True)
class Holder:
    """A process that writes stores."""

    worker: str
    """A random name, new each time: two extractions in one process are two workers."""
    machine: str
    """One boot of one machine, seen from inside one container."""
    pid: int
    started: int
    """Clock tick of its start: process numbers are used again."""

    @classmethod
    def me(cls) -> Holder:
        """The holder that stands for this process; no other is equal to it."""
        return cls(secrets.token_hex(8), machine(), os.getpid(), started(os.getpid()) or 0)

    @property
    def is_gone(self) -> bool:
        """Whether the process is known to be no more: of one of another machine it never is."""
        return bool(self.started) and self.is_here and started(self.pid) != self.started

    @property
    def is_here(self) -> bool:
        """Whether the process is, or was, one of this machine."""
        return self.machine == machine()

    @classmethod
    def read(cls, text: bytes) -> Holder | None:
        """The holder that wrote a lease; None where the text is torn."""
        try:
            table = json_value(text)
            values = [table[field.name] for field in fields(cls)]
        except (ValueError, KeyError, TypeError):
            return None
        return cls(*values) if list(map(type, values)) == [str, str, int, int] else None


class Leases:
    """The leases of this worker in one storage. Between `with` they are kept alive by a thread;
    leaving gives all of them back."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.holder = Holder.me()
        self.held: set[str] = set()
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._stop = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="leases", daemon=True)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._renewing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._renewing.join()
        for name in list(self.held):
            self.release(name)

    def claim(self, name: str) -> bool:
        """Takes a lease if nobody holds it, or if its holder is no more."""
        if self.storage.create(lease_file(name), self._text(0)):
            self.held.add(name)
            return True
        over = f"{name}.over"
        if not self._is_void(name) or not self.claim(over):
            return False
        # One at a time, and after a second look: by now it may be the lease of somebody who saw the
        # same and was quicker.
        if self._is_void(name):
            self.storage.remove(lease_file(name))
        self.release(over)
        return self.claim(name)

    def claim_unless(self, name: str, is_done: Callable[[], bool]) -> bool:
        """Takes the lease of work that is still to do. Another worker may have finished it since
        this one has looked, so `is_done` is asked again once the lease is held."""
        if not self.claim(name):
            return False
        if is_done():
            self.release(name)
            return False
        return True

    def holds(self, name: str) -> bool:
        """Whether a lease is still ours: one that was not renewed in time may have been taken
        over."""
        return name in self.held and Holder.read(self._read(name) or b"") == self.holder

    def release(self, name: str) -> None:
        """Gives a lease back, if it is still ours."""
        with self._lock:
            is_ours = self.holds(name)
            self.held.discard(name)
            if is_ours:
                self.storage.remove(lease_file(name))

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Holds a lease, waiting for it as long as another lives that has it."""
        while not self.claim(name):
            time.sleep(LOOK_S)
        try:
            yield
        finally:
            self.release(name)

    def _is_void(self, name: str) -> bool:
        text = self._read(name)
        if text is None:
            return True
        holder = Holder.read(text)
        if holder is not None and holder.is_gone:
            return True
        now = time.monotonic()
        if self._seen.get(name, (None, 0.0))[0] != text:
            self._seen[name] = text, now
        return now - self._seen[name][1] > EXPIRE_S

    def _read(self, name: str) -> bytes | None:
        try:
            return self.storage.read(lease_file(name))
        except FileNotFoundError:
            return None

    def _text(self, beat: int) -> bytes:
        return json.dumps(asdict(self.holder) | {"beat": beat}).encode()

    def _renew(self) -> None:
        beat = 0
        while not self._stop.wait(RENEW_S):
            beat += 1
            for name in list(self.held):
                with (
                    self._lock,
                    suppress(OSError, StillframeError),
                ):  # not renewed now: the next beat may be
                    if self.holds(name):
                        self.storage.write(lease_file(name), self._text(beat))


def holders(storage: Storage) -> dict[str, Holder]:
    """Name of every lease -> who holds it, or held it when it died."""
    holder_of = {}
    for file in storage.names(LEASES):
        if file.endswith(PARTIAL):  # on its way
            continue
        with suppress(OSError):  # given back at this moment
            if holder := Holder.read(storage.read(f"{LEASES}/{file}")):
                holder_of[file.removesuffix(".json")] = holder
    return holder_of


class StoreClaim(Protocol):
    """A store of a cache that a worker would take, and the leases that say who is at it."""

    @property
    def cache(self) -> Cache: ...

    @property
    def leases(self) -> Leases: ...

    @property
    def store(self) -> int: ...


class CacheStore(NamedTuple):
    """The plainest claim."""

    cache: Cache
    leases: Leases
    store: int


Claim = TypeVar("Claim", bound=StoreClaim)


def claim_units(
    units: Sequence[Sequence[Claim]], stop: threading.Event, *, waits: bool = True
) -> Iterator[list[Claim]]:
    """Units of work for this worker: of each unit, the stores that are missing and that nobody else
    is at.

    Waits for what others hold, until they have done it or are no more, unless it `waits` for
    nobody. Ends when nothing is missing but what was handed out here, or when `stop` is set.
    """
    open_units = [list(unit) for unit in units]
    handed_out: set[tuple[str, int]] = set()
    while open_units and not stop.is_set():
        held_units = []
        for unit in open_units:
            ours, held_by_others = [], []
            for claim in unit:
                cache, leases, store = claim.cache, claim.leases, claim.store
                if (str(cache), store) in handed_out or cache.has(store):
                    continue
                if leases.claim_unless(lease_of(store), partial(cache.has, store)):
                    clear_partial(cache, store)
                    handed_out.add((str(cache), store))
                    ours.append(claim)
                elif not cache.has(store):
                    held_by_others.append(claim)
            if ours:
                yield ours
            if held_by_others:
                held_units.append(held_by_others)
            if stop.is_set():
                return
        open_units = held_units if waits else []
        if open_units:
            stop.wait(LOOK_S)


def lease_of(store: int) -> str:
    """The name of the lease over a store."""
    return store_number(store)
