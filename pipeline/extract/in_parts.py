"""Stage one over a manifest in parts: a cache in parts, of which a worker holds one part at a time.

Nobody plans the whole: whoever comes to a part first plans and creates its cache, from the part's
manifest alone. So a worker begins as soon, and with as little memory, whatever the number of clips.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
from pipeline.errors import BadInput
from pipeline.extract.execution import HERE, DecodingJob, Execution
from pipeline.extract.extract import create_or_open, settled_spec
from pipeline.extract.launchers.contract import run_until_done
from pipeline.extract.progress import Progress
from pipeline.extract.worker import all_over, fill
from pipeline.models.encoders.contract import EncoderPlugin, make_encoder
from pipeline.video.on_device import identity_of_decoder


class PartsJob(DecodingJob):
    """The job of every worker of an extraction in parts."""

    cache: str
    """Address of the cache in parts, of which the index lies there already."""
    spec: dict[str, Any]
    """The canonical spec, of which every part is a cache."""
    manifest: str
    """Folder of the manifest in parts."""
    root: str | None
    """Folder of the videos, if they were moved."""

    def _work(self, index: int) -> None:
        how = self.execution(index)
        spec = plugins.validate(CacheSpec, plugins.as_recorded(self.spec), "job")
        root = None if self.root is None else Path(self.root)
        manifest = PartedManifest.load(Path(self.manifest), root)
        encoder = make_encoder(spec, how.here)
        PartsExtraction(PartedCache(self.cache), manifest, spec, encoder, how).fill(index)


def extract_parts(
    cache_spec: CacheSpec,
    manifest: PartedManifest,
    out: Path | str,
    how: Execution = HERE,
) -> PartedCache:
    """Brings the cache of a spec over a manifest in parts, in the folder or URL `out`, to
    completion, as `extract_all` does with a whole one; `how.on_progress` is told of one part after
    the other, and of an engine's workers how many parts they have left.

    Raises BadInput: a codec that is fitted, and what `extract_all` refuses; StillframeError where
    it cannot be written.
    """
    spec = settled_spec(cache_spec, how)
    if isinstance(make_codec(spec.codec), FittedCodec):
        raise BadInput(
            f"codec '{spec.codec.name}' is fitted to one manifest, and every part would have a fit "
            "of its own",
            "choose another codec, or extract the parts one by one, each into an --out of its own",
        )
    encoder = make_encoder(spec, how.here)
    cache = open_parts(spec, manifest, out, encoder, how.here)
    if how.retry_failed:
        _forget_failed(cache)
    if how.engine is None:
        PartsExtraction(cache, manifest, spec, encoder, how).fill()
        return cache
    job = PartsJob(
        cache=cache.storage.address,
        spec=spec.canonical(),
        manifest=str(manifest.folder),
        root=None if manifest.root is None else str(manifest.root.absolute()),
        **how.of_workers,
    )

    def left() -> int:
        finished = len(cache.finished())
        if how.on_progress:
            how.on_progress(Progress(len(cache), finished))
        return len(cache) - finished

    run_until_done(how.engine, job, how.logs, left, "parts")
    return cache


@dataclass(frozen=True)
class PartsExtraction:
    """What one worker has at hand, at whatever part it is."""

    cache: PartedCache
    manifest: PartedManifest
    spec: CacheSpec
    encoder: EncoderPlugin
    how: Execution = HERE

    def fill(self, index: int = 0) -> None:
        """Brings all parts to completion with all other workers, of which this is number `index`:
        first what nobody is at, part by part, then what others were at and have not finished."""
        for waits in (False, True):
            for number in unfinished(self.cache, index):
                part = self.manifest.part(number)
                cache = self.open_part(number, part)
                # Nothing is taken over from caches beside it, which are those of the other parts.
                to_fill = [(cache, self.encoder, ())]
                fill(to_fill, part.videos, part.root, self.how, waits=waits)
                if not cache.missing_stores():
                    self.cache.mark(number)

    def open_part(self, number: int, part: Manifest) -> Cache:
        """The cache of a part, planned and created from its manifest if it is not there yet."""
        address, name = self.cache.storage.address, part_name(number)
        return create_or_open(self.spec, part, address, self.encoder, self.how, name)


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
    spec: CacheSpec,
    manifest: PartedManifest,
    out: Path | str,
    encoder: EncoderPlugin,
    device: torch.device,
) -> PartedCache:
    """The cache in parts of a spec over a manifest in `out`, with its index and perhaps no part
    yet, under the first of its names that is its own or free."""
    decoder = identity_of_decoder(spec.frames.decoder, device)
    digits = fingerprint(spec, encoder.identity, decoder, None)
    names = cache_names(spec.name, digits, manifest.folder.name, manifest)
    index = (manifest.folder / PARTS).read_bytes()
    for storage in map(open_storage(out).below, names):
        if storage.exists(HEADER_FILE):
            continue  # a cache of a whole manifest
        try:
            mine = storage.create(PARTS, index) or storage.read(PARTS) == index
            cache = PartedCache(storage)  # refuses a damaged one: it may be that of these videos
            if mine:
                return cache
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
