"""Damage of a cache's stores is found by comparing files with receipts and chunks with checksums,
and grouped where there is much of it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from pipeline.cache.cache import Cache
from pipeline.cache.codecs.contract import fitted_to
from pipeline.cache.layout import (
    HEADER_FILE,
    VIDEO_STARTS,
    VIDEO_STOPS,
    ChunkFile,
    receipt_name,
    shard_file,
    small_arrays,
    store_name,
)
from pipeline.cache.receipts import Receipt
from pipeline.cache.storage.contract import Storage
from pipeline.cache.store import CONTENT, StoreReader
from pipeline.config.cache_spec import fingerprint_of
from pipeline.errors import BadInput

CHECKERS = 8
"""Stores that are looked at together."""
SMALL_BYTES = 4_000_000
"""Shards of up to this size are compared with their checksums whenever a cache is used, as all
other files are."""
LINES = 20
"""Groups of damage of which a reader sees every one; of more, like is put with like."""
OTHER_BORDERS = "its rows are not those that the store says"
"""What is said of a receipt."""

DamageKind = Literal[
    "receipt", "gone", "missing", "size", "content", "swapped", "unreadable", "stray"
]
DAMAGE_TITLES: dict[DamageKind, str] = {
    "receipt": "wrong receipt",
    "gone": "folder is missing",
    "missing": "missing",
    "size": "other size than the receipt says",
    "content": CONTENT,
    "swapped": "has the content of something else",
    "unreadable": "cannot be read",
    "stray": "not in the receipt",
}
RowRange = tuple[int, int]
"""[start, stop) of a store."""


@dataclass(frozen=True)
class Damage:
    """Damage of one file of a store, or of its receipt."""

    store: int
    file: str
    """Below the store's folder; of a receipt, or where all of the store is concerned, below the
    cache."""
    kind: DamageKind
    problem: str
    rows: tuple[RowRange, ...]
    """Rows of the store that cannot be trusted."""
    videos: tuple[str, ...]
    """ids of the videos that these rows are of."""


@dataclass
class DamageGroup:
    """Damage of one kind, in one or more stores."""

    stores: list[int]
    kind: DamageKind
    problem: str
    files: list[str]
    frames: int
    """Rows that cannot be trusted."""
    videos: list[str]


def group_damage(damage: Iterable[Damage]) -> list[DamageGroup]:
    """Damage of the same files with the same problem together; where that leaves many groups, of
    the same kind."""
    files: dict[tuple[int, DamageKind, str], list[Damage]] = {}
    for item in damage:
        files.setdefault((item.store, item.kind, item.problem), []).append(item)
    grouped: dict[object, list[list[Damage]]] = {}
    for (_, kind, problem), store_damage in files.items():
        names = () if kind in ("gone", "receipt") else tuple(item.file for item in store_damage)
        grouped.setdefault((kind, problem, names), []).append(store_damage)
    if len(grouped) > LINES:
        grouped = {}
        for (_, kind, _), store_damage in files.items():
            grouped.setdefault(kind, []).append(store_damage)
    return [_group(stores) for stores in grouped.values()]


def count_damaged_frames(damage: Iterable[Damage]) -> int:
    """Rows that cannot be trusted, each counted once however many of its arrays are damaged."""
    rows: dict[int, list[RowRange]] = {}
    for item in damage:
        rows.setdefault(item.store, []).extend(item.rows)
    count = 0
    for ranges in rows.values():
        end = 0
        for start, stop in sorted(ranges):
            count += max(0, stop - max(start, end))
            end = max(end, stop)
    return count


def damaged_videos(damage: Iterable[Damage]) -> list[str]:
    """ids of the videos of which rows cannot be trusted, each once."""
    return list(dict.fromkeys(video for item in damage for video in item.videos))


def _group(stores: Sequence[Sequence[Damage]]) -> DamageGroup:
    damage = [item for store_damage in stores for item in store_damage]
    first = damage[0]
    problems = {item.problem for item in damage}
    return DamageGroup(
        stores=list(dict.fromkeys(item.store for item in damage)),
        kind=first.kind,
        problem=first.problem if len(problems) == 1 else DAMAGE_TITLES[first.kind],
        files=list(dict.fromkeys(item.file for item in damage)),
        frames=count_damaged_frames(damage),
        videos=damaged_videos(damage),
    )


def check_files(
    storage: Storage,
    store: str,
    files: Mapping[str, tuple[int, str]],
    only_sizes: Collection[str] = (),
) -> dict[str, str]:
    """Relative path -> what is wrong with it: missing, of another size, of other content, or not in
    the receipt.

    `only_sizes`: files whose content is not compared.
    """
    problems = {}
    sizes = storage.sizes(store)
    for relative, (size, digest) in files.items():
        if relative not in sizes:
            problems[relative] = "missing"
        elif sizes[relative] != size:
            problems[relative] = f"{sizes[relative]} bytes, receipt says {size}"
        elif relative not in only_sizes and storage.digest(f"{store}/{relative}") != digest:
            problems[relative] = CONTENT
    return problems | dict.fromkeys(sorted(sizes.keys() - files.keys()), "not in the receipt")


def check_store(cache: Cache, store: int) -> dict[str, str]:
    """File -> what is wrong with it, for one finished store: its receipt, and the content of every
    file."""
    try:
        receipt = cache.receipt(store)
    except BadInput as error:
        return {receipt_name(store): error.message}
    if has_other_borders(receipt):
        return {receipt_name(store): OTHER_BORDERS}
    return check_files(cache.storage, store_name(store), receipt.files)


def has_other_borders(receipt: Receipt) -> bool:
    """Whether the rows of videos in a receipt are other than those that its store holds. Nothing is
    read: what the store must hold follows from the rows, and so does its checksum."""
    rows_V2 = np.array(list(receipt.videos.values()), "<i8").reshape(-1, 2)
    files = small_arrays(())
    for name, rows_V in ((VIDEO_STARTS, rows_V2[:, 0]), (VIDEO_STOPS, rows_V2[:, 1])):
        data = rows_V.tobytes()
        wanted = len(data), hashlib.sha256(data).hexdigest()
        # Zarr writes no chunk that would hold zeros alone.
        if receipt.files.get(files[name]) != (wanted if rows_V.any() else None):
            return True
    return False


def header_problem(cache: Cache) -> str:
    """The problem of cache.json, "" if there is none: its fingerprint must follow from all that it
    says."""
    header = cache.header
    _ = cache.cache_spec, cache.arrays  # refuses what no plug-in understands or can lay out
    of_codec = fitted_to(cache.codec, header.manifest)
    follows = fingerprint_of(
        header.spec,
        header.encoder,
        header.decoder,
        header.format_version,
        of_codec,
        header.derived_from,
    )
    return (
        ""
        if follows == header.fingerprint
        else f"it says fingerprint {header.fingerprint}, but what it says gives {follows}"
    )


def require_valid(cache: Cache) -> None:
    """Refuses a cache of which a file is missing or of the wrong size, or one that holds no tokens
    (times, rows of videos, metadata) is damaged, or a receipt has other rows than its store.

    The tokens in larger files are compared chunk by chunk, when they are first read. Raises
    BadInput.
    """

    if problem := header_problem(cache):
        raise BadInput(
            f"{cache}/{HEADER_FILE} is damaged: {problem}",
            f"see how to mend it: stillframe verify {cache}",
        )

    def check(receipt: Receipt) -> dict[str, str]:
        if not cache.are_borders_compared and has_other_borders(receipt):
            return {receipt_name(receipt.store): OTHER_BORDERS}
        large = {
            file
            for file, (size, _) in receipt.files.items()
            if size > SMALL_BYTES
            and (chunk := ChunkFile.parse(file))
            and chunk.array in cache.arrays
        }
        storage, store = cache.place(receipt.store)
        problems = check_files(storage, store, receipt.files, large)
        return {f"{store}/{file}": problem for file, problem in problems.items()}

    with ThreadPoolExecutor(CHECKERS) as pool:  # many small files, which may be far away
        checked = zip(cache.receipts, pool.map(check, cache.receipts.values()), strict=True)
        problems = {store: files for store, files in checked if files}
    if problems:
        file, problem = next(iter(next(iter(problems.values())).items()))
        more = sum(map(len, problems.values())) - 1
        raise BadInput(
            f"cache {cache} is damaged: {file}: {problem}" + (f", and {more} more" if more else ""),
            f"see it all: stillframe verify {cache}; mend it: stillframe verify {cache} --repair",
        )
    _require_claims(cache)


def _require_claims(cache: Cache) -> None:
    """Compares what cache.json claims of a frame with the first store, whose files are those of its
    receipt: models are made for these numbers before a token is read. Raises BadInput."""
    for store, receipt in cache.receipts.items():
        if not receipt.frames:
            continue
        reader = cache.reader(store)
        for name, (shape, dtype) in cache.arrays.items():
            layout = reader.layout(name)
            held = sum(
                size for file, (size, _) in receipt.files.items() if file.startswith(f"{name}/c/")
            )
            is_whole = layout.compression == "zstd" or receipt.frames * layout.row_bytes <= held
            if (layout.shape, layout.dtype) != (shape, dtype) or not is_whole:
                raise BadInput(
                    f"{cache}/{HEADER_FILE} is damaged: it says that array '{name}' holds {dtype} "
                    f"{shape} of a frame, {reader} has {layout.dtype} {layout.shape} and "
                    f"{held:,} bytes for {receipt.frames} frames",
                    f"see it all: stillframe verify {cache}",
                )
        return


class BadChunk(NamedTuple):
    """Rows of a token array that cannot be trusted."""

    shard: str
    """File below the store."""
    first: int
    stop: int
    """Rows [first, stop)."""
    problem: str


def check_chunks(
    storage: Storage, store: str, array: str, only: int | None = None
) -> list[BadChunk]:
    """Chunks of a token array that are missing, cut off or other than their checksums say; reads
    all of it.

    `only`: number of the one shard to check. A shard whose index is lost is lost as a whole. In
    older stores chunks have no checksums: only the index is checked.
    """
    bad_chunks: list[BadChunk] = []
    reader = StoreReader(storage, store)
    layout, rows = reader.layout(array), reader.shape(array)[0]
    for number, first in enumerate(range(0, rows, layout.shard_frames)):
        if only not in (None, number):
            continue
        stop, shard = (
            min(first + layout.shard_frames, rows),
            shard_file(array, number, len(layout.shape)),
        )
        try:
            chunks = range(-(-(stop - first) // layout.chunk_frames))
            problems = reader.chunk_problems(array, number, chunks)
        except BadInput as error:
            bad_chunks.append(BadChunk(shard, first, stop, error.message))
            continue
        for begin, problem in zip(range(first, stop, layout.chunk_frames), problems, strict=True):
            if problem:
                bad_chunks.append(
                    BadChunk(shard, begin, min(begin + layout.chunk_frames, stop), problem)
                )
    return bad_chunks
