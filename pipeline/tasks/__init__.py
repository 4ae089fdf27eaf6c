"""Contract of a task: its truth, readout, loss and metric, which change together and therefore live in one file.

A readout has up to two forms, trained side by side on the same temporal outputs: `streaming` sees one frame's tokens at a time,
`window` sees all T frames at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from pipeline.plugins import Settings

STREAMING, WINDOW = "streaming", "window"


class TaskPlugin(ABC):
    """Base of every `Task`."""

    Settings: ClassVar[type[Settings]]
    needs: ClassVar[tuple[str, ...]]
    """Names of the targets it reads; `label` comes from the manifest, all others from targets.h5."""
    metric_name: ClassVar[str]
    higher_is_better: ClassVar[bool]

    def __init__(self, settings: Any, labels: tuple[str, ...]) -> None:
        """`labels` are the manifest's label names in order; empty where it has none."""
        self.settings = settings
        self.labels = labels

    @property
    @abstractmethod
    def forms(self) -> tuple[str, ...]:
        """Which of `streaming` and `window` this run trains."""

    @abstractmethod
    def readout(self, form: str, width: int, frames: int) -> nn.Module:
        """Module for one form: tokens (B, T, N, D) -> prediction (B, T, ...) if streaming, (B, ...) if window."""

    @abstractmethod
    def loss(self, form: str, prediction: torch.Tensor, targets: dict[str, torch.Tensor]) -> torch.Tensor:
        """Scalar."""

    @abstractmethod
    def answer(self, form: str, prediction: torch.Tensor) -> torch.Tensor:
        """The prediction that is scored: (B, ...)."""

    @abstractmethod
    def score(self, answer: np.ndarray, targets: dict[str, np.ndarray]) -> np.ndarray:
        """One value per window, (B,): the metric is their mean, so that parts merge and intervals can be bootstrapped."""

    @property
    @abstractmethod
    def trivial_score(self) -> float:
        """What a prediction that ignores the video scores."""
