"""Both stages tried out on this machine for half a minute: real videos, encoder, codec, disk and
recipe, on a small sample.

The sample is extracted and trained on by the same code as all of them would be, in a scratch folder
inside the output's, which is removed afterwards.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.cache.cache import Cache
from pipeline.cache.commit import unwritable
from pipeline.cache.layout import bytes_per_frame
from pipeline.cache.page_cache import evict
from pipeline.cache.storage.local import LocalFolder
from pipeline.cache.storage.open import open_storage
from pipeline.config.cache_spec import CacheSpec
from pipeline.config.plugins import Settings
from pipeline.config.recipe import Recipe, WindowSettings
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import BadVideo, StillframeError
from pipeline.experiments.subset import SKIP_HINT, median_fps, write_subset, write_synthetic
from pipeline.experiments.uncached import UncachedReader
from pipeline.extract import extract
from pipeline.extract.worker import fill
from pipeline.models.encoders.contract import EncoderPlugin, make_encoder, token_shape
from pipeline.models.profile import synchronize
from pipeline.models.video_model import layers_read
from pipeline.records import Frames
from pipeline.train import loop
from pipeline.train.distributed import ALONE
from pipeline.train.windows.reader import BATCHES_AHEAD
from pipeline.train.windows.windows import Windows
from pipeline.video.reader import FrameReader
from pipeline.video.transforms import FrameTransforms

Tell = Callable[[str], None]
"""What is being tried."""
FIRST_FRAMES = 64
"""Decoded and encoded first, to know how many can be extracted in time."""
MOST_BYTES = 2 * 10**9
"""Of tokens that are written."""
SHARES = {"alone": 0.15, "extract": 0.35, "train": 0.2, "uncached": 0.2}
"""Of the time; reading and what comes before and after take the rest."""
BLOCKS = 8
"""Of decoded frames, each of another video, that the encoder alone is tried with."""
LEAST_STEPS, MOST_STEPS = 4, 100_000
READ_BATCH = 8


class Throughput(Settings):
    """What was measured. Seconds per frame are per cached frame."""

    videos: int
    frames: int
    """Extracted."""
    load_s: float
    """Until the encoder is loaded."""
    start_s: float
    """Of an extraction, before its first frames and after its last: processes start, the last store
    is synced."""
    frame_s: float
    """Of an extraction: decoding, encoding and writing overlap."""
    decode_s: float
    """One decoding process alone."""
    encode_s: float
    """Resizing and encoding alone, in one view."""
    write_s: float
    """Codec, checksums, writing and syncing, while the other steps are at work."""
    frame_bytes: float
    """On disk, after codec and compression."""
    read_hot_bytes_per_s: float
    """Windows, from memory."""
    read_cold_bytes_per_s: float | None
    """From the disk; None where the system cannot forget a file, or the cache is at a URL."""
    step_s: float | None = None
    """A training step, its tokens read from memory; None without a recipe."""
    uncached_step_s: float | None = None
    """The same with the encoder in the loop: decoding, resizing, encoding; None without a
    recipe."""


class _Enough(Exception):
    """Training has been looked at for long enough."""


def measure_stages(
    spec: CacheSpec,
    videos: Manifest | None,
    recipe: Recipe | None,
    out: str,
    device: torch.device,
    decoders: int,
    seconds: float,
    tell: Tell,
) -> Throughput:
    """Tries both stages for about `seconds`; with a slow encoder it takes longer, as some frames
    are needed for a window.

    Without a manifest, videos of the built-in world stand in.

    Raises StillframeError where nothing can be decoded or written, and whatever a real extraction
    or training would raise.
    """
    tell("loading the encoder")
    begin = time.perf_counter()
    encoder = make_encoder(spec, device)
    load_s = time.perf_counter() - begin
    least = 2 * (recipe.windows.frames if recipe else 1)
    with tempfile.TemporaryDirectory() as made, _scratch(out) as place:
        folder = Path(made)
        videos = videos or write_synthetic(spec, recipe, folder / "world")
        tell("decoding and encoding")
        few = write_subset(videos, spec, max(FIRST_FRAMES, least), folder / "first")
        alone = _alone(spec, few, encoder, device, SHARES["alone"] * seconds)
        tell("extracting")
        frames = int(
            SHARES["extract"]
            * seconds
            / max(alone.decode_s / decoders, alone.encode_s * (1 + len(spec.views)))
        )
        wanted = max(least, min(frames, MOST_BYTES // bytes_per_frame(spec, token_shape(spec))))
        some = write_subset(videos, spec, wanted, folder / "more")
        # Where not even a few batches can be had in time, they are smaller; encoders of that kind gain little from large ones.
        store = spec.store.model_copy(
            update={"batch_frames": min(spec.store.batch_frames, max(1, wanted // 4))}
        )
        caches = f"{place}/caches"
        cache, extracted = _extract(
            spec.model_copy(update={"store": store}), some, encoder, caches, device, decoders
        )
        tell("reading")
        read = _read(cache, some, recipe)
        steps = {}
        if recipe:
            tell("training")
            steps["step_s"] = _step(
                recipe, cache, folder / "run", device, SHARES["train"] * seconds
            )
            tell("training with the encoder in the loop")
            steps["uncached_step_s"] = _step(
                recipe,
                cache,
                folder / "uncached",
                device,
                SHARES["uncached"] * seconds,
                _InLoop(encoder, decoders, alone.encode_s),
            )
    # A frame is extracted no faster than it is decoded and encoded: what was slower alone was disturbed.
    decode_s = min(alone.decode_s, extracted["frame_s"] * decoders)
    encode_s = min(alone.encode_s, extracted["frame_s"] / (1 + len(spec.views)))
    figures = {
        "load_s": load_s,
        "decode_s": decode_s,
        "encode_s": encode_s,
        **extracted,
        **read,
        **steps,
    }
    return Throughput(videos=len(some.videos), **figures)


@contextmanager
def _scratch(out: str) -> Iterator[str]:
    """A place of its own inside `out`, and nothing left of it afterwards, nor of `out` if that was
    not there."""
    name = f".plan-{os.getpid()}"
    where = open_storage(out)
    is_new = isinstance(where, LocalFolder) and not Path(out).exists()
    try:
        yield f"{out.rstrip('/')}/{name}"
    except OSError as error:
        raise unwritable(where, error) from error
    finally:
        where.remove(name)
        if is_new:
            with suppress(OSError):
                Path(out).rmdir()


# What is tried


class _Alone(NamedTuple):
    """Seconds per frame of one decoding process, and of the encoder, each by itself."""

    decode_s: float
    encode_s: float


def _alone(
    spec: CacheSpec, some: Manifest, encoder: EncoderPlugin, device: torch.device, seconds: float
) -> _Alone:
    blocks: deque[Frames] = deque(maxlen=BLOCKS)
    frames, spent_s = 0, 0.0
    with FrameReader(some.root, device) as reader:
        for turn, video in enumerate((some.videos[0], *some.videos)):
            begin, count = time.perf_counter(), 0
            with suppress(BadVideo):
                for block in reader.blocks(video, [spec.frames.rate]):
                    if count == 0:
                        blocks.append(block.transforms.frames)
                    count += len(block.time_s)
            if turn:  # the first one has waited for the process to start
                frames, spent_s = frames + count, spent_s + time.perf_counter() - begin
            if frames and spent_s > seconds / 2:
                break
    if not frames:
        raise StillframeError("none of the sampled videos could be decoded", SKIP_HINT)

    def encode(size: int) -> float:
        """Seconds of a batch, its frames as they come from several videos."""
        begin, squares = time.perf_counter(), list[torch.Tensor]()
        with torch.inference_mode():
            while (left := size - sum(map(len, squares))) > 0:
                squares.append(
                    FrameTransforms(blocks[0], device).squares(
                        spec.frames, np.arange(len(blocks[0])) < left, None
                    )[0]
                )
                blocks.rotate()
            encoder(torch.cat(squares))
        synchronize(device)
        return time.perf_counter() - begin

    encode(1)  # warms up
    # Where the encoder is slow, batches are small: they gain it little.
    size = min(spec.store.batch_frames, max(1, int(seconds / 4 / encode(1))))
    encode(size)
    batches = [encode(size)]
    while sum(batches) < seconds / 4:
        batches.append(encode(size))
    return _Alone(spent_s / frames, statistics.median(batches) / size)


def _extract(
    spec: CacheSpec,
    some: Manifest,
    encoder: EncoderPlugin,
    out: str,
    device: torch.device,
    decoders: int,
) -> tuple[Cache, dict[str, Any]]:
    """The cache of the sample, and figures of its extraction."""
    noted: list[tuple[float, int]] = []
    begin = time.perf_counter()
    laid_out = extract.create_or_open(spec, some, out, encoder, device)
    job = extract.extraction_job([laid_out.storage.address], some, str(device), decoders)
    progress = fill(
        [(laid_out, encoder, [])],
        some.videos,
        job,
        device,
        lambda state: noted.append((time.perf_counter(), state.frames)),
    )
    cache = Cache(laid_out.storage)
    whole_s = time.perf_counter() - begin
    if not progress.frames:
        raise StillframeError("none of the sampled videos could be decoded", SKIP_HINT)
    first, last = noted[0], next(pair for pair in noted if pair[1] == progress.frames)
    frame_s = (
        (last[0] - first[0]) / (last[1] - first[1]) if last[1] > first[1] else whole_s / last[1]
    )
    figures = {
        "frames": progress.frames,
        "start_s": max(0.0, whole_s - progress.frames * frame_s),
        "frame_s": frame_s,
        "write_s": progress.seconds["write"] / progress.frames,
        "frame_bytes": progress.store_bytes / progress.frames,
    }
    return cache, figures


def _read(cache: Cache, some: Manifest, recipe: Recipe | None) -> dict[str, Any]:
    """Bytes per second of windows, in the order in which evaluation reads them, from the disk and
    then from memory."""
    settings = (
        recipe.windows if recipe else WindowSettings(frames=16, fps=cache.fps or median_fps(some))
    )
    layers = layers_read(recipe, cache.shape) if recipe else cache.shape.layers
    windows = Windows(cache, some, "train", settings, layers=layers, allow_missing=True)

    def once() -> float:
        begin = time.perf_counter()
        size = sum(
            array.nbytes
            for batch in windows.evaluation(READ_BATCH)
            for array in batch.arrays.values()
        )
        return size / (time.perf_counter() - begin)

    once()  # opens the stores
    is_cold = isinstance(cache.storage, LocalFolder) and evict(cache.path)
    cold, _, hot = once(), once(), once()
    return {"read_cold_bytes_per_s": cold if is_cold else None, "read_hot_bytes_per_s": hot}


class _InLoop(NamedTuple):
    """Training without a cache."""

    encoder: EncoderPlugin
    decoders: int
    encode_s: float
    """About, per frame."""


def _step(
    recipe: Recipe,
    cache: Cache,
    run: Path,
    device: torch.device,
    seconds: float,
    in_loop: _InLoop | None = None,
) -> float:
    """Seconds of a training step. The first ones, whose batches were there before, are left out;
    nothing is evaluated or saved.

    With the encoder in the loop, where a step takes long, it is tried with fewer windows: it takes
    as long for each.
    """
    size = batch_size = recipe.training.batch_size
    if in_loop:
        frame_s = seconds / (BATCHES_AHEAD + LEAST_STEPS) / in_loop.encode_s
        size = min(batch_size, max(1, int(frame_s / recipe.windows.frames)))
    endless = {
        "steps": MOST_STEPS,
        "epochs": None,
        "evaluate_every": None,
        "checkpoint_every": MOST_STEPS,
    }
    if size < batch_size:
        endless |= {"batch_size": size, "accumulate": 1}
    asked = recipe.model_copy(
        update={
            "training": recipe.training.model_copy(update=endless),
            "windows": recipe.windows.model_copy(
                update={"train_fraction": 1.0}
            ),  # the sample is small enough
            "cache": None,
        }
    )
    ended: list[float] = []

    def note(_: object) -> None:
        ended.append(time.perf_counter())
        timed = ended[BATCHES_AHEAD:]
        if len(timed) > LEAST_STEPS and timed[-1] - timed[0] > seconds:
            raise _Enough

    tasks, windows, held_out = loop.open_windows([asked], cache, cache.manifest, allow_missing=True)
    with ExitStack() as stack:
        if in_loop:
            windows.reader = stack.enter_context(
                UncachedReader(windows, in_loop.encoder, in_loop.decoders, device)
            )
        stack.enter_context(suppress(_Enough))
        trainers = loop.make_trainers({run: asked}, tasks, windows, device)
        loop.TrainLoop(trainers, windows, held_out, device, ALONE, note, None).fit()
    timed = ended[BATCHES_AHEAD:]
    return (timed[-1] - timed[0]) / (len(timed) - 1) * batch_size / size
