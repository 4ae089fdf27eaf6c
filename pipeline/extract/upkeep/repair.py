"""Damaged stores of a cache, made anew: they and no others, from the videos or from the cache that
they were derived from.

Whatever is needed for that is looked at first, so that nothing is removed that could not be made
again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.cache.cache import Cache, neighbours
from pipeline.cache.commit import forget_store, parted_of, unwritable
from pipeline.cache.corruption import check_store
from pipeline.cache.layout import lease_file, store_name
from pipeline.cache.leases import Leases
from pipeline.cache.parts.parted import PartedCache
from pipeline.cache.receipts import Receipt
from pipeline.cache.storage.local import PARTIAL
from pipeline.cache.verify import Verification, advice, verify_cache
from pipeline.device import chosen
from pipeline.errors import BadInput
from pipeline.extract.derive import Derivation, OnFrames
from pipeline.extract.execution import Execution
from pipeline.extract.reuse import reusable_caches
from pipeline.extract.worker import fill, load_encoder


@dataclass(frozen=True)
class RepairResult:
    """The stores that a repair has made anew, and the state of the cache after it."""

    stores: list[int]
    """Numbers of the stores that were made anew."""
    changed: list[int]
    """Stores made anew whose bytes are not those that the lost receipt vouched for: they come from
    another device or from other videos."""
    failures: dict[str, str]
    """Video of these stores that failed now -> reason."""
    removed: list[str]
    """Files and folders that did not belong there."""
    after: Verification
    """A verification of the stores that had been damaged."""


def repair(
    verification: Verification,
    root: Path | None = None,
    source: Cache | None = None,
    device: torch.device | None = None,
    decoders: int = 1,
    on_frames: OnFrames | None = None,
) -> RepairResult:
    """Mends what `verify_cache` found.

    `root`: where the videos are now; `source`: of a derived cache, the one that it comes from.
    Raises BadInput, having changed nothing, where what is needed is not there.
    """
    cache = verification.cache
    if verification.cache_problems:
        file, problem = next(iter(verification.cache_problems.items()))
        raise BadInput(
            f"{cache}/{file} cannot be mended from stores: {problem}", advice(cache, file)
        )
    redo = list(
        dict.fromkeys(damage.store for damage in verification.damage if damage.kind != "stray")
    )
    before = {store: receipt for store in redo if (receipt := _readable(cache, store))}
    make = _maker(cache, redo, root, source, device, decoders, on_frames) if redo else None
    try:
        if redo:  # whoever makes them anew takes leases: where that cannot be, nothing is removed
            cache.storage.create(lease_file("repair"), b"{}")
            cache.storage.remove(lease_file("repair"))
        removed = _clear(verification, redo)
        for store in redo:
            forget_store(cache, store)
            cache.storage.remove(store_name(store))
        if make:
            make()
    except OSError as error:
        raise unwritable(cache, error) from error
    repaired = Cache(cache.storage)
    if (parted := parted_of(repaired)) is not None and not repaired.missing_stores():
        PartedCache(parted).mark(int(repaired.name))
    receipts = {store: repaired.receipt(store) for store in redo}
    return RepairResult(
        stores=redo,
        changed=[
            store for store, receipt in before.items() if receipt.files != receipts[store].files
        ],
        failures={
            video: failure.reason
            for receipt in receipts.values()
            for video, failure in receipt.incomplete.items()
        },
        removed=removed,
        after=verify_cache(repaired, verification.stores),
    )


def find_derivation_source(cache: Cache) -> Cache:
    """The cache that one is derived from, if it lies beside it. Raises BadInput."""
    for other in neighbours(cache):
        is_source = other.fingerprint == cache.header.derived_from
        if is_source and other.has_videos_of(cache):
            return other
    raise BadInput(
        f"{cache} was derived from the cache {cache.header.derived_from}, which is not in "
        f"{cache.storage.parent}",
        "say where: --source CACHE",
    )


def _readable(cache: Cache, store: int) -> Receipt | None:
    try:
        return cache.receipt(store)
    except BadInput:
        return None


def _maker(
    cache: Cache,
    stores: list[int],
    root: Path | None,
    source: Cache | None,
    device: torch.device | None,
    decoders: int,
    on_frames: OnFrames | None,
) -> Callable[[], object]:
    """A function that writes the stores, to be called once they are removed. Raises BadInput where
    the videos, the encoder or the source that it needs are not there."""
    if cache.header.derived_from:
        derivation = _derivation(cache, source or find_derivation_source(cache), stores)

        def derive() -> None:
            with Leases(cache.storage) as leases:
                derivation.fill(cache, leases, set(stores), on_frames)

        return derive
    device = chosen(device)
    encoder = load_encoder(cache, device)
    folder = root or Path(cache.header.root)
    sources = {video.video_id: video.source for video in cache.manifest.videos}
    needed = [sources[video] for store in stores for video in cache.plan[store]]
    lost = [name for name in needed if not (folder / name).exists()]
    if lost:
        raise BadInput(
            f"{len(lost)} of the {len(needed)} videos of the damaged stores are not in {folder}, "
            f"the first is {lost[0]}",
            "say where the videos are: --root DIR",
        )
    on_progress = (
        (lambda state: on_frames(state.frames, state.frames_planned)) if on_frames else None
    )
    how = Execution(device, decoders, on_progress=on_progress)

    def encode() -> None:
        fill(
            [(cache, encoder, reusable_caches(cache))],
            cache.manifest.videos,
            folder,
            how,
            only=set(stores),
        )

    return encode


def _derivation(cache: Cache, source: Cache, stores: list[int]) -> Derivation:
    """Refuses a source that is another, or damaged where it is needed."""
    if source.fingerprint != cache.header.derived_from:
        raise BadInput(
            f"{cache} was derived from the cache {cache.header.derived_from}, {source} is "
            f"{source.fingerprint}",
            "say where that one is: --source CACHE",
        )
    if not source.has_videos_of(cache):
        raise BadInput(
            f"{source} is of other videos than {cache}, or of other clips of them",
            "say where the one is that it was derived from: --source CACHE",
        )
    needed = {video for store in stores for video in cache.plan[store]}
    for store, planned in source.plan.items():
        if not needed.isdisjoint(planned) and (problems := check_store(source, store)):
            file, problem = next(iter(problems.items()))
            raise BadInput(
                f"{source} is damaged itself: {store_name(store)}/{file}: {problem}",
                f"mend it first: stillframe verify {source} --repair",
            )
    return Derivation(source, cache.cache_spec)


def _clear(verification: Verification, redo: list[int]) -> list[str]:
    """Removes what a kill left over, and files that no receipt knows in stores that are otherwise
    sound."""
    cache = verification.cache
    removed = [name for name in verification.orphans if name.endswith(PARTIAL)]
    removed += [
        f"{store_name(damage.store)}/{damage.file}"
        for damage in verification.damage
        if damage.store not in redo
    ]
    for name in removed:
        cache.storage.remove(name)
    return removed
