"""Class logits of every frame: from the frames so far (streaming), or from the whole window.

What a frame's tokens say is read by attention, frame by frame, in both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models.tasks.contract import Query, StreamingReadout
from pipeline.models.tasks.parts.attention_readout import AttentionReadout


class FrameClasses(StreamingReadout, AttentionReadout):
    """Logits (B, T, K) of every frame from its own tokens."""

    def forward(self, x_BTND: torch.Tensor, query: Query) -> torch.Tensor:
        return self.read(x_BTND.flatten(0, 1)).squeeze(1).unflatten(0, x_BTND.shape[:2])

    def step(self, x_BND: torch.Tensor, state: Query) -> tuple[torch.Tensor, Query]:
        return self.read(x_BND).squeeze(1), state


class DilatedLayer(nn.Module):
    """x + W relu(convolution of x over time): three frames that lie `dilation` apart."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.over_time = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.mix = nn.Conv1d(width, width, 1)

    def forward(self, x_BCT: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.mix(F.relu(self.over_time(x_BCT)))
        return x_BCT + mixed


class WindowClasses(nn.Module):
    """Logits (B, T, K) of every frame from the frames before and after it: temporal convolutions
    whose dilation doubles from layer to layer, as in one stage of MS-TCN (Abu Farha and Gall 2019,
    arXiv 1903.01945). L layers see 2 ** L - 1 frames to either side; T may be any number."""

    def __init__(
        self, width: int, classes: int, *, readout_width: int, heads: int, layers: int
    ) -> None:
        super().__init__()
        self.of_frame = AttentionReadout(
            width, readout_width, readout_width=readout_width, heads=heads
        )
        self.layers = nn.Sequential(
            *(DilatedLayer(readout_width, 2**layer) for layer in range(layers))
        )
        self.classifier = nn.Linear(readout_width, classes)

    def forward(self, x_BTND: torch.Tensor, query: Query) -> torch.Tensor:
        x_MC = self.of_frame.read(x_BTND.flatten(0, 1)).squeeze(1)
        x_BCT = x_MC.unflatten(0, x_BTND.shape[:2]).transpose(1, 2)
        logits: torch.Tensor = self.classifier(self.layers(x_BCT).transpose(1, 2))
        return logits
