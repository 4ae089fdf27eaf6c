"""MPEG transport streams: whether packets are missing inside pictures, or recordings merely joined.

Every packet of 188 bytes counts on from the one before it. The counter jumps where packets were
lost, and also where two recordings were joined, as libav does not distinguish: there the first
packet begins a picture at which a player may begin.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

SYNC = 0x47
PACKET_BYTES = 188
STEPS = (188, 192, 204)
"""Bytes from packet to packet: plain, with a time before each (M2TS), with a checksum after."""
READ_PACKETS = 1 << 16


def is_torn(path: Path, pid: int, *, first_only: bool = False) -> bool:
    """Whether packets of the stream `pid` are missing or damaged anywhere but at a join; with
    `first_only`, whether some of its first picture are."""
    with path.open("rb") as file:
        begin = file.read(STEPS[-1] * 8)
        found = _layout(begin)
        if found is None:
            return True
        offset, step = found
        file.seek(offset)
        counter = -1
        while len(data := file.read(step * READ_PACKETS)) >= PACKET_BYTES:
            whole = (len(data) - PACKET_BYTES) // step + 1
            data = data.ljust(whole * step, b"\0")
            packets = np.frombuffer(data, np.uint8, whole * step).reshape(whole, step)
            torn, counter = _torn(packets, pid, counter, first_only)
            if torn or first_only:
                return torn
    return False


def _layout(begin: bytes) -> tuple[int, int] | None:
    """Where the first packet begins, and the bytes from packet to packet."""
    for step in STEPS:
        for offset in range(step):
            marks = begin[offset::step][:5]
            if len(marks) == 5 and set(marks) == {SYNC}:
                return offset, step
    return None


def _torn(packets_NB: np.ndarray, pid: int, counter: int, first_only: bool) -> tuple[bool, int]:
    """Whether anything is missing in N packets that follow one with this counter (-1: none), and
    the last counter."""
    head = packets_NB[:, :6].astype(np.int64)
    head = head[((head[:, 1] & 0x1F) << 8 | head[:, 2]) == pid]
    begins = np.cumsum(head[:, 1] & 0x40 > 0)
    if first_only:
        head = head[: np.searchsorted(begins, 2) + 1]
    elif (packets_NB[:, 0] != SYNC).any():
        return True, counter
    if not len(head):
        return False, counter
    has_payload, has_adaptation = head[:, 3] & 0x10 > 0, head[:, 3] & 0x20 > 0
    flags = np.where(has_adaptation & (head[:, 4] > 0), head[:, 5], 0)
    counts = head[:, 3] & 0xF
    expected = (np.concatenate([[counter], counts[:-1]]) + has_payload) & 0xF
    jumps = (counts != expected) & (flags & 0x80 == 0)
    if counter < 0:
        jumps[0] = False
    begins_picture = (head[:, 1] & 0x40 > 0) & (flags & 0x40 > 0)
    damaged = head[:, 1] & 0x80 > 0
    return bool((damaged | (jumps & ~begins_picture)).any()), int(counts[-1])
