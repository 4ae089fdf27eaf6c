"""Those stores of a cache in parts that hold the videos of a manifest, read as one cache."""

from __future__ import annotations

from pathlib import Path

from pipeline.cache.cache import Cache
from pipeline.cache.corruption import OTHER_BORDERS, has_other_borders
from pipeline.cache.layout import receipt_name, store_name
from pipeline.cache.parts.parted import PartedCache, require_alike
from pipeline.cache.receipts import Header, Receipt
from pipeline.cache.storage.contract import Storage
from pipeline.cache.storage.open import open_storage
from pipeline.cache.store import StoreReader
from pipeline.datasets.manifest.manifest import PARTS, Manifest
from pipeline.errors import BadInput

STORES_OF_A_PART = 10**6
"""Store 17 of part 3 counts as store 3000017 of all."""


class ChosenStores(Cache):
    """A cache of the videos of `manifest` alone, whose stores lie in the parts of another one. What
    it holds in memory grows with these videos and their stores, and not with the others."""

    are_borders_compared = True

    def __init__(self, parted: PartedCache, manifest: Manifest) -> None:
        """Reads the plans of parts, one after the other until all videos that are wanted were
        found, and those receipts that speak of one. Raises BadInput where one is damaged, parts
        differ in more than their manifest, or no part is there."""
        self.storage = parted.storage
        self._manifest = manifest
        self._parts: dict[int, Cache] = {}
        wanted = {video.video_id for video in manifest.videos}
        left = len(wanted)
        plan: dict[int, dict[str, int]] = {}
        receipts: dict[int, Receipt] = {}
        first: Header | None = None
        for number in filter(parted.has_part, _likely_first(parted, manifest)):
            part = parted.part(number)
            first = first or part.header
            require_alike(part, first.fingerprint)
            stores = {
                store: {video_id: videos[video_id] for video_id in videos if video_id in wanted}
                for store, videos in part.plan.items()
                if not wanted.isdisjoint(videos)
            }
            if stores:
                missing = set(part.missing_stores())
                for store, videos in stores.items():
                    of_all = number * STORES_OF_A_PART + store
                    plan[of_all] = videos
                    if store not in missing:
                        receipts[of_all] = _of_videos(part, part.receipt(store), videos, of_all)
                self._parts[number] = part
                left -= sum(map(len, stores.values()))
            part.header = part.header.model_copy(update={"plan": {}})
            if not left:
                break
        if first is None:
            raise BadInput(f"{parted} has no part yet", "extract it first: stillframe extract")
        self.header = first.model_copy(update={"plan": dict(sorted(plan.items()))})
        self.receipts = dict(sorted(receipts.items()))
        self._readers = {}
        self._small_arrays = {}

    @property
    def manifest(self) -> Manifest:
        """The one that its videos were chosen by."""
        return self._manifest

    def is_its_own(self, manifest: Manifest) -> bool:
        """No: it is found where it was named."""
        return False

    def missing_stores(self) -> list[int]:
        return [store for store in self.plan if store not in self.receipts]

    def place(self, store: int) -> tuple[Storage, str]:
        part, of_part = self._part_of(store)
        return part.storage, store_name(of_part)

    def reader(self, store: int) -> StoreReader:
        part, of_part = self._part_of(store)
        return part.reader(of_part)

    def _part_of(self, store: int) -> tuple[Cache, int]:
        number, of_part = divmod(store, STORES_OF_A_PART)
        return self._parts[number], of_part


def _likely_first(parted: PartedCache, manifest: Manifest) -> list[int]:
    """Parts that were begun, first those that a manifest says that it was made from, then those
    that have clips of its splits and labels: where it is of few parts, the plans of the others need
    not be read."""
    digests: set[str] = set()
    edits = [manifest.origin.made_by]
    while edits:
        if (edit := edits.pop()) is not None:
            digests |= {source.digest for source in edit.sources}
            edits += [source.made_by for source in edit.sources]
    label_numbers = {label: number for number, label in enumerate(parted.index.labels)}
    labels = {label_numbers.get(label, -1) for label in manifest.labels}
    splits = set(manifest.splits)

    def is_unlikely(number: int) -> tuple[bool, bool]:
        part = parted.index.parts[number]
        has_label = not part.labels or not labels or not labels.isdisjoint(part.labels)
        return part.digest not in digests, splits.isdisjoint(part.splits) or not has_label

    return sorted(parted.begun(), key=is_unlikely)


def is_parted(address: Path | str) -> bool:
    """Whether there is a cache in parts at an address. Raises BadInput where it is no address."""
    return open_storage(address).exists(PARTS)


def open_cache(address: Path | str, manifest: Manifest | None) -> Cache:
    """The cache at an address; of one in parts the videos of `manifest`, which must be named.
    Raises BadInput."""
    storage = open_storage(address)
    if not is_parted(address):
        return Cache(storage)
    if manifest is None:
        raise BadInput(
            f"{storage} is a cache in parts, and nothing says which of its clips are wanted",
            "name them: stillframe manifest select DATA --split train --out NEW, then --manifest "
            "NEW",
        )
    return ChosenStores(PartedCache(storage), manifest)


def _of_videos(part: Cache, receipt: Receipt, videos: dict[str, int], store: int) -> Receipt:
    """What a receipt says of some videos, under the number that its store has among all. The rows
    of all videos are compared with the store before."""
    if has_other_borders(receipt):
        raise BadInput(
            f"{part}/{receipt_name(receipt.store)} is damaged: {OTHER_BORDERS}",
            f"only this store is redone by: stillframe verify {part} --repair",
        )
    return receipt.model_copy(
        update={
            "store": store,
            "videos": {video_id: receipt.videos[video_id] for video_id in videos},
            "failures": {
                video_id: failure
                for video_id, failure in receipt.failures.items()
                if video_id in videos
            },
            "content": {
                video_id: content
                for video_id, content in receipt.content.items()
                if video_id in videos
            },
        }
    )
