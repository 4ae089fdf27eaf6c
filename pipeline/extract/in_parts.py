"""Stage one over a manifest in parts: a cache in parts, of which a worker holds one part at a time.

Nobody plans the whole: whoever comes to a part first plans and creates its cache, from the part's
manifest alone. So a worker begins as soon, and with as little memory, whatever the number of clips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.cache.cache import Cache
from pipeline.cache.codecs.contract import FittedCodec, make_codec
from pipeline.cache.commit import cache_names, forget_store, unwritable
from pipeline.cache.layout import HEADER_FILE
from pipeline.cache.parts.parted import PartedCache
from pipeline.cache.storage.open import open_storage
from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec, fingerprint
from pipeline.datasets.manifest.manifest import PARTS, Manifest
from pipeline.datasets.manifest.parts import PartedManifest, part_name
from pipeline.device import chosen, device_of_worker
from pipeline.errors import BadInput
from pipeline.extract.extract import create_or_open, settled_spec
from pipeline.extract.launchers.contract import EnginePlugin, Job, run_until_done
from pipeline.extract.progress import OnProgress, Progress
from pipeline.extract.worker import ExtractionJob, all_over, fill
from pipeline.models.encoders.contract import EncoderPlugin, make_encoder
from pipeline.video import probe
from pipeline.video.isolated.sandbox import DecodeLimits


class PartsJob(Job):
    """The job of every worker of an extraction in parts."""

    cache: str
    """Address of the cache in parts, of which the index lies there already."""
    spec: dict[str, Any]
    """The canonical spec, of which every part is a cache."""
    manifest: str
    """Folder of the manifest in parts."""
    root: str | None
    """Folder of the videos, if they were moved."""
    decoders: int = 1
    """Number of processes that decode videos."""
    limits: DecodeLimits = DecodeLimits()

    def _work(self, index: int) -> None:
        device = device_of_worker(self.device, index)
        spec = plugins.validate(CacheSpec, plugins.as_recorded(self.spec), "job")
        root = None if self.root is None else Path(self.root)
        manifest = PartedManifest.load(Path(self.manifest), root)
        cache = PartedCache(self.cache)
        fill_parts(cache, manifest, spec, make_encoder(spec, device), self, device, index)


def extract_parts(
    cache_spec: CacheSpec,
    manifest: PartedManifest,
    out: Path | str,
    device: torch.device | None = None,
    decoders: int = 1,
    limits: DecodeLimits | None = None,
    retry_failed: bool = False,
    on_progress: OnProgress | None = None,
    engine: EnginePlugin | None = None,
    logs: Path = Path("logs"),
    say: Callable[[str], None] = lambda _: None,
) -> PartedCache:
    """Brings the cache of a spec over a manifest in parts, in the folder or URL `out`, to
    completion, as `extract_all` does with a whole one; `on_progress` is told of one part after the
    other, and of an engine's workers how many parts they have left.

    Raises BadInput: a codec that is fitted, and what `extract_all` refuses; StillframeError where
    it cannot be written.
    """
    device_name, device = None if device is None else str(device), chosen(device)
    spec = settled_spec(cache_spec, device, say)
    if isinstance(make_codec(spec.codec), FittedCodec):
        raise BadInput(
            f"codec '{spec.codec.name}' is fitted to one manifest, and every part would have a fit "
            "of its own",
            "choose another codec, or extract the parts one by one, each into an --out of its own",
        )
    encoder = make_encoder(spec, device)
    cache = open_parts(spec, manifest, out, encoder)
    if retry_failed:
        _forget_failed(cache)
    job = PartsJob(
        cache=cache.storage.address,
        spec=spec.canonical(),
        manifest=str(manifest.folder),
        root=None if manifest.root is None else str(manifest.root.absolute()),
        device=device_name,
        decoders=decoders,
        limits=limits or DecodeLimits(),
    )
    if engine is None:
        fill_parts(cache, manifest, spec, encoder, job, device, 0, on_progress)
    else:

        def left() -> int:
            finished = len(cache.finished())
            if on_progress:
                on_progress(Progress(len(cache), finished))
            return len(cache) - finished

        run_until_done(engine, job, logs, left, "parts")
    return cache


def fill_parts(
    cache: PartedCache,
    manifest: PartedManifest,
    spec: CacheSpec,
    encoder: EncoderPlugin,
    job: PartsJob,
    device: torch.device,
    index: int,
    on_progress: OnProgress | None = None,
) -> None:
    """Brings all parts to completion with all other workers: first what nobody is at, part by part,
    then what others were at and have not finished."""
    for waits in (False, True):
        for number in unfinished(cache, index):
            part = manifest.part(number)
            filled = open_part(cache, number, spec, part, encoder, device, job.limits)
            of_part = ExtractionJob(
                caches=(filled.storage.address,),
                root=str(part.root),
                device=job.device,
                decoders=job.decoders,
                limits=job.limits,
            )
            # Nothing is taken over from caches beside it, which are those of the other parts.
            fill([(filled, encoder, ())], part.videos, of_part, device, on_progress, waits=waits)
            if not filled.missing_stores():
                cache.mark(number)


def open_part(
    cache: PartedCache,
    number: int,
    spec: CacheSpec,
    part: Manifest,
    encoder: EncoderPlugin,
    device: torch.device,
    limits: DecodeLimits | None = None,
) -> Cache:
    """The cache of a part, planned and created from its manifest if it is not there yet."""
    address, name = cache.storage.address, part_name(number)
    return create_or_open(spec, part, address, encoder, device, limits, name=name)


def unfinished(cache: PartedCache, index: int) -> Iterator[int]:
    """Parts that are not finished when their turn comes, from one on that worker `index` has for
    its own as long as there are more parts than workers."""
    order = all_over(len(cache))
    start = order[index % len(order)]
    finished: set[int] = set()
    for number in (*range(start, len(cache)), *range(start)):
        if number not in finished:
            finished = set(cache.finished())
        if number not in finished:
            yield number


def open_parts(
    spec: CacheSpec, manifest: PartedManifest, out: Path | str, encoder: EncoderPlugin
) -> PartedCache:
    """The cache in parts of a spec over a manifest in `out`, with its index and perhaps no part
    yet, under the first of its names that is its own or free."""
    digits = fingerprint(spec, encoder.identity, probe.decoder_identity(), None)
    names = cache_names(spec.name, digits, manifest.folder.name, manifest)
    index = (manifest.folder / PARTS).read_bytes()
    for storage in map(open_storage(out).below, names):
        if storage.exists(HEADER_FILE):
            continue  # a cache of a whole manifest
        try:
            if storage.create(PARTS, index) or storage.read(PARTS) == index:
                return PartedCache(storage)
        except OSError as error:
            raise unwritable(storage, error) from error
    raise BadInput(
        f"{', '.join(names)} in {out} are all of other videos than {manifest.folder}",
        "extract it into another --out, or give its folder a name of its own",
    )


def _forget_failed(cache: PartedCache) -> None:
    """Forgets the stores that hold a failed video, so that they are redone."""
    finished = set(cache.finished())
    for number in filter(cache.has_part, cache.begun()):
        if number not in finished or cache.summary(number).failed:
            part = cache.part(number)
            for store, receipt in part.receipts.items():
                if receipt.incomplete:
                    forget_store(part, store)
