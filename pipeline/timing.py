"""Work whose time is kept step by step, and that says how far it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Timed:
    """Base of records of work whose seconds are kept by step. Threads may add to one record."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Step -> seconds. Where steps overlap, the work done in each, waiting left out."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Adds the time that passes inside to `step`, also where it ends in an error."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.add_seconds(step, time.perf_counter() - begin)

    def add_seconds(self, step: str, seconds: float) -> None:
        with self.lock:
            self.seconds[step] = self.seconds.get(step, 0.0) + seconds


SPOKEN_EVERY_S = 10.0
"""Seconds between two lines on how far something is."""


def spoken_progress(say: Callable[[str], object], what: str) -> Callable[[int, int], None]:
    """Takes (done, to do), and says them now and then, as "texts: 2,560 of 180,800"; nothing of
    work that is soon over."""
    last = time.monotonic()

    def on_progress(done: int, total: int) -> None:
        nonlocal last
        if done < total and time.monotonic() - last >= SPOKEN_EVERY_S:
            last = time.monotonic()
            say(f"{what}: {done:,} of {total:,}")

    return on_progress
