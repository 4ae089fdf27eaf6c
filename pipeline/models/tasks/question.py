"""Questions about videos, open or with choices: cross-attention from a question's tokens to the
video, cross-entropy, accuracy.

A frozen text tower reads the question once, and its tokens look at the outputs of the temporal
module; frozen features of frames suffice for good answers (arXiv 2206.08155). Open questions are
answered from a vocabulary, the manifest's labels: another answer is no label and counts as wrong,
as in the field. With `sees = "question"` the same readout is not shown the video: what it scores is
what the questions alone give away, and is to be told beside every score.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from pipeline.datasets.manifest.targets import CHOICES, QUESTION, QUESTION_VALID, Arrays
from pipeline.errors import BadInput
from pipeline.models.tasks.asked.answers import (
    MOST,
    cross_entropy,
    entropy,
    is_named,
    of_choices,
    ranked,
)
from pipeline.models.tasks.asked.readouts import AnswerSize, FrameAnswers, WindowAnswer
from pipeline.models.tasks.contract import (
    STREAMING,
    WINDOW,
    Metric,
    Query,
    TaskPlugin,
    WantedTexts,
)
from pipeline.models.tasks.parts.attention_readout import AttentionSettings
from pipeline.models.tasks.parts.canvas import draw_likeliest
from pipeline.models.text.contract import TextChoice
from pipeline.records import TokenShape

EXAMPLE_TOKENS, EXAMPLE_CHOICES = 32, 5
"""Of a question whose text is not known yet."""
RIGHT, ANSWERED = "right", "is_answered"
NO_ANSWER = "none of the answers"


class Settings(AttentionSettings):
    readout_width: int = Field(default=256, ge=1)
    """Width of the blocks in which a question looks at the video."""
    heads: int = Field(default=4, ge=1)
    """Attention heads of the blocks; must divide readout_width."""
    layers: int = Field(default=2, ge=1)
    """Blocks, one after the other."""
    answers: Literal["open", "choices"] = "open"
    """Where answers come from: open: from all labels of the manifest; choices: from those that
    every question has of its own. Questions that have none are then left out."""
    sees: Literal["video", "question"] = "video"
    """What the readout is shown. question: the question alone, the control that is blind."""
    text: TextChoice | None = None
    """The text tower; None: the text half of the cache's own image-text model."""
    model: str | None = None
    """Where the cache's own image-text model is now, if it was moved."""
    text_width: int = Field(default=512, ge=1)
    """Width of the tower's tokens: 512 for CLIP ViT-B, 768 for SigLIP 2 base, 384 for MiniLM."""
    width: int | None = Field(default=None, ge=1)
    """Width of the tower's embeddings of whole texts, which choices are read by; None: that of its
    tokens."""
    supervise: Literal["all", "last"] = "all"
    """Frames whose streaming logits enter the loss. "all": a stream may be asked at any frame; the
    loss cannot reach zero where early frames do not know yet."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread over all answers."""


