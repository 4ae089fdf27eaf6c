"""Work whose time is kept step by step."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Timed:
    """Work whose time is kept by step."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Of each step; of steps that overlap, the work done, waiting left out."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            with self.lock:
                self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - begin
