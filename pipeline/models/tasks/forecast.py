"""Forecasting the cache: what the state after a frame says of the patch tokens of later ones, for
pre-training on video without labels.

The truth is the cache itself, and a forecast is what is added to the present tokens: before
training it copies them, which is hard to beat (arXiv 2604.04913 scores the same way). It answers
for any number of seconds ahead; of every training window it is asked for a few pairs of frames and
some of their places. The skill is 1 - error / error of copying, over all pairs and videos together,
so that still video, which nobody can forecast better than by copying, does not count.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.datasets.manifest.targets import TOKENS, Arrays
from pipeline.models.tasks.contract import Metric
from pipeline.models.tasks.forecasts.errors import (
    BY_HORIZON,
    KINDS,
    STILL,
    errors,
    normalised,
    of_rounding,
    with_copies,
)
from pipeline.models.tasks.forecasts.heads import taken
from pipeline.models.tasks.forecasts.pairs import told
from pipeline.models.tasks.forecasts.readout import ForecastSettings
from pipeline.models.tasks.forecasts.task import TellingTask

BETA = 0.1
"""Error below which the loss is quadratic, in units of its target."""
LEAST_WEIGHT, GREATEST_WEIGHT = 0.25, 4.0
"""What a patch counts in the loss, where those that move count more."""
STILL_ERROR = "still error"
"""Name of the error over the quarter of the patches that change least, in units of the error of
copying over all patches: a forecast should leave alone what stays."""


class Settings(ForecastSettings):
    moving: bool = False
    """Whether patches count in the loss by how far they move, from a quarter to four times."""


class Task(TellingTask):
    """The loss is the error of the tokens that are told, the score their skill over a copy."""

    Settings = Settings
    tells_tokens = True

    def __init__(self, settings: Any, labels: tuple[str, ...]) -> None:
        super().__init__(settings, labels)
        self.metrics = (
            *(Metric(f"{kind}skill", higher_is_better=True, perfect=1.0) for kind in KINDS),
            Metric(STILL_ERROR, higher_is_better=False, perfect=0.0),
            *(
                Metric(f"{kind}skill, {horizon}", higher_is_better=True, perfect=1.0, at=horizon)
                for kind in BY_HORIZON
                for horizon in self.horizons
            ),
        )

    def loss(
        self, form: str, prediction: torch.Tensor, targets: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Mean over pairs of the smooth L1 between forecast and target, in units of the usual
        change over so many seconds: near 1 for copies."""
        (readout,) = self._made
        tokens_BTPD, place_BMQ = targets[TOKENS], self.place(targets)
        from_BM, to_BM = targets["from"], targets["to"]
        present_BMQD, future_BMQD = (
            taken(tokens_BTPD, frame, place_BMQ) for frame in (from_BM, to_BM)
        )
        mean, deviation = readout.scale(present_BMQD)
        error_BMQ = F.smooth_l1_loss(
            (prediction - mean) / deviation,
            readout.target(future_BMQD),
            beta=BETA,
            reduction="none",
        ).mean(-1)
        if self.settings.moving:
            change_BMQ = (readout.target(future_BMQD) - readout.target(present_BMQD)).norm(dim=-1)
            share = change_BMQ / change_BMQ.mean(-1, keepdim=True).clamp(min=1e-9)
            error_BMQ = error_BMQ * share.clamp(LEAST_WEIGHT, GREATEST_WEIGHT)
        usual_BM = readout.usual_change(targets["ahead_s"]).clamp(min=1e-6)
        counted_BM = targets["paired"] & told(normalised(tokens_BTPD), from_BM, to_BM)
        loss_BM = torch.where(counted_BM, error_BMQ.mean(-1) / usual_BM, 0)
        return loss_BM.sum() / targets["paired"].sum().clamp(min=1)

    def score(self, answer: np.ndarray, targets: Arrays) -> dict[str, np.ndarray]:
        """name -> 1 - error / error of copying, of every window; 0 where nothing changes."""
        targets = self.for_scoring(targets)
        return self._skills(errors(torch.from_numpy(answer), targets), targets)

    def ceiling(self, noise: np.ndarray, targets: Arrays) -> dict[str, np.ndarray]:
        """What a forecast scores that says what comes as it was before the codec rounded it."""
        targets = self.for_scoring(targets)
        return self._skills(of_rounding(torch.from_numpy(noise), targets), targets)

    def _skills(self, errors_BEM: np.ndarray, targets: Arrays) -> dict[str, np.ndarray]:
        """The scores of every window, of all kinds of `errors`."""
        of_copies, by_metric = self.metric_weights(targets), self._by_metric(errors_BEM, targets)
        nothing = np.ones(len(errors_BEM))
        shares = {
            name: np.divide(by_metric[name], error, out=nothing.copy(), where=error > 0)
            for name, error in of_copies.items()
        }
        return {name: share if name == STILL_ERROR else 1 - share for name, share in shares.items()}

    def metric_weights(self, targets: Arrays) -> dict[str, np.ndarray]:
        """The errors of copying, by which skills are weighted: their mean is then the skill of all
        windows together."""
        targets = self.for_scoring(targets)
        of_copies = self._by_metric(targets["copies"], targets)
        return of_copies | {STILL_ERROR: of_copies[self.metrics[0].name]}

    def weight(self, targets: Arrays) -> np.ndarray:
        return self.metric_weights(targets)[self.metrics[0].name]

    def for_scoring(self, targets: Arrays) -> Arrays:
        return targets if "copies" in targets else with_copies(super().for_scoring(targets))

    def _by_metric(self, errors_BEM: np.ndarray, targets: Arrays) -> dict[str, np.ndarray]:
        """(B,) errors of every metric's pairs together, of all kinds of `errors`."""
        by_kind = {kind: errors_BEM[:, place] for place, kind in enumerate(KINDS)}
        sums = {f"{kind}skill": of_kind.sum(1) for kind, of_kind in by_kind.items()}
        sums[STILL_ERROR] = errors_BEM[:, STILL].sum(1)
        for kind in BY_HORIZON:
            sums |= self.by_horizon(f"{kind}skill", by_kind[kind], targets)
        return sums
