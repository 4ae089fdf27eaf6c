"""The windows of a cache as a `torch.utils.data` data set, for a training loop of one's own: in the
order of our own training, from any step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.config import plugins
from pipeline.config.recipe import Recipe, WindowSettings
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import BadInput
from pipeline.models.tasks.contract import make_task
from pipeline.records import Batch
from pipeline.train.library.token_cache import TokenCache
from pipeline.train.setup import RunContext
from pipeline.train.windows.windows import Windows


class WindowBatch(NamedTuple):
    """B windows of T frames: tokens that left the codec, and their truth."""

    special_BTSD: torch.Tensor
    """CLS, then registers, of the last layer; S may be 0."""
    patches: dict[int, torch.Tensor]
    """layer -> (B, T, P, D), patch tokens row by row of the grid."""
    targets: dict[str, torch.Tensor]
    """Name -> (B, ...), as `pipeline.datasets.manifest.targets` has them, or as the task of the
    recipe has prepared them."""
    time_s_BT: torch.Tensor
    """float64, presentation time in the source of every frame, in seconds."""
    clip_ids: list[str]
    """The clip of each window."""


class WindowDataset(IterableDataset[WindowBatch]):
    """An iterable data set of whole batches: `DataLoader(dataset, batch_size=None)`, or iterate
    over it as it is.

    Windows of the split "train" come as `stillframe train` reads them: an endless order that is a
    pure function of `windows.seed`, of which one iteration is an epoch, `len(dataset)` steps; the
    next one goes on after it. Other splits come in order, once in an iteration.

    `num_workers` stays 0. Two threads of this process read ahead, which is faster than copying
    batches between processes; workers would each give every batch. `state_dict` and
    `load_state_dict` hold the next step: a loop that is stopped goes on with the batch that it
    would have had.
    """

    def __init__(
        self,
        cache: TokenCache | Path | str,
        split: str = "train",
        *,
        batch_size: int = 8,
        recipe: Recipe | None = None,
        truth: Sequence[str] = (),
        layers: Sequence[int] | None = None,
        manifest: Manifest | None = None,
        device: torch.device | str = "cpu",
        allow_missing: bool = False,
        **settings: Any,
    ) -> None:
        """`cache`: one that is open, its folder or its URL. `batch_size`: windows of a step, over
        all processes where `torch.distributed` is initialised, each of which has its part.
        `recipe`: one whose windows, truth and texts these are, as in `stillframe train`. Or
        `truth`, names among label, boxes, points, pose and depth_m, and `settings`, keys of the
        table [windows]: `frames=8, fps=4`. `layers`: whose patches are read; None: all.
        `manifest`: other clips or labels over the same videos. `device`: where tokens are decoded.
        `allow_missing`: clips that the cache does not cover are left out, see
        `dataset.windows.index.skipped`.

        Raises BadInput: no such split, a rate that the cache does not hold, clips without the
        truth, clips that the cache does not cover, settings that are wrong or come beside a recipe.
        """
        super().__init__()
        self.rank, self.world_size = 0, 1
        if distributed.is_available() and distributed.is_initialized():
            self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        if batch_size < 1 or batch_size % self.world_size:
            raise BadInput(
                f"batch_size is {batch_size}, wanted a multiple of the {self.world_size} processes "
                "that share it"
                if batch_size > 0
                else f"batch_size is {batch_size}, wanted at least 1"
            )
        self.batch_size, self.device = batch_size, torch.device(device)
        self.step = 0
        """Batches of the training order that have been handed over."""
        cache = cache if isinstance(cache, TokenCache) else TokenCache(cache)
        read = cache.layers if layers is None else tuple(layers)
        if recipe is None:
            self.windows = Windows(
                cache,
                cache.manifest if manifest is None else manifest,
                split,
                plugins.validate(WindowSettings, settings, "windows"),
                cache.plain_truth(truth) if truth else None,
                read,
                allow_missing,
            )
            return
        if settings or truth:
            given = ", ".join([*settings, *(["truth"] if truth else [])])
            raise BadInput(f"a recipe has windows and truth of its own, and {given} is given")
        context = RunContext.of(cache, manifest, self.device, allow_missing)
        task = make_task(recipe, context.manifest.labels)
        self.windows = context.windows(split, recipe, task, read)

    @property
    def is_training(self) -> bool:
        """Whether windows come in the order of training."""
        return self.windows.split == "train"

    def __len__(self) -> int:
        """Batches of one iteration from its beginning."""
        if self.is_training:
            return math.ceil(self.windows.order.windows / self.batch_size)
        refs = sum(1 for _ in self.windows.order.evaluation(self.rank, self.world_size))
        return math.ceil(refs / self._share)

    def __iter__(self) -> Iterator[WindowBatch]:
        """Raises BadInput in a worker of a DataLoader."""
        if get_worker_info() is not None:
            raise BadInput(
                "windows are read by threads of this process; each worker of a DataLoader would "
                "give every batch again",
                "DataLoader(dataset, batch_size=None, num_workers=0)",
            )
        if not self.is_training:
            batches = self.windows.evaluation(self._share, self.rank, self.world_size)
            yield from map(self._tensors, batches)
            return
        stop = (self.step // len(self) + 1) * len(self)
        steps = range(self.step, stop)
        read = self.windows.train(self.batch_size, steps, self.rank, self.world_size)
        for step, batch in read:
            self.step = step + 1
            yield self._tensors(batch)

    def state_dict(self) -> dict[str, int]:
        """Where the order is: the step of the next batch. The batch that was handed over last
        counts as used."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on from a `state_dict`; the next iteration ends where that epoch ends."""
        self.step = int(state["step"])

    def __repr__(self) -> str:
        settings = self.windows.settings
        return (
            f"WindowDataset({self.windows.cache}, split '{self.windows.split}', "
            f"{len(self.windows)} clips, {settings.frames} frames, batches of {self.batch_size})"
        )

    @property
    def _share(self) -> int:
        """Windows of a batch that are this process's."""
        return self.batch_size // self.world_size

    def _tensors(self, batch: Batch) -> WindowBatch:
        tokens = self.windows.on_device(batch, self.device)
        return WindowBatch(
            *tokens,
            torch.from_numpy(batch.time_s_BT),
            [self.windows.clip(int(index)).clip_id for index in batch.clip_index],
        )
