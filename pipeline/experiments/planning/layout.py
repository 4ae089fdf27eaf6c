"""The sizes of chunks and shards that suit the windows of a recipe.

What a window reads follows from the layout alone (docs/format.md), so nothing is measured: a chunk
is compared with its checksum when a process first reads any of it, and a compressed one is always
unpacked whole; of others only the rows are read afterwards. An object store gives whole blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from pipeline.cache.codecs.contract import make_codec
from pipeline.cache.layout import SPECIAL, frames_per_shard, layer_bytes, tokens_by_array
from pipeline.cache.shard.format import ALIGNMENT, CRC_BYTES, ShardLayout, runs_by_shard
from pipeline.cache.shard.reader import LEAST_GAP, part_of_row, spans_of
from pipeline.cache.storage.contract import Span
from pipeline.cache.storage.disk_cache import BLOCK_BYTES, RUN_BLOCKS
from pipeline.config.cache_spec import CacheSpec
from pipeline.config.plugins import Settings
from pipeline.config.recipe import Recipe
from pipeline.models.video_model import layers_read
from pipeline.records import TokenShape
from pipeline.train.windows.index import WindowRef
from pipeline.train.windows.kept import kept_patches

CHUNK_FRAMES = (1, 2, 4, 8, 16, 32, 64)
"""Sizes of chunks that are looked at."""
SPARE = 1.1
"""A chunk may be so large that windows read a tenth more than with the best of these sizes."""
WINDOWS_PER_SHARD = 10
"""Windows that a shard holds at least, so that few lie in two files."""
STARTS = 64
"""First frames that are averaged over."""


class WindowReads(Settings):
    """The bytes of one window, in all arrays that it is read from, for one layout."""

    chunk_frames: int
    shard_mb: float
    first_bytes: float
    """Bytes of its chunks, which a process reads whole the first time, to compare them."""
    disk_bytes: float
    """Bytes that are read of them afterwards, from a disk."""
    object_bytes: float
    """Bytes of the blocks that an object store is asked for afterwards."""
    object_requests: float
    """Requests that these take."""
    files: float
    """Shards that it lies in."""


class LayoutAdvice(Settings):
    """The layout of a spec and the one that suits the windows of a recipe; equal where the first
    does."""

    present: WindowReads
    proposed: WindowReads

    @property
    def sets(self) -> list[str]:
        """The settings that make one of the other, as `--set` takes them."""
        settings = {
            f"store.{name}": getattr(self.proposed, name)
            for name in ("chunk_frames", "shard_mb")
            if getattr(self.proposed, name) != getattr(self.present, name)
        }
        return [f"{name}={value:g}" for name, value in settings.items()]


class _Array(NamedTuple):
    """One array that windows are read from."""

    row_shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    kept_P: np.ndarray | None
    """Mask of the tokens of a row that are read; None: all."""


def advise(spec: CacheSpec, shape: TokenShape, recipe: Recipe, spacing: float) -> LayoutAdvice:
    """The advice for windows whose frames are `spacing` cached frames apart."""
    rows_T = np.round(np.arange(recipe.windows.frames) * spacing).astype(int)
    arrays, frame_bytes = _arrays(spec, shape, recipe), layer_bytes(spec, shape)

    def reads(chunk_frames: int, shard_mb: float) -> WindowReads:
        store = spec.store.model_copy(update={"chunk_frames": chunk_frames, "shard_mb": shard_mb})
        return _reads(spec.model_copy(update={"store": store}), shape, rows_T, arrays)

    present = reads(spec.store.chunk_frames, spec.store.shard_mb)
    # Chunks that are smaller than what a request is worth only cost checksums.
    sizes = [size for size in CHUNK_FRAMES if size * frame_bytes >= LEAST_GAP] or [CHUNK_FRAMES[-1]]
    tried = {size: reads(size, spec.store.shard_mb).first_bytes for size in sizes}
    least = min(tried.values())
    chunk_frames = max(size for size, count in tried.items() if count <= SPARE * least)
    if present.first_bytes <= SPARE * least:
        chunk_frames = spec.store.chunk_frames
    shard_mb, span = spec.store.shard_mb, int(rows_T[-1]) + 1
    if frames_per_shard(spec, shape) < WINDOWS_PER_SHARD * span:
        wanted = math.ceil(WINDOWS_PER_SHARD * span * frame_bytes / 1e6)
        shard_mb = max(shard_mb, min(float(wanted), spec.store.store_mb))
    return LayoutAdvice(present=present, proposed=reads(chunk_frames, shard_mb))


def array_bytes(layout: ShardLayout, rows: int) -> int:
    """Bytes of the shards of an array of so many rows, before compression. A chunk that is begun is
    written whole."""
    return (
        math.ceil(rows / layout.chunk_frames) * _chunk_stride(layout)
        + math.ceil(rows / layout.shard_frames) * layout.index_bytes
    )


def _chunk_stride(layout: ShardLayout) -> int:
    """Bytes from one chunk of a shard to the next, before compression."""
    chunk = layout.chunk_frames * layout.row_bytes + CRC_BYTES
    return chunk + -chunk % ALIGNMENT


def _arrays(spec: CacheSpec, shape: TokenShape, recipe: Recipe) -> list[_Array]:
    """The arrays that the recipe's windows are read from."""
    entries = make_codec(spec.codec).layout(shape.width)
    kept_P = kept_patches(WindowRef(0, 0.0, number=0), shape.grid_hw, recipe.windows)
    tokens = tokens_by_array(layers_read(recipe, shape), shape.special_tokens, shape.patch_tokens)
    return [
        _Array((count, *tail), dtype, None if name == SPECIAL else kept_P)
        for name, count in tokens.items()
        for tail, dtype in entries.values()
    ]


