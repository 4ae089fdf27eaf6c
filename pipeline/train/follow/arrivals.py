"""Which stores of a cache have come, and the rounds of a training that follows it.

`follow.json` of a run lists the rounds: some steps each, which draw from all stores that had come
until then. A round is written down before its first step and never changed, so that a training that
was stopped goes on with the windows that it would have drawn, and one that is begun with a copy of
the file draws the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator

from pipeline.cache.cache import Cache
from pipeline.cache.corruption import require_valid
from pipeline.cache.leases import holders
from pipeline.cache.receipts import Receipt
from pipeline.cache.storage.local import write_atomically
from pipeline.config.json_files import read_json, sealed_json
from pipeline.config.plugins import Settings
from pipeline.errors import count_text
from pipeline.train.distributed import Ranks

FOLLOW_FILE = "follow.json"
FOLLOW_FORMAT = 1
AGAIN = "train again into another --out"
LOOK_S = 1.0
"""Seconds between two looks at a cache that is waited for."""
SAY_S = 60.0
"""Seconds between two sentences on what is waited for."""


class Round(Settings):
    """Some steps that draw from the same stores."""

    step: int = Field(ge=0)
    """The first of them."""
    steps: int = Field(ge=1)
    stores: tuple[int, ...]
    """Those that have come since the round before."""
    windows: int = Field(ge=0)
    """Windows of an epoch over all stores that have come."""
    of: int = Field(ge=1)
    """Windows of an epoch over the whole cache, as far as was known."""

    @property
    def stop(self) -> int:
        """The step after its last one."""
        return self.step + self.steps


class Rounds(Settings):
    """The content of follow.json."""

    format_version: int
    windows: int = Field(ge=1)
    """Windows of an epoch over the whole cache, as far as was known when training began."""
    rounds: tuple[Round, ...] = ()
    checksum: str | None = None
    """SHA-256 of this file, see `sealed_json`."""

    @model_validator(mode="after")
    def _one_after_the_other(self) -> Rounds:
        stop, seen = 0, set[int]()
        for number, each in enumerate(self.rounds):
            if each.step != stop:
                raise ValueError(f"round {number} begins at step {each.step}, wanted {stop}")
            if seen & {*each.stores}:
                raise ValueError(f"round {number} has a store that came before")
            stop, seen = each.stop, seen | {*each.stores}
        return self

    @classmethod
    def read(cls, run: Path) -> Rounds | None:
        """Those of a run folder; None where it has none. Raises BadInput where they are
        damaged."""
        file = run / FOLLOW_FILE
        if not file.is_file():
            return None
        return read_json(cls, file, AGAIN, range(FOLLOW_FORMAT, FOLLOW_FORMAT + 1))

    def write(self, run: Path) -> None:
        """Into a run folder; the file is whole or as it was."""
        write_atomically(run / FOLLOW_FILE, sealed_json(self))


class Arrivals:
    """The stores of a cache that have come, as all processes of a training see them."""

    def __init__(self, cache: Cache, ranks: Ranks, say: Callable[[str], object]) -> None:
        self.cache = cache
        """As of the last look."""
        self.ranks, self.say = ranks, say
        self._receipts: dict[int, Receipt] = {}
        self._said_s = -math.inf

    def look(self) -> set[int]:
        """The stores that are there now for every process. Those that are new are checked: raises
        BadInput where one is damaged."""
        planned = np.array(list(self.cache.plan), np.int64)
        here = np.isin(planned, self.cache.missing_stores(), invert=True)
        # On a network file system one machine may see a file later than another.
        seen = self.ranks.gathered({"here": here.astype(np.uint8)})
        stores = set(planned[np.all([each["here"] for each in seen], axis=0)].tolist())
        new = {store: self.cache.receipt(store) for store in stores - self._receipts.keys()}
        if new:
            self._receipts |= new
            require_valid(self._with_receipts(new))
            self.cache = self._with_receipts(self._receipts)
        return stores

    def _with_receipts(self, receipts: dict[int, Receipt]) -> Cache:
        """The cache as if these were its only stores."""
        cache = Cache(self.cache.storage)
        cache.receipts = dict(sorted(receipts.items()))
        return cache

    def wait(self, reason: str) -> None:
        """Sleeps until it is time for another look; says now and then what it is for."""
        if self.ranks.is_first and time.monotonic() - self._said_s >= SAY_S:
            self._said_s = time.monotonic()
            there, planned = len(self._receipts), count_text(len(self.cache.plan), "store")
            who = "" if holders(self.cache.storage) else ", which nobody is filling"
            self.say(f"waiting for {self.cache.name}{who}: {there} of {planned}; {reason}")
        time.sleep(LOOK_S)
