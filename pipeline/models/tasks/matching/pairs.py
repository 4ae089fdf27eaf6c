"""Video-text matching: does a sentence belong to a video, told from the tokens of the video.

A readout that training alone uses (ALBEF, arXiv 2107.07651; UMT, arXiv 2303.16058). Of every window
it is asked for three pairs: video and text as they are, the video with a wrong text, the text with
a wrong video. What is wrong is drawn from the batch, the likelier the more alike it is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models.tasks.asked.cross_attention import BLOCKS, CrossBlock, VideoTokens
from pipeline.models.tasks.contract import FRAME_EMBEDDINGS, Query
from pipeline.models.tasks.matching.losses import SAME

OWN_TEXT = "own_text"
"""Name in the targets: (E,) float32, the embedding of the window's caption."""


class PairReadout(nn.Module):
    """(B, 3, 2): of every window the logits of its three pairs, and for each 1 where there is such
    a pair, 0 where the batch has nothing wrong to offer.

    How alike a video and a text are is their cosine as it is before training: a video is the mean
    of its frames' embeddings, and where there are none, the embedding of its own text. So what is
    hard depends on the batch alone, and neither form of the readout is needed to tell it. Draws
    from torch's random state.
    """

    def __init__(
        self,
        width: int,
        text_width: int,
        *,
        readout_width: int,
        heads: int,
        frames: int,
        temperature: float,
    ) -> None:
        """`temperature`: what cosines are divided by before their softmax is drawn from."""
        super().__init__()
        self.temperature = temperature
        self.video = VideoTokens(width, readout_width, frames)
        self.text = nn.Linear(text_width, readout_width)
        self.blocks = nn.ModuleList(
            CrossBlock(readout_width, heads, to_itself=False) for _ in range(BLOCKS)
        )
        self.norm = nn.LayerNorm(readout_width)
        self.belongs = nn.Linear(readout_width, 1)

    def forward(self, x_BTND: torch.Tensor, query: Query) -> torch.Tensor:
        text_BE = query[OWN_TEXT]
        video_BE = text_BE
        if FRAME_EMBEDDINGS in query:
            video_BE = F.normalize(query[FRAME_EMBEDDINGS].mean(1), dim=-1)
        wrong_text_B, wrong_video_B, is_wrong_B = drawn(video_BE, text_BE, self.temperature)
        video_BMP, own_BP = self.video(x_BTND), self.text(text_BE)
        text_B2P = torch.stack([own_BP, own_BP[wrong_text_B]], dim=1)
        logits_B3 = torch.cat(
            [
                self._logits(text_B2P, video_BMP),
                self._logits(own_BP[:, None], video_BMP[wrong_video_B]),
            ],
            dim=1,
        )
        counted_B3 = torch.stack([text_BE.any(-1), is_wrong_B, is_wrong_B], dim=1)
        return torch.stack([logits_B3, counted_B3.to(logits_B3.dtype)], dim=-1)

    def _logits(self, text_BQP: torch.Tensor, video_BMP: torch.Tensor) -> torch.Tensor:
        """(B, Q): whether texts belong to their video, each text by itself."""
        for block in self.blocks:
            text_BQP = block(text_BQP, video_BMP)
        return self.belongs(self.norm(text_BQP)).squeeze(-1)


@torch.no_grad()
def drawn(
    video_BE: torch.Tensor, text_BE: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(wrong_text_B, wrong_video_B, is_wrong_B): for every video another's text, for every text
    another's video, and whether there are such. A text that is equal to the row's own is not wrong
    (`losses.SAME`), nor is one that is zero, which says that there is none."""
    is_text_B = text_BE.any(-1)
    # In bfloat16 a text would not be equal to itself, and many others would.
    with torch.autocast(text_BE.device.type, enabled=False):
        is_same_BB = text_BE @ text_BE.T > SAME
        logits_BB = video_BE @ text_BE.T / temperature
    is_wrong_BB = ~is_same_BB & is_text_B[:, None] & is_text_B
    is_wrong_B = is_wrong_BB.any(1)

    def draw(logits_BB: torch.Tensor) -> torch.Tensor:
        # Where nothing is wrong anything is drawn, and not counted.
        chance_BB = logits_BB.masked_fill(~is_wrong_BB & is_wrong_B[:, None], -torch.inf).softmax(1)
        return torch.multinomial(chance_BB, 1).squeeze(1)

    return draw(logits_BB), draw(logits_BB.T), is_wrong_B


def pair_loss(prediction_B32: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of what `PairReadout` gives, as a mean over windows of the mean over a
    window's pairs."""
    logits_B3, counted_B3 = prediction_B32.unbind(-1)
    belongs_B3 = torch.zeros_like(logits_B3)
    belongs_B3[:, 0] = 1
    missed_B3 = F.binary_cross_entropy_with_logits(logits_B3, belongs_B3, reduction="none")
    return ((missed_B3 * counted_B3).sum(1) / counted_B3.sum(1).clamp(min=1)).mean()
