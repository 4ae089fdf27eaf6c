"""What a training asks of the windows of its two splits, wherever they come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from pipeline.records import Batch, Clip, OnDevice


class BatchSource(Protocol):
    """Batches to train on."""

    def train(
        self, batch_size: int, steps: Sequence[int], rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[int, Batch]]:
        """(step, this rank's part of its batch) for each of `steps`."""

    def on_device(self, batch: Batch, device: torch.device) -> OnDevice:
        """The tokens decoded on the device after the transfer, and the truth beside them."""


class TrainingSource(BatchSource, Protocol):
    """The windows that are trained on."""

    @property
    def clips(self) -> Sequence[Clip]:
        """Those of the split that are used."""

    @property
    def per_epoch(self) -> int:
        """Windows of an epoch."""

    @property
    def clip_counts(self) -> dict[str, int]:
        """See `RunHeader.clips`."""

    @property
    def tower(self) -> dict[str, Any] | None:
        """Identity of the text tower that texts went through; None where nothing is said."""


class HeldOutSource(Protocol):
    """The windows that are evaluated on."""

    @property
    def share(self) -> float:
        """Share of the clips of the split that have come."""

    def evaluation(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """This rank's share of the evaluation windows, in order."""

    def on_device(self, batch: Batch, device: torch.device) -> OnDevice:
        """The tokens decoded on the device after the transfer, and the truth beside them."""
