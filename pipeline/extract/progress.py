"""Progress of an extraction, and which of its steps sets the pace."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.cache.receipts import Receipt
from pipeline.timing import Timed


@dataclass
class Progress(Timed):
    """The work that an extraction has done so far; handed to `on_progress` after every batch."""

    frames_planned: int
    """From the headers of the files that are left to do, and of those that are done as many as they
    held: an estimate."""
    frames: int = 0
    store_bytes: int = 0
    """Of whole stores."""
    in_flight_bytes: int = 0
    """Written into stores that are not whole yet, before lossless compression."""
    stores: int = 0
    videos: int = 0
    started: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("decode", "encode", "write"), 0.0), kw_only=True
    )

    def add(self, receipt: Receipt, planned: int) -> None:
        """Counts a store of so many planned frames that another worker has finished."""
        self.learn(planned, receipt.frames)
        self.frames += receipt.frames
        self.videos += len(receipt.videos)
        self.stores += 1
        self.store_bytes += receipt.store_bytes
        for step, spent in receipt.seconds.items():
            self.seconds[step] = self.seconds.get(step, 0.0) + spent

    def learn(self, planned: int, held: int) -> None:
        """Puts the frames that were there in the place of those that were planned."""
        self.frames_planned += held - planned

    @property
    def frames_per_s(self) -> float:
        return self.frames / max(1e-9, time.perf_counter() - self.started)

    @property
    def eta_s(self) -> float:
        return max(0, self.frames_planned - self.frames) / max(1e-9, self.frames_per_s)

    def slowest(self, decoders: int) -> str:
        """The step that sets the pace: decoding is shared by `decoders` processes."""
        busy = self.seconds | {"decode": self.seconds["decode"] / decoders}
        return max(busy, key=lambda step: busy[step])


OnProgress = Callable[[Progress], None]
