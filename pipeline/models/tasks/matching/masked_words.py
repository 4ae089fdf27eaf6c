"""Text masking: which words a caption has lost is told from those that are left and from the video.

A readout that training alone uses (Harvest, arXiv 2310.19554; UMT, arXiv 2303.16058). It reads the
caption's own words and no states of the text tower: those come from the whole caption, and tell
the words that are masked.

Shape letters: L words of a caption, V the words that are known.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.datasets.manifest.texts import FIRST_WORD, MASK, PADDING, UNKNOWN
from pipeline.models.tasks.asked.cross_attention import BLOCKS, CrossBlock, VideoTokens
from pipeline.models.tasks.contract import Query

MOST_WORDS = 64
"""Words of a caption that are read, from its beginning on."""
WORDS_LEFT, ASKED_WORDS = "words_left", "asked_words"
"""Names in the targets: (L,) int64, the words with MASK in the place of some; and these, with
PADDING in the place of the others."""


def masked(
    words_L: np.ndarray, rng: np.random.Generator, share: tuple[float, float], vocabulary: int
) -> dict[str, np.ndarray]:
    """A caption's words with a part of them masked: a share drawn between two, and one word at
    least. Words beyond the `vocabulary` are unknown, and are never asked for."""
    words_L = words_L[:MOST_WORDS]
    if not len(words_L):  # as in "?!"
        words_L = np.array([PADDING], np.int64)
    words_L = np.where(words_L < vocabulary, words_L, UNKNOWN)
    known = np.flatnonzero(words_L >= FIRST_WORD)
    count = max(1, round(rng.uniform(*share) * len(words_L)))
    chosen = rng.permutation(known)[:count]
    left_L, asked_L = words_L.copy(), np.full_like(words_L, PADDING)
    left_L[chosen], asked_L[chosen] = MASK, words_L[chosen]
    return {WORDS_LEFT: left_L, ASKED_WORDS: asked_L}


class WordReadout(nn.Module):
    """(B, L, V): logits of the words at every place of a caption, told from the words that are left
    of it and the tokens of all frames."""

    def __init__(
        self, width: int, vocabulary: int, *, readout_width: int, heads: int, frames: int
    ) -> None:
        super().__init__()
        self.video = VideoTokens(width, readout_width, frames)
        # Not called weights: embeddings are not decayed.
        self.words = nn.Parameter(0.02 * torch.randn(vocabulary, readout_width))
        self.places = nn.Parameter(0.02 * torch.randn(MOST_WORDS, readout_width))
        self.blocks = nn.ModuleList(
            CrossBlock(readout_width, heads, to_itself=True) for _ in range(BLOCKS)
        )
        self.norm = nn.LayerNorm(readout_width)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, x_BTND: torch.Tensor, query: Query) -> torch.Tensor:
        words_BL = query[WORDS_LEFT]
        count = words_BL.shape[1]
        # Each place sees itself, so that where there is no word at all, attention has a sum.
        itself_LL = torch.eye(count, dtype=torch.bool, device=words_BL.device)
        seen_BLL = (words_BL != PADDING)[:, None] | itself_LL
        x_BLP = F.embedding(words_BL, self.words) + self.places[:count]
        video_BMP = self.video(x_BTND)
        for block in self.blocks:
            x_BLP = block(x_BLP, video_BMP, seen_BLL)
        return F.linear(self.norm(x_BLP), self.words, self.bias)


def word_loss(logits_BLV: torch.Tensor, asked_BL: torch.Tensor) -> torch.Tensor:
    """Cross-entropy: the mean over windows of the mean over a window's words, so that the losses of
    parts of a batch add up."""
    missed_BL = F.cross_entropy(
        logits_BLV.flatten(0, 1), asked_BL.flatten(), ignore_index=PADDING, reduction="none"
    ).view_as(asked_BL)
    count_B = (asked_BL != PADDING).sum(1).clamp(min=1)
    return (missed_BL.sum(1) / count_B).mean()
