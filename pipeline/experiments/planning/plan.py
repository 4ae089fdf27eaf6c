"""A plan says, before anything runs, what a cache and a training from it will take: bytes,
operations, time, and whether caching pays.

Sizes follow from the headers of the videos, operations from the configuration of the models, and
seconds from `measure`, which tries both stages on this machine. Caching costs one extraction and
saves the encoder in every epoch of every run:

    it pays  <=>  runs * epochs * uncached_epoch_s > extract_s + runs * epochs * cached_epoch_s
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from pipeline.cache.codecs.contract import FittedCodec, make_codec
from pipeline.cache.layout import (
    bytes_per_frame,
    frames_per_shard,
    frames_per_store,
    required_files,
    small_arrays,
    stored_name,
    tokens_by_array,
)
from pipeline.cache.shard.format import CRC_BYTES, ShardLayout
from pipeline.config import plugins
from pipeline.config.cache_spec import BASE, CacheSpec, choice
from pipeline.config.plugins import Settings
from pipeline.config.recipe import Recipe
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.device import free_memory_bytes
from pipeline.errors import BadInput
from pipeline.experiments.planning.layout import LayoutAdvice, advise, array_bytes
from pipeline.experiments.planning.measure import Throughput
from pipeline.extract import extract
from pipeline.extract.extract import fill_stores
from pipeline.models import profile
from pipeline.models.encoders.contract import token_shape
from pipeline.models.step_memory import EVAL_BATCH, NotCounted, TrainingMemory
from pipeline.models.tasks.contract import labels_of, make_task
from pipeline.models.video_model import layers_read
from pipeline.records import TokenShape
from pipeline.train.trainer import steps_of
from pipeline.train.windows.index import clips_of, expected_windows, require_rate
from pipeline.train.windows.kept import require_fitting_crop
from pipeline.train.windows.reader import BATCHES_IN_MEMORY

STEP_PASSES = 3
"""Forward passes that a training step costs as many operations as: backward is two of them (Kaplan
et al., Scaling Laws for Neural Language Models, 2020, section 2.1)."""
FRAME_BYTES, VIEW_BYTES = 8, 48
"""Bytes of a frame in a store beside its tokens: its time, and its affine in every view."""
VIDEO_BYTES = 16 + 12
"""Bytes of a video in a store beside its frames and the letters of its name: its two rows, and what
stands around the name."""
ARRAY_BYTES, STORE_BYTES, VIEW_STORE_BYTES = 1050, 2140, 620
"""Bytes of Zarr's metadata: of a token array, of everything else in a store, and of a view's group
and affine. They are estimates, since names and shapes change the text a little; beside tokens this
is nothing. A test holds the sum to 2 per cent of the bytes of a cache that is made."""
CHECKSUM_DIGITS = 2 * CRC_BYTES
"""Bytes of a chunk's checksum where its store lists it, in hexadecimal digits."""
CACHE_FILES = 1
"""cache.json; the files of the manifest, and what a fitted codec has learnt, come on top."""
PLACEHOLDER_LABELS = ("one", "two")
"""Labels where no manifest says what there is to tell apart."""


@dataclass(frozen=True)
class PlannedStore:
    """A store that extraction would make."""

    frames: int
    videos: int
    name_letters: int
    """Letters of the names of all its videos."""


class CodecSize(Settings):
    """The size of the tokens in one codec, before compression."""

    bytes_per_frame: int
    """Tokens of a frame alone."""
    disk_bytes: int
    """All stores: tokens, checksums, times, metadata."""


class Scale(Settings):
    """The amount of data that a spec and its videos come to."""

    videos: int | None
    clips: int | None
    """Both None without a manifest."""
    hours: float | None
    """Hours of video; None where headers do not say."""
    frames: int
    """Frames that are cached."""
    tokens: int
    stores: int
    files: int
    codecs: dict[str, CodecSize | None]
    """Codec -> sizes; None for a codec that cannot hold tokens of this width."""


class Operations(Settings):
    """Floating-point operations, 2 for a multiply and add."""

    encoder_frame: int
    """Operations of the encoder for one frame in one view."""
    extraction: int
    """Operations of the encoder for all frames in all views."""
    mixer: int | None = None
    """Operations of the forward pass over one window in training, as are the next two; None without
    a recipe."""
    temporal: int | None = None
    readout: int | None = None
    cached_step: int | None = None
    """A training step, as three forward passes over a batch."""
    uncached_step: int | None = None
    """A training step, and one pass of the encoder over every frame of it."""
    break_even: float | None = None
    """Like `Times.break_even`, by operations alone: decoding, reading and waiting left out."""


