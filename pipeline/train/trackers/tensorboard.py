"""A run's metrics as TensorBoard event files, to watch it by: the same numbers as in metrics.jsonl,
and nothing else."""

from __future__ import annotations

from typing import Any

from pipeline.train.trackers.contract import Outcome, TrackedRun, Tracker

FLUSH_S = 10
"""Seconds until an event is on disk."""


class TensorBoard(Tracker):
    """Event files in the run folder.

    The first line hides what older files there say of its step and later ones: a run that goes on
    from a checkpoint does those steps again. Without a line nothing is written.
    """

    title = "TensorBoard"
    package = "torch.utils.tensorboard"
    takes_scores = False

    def __init__(self, run: TrackedRun) -> None:
        self._folder = run.folder
        self._writer: Any = None

    def log(self, step: int, values: dict[str, float]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self._folder, purge_step=step, flush_secs=FLUSH_S)
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def close(self, outcome: Outcome, step: int, scores: dict[str, float]) -> None:
        if self._writer is not None:
            self._writer.close()
