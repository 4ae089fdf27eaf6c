"""Seconds and memory with which work on a manifest in parts begins are measured: neither must grow
with the number of its parts."""

from __future__ import annotations

import hashlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline.cache.cache import Cache
from pipeline.cache.layout import (
    TIMES,
    VIDEO_STARTS,
    VIDEO_STOPS,
    mark_file,
    receipt_name,
    small_arrays,
)
from pipeline.cache.leases import CacheStore, Leases, claim_units
from pipeline.cache.parts.chosen import open_cache
from pipeline.cache.parts.parted import PartedCache, PartSummary
from pipeline.cache.parts.summary import parted_status
from pipeline.cache.receipts import TIME_BYTES, Content, Receipt
from pipeline.cli.bench.memory import peak_bytes
from pipeline.cli.bench.scale.startup import FPS, SIZE_PX, SPEC, Listed, listed_clip
from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec
from pipeline.config.json_files import sealed_json, to_json
from pipeline.datasets.manifest.edit import select, write_index
from pipeline.datasets.manifest.manifest import Manifest, write
from pipeline.datasets.manifest.parts import PartedManifest, part_name
from pipeline.extract import in_parts
from pipeline.extract.execution import Execution
from pipeline.extract.extract import load_encoders
from pipeline.video.probe import Probe

CPU = torch.device("cpu")
PLANNED = 20
"""Finished parts that a training finds."""


class Start(NamedTuple):
    """What it takes to begin something."""

    what: str
    clips: int
    parts: int
    seconds: float
    megabytes: float | None
    """Most memory beyond that of the program; None where the system does not tell."""


def start_in_parts(clips: int, rows: int) -> list[Start]:
    """A worker, its resumption, `status`, and the choice and opening of one part's worth of clips
    for a training, over a manifest of so many clips in parts of so many `rows`. Half of the parts
    are finished when work is resumed, and one is half done; of the finished ones `PLANNED` have
    plans and receipts, for the training to open, and the others marks alone."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_index(_parts(root / "data", clips, rows), root / "data")
        return start_over(root)


def start_over(root: Path) -> list[Start]:
    """`start_in_parts` over the manifest in `data` in a folder."""
    data, caches = root / "data", root / "caches"
    spec = plugins.validate(CacheSpec, SPEC, "bench")
    encoder = load_encoders([spec], CPU)[0][1]
    index = PartedManifest.load(data).index
    starts: list[Start] = []

    def timed(what: str, call: Callable[[], object]) -> None:
        begin = time.perf_counter()
        peak = peak_bytes(call, CPU)
        seconds = time.perf_counter() - begin
        megabytes = None if peak is None else peak / 1e6
        starts.append(Start(what, index.clips, len(index.parts), seconds, megabytes))

    def claim() -> None:
        """From nothing to the first store that is claimed, as `fill_parts` begins."""
        manifest = PartedManifest.load(data)
        cache = in_parts.open_parts(spec, manifest, caches, encoder, CPU)
        work = in_parts.PartsExtraction(cache, manifest, spec, encoder, Execution(CPU))
        number = next(in_parts.unfinished(cache, 0))
        part = work.open_part(number, manifest.part(number))
        with Leases(part.storage) as leases:
            units = [[CacheStore(part, leases, store)] for store in part.missing_stores()]
            next(claim_units(units, threading.Event()))

    timed("a worker begins", claim)
    manifest = PartedManifest.load(data)
    cache = in_parts.open_parts(spec, manifest, caches, encoder, CPU)
    _pretend_half(in_parts.PartsExtraction(cache, manifest, spec, encoder, Execution(CPU)))
    timed("a worker resumes", claim)
    timed("status", lambda: parted_status(PartedCache(cache.storage)))
    share = 1 / len(index.parts)
    timed("a share is selected", lambda: select(manifest, root / "chosen", share=share))
    chosen = Manifest.load(root / "chosen")
    timed("a training opens its stores", lambda: open_cache(cache.storage.address, chosen))
    return starts


def _parts(data: Path, clips: int, rows: int) -> Iterator[Manifest]:
    """The parts of a manifest, written one after the other."""
    facts = Probe(SIZE_PX, SIZE_PX, float(FPS), 0.0, 4.0, 4 * FPS, "h264")
    for number, first in enumerate(range(0, clips, rows)):
        listed = [listed_clip(clip) for clip in range(first, min(clips, first + rows))]
        video = data / "videos" / listed[0].source
        video.parent.mkdir(parents=True, exist_ok=True)
        video.touch()  # one of a part must be there
        yield write("startup", Listed(data / "videos", listed, facts), data / part_name(number))


def _pretend_half(work: in_parts.PartsExtraction) -> None:
    """Every other part has a mark, some of them all receipts; one more has every other receipt."""
    numbers = list(range(len(work.cache)))
    for number in numbers[1 + 2 * PLANNED :: 2]:
        _pretend_mark(work.cache, number, 0)
    for number in [*numbers[1::2][:PLANNED], 0]:
        part = work.open_part(number, work.manifest.part(number))
        is_done, stores = number != 0, list(part.plan)
        # The first is left out, so that a part of a single store still has something to claim.
        for store in stores if is_done else stores[1::2]:
            pretend_done(part, store)
        if is_done:
            _pretend_mark(work.cache, number, len(part.plan))


def _pretend_mark(cache: PartedCache, number: int, stores: int) -> None:
    facts = cache.index.parts[number]
    summary = PartSummary(
        stores=stores,
        stores_planned=stores,
        videos=facts.videos,
        failed=0,
        frames=0,
        store_bytes=0,
        seconds={"encode": 1.0},
        covered=facts.splits,
    )
    cache.storage.write(mark_file(part_name(number)), to_json(summary))


def pretend_done(cache: Cache, store: int) -> None:
    """The receipt of a store that nobody has written, of as many frames as were planned."""
    borders_V = np.cumsum([0, *cache.plan[store].values()], dtype="<i8")
    frames, files = int(borders_V[-1]), small_arrays(())
    data = {VIDEO_STARTS: borders_V[:-1].tobytes(), VIDEO_STOPS: borders_V[1:].tobytes()}
    sums = {
        files[name]: (len(rows), hashlib.sha256(rows).hexdigest())
        for name, rows in data.items()
        if any(rows)
    }
    receipt = Receipt(
        store=store,
        fingerprint=cache.fingerprint,
        frames=frames,
        videos={
            video_id: (int(borders_V[place]), int(borders_V[place + 1]))
            for place, video_id in enumerate(cache.plan[store])
        },
        failures={},
        content={
            video_id: Content(decoded=count, header=count, first_s=0.0)
            for video_id, count in cache.plan[store].items()
        },
        seconds={},
        device="cpu",
        versions={},
        files=sums | {files[TIMES]: (frames * TIME_BYTES, "0" * 64)},
        header_sha256=cache.header_sha256,
        checksum="",
    )
    cache.storage.write(receipt_name(store), sealed_json(receipt))
