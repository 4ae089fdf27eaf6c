"""Both stages tried on this machine for half a minute: real videos, encoder, codec, disk and
recipe, on a small subset.

The subset is extracted and trained on by the same code as all videos would be, in a scratch folder
inside the output's, which is removed afterwards. Seconds of the steps of an extraction are those of
the receipts that it wrote.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.cache.cache import Cache
from pipeline.cache.commit import unwritable
from pipeline.cache.layout import bytes_per_frame
from pipeline.cache.shard.page_cache import evict
from pipeline.cache.storage.local import LocalFolder
from pipeline.cache.storage.open import open_storage
from pipeline.config.cache_spec import CacheSpec
from pipeline.config.plugins import Settings
from pipeline.config.recipe import Recipe, WindowSettings
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import StillframeError
from pipeline.experiments.planning.subset import (
    SKIP_HINT,
    median_fps,
    write_subset,
    write_synthetic,
)
from pipeline.experiments.planning.uncached import UncachedReader
from pipeline.extract import extract
from pipeline.extract.execution import Execution
from pipeline.extract.worker import fill
from pipeline.models.encoders.contract import EncoderPlugin, make_encoder, token_shape
from pipeline.models.video_model import layers_read
from pipeline.train.loop import TrainLoop
from pipeline.train.setup import RunContext, make_trainers, open_windows
from pipeline.train.windows.reader import BATCHES_AHEAD
from pipeline.train.windows.windows import Windows

Tell = Callable[[str], None]
"""Takes what is being tried, for a progress bar."""
FIRST_FRAMES = 64
"""Frames that are extracted first, to know how many can be in the time there is."""
MOST_BYTES = 2 * 10**9
"""Bytes of tokens that are written at most."""
SHARES = {"extract": 0.5, "train": 0.2, "uncached": 0.2}
"""Shares of the time; reading, and what comes before and after, take the rest."""
LEAST_STEPS, MOST_STEPS = 4, 100_000
"""Training steps that are timed at least, and steps that no trial reaches."""
READ_BATCH = 8
"""Windows that are read at a time."""


class Throughput(Settings):
    """Speeds that were measured on this machine. Seconds per frame are per cached frame."""

    videos: int
    """Videos of the subset."""
    frames: int
    """Frames that were extracted."""
    load_s: float
    """Time until the encoder was loaded."""
    start_s: float
    """Time of an extraction before its first frames and after its last: processes start, the last
    store is synced."""
    frame_s: float
    """Time of an extraction per frame: decoding, encoding and writing overlap."""
    decode_s: float
    """Work of a decoding process per frame, waiting left out."""
    encode_s: float
    """Resizing and encoding a frame in one view, waiting left out."""
    write_s: float
    """Codec, checksums, writing and syncing, per frame, waiting left out."""
    frame_bytes: float
    """Bytes of a frame on disk, after codec and compression."""
    read_hot_bytes_per_s: float
    """Rate at which windows are read from memory."""
    read_cold_bytes_per_s: float | None
    """Rate at which windows are read from the disk; None where the system cannot forget a file, or
    the cache is at a URL."""
    step_s: float | None = None
    """A training step, its tokens read from memory; None without a recipe."""
    uncached_step_s: float | None = None
    """A training step with the encoder in the loop: decoding, resizing, encoding; None without a
    recipe."""


@dataclass(frozen=True)
class Extracted:
    """An extraction that was timed. Seconds are those of `Throughput`."""

    cache: Cache
    frames: int
    start_s: float
    frame_s: float
    decode_s: float
    encode_s: float
    write_s: float
    frame_bytes: float


@dataclass(frozen=True)
class InLoop:
    """The encoder and the decoders that training without a cache needs."""

    encoder: EncoderPlugin
    decoders: int
    encode_s: float
    """About how long a frame takes the encoder."""


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

    Without a manifest, videos of the built-in world stand in. Raises StillframeError where nothing
    can be decoded or written, and whatever a real extraction or training would raise.
    """
    tell("loading the encoder")
    begin = time.perf_counter()
    encoder = make_encoder(spec, device)
    load_s = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as scratch, _scratch(out) as caches:
        folder = Path(scratch)
        videos = videos or write_synthetic(spec, recipe, folder / "world")
        tell("extracting a few frames")
        least = max(FIRST_FRAMES, 2 * (recipe.windows.frames if recipe else 1))
        subset = write_subset(videos, spec, least, folder / "first")
        extracted = timed_extraction(
            small_batches(spec, least), subset, encoder, f"{caches}/first", device, decoders
        )
        affordable = affordable_frames(spec, extracted, decoders, SHARES["extract"] * seconds)
        if affordable > least:
            tell("extracting")
            subset = write_subset(videos, spec, affordable, folder / "more")
            extracted = timed_extraction(
                small_batches(spec, affordable), subset, encoder, f"{caches}/more", device, decoders
            )
        tell("reading")
        cold, hot = read_rates(extracted.cache, subset, recipe)
        step_s = uncached_step_s = None
        if recipe:
            tell("training")
            step_s = timed_step(
                recipe, extracted.cache, folder / "run", device, SHARES["train"] * seconds
            )
            tell("training with the encoder in the loop")
            in_loop = InLoop(encoder, decoders, extracted.encode_s)
            uncached_step_s = timed_step(
                recipe,
                extracted.cache,
                folder / "uncached",
                device,
                SHARES["uncached"] * seconds,
                in_loop,
            )
    return Throughput(
        videos=len(subset.videos),
        frames=extracted.frames,
        load_s=load_s,
        start_s=extracted.start_s,
        frame_s=extracted.frame_s,
        decode_s=extracted.decode_s,
        encode_s=extracted.encode_s,
        write_s=extracted.write_s,
        frame_bytes=extracted.frame_bytes,
        read_hot_bytes_per_s=hot,
        read_cold_bytes_per_s=cold,
        step_s=step_s,
        uncached_step_s=uncached_step_s,
    )


