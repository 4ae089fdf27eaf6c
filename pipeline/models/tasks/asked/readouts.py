"""A question looks at a video and becomes an answer.

A learned token, followed by those of the question, goes through blocks that look at the question
and at the video; what the learned token has become says what the answer is. Open questions are
answered by one logit for each answer of a vocabulary, those with choices by one for each choice,
its product with the choice's embedding.

The question is told before the first frame. The blind control has the same readout, which finds one
learned token where the video would be.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from pipeline.datasets.manifest.targets import CHOICES, QUESTION, QUESTION_VALID
from pipeline.models.tasks.asked.answers import of_choices
from pipeline.models.tasks.asked.cross_attention import CrossBlock
from pipeline.models.tasks.contract import Query, StreamingReadout
from pipeline.models.tasks.parts.attention_readout import in_time


class AnswerSize(NamedTuple):
    """The sizes of a readout."""

    question_width: int
    """D of the question's tokens."""
    answers: int | None
    """K of the vocabulary; None: answers are choices."""
    choice_width: int
    """E of the choices' embeddings."""
    width: int
    heads: int
    layers: int
    is_blind: bool


class AnswerReadout(nn.Module):
    """What both forms share. Where answers are choices, logits (B, ..., C) of those that a
    question lacks are the least number there is."""

    unseen: nn.Parameter | None

    def __init__(self, video_width: int, size: AnswerSize) -> None:
        super().__init__()
        self.question_norm = nn.LayerNorm(size.question_width)
        self.question_proj = nn.Linear(size.question_width, size.width)
        self.answer_token = nn.Parameter(0.02 * torch.randn(size.width))
        self.register_parameter("unseen", None)
        if size.is_blind:
            self.unseen = nn.Parameter(0.02 * torch.randn(video_width))
        else:
            self.video_norm = nn.LayerNorm(video_width)
        self.blocks = nn.ModuleList(
            CrossBlock(size.width, size.heads, to_itself=True, video_width=video_width)
            for _ in range(size.layers)
        )
        self.answer_norm = nn.LayerNorm(size.width)
        self.of_choices = size.answers is None
        if size.answers is None:
            self.choice_norm = nn.LayerNorm(size.choice_width)
            self.choice_proj = nn.Linear(size.choice_width, size.width)
            self.answer_proj = nn.Linear(size.width, size.width)
        else:
            self.classifier = nn.Linear(size.width, size.answers)

    def told(self, query: Query) -> Query:
        """What a question and its choices are to the blocks: the learned token and the question's,
        (B, 1 + L, P), which of them are there, and the choices as the query has them."""
        dtype = self.answer_token.dtype
        text_BLP = self.question_proj(self.question_norm(query[QUESTION].to(dtype)))
        token_B1P = self.answer_token.expand(text_BLP.shape[0], 1, -1).to(text_BLP)
        valid_BL = query[QUESTION_VALID]
        return query | {
            QUESTION: torch.cat([token_B1P, text_BLP], dim=1),
            QUESTION_VALID: torch.cat([torch.ones_like(valid_BL[:, :1]), valid_BL], dim=1),
        }

    def seen(self, x_BTND: torch.Tensor) -> torch.Tensor:
        """What the blocks see of a video, (B, T, N, D); of a video that is not shown
        (B, T, 1, D)."""
        if self.unseen is None:
            video_BTND: torch.Tensor = self.video_norm(x_BTND)
            return video_BTND
        return self.unseen.expand(*x_BTND.shape[:2], 1, -1)

    def read(self, video_BMD: torch.Tensor, told: Query) -> torch.Tensor:
        """B sets of M tokens -> what the learned token has become, (B, P)."""
        text_BLP, seen_B1L = told[QUESTION], told[QUESTION_VALID].unsqueeze(1)
        for block in self.blocks:
            text_BLP = block(text_BLP, video_BMD, seen_B1L)
        answer_BP: torch.Tensor = self.answer_norm(text_BLP[:, 0])
        return answer_BP

    def logits(self, answer_BTP: torch.Tensor, told: Query) -> torch.Tensor:
        """(B, T, K)."""
        if not self.of_choices:
            logits_BTK: torch.Tensor = self.classifier(answer_BTP)
            return logits_BTK
        choices_BCE = told[CHOICES].to(self.answer_token.dtype)
        choices_BCP = self.choice_proj(self.choice_norm(choices_BCE))
        logits_BTC = self.answer_proj(answer_BTP) @ choices_BCP.transpose(1, 2)
        return of_choices(
            logits_BTC / answer_BTP.shape[-1] ** 0.5, choices_BCE.any(-1).unsqueeze(1)
        )


class FrameAnswers(StreamingReadout, AnswerReadout):
    """Logits (B, T, K): after every frame, by that frame's tokens alone."""

    def start(self, query: Query) -> Query:
        return self.told(query)

    def forward(self, x_BTND: torch.Tensor, query: Query) -> torch.Tensor:
        told, frames = self.told(query), x_BTND.shape[1]
        of_frames = {
            name: told[name].repeat_interleave(frames, 0) for name in (QUESTION, QUESTION_VALID)
        }
        answer_MP = self.read(self.seen(x_BTND).flatten(0, 1), of_frames)
        return self.logits(answer_MP.unflatten(0, x_BTND.shape[:2]), told)

    def step(self, x_BND: torch.Tensor, state: Query) -> tuple[torch.Tensor, Query]:
        answer_BP = self.read(self.seen(x_BND.unsqueeze(1)).squeeze(1), state)
        return self.logits(answer_BP.unsqueeze(1), state).squeeze(1), state


class WindowAnswer(AnswerReadout):
    """Logits (B, K), by the tokens of all frames at once, each with an embedding of its time."""

    temporal_posenc: nn.Parameter | None

    def __init__(self, video_width: int, size: AnswerSize, frames: int) -> None:
        super().__init__(video_width, size)
        self.register_parameter("temporal_posenc", None)
        if not size.is_blind:
            self.temporal_posenc = nn.Parameter(0.02 * torch.randn(1, frames, 1, video_width))

    def forward(self, x_BTND: torch.Tensor, query: Query) -> torch.Tensor:
        told, video_BTND = self.told(query), self.seen(x_BTND)
        if self.temporal_posenc is not None:
            video_BTND = video_BTND + in_time(self.temporal_posenc, x_BTND.shape[1])
        answer_BP = self.read(video_BTND.flatten(1, 2), told)
        return self.logits(answer_BP.unsqueeze(1), told).squeeze(1)