def _reads(
    spec: CacheSpec, shape: TokenShape, rows_T: np.ndarray, arrays: Sequence[_Array]
) -> WindowReads:
    """Means over windows that begin anywhere in a shard that holds them."""
    shard_frames, is_packed = frames_per_shard(spec, shape), spec.store.compression != "none"
    compared = disk = blocks = requests = 0.0
    for array in arrays:
        # One shard, however long the window is; that it may lie in two is `files`.
        layout = ShardLayout(array.row_shape, array.dtype, spec.store.chunk_frames, 1 << 40)
        stride, row_bytes = _chunk_stride(layout), layout.row_bytes
        part = part_of_row(row_bytes, array.kept_P)
        for start in range(STARTS):
            ((_, _, _, runs),) = runs_by_shard(tuple((rows_T + start).tolist()), layout)
            chunks = {chunk: (chunk * stride, (chunk + 1) * stride) for _, _, chunk, _ in runs}
            rows = [
                span
                for _, count, chunk, within in runs
                for span in spans_of(chunk * stride + within * row_bytes, count, row_bytes, part)
            ]
            spans = list(chunks.values()) if is_packed else rows
            compared += len(chunks) * stride
            disk += sum(stop - first for first, stop in spans)
            of_window = _blocks(spans)
            blocks += len(of_window) * BLOCK_BYTES
            requests += _requests(of_window)
    span = int(rows_T[-1]) + 1
    return WindowReads(
        chunk_frames=spec.store.chunk_frames,
        shard_mb=spec.store.shard_mb,
        first_bytes=compared / STARTS,
        disk_bytes=disk / STARTS,
        object_bytes=blocks / STARTS,
        object_requests=requests / STARTS,
        files=len(arrays) * (1 + (span - 1) / shard_frames),
    )


def _blocks(spans: Sequence[Span]) -> list[int]:
    """The blocks of a file that hold these bytes, ascending."""
    return sorted(
        {
            block
            for start, stop in spans
            for block in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES))
        }
    )


def _requests(blocks: Sequence[int]) -> int:
    """Requests for these blocks: neighbours come together, up to a bound."""
    runs = groupby(enumerate(blocks), key=lambda item: item[1] - item[0])
    return sum(math.ceil(len(list(run)) / RUN_BLOCKS) for _, run in runs)