class Training(Settings):
    """The amount of training that the recipe asks for."""

    windows: int
    """Windows of an epoch."""
    steps_per_epoch: float
    epochs: float
    step_frames: int
    """Frames of a step: B windows of T."""
    step_bytes: int
    """Bytes that a step reads from the cache. Patches that it leaves out are among them: a disk
    gives whole rows."""
    memory_bytes: int | None
    """Memory that training takes at its peak on a CPU in float32, beside what the program takes by
    itself; None where a plug-in's model cannot be counted."""
    memory_warning: str | None
    """How to take less, where less than that is free on this machine."""


class Times(Settings):
    """The time that each stage will take on a machine like this one."""

    extract_s: float
    """The whole extraction."""
    slowest: str
    """The step of extraction that sets the pace."""
    write_bytes_per_s: float
    """Rate at which the others need not wait for the writing."""
    fits_memory: bool
    """Whether the cache is read from memory after the first epoch."""
    read_bytes_per_s: float | None = None
    """Rate at which training reads; None without a recipe, as are the next ones."""
    cached_step_s: float | None = None
    uncached_step_s: float | None = None
    cached_epoch_s: float | None = None
    uncached_epoch_s: float | None = None
    break_even: float | None = None
    """Epochs, counted over all runs, after which caching has cost less time; None: never."""


class Plan(Settings):
    """Everything that can be told before anything runs."""

    spec: str
    codec: str
    recipe: str | None
    manifest: str | None
    """Folder of the manifest that is trained on, where it is not the one that is cached."""
    runs: int
    scale: Scale
    operations: Operations
    training: Training | None
    speed: Throughput | None
    times: Times | None
    layout: LayoutAdvice | None = None
    """The sizes of chunks and shards that suit the recipe; None without one."""
    uneven: str | None = None
    """Which rates would step evenly over the videos, where the spec's does not."""


def plan(
    spec: CacheSpec,
    videos: Manifest | None,
    frames: int | None,
    recipe: Recipe | None,
    runs: int,
    throughput: Throughput | None,
    decoders: int,
    clips: Manifest | None = None,
) -> Plan:
    """The plan for `videos`, or for so many `frames` where there is no manifest; with seconds only
    where there is a `throughput`. `clips` is another manifest over these videos, which is trained
    on. `require` says which errors are raised."""
    shape = token_shape(spec)
    scale = _scale(spec, shape, videos, frames)
    trained = clips or videos
    training = _training(spec, shape, trained, recipe, scale) if recipe else None
    operations = _operations(spec, shape, trained, recipe, scale, training)
    return Plan(
        spec=spec.name,
        codec=spec.codec.name,
        recipe=recipe.name if recipe else None,
        manifest=None if clips is None else str(clips.folder),
        runs=runs,
        scale=scale,
        operations=operations,
        training=training,
        speed=throughput,
        layout=advise(spec, shape, recipe, _spacing(spec, recipe, scale)) if recipe else None,
        uneven=extract.uneven_frames_text(spec, videos) or None if videos else None,
        times=_times(spec, scale, training, throughput, decoders) if throughput else None,
    )


def require(
    spec: CacheSpec, videos: Manifest | None, recipe: Recipe | None, clips: Manifest | None = None
) -> None:
    """Refuses a spec, manifests and a recipe that do not go together, as far as can be told before
    there is a cache: layers, rates, views, labels. `clips` is as in `plan`. Raises BadInput."""
    shape = token_shape(spec)
    if videos:
        extract.require_videos(videos)
    if recipe is None:
        return
    layers_read(recipe, shape)
    trained = clips or videos
    used = clips_of(trained, "train", recipe.windows) if trained else []
    require_rate(recipe.windows, used, spec.frames.rate, f"spec '{spec.name}'")
    require_fitting_crop(recipe.windows, shape.grid_hw, f"spec '{spec.name}'")
    for name in recipe.windows.views:
        if name not in (BASE, *(view.name for view in spec.views)):
            raise BadInput(
                f"recipe '{recipe.name}' wants the view '{name}', "
                f"spec '{spec.name}' has none of that name",
                "add it to the spec, or leave it out of windows.views",
            )
    labels = labels_of(recipe, trained) if trained else PLACEHOLDER_LABELS
    make_task(recipe, labels)  # which refuses what does not go together


# Sizes


