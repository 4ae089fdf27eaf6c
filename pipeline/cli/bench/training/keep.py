"""Training on a share of the patch tokens (`windows.keep_tokens`) against training on all of them:
a step, and reading its windows from a store of the same frames."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.cache.layout import layer_name
from pipeline.cache.shard.format import Compression, aligned_empty
from pipeline.cache.shard.page_cache import evict
from pipeline.cache.storage.local import LocalFolder
from pipeline.cache.store import StoreReader
from pipeline.cache.store_writer import StoreWriter
from pipeline.cli.bench.timing import Tell, frozen, median_ratio, seconds_of, summary
from pipeline.cli.bench.training.steps import OptimisedStep, steps_in_turn
from pipeline.config.recipe import Recipe
from pipeline.device import chosen
from pipeline.records import TokenShape
from pipeline.train.windows.index import WindowRef
from pipeline.train.windows.kept import kept_patches

STORE, ARRAY = "00000.zarr", layer_name(1)
CPU = torch.device("cpu")
DTYPE = np.dtype(np.float16)
CHUNK_FRAMES, SHARD_BYTES, WRITE_FRAMES = 8, 256_000_000, 32
READS: dict[str, tuple[Compression, bool]] = {
    "reading, from memory": ("none", False),
    "reading, from the disk": ("none", True),
    "reading, compressed": ("zstd", False),
}
"""What is read -> how the store is compressed, and whether it is dropped from memory before."""
WAYS = ("all", "kept")
STEP = "a training step"


def keep_speed(
    recipe: Recipe,
    shape: TokenShape,
    batches: int,
    repeats: int,
    folder: Path | None,
    device: torch.device | None,
    tell: Tell,
) -> dict[str, Any]:
    """What takes time -> way -> seconds, and the ratio of the share that `recipe` keeps to all
    tokens; both take turns. A read is of so many `batches`, and its seconds are those of one.

    `folder`: on the disk to measure; a temporary one if None. Raises BadInput where the task of the
    recipe needs all tokens.
    """
    device = chosen(device)
    windows = recipe.windows.model_copy(update={"keep_tokens": None, "crop": None})
    ways = {"all": recipe.model_copy(update={"windows": windows}), "kept": recipe}
    with frozen(), tempfile.TemporaryDirectory(dir=folder) as scratch:
        steps = {way: OptimisedStep(of_way, shape, device) for way, of_way in ways.items()}
        seconds, peaks = steps_in_turn(steps, repeats, device, tell)
        figures = {STEP: _figures(seconds)}
        for name, (compression, is_cold) in READS.items():
            tell(0, 1, f"writing for {name}")
            place = Path(scratch) / name
            _write(place / STORE, recipe, shape, batches, compression)
            reads = {way: _Reads(place, of_way, shape, batches) for way, of_way in ways.items()}
            figures[name] = _figures(_reads_in_turn(reads, repeats, is_cold, name, tell))
    kept = recipe.windows.patches_kept(shape.grid_hw)
    batch = recipe.training.batch_size
    return {
        "repeats": repeats,
        "batch": batch,
        "frames": recipe.windows.frames,
        "tokens": {"all": shape.patch_tokens, "kept": kept},
        "batch_bytes": {way: read.batch_bytes for way, read in reads.items()},
        "peak_bytes": peaks,
        "figures": figures,
    }


class _Reads:
    """Reads batches of windows out of a store, each into memory of its own, as training does."""

    def __init__(self, place: Path, recipe: Recipe, shape: TokenShape, batches: int) -> None:
        self.place, self.recipe, self.shape, self.batches = place, recipe, shape, batches
        self.reader = StoreReader(LocalFolder(place), STORE)
        frames, kept = recipe.windows.frames, recipe.windows.patches_kept(shape.grid_hw)
        self.batch_shape = (recipe.training.batch_size, frames, kept, shape.width)

    @property
    def batch_bytes(self) -> int:
        return int(np.prod(self.batch_shape)) * DTYPE.itemsize

    def __call__(self) -> None:
        size, frames, *_ = self.batch_shape
        order = np.random.default_rng(0).permutation(self.batches * size) * frames
        for batch in order.reshape(self.batches, size).tolist():
            into = aligned_empty(self.batch_shape, DTYPE)
            for first, out in zip(batch, into, strict=True):
                ref = WindowRef(0, 0.0, number=first)
                kept_P = kept_patches(ref, self.shape.grid_hw, self.recipe.windows)
                self.reader.read_into(ARRAY, np.arange(first, first + frames), out, kept_P)


def _write(
    store: Path, recipe: Recipe, shape: TokenShape, batches: int, compression: Compression
) -> None:
    """Random tokens for so many batches of windows side by side."""
    store.mkdir(parents=True)
    of_frame = (shape.patch_tokens, shape.width)
    frame_bytes = shape.patch_tokens * shape.width * DTYPE.itemsize
    shard_frames = max(1, SHARD_BYTES // frame_bytes // CHUNK_FRAMES) * CHUNK_FRAMES
    writer = StoreWriter(store, {ARRAY: (of_frame, DTYPE)}, CHUNK_FRAMES, shard_frames, compression)
    rng = np.random.default_rng(0)
    frames = batches * recipe.training.batch_size * recipe.windows.frames
    for first in range(0, frames, WRITE_FRAMES):
        count = min(WRITE_FRAMES, frames - first)
        writer.append({ARRAY: rng.standard_normal((count, *of_frame), np.float32).astype(DTYPE)})
    writer.finish({}, {})


def _reads_in_turn(
    reads: Mapping[str, _Reads], repeats: int, is_cold: bool, name: str, tell: Tell
) -> dict[str, list[float]]:
    """Seconds of a batch in each round. Chunks are compared with their checksums before."""
    seconds: dict[str, list[float]] = {way: [] for way in reads}
    for read in reads.values():
        read()
    for repeat in range(repeats):
        for number, (way, read) in enumerate(reads.items()):
            tell(repeat * len(reads) + number, repeats * len(reads), name)
            if is_cold:
                evict(read.place)
            seconds[way].append(seconds_of(read, CPU) / read.batches)
    return seconds


def _figures(seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    whole, kept = (seconds[way] for way in WAYS)
    return {
        "all": summary(whole),
        "kept": summary(kept),
        "ratio": median_ratio(kept, whole),
    }
