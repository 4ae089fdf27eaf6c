"""A video becomes a vector that is compared with those of texts.

Every frame says f_t + r_t, where f_t is its embedding by the cache's own image-text model and r_t
is read from the temporal module; a video is the mean of what its frames say. r_t is 0 before
training, so that step 0 is the mean of the frames' embeddings (CLIP4Clip's meanP, arXiv
2104.08860). Where texts are another model's, there is no f_t.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.models.tasks.contract import FRAME_EMBEDDINGS, Query, StreamingReadout
from pipeline.models.tasks.parts.attention_readout import AttentionReadout

SUM, COUNT = "sum", "count"
"""What a stream remembers: the sum of what frames have said, (B, E), and how many there were,
(B, 1)."""


def begin_at_zero(readout: AttentionReadout) -> None:
    """Before training a readout says nothing."""
    nn.init.zeros_(readout.classifier.weight)
    nn.init.zeros_(readout.classifier.bias)


class FrameVectors(StreamingReadout, AttentionReadout):
    """(B, T, E): after every frame, the mean of what the frames so far have said."""

    def forward(self, x_BTND: torch.Tensor, query: Query) -> torch.Tensor:
        said_BTE = self.read(x_BTND.flatten(0, 1)).squeeze(1).unflatten(0, x_BTND.shape[:2])
        if FRAME_EMBEDDINGS in query:
            said_BTE = said_BTE + query[FRAME_EMBEDDINGS]
        count_T1 = torch.arange(1, x_BTND.shape[1] + 1, device=said_BTE.device).unsqueeze(1)
        return said_BTE.float().cumsum(1) / count_T1

    def step(self, x_BND: torch.Tensor, state: Query) -> tuple[torch.Tensor, Query]:
        said_BE = self.read(x_BND).squeeze(1)
        if FRAME_EMBEDDINGS in state:
            said_BE = said_BE + state[FRAME_EMBEDDINGS]
        sum_BE, count_B1 = said_BE.float(), torch.ones(x_BND.shape[0], 1, device=x_BND.device)
        if SUM in state:
            sum_BE, count_B1 = sum_BE + state[SUM], count_B1 + state[COUNT]
        return sum_BE / count_B1, state | {SUM: sum_BE, COUNT: count_B1}


class WindowVector(AttentionReadout):
    """(B, E): the mean embedding of all frames, and what is read from all their tokens at once."""

    def forward(self, x_BTND: torch.Tensor, query: Query) -> torch.Tensor:
        said_BE = self.read_window(x_BTND).squeeze(1).float()
        if FRAME_EMBEDDINGS in query:
            said_BE = said_BE + query[FRAME_EMBEDDINGS].mean(1)
        return said_BE
