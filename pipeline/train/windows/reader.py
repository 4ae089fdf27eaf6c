"""Rows of a cache become tokens: read by threads straight into a batch, decoded on the training
device."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from pipeline.cache.cache import Cache
from pipeline.cache.layout import SPECIAL, in_view, layer_name, stored_name, tokens_by_array
from pipeline.cache.shard.format import ALIGNMENT, aligned
from pipeline.cache.store import StoreReader
from pipeline.device import Upload
from pipeline.train.windows.index import WindowRows

READERS = 2
"""Threads that read ahead; never processes: a forked reader can inherit locks that nobody will
release."""
READS_AHEAD = 2
"""Windows that the disk is asked for before their turn."""
BATCHES_AHEAD = 3
BATCHES_IN_MEMORY = BATCHES_AHEAD + 2
"""With the one that is handed over next, and the one in use."""
Refs = TypeVar("Refs")
Read = TypeVar("Read")


class BatchMemory:
    """Memory for batches, which is used again once nobody looks at it any more: new memory would
    cost a page fault for every 4 KiB. Safe in threads."""

    def __init__(self) -> None:
        self._buffers: list[np.ndarray] = []
        self._lock = Lock()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """An array as `aligned_empty` gives. What is free and of another size is let go of."""
        size = math.prod(shape) * dtype.itemsize + ALIGNMENT
        with self._lock:
            counts = _references(self._buffers)
            free = [n for n, count in enumerate(counts) if count == UNUSED]
            fitting = next((n for n in free if len(self._buffers[n]) == size), None)
            if fitting is None:
                self._buffers = [each for n, each in enumerate(self._buffers) if n not in free]
                fitting = len(self._buffers)
                self._buffers.append(np.empty(size, np.uint8))
            # Views of views refer to the array that owns the memory, which is how it is known.
            return aligned(self._buffers[fitting], shape, dtype)


def _references(arrays: list[np.ndarray]) -> list[int]:
    return [sys.getrefcount(array) for array in arrays]


UNUSED = _references([np.empty(0)])[0]
"""References to an array that a list alone refers to, as Python counts them."""


class WindowReader:
    """Tokens of windows out of a cache: special tokens, and the patches of `layers`."""

    def __init__(self, cache: Cache, layers: Sequence[int]) -> None:
        self.cache, self.layers = cache, tuple(layers)
        self._codec_keys = tuple(cache.codec.layout(cache.shape.width))
        shape = cache.shape
        tokens = tokens_by_array(self.layers, shape.special_tokens, shape.patch_tokens)
        self._is_patches = {
            stored_name(name, key): name != SPECIAL for name in tokens for key in self._codec_keys
        }
        """Stored name -> whether it is of patches, some of which a window may leave out."""
        self._memory = BatchMemory()
        self.in_memory = False
        """Whether all that was read last is known to have been in memory."""

    def read(self, windows: Sequence[WindowRows]) -> dict[str, Any]:
        """Stored name -> (B, T, ...), still in the codec's form, without the patches that a window
        leaves out, of which all leave out as many."""
        arrays, reads = {}, []
        num_frames, some_P = len(windows[0].rows_T), windows[0].kept_P
        for name, is_patches in self._is_patches.items():
            (tokens, *tail), dtype = self.cache.arrays[name]
            if is_patches and some_P is not None:
                tokens = int(some_P.sum())
            arrays[name] = self._memory.empty((len(windows), num_frames, tokens, *tail), dtype)
            for window, into in zip(windows, arrays[name], strict=True):
                stored = in_view(window.ref.view, name)
                kept_P = window.kept_P if is_patches else None
                reader = self.cache.reader(window.store)
                reads.append(RowsToRead(reader, stored, window.rows_T, into, kept_P))
        self.in_memory = read_in_turn(reads)
        return arrays

    def tokens(
        self, arrays: dict[str, Any], device: torch.device
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """special (B, T, S, D) and patches (B, T, P, D) per layer, those that were read, decoded on
        the device after the transfer."""
        return self.decoded(self.moved(arrays, device))

    def moved(self, arrays: dict[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
        """What was read, on the device, still in the codec's form. It may have been sent there
        already."""
        return {name: on_device(array, device) for name, array in arrays.items()}

    def decoded(self, moved: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Tokens of what was `moved`."""

        def decode(name: str) -> torch.Tensor:
            return self.cache.codecs[name].decode(
                {key: moved[stored_name(name, key)] for key in self._codec_keys}
            )

        patches = [decode(layer_name(layer)) for layer in self.layers]
        if self.cache.shape.special_tokens:
            return decode(SPECIAL), patches
        return patches[0][:, :, :0], patches

    def noise(self, arrays: dict[str, Any], layer: int) -> torch.Tensor:
        """(B, T, P): the mean square of rounding that is expected in the patches of a layer, see
        `CodecPlugin.noise`."""
        name = layer_name(layer)
        stored = {key: torch.from_numpy(arrays[stored_name(name, key)]) for key in self._codec_keys}
        return self.cache.codecs[name].noise(stored)


class RowsToRead(NamedTuple):
    """Arguments of `StoreReader.read_into`."""

    reader: StoreReader
    name: str
    rows: np.ndarray
    out: np.ndarray
    kept_P: np.ndarray | None = None


def read_in_turn(reads: Sequence[RowsToRead]) -> bool:
    """Reads one after the other. Where one came from the disk, it is asked for the next ones while
    that is compared and copied. Returns whether all are known to have been in memory."""
    were_there = True
    for index, read in enumerate(reads):
        if not read.reader.read_into(*read[1:]):
            were_there = False
            for later in reads[index + 1 : index + 1 + READS_AHEAD]:
                later.reader.ask(later.name, later.rows, later.kept_P)
    return were_there


def on_device(array: np.ndarray | Upload, device: torch.device) -> torch.Tensor:
    """An array on a device, or what has been sent there, for work on the current stream."""
    if isinstance(array, Upload):
        return array.on_device()
    return torch.from_numpy(array).to(device)


def read_ahead(
    read: Callable[[Refs], Read], jobs: Iterable[Refs], is_quick: Callable[[], bool]
) -> Iterator[Read]:
    """`read` of every job, in order: by threads, up to `BATCHES_AHEAD` of them ahead of who asks;
    while it `is_quick`, when asked and no sooner."""
    with ThreadPoolExecutor(READERS, "read") as pool:
        waiting: deque[Future[Read]] = deque()
        try:
            for job in jobs:
                while waiting and is_quick():
                    yield waiting.popleft().result()
                if is_quick():
                    yield read(job)
                    continue
                waiting.append(pool.submit(read, job))
                if len(waiting) > BATCHES_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
