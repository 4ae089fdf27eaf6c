"""Leases and receipts a second of one process, in a folder or an object store."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict

from pipeline.cache.layout import RECEIPTS, lease_file, receipt_name, store_number
from pipeline.cache.leases import Leases
from pipeline.cache.storage.open import open_storage


def lease_speed(where: str, count: int, receipt_bytes: int) -> list[tuple[str, float]]:
    """What -> how often a second, one after the other, each `count` times, in a folder of its own
    below `where`, which is removed again."""
    storage = open_storage(where).below(f"bench-{secrets.token_hex(4)}")
    leases = Leases(storage)
    rows: list[tuple[str, float]] = []

    def timed(what: str, call: Callable[[int], object], times: int = count) -> None:
        begin = time.perf_counter()
        for number in range(times):
            call(number)
        rows.append((what, times / (time.perf_counter() - begin)))

    def renew(number: int) -> None:
        """As the thread of the leases does it."""
        name = store_number(number)
        assert leases.holds(name)
        storage.write(lease_file(name), json.dumps(asdict(leases.holder) | {"beat": 1}).encode())

    receipt = b"{" + b" " * receipt_bytes + b"}"
    try:
        timed("leases taken", lambda number: leases.claim(store_number(number)))
        timed("leases renewed", renew)
        timed("leases given back", lambda number: leases.release(store_number(number)))
        timed("receipts written", lambda number: storage.write(receipt_name(number), receipt))
        timed("receipts read", lambda number: storage.read(receipt_name(number)))
        timed("receipts asked for", lambda number: storage.exists(receipt_name(number)))
        lists = max(1, count // 100)
        timed("receipts listed", lambda _: storage.names(RECEIPTS), lists)
        rows[-1] = ("receipts listed", rows[-1][1] * count)
    finally:
        for name in storage.names(""):
            storage.remove(name)
    return rows
