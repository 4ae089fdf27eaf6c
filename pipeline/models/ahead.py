"""Two models that follow the same frames: after each of them a *forecaster* says what the tokens of
later frames will be, and a *reader* reads these as if they had come: its answers are then about
frames that nobody has seen yet.

The reader is given every frame up to the one that is asked about, at the pace at which it was
trained, each told from the same present state. So it reads no jump in time, and where a forecast is
right its answers are those it gives to the video itself. Special tokens are not forecast: those of
the present frame stand in for later ones.

Shape letters, beside the usual ones: J frames that are told, K horizons.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.models.tasks.contract import STREAMING, Query, TaskPlugin
from pipeline.models.tasks.forecasts.readout import ForecastReadout
from pipeline.models.temporal.contract import State
from pipeline.models.video_model import StreamState, VideoModel, array_of_answer
from pipeline.records import OnDevice

ORACLE, FORECAST, COPY, NOW = "oracle", "forecast", "copy", "now"
"""Answers about a later frame: of the reader to the frame itself, to the forecast of it, to the
present frame once more in its place, and to the present frame, left as it is."""


class Following(NamedTuple):
    """The states of both models between two frames."""

    reader: StreamState
    forecaster: State


class Present(NamedTuple):
    """What is known after a frame."""

    states: Following
    outputs_BND: torch.Tensor
    """Temporal outputs of the forecaster."""
    special_BSD: torch.Tensor
    patches_BPD: torch.Tensor
    """Those that the reader reads, float32."""


class ReadAhead:
    """A reader and a forecaster of the patches that it reads, which are of one layer."""

    def __init__(self, reader: VideoModel, forecaster: VideoModel) -> None:
        head = forecaster.streaming
        assert isinstance(head, ForecastReadout) and reader.layers == forecaster.layers[-1:]
        self.reader, self.forecaster, self.head = reader, forecaster, head
        self.layer = reader.layers[0]

    def start(self, batch: int, query: Query) -> Following:
        """The states of B streams before their first frame; `query` is what the reader is told."""
        tokens = self.forecaster.tokens_per_frame
        initial = self.forecaster.temporal.initial_state(batch, tokens)
        return Following(self.reader.start(batch, query), initial)

    def step(
        self, special_BSD: torch.Tensor, patches: Mapping[int, torch.Tensor], states: Following
    ) -> tuple[torch.Tensor, Present]:
        """One frame: the reader's prediction, (B, ...), and what is known after it. `patches`:
        layer -> (B, P, D), of all layers that either model reads."""
        read_BPD = patches[self.layer].float()
        prediction, reader = self.reader.step(special_BSD, [read_BPD], states.reader)
        tokens_BND = self.forecaster.tokens_of(
            special_BSD, [patches[layer] for layer in self.forecaster.layers]
        )
        outputs_BND, forecaster = self.forecaster.temporal.step(tokens_BND, states.forecaster)
        after = Following(reader, forecaster)
        return prediction, Present(after, outputs_BND, special_BSD, read_BPD)

    def told(self, present: Present, ahead_s_BJ: torch.Tensor) -> Iterator[torch.Tensor]:
        """The reader's predictions for J later frames, ascending, after forecasts of all of them;
        a frame that is 0 seconds ahead is the present one."""
        now_B1PD = present.patches_BPD.unsqueeze(1)
        frame_BJ = torch.zeros_like(ahead_s_BJ, dtype=torch.int64)
        told_BJPD = self.head.said(present.outputs_BND.unsqueeze(1), now_B1PD, frame_BJ, ahead_s_BJ)
        is_later_BJ = ahead_s_BJ > 0
        return self._read(present, torch.where(is_later_BJ[..., None, None], told_BJPD, now_B1PD))

    def copied(self, present: Present, frames: int) -> Iterator[torch.Tensor]:
        """The reader's predictions for J = `frames` later ones where the present frame stays."""
        return self._read(present, present.patches_BPD.unsqueeze(1).expand(-1, frames, -1, -1))

    def _read(self, present: Present, patches_BJPD: torch.Tensor) -> Iterator[torch.Tensor]:
        state = present.states.reader
        for patches_BPD in patches_BJPD.unbind(1):
            prediction, state = self.reader.step(present.special_BSD, [patches_BPD], state)
            yield prediction


def answer_of_frame(task: TaskPlugin, prediction: torch.Tensor) -> np.ndarray:
    """(B, ...): what a task that has said `by_frame` answers for one frame of a stream. Raises
    NotFinite where it holds NaN."""
    answer = array_of_answer(STREAMING, task.answer(STREAMING, prediction.unsqueeze(1)))
    return answer[:, 0] if task.by_frame else answer


def answers_ahead(
    both: ReadAhead,
    task: TaskPlugin,
    device_batch: OnDevice,
    seen_s_BT: np.ndarray,
    from_KBT: np.ndarray,
) -> dict[str, list[np.ndarray]]:
    """Name -> for each of K horizons answers (B, T, ...) about the frames of windows, those that
    were told ahead; what stands in other frames means nothing.

    `from_KBT`: the frame after which each frame is told, -1 where none is. `seen_s_BT`: when the
    model sees the frames, in seconds: a forecast is asked for the seconds between two.
    """
    horizons, batch, frames = from_KBT.shape
    made: dict[str, list[Any]] = {FORECAST: [None] * horizons, COPY: [None] * horizons}
    whole: np.ndarray | None = None
    with torch.inference_mode():
        states = both.start(batch, task.query(device_batch.targets))
        for now in range(frames):
            patches = {layer: of[:, now] for layer, of in device_batch.patches.items()}
            prediction, present = both.step(device_batch.special_BTSD[:, now], patches, states)
            states = present.states
            answer = answer_of_frame(task, prediction)
            if whole is None:
                whole = np.zeros((batch, frames, *answer.shape[1:]), answer.dtype)
                made = {name: [np.zeros_like(whole) for _ in of] for name, of in made.items()}
            whole[:, now] = answer
            count = _frames_told(from_KBT, now)
            if not count:
                continue
            ahead_s_BJ = seen_s_BT[:, now + 1 : now + 1 + count] - seen_s_BT[:, now : now + 1]
            ahead = torch.from_numpy(ahead_s_BJ.astype(np.float32)).to(present.patches_BPD.device)
            ways = {FORECAST: both.told(present, ahead), COPY: both.copied(present, count)}
            for name, predictions in ways.items():
                for frame, prediction in enumerate(predictions, start=now + 1):
                    answer = answer_of_frame(task, prediction)
                    for of_horizon, from_BT in zip(made[name], from_KBT, strict=True):
                        is_told_B = from_BT[:, frame] == now
                        of_horizon[is_told_B, frame] = answer[is_told_B]
    assert whole is not None
    rows = np.arange(batch)[:, None]
    left = [whole[rows, from_BT.clip(0)] for from_BT in from_KBT]
    return {ORACLE: [whole] * horizons, **made, NOW: left}


def _frames_told(from_KBT: np.ndarray, now: int) -> int:
    """How many frames after `now` lies the last one that is told after it; 0 where none is."""
    frames = np.flatnonzero((from_KBT == now).any((0, 1)))
    return int(frames[-1]) - now if len(frames) else 0
