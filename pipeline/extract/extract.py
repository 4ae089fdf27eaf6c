"""Stage one: specs and a manifest in, complete caches out; run again, it goes on where it
stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.cache.cache import Cache
from pipeline.cache.codecs.contract import FittedCodec, fitted_to, make_codec
from pipeline.cache.commit import (
    cache_names,
    create_cache,
    find_place,
    forget_store,
    unwritable,
)
from pipeline.cache.layout import HEADER_FILE, bytes_per_frame, frames_per_store
from pipeline.cache.leases import Leases
from pipeline.cache.parts.parted import require_alike
from pipeline.cache.receipts import Header, TokenFacts
from pipeline.cache.storage.contract import Storage
from pipeline.cache.storage.open import open_storage
from pipeline.config.cache_spec import FORMAT_VERSION, CacheSpec, fingerprint
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import BadInput, BadVideo, count_text
from pipeline.extract.calibrate import calibration_tokens, fit_codecs
from pipeline.extract.execution import HERE, Execution
from pipeline.extract.launchers.contract import EnginePlugin, run_until_done
from pipeline.extract.progress import Progress
from pipeline.extract.reuse import ReusableCache, reusable_caches
from pipeline.extract.worker import ExtractionJob, fill
from pipeline.models.encoders.contract import EncoderPlugin, make_encoder, settle, token_shape
from pipeline.records import TokenShape, Video
from pipeline.video import probe
from pipeline.video.even_rates import rates_of, uneven_text
from pipeline.video.on_device import identity_of_decoder

log = logging.getLogger(__name__)


def extract(
    cache_spec: CacheSpec,
    manifest: Manifest,
    out: Path | str,
    device: torch.device | None = None,
    decoders: int = 1,
) -> Cache:
    """`extract_all` for one spec, in this process."""
    return extract_all([cache_spec], manifest, out, Execution(device, decoders))[0]


def extract_all(
    specs: Sequence[CacheSpec],
    manifest: Manifest,
    out: Path | str,
    how: Execution = HERE,
    on_begin: Callable[[list[Cache]], object] = lambda _: None,
) -> list[Cache]:
    """Brings the cache of every spec over `manifest`, in the folder or URL `out`, to completion;
    every video is decoded once.

    Finished stores are kept, so calling again after a kill goes on; another extraction of the same
    caches is joined, not disturbed. What a cache beside one of these holds already is taken over,
    and `how.say` is told of it. `on_begin` is told which caches have something to do, before it is
    done. Videos that fail are in `Cache.failures`. Raises BadInput where a cache there was made
    from something else, StillframeError where it cannot be written.
    """
    specs = [settled_spec(spec, how) for spec in specs]
    for spec in specs:
        if text := uneven_frames_text(spec, manifest):
            how.say(text if len(specs) == 1 else f"{spec.name}: {text}")
    encoders = load_encoders(specs, how.here)
    caches = [create_or_open(spec, manifest, out, encoder, how) for spec, encoder in encoders]
    for cache in caches:
        _prepare_stores(cache, manifest, how.retry_failed)
    on_begin([cache for cache in caches if cache.missing_stores()])
    to_fill = [
        (cache, encoder, reusable_caches(cache))
        for cache, (_, encoder) in zip(caches, encoders, strict=True)
    ]
    reused = {cache.name: _announce_reuse(cache, sources, how.say) for cache, _, sources in to_fill}
    if how.engine is None:
        fill(to_fill, manifest.videos, manifest.root.absolute(), how)
    else:
        run_on_launcher(caches, manifest, how.engine, how)
    complete = [Cache(cache.storage) for cache in caches]
    for cache in complete:
        _announce_not_reused(cache, reused[cache.name], how.say)
    return complete


def settled_spec(spec: CacheSpec, how: Execution) -> CacheSpec:
    """A spec that leaves nothing to the device, which `how.say` is told of."""
    outright = settle(spec, how.here)
    if outright != spec:
        how.say(
            f"{spec.name}: encoder.precision is {outright.encoder.settings.precision}, which this "
            f"machine's {how.here.type} is made for; another may say otherwise: write it into the "
            "spec where several make one cache"
        )
    return outright


def uneven_frames_text(spec: CacheSpec, manifest: Manifest) -> str:
    """Which rates would step evenly over the videos of a manifest, by their headers, where that of
    the spec does not; "" where it does. Raises BadInput where the spec refuses it."""
    frames = spec.frames
    if not isinstance(frames.kept, float):  # every frame, or every n-th
        return ""
    rates = rates_of(fact.fps for fact in manifest.facts.values() if fact)
    text = uneven_text(rates, frames.kept)
    if text and frames.uneven == "refuse":
        raise BadInput(text, 'choose such frames.fps, or frames.every, or frames.uneven = "warn"')
    return text


def _prepare_stores(cache: Cache, manifest: Manifest, retry_failed: bool) -> None:
    """Forgets the stores that hold a failed video, if these are to be redone. Raises BadInput, and
    forgets nothing, where there is something to do and no video is there."""
    redo = []
    if retry_failed:
        redo = [store for store, receipt in cache.receipts.items() if receipt.incomplete]
    if redo or cache.missing_stores():
        require_videos(manifest)
    for store in redo:
        forget_store(cache, store)


def _announce_reuse(
    cache: Cache, sources: Sequence[ReusableCache], say: Callable[[str], None]
) -> list[int]:
    """The missing stores of which other caches hold a part, told one cache after the other."""
    missing = cache.missing_stores()
    reused: list[int] = []
    for source in sources:
        stores = [store for store in missing if source.has(store, cache.plan[store])]
        missing = [store for store in missing if store not in stores]
        reused += stores
        if stores:
            ours = ", ".join(name for name in cache.token_arrays if name not in source.names)
            say(
                f"{cache.name}: {', '.join(source.names)} taken over from {source.cache.name} in "
                f"{len(stores)} of {len(cache.plan)} stores; encoding {ours}"
            )
    return reused


def _announce_not_reused(cache: Cache, reused: list[int], say: Callable[[str], None]) -> None:
    whole = [store for store in reused if not cache.receipt(store).taken_from]
    if whole:
        say(
            f"{cache.name}: {count_text(len(whole), 'store')} made whole, since what lies "
            f"beside is of other frames or damaged: {whole}"
        )


def extraction_job(caches: Sequence[str], manifest: Manifest, how: Execution) -> ExtractionJob:
    """The job of the workers on these caches, which are laid out already."""
    return ExtractionJob(caches=tuple(caches), root=str(manifest.root.absolute()), **how.of_workers)


def run_on_launcher(
    caches: Sequence[Cache], manifest: Manifest, engine: EnginePlugin, how: Execution
) -> None:
    """Has the workers of an engine bring caches to completion, and watches the receipts as they
    come."""
    job = extraction_job([cache.storage.address for cache in caches], manifest, how)
    missing = {str(cache): set(cache.missing_stores()) for cache in caches}
    progress = Progress(
        sum(sum(cache.plan[store].values()) for cache in caches for store in missing[str(cache)])
    )

    def left() -> int:
        for cache in caches:
            for store in missing[str(cache)] - set(cache.missing_stores()):
                missing[str(cache)].discard(store)
                progress.add(cache.receipt(store), sum(cache.plan[store].values()))
        if how.on_progress:
            how.on_progress(progress)
        return sum(map(len, missing.values()))

    run_until_done(engine, job, how.logs, left, "stores")


def load_encoders(
    specs: Sequence[CacheSpec], device: torch.device
) -> list[tuple[CacheSpec, EncoderPlugin]]:
    """Every spec with its encoder on `device`. Raises BadInput where two specs ask for the same
    cache."""
    if len({str(spec.canonical() | {"name": ""}) for spec in specs}) < len(specs):
        raise BadInput("two of the specs say the same", "name each cache once")
    encoders = []
    for spec in specs:
        encoders.append((spec, make_encoder(spec, device)))
        log.debug("made encoder %s of spec %s on %s", spec.encoder.name, spec.name, device)
    return encoders


@dataclass(frozen=True)
class Preview:
    """The size of a cache before it is made. As JSON it is what `extract --dry-run --json`
    prints."""

    spec: str
    videos: int
    frames: int
    stores: int
    store_bytes: int
    bytes_per_frame: int
    tokens_per_frame: int
    grid: str
    """Rows and columns of patch tokens: `16x16`."""


def preview(cache_spec: CacheSpec, manifest: Manifest) -> Preview:
    """Tells what `extract` would do. It probes the videos, reads no weights and writes nothing."""
    shape = token_shape(cache_spec)
    plan = make_plan(cache_spec, shape, manifest)
    expected = sum(sum(videos.values()) for videos in plan.values())
    return Preview(
        spec=cache_spec.name,
        videos=len(manifest.videos),
        frames=expected,
        stores=len(plan),
        store_bytes=expected * bytes_per_frame(cache_spec, shape),
        bytes_per_frame=bytes_per_frame(cache_spec, shape),
        tokens_per_frame=cache_spec.tokens_per_frame(shape),
        grid=f"{shape.grid_hw[0]}x{shape.grid_hw[1]}",
    )


def create_or_open(
    cache_spec: CacheSpec,
    manifest: Manifest,
    out: Path | str,
    encoder: EncoderPlugin,
    how: Execution = HERE,
    name: str | None = None,
) -> Cache:
    """The cache of a spec over a manifest in `out`; planned, fitted and created if it is not there
    yet. `how.say` is told of videos that its codec could not be fitted to, and where the cache lies
    if its place was taken by another data set; it is called `name`, if one is given, and nothing
    else. Raises BadInput where the manifest has changed, or what lies there is of another spec."""
    of_codec = fitted_to(make_codec(cache_spec.codec), manifest.digest)
    decoder = identity_of_decoder(cache_spec.frames.decoder, how.here)
    digits = fingerprint(cache_spec, encoder.identity, decoder, of_codec)
    folder = open_storage(out)
    names = [name] if name else cache_names(cache_spec.name, digits, manifest.folder.name, manifest)
    while True:
        storage = find_place(folder, names, manifest)
        if storage.exists(HEADER_FILE):
            cache = Cache(storage)
            require_alike(cache, digits)
            return cache
        try:
            with Leases(storage) as leases, leases.alone("plan"):
                if not storage.exists(HEADER_FILE):
                    if storage.name != names[0]:
                        taken = folder.below(names[0])
                        how.say(f"{taken} is of other videos; these go to {storage}")
                    return _create(storage, cache_spec, manifest, encoder, digits, how)
        except OSError as error:
            raise unwritable(storage, error) from error
        # Somebody was quicker, with this manifest or with another one.


def _create(
    storage: Storage,
    cache_spec: CacheSpec,
    manifest: Manifest,
    encoder: EncoderPlugin,
    digits: str,
    how: Execution,
) -> Cache:
    shape, codec = token_shape(cache_spec), make_codec(cache_spec.codec)
    plan = make_plan(cache_spec, shape, manifest)
    learnt = None
    if isinstance(codec, FittedCodec):
        frames = codec.sample_frames
        sampled = calibration_tokens(cache_spec, encoder, manifest, plan, frames, how)
        learnt = fit_codecs(codec, sampled)
    header = Header(
        format_version=FORMAT_VERSION,
        fingerprint=digits,
        spec=cache_spec.canonical(),
        encoder=encoder.identity,
        decoder=identity_of_decoder(cache_spec.frames.decoder, how.here),
        tokens=TokenFacts(
            width=shape.width,
            grid_hw=shape.grid_hw,
            special_tokens=shape.special_tokens,
            layers=shape.layers,
        ),
        manifest=manifest.digest,
        root=str(manifest.root),
        plan=plan,
    )
    return create_cache(storage, header, manifest, learnt)


def require_videos(manifest: Manifest) -> None:
    """Refuses to go on where the videos are not: a folder that was moved says nothing about the
    videos in it."""
    if not any((manifest.root / video.source).exists() for video in manifest.videos):
        raise BadInput(
            f"none of the {len(manifest.videos)} videos of {manifest.folder} is in {manifest.root}",
            "say where they are: --root DIR",
        )


def make_plan(
    cache_spec: CacheSpec, shape: TokenShape, manifest: Manifest
) -> dict[int, dict[str, int]]:
    """store -> video_id -> expected frames. Videos in manifest order fill a store up to its size;
    none is split."""
    require_videos(manifest)
    rate, facts_by_video = cache_spec.frames.kept, manifest.facts
    expected = {}
    for video in manifest.videos:
        facts = (
            facts_by_video[video.video_id]
            if video.video_id in facts_by_video
            else _facts(manifest, video)
        )
        # Of one that cannot be opened extraction will say what is wrong with it.
        expected[video.video_id] = 1 if facts is None else probe.expected_frames(facts, rate)
    return fill_stores(expected, frames_per_store(cache_spec, shape))


def _facts(manifest: Manifest, video: Video) -> probe.Probe | None:
    """The header of a video; None if it cannot be opened."""
    try:
        return probe.probe(manifest.root / video.source, video.image_fps)
    except BadVideo:
        return None


def fill_stores(expected: Mapping[str, int], limit: int) -> dict[int, dict[str, int]]:
    """video_id -> expected frames, to the plan of stores of up to `limit` frames."""
    stores: list[dict[str, int]] = []
    held = 0
    for video_id, frames in expected.items():
        if not stores or held + frames > limit:
            stores.append({})
            held = 0
        stores[-1][video_id] = frames
        held += frames
    return dict(enumerate(stores))