@contextmanager
def _scratch(out: str) -> Iterator[str]:
    """A place of its own inside `out`. Nothing of it is left afterwards, nor of `out` if that was
    not there."""
    name = f".plan-{os.getpid()}"
    storage = open_storage(out)
    is_new = isinstance(storage, LocalFolder) and not Path(out).exists()
    try:
        yield f"{out.rstrip('/')}/{name}"
    except OSError as error:
        raise unwritable(storage, error) from error
    finally:
        storage.remove(name)
        if is_new:
            with suppress(OSError):  # somebody else has put something there
                Path(out).rmdir()


# Stage one


def small_batches(spec: CacheSpec, frames: int) -> CacheSpec:
    """The spec with batches of which at least four are needed for so many frames: a slow encoder,
    for which few frames can be tried, gains little from large ones."""
    batch_frames = min(spec.store.batch_frames, max(1, frames // 4))
    return spec.model_copy(
        update={"store": spec.store.model_copy(update={"batch_frames": batch_frames})}
    )


def affordable_frames(spec: CacheSpec, extracted: Extracted, decoders: int, seconds: float) -> int:
    """Frames that can be extracted in `seconds`, at the pace of an extraction that was timed."""
    encode_s = extracted.encode_s * (1 + len(spec.views))
    frame_s = max(extracted.decode_s / decoders, encode_s, extracted.write_s)
    return min(int(seconds / frame_s), MOST_BYTES // bytes_per_frame(spec, token_shape(spec)))


def timed_extraction(
    spec: CacheSpec,
    subset: Manifest,
    encoder: EncoderPlugin,
    out: str,
    device: torch.device,
    decoders: int,
) -> Extracted:
    """Extracts a subset as `extract` does, with an encoder that is loaded already. Raises
    StillframeError where no video can be decoded."""
    ends: list[tuple[float, int]] = []
    begin = time.perf_counter()
    how = Execution(
        device,
        decoders,
        on_progress=lambda progress: ends.append((time.perf_counter(), progress.frames)),
    )
    new_cache = extract.create_or_open(spec, subset, out, encoder, how)
    fill([(new_cache, encoder, [])], subset.videos, subset.root, how)
    whole_s = time.perf_counter() - begin
    cache = Cache(new_cache.storage)
    receipts = cache.receipts.values()
    frames = sum(receipt.frames for receipt in receipts)
    if not frames:
        raise StillframeError("none of the sampled videos could be decoded", SKIP_HINT)
    seconds: Counter[str] = Counter()
    for receipt in receipts:
        seconds.update(receipt.seconds)
    # The pace between the first batch and the last: before and after it, work does not overlap.
    (first_s, first), (last_s, last) = ends[0], next(end for end in ends if end[1] == frames)
    frame_s = (last_s - first_s) / (last - first) if last > first else whole_s / frames
    views = 1 + len(spec.views)
    # What a step was busy for, before the first batch too, may be more than its share of the pace.
    return Extracted(
        cache=cache,
        frames=frames,
        start_s=max(0.0, whole_s - frames * frame_s),
        frame_s=frame_s,
        decode_s=min(seconds["decode"] / frames, frame_s * decoders),
        encode_s=min(seconds["encode"] / frames, frame_s) / views,
        write_s=seconds["write"] / frames,
        frame_bytes=sum(receipt.store_bytes for receipt in receipts) / frames,
    )


# Stage two


def read_rates(cache: Cache, subset: Manifest, recipe: Recipe | None) -> tuple[float | None, float]:
    """Bytes per second of windows, in the order in which evaluation reads them: from the disk, if
    the system can be made to forget them, and from memory."""
    settings = recipe.windows if recipe else None
    if settings is None:
        settings = WindowSettings(frames=16, fps=cache.fps or median_fps(subset))
    layers = layers_read(recipe, cache.shape) if recipe else cache.shape.layers
    windows = Windows(cache, subset, "train", settings, layers=layers, allow_missing=True)

    def read_all() -> float:
        begin = time.perf_counter()
        num_bytes = sum(
            array.nbytes
            for batch in windows.evaluation(READ_BATCH)
            for array in batch.arrays.values()
        )
        return num_bytes / (time.perf_counter() - begin)

    read_all()  # opens the stores
    is_cold = isinstance(cache.storage, LocalFolder) and evict(cache.path)
    cold = read_all()
    read_all()  # fills the memory
    return (cold if is_cold else None), read_all()


def timed_step(
    recipe: Recipe,
    cache: Cache,
    run: Path,
    device: torch.device,
    seconds: float,
    in_loop: InLoop | None = None,
) -> float:
    """Seconds of a training step, tried for about `seconds`. The first steps, whose batches were
    read before, are left out; nothing is evaluated or saved.

    With the encoder in the loop, where a step takes long, it is tried with fewer windows: it takes
    as long for each.
    """
    batch_size = tried_size = recipe.training.batch_size
    if in_loop:
        frames = seconds / (BATCHES_AHEAD + LEAST_STEPS) / in_loop.encode_s
        tried_size = min(batch_size, max(1, int(frames / recipe.windows.frames)))
    tried = _endless(recipe, tried_size)
    ends: list[float] = []
    context = RunContext.of(cache, device=device, allow_missing=True)
    tasks, windows, held_out = open_windows([tried], context)
    with ExitStack() as stack:
        if in_loop:
            windows.reader = stack.enter_context(
                UncachedReader(windows, in_loop.encoder, in_loop.decoders, device)
            )

        def note_end(_: object) -> None:
            ends.append(time.perf_counter())
            timed = ends[BATCHES_AHEAD:]
            if len(timed) > LEAST_STEPS and timed[-1] - timed[0] > seconds:
                training.stop()

        trainers = make_trainers({run: tried}, tasks, windows, context)
        training = TrainLoop(trainers, windows, held_out, context, note_end)
        training.fit()
    timed = ends[BATCHES_AHEAD:]
    return (timed[-1] - timed[0]) / (len(timed) - 1) * batch_size / tried_size


def _endless(recipe: Recipe, batch_size: int) -> Recipe:
    """The recipe without evaluations and checkpoints, to be stopped before its end, on any cache
    and all of its videos, with batches of `batch_size` windows."""
    changes = {
        "steps": MOST_STEPS,
        "epochs": None,
        "evaluate_every": None,
        "checkpoint_every": MOST_STEPS,
    }
    if batch_size < recipe.training.batch_size:
        changes |= {"batch_size": batch_size, "accumulate": 1}
    return recipe.model_copy(
        update={
            "training": recipe.training.model_copy(update=changes),
            # The subset is small enough: a share of it might be no video at all.
            "windows": recipe.windows.model_copy(update={"train_fraction": 1.0}),
            "cache": None,
            # Drawn weights need no run, and take as long; frozen parts would take less.
            "init": None,
        }
    )
