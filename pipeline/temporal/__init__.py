"""Contract of a temporal module: mixes tokens over time, causally, and can stop and go on at any frame.

Three ways to run agree within 1e-5 in float32 (eval mode): a whole window, a window in pieces with the state carried over, and
frame by frame. State is a tuple of tensors whose first axis is B; its size does not grow with time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn

from pipeline.plugins import Settings

State = tuple[torch.Tensor, ...]


class TemporalModule(nn.Module, ABC):
    """Base of every `Temporal`."""

    Settings: ClassVar[type[Settings]]

    def __init__(self, width: int, settings: Any) -> None:
        """`width` is D, in and out."""
        super().__init__()
        self.width = width
        self.settings = settings

    @abstractmethod
    def forward(self, x_BTND: torch.Tensor, state: State | None = None) -> tuple[torch.Tensor, State]:
        """Tokens of T >= 1 frames and the state before them (None: the start) -> outputs of that shape, and the state after."""

    @abstractmethod
    def initial_state(self, batch: int, tokens: int) -> State:
        """The state before the first frame, on the module's device, in its dtype."""

    def step(self, x_BND: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """One frame."""
        y_BTND, state = self(x_BND.unsqueeze(1), state)
        return y_BTND.squeeze(1), state

    def state_bytes(self, tokens: int) -> int:
        """Memory of one stream's state for frames of N = `tokens`."""
        return sum(part.numel() * part.element_size() for part in self.initial_state(1, tokens))
