"""Clip classification: attention readout, cross-entropy, top-1 and top-5 (arXiv 2605.19137, as for
Something-Something v2).

Streaming: logits for every frame from that frame's tokens alone; the last frame's are the answer.
Window: logits from the tokens of all frames at once. With `prompts`, both are cosines of the video
with the names of the classes, see `matching.classes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from pipeline.datasets.manifest.targets import Arrays
from pipeline.errors import BadInput
from pipeline.models.tasks.contract import (
    FRAME_EMBEDDINGS,
    STREAMING,
    WINDOW,
    Baseline,
    Metric,
    Query,
    StreamingReadout,
    TaskPlugin,
    WantedTexts,
)
from pipeline.models.tasks.matching.classes import BY_NAME, NamedClasses, PromptSettings
from pipeline.models.tasks.parts.attention_readout import AttentionReadout
from pipeline.models.tasks.parts.canvas import draw_likeliest
from pipeline.records import TokenShape

TOP = 5
"""Labels that count as named in the second metric."""


class Settings(PromptSettings):
    readout_width: int = Field(default=256, ge=1)
    """Width of keys, values and query; the paper has 768."""
    heads: int = Field(default=4, ge=1)
    """Attention heads of the readout; must divide readout_width. The paper has 12."""
    supervise: Literal["all", "last"] = "all"
    """Frames whose streaming logits enter the loss. The paper does not say. "all": a stream may be
    asked at any frame, and every step of the recurrence gets its own gradient; the loss cannot
    reach zero where early frames do not know yet."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes."""


class FrameLogits(StreamingReadout, AttentionReadout):
    """Logits (B, T, K) of every frame from its own tokens."""

    def forward(self, x_BTND: torch.Tensor, query: Query) -> torch.Tensor:
        return self.read(x_BTND.flatten(0, 1)).squeeze(1).unflatten(0, x_BTND.shape[:2])

    def step(self, x_BND: torch.Tensor, state: Query) -> tuple[torch.Tensor, Query]:
        return self.read(x_BND).squeeze(1), state


class WindowLogits(AttentionReadout):
    """Logits (B, K) of the window from the tokens of all its frames."""

    def forward(self, x_BTND: torch.Tensor, query: Query) -> torch.Tensor:
        return self.read_window(x_BTND).squeeze(1)


