"""Changes of a cache: it is created, stores are committed or forgotten, leftovers are cleared.

Whoever writes a store does so aside, syncs it, renames it, and vouches for it last, by its receipt.
So a kill at any byte loses at most the store in flight.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from pathlib import Path

from pipeline.cache.cache import Cache
from pipeline.cache.layout import (
    CODEC_FILE,
    HEADER_FILE,
    LEASES,
    MANIFEST,
    RECEIPTS,
    STORES,
    receipt_name,
    store_name,
    store_number,
)
from pipeline.cache.receipts import Header, Receipt
from pipeline.cache.storage.contract import Storage
from pipeline.cache.storage.local import PARTIAL, LocalFolder, sync
from pipeline.cache.storage.own_folders import REPLACE_LINK
from pipeline.config.json_files import sealed_json
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import StillframeError


def create_cache(
    storage: Storage, header: Header, manifest: Manifest, learnt: bytes | None = None
) -> Cache:
    """Lays out an empty cache; cache.json comes last, so that a cache that opens is whole.

    `learnt` is the content of codec.safetensors, for a fitted codec.
    """
    staged = storage.stage(MANIFEST)
    for name in Manifest.FILES:
        if (manifest.folder / name).is_file():
            with (
                (manifest.folder / name).open("rb") as source,
                (staged / name).open("wb") as copy,
            ):
                shutil.copyfileobj(source, copy)
            sync(staged / name)
    header = header.model_copy(update={"manifest_files": _checksums(staged)})
    storage.publish(staged, MANIFEST)
    if learnt is not None:
        storage.write(CODEC_FILE, learnt)
        header = header.model_copy(update={"codec_sha256": hashlib.sha256(learnt).hexdigest()})
    storage.write(HEADER_FILE, sealed_json(header))
    return Cache(storage)


def _checksums(folder: Path) -> dict[str, tuple[int, str]]:
    """File of a folder -> bytes, sha256."""
    files = LocalFolder(folder)
    return {name: (size, files.digest(name)) for name, size in files.sizes("").items()}


def commit_store(cache: Cache, staged: Path, receipt: Receipt) -> None:
    """Makes a store that was written aside, with every file synced, exist, unless it does
    already."""
    if cache.has(receipt.store):  # a worker that took the store over was quicker
        shutil.rmtree(staged, ignore_errors=True)
        return
    cache.storage.publish(staged, store_name(receipt.store))
    if cache.header.has_checksums:
        receipt = receipt.model_copy(update={"header_sha256": cache.header_sha256})
    cache.storage.write(receipt_name(receipt.store), sealed_json(receipt))


def forget_store(cache: Cache, store: int) -> None:
    """Makes a store exist no longer, so that the next extraction redoes it."""
    cache.storage.remove(receipt_name(store))


def clear_finished(cache: Cache) -> None:
    """Removes the leases and partial files of a finished cache, at which nobody works any more."""
    for name in cache.storage.names(LEASES):
        if name.endswith((".json", PARTIAL)):
            cache.storage.remove(f"{LEASES}/{name}")
    for folder in (STORES, RECEIPTS, ""):
        _clear_partial(cache, folder, "")


def clear_partial(cache: Cache, store: int) -> None:
    """Removes what workers that are no more left of a store unfinished."""
    _clear_partial(cache, STORES, f"{store_number(store)}.")


def _clear_partial(cache: Cache, folder: str, stem: str) -> None:
    """Removes the partial files of a folder whose name begins with `stem`, after the dot that some
    have."""
    for name in cache.storage.names(folder):
        if name.endswith(PARTIAL) and name.removeprefix(".").startswith(stem):
            cache.storage.remove(f"{folder}/{name}" if folder else name)


def unwritable(what: object, error: OSError) -> StillframeError:
    """The error for a cache that cannot be written."""
    return StillframeError(
        f"cannot write {error.filename or what}: {error.strerror or error}",
        REPLACE_LINK
        if error.errno == errno.ELOOP
        else "finished stores are kept: free space or fix access, then rerun",
    )
