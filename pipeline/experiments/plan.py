"""What a cache and a training from it will take, before anything runs: bytes, operations, time, and
whether caching pays.

Sizes follow from the headers of the videos, operations from the configuration of the models, and
seconds from a `trial` of both stages on this machine. Caching costs one extraction and saves the
encoder in every epoch of every run:

    it pays  <=>  runs * epochs * uncached_epoch_s > extract_s + runs * epochs * cached_epoch_s
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from pipeline.cache.codecs.contract import FittedCodec, make_codec
from pipeline.cache.layout import (
    bytes_per_frame,
    frames_per_shard,
    frames_per_store,
    tokens_by_array,
)
from pipeline.cache.shard import ALIGNMENT, CRC_BYTES, ShardLayout
from pipeline.config import plugins
from pipeline.config.cache_spec import BASE, CacheSpec, Choice
from pipeline.config.plugins import Settings
from pipeline.config.recipe import Recipe
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import BadInput
from pipeline.experiments.measure import Throughput
from pipeline.extract import extract
from pipeline.extract.extract import fill_stores
from pipeline.models import profile
from pipeline.models.encoders.contract import token_shape
from pipeline.models.video_model import layers_read
from pipeline.records import TokenShape
from pipeline.train.trainer import steps_of
from pipeline.train.windows.index import clips_of, require_rate

TRAINING = 3
"""A training step of what is trained, over its forward pass: backward is two of them."""
FRAME_BYTES, VIEW_BYTES, VIDEO_BYTES = 8, 48, 16 + 12
"""Of a store, beside the tokens: a frame's time and its affine in every view; a video's rows, and
what is around its name."""
ARRAY_BYTES, STORE_BYTES, VIEW_STORE_BYTES = 1050, 2140, 620
"""Zarr's metadata: of a token array, of everything else in a store, and of a view's group and
affine."""
ARRAY_FILES, STORE_FILES, VIEW_FILES = 1, 10, 3
"""Beside the shards: a token array's metadata; those of the store, its small arrays and its
receipt; those of a view."""
CACHE_FILES = 1
"""cache.json; those of the manifest, and what a fitted codec has learnt, come on top."""
LABELS = ("one", "two")
"""Where no manifest says what there is to tell apart."""


class CodecSize(Settings):
    """What a codec makes of the tokens, before compression."""

    bytes_per_frame: int
    """Tokens alone."""
    disk_bytes: int
    """The stores: tokens, checksums, times, metadata."""


class Scale(Settings):
    """How much there is."""

    videos: int | None
    clips: int | None
    """None without a manifest."""
    hours: float | None
    """Of video; None where headers do not say."""
    frames: int
    """That are cached."""
    tokens: int
    stores: int
    files: int
    codecs: dict[str, CodecSize | None]
    """None for a codec that cannot hold tokens of this width."""


class Operations(Settings):
    """Floating-point operations: 2 for a multiply and add."""

    encoder_frame: int
    """One frame, in one view."""
    extraction: int
    """All frames, in all views."""
    mixer: int | None = None
    """Of the forward pass over one window, as are the next two; None without a recipe."""
    temporal: int | None = None
    readout: int | None = None
    cached_step: int | None = None
    """A training step: three forward passes over a batch."""
    uncached_step: int | None = None
    """The same, and one pass of the encoder over every frame."""
    break_even: float | None = None
    """As that of `Times`, by operations alone: decoding, reading and waiting left out."""


class Training(Settings):
    """What the recipe asks for."""

    windows: int
    """Of an epoch."""
    steps_per_epoch: float
    epochs: float
    step_frames: int
    """B * T."""
    step_bytes: int
    """Read from the cache."""


class Times(Settings):
    """What will be taken on a machine like this one."""

    extract_s: float
    slowest: str
    """The step of extraction that sets the pace."""
    write_bytes_per_s: float
    """What must be written for the others not to wait."""
    fits_memory: bool
    """Whether the cache is read from memory after the first epoch."""
    read_bytes_per_s: float | None = None
    """What training reads; None without a recipe, as are the next ones."""
    cached_step_s: float | None = None
    uncached_step_s: float | None = None
    cached_epoch_s: float | None = None
    uncached_epoch_s: float | None = None
    break_even: float | None = None
    """Epochs, counted over all runs, after which caching has cost less time; None: never."""


class Plan(Settings):
    """All of it."""

    spec: str
    codec: str
    recipe: str | None
    runs: int
    scale: Scale
    operations: Operations
    training: Training | None
    speed: Throughput | None
    times: Times | None


def plan(
    spec: CacheSpec,
    videos: Manifest | None,
    frames: int | None,
    recipe: Recipe | None,
    runs: int,
    throughput: Throughput | None,
    decoders: int,
) -> Plan:
    """Of `videos`, or of so many `frames` where there is no manifest; seconds only with a `throughput`.
    See `require` for errors."""
    shape = token_shape(spec)
    expected = _expected(spec, shape, videos, frames)
    scale = _scale(spec, shape, videos, expected)
    training = _training(spec, shape, videos, recipe, scale) if recipe else None
    operations = _operations(spec, shape, videos, recipe, scale, training)
    return Plan(
        spec=spec.name,
        codec=spec.codec.name,
        recipe=recipe.name if recipe else None,
        runs=runs,
        scale=scale,
        operations=operations,
        training=training,
        speed=throughput,
        times=_times(spec, scale, training, throughput, decoders) if throughput else None,
    )


def require(spec: CacheSpec, videos: Manifest | None, recipe: Recipe | None) -> None:
    """Raises BadInput for what a look at the three can tell: layers, rates, labels, splits that are
    not there."""
    shape = token_shape(spec)
    if videos:
        extract.require_videos(videos)
    if recipe is None:
        return
    layers_read(recipe, shape)
    clips = clips_of(videos, "train", recipe.windows) if videos else []
    require_rate(recipe.windows, clips, spec.frames.rate, f"spec '{spec.name}'")
    for view in recipe.windows.views:
        if view not in (BASE, *(each.name for each in spec.views)):
            raise BadInput(
                f"recipe '{recipe.name}' wants the view '{view}', spec '{spec.name}' has none of that name",
                "add it to the spec, or leave it out of windows.views",
            )
    plugins.load("task", recipe.task.name)(
        recipe.task.settings, videos.labels if videos else LABELS
    )


# Sizes


def _expected(
    spec: CacheSpec, shape: TokenShape, videos: Manifest | None, frames: int | None
) -> dict[int, dict[str, int]]:
    """store -> video_id -> frames; without a manifest, stores that are full, each of one video
    without a name."""
    if videos is not None:
        return extract.make_plan(spec, shape, videos)
    assert frames is not None
    full, rest = divmod(frames, frames_per_store(spec, shape))
    return dict(enumerate([{"": frames_per_store(spec, shape)}] * full + [{"": rest}] * (rest > 0)))


def _scale(
    spec: CacheSpec,
    shape: TokenShape,
    videos: Manifest | None,
    expected: Mapping[int, Mapping[str, int]],
) -> Scale:
    frames = sum(sum(store.values()) for store in expected.values())
    seconds = None
    if videos is not None:
        lengths = [fact.duration_s for fact in videos.facts.values() if fact and fact.duration_s]
        seconds = sum(lengths) if lengths else None
    elif spec.frames.rate:
        seconds = frames / spec.frames.rate
    codecs: dict[str, CodecSize | None] = {}
    for name in plugins.names("codec"):
        try:
            other = _with_codec(spec, name)
            stores = expected if name == spec.codec.name else _again(other, shape, expected)
            _, disk_bytes = _on_disk(other, shape, stores.values())
            codecs[name] = CodecSize(
                bytes_per_frame=bytes_per_frame(other, shape), disk_bytes=disk_bytes
            )
        except BadInput:
            codecs[name] = None
    files = CACHE_FILES + isinstance(make_codec(spec.codec), FittedCodec)
    files += (
        sum((videos.folder / name).is_file() for name in Manifest.FILES)
        if videos
        else len(Manifest.FILES)
    )
    return Scale(
        videos=len(videos.videos) if videos else None,
        clips=len(videos.clips) if videos else None,
        hours=None if seconds is None else seconds / 3600,
        frames=frames,
        tokens=frames * spec.tokens_per_frame(shape),
        stores=len(expected),
        files=_on_disk(spec, shape, expected.values())[0] + files,
        codecs=codecs,
    )


def _with_codec(spec: CacheSpec, name: str) -> CacheSpec:
    """The spec with another codec, at its defaults."""
    if name == spec.codec.name:
        return spec
    return spec.model_copy(
        update={"codec": Choice(name=name, settings=plugins.settings("codec", name, {}, name))}
    )


def _again(
    spec: CacheSpec, shape: TokenShape, expected: Mapping[int, Mapping[str, int]]
) -> dict[int, dict[str, int]]:
    """The same videos in stores as large as another codec makes them."""
    if any("" in store for store in expected.values()):
        return _expected(spec, shape, None, sum(sum(store.values()) for store in expected.values()))
    videos = {video_id: frames for store in expected.values() for video_id, frames in store.items()}
    return fill_stores(videos, frames_per_store(spec, shape))


def _on_disk(
    spec: CacheSpec, shape: TokenShape, stores: Iterable[Mapping[str, int]]
) -> tuple[int, int]:
    """Files and bytes of stores that hold these frames of these videos; receipts are files, but no
    bytes of a store."""
    views = (BASE, *(view.name for view in spec.views))
    arrays = tokens_by_array(shape.layers, shape.special_tokens, shape.patch_tokens, views)
    entry, shard_frames = (
        make_codec(spec.codec).layout(shape.width).values(),
        frames_per_shard(spec, shape),
    )
    layouts = [
        ShardLayout((tokens, *tail), dtype, spec.store.chunk_frames, shard_frames)
        for tokens in arrays.values()
        for tail, dtype in entry
    ]

    @cache
    def of_frames(frames: int) -> tuple[int, int]:
        files = STORE_FILES + VIEW_FILES * len(spec.views)
        files += sum(ARRAY_FILES + math.ceil(frames / shard_frames) for _ in layouts)
        size = (
            STORE_BYTES
            + VIEW_STORE_BYTES * len(spec.views)
            + frames * (FRAME_BYTES + VIEW_BYTES * len(views))
        )
        return files, size + sum(ARRAY_BYTES + array_bytes(layout, frames) for layout in layouts)

    files = size = 0
    for held in stores:
        of_store = of_frames(sum(held.values()))
        files += of_store[0] - (
            len(held) == 1
        )  # zarr leaves out zeros, such as the first row of a single video
        size += of_store[1] + sum(VIDEO_BYTES + len(video_id) for video_id in held)
    return files, size


def array_bytes(layout: ShardLayout, rows: int) -> int:
    """The shards of an array of so many rows, before compression. A chunk that is begun is written
    whole."""
    chunk = layout.chunk_frames * layout.row_bytes + CRC_BYTES
    chunk += -chunk % ALIGNMENT
    return (
        math.ceil(rows / layout.chunk_frames) * chunk
        + math.ceil(rows / layout.shard_frames) * layout.index_bytes
    )


# What is done


def _training(
    spec: CacheSpec, shape: TokenShape, videos: Manifest | None, recipe: Recipe, scale: Scale
) -> Training:
    """Without a manifest, an epoch is as many windows as have all cached frames once between their
    first and last."""
    batch, frames = recipe.training.batch_size, recipe.windows.frames
    if videos:
        windows = len(clips_of(videos, "train", recipe.windows))
    else:
        windows = max(
            1,
            round(
                recipe.windows.train_fraction
                * scale.frames
                / (frames * _spacing(spec, recipe, scale))
            ),
        )
    tokens = len(layers_read(recipe, shape)) * shape.patch_tokens + shape.special_tokens
    return Training(
        windows=windows,
        steps_per_epoch=windows / batch,
        epochs=steps_of(recipe.training, windows) * batch / windows,
        step_frames=batch * frames,
        step_bytes=batch * frames * tokens * make_codec(spec.codec).bytes_per_token(shape.width),
    )


def _spacing(spec: CacheSpec, recipe: Recipe, scale: Scale) -> float:
    """Cached frames from one frame of a window to the next; 1 where nothing is known of the
    videos."""
    rate = spec.frames.rate or (
        scale.frames / (3600 * scale.hours) if scale.hours else recipe.windows.fps
    )
    return max(1.0, rate / recipe.windows.fps)


def _operations(
    spec: CacheSpec,
    shape: TokenShape,
    videos: Manifest | None,
    recipe: Recipe | None,
    scale: Scale,
    training: Training | None,
) -> Operations:
    encoder = plugins.load("encoder", spec.encoder.name).flops(
        spec.encoder.settings, spec.frames.size_px
    )
    known = {"encoder_frame": encoder, "extraction": encoder * scale.frames * (1 + len(spec.views))}
    if recipe is None or training is None:
        return Operations(**known)
    parts = profile.flops(recipe, shape, videos.labels if videos else LABELS)
    step, saved = (
        TRAINING * sum(parts.values()) * recipe.training.batch_size,
        encoder * training.step_frames,
    )
    paid = break_even(known["extraction"], saved * training.steps_per_epoch, 0)
    return Operations(
        **known, **parts, cached_step=step, uncached_step=step + saved, break_even=paid
    )


def _times(
    spec: CacheSpec, scale: Scale, training: Training | None, throughput: Throughput, decoders: int
) -> Times:
    alone = {
        "decode": throughput.decode_s / decoders,
        "encode": throughput.encode_s * (1 + len(spec.views)),
        "write": throughput.write_s,
    }
    codec = scale.codecs[spec.codec.name]
    assert codec is not None
    fits_memory = codec.disk_bytes < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    known: dict[str, Any] = {
        "extract_s": throughput.load_s
        + throughput.start_s
        + scale.frames * max(throughput.frame_s, throughput.write_s),
        "slowest": max(alone, key=lambda step: alone[step]),
        "write_bytes_per_s": throughput.frame_bytes / max(alone["decode"], alone["encode"]),
        "fits_memory": fits_memory,
    }
    if training is None or throughput.step_s is None or throughput.uncached_step_s is None:
        return Times(**known)
    cached_s = throughput.step_s
    if not fits_memory and throughput.read_cold_bytes_per_s:
        cached_s = max(cached_s, training.step_bytes / throughput.read_cold_bytes_per_s)
    cached_epoch_s, uncached_epoch_s = (
        each * training.steps_per_epoch for each in (cached_s, throughput.uncached_step_s)
    )
    return Times(
        **known,
        read_bytes_per_s=training.step_bytes / cached_s,
        cached_step_s=cached_s,
        uncached_step_s=throughput.uncached_step_s,
        cached_epoch_s=cached_epoch_s,
        uncached_epoch_s=uncached_epoch_s,
        break_even=break_even(known["extract_s"], uncached_epoch_s, cached_epoch_s),
    )


def break_even(extract_s: float, uncached_epoch_s: float, cached_epoch_s: float) -> float | None:
    """Epochs, counted over all runs, after which caching has cost less time; None: never."""
    saved_s = uncached_epoch_s - cached_epoch_s
    return extract_s / saved_s if saved_s > 0 else None
