"""Video-text retrieval: which video is it that a sentence tells of, and which sentence tells of a
video, among all of a split.

A video becomes a vector that is compared with those of its captions. With the text half of the
cache's own image-text model it is the mean of its frames' embeddings before training, so that a run
of zero steps is zero-shot retrieval; what the temporal module and a projection of the texts add is
0 at first. Training brings videos and their captions together, by symmetric InfoNCE as CLIP or by
SigLIP's sigmoid loss; two losses may be added, which read the tokens of the video more closely: to
tell masked words of a caption (`mask_words`), and whether a caption belongs to a video (`match`).
Scores are those of the field: recall at 1, 5 and 10, median and mean rank, in both directions, with
nothing of the test set but the query and what is searched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from pipeline.datasets.manifest.targets import CAPTIONS, WORDS, Arrays
from pipeline.datasets.manifest.texts import FIRST_WORD
from pipeline.errors import BadInput
from pipeline.models.tasks.contract import (
    FRAME_EMBEDDINGS,
    STREAMING,
    WINDOW,
    Baseline,
    Metric,
    Query,
    TaskPlugin,
    WantedTexts,
)
from pipeline.models.tasks.matching.drawing import draw_scores
from pipeline.models.tasks.matching.losses import GREATEST_SCALE, info_nce, sigmoid_loss
from pipeline.models.tasks.matching.masked_words import (
    ASKED_WORDS,
    MOST_WORDS,
    WORDS_LEFT,
    WordReadout,
    masked,
    word_loss,
)
from pipeline.models.tasks.matching.pairs import OWN_TEXT, PairReadout, pair_loss
from pipeline.models.tasks.matching.ranks import Places
from pipeline.models.tasks.matching.ranks import ranks as ranks_of
from pipeline.models.tasks.matching.readouts import FrameVectors, WindowVector, begin_at_zero
from pipeline.models.tasks.parts.attention_readout import AttentionSettings
from pipeline.models.text.contract import TextChoice
from pipeline.records import TokenShape

TO_VIDEO, TO_TEXT = "t2v", "v2t"
"""Directions: a text looks for its video, a video for its text."""
TOP = (1, 5, 10)
DUAL_SOFTMAX = "dual softmax"
MASKED_WORDS, MATCHING = "masked_words", "matching"
"""Readouts that training alone uses."""


class Settings(AttentionSettings):
    readout_width: int = Field(default=256, ge=1)
    """Width of keys, values and query of the readouts."""
    heads: int = Field(default=4, ge=1)
    """Attention heads of the readouts; must divide readout_width."""
    width: int = Field(default=512, ge=1)
    """Width of the space in which videos and texts are compared: that of the tower's embeddings,
    512 for CLIP ViT-B, 768 for SigLIP 2 base."""
    text: TextChoice | None = None
    """The text tower; None: the text half of the cache's own image-text model."""
    model: str | None = None
    """Where the cache's own image-text model is now, if it was moved."""
    zero_shot: bool = True
    """Whether videos begin as the mean of their frames' embeddings by the cache's own image-text
    model, whose text half the tower must then be. With false any cache and any tower will do, and
    before training nothing is known."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """What training asks. softmax: symmetric InfoNCE, as CLIP; sigmoid: of every pair whether it
    belongs together, as SigLIP, which does with smaller batches. Batches are those of all
    processes together, and of one part where training.accumulate cuts them."""
    temperature: float = Field(default=0.07, ge=0.01)
    """What cosines are divided by at the first step; it is learned. CLIP ends at 0.01."""
    bias: float = -10.0
    """What the sigmoid loss adds to logits at the first step; it is learned."""
    equal_captions: Literal["wrong", "right"] = "wrong"
    """What a video counts as that is not a text's own and has the very same text. wrong: as any
    other, the published protocol; right: as its own, where sentences stand for labels."""
    supervise: Literal["last", "all"] = "last"
    """Frames after which the streaming form's vector enters the loss."""
    mask_words: float = Field(default=0.0, ge=0)
    """Weight of another loss in training: words of a caption that are masked are told from the
    others and from the tokens of the video. 0: there is none."""
    mask_share: tuple[float, float] = (0.15, 0.5)
    """Share of a caption's words that is masked, drawn between the two for every window; one word
    at least."""
    vocabulary: int = Field(default=8192, gt=FIRST_WORD)
    """Words that can be told, those that the training captions say most often; three of them stand
    for padding, the mask and all others, which are never asked for."""
    match: float = Field(default=0.0, ge=0)
    """Weight of another loss in training: whether a caption belongs to a video, told from the
    tokens of the video, with wrong pairs of the batch that are most alike before training. 0: there
    is none."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        low, high = self.mask_share
        if not 0 < low <= high <= 1:
            raise ValueError("mask_share: wanted two shares above 0 and up to 1, ascending")
        return self


class Task(TaskPlugin):
    """targets["captions"] (B, K, E): embeddings of captions, zeros where a clip has fewer than the
    others; one of each clip in training. An answer is (B, E), of unit length; or (B, T, E), the
    vectors of frames, which are then weighted for every text."""

    Settings = Settings
    needs: tuple[str, ...] = (CAPTIONS,)
    truth_settings = (
        "width",
        "text",
        "model",
        "zero_shot",
        "mask_words",
        "mask_share",
        "vocabulary",
        "match",
    )
    scores_together = True
    drops_patches = True
    mirrorable = False
    asked_in_words = True
    dual_softmax = False
    """Whether scores are multiplied by their softmax over the split, which looks at all queries at
    once; names of metrics say so."""

    def __init__(self, settings: Any, labels: tuple[str, ...]) -> None:
        super().__init__(settings, labels)
        self._asked: dict[str, np.ndarray] = {}
        if settings.mask_words:
            self.needs = (CAPTIONS, WORDS)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(settings.temperature)))
        self.logit_bias: nn.Parameter | None = None
        if settings.loss == "sigmoid":  # a constant does not change a softmax
            self.logit_bias = nn.Parameter(torch.tensor(float(settings.bias)))
        # Where videos begin as what their frames say, texts stay as they are: zero-shot scores are
        # then those of the same vectors before and after training.
        self.text_projection: nn.Module | None = None
        if not settings.zero_shot:
            self.text_projection = nn.Linear(settings.width, settings.width, bias=False)
            nn.init.zeros_(self.text_projection.weight)

    def use_dual_softmax(self) -> None:
        self.dual_softmax = True

    def take_words(self, words: Sequence[str], targets: dict[str, torch.Tensor]) -> None:
        with torch.inference_mode():
            text_KE = self.of_texts(targets[CAPTIONS][0]).cpu().numpy()
        self._asked = dict(zip(words, text_KE, strict=True))

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        """Recalls and ranks in both directions."""
        how = f", {DUAL_SOFTMAX}" if self.dual_softmax else ""
        found: list[Metric] = []
        for way in (TO_VIDEO, TO_TEXT):
            found += [
                Metric(f"{way} R@{top}{how}", higher_is_better=True, perfect=1.0, worst=0.0)
                for top in TOP
            ]
            found += [
                Metric(f"{way} {name}{how}", False, perfect=1.0, is_median=name == "MdR")
                for name in ("MdR", "MnR")
            ]
        return tuple(found)

    @property
    def forms(self) -> tuple[str, ...]:
        forms: tuple[str, ...] = self.settings.forms
        return forms

    @property
    def aids(self) -> tuple[str, ...]:
        weights = {MASKED_WORDS: self.settings.mask_words, MATCHING: self.settings.match}
        return tuple(name for name, weight in weights.items() if weight)

    @property
    def wanted_texts(self) -> WantedTexts:
        settings = self.settings
        return WantedTexts(
            settings.text, settings.model, frames=settings.zero_shot, width=settings.width
        )

    def example_texts(self, frames: int) -> Arrays:
        width = self.settings.width
        texts: Arrays = {CAPTIONS: np.zeros((1, width), np.float32)}
        if self.settings.zero_shot:
            texts[FRAME_EMBEDDINGS] = np.zeros((frames, width), np.float32)
        if WORDS in self.needs:
            texts[WORDS] = np.zeros(MOST_WORDS, np.int64)
        return texts

    def prepare(self, targets: Arrays, rng: np.random.Generator | None) -> Arrays:
        """In training what its aids are told and asked."""
        settings = self.settings
        if rng is not None and settings.match:
            targets[OWN_TEXT] = targets[CAPTIONS][0]
        if rng is not None and settings.mask_words:
            words_L = targets.pop(WORDS)
            targets |= masked(words_L, rng, settings.mask_share, settings.vocabulary)
        return targets

    def query(self, targets: dict[str, torch.Tensor]) -> Query:
        """The embeddings of the frames, where videos begin with them; in training what its aids
        are told."""
        told = (FRAME_EMBEDDINGS, OWN_TEXT, WORDS_LEFT)
        return {name: targets[name] for name in told if name in targets}

    def readout(self, form: str, width: int, frames: int, shape: TokenShape) -> nn.Module:
        settings = self.settings
        size = {"readout_width": settings.readout_width, "heads": settings.heads}
        if form == MASKED_WORDS:
            return WordReadout(width, settings.vocabulary, frames=frames, **size)
        if form == MATCHING:
            return PairReadout(
                width, settings.width, frames=frames, temperature=settings.temperature, **size
            )
        made = (
            WindowVector(width, settings.width, frames=frames, **size)
            if form == WINDOW
            else FrameVectors(width, settings.width, **size)
        )
        if settings.zero_shot:
            begin_at_zero(made)
        return made

    def loss(
        self, form: str, prediction: torch.Tensor, targets: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Mean over windows, and over the supervised frames of the streaming form; of aids times
        their weight."""
        if form == MASKED_WORDS:
            return self.settings.mask_words * word_loss(prediction, targets[ASKED_WORDS])
        if form == MATCHING:
            return self.settings.match * pair_loss(prediction)
        text_BE = targets[CAPTIONS][:, 0]
        mask_B = text_BE.any(-1)
        text_BE = self.of_texts(text_BE.to(prediction.dtype))
        scale = self.log_scale.exp().clamp(max=GREATEST_SCALE)
        ask = partial(info_nce, scale=scale)
        if self.logit_bias is not None:
            ask = partial(sigmoid_loss, scale=scale, bias=self.logit_bias)
        of_frames = [prediction]
        if form == STREAMING:
            last_only = self.settings.supervise == "last"
            of_frames = list((prediction[:, -1:] if last_only else prediction).unbind(1))
        losses = [
            ask(F.normalize(video_BE, dim=-1), text_BE, mask_B=mask_B) for video_BE in of_frames
        ]
        return torch.stack(losses).mean()

    def of_texts(self, text_BE: torch.Tensor) -> torch.Tensor:
        """Embeddings of texts by the tower -> their vectors, of unit length."""
        if self.text_projection is None:
            return text_BE
        return F.normalize(text_BE + self.text_projection(text_BE), dim=-1)

    def answer(self, form: str, prediction: torch.Tensor) -> torch.Tensor:
        """(B, E), of unit length: what all frames say."""
        video_BE = prediction[:, -1] if form == STREAMING else prediction
        return F.normalize(video_BE.float(), dim=-1)

    def places(self, answer: np.ndarray, targets: Arrays) -> Places:
        """Where videos and texts come among all of a split. An answer that is no vector has no
        place."""
        captions_BKE = torch.from_numpy(targets[CAPTIONS])
        is_text_BK = captions_BKE.any(-1).numpy()
        groups_N = None
        if self.settings.equal_captions == "right":
            said_NE = targets[CAPTIONS][is_text_BK]
            groups_N = np.unique(said_NE, axis=0, return_inverse=True)[1].reshape(-1)
        scale = float(self.log_scale.detach().exp().clamp(max=GREATEST_SCALE))
        is_vector_B = np.isfinite(answer).all(tuple(range(1, answer.ndim)))
        answer = np.where(is_vector_B.reshape(-1, *[1] * (answer.ndim - 1)), answer, np.nan)
        return ranks_of(
            self.vectors_of(captions_BKE),
            is_text_BK,
            answer,
            dual_softmax=scale if self.dual_softmax else None,
            groups_N=groups_N,
        )

    def vectors_of(self, texts: torch.Tensor) -> np.ndarray:
        """Embeddings of texts by the tower (..., E), on the CPU -> what videos are compared
        with."""
        with torch.inference_mode():
            vectors: np.ndarray = self.of_texts(texts.to(self.log_scale.device)).cpu().numpy()
        return vectors

    def score(self, answer: np.ndarray, targets: Arrays) -> dict[str, np.ndarray]:
        """Means over a clip's captions; the rank itself of each of them for the median."""
        is_text_BK = (targets[CAPTIONS] != 0).any(-1)
        found = self.places(answer, targets)
        count_B, has_text_B = np.maximum(is_text_BK.sum(1), 1), is_text_BK.any(1)
        videos_BK, texts_B = found
        values = [
            *((videos_BK.recall(top) * is_text_BK).sum(1) / count_B for top in TOP),
            videos_BK.rank,
            np.where(is_text_BK, videos_BK.rank, 0).sum(1) / count_B,
            *(texts_B.recall(top) * has_text_B for top in TOP),
            texts_B.rank,
            texts_B.rank,
        ]
        return {metric.name: each for metric, each in zip(self.metrics, values, strict=True)}

    def weight(self, targets: Arrays) -> np.ndarray:
        """The captions of every clip: each of them is a query."""
        return self.metric_weights(targets)[self.metrics[0].name]

    def metric_weights(self, targets: Arrays) -> dict[str, np.ndarray]:
        """A text is a query on the way to videos, a clip on the way to texts."""
        is_text_BK = targets[CAPTIONS].any(-1).astype(np.float64)
        of_ways: Arrays = {TO_VIDEO: is_text_BK.sum(1), TO_TEXT: is_text_BK.max(1)}
        weights: Arrays = {}
        for metric in self.metrics:
            way = metric.name[: len(TO_VIDEO)]
            several = metric.is_median and way == TO_VIDEO
            weights[metric.name] = np.asarray(is_text_BK if several else of_ways[way])
        return weights

    def trivial(self, targets: Arrays, statistics: Arrays) -> np.ndarray:
        """The same vector for every video: all rank in the middle."""
        return np.zeros((len(targets[CAPTIONS]), self.settings.width), np.float32)

    @property
    def baselines(self) -> Mapping[str, Baseline]:
        """Zero-shot retrieval: the mean of the frames, and frames weighted by how well they fit the
        text."""
        if not self.settings.zero_shot:
            return {}
        return {
            "mean_of_frames": lambda _tokens, query, _: F.normalize(
                query[FRAME_EMBEDDINGS].mean(1), dim=-1
            ),
            "query_scoring": lambda _tokens, query, _: query[FRAME_EMBEDDINGS],
        }

    def plain(self, answer: np.ndarray, affine_23: np.ndarray) -> dict[str, Any]:
        """How much the video up to this frame is like each text that is asked for, as a cosine; the
        vector of the video where none is."""
        if self._asked:
            return {"scores": {words: round(score, 4) for words, score in self._scores(answer)}}
        return {"vector": [round(float(value), 5) for value in answer]}

    def draw(self, pixels_THWC: np.ndarray, answer: np.ndarray, targets: Arrays) -> np.ndarray:
        """Every frame with what is asked for, the likest first, each with its cosine and a bar from
        0 to 1; (T, H, W, 3). Raises BadInput where nothing is."""
        if not self._asked:
            raise BadInput(
                "a run of retrieve draws what it is asked for, and nothing is",
                'stillframe stream RUN VIDEO --ask "a dog jumps" --draw FILE.mp4',
            )
        ranked = sorted(self._scores(answer), key=lambda scored: -scored[1])
        return draw_scores(pixels_THWC, ranked)

    def _scores(self, answer: np.ndarray) -> list[tuple[str, float]]:
        return [(words, float(answer @ text_E)) for words, text_E in self._asked.items()]
