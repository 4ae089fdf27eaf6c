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
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from pipeline.models.encoders.contract import EncoderPlugin
from pipeline.records import Batch
from pipeline.train.windows import WindowRef, Windows
from pipeline.video.reader import FrameReader


class UncachedWindows(Windows):
    """The windows that `Windows` has, in the same order, from the videos; a context manager.

    Of the cache it takes only which frames make up a window, and where they show what the truth
    speaks of. Frames are decoded by `decoders` processes, beside the encoder, which runs without
    gradients. Raises what `Windows` raises, and BadVideo.
    """

    def __init__(
        self,
        encoder: EncoderPlugin,
        decoders: int,
        device: torch.device,
        *args: Any,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self.encoder, self.device = encoder, device
        self.pool = ThreadPoolExecutor(decoders, "decode")
        self.readers: queue.SimpleQueue[FrameReader] = queue.SimpleQueue()
        self._closing = ExitStack()
        for _ in range(decoders):
            reader = FrameReader(self.manifest.root, device)
            self.readers.put(self._closing.enter_context(reader))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.pool.shutdown(cancel_futures=True)
        self._closing.close()

    def read(self, samples: Sequence[WindowRef]) -> Batch:
        """The frames of `samples` as the encoder's squares, with their truth."""
        squares = torch.stack(list(self.pool.map(self._squares, samples)))
        time_s = [self._times(sample) for sample in samples]
        clips = np.array([sample.clip for sample in samples], np.int64)
        return Batch({"squares": squares}, np.stack(time_s), clips, self.truth(samples))

    def tokens(self, batch: Batch, device: torch.device) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """What the encoder makes of the squares: special (B, T, S, D) and patches (B, T, P, D) per
        layer."""
        squares_BTCHW = batch.arrays["squares"]
        made = [
            self.encoder(part)
            for part in squares_BTCHW.flatten(0, 1).split(self.cache.cache_spec.store.batch_frames)
        ]

        def whole(parts: list[torch.Tensor]) -> torch.Tensor:
            """Put together outside of inference mode, as a tensor that gradients may be traced
            through."""
            return torch.cat(parts).unflatten(0, squares_BTCHW.shape[:2]).to(device)

        patches = [whole([part.patches_NPD[layer] for part in made]) for layer in self.layers]
        return whole([part.special_NSD for part in made]), patches

    def _times(self, sample: WindowRef) -> np.ndarray:
        time_s_T: np.ndarray = self.clip_rows[sample.clip].time_s[self._rows(sample)]
        return time_s_T

    def _squares(self, sample: WindowRef) -> torch.Tensor:
        """(T, 3, size_px, size_px) uint8 of a window."""
        reader = self.readers.get()
        try:
            return reader.at_times(
                self.clip(sample.clip).video,
                self.cache.cache_spec.frames,
                self._times(sample),
                self.cache.views[sample.view],
            )
        finally:
            self.readers.put(reader)
