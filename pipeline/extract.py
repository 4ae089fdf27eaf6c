"""Stage one: a spec and a manifest in, a complete cache out; run again, it goes on where it stopped."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline import plugins, probe, spec
from pipeline.cache import Cache, require_same
from pipeline.codecs import FittedCodec
from pipeline.device import chosen
from pipeline.encode import OnProgress, Pipeline, Progress
from pipeline.encoders import EncoderPlugin
from pipeline.errors import BadInput, BadVideo, StillframeError
from pipeline.fit import learn, sample_tokens
from pipeline.ledger import Header, TokenFacts
from pipeline.manifest import Manifest
from pipeline.records import TokenShape
from pipeline.spec import FORMAT_VERSION, CacheSpec


def extract(
    cache_spec: CacheSpec,
    manifest: Manifest,
    out: Path,
    device: torch.device | None = None,
    decoders: int = 1,
    retry_failed: bool = False,
    on_progress: OnProgress | None = None,
) -> Cache:
    """Brings the cache of `cache_spec` over `manifest` under folder `out` to completion and returns it.

    Finished stores are kept, so calling again after a kill goes on. Videos that fail are in `Cache.failures`; `retry_failed`
    redoes the stores that hold one.
    Raises BadInput where the cache there was made from something else, StillframeError where it cannot be written.
    """
    device = chosen(device)
    encoder = plugins.load("encoder", cache_spec.encoder.name)(cache_spec.encoder.settings, cache_spec.frames.size_px, device)
    shape = cache_spec.token_shape()
    fitted_to = manifest.digest if isinstance(cache_spec.make_codec(), FittedCodec) else None
    digits = spec.fingerprint(cache_spec, encoder.identity, probe.decoder_identity(), fitted_to)
    path = out / f"{cache_spec.name}-{digits}"
    with only_one(path):
        cache = open_or_create(path, cache_spec, encoder, shape, manifest, device)
        redo = [store for store, receipt in cache.receipts.items() if receipt.failures] if retry_failed else []
        if redo or cache.missing_stores():
            require_videos(manifest)
        for store in redo:
            cache.forget(store)
        missing = cache.missing_stores()
        progress = Progress(sum(sum(cache.plan[store].values()) for store in missing))
        Pipeline(cache, cache_spec, encoder, device, manifest, decoders, progress, on_progress).run(missing)
    return Cache(path)


def preview(cache_spec: CacheSpec, manifest: Manifest) -> dict[str, Any]:
    """What `extract` would do, as plain data: probes the videos, reads no weights, writes nothing."""
    shape = cache_spec.token_shape()
    plan = make_plan(cache_spec, shape, manifest)
    expected = sum(sum(videos.values()) for videos in plan.values())
    return {
        "videos": len(manifest.videos),
        "frames": expected,
        "stores": len(plan),
        "store_bytes": expected * cache_spec.bytes_per_frame(shape),
        "bytes_per_frame": cache_spec.bytes_per_frame(shape),
        "tokens_per_frame": shape.tokens_per_frame,
        "grid": f"{shape.grid_hw[0]}x{shape.grid_hw[1]}",
    }


def open_or_create(
    path: Path,
    cache_spec: CacheSpec,
    encoder: EncoderPlugin,
    shape: TokenShape,
    manifest: Manifest,
    device: torch.device | None = None,
) -> Cache:
    """The cache at `path`, checked against spec and manifest; planned, fitted and created if it is not there yet.

    `device`: the encoder's, by default the CPU.
    """
    if (path / "cache.json").is_file():
        cache = Cache(path)
        require_same(cache, manifest)
        return cache
    plan, codec = make_plan(cache_spec, shape, manifest), cache_spec.make_codec()
    learnt = None
    if isinstance(codec, FittedCodec):
        device = device or torch.device("cpu")
        learnt = learn(codec, sample_tokens(cache_spec, encoder, device, manifest, plan, codec.sample_frames))
    header = Header(
        format_version=FORMAT_VERSION,
        fingerprint=path.name.rpartition("-")[2],
        spec=cache_spec.canonical(),
        encoder=encoder.identity,
        decoder=probe.decoder_identity(),
        tokens=TokenFacts(width=shape.width, grid_hw=shape.grid_hw, special_tokens=shape.special_tokens, layers=shape.layers),
        manifest=manifest.digest,
        root=str(manifest.root),
        plan=plan,
    )
    return Cache.create(path, header, manifest, learnt)


def require_videos(manifest: Manifest) -> None:
    """Refuses to go on where the videos are not: a folder that was moved says nothing about the videos in it."""
    if not any((manifest.root / video.source).exists() for video in manifest.videos):
        raise BadInput(
            f"none of the {len(manifest.videos)} videos of {manifest.folder} is in {manifest.root}",
            "say where they are: --root DIR",
        )


def make_plan(cache_spec: CacheSpec, shape: TokenShape, manifest: Manifest) -> dict[int, dict[str, int]]:
    """store -> video_id -> expected frames. Videos in manifest order fill a store up to its size; none is split."""
    require_videos(manifest)
    expected = {}
    for video in manifest.videos:
        try:
            facts = probe.probe(manifest.root / video.source, video.image_fps)
            expected[video.video_id] = probe.expected_frames(facts, cache_spec.frames.rate)
        except BadVideo:
            expected[video.video_id] = 1  # extraction will say what is wrong with it
    return fill_stores(expected, cache_spec.frames_per_store(shape))


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


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Makes the folder and refuses a second extraction into it; what cannot be written ends as a StillframeError.

    The kernel drops the lock when its holder dies, however it dies.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with (path / "extract.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BadInput(f"another extraction is writing {path}", "wait for it, or stop it and rerun") from error
            yield
    except OSError as error:
        raise StillframeError(
            f"cannot write {error.filename or path}: {error.strerror}",
            "finished stores are kept: free space or fix access, then rerun",
        ) from error
