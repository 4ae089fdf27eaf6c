"""A run at Weights & Biases, or, offline, in a folder that `wandb sync` sends later.

What `wandb` reads from its own environment stands: WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY,
WANDB_DIR and others.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.errors import BadInput
from pipeline.train.trackers.contract import (
    PATIENCE_S,
    Outcome,
    TrackedRun,
    Tracker,
    one_line,
)
from pipeline.train.trackers.wandb_files import last_offline_step

PROJECT = "stillframe"
INIT_S = 30.0
"""Seconds that the server has to answer before a training begins."""
EXIT_CODES: dict[Outcome, int] = {"finished": 0, "failed": 1, "stopped": 130}


class WeightsAndBiases(Tracker):
    """The last step of a run that is online is the server's, offline that of the files."""

    title = "Weights & Biases"
    package = "wandb"

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # to its makers
        import wandb

        given = os.environ
        limits: dict[str, Any] = {} if "WANDB_INIT_TIMEOUT" in given else {"init_timeout": INIT_S}
        try:
            wandb.setup(wandb.Settings(silent=True))  # it asks for no key on a terminal, either
            self._run = wandb.init(
                project=None if "WANDB_PROJECT" in given else PROJECT,
                dir=None if "WANDB_DIR" in given else run.folder,
                id=run.kept_id("wandb"),
                resume="allow",
                reinit="create_new",  # runs of a sweep train side by side
                name=run.name,
                group=run.group,
                config=run.config,
                settings=wandb.Settings(
                    console="off", finish_timeout=PATIENCE_S, finish_timeout_raises=True, **limits
                ),
            )
        except Exception as error:
            raise BadInput(
                f"{self.title} does not take run '{run.name}': {one_line(error)}",
                "wandb login, or WANDB_MODE=offline, or leave --track wandb out",
            ) from error
        if self._run.settings.mode != "disabled":
            run.keep_id("wandb", self._run.id)
        if self._run.offline:
            folder = Path(self._run.dir).parent
            self.where = f"offline; to send it: wandb sync {folder}"
            self.last_step = last_offline_step(folder.parent, self._run.id)
        else:
            self.where = self._run.url or ""
            self.last_step = self._run.starting_step - 1

    def log(self, step: int, values: dict[str, float]) -> None:
        try:
            self._run.log(values, step=step)
        except ConnectionError:  # the process that writes and sends is gone
            self._let_go()
            raise

    def close(self, outcome: Outcome, step: int, scores: dict[str, float]) -> None:
        self._run.summary.update(scores)
        self._run.finish(exit_code=EXIT_CODES[outcome])

    def _let_go(self) -> None:
        """Else `wandb` would try to end its runs once more when this process ends, and print what
        it ran into."""
        import wandb

        with suppress(Exception):
            wandb.teardown()
