"""One worker of an extraction: fills whatever stores of some caches are missing and not being
filled by others.

Any number of workers may be at work on the same caches, started together or one after the other, on
any machines that share the place of the caches and the folder of the videos. They meet only in
leases and receipts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from contextlib import ExitStack, nullcontext
from itertools import chain
from pathlib import Path

import torch

from pipeline.cache.cache import Cache
from pipeline.cache.commit import clear_finished, unwritable
from pipeline.cache.leases import Leases, claim_units
from pipeline.errors import BadInput
from pipeline.extract.encode import CacheTarget, Extraction, TargetStore, WorkUnit
from pipeline.extract.execution import DecodingJob, Execution
from pipeline.extract.progress import Progress
from pipeline.extract.reuse import ReusableCache, reusable_caches
from pipeline.models.encoders.contract import EncoderPlugin, make_encoder, without_network
from pipeline.records import Video
from pipeline.video.on_device import identity_of_decoder


class ExtractionJob(DecodingJob):
    """The job of every worker of an extraction."""

    caches: tuple[str, ...]
    """Addresses of the caches, which exist already. One decode of a video serves all of them."""
    root: str
    """Folder of the videos."""

    def _work(self, index: int) -> None:
        how = self.execution(index)
        caches = [Cache(address) for address in self.caches]
        targets = [
            (cache, load_encoder(cache, how.here, is_users_spec=True), reusable_caches(cache))
            for cache in caches
        ]
        fill(targets, caches[0].manifest.videos, Path(self.root), how)


def fill(
    to_fill: Sequence[tuple[Cache, EncoderPlugin, Sequence[ReusableCache]]],
    videos: Sequence[Video],
    root: Path,
    how: Execution,
    only: Collection[int] | None = None,
    *,
    waits: bool = True,
) -> Progress:
    """Brings caches, each with its encoder and what others give it, to completion with all other
    workers.

    `root`: folder of the videos. `only`: no other stores than these. `waits`: for what others are
    at; if not, their stores may be missing in the end. Returns what was done here.
    """
    caches = [cache for cache, _, _ in to_fill]
    for cache, encoder, _ in to_fill:
        if _missing(cache, only):
            encoder.prepare(cache.cache_spec.store.batch_frames)
    expected = sum(
        sum(cache.plan[store].values()) for cache in caches for store in _missing(cache, only)
    )
    progress = Progress(expected)
    try:
        with ExitStack() as stack:
            targets = [
                CacheTarget(cache, encoder, stack.enter_context(Leases(cache.storage)), reusables)
                for cache, encoder, reusables in to_fill
            ]
            # More than once, where another worker took a store over from this one and was lost in
            # its turn.
            while units := work_units(targets, only):
                extraction = Extraction(videos, root, how, progress)
                extraction.run(claim_units(units, extraction.stop, waits=waits))
                if not waits:
                    break
        for cache in caches:
            if not cache.missing_stores():  # nobody else is at work on it
                clear_finished(cache)
    except OSError as error:
        raise unwritable(", ".join(map(str, caches)), error) from error
    return progress


def work_units(targets: Sequence[CacheTarget], only: Collection[int] | None) -> list[WorkUnit]:
    """The missing stores of some caches, grouped so that one decode of each video serves all of
    them.

    Stores of different caches end at different videos. A unit is a store of the cache with the
    fewest of them, and those stores of the others that begin in it: few videos, at the borders, are
    decoded twice. `only`: no other stores than these.
    """
    widest = min((target.cache for target in targets), key=lambda cache: len(cache.plan))
    # The stores of a plan hold the videos in the manifest's order, whatever their borders.
    index = {video_id: number for number, video_id in enumerate(chain(*widest.plan.values()))}

    def start(cache: Cache, store: int) -> int:
        return index[next(iter(cache.plan[store]))]

    bounds = sorted(start(widest, store) for store in widest.plan)
    units: list[WorkUnit] = [[] for _ in bounds]
    for target in targets:
        for store in _missing(target.cache, only):
            unit = units[bisect_right(bounds, start(target.cache, store)) - 1]
            unit.append(TargetStore(target, store))
    return _early([unit for unit in units if unit], widest)


def _early(units: list[WorkUnit], cache: Cache) -> list[WorkUnit]:
    """Units in an order in which training can begin on the first of them, see
    `pipeline.train.follow`: those that bring the first clip of some label of some split, then the
    others, each far from those before it in the manifest."""
    kinds_of: dict[str, set[tuple[str, str | None]]] = {}
    for clip in cache.manifest.clips:
        kinds_of.setdefault(clip.video_id, set()).add((clip.split, clip.label))
    seen: set[tuple[str, str | None]] = set()
    first: list[WorkUnit] = []
    rest: list[WorkUnit] = []
    for number in all_over(len(units)):
        unit = units[number]
        kinds = {
            kind
            for target in unit
            for video_id in target.cache.plan[target.store]
            for kind in kinds_of.get(video_id, ())
        }
        (rest if kinds <= seen else first).append(unit)
        seen |= kinds
    return first + rest


def all_over(count: int) -> list[int]:
    """0 to count - 1 in the order of their bits read backwards, so that the first of them lie all
    over (van der Corput, 1935): of eight 0, 4, 2, 6, 1, 5, 3, 7."""
    bits = max(1, (count - 1).bit_length())
    backwards = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(1 << bits))
    return [number for number in backwards if number < count]


def _missing(cache: Cache, only: Collection[int] | None) -> list[int]:
    return [store for store in cache.missing_stores() if only is None or store in only]


def load_encoder(
    cache: Cache, device: torch.device, *, is_users_spec: bool = False
) -> EncoderPlugin:
    """The encoder of a cache, as its spec names it. It is fetched from the hub only if that is the
    spec that the user gave. Raises BadInput where it is not the encoder that the cache was begun
    with."""
    with nullcontext() if is_users_spec else without_network():
        encoder = make_encoder(cache.cache_spec, device)
    if encoder.identity != cache.header.encoder:
        raise BadInput(
            f"encoder '{cache.cache_spec.encoder.name}' is not the one that {cache} was begun "
            "with: "
            "weights or configuration differ",
            "give every worker the same files, or extract again",
        )
    decoder = identity_of_decoder(cache.cache_spec.frames.decoder, device)
    if decoder != cache.header.decoder:
        raise BadInput(
            f"the decoder here is {decoder}, {cache} was begun with {cache.header.decoder}",
            "give every worker the same one, or extract again",
        )
    return encoder
