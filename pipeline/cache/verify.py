"""Verification of a cache: every file is compared with its checksum, and what is wrong is named
with the frames it hits.

A store is damaged where its files differ from its receipt, or its receipt from what the store says
of itself. What a rerun of single stores cannot mend (`cache.json`, the manifest's copy, what a
codec has learnt) is kept apart, as is what was left over by a kill and harms nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from pipeline.cache.cache import Cache, manifest_advice
from pipeline.cache.corruption import (
    DAMAGE_TITLES,
    OTHER_BORDERS,
    Damage,
    DamageKind,
    RowRange,
    check_chunks,
    header_problem,
)
from pipeline.cache.layout import (
    CODEC_FILE,
    FINGERPRINT,
    HEADER_FILE,
    LEASES,
    LOG_FILE,
    MANIFEST,
    RECEIPTS,
    STORES,
    TIMES,
    VIDEO_IDS,
    VIDEO_STARTS,
    VIDEO_STOPS,
    ChunkFile,
    frames_per_shard,
    metadata_file,
    receipt_name,
    required_files,
    small_arrays,
    small_shape,
    store_name,
)
from pipeline.cache.leases import holders, lease_of
from pipeline.cache.receipts import Receipt
from pipeline.cache.storage.local import PARTIAL
from pipeline.cache.store import StoreReader
from pipeline.datasets.manifest.manifest import TARGETS, Manifest
from pipeline.errors import BadInput

THREADS = 8
"""Files that are read at once: hashing leaves the interpreter to others."""

OnBytes = Callable[[int, int], None]
"""(bytes done, bytes to do)"""


@dataclass(frozen=True)
class Verification:
    """Result of checking every byte of a cache, or of some of its stores."""

    cache: Cache
    checked: int
    """Stores that were looked at."""
    missing: list[int]
    """Stores that are not extracted yet."""
    cache_problems: dict[str, str]
    """File -> what is wrong with it, where it belongs to no store."""
    damage: list[Damage]
    """Store by store."""
    orphans: dict[str, str]
    """File or folder that does not belong there -> why. Nothing reads it."""

    @property
    def stores(self) -> list[int]:
        """Numbers of the damaged stores."""
        return list(dict.fromkeys(item.store for item in self.damage))

    @property
    def is_valid(self) -> bool:
        """Whether nothing that is read is damaged; orphans are not read."""
        return not self.damage and not self.cache_problems


def verify_cache(
    cache: Cache, stores: Collection[int] | None = None, on_bytes: OnBytes | None = None
) -> Verification:
    """Checks every byte of a cache, or of some of its stores. Changes nothing."""
    missing = cache.missing_stores()
    cache_problems = _cache_problems(cache)
    if HEADER_FILE in cache_problems:  # then nothing can be held against it
        return Verification(cache, 0, missing, cache_problems, [], {})
    done, requested = cache.plan.keys() - missing, set(cache.plan if stores is None else stores)
    chosen = [store for store in cache.plan if store in done and store in requested]
    receipts: dict[int, Receipt] = {}
    damage: list[Damage] = []
    for store in done:
        try:
            receipts[store] = cache.receipt(store)
        except BadInput as error:
            if store in requested:
                problem = error.message.removeprefix(
                    f"{cache}/{receipt_name(store)} "
                ).removeprefix("is damaged: ")
                damage.append(_wrong_receipt(cache, store, problem))
    with _Pool() as pool:
        readable = [store for store in chosen if store in receipts]
        read_stores = _read(cache, readable, receipts, pool, on_bytes)
    contents = _ContentIndex(receipts)
    for store_files in read_stores:
        damage += _damage_of(cache, store_files, receipts[store_files.store], contents)
    damage.sort(key=lambda item: item.store)
    return Verification(cache, len(chosen), missing, cache_problems, damage, _orphans(cache))


# Files as they are


@dataclass
class _StoreFiles:
    """A store's folder as it is: by path relative to it, sizes in bytes, SHA-256, and why a file
    cannot be read (under "": the folder itself)."""

    store: int
    sizes: dict[str, int]
    digests: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


class _ContentIndex:
    """Index of all files that the receipts vouch for, by content: it tells what a file holds that
    is not where it belongs."""

    def __init__(self, receipts: Mapping[int, Receipt]) -> None:
        self.stores = {
            store: {file: sha for file, (_, sha) in receipt.files.items()}
            for store, receipt in receipts.items()
        }
        self.owners: dict[str, tuple[int, str]] = {}
        for store, files in self.stores.items():
            for file, sha in files.items():
                self.owners.setdefault(sha, (store, file))

    def store_of(self, files_there: _StoreFiles) -> int | None:
        """The store that has exactly these files; None where no receipt lists them."""
        owner = self.owners.get(files_there.digests.get(metadata_file(""), ""))
        return owner[0] if owner and self.stores[owner[0]] == files_there.digests else None


class _Pool(ThreadPoolExecutor):
    """Threads that do not go on with what is waiting when the caller is interrupted."""

    def __init__(self) -> None:
        super().__init__(THREADS, "verify")

    def __exit__(self, kind: object, *rest: object) -> None:
        self.shutdown(cancel_futures=kind is not None)


def _read(
    cache: Cache,
    stores: Sequence[int],
    receipts: Mapping[int, Receipt],
    pool: _Pool,
    on_bytes: OnBytes | None,
) -> list[_StoreFiles]:
    """Sizes of all files of the stores, and the checksum of each whose size is that of some file of
    the cache."""
    known_bytes = {size for receipt in receipts.values() for size, _ in receipt.files.values()}

    def list_files(store: int) -> _StoreFiles:
        try:
            return _StoreFiles(store, cache.storage.sizes(store_name(store)))
        except OSError as error:
            return _StoreFiles(store, {}, errors={"": error.strerror or str(error)})

    def digest(task: tuple[_StoreFiles, str]) -> int:
        files_there, file = task
        try:
            files_there.digests[file] = cache.storage.digest(
                f"{store_name(files_there.store)}/{file}"
            )
        except OSError as error:
            files_there.errors[file] = error.strerror or str(error)
        return files_there.sizes[file]

    all_files = list(pool.map(list_files, stores))
    tasks = [
        (files_there, file)
        for files_there in all_files
        for file, size in files_there.sizes.items()
        if size in known_bytes
    ]
    total, done = sum(files_there.sizes[file] for files_there, file in tasks), 0
    for size in pool.map(digest, tasks):
        done += size
        if on_bytes:
            on_bytes(done, total)
    return all_files


# Damage of a store


def _damage_of(
    cache: Cache, files_there: _StoreFiles, receipt: Receipt, contents: _ContentIndex
) -> list[Damage]:
    store = files_there.store

    def damage(file: str, kind: DamageKind, problem: str) -> Damage:
        rows = _rows_hit(cache, receipt, file) if kind != "stray" else ()
        return Damage(store, file, kind, problem, rows, _videos_of(receipt, rows))

    if not files_there.sizes:
        name, error = store_name(store), files_there.errors.get("")
        return [
            damage(
                name,
                "unreadable" if error else "gone",
                f"cannot be read: {error}" if error else DAMAGE_TITLES["gone"],
            )
        ]
    if (other := contents.store_of(files_there)) not in (None, store):
        return [damage(store_name(store), "swapped", f"has the content of store {other}")]
    problems = []
    for file, (size, sha) in receipt.files.items():
        if file not in files_there.sizes:
            problems.append(damage(file, "missing", "missing"))
        elif file in files_there.errors:
            problems.append(
                damage(file, "unreadable", f"cannot be read: {files_there.errors[file]}")
            )
        elif files_there.digests.get(file) != sha:
            kind, problem = _difference(
                contents, store, files_there.sizes[file], size, files_there.digests.get(file, "")
            )
            problems.append(damage(file, kind, problem))
    chunks = set(small_arrays(cache.views).values())
    unlisted = (
        _own_files(cache, receipt) | chunks & files_there.sizes.keys()
    ) - receipt.files.keys()
    problems += [
        _wrong_receipt(cache, store, f"it does not list {file}") for file in sorted(unlisted)
    ]
    strays = sorted(files_there.sizes.keys() - receipt.files.keys() - unlisted)
    problems += [damage(file, "stray", DAMAGE_TITLES["stray"]) for file in strays]
    if all(item.kind == "stray" or _is_shard(cache, item.file) for item in problems):
        problems += [
            _wrong_receipt(cache, store, problem) for problem in _contradictions(cache, receipt)
        ]
    return problems


def _difference(
    contents: _ContentIndex, store: int, size: int, expected_size: int, sha: str
) -> tuple[DamageKind, str]:
    if size and sha in contents.owners:
        other, file = contents.owners[sha]
        return "swapped", f"has the content of {file} of " + (
            f"store {other}" if other != store else "the same store"
        )
    if size == expected_size:
        return "content", DAMAGE_TITLES["content"]
    how = "empty" if not size else "truncated" if size < expected_size else "too long"
    return "size", f"{how}: {size} bytes, receipt says {expected_size}"


def _wrong_receipt(cache: Cache, store: int, problem: str) -> Damage:
    planned = cache.plan[store]
    return Damage(
        store,
        receipt_name(store),
        "receipt",
        problem,
        ((0, sum(planned.values())),),
        tuple(planned),
    )


def _own_files(cache: Cache, receipt: Receipt) -> set[str]:
    """The files that a store with that many rows must have."""
    shards = range(-(-receipt.frames // frames_per_shard(cache.cache_spec, cache.shape)))
    arrays = {name: len(shape) for name, (shape, _) in cache.arrays.items()}
    return required_files(arrays, len(shards), cache.views)


def _rows_hit(cache: Cache, receipt: Receipt, file: str) -> tuple[RowRange, ...]:
    """Rows of the store that are read through a file: those of a shard, or all of them."""
    chunk = ChunkFile.parse(file)
    if chunk is None or chunk.array not in cache.arrays:
        return ((0, receipt.frames),)
    number = chunk.indices[0]
    with suppress(BadInput):  # of a shard that can be read, what is damaged is told chunk by chunk
        if bad := check_chunks(cache.storage, store_name(receipt.store), chunk.array, number):
            return tuple((chunk.first, chunk.stop) for chunk in bad)
    frames = frames_per_shard(cache.cache_spec, cache.shape)
    start = number * frames
    return ((start, min(start + frames, receipt.frames)),)


def _is_shard(cache: Cache, file: str) -> bool:
    """Whether a file of a store holds rows of a token array, not metadata or a small array."""
    chunk = ChunkFile.parse(file)
    return chunk is not None and chunk.array in cache.arrays


def _videos_of(receipt: Receipt, rows: Sequence[RowRange]) -> tuple[str, ...]:
    return tuple(
        video_id
        for video_id, (first, end) in receipt.videos.items()
        if any(first < stop and start < end for start, stop in rows)
    )


def _contradictions(cache: Cache, receipt: Receipt) -> list[str]:
    """Contradictions of a receipt and the store that it vouches for, whose small arrays are
    sound."""
    try:
        reader = StoreReader(cache.storage, store_name(receipt.store))
        time_s, *bounds = (
            reader.small(name, small_shape(name, receipt.frames, len(receipt.videos)))
            for name in (TIMES, VIDEO_STARTS, VIDEO_STOPS)
        )
        shapes = {name: reader.shape(name) for name in cache.arrays}
        attributes = reader.attributes
    except BadInput as error:
        return [f"its store is not as it says: {error.message}"]
    bounds_of_video = zip(list(receipt.videos), np.stack(bounds, 1).tolist(), strict=True)
    rows = {video_id: tuple(pair) for video_id, pair in bounds_of_video}
    problems = []
    if attributes.get(VIDEO_IDS) != list(receipt.videos):
        problems.append("its videos are not those that the store says")
    if attributes.get(FINGERPRINT) != cache.fingerprint:
        problems.append(
            f"its store is of the cache {attributes.get(FINGERPRINT)}, wanted {cache.fingerprint}"
        )
    if rows != receipt.videos or len(time_s) != receipt.frames:
        problems.append(OTHER_BORDERS)
    if shapes != {name: (receipt.frames, *shape) for name, (shape, _) in cache.arrays.items()}:
        problems.append("the arrays of its store are not those of the cache")
    for video_id, failure in receipt.failures.items():
        start, stop = receipt.videos.get(video_id, (0, 0))
        until_s = float(time_s[stop - 1]) if stop > start else 0.0
        if (failure.frames_stored, failure.stored_until_s) != (stop - start, until_s):
            problems.append(
                f"what it says of the failed video {video_id} is not what the store holds"
            )
    return problems


# The cache itself


def _cache_problems(cache: Cache) -> dict[str, str]:
    """File -> what is wrong with it, for files that belong to no store."""
    try:
        problem = header_problem(cache)
    except BadInput as error:
        problem = error.message
    if problem:
        return {HEADER_FILE: problem}
    problems = cache.manifest_problems(cache.storage.below(MANIFEST))
    try:
        manifest = cache.manifest
        origin, targets = manifest.origin, f"{MANIFEST}/{TARGETS}"
        _ = manifest.facts, manifest.texts  # compares the files with their checksums
        # Read once: where cache.json vouches for the file, it has been compared with that already.
        _, vouched = cache.header.manifest_files.get(TARGETS, (0, ""))
        if (
            manifest.has_targets
            and targets not in problems
            and (vouched or cache.storage.digest(targets)) != origin.targets_sha256
        ):
            problems[targets] = DAMAGE_TITLES["content"]
        elif [video.video_id for video in manifest.videos] != [
            video for videos in cache.plan.values() for video in videos
        ]:
            problems[HEADER_FILE] = "its plan is not for the videos of its manifest"
    except BadInput as error:
        if not problems:
            problems[MANIFEST] = error.message
    try:
        _ = cache.codecs  # what a fitted codec has learnt is compared with its checksum on reading
    except BadInput as error:
        problems[CODEC_FILE] = error.message
    return problems


def advice(cache: Cache, file: str) -> str:
    """The hint on how to mend a file that belongs to no store."""
    if file.startswith(MANIFEST):
        return manifest_advice(cache)
    how = "derive" if cache.header.derived_from else "extract"
    return (
        f"begin the same {how} in another --out, stop it, and copy its {file} into {cache}: "
        "the same input gives the same file; then verify again"
    )


def _lease_over(partial: str) -> str:
    """The lease of whoever writes what has this name until it is finished: of the store, or of the
    plan."""
    stem = partial.removeprefix(".").partition(".")[0]
    return stem if stem.isdecimal() else "plan"


def _orphans(cache: Cache) -> dict[str, str]:
    """File or folder that nothing reads -> why it is there. What a living worker is writing does
    not count."""
    storage = cache.storage
    at_work = {name: holder for name, holder in holders(storage).items() if not holder.is_gone}
    files = {HEADER_FILE, *([CODEC_FILE] if cache.header.codec_sha256 else [])}
    contents = {
        "": files | {MANIFEST, STORES, RECEIPTS, LEASES, LOG_FILE},
        MANIFEST: set(Manifest.FILES),
        STORES: {store_name(store).partition("/")[2] for store in cache.plan},
        RECEIPTS: {receipt_name(store).partition("/")[2] for store in cache.plan},
    }
    orphans = {}
    for folder, belonging in contents.items():
        for name in storage.names(folder):
            if name in belonging or (name.endswith(PARTIAL) and _lease_over(name) in at_work):
                continue
            why = (
                "unfinished, and its writer is gone"
                if name.endswith(PARTIAL)
                else "does not belong here"
            )
            orphans[f"{folder}/{name}" if folder else name] = why
    for store in cache.missing_stores():
        if storage.names(store_name(store)) and lease_of(store) not in at_work:
            orphans[store_name(store)] = "without a receipt: it counts as not extracted"
    return orphans