class Task(TaskPlugin):
    """targets["question"] (B, L, D) and ["question_valid"] (B, L); ["right"] (B,) int64, the number
    of the right label or choice, -1 where it is none of them; ["is_answered"] (B,), False where
    nobody knows the answer. For choices, ["choices"] (B, C, E), zeros where a question has fewer
    than the others. An answer is as in `asked.answers`."""

    Settings = Settings
    needs = (QUESTION,)
    asks = QUESTION
    truth_settings = ("answers", "text", "model", "text_width", "width")
    drops_patches = True
    by_frame = ()
    mirrorable = False
    metrics: tuple[Metric, ...] = (
        Metric("accuracy", higher_is_better=True, perfect=1.0, worst=0.0),
    )
    """And "top-5" where there are more than five labels to answer with."""

    def __init__(self, settings: Any, labels: tuple[str, ...]) -> None:
        """Raises BadInput where there is nothing to choose from."""
        super().__init__(settings, labels)
        self.is_open: bool = settings.answers == "open"
        self._choices: tuple[str, ...] = ()
        if not self.is_open:
            return
        if not labels:
            raise BadInput(
                "task 'question': the manifest has no labels, which are the answers to open "
                "questions",
                'task.answers = "choices" where its questions have choices; else make it from a '
                "data set of open questions",
            )
        if len(labels) < 2:
            raise BadInput(
                f"task 'question': the only answer that training knows is '{labels[0]}'",
                "make the manifest with more answers: its labels are the vocabulary",
            )
        if len(labels) > MOST:
            top = Metric(f"top-{MOST}", higher_is_better=True, perfect=1.0, worst=0.0)
            self.metrics = (*self.metrics, top)

    @property
    def forms(self) -> tuple[str, ...]:
        forms: tuple[str, ...] = self.settings.forms
        return forms

    @property
    def wanted_texts(self) -> WantedTexts:
        settings = self.settings
        return WantedTexts(
            settings.text,
            settings.model,
            tokens=True,
            width=None if self.is_open else self._choice_width,
            text_width=settings.text_width,
            choices=not self.is_open,
        )

    @property
    def _choice_width(self) -> int:
        settings = self.settings
        width: int = settings.text_width if settings.width is None else settings.width
        return width

    def example_texts(self, frames: int) -> Arrays:
        return {
            QUESTION: np.zeros((EXAMPLE_TOKENS, self.settings.text_width), np.float32),
            QUESTION_VALID: np.ones(EXAMPLE_TOKENS, bool),
            "label": np.array(0),
            ANSWERED: np.array(True),
            CHOICES: np.zeros((EXAMPLE_CHOICES, self._choice_width), np.float32),
            "choice": np.array(0),
        }

    def prepare(self, targets: Arrays, rng: np.random.Generator | None) -> Arrays:
        """The right answer among labels or among choices. A question without any choices is as one
        whose answer nobody knows."""
        is_open = self.settings.answers == "open"
        is_answered = targets[ANSWERED] & (is_open or len(targets[CHOICES]) > 0)
        kept = {name: targets[name] for name in (QUESTION, QUESTION_VALID)}
        if not is_open:
            kept[CHOICES] = targets[CHOICES]
        right = targets["label" if is_open else "choice"]
        return kept | {RIGHT: right, ANSWERED: is_answered}

    def query(self, targets: dict[str, torch.Tensor]) -> Query:
        """The question, and its choices where it is answered by one."""
        names = (QUESTION, QUESTION_VALID) if self.is_open else (QUESTION, QUESTION_VALID, CHOICES)
        return {name: targets[name] for name in names}

    def readout(self, form: str, width: int, frames: int, shape: TokenShape) -> nn.Module:
        settings = self.settings
        size = AnswerSize(
            question_width=settings.text_width,
            answers=len(self.labels) if self.is_open else None,
            choice_width=self._choice_width,
            width=settings.readout_width,
            heads=settings.heads,
            layers=settings.layers,
            is_blind=settings.sees == "question",
        )
        return WindowAnswer(width, size, frames) if form == WINDOW else FrameAnswers(width, size)

    def loss(
        self, form: str, prediction: torch.Tensor, targets: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Mean cross-entropy of logits (B, T, K) or (B, K), over the windows whose right answer is
        among them and over the supervised frames."""
        right_B = targets[RIGHT].masked_fill(~targets[ANSWERED], -1)
        is_there_BK = None if self.is_open else targets[CHOICES].any(-1)
        if form == STREAMING:
            prediction = prediction if self.settings.supervise == "all" else prediction[:, -1:]
            frames = prediction.shape[1]
            right_B = right_B.repeat_interleave(frames)
            if is_there_BK is not None:
                is_there_BK = is_there_BK.repeat_interleave(frames, 0)
        smoothing = self.settings.label_smoothing
        return cross_entropy(prediction.flatten(0, -2), right_B, is_there_BK, smoothing)

    def terms(self, targets: Arrays) -> float:
        """The windows whose right answer can be told."""
        return float((targets[ANSWERED] & (targets[RIGHT] >= 0)).sum())

    def answer(self, form: str, prediction: torch.Tensor) -> torch.Tensor:
        """(B, R, 2): the likeliest answers after the last frame."""
        return ranked(prediction[:, -1] if form == STREAMING else prediction)

    def score(self, answer: np.ndarray, targets: Arrays) -> dict[str, np.ndarray]:
        """1 where the right answer is the likeliest (accuracy) or among the five likeliest (top-5),
        else 0."""
        most = (1, MOST)[: len(self.metrics)]
        return {
            metric.name: is_named(answer, targets[RIGHT], count)
            for metric, count in zip(self.metrics, most, strict=True)
        }

    def weight(self, targets: Arrays) -> np.ndarray:
        """1 where the answer is known, also one that is no label; else 0."""
        return (targets[ANSWERED] & targets[QUESTION_VALID].any(1)).astype(np.float64)

    def statistics(self, targets: Iterable[Arrays]) -> Arrays:
        """Counts how often each label or each place among the choices is right, and what it costs
        to hold all choices for equally likely."""
        rights, choices = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for batch in targets:
            is_known_B = batch[ANSWERED] & (batch[RIGHT] >= 0)
            rights.append(batch[RIGHT][is_known_B])
            if not self.is_open:
                choices.append(batch[CHOICES].any(-1).sum(1)[is_known_B])
        right, of_each = np.concatenate(rights), np.concatenate(choices)
        counts = np.bincount(right, minlength=len(self.labels) if self.is_open else 1)
        return {
            "counts": counts.astype(np.float64),
            "even_loss": np.array(np.log(of_each).mean() if len(of_each) else np.nan),
        }

    def trivial(self, targets: Arrays, statistics: Arrays) -> np.ndarray:
        """The answers that are right most often, whatever is asked: the most frequent labels, or,
        of the choices that there are, those in the places that are right most often."""
        # Each counts once more than it was right: what never was is still an answer.
        logits_K = np.log(statistics["counts"] + 1)
        if self.is_open:
            return ranked(torch.from_numpy(logits_K).repeat(len(targets[RIGHT]), 1)).numpy()
        is_there_BC = torch.from_numpy(targets[CHOICES].any(-1))
        logits_C = torch.zeros(is_there_BC.shape[1])
        places = min(len(logits_C), len(logits_K))
        logits_C[:places] = torch.from_numpy(logits_K[:places])
        return ranked(of_choices(logits_C.expand(is_there_BC.shape), is_there_BC)).numpy()

    def trivial_loss(self, statistics: Arrays) -> float:
        """In every form the entropy of the labels, smoothed as in the loss, or the logarithm of the
        number of choices."""
        if self.is_open:
            return len(self.forms) * entropy(statistics["counts"], self.settings.label_smoothing)
        return len(self.forms) * float(statistics["even_loss"])

    def take_words(self, words: Sequence[str], targets: dict[str, torch.Tensor]) -> None:
        self._choices = tuple(words)

    def plain(self, answer: np.ndarray, affine_23: np.ndarray) -> dict[str, Any]:
        """The likeliest answer and its probability; a choice by its number, counted from 0, and in
        words where these are known."""
        number, share = int(answer[0, 0]), round(float(answer[0, 1]), 4)
        said: dict[str, Any] = {} if self.is_open else {"choice": number}
        if self.is_open or self._choices:
            said["label"] = self._name(number)
        return said | {"probability": share}

    def draw(self, pixels_THWC: np.ndarray, answer: np.ndarray, targets: Arrays) -> np.ndarray:
        """Every frame under the right answer and the likeliest ones; (T, H, W, 3)."""
        truth = None
        if targets and targets[ANSWERED]:
            right = int(targets[RIGHT])
            truth = NO_ANSWER if right < 0 else self._name(right)
        said = [(self._name(int(number)), float(share)) for number, share in answer if share > 0]
        return draw_likeliest(pixels_THWC, said, truth)

    def _name(self, number: int) -> str:
        """An answer in words; a choice whose words are not known by its number."""
        names = self.labels if self.is_open else self._choices
        return names[number] if number < len(names) else f"choice {number}"
