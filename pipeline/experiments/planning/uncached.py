"""Windows straight from the videos: sought, decoded, resized and encoded anew for every batch, as
training must without a cache.

What caching saves is measured against this: `stillframe plan` tries it, `stillframe bench epoch`
runs it.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Self

import numpy as np
import torch

from pipeline.models.encoders.contract import EncoderPlugin
from pipeline.train.windows.index import WindowRows
from pipeline.train.windows.reader import WindowReader
from pipeline.train.windows.windows import Windows
from pipeline.video.reader import FrameReader


class UncachedReader(WindowReader):
    """Tokens of the windows that `windows` has, from the videos; a context manager.

    Of the cache it takes only which frames make up a window. Frames are decoded by `decoders`
    processes, beside the encoder, which runs without gradients. Raises BadVideo.
    """

    def __init__(
        self, windows: Windows, encoder: EncoderPlugin, decoders: int, device: torch.device
    ) -> None:
        super().__init__(windows.cache, windows.reader.layers)
        self.windows, self.encoder = windows, encoder
        self.pool = ThreadPoolExecutor(decoders, "decode")
        self.readers: queue.SimpleQueue[FrameReader] = queue.SimpleQueue()
        self._closing = ExitStack()
        for _ in range(decoders):
            reader = FrameReader(windows.manifest.root, device)
            self.readers.put(self._closing.enter_context(reader))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)
        self._closing.close()

    def read(self, windows: Sequence[WindowRows]) -> dict[str, Any]:
        """The frames of the windows as the encoder's squares, (B, T, 3, size_px, size_px), and the
        patches that are kept of them."""
        arrays = {"squares": torch.stack(list(self.pool.map(self._squares, windows)))}
        kept = [window.kept_P for window in windows if window.kept_P is not None]
        return arrays | ({"kept": torch.from_numpy(np.stack(kept))} if kept else {})

    def tokens(
        self, arrays: dict[str, Any], device: torch.device
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The tokens that the encoder makes of the squares: special (B, T, S, D) and patches
        (B, T, P, D) per layer. Patches that the windows leave out are made and dropped."""
        squares_BTCHW, kept_BP = arrays["squares"], arrays.get("kept")
        batch_frames = self.cache.cache_spec.store.batch_frames
        encoded = [self.encoder(part) for part in squares_BTCHW.flatten(0, 1).split(batch_frames)]

        def whole(parts: list[torch.Tensor]) -> torch.Tensor:
            """Put together outside of inference mode, as a tensor that gradients may be traced
            through."""
            return torch.cat(parts).unflatten(0, squares_BTCHW.shape[:2]).to(device)

        patches = [whole([part.patches_NPD[layer] for part in encoded]) for layer in self.layers]
        if kept_BP is not None:
            patches = [_kept(patches_BTPD, kept_BP.to(device)) for patches_BTPD in patches]
        return whole([part.special_NSD for part in encoded]), patches

    def _squares(self, window: WindowRows) -> torch.Tensor:
        """(T, 3, size_px, size_px) of a window."""
        reader = self.readers.get()
        try:
            return reader.at_times(
                self.windows.clip(window.ref.clip).video,
                self.cache.cache_spec.frames,
                window.time_s_T,
                self.cache.views[window.ref.view],
            )
        finally:
            self.readers.put(reader)


def _kept(patches_BTPD: torch.Tensor, kept_BP: torch.Tensor) -> torch.Tensor:
    """(B, T, K, D): the patches that each window keeps, of which all keep as many."""
    by_place_BPTD = patches_BTPD.transpose(1, 2)
    return by_place_BPTD[kept_BP].unflatten(0, (len(kept_BP), -1)).transpose(1, 2).contiguous()