def _scale(
    spec: CacheSpec, shape: TokenShape, videos: Manifest | None, frames: int | None
) -> Scale:
    expected = _expected_frames(spec, shape, videos)
    stores = _planned_stores(spec, shape, expected, frames)
    num_frames = sum(store.frames for store in stores)
    seconds = None
    if videos is not None:
        lengths = [fact.duration_s for fact in videos.facts.values() if fact and fact.duration_s]
        seconds = sum(lengths) if lengths else None
    elif spec.frames.rate:
        seconds = num_frames / spec.frames.rate
    codecs: dict[str, CodecSize | None] = {}
    for name in plugins.names("codec"):
        try:
            other = _with_codec(spec, name)
            other_stores = _planned_stores(other, shape, expected, frames)
            codecs[name] = CodecSize(
                bytes_per_frame=bytes_per_frame(other, shape),
                disk_bytes=_on_disk(other, shape, other_stores)[1],
            )
        except BadInput:  # tokens of this width do not fit into the codec
            codecs[name] = None
    files = CACHE_FILES + isinstance(make_codec(spec.codec), FittedCodec)
    if videos:
        files += sum((videos.folder / name).is_file() for name in Manifest.FILES)
    else:
        files += len(Manifest.FILES)
    return Scale(
        videos=len(videos.videos) if videos else None,
        clips=len(videos.clips) if videos else None,
        hours=None if seconds is None else seconds / 3600,
        frames=num_frames,
        tokens=num_frames * spec.tokens_per_frame(shape),
        stores=len(stores),
        files=_on_disk(spec, shape, stores)[0] + files,
        codecs=codecs,
    )


def _expected_frames(
    spec: CacheSpec, shape: TokenShape, videos: Manifest | None
) -> dict[str, int] | None:
    """Video -> frames that its header promises; None without a manifest."""
    if videos is None:
        return None
    stores = extract.make_plan(spec, shape, videos).values()
    return {video_id: frames for store in stores for video_id, frames in store.items()}


def _planned_stores(
    spec: CacheSpec, shape: TokenShape, expected: Mapping[str, int] | None, frames: int | None
) -> list[PlannedStore]:
    """The stores of these videos; or, without a manifest, of so many frames: full ones, each as if
    it held one video."""
    limit = frames_per_store(spec, shape)
    if expected is not None:
        return [
            PlannedStore(sum(store.values()), len(store), sum(map(len, store)))
            for store in fill_stores(expected, limit).values()
        ]
    assert frames is not None
    full, rest = divmod(frames, limit)
    sizes = [limit] * full + [rest] * (rest > 0)
    return [PlannedStore(size, videos=1, name_letters=0) for size in sizes]


def _with_codec(spec: CacheSpec, name: str) -> CacheSpec:
    """The spec with another codec, at its defaults."""
    if name == spec.codec.name:
        return spec
    return spec.model_copy(update={"codec": choice("codec", {"name": name})})


def _on_disk(spec: CacheSpec, shape: TokenShape, stores: Iterable[PlannedStore]) -> tuple[int, int]:
    """Files and bytes of stores. Receipts are files, but no bytes of a store."""
    views = (BASE, *(view.name for view in spec.views))
    arrays = tokens_by_array(shape.layers, shape.special_tokens, shape.patch_tokens, views)
    entries = make_codec(spec.codec).layout(shape.width)
    shard_frames = frames_per_shard(spec, shape)
    layouts = [
        ShardLayout((tokens, *tail), dtype, spec.store.chunk_frames, shard_frames)
        for tokens in arrays.values()
        for tail, dtype in entries.values()
    ]
    axes = {
        stored_name(name, key): 1 + len(tail)
        for name in arrays
        for key, (tail, _) in entries.items()
    }

    @cache  # most stores of a plan are full
    def of_frames(frames: int) -> tuple[int, int]:
        shards = math.ceil(frames / shard_frames)
        files = len(required_files(axes, shards, views)) + len(small_arrays(views)) + 1  # receipt
        size = STORE_BYTES + VIEW_STORE_BYTES * len(spec.views)
        size += frames * (FRAME_BYTES + VIEW_BYTES * len(views))
        for layout in layouts:
            chunks = math.ceil(frames / layout.chunk_frames)
            size += ARRAY_BYTES + CHECKSUM_DIGITS * chunks + array_bytes(layout, frames)
        return files, size

    files = size = 0
    for store in stores:
        store_files, store_bytes = of_frames(store.frames)
        # Zarr writes no chunk of zeros, and a single video starts at row 0.
        files += store_files - (store.videos == 1)
        size += store_bytes + store.videos * VIDEO_BYTES + store.name_letters
    return files, size


# What is done