class Task(TaskPlugin):
    """targets["label"]: (B,) int64, the position of the clip's label in `labels`."""

    Settings = Settings
    needs = ("label",)
    truth_settings = BY_NAME
    drops_patches = True
    by_frame = ()
    published = "readout."
    metrics: tuple[Metric, ...] = (Metric("top-1", higher_is_better=True, perfect=1.0, worst=0.0),)
    """And "top-5" where there are more than five labels."""

    def __init__(self, settings: Any, labels: tuple[str, ...]) -> None:
        """Raises BadInput where there are no labels."""
        super().__init__(settings, labels)
        if not labels:
            raise BadInput(
                "task 'classify': the manifest has no labels",
                "make the manifest from a dataset whose clips are labelled, or choose another task",
            )
        if len(labels) > TOP:
            self.metrics = (
                *self.metrics,
                Metric(f"top-{TOP}", higher_is_better=True, perfect=1.0, worst=0.0),
            )
        self.named = NamedClasses(settings, labels) if settings.prompts else None

    @property
    def forms(self) -> tuple[str, ...]:
        forms: tuple[str, ...] = self.settings.forms
        return forms

    @property
    def wanted_texts(self) -> WantedTexts | None:
        """The names of the classes, in the words of the prompts."""
        return None if self.named is None else self.named.wanted_texts

    def take_texts(self, own_ND: np.ndarray) -> None:
        if self.named is not None:
            self.named.take(own_ND)

    def example_texts(self, frames: int) -> Arrays:
        if self.named is None:
            return {}
        return {FRAME_EMBEDDINGS: np.zeros((frames, self.settings.width), np.float32)}

    def query(self, targets: dict[str, torch.Tensor]) -> Query:
        """The embeddings of the frames, where classes have names."""
        return {name: targets[name] for name in (FRAME_EMBEDDINGS,) if name in targets}

    def readout(self, form: str, width: int, frames: int, shape: TokenShape) -> nn.Module:
        if self.named is not None:
            return self.named.readout(form, width, frames)
        size = {"readout_width": self.settings.readout_width, "heads": self.settings.heads}
        if form == WINDOW:
            return WindowLogits(width, len(self.labels), frames=frames, **size)
        return FrameLogits(width, len(self.labels), **size)

    def reorder(
        self, weights: dict[str, torch.Tensor], order: Sequence[int]
    ) -> dict[str, torch.Tensor]:
        """The rows of the last layer, or the vectors of named classes, one for each label, in the
        order of `self.labels`."""
        of_labels = "classifier." if self.named is None else "named.class_KE"
        rows = [name for name in weights if name.startswith(of_labels)]
        return weights | {name: weights[name][list(order)] for name in rows}

    def loss(
        self, form: str, prediction: torch.Tensor, targets: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Mean cross-entropy of logits (B, T, K) or (B, K), over the supervised frames."""
        label, prediction = targets["label"], self._logits(prediction)
        if form == STREAMING:
            prediction = prediction if self.settings.supervise == "all" else prediction[:, -1:]
            label = label.repeat_interleave(prediction.shape[1])
        logits = prediction.flatten(0, -2)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, label, label_smoothing=self.settings.label_smoothing)

    def answer(self, form: str, prediction: torch.Tensor) -> torch.Tensor:
        """Logits (B, K)."""
        return self._logits(prediction[:, -1] if form == STREAMING else prediction)

    def _logits(self, prediction: torch.Tensor) -> torch.Tensor:
        """What a readout says, as logits: vectors of videos are compared with named classes."""
        return prediction if self.named is None else self.named.logits(prediction)

    def score(self, answer: np.ndarray, targets: Arrays) -> dict[str, np.ndarray]:
        """1 where the label's logit is the largest (top-1) or among the five largest (top-5), else
        0.

        Of equal logits the first counts. Logits that are not all finite name no label.
        """
        label, named = targets["label"], np.isfinite(answer).all(axis=-1)
        ranked = np.argsort(-answer, axis=-1, kind="stable")
        hits = {top: (ranked[:, :top] == label[:, None]).any(axis=-1) for top in (1, TOP)}
        scores = {f"top-{top}": (hit & named).astype(np.float64) for top, hit in hits.items()}
        return {metric.name: scores[metric.name] for metric in self.metrics}

    def statistics(self, targets: Iterable[Arrays]) -> Arrays:
        """Counts how often each label occurs."""
        counts = np.zeros(len(self.labels))
        for batch in targets:
            counts += np.bincount(batch["label"], minlength=len(counts))
        return {"counts": counts}

    def trivial(self, targets: Arrays, statistics: Arrays) -> np.ndarray:
        """Labels ranked by how often they occur, always the most frequent one first: chance where
        labels are balanced."""
        return np.tile(statistics["counts"], (len(targets["label"]), 1))

    def trivial_loss(self, statistics: Arrays) -> float:
        """In every form the entropy of the labels, smoothed as in the loss: ln K where the K labels
        are balanced."""
        share_K = statistics["counts"] / statistics["counts"].sum()
        smoothing = self.settings.label_smoothing
        share_K = (1 - smoothing) * share_K + smoothing / len(share_K)
        share_K = share_K[share_K > 0]
        return len(self.forms) * -float((share_K * np.log(share_K)).sum())

    @property
    def baselines(self) -> Mapping[str, Baseline]:
        """Zero-shot classification, where classes have names."""
        named = self.named
        if named is None:
            return {}
        return {"mean_of_frames": lambda _tokens, query, _: named.mean_of_frames(query)}

    def plain(self, answer: np.ndarray, affine_23: np.ndarray) -> dict[str, Any]:
        """The likeliest label and its probability."""
        share = np.exp(answer - answer.max())
        best = int(answer.argmax())
        return {
            "label": self.labels[best],
            "probability": round(float(share[best] / share.sum()), 4),
        }

    def draw(self, pixels_THWC: np.ndarray, answer: np.ndarray, targets: Arrays) -> np.ndarray:
        """Every frame under its label and the likeliest labels of the answer, of which the first is
        what it says: green where right, red where wrong; (T, H, W, 3)."""
        share = np.exp(answer - answer.max(), dtype=np.float64)
        share /= share.sum()
        order = np.argsort(-answer, kind="stable").tolist()
        truth = self.labels[int(targets["label"])] if targets else None
        said = [(self.labels[label], float(share[label])) for label in order]
        return draw_likeliest(pixels_THWC, said, truth)
