"""Reads parts of shard files: from memory where they are there, else from the disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import BinaryIO

import google_crc32c
import numpy as np

from pipeline.cache.shard.direct import copy_direct
from pipeline.cache.shard.format import CRC_BYTES, aligned_empty
from pipeline.cache.shard.page_cache import FilePart, announce, copy_resident, resident
from pipeline.cache.storage.contract import Span

FIRST_STEP, STEP = 4 << 10, 128 << 10
"""Bytes of the first of a run of reads, and the most of one. The kernel takes the run for a
sequential read: it reads ahead, in large pages that are also copied faster ever after, and they
grow from the size of the first read on. A whole window at once is a random read to it, at half the
speed, and so is what `madvise` and `posix_fadvise` ask for."""
LEAST_GAP = 64 << 10
"""Bytes between two stretches of a file that are worth a request to a disk of its own."""


def chunk_checksum(file: BinaryIO, start: int, length: int) -> tuple[int, int]:
    """CRC-32C of the content of the chunk at `start` of an open shard, and the one that was written
    after it; `length` counts both. Raises EOFError, OSError."""
    chunk_B = resident(file, start, start + length)
    if chunk_B is None:
        chunk_B = np.empty(length, np.uint8)
        read_parts(file, [(start, chunk_B)])
    content = google_crc32c.value(chunk_B[:-CRC_BYTES])
    return content, int.from_bytes(chunk_B[-CRC_BYTES:].tobytes(), "little")


def read_parts(file: BinaryIO, parts: Sequence[FilePart], *, again: bool = False) -> bool:
    """Fills every part with the bytes at its offset. Returns whether all were in memory. `again`:
    they have been read before, so what is not there any more the memory has no room for, and it is
    read past the page cache. Raises EOFError, OSError."""
    if copy_resident(file, parts):
        return True
    if not (again and copy_direct(file, parts)):
        for part in parts:
            _read(file, part, FIRST_STEP)
    return False


def read_kept(
    file: BinaryIO,
    parts: Sequence[FilePart],
    row_bytes: int,
    kept_P: np.ndarray,
    *,
    again: bool = False,
) -> bool:
    """Fills every part with those tokens of its rows that are kept: rows of `row_bytes` follow each
    other from its offset on, and each holds as many tokens as the mask `kept_P`. Returns whether
    all rows were in memory. `again`: as for `read_parts`. Raises EOFError, OSError.

    From memory those tokens alone are copied, from a disk `spans_of` is read.
    """
    there = partial(resident, file)
    if copy_kept(there, parts, row_bytes, kept_P):
        return True
    places_K, part = np.flatnonzero(kept_P), part_of_row(row_bytes, kept_P)
    kept_bytes = len(places_K) * (row_bytes // len(kept_P))
    if part == (0, row_bytes):
        if again and _copy_kept_direct(file, parts, row_bytes, kept_P):
            return False
    else:  # where all is read, the kernel reads ahead by itself
        rows = [(offset, len(out) // kept_bytes) for offset, out in parts]
        announce(file, [span for each in rows for span in spans_of(*each, row_bytes, part)])
    first, end = part
    row_B = aligned_empty((row_bytes,), np.dtype(np.uint8))
    for offset, out in parts:
        for number, of_row in enumerate(out.reshape(-1, kept_bytes)):
            _read(file, (offset + number * row_bytes + first, row_B[first:end]))
            _take(row_B, of_row, places_K, row_bytes // len(kept_P))
    return False


def _copy_kept_direct(
    file: BinaryIO, parts: Sequence[FilePart], row_bytes: int, kept_P: np.ndarray
) -> bool:
    """Does what `read_kept` does by way of whole rows, past the page cache; False where that cannot
    be done."""
    places_K, token_bytes = np.flatnonzero(kept_P), row_bytes // len(kept_P)
    rows = [
        (offset, np.empty(len(out) // (len(places_K) * token_bytes) * row_bytes, np.uint8))
        for offset, out in parts
    ]
    if not copy_direct(file, rows):
        return False
    for (_, rows_B), (_, out) in zip(rows, parts, strict=True):
        _take(rows_B, out, places_K, token_bytes)
    return True


def copy_kept(
    there: Callable[[int, int], np.ndarray | None],
    parts: Sequence[FilePart],
    row_bytes: int,
    kept_P: np.ndarray,
) -> bool:
    """Does what `read_kept` does where `there`, which gives bytes [start, stop) of the file, says
    that they are in memory; else False, and nothing is done."""
    places_K = np.flatnonzero(kept_P)
    kept_bytes = len(places_K) * (row_bytes // len(kept_P))
    spans = [(offset, offset + len(out) // kept_bytes * row_bytes) for offset, out in parts]
    start = min([start for start, _ in spans])
    rows_B = there(start, max([stop for _, stop in spans]))
    if rows_B is None:
        return False
    for (first, stop), (_, out) in zip(spans, parts, strict=True):
        _take(rows_B[first - start : stop - start], out, places_K, row_bytes // len(kept_P))
    return True


def _take(rows_B: np.ndarray, out: np.ndarray, places_K: np.ndarray, token_bytes: int) -> None:
    """Copies the tokens at some places of rows, of which `out` has room for as many."""
    out_FKt = out.reshape(-1, len(places_K), token_bytes)
    tokens_FPt = rows_B.reshape(len(out_FKt), -1, token_bytes)
    # With "raise", numpy would fill a copy first.
    np.take(tokens_FPt, places_K, axis=1, out=out_FKt, mode="clip")


def part_of_row(row_bytes: int, kept_P: np.ndarray | None) -> Span:
    """The bytes of a row that a disk is asked for: all, since a page holds several tokens and the
    kernel reads ahead, except what comes before the first and after the last token that is kept,
    where that is much."""
    if kept_P is None or row_bytes < LEAST_GAP:
        return 0, row_bytes
    places_K, token_bytes = np.flatnonzero(kept_P), row_bytes // len(kept_P)
    first, end = int(places_K[0]) * token_bytes, (int(places_K[-1]) + 1) * token_bytes
    return (first, end) if row_bytes - (end - first) >= LEAST_GAP else (0, row_bytes)


def spans_of(offset: int, rows: int, row_bytes: int, part: Span) -> list[Span]:
    """Bytes of a shard that a disk is asked for where a part of each of so many rows is read, which
    follow each other from `offset` on: one span where that is all of them."""
    first, end = part
    if end - first == row_bytes:
        return [(offset, offset + rows * row_bytes)]
    begins = range(offset, offset + rows * row_bytes, row_bytes)
    return [(begin + first, begin + end) for begin in begins]


def _read(file: BinaryIO, part: FilePart, first_step: int = STEP) -> None:
    """Fills a part with the bytes at its offset. Raises EOFError, OSError."""
    (offset, out), done = part, 0
    while done < len(out):
        step = min(max(first_step, 3 * done), STEP)
        got = os.preadv(file.fileno(), [out[done : done + step].data], offset + done)
        if got == 0:
            raise EOFError(f"ends before byte {offset + len(out)}")
        done += got
