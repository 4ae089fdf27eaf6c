"""Changes of a cache: it gets a place, is created, stores are committed or forgotten, leftovers are
cleared.

Whoever writes a store does so aside, syncs it, renames it, and vouches for it last, by its receipt.
So a kill at any byte loses at most the store in flight.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline.cache.cache import Cache
from pipeline.cache.layout import (
    CODEC_FILE,
    HEADER_FILE,
    LEASES,
    MANIFEST,
    RECEIPTS,
    STORES,
    mark_file,
    receipt_name,
    store_name,
    store_number,
)
from pipeline.cache.receipts import Header, Receipt
from pipeline.cache.storage.contract import Storage
from pipeline.cache.storage.local import PARTIAL, LocalFolder, sync
from pipeline.cache.storage.own_folders import REPLACE_LINK
from pipeline.config.json_files import sealed_json
from pipeline.datasets.manifest.manifest import PARTS, Manifest, read_origin
from pipeline.datasets.manifest.parts import PartedManifest
from pipeline.errors import BadInput, StillframeError, count_text

LONGEST_DATA_NAME = 40
"""Characters of a data set's name in that of a cache."""


def cache_names(
    spec_name: str, digits: str, data_name: str, manifest: Manifest | PartedManifest
) -> list[str]:
    """The names that the cache of a spec over a manifest may have in a folder, first choice first.

    The fingerprint `digits` knows no videos, so caches of several data sets have the same: the
    first to come is called by the spec alone, others have the name of their data set in it, and,
    where even that is the same, 8 digits of their manifest.
    """
    data = re.sub(r"[^A-Za-z0-9_.-]+", "_", data_name)[:LONGEST_DATA_NAME] or "data"
    middles = ("", f"{data}-", f"{data}-{manifest.digest[:8]}-")
    return [f"{spec_name}-{middle}{digits}" for middle in middles]


def data_name_of(cache: Cache) -> str:
    """The name of the data set in that of a cache; where it has none, that of the kind of data."""
    middle = cache.name.removeprefix(cache.spec["name"]).removesuffix(cache.fingerprint)
    return middle.strip("-") or cache.manifest.origin.dataset


def find_place(out: Storage, names: Sequence[str], manifest: Manifest) -> Storage:
    """The folder of the cache over `manifest` among `names` in `out`, or, where there is none yet,
    the first of them that is free.

    Raises BadInput where one of them is of the same videos in another state: what changed is told,
    and nothing is encoded again unasked.
    """
    free, others = [], []
    for storage in map(out.below, names):
        if storage.exists(PARTS):
            continue  # a cache in parts
        if not storage.exists(HEADER_FILE):
            free.append(storage)
            continue
        cache = Cache(storage)
        # Videos of the same names and labels have the same digest.
        if cache.header.manifest == manifest.digest and _has_videos_of(cache, manifest):
            require_same_manifest(cache, manifest)
            return storage
        others.append(cache)
    for cache in others:
        if _has_videos_of(cache, manifest):
            require_same_manifest(cache, manifest)
    if not free:
        raise BadInput(
            f"{', '.join(names)} in {out} are all of other videos than {manifest.folder}",
            "extract it into another --out, or give its folder a name of its own",
        )
    return free[0]


def _has_videos_of(cache: Cache, manifest: Manifest) -> bool:
    """Whether a cache is of some of the videos of a manifest: they have the same id, and their
    headers say the same, as far as it was written down."""
    origin = read_origin(cache.storage.local(MANIFEST))
    if cache.header.manifest == manifest.digest and (
        origin.videos_sha256 == manifest.origin.videos_sha256
    ):
        return True
    ours, theirs = manifest.facts, cache.manifest.facts
    planned = {video_id for videos in cache.plan.values() for video_id in videos}
    common = [video.video_id for video in manifest.videos if video.video_id in planned]
    if not ours or not theirs:
        return bool(common)
    return any(ours.get(video_id) == theirs.get(video_id) is not None for video_id in common)


def require_same_manifest(cache: Cache, manifest: Manifest) -> None:
    """Refuses to go on with a cache that was extracted from another manifest; says what differs.

    Raises BadInput.
    """
    if cache.header.manifest != manifest.digest:
        before, now = ({video.video_id for video in m.videos} for m in (cache.manifest, manifest))
        other_out = (
            "extract it into another --out; or, if only clips or labels changed, train with "
            "--manifest on the cache as it is"
        )
        raise BadInput(
            f"manifest {manifest.folder} changed after {cache} was extracted from it: "
            f"{count_text(len(now - before), 'video')} added, {len(before - now)} removed, "
            f"{len(now & before)} kept, "
            f"{len(manifest.clips)} clips now, {len(cache.manifest.clips)} then",
            f"nothing is to be extracted: the commands that read the cache take --manifest "
            f"{manifest.folder}"
            if now <= before
            else other_out,
        )
    # The digest is that of clips and truth, which may have the same seconds by another clock.
    has_seconds = manifest.has_targets or any(
        clip.start_s or clip.stop_s is not None for clip in manifest.clips
    )
    cached = read_origin(cache.storage.local(MANIFEST)).clock
    if has_seconds and manifest.origin.clock != cached:
        raise BadInput(
            f"manifest {manifest.folder} counts seconds by the clock '{manifest.origin.clock}', "
            f"the copy in {cache} by '{cached}'",
            "train with --manifest on the cache as it is, or extract it into another --out",
        )


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
    if (parted := parted_of(cache)) is not None:  # its part is not finished now
        parted.remove(mark_file(cache.name))
    cache.storage.remove(receipt_name(store))


def parted_of(cache: Cache) -> Storage | None:
    """Where the cache in parts lies of which this is a part; None where it is none."""
    parent = cache.storage.parent
    return parent if cache.name.isdigit() and parent.exists(PARTS) else None


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