def _training(
    spec: CacheSpec, shape: TokenShape, videos: Manifest | None, recipe: Recipe, scale: Scale
) -> Training:
    """The amount of training that the recipe asks for. Without a manifest, an epoch is as many
    windows as have all cached frames once between their first and last."""
    batch, frames = recipe.training.batch_size, recipe.windows.frames
    if videos:
        windows = expected_windows(videos, recipe.windows, spec)
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
    token_bytes = make_codec(spec.codec).bytes_per_token(shape.width)
    memory = TrainingMemory(
        [recipe],
        shape,
        labels_of(recipe, videos) if videos else PLACEHOLDER_LABELS,
        token_bytes,
        BATCHES_IN_MEMORY,
        EVAL_BATCH,
    )
    peak_bytes, warning, free_bytes = None, None, free_memory_bytes()
    with suppress(NotCounted):
        peak_bytes = memory.peak_bytes()
        if free_bytes is not None and peak_bytes > free_bytes:
            warning = memory.warning(peak_bytes, free_bytes)
    return Training(
        windows=windows,
        steps_per_epoch=windows / batch,
        epochs=steps_of(recipe.training, windows) * batch / windows,
        step_frames=batch * frames,
        step_bytes=batch * frames * tokens * token_bytes,
        memory_bytes=peak_bytes,
        memory_warning=warning,
    )


def _spacing(spec: CacheSpec, recipe: Recipe, scale: Scale) -> float:
    """Cached frames from one frame of a window to the next; 1 where nothing is known of the
    videos."""
    step = recipe.windows.step()
    if step is None:  # whole clips
        return max(1.0, scale.frames / ((scale.clips or scale.frames) * recipe.windows.frames))
    if step.in_rows:
        return step.size
    rate = spec.frames.rate or (scale.frames / (3600 * scale.hours) if scale.hours else 0.0)
    return max(1.0, rate * step.size)


def _operations(
    spec: CacheSpec,
    shape: TokenShape,
    videos: Manifest | None,
    recipe: Recipe | None,
    scale: Scale,
    training: Training | None,
) -> Operations:
    encoder = plugins.load("encoder", spec.encoder.name)
    encoder_frame = encoder.flops(spec.encoder.settings, spec.frames.size_px)
    extraction = encoder_frame * scale.frames * (1 + len(spec.views))
    if recipe is None or training is None:
        return Operations(encoder_frame=encoder_frame, extraction=extraction)
    labels = labels_of(recipe, videos) if videos else PLACEHOLDER_LABELS
    parts = profile.flops(recipe, shape, labels, in_training=True)
    cached_step = STEP_PASSES * sum(parts.values()) * recipe.training.batch_size
    encoder_step = encoder_frame * training.step_frames
    return Operations(
        encoder_frame=encoder_frame,
        extraction=extraction,
        **parts,
        cached_step=cached_step,
        uncached_step=cached_step + encoder_step,
        break_even=break_even(extraction, encoder_step * training.steps_per_epoch, 0),
    )


def _times(
    spec: CacheSpec,
    scale: Scale,
    training: Training | None,
    throughput: Throughput,
    decoders: int,
) -> Times:
    busy_s = {
        "decode": throughput.decode_s / decoders,
        "encode": throughput.encode_s * (1 + len(spec.views)),
        "write": throughput.write_s,
    }
    codec = scale.codecs[spec.codec.name]
    assert codec is not None
    frame_s = max(throughput.frame_s, throughput.write_s)
    times = Times(
        extract_s=throughput.load_s + throughput.start_s + scale.frames * frame_s,
        slowest=max(busy_s, key=lambda step: busy_s[step]),
        write_bytes_per_s=throughput.frame_bytes / max(busy_s["decode"], busy_s["encode"]),
        fits_memory=codec.disk_bytes < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )
    if training is None or throughput.step_s is None or throughput.uncached_step_s is None:
        return times
    cached_step_s = throughput.step_s
    if not times.fits_memory and throughput.read_cold_bytes_per_s:
        read_s = training.step_bytes / throughput.read_cold_bytes_per_s
        cached_step_s = max(cached_step_s, read_s)
    cached_epoch_s = cached_step_s * training.steps_per_epoch
    uncached_epoch_s = throughput.uncached_step_s * training.steps_per_epoch
    return times.model_copy(
        update={
            "read_bytes_per_s": training.step_bytes / cached_step_s,
            "cached_step_s": cached_step_s,
            "uncached_step_s": throughput.uncached_step_s,
            "cached_epoch_s": cached_epoch_s,
            "uncached_epoch_s": uncached_epoch_s,
            "break_even": break_even(times.extract_s, uncached_epoch_s, cached_epoch_s),
        }
    )


def break_even(extract_s: float, uncached_epoch_s: float, cached_epoch_s: float) -> float | None:
    """Epochs, counted over all runs, after which caching has cost less time; None: never."""
    saved_s = uncached_epoch_s - cached_epoch_s
    return extract_s / saved_s if saved_s > 0 else None
