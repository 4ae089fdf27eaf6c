"""What happens in every frame: temporal action segmentation, and online action detection.

Streaming: logits of every frame from the frames so far, as a detector online has to answer. Window:
from all frames of the window, as videos are segmented offline. Whole videos are scored, each frame
once, with `windows.eval_frames = "clip"`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from pipeline.datasets.manifest.targets import CLASSES, CLASSES_VALID, Arrays
from pipeline.errors import BadInput
from pipeline.models.tasks.contract import WINDOW, Metric, TaskPlugin
from pipeline.models.tasks.parts.attention_readout import AttentionSettings
from pipeline.models.tasks.segments.precision import of_windows, weights_of
from pipeline.models.tasks.segments.readouts import FrameClasses, WindowClasses
from pipeline.models.tasks.segments.segments import Segment, edit_score, found, segments_of
from pipeline.models.tasks.segments.timeline import PLAIN, RIGHT, WRONG, strip, with_strips
from pipeline.records import TokenShape

OVERLAPS = {"F1@10": 0.1, "F1@25": 0.25, "F1@50": 0.5}
"""Metric -> the least intersection over union of a segment that was found."""
NOTHING = -1
"""The label of a frame that has no class, or no answer."""
LEAST_SHARE = 1e-12
"""Probability of a class that training never saw."""
SAID = 0.5
"""Probability from which on one of several classes is said to hold."""


class Settings(AttentionSettings):
    readout_width: int = Field(default=256, ge=1)
    """Width of keys, values and query, and of the temporal convolutions of the window form."""
    heads: int = Field(default=4, ge=1)
    """Attention heads of the readout; must divide readout_width."""
    layers: int = Field(default=6, ge=1)
    """Temporal convolutions of the window form; each sees twice as far as the one before it."""
    classes: Literal["one", "several"] = "one"
    """Classes that hold of a frame. one: softmax over classes, and the scores of segmentation stand
    first; where the truth has several, any of them is right. several: each class for itself, and
    the scores of detection."""
    background: tuple[str, ...] = ("background",)
    """Names of classes that are no event, in any case of letters: they are trained on, count as
    frames that are right or wrong, and are left out of segments and of average precisions."""


class Task(TaskPlugin):
    """targets["classes"]: (B, T, K) bool; targets["classes_valid"]: (B, T)."""

    Settings = Settings
    needs = (CLASSES,)
    drops_patches = True
    scores_together = True  # frames of all videos are ranked together
    reads_any_length = True
    metrics: tuple[Metric, ...] = ()

    def __init__(self, settings: Any, labels: tuple[str, ...]) -> None:
        """Raises BadInput where there are no classes, or all of them are background."""
        super().__init__(settings, labels)
        quiet = {name.casefold() for name in settings.background}
        self.background = [number for number, name in enumerate(labels) if name.casefold() in quiet]
        self.events = [number for number in range(len(labels)) if number not in self.background]
        if not self.events:
            raise BadInput(
                "task 'segment': the manifest has no classes of segments"
                + (f" but background: {', '.join(labels)}" if labels else ""),
                "make the manifest from a data set that knows what happens when, as frame_labels, "
                "or choose another task",
            )
        names = ["mAP", "mcAP"]
        if settings.classes == "one":
            names = ["accuracy", "edit", *OVERLAPS, *names]
        self.metrics = tuple(
            Metric(name, higher_is_better=True, perfect=1.0, worst=0.0) for name in names
        )

    @property
    def forms(self) -> tuple[str, ...]:
        forms: tuple[str, ...] = self.settings.forms
        return forms

    def readout(self, form: str, width: int, frames: int, shape: TokenShape) -> nn.Module:
        size = {"readout_width": self.settings.readout_width, "heads": self.settings.heads}
        if form == WINDOW:
            return WindowClasses(width, len(self.labels), layers=self.settings.layers, **size)
        return FrameClasses(width, len(self.labels), **size)

    def reorder(
        self, weights: dict[str, torch.Tensor], order: Sequence[int]
    ) -> dict[str, torch.Tensor]:
        """The rows of the last layer, one for each class, in the order of `self.labels`."""
        rows = [name for name in weights if name.startswith("classifier.")]
        return weights | {name: weights[name][list(order)] for name in rows}

    def loss(
        self, form: str, prediction: torch.Tensor, targets: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Mean over the frames that count: cross-entropy, shared by the classes of a frame; or the
        mean over classes of binary cross-entropies."""
        logits_BTK = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
        true_BTK = targets[CLASSES].to(logits_BTK.dtype)
        counted_BT = targets[CLASSES_VALID]
        if self.settings.classes == "one":
            counted_BT = counted_BT & targets[CLASSES].any(-1)
            share_BTK = true_BTK / true_BTK.sum(-1, keepdim=True).clamp(min=1)
            losses_BT = -(share_BTK * F.log_softmax(logits_BTK, -1)).sum(-1)
        else:
            losses_BTK = F.binary_cross_entropy_with_logits(logits_BTK, true_BTK, reduction="none")
            losses_BT = losses_BTK.mean(-1)
        return torch.where(counted_BT, losses_BT, 0).sum() / counted_BT.sum().clamp(min=1)

    def terms(self, targets: Arrays) -> float:
        """Counts the frames of `loss`."""
        return float(self._counted(targets).sum())

    def _counted(self, targets: Arrays) -> np.ndarray:
        """(B, T): the frames that are trained on."""
        known_BT: np.ndarray = targets[CLASSES_VALID]
        return known_BT & targets[CLASSES].any(-1) if self.settings.classes == "one" else known_BT

    def answer(self, form: str, prediction: torch.Tensor) -> torch.Tensor:
        """Logarithms of the classes' probabilities, (B, T, K): they rank frames as probabilities
        do, also where these are one in float32."""
        logits_BTK = prediction.float()
        if self.settings.classes == "one":
            return F.log_softmax(logits_BTK, -1)
        return F.logsigmoid(logits_BTK)

    def score(self, answer: np.ndarray, targets: Arrays) -> dict[str, np.ndarray]:
        """ "mAP" and "mcAP" are those of all windows together, see `segments.precision`; "edit" is
        a window's own, "F1@..." 2 TP / (segments found + true segments) of a window, which adds up
        to that of all windows by `answer_weights`, and "accuracy" the share of its frames."""
        known_BT, events = targets[CLASSES_VALID], self.events
        answer = np.where(np.isfinite(answer).all(-1, keepdims=True), answer, np.nan)
        scores: dict[str, np.ndarray] = {}
        if self.settings.classes == "one":
            said_BT, counted_BT = labels_said(answer), self._counted(targets)
            is_right_BTK = np.take_along_axis(
                targets[CLASSES], said_BT.clip(min=0)[..., None], axis=-1
            )
            is_right_BT = is_right_BTK[..., 0] & (said_BT >= 0) & counted_BT
            scores["accuracy"] = is_right_BT.sum(1) / counted_BT.sum(1).clip(min=1)
            pairs = self._segments(answer, targets)
            scores["edit"] = np.array([edit_score(*pair) for pair in pairs], np.float64)
            for name, least_iou in OVERLAPS.items():
                both = [(2 * found(*pair, least_iou), sum(map(len, pair))) for pair in pairs]
                scores[name] = np.array([hits / max(1, count) for hits, count in both])
        for name, calibrated in (("mAP", False), ("mcAP", True)):
            scores[name] = of_windows(
                answer[..., events], targets[CLASSES][..., events], known_BT, calibrated=calibrated
            )
        return scores

    def _segments(
        self, answer: np.ndarray, targets: Arrays
    ) -> list[tuple[list[Segment], list[Segment]]]:
        """Segments of the answer and of the truth of every window, over the frames that count."""
        said_BT, true_BT = labels_said(answer), self._true(targets)
        return [
            (
                segments_of(said_T[counted_T], self.background),
                segments_of(true_T[counted_T], self.background),
            )
            for said_T, true_T, counted_T in zip(
                said_BT, true_BT, self._counted(targets), strict=True
            )
        ]

    def _true(self, targets: Arrays) -> np.ndarray:
        """The class of every frame, (B, T): the first that holds, background last; NOTHING where
        none does."""
        order = np.array([*self.events, *self.background])
        true_BTK = targets[CLASSES][..., order]
        return np.where(true_BTK.any(-1), order[true_BTK.argmax(-1)], NOTHING)

    def weight(self, targets: Arrays) -> np.ndarray:
        return self.metric_weights(targets)[self.metrics[0].name]

    def metric_weights(self, targets: Arrays) -> dict[str, np.ndarray]:
        """Accuracy counts frames, edit videos, F1 the true segments, until `answer_weights` adds
        those that were found; average precisions count true frames, all classes alike."""
        frames_B = self._counted(targets).sum(1).astype(np.float64)
        true_B = weights_of(targets[CLASSES][..., self.events], targets[CLASSES_VALID])
        weights = {"accuracy": frames_B, "edit": (frames_B > 0).astype(np.float64)}
        if self.settings.classes == "one":
            counted_BT = self._counted(targets)
            rows = zip(self._true(targets), counted_BT, strict=True)
            segments = [
                segments_of(true_T[counted_T], self.background) for true_T, counted_T in rows
            ]
            weights |= dict.fromkeys(
                OVERLAPS, np.array([len(each) for each in segments], np.float64)
            )
        weights |= {"mAP": true_B, "mcAP": true_B}
        return {metric.name: weights[metric.name] for metric in self.metrics}

    def answer_weights(self, answer: np.ndarray, targets: Arrays) -> dict[str, np.ndarray]:
        """F1 counts the segments of answer and truth."""
        if self.settings.classes != "one":
            return {}
        answer = np.where(np.isfinite(answer).all(-1, keepdims=True), answer, np.nan)
        pairs = self._segments(answer, targets)
        count_B = np.array([sum(map(len, pair)) for pair in pairs], np.float64)
        return dict.fromkeys(OVERLAPS, count_B)

    def statistics(self, targets: Iterable[Arrays]) -> Arrays:
        """Counts frames, and those of every class; where one class holds of a frame, each of
        several is counted in part."""
        frames, counts_K = 0.0, np.zeros(len(self.labels))
        for batch in targets:
            counted_BT = self._counted(batch)
            true_MK = batch[CLASSES][counted_BT].astype(np.float64)
            if self.settings.classes == "one":
                true_MK = true_MK / true_MK.sum(-1, keepdims=True)
            frames, counts_K = frames + len(true_MK), counts_K + true_MK.sum(0)
        return {"frames": np.array(frames), "counts": counts_K}

    def trivial(self, targets: Arrays, statistics: Arrays) -> np.ndarray:
        """Every frame has the shares that classes have in training: always the most frequent one,
        and no frame before another."""
        share_K = statistics["counts"] / max(1.0, float(statistics["frames"]))
        answer_K = np.log(share_K.clip(LEAST_SHARE, 1)).astype(np.float32)
        return np.tile(answer_K, (*targets[CLASSES_VALID].shape, 1))

    def trivial_loss(self, statistics: Arrays) -> float | None:
        """In every form the entropy of the classes, or the mean of their entropies."""
        if not statistics["frames"]:
            return None
        share_K = statistics["counts"] / float(statistics["frames"])
        entropy_K = _surprise(share_K)
        if self.settings.classes == "one":
            return len(self.forms) * float(entropy_K.sum())
        return len(self.forms) * float((entropy_K + _surprise(1 - share_K)).mean())

    def plain(self, answer: np.ndarray, affine_23: np.ndarray) -> dict[str, Any]:
        """The likeliest class of the frame and its probability; or those of all classes that are
        said to hold."""
        share_K = np.exp(answer[0].astype(np.float64))
        if self.settings.classes == "one":
            best = int(share_K.argmax())
            return {"class": self.labels[best], "probability": round(float(share_K[best]), 4)}
        told = [number for number in np.argsort(-share_K) if share_K[number] >= SAID]
        return {
            "classes": {self.labels[number]: round(float(share_K[number]), 4) for number in told}
        }

    def draw(self, pixels_THWC: np.ndarray, answer: np.ndarray, targets: Arrays) -> np.ndarray:
        """Every frame with its class, green where right and red where wrong, over the truth and the
        answer from the first to the last frame; (T, H, W, 3). Of several classes the likeliest."""
        said_T, truth_T = labels_said(answer), None
        if targets:
            truth_T = np.where(targets[CLASSES_VALID], self._true(targets), NOTHING)
        drawn = []
        for t, pixels_HWC in enumerate(pixels_THWC):
            share = np.exp(float(answer[t].max()))
            ink, lines = PLAIN, []
            if targets and truth_T is not None:
                true_K = targets[CLASSES][t]
                names = [self.labels[number] for number in np.flatnonzero(true_K)]
                lines.append((f"truth: {', '.join(names) or 'nothing'}", PLAIN))
                ink = (RIGHT if true_K[said_T[t]] else WRONG) if true_K.any() else PLAIN
            lines.append((f"{share:.0%} {self.labels[said_T[t]]}", ink))
            width = max(384, pixels_HWC.shape[1])
            strips = (
                [("truth", strip(truth_T, self.background, width))] if truth_T is not None else []
            )
            strips.append(("answer", strip(said_T, self.background, width)))
            drawn.append(with_strips(pixels_HWC, lines, strips, t / max(1, len(answer) - 1)))
        return np.stack(drawn)


def labels_said(answer: np.ndarray) -> np.ndarray:
    """The likeliest class of every frame, (..., T) of (..., T, K); NOTHING where no answer is."""
    is_said = np.isfinite(answer).all(-1)
    return np.where(is_said, np.where(is_said[..., None], answer, 0).argmax(-1), NOTHING)


def _surprise(share_K: np.ndarray) -> np.ndarray:
    """-p ln p of each, 0 at 0."""
    return -share_K * np.log(np.where(share_K > 0, share_K, 1))
