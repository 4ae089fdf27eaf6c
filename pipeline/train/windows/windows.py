"""The windows of one split: which there are, in which order they come, their tokens and their
truth."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch

from pipeline.cache.cache import Cache
from pipeline.cache.layout import AFFINE, in_view
from pipeline.config.recipe import WindowSettings
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.datasets.manifest.targets import TOKENS, Arrays, Targets, Wanted, collate
from pipeline.device import Uploads
from pipeline.errors import BadInput, unknown_name
from pipeline.models.tasks.contract import FRAME_EMBEDDINGS
from pipeline.records import Batch, Clip, OnDevice
from pipeline.train.language.frame_index import FrameIndex
from pipeline.train.language.language import Language
from pipeline.train.windows.controls import as_shown, require_fitting_truth
from pipeline.train.windows.index import (
    WindowRef,
    WindowRows,
    clips_of,
    index_windows,
    require_rate,
    windows_in,
)
from pipeline.train.windows.kept import kept_patches, quick_rng, require_fitting_crop
from pipeline.train.windows.order import SampleOrder
from pipeline.train.windows.reader import WindowReader, on_device, read_ahead


class Windows:
    """The windows of one split of a manifest over a cache, with the truth that `wanted` (a task)
    asks for.

    Raises BadInput: unknown split, a rate that the cache does not hold, targets that the manifest
    lacks, and clips that the cache does not cover, unless `allow_missing`, which leaves them out
    and lists them in `index.skipped`.
    """

    def __init__(
        self,
        cache: Cache,
        manifest: Manifest,
        split: str,
        settings: WindowSettings,
        wanted: Wanted | None = None,
        layers: Sequence[int] | None = None,
        allow_missing: bool = False,
        language: Language | None = None,
        videos: Container[str] | None = None,
        uploads: Uploads | None = None,
    ) -> None:
        """`layers` are those whose patches are read; None: all that the cache has. `language` is
        there where `wanted` is told something in words. `videos`: ids of those whose clips are
        looked at; None: all. `uploads` send what is read to the training device, as soon as it is
        read; None: it goes there when it is asked for."""
        self.uploads = uploads
        self.cache, self.manifest, self.split, self.settings = cache, manifest, split, settings
        self.language = language
        clips = clips_of(manifest, split, settings)
        require_rate(settings, clips, cache.fps, f"cache {cache}")
        require_fitting_truth(settings, wanted)
        require_fitting_crop(settings, cache.shape.grid_hw, f"cache {cache}")
        texts = None if language is None else language.texts
        self._targets = None if wanted is None else Targets(manifest, wanted, texts)
        if self._targets:
            self._targets.check(clips, split)
        if videos is not None:
            clips = [clip for clip in clips if clip.video_id in videos]
        self.index = index_windows(cache, manifest, split, clips, settings, allow_missing)
        counts = None
        if settings.per_clip == "length" and not self.index.of_whole_clips:
            frames = self.index.num_frames
            counts = np.array([windows_in(each, frames) for each in self.index.instants()])
        self.order = SampleOrder(len(self.index), settings, counts)
        self.reader = WindowReader(cache, cache.shape.layers if layers is None else layers)
        """Where tokens come from. Another reader may take its place, such as one that encodes the
        videos anew."""

    def __len__(self) -> int:
        return len(self.index)

    @property
    def clips(self) -> tuple[Clip, ...]:
        """Those that have windows."""
        return self.index.clips

    @property
    def per_epoch(self) -> int:
        """Windows of an epoch."""
        return self.order.windows

    @property
    def clip_counts(self) -> dict[str, int]:
        """What a run writes down of the clips that it is trained on, see `RunHeader.clips`."""
        return {
            "train": len(self),
            "padded": self.index.padded,
            "slower": self.index.slower,
            "skipped": len(self.index.skipped),
            **({} if self.order.counts is None else {"windows": self.order.windows}),
        }

    @property
    def share(self) -> float:
        """Share of the clips of the split that have come: all, unless a cache is followed while it
        is filled."""
        return 1.0

    def clip(self, index: int) -> Clip:
        """The clip that `Batch.clip_index` means."""
        return self.index.clips[index]

    def require_views(self, task: str, mirrorable: bool) -> None:
        """Refuses to train where the cache lacks a view, or has one of which the truth of `task`
        would be wrong."""
        for name in self.settings.views:
            if name not in self.cache.views:
                raise unknown_name(
                    "view", name, self.cache.views, f"windows.views: cache {self.cache}"
                )
            view = self.cache.views[name]
            if view is not None and view.flip and not mirrorable:
                raise BadInput(
                    f"view '{name}' is mirrored, "
                    f"and the truth of task '{task}' does not hold in a mirror",
                    f"leave '{name}' out of windows.views",
                )
            if view is not None and self.language is not None and self.language.frames is not None:
                raise BadInput(
                    f"task '{task}' begins with the embeddings of whole frames, and view '{name}' "
                    "shows them otherwise",
                    f"leave '{name}' out of windows.views",
                )

    def train(
        self, batch_size: int, steps: Sequence[int], rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[int, Batch]]:
        """(step, this rank's part of its batch) for each of `steps`. Ranks must divide
        `batch_size`."""
        jobs = (self.order.batch(step, batch_size, rank, world_size) for step in steps)
        yield from zip(steps, read_ahead(self.read, jobs, self.is_quick), strict=True)

    def evaluation(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """This rank's share of the evaluation windows, in order; see `SampleOrder.evaluation`."""
        refs = self.order.evaluation(rank, world_size)
        yield from read_ahead(self.read, self._evaluation_batches(refs, batch_size), self.is_quick)

    def _evaluation_batches(
        self, refs: Iterator[WindowRef], batch_size: int
    ) -> Iterator[list[WindowRef]]:
        """Windows of equal length, up to `batch_size` of them; fewer where they are longer than
        those of training, so that a batch takes no more memory, but for a single long one."""
        for frames, alike in groupby(refs, lambda ref: self.index.frames_of(ref.clip)):
            size = batch_size
            if self.index.of_whole_clips:
                size = max(1, min(batch_size, batch_size * self.settings.frames // frames))
            while batch := list(islice(alike, size)):
                yield batch

    def is_quick(self) -> bool:
        """Whether reading is best done between the steps: out of memory, where the model is
        computed by the cores that would read beside it."""
        return self.uploads is None and self.reader.in_memory

    def read(self, refs: Sequence[WindowRef]) -> Batch:
        """The windows `refs`, with their truth."""
        windows = [self.locate(ref) for ref in refs]
        time_s_BT = np.stack([window.time_s_T for window in windows])
        clip_index = np.array([ref.clip for ref in refs], np.int64)
        arrays, targets = self.reader.read(windows), self._truth(windows)
        sent = {}
        if self.uploads is not None:
            sent = {
                name: self.uploads.start(array)
                for name, array in (arrays | targets).items()
                if isinstance(array, np.ndarray)  # another reader may read something else
            }
        return Batch(arrays, time_s_BT, clip_index, targets, sent)

    def truth(self, refs: Sequence[WindowRef]) -> Arrays:
        """The targets of `refs` alone; see `pipeline.datasets.manifest.targets`. Tokens are read
        only where they are the truth: those of the last layer."""
        windows = [self.locate(ref) for ref in refs]
        targets = self._truth(windows)
        if self._targets is None or TOKENS not in self._targets.wanted.needs:
            return targets
        _, patches = self.reader.tokens(self.reader.read(windows), torch.device("cpu"))
        return targets | {TOKENS: patches[-1].float().numpy()}

    @property
    def tower(self) -> dict[str, Any] | None:
        """Identity of the text tower that texts went through; None where nothing is said."""
        return None if self.language is None else self.language.texts.header.tower

    @property
    def step_s(self) -> float | None:
        """Seconds of window time from one frame to the next; None where they depend on the
        video."""
        step = self.settings.step()
        if step is None or not step.in_rows:
            return step and step.size
        return None if self.cache.fps is None else step.size / self.cache.fps

    def locate(self, ref: WindowRef) -> WindowRows:
        """The rows, times and patches of one window, as the model sees it."""
        window = as_shown(self.index.locate(ref), self.clip(ref.clip), self.settings)
        kept_P = kept_patches(ref, self.cache.shape.grid_hw, self.settings)
        return window if kept_P is None else replace(window, kept_P=kept_P)

    def _truth(self, windows: Sequence[WindowRows]) -> Arrays:
        if self._targets is None:
            return {}
        return collate([self._truth_of(window, self._targets) for window in windows])

    def _truth_of(self, window: WindowRows, targets: Targets) -> Arrays:
        clip, ref = self.clip(window.ref.clip), window.ref
        affines_F23 = self.cache.small_array(window.store, in_view(ref.view, AFFINE))
        rng = None
        if ref.number is not None:  # a pure function of seed and sample number, like the order
            rng = quick_rng([self.settings.seed, ref.number])
        rows = self.index.clip_rows[ref.clip]
        time_s_T, affines_T23 = window.time_s_T - rows.zero_s, affines_F23[window.rows_T]
        truth = targets.window(clip, time_s_T, affines_T23, rows.step_s, rng)
        if self.language is not None and self.language.frames is not None:
            truth[FRAME_EMBEDDINGS] = self.embeddings(window, clip.video_id, self.language.frames)
        return truth

    def embeddings(self, window: WindowRows, video: str, index: FrameIndex) -> np.ndarray:
        """(T, E) float32: those of the frames of a window of a video."""
        first, _ = index.of_video(video)
        frames_T = torch.from_numpy(first + window.rows_T - self.cache.locations[video].start)
        embeddings_TE: np.ndarray = index.embeddings_FD[frames_T].float().numpy()
        return embeddings_TE

    def tokens(self, batch: Batch, device: torch.device) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """special (B, T, S, D), and patches (B, T, P, D) of every layer that is read; P counts
        those that the windows keep."""
        arrays = {name: batch.sent.get(name, array) for name, array in batch.arrays.items()}
        return self.reader.tokens(arrays, device)

    def noise(self, batch: Batch, layer: int) -> np.ndarray:
        """(B, T, P) float32: how much the codec is expected to have rounded each patch of a layer,
        in the mean square over its values."""
        noise_BTP: np.ndarray = self.reader.noise(batch.arrays, layer).float().numpy()
        return noise_BTP

    def on_device(self, batch: Batch, device: torch.device) -> OnDevice:
        """The tokens decoded on the device after the transfer, and the truth beside them."""
        special_BTSD, patches = self.tokens(batch, device)
        targets = {
            name: on_device(batch.sent.get(name, array), device)
            for name, array in batch.targets.items()
        }
        return OnDevice(special_BTSD, dict(zip(self.reader.layers, patches, strict=True)), targets)
