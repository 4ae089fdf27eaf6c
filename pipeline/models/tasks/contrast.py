"""Telling what comes from what comes at other times: the tokens that the state after a frame tells
must be more like those of the right later frame than like any other's, for pre-training on video
without labels.

As in contrastive predictive coding (arXiv 1807.03748), with hard negatives: the same place at all
other times of the window, among them the present, and the other places of the right frame. It asks
for directions alone, so that tokens of a large norm count like the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from pipeline.datasets.manifest.targets import TOKENS, Arrays
from pipeline.models.tasks.contract import Metric
from pipeline.models.tasks.forecasts.errors import normalised, spread
from pipeline.models.tasks.forecasts.heads import taken
from pipeline.models.tasks.forecasts.pairs import told
from pipeline.models.tasks.forecasts.readout import ForecastSettings
from pipeline.models.tasks.forecasts.task import TellingTask

OTHER_TIMES = 8
"""Frames of a window, beside the present one, whose tokens are wrong answers."""
SAME = 1 - 1e-5
"""Cosine above which two tokens are the same."""
FOUND = "found"
"""Name of the share of pairs whose right frame is found."""


class Settings(ForecastSettings):
    temperature: float = Field(default=0.1, gt=0)
    """What cosines are divided by before the softmax."""


class Task(TellingTask):
    """The score is the share of pairs in which the told tokens are more like those of the right
    frame, on the mean over all places, than like those of any other frame but the present one."""

    Settings = Settings

    def __init__(self, settings: Any, labels: tuple[str, ...]) -> None:
        super().__init__(settings, labels)
        share = Metric(FOUND, higher_is_better=True, perfect=1.0, worst=0.0)
        self.metrics = (
            share,
            *(share._replace(name=f"{FOUND}, {at}", at=at) for at in self.horizons),
        )

    def loss(
        self, form: str, prediction: torch.Tensor, targets: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Mean over pairs and places of the cross-entropy of the right one among all times of the
        place and all places that are asked for of the right frame."""
        tokens_BTPD, place_BMQ = targets[TOKENS], self.place(targets)
        from_BM, to_BM = targets["from"], targets["to"]
        z_BTPD = normalised(tokens_BTPD)
        told_BMQD = _direction(prediction, taken(tokens_BTPD, from_BM, place_BMQ))
        right_BMQD = F.normalize(taken(z_BTPD, to_BM, place_BMQ), dim=-1)
        others = [right_BMQD.unsqueeze(2).expand(-1, -1, right_BMQD.shape[2], -1, -1)]
        others += [
            F.normalize(taken(z_BTPD, frame_BM, place_BMQ), dim=-1).unsqueeze(3)
            for frame_BM in self._other_times(from_BM, tokens_BTPD.shape[1])
        ]
        wrong_BMQNE = torch.cat(others, dim=3)
        right_BMQ1 = (told_BMQD * right_BMQD).sum(-1, keepdim=True)
        wrong_BMQN = (wrong_BMQNE @ told_BMQD.unsqueeze(-1)).squeeze(-1)
        # What is as good as the right token is not wrong: the token itself, a frame that repeats.
        same_BMQN = (wrong_BMQNE @ right_BMQD.unsqueeze(-1)).squeeze(-1) > SAME
        logits = torch.cat([right_BMQ1, wrong_BMQN.masked_fill(same_BMQN, -torch.inf)], dim=-1)
        missed_BMQ = -(logits / self.settings.temperature).log_softmax(-1)[..., 0]
        counted_BM = targets["paired"] & told(z_BTPD, from_BM, to_BM)
        loss_BM = torch.where(counted_BM, missed_BMQ.mean(-1), 0)
        return loss_BM.sum() / targets["paired"].sum().clamp(min=1)

    def _other_times(self, from_BM: torch.Tensor, frames: int) -> list[torch.Tensor]:
        """Frames (B, M) each, whose tokens are wrong answers: some of the window, and the present
        one."""
        spread_T = np.unique(np.linspace(0, frames - 1, OTHER_TIMES).round().astype(int))
        return [from_BM, *(torch.full_like(from_BM, time) for time in spread_T.tolist())]

    def score(self, answer: np.ndarray, targets: Arrays) -> dict[str, np.ndarray]:
        """1 where the right frame is found, as a mean over the pairs of every window."""
        targets = self.for_scoring(targets)
        counted_BM = targets["counted"]
        found = self._sums(np.where(counted_BM, _found(answer, targets), 0), targets)
        return {
            name: np.divide(found[name], pairs, out=np.zeros(len(answer)), where=pairs > 0)
            for name, pairs in self._sums(counted_BM, targets).items()
        }

    def metric_weights(self, targets: Arrays) -> dict[str, np.ndarray]:
        """The pairs of every window that belong together."""
        targets = self.for_scoring(targets)
        return self._sums(targets["counted"], targets)

    def weight(self, targets: Arrays) -> np.ndarray:
        return self.metric_weights(targets)[FOUND]

    def _sums(self, values_BM: np.ndarray, targets: Arrays) -> dict[str, np.ndarray]:
        """(B,) sums over every metric's pairs."""
        return {FOUND: values_BM.sum(1, dtype=np.float64)} | self.by_horizon(
            FOUND, values_BM, targets
        )


def _direction(told_BMQD: torch.Tensor, present_BMQD: torch.Tensor) -> torch.Tensor:
    """Told tokens of length 1, normalised by the mean and deviation of the present ones."""
    mean, deviation = spread(present_BMQD)
    return F.normalize((told_BMQD - mean) / deviation, dim=-1)


def _found(answer: np.ndarray, targets: Arrays) -> np.ndarray:
    """(B, M) bool: whether the told tokens are most like those of the right frame, of all but the
    present one and copies of the right one."""
    tokens_BTPD = torch.from_numpy(targets[TOKENS])
    from_BM, to_BM = (torch.from_numpy(targets[name]) for name in ("from", "to"))
    told_BMPD = _direction(torch.from_numpy(answer), taken(tokens_BTPD, from_BM))
    z_BTPD = F.normalize(torch.from_numpy(targets["z"]), dim=-1)
    right_BMPD = taken(z_BTPD, to_BM)
    best_BM = torch.full(from_BM.shape, -torch.inf, dtype=told_BMPD.dtype)
    for time, z_BPD in enumerate(z_BTPD.unbind(1)):
        alike_BM = (told_BMPD * z_BPD.unsqueeze(1)).sum(-1).mean(-1)
        is_other_BM = (from_BM != time) & (z_BPD.unsqueeze(1) != right_BMPD).any(-1).any(-1)
        best_BM = torch.where(is_other_BM, torch.maximum(best_BM, alike_BM), best_BM)
    right_BM = (told_BMPD * right_BMPD).sum(-1).mean(-1)
    found_BM: np.ndarray = (right_BM > best_BM).numpy()
    return found_BM
