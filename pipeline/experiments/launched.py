"""One training as the job of an engine: its processes run together on one machine, wherever the
engine has one.

They are what `torchrun` would start, but end with the worker that started them, however that ends:
those of `torchrun` have sessions of their own, and go on when it is killed.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pipeline.child_python import module_command, search_path
from pipeline.config.recipe import Recipe
from pipeline.device import cores
from pipeline.extract.launchers.contract import EnginePlugin, Job, run_until_done
from pipeline.train.compatibility import check, require_trainable
from pipeline.train.run import Run
from pipeline.train.setup import RunContext

COMMAND = "pipeline.cli"
"""The module that takes the words of a command."""
LOOK_S = 0.2
"""Seconds between two looks at the processes."""


class TrainJob(Job):
    """The job of the one worker: a command that trains, in some processes."""

    words: tuple[str, ...]
    """Words of the command, without its name."""
    processes: int = 1
    done: str
    """A file that is made when the training has ended well."""

    @property
    def devices(self) -> int:
        """Each process has one."""
        return self.processes

    def _work(self, index: int) -> None:
        named = [word for file in self.plugins for word in ("--plugins", file)]
        command = [*module_command(COMMAND), *named, *self.words]
        ranks = _start(command, self.processes)
        try:
            _wait(ranks)
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        Path(self.done).touch()


def make_train_job(
    words: Sequence[str],
    recipe: Recipe,
    context: RunContext,
    device: torch.device | None,
    processes: int,
    run: Path,
    logs: Path,
) -> TrainJob:
    """The job of a command that trains `recipe` into the folder `run`, on `device` if one was
    asked for. `logs`: a folder that all machines see. Raises BadInput for what cannot be
    trained."""
    check([recipe], context.cache, context.manifest)
    require_trainable(recipe, context.cache, context.manifest, run)
    return TrainJob(
        device=None if device is None else str(device),
        words=tuple(words),
        processes=processes,
        done=str(logs.absolute() / f"{secrets.token_hex(8)}.done"),
    )


def _start(command: Sequence[str], processes: int) -> list[subprocess.Popen[bytes]]:
    """The processes of one training, in the group of this one, so that they end with it."""
    environment = os.environ | {"PYTHONPATH": search_path()}
    if processes == 1:
        return [subprocess.Popen(command, env=environment)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = int(os.environ.get("OMP_NUM_THREADS", cores()))
    together = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": str(max(1, threads // processes)),
    }
    return [
        subprocess.Popen(
            command,
            env=environment | together | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(processes)
    ]


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """Returns when all have ended well. Ends this worker with the exit code of the first that has
    not, which has said why."""
    running = list(ranks)
    while running:
        time.sleep(LOOK_S)
        for rank in running:
            if code := rank.poll():
                raise SystemExit(code if code > 0 else 1)
        running = [rank for rank in running if rank.returncode is None]


def train_on(
    engine: EnginePlugin,
    job: TrainJob,
    logs: Path,
    run: Path,
    on_progress: Callable[[int, int], object],
) -> Run:
    """Has an engine's one worker train into the folder `run`, and tells `on_progress` the steps of
    its last checkpoint, and all steps. Raises StillframeError where the worker is gone."""

    def left() -> int:
        """Steps, at least one until the command has ended."""
        if Path(job.done).exists():
            return 0
        checkpoint = Run(run).checkpoint("last") if (run / "run.json").is_file() else None
        if checkpoint is None:
            return 1
        on_progress(checkpoint.step, checkpoint.steps)
        return max(1, checkpoint.steps - checkpoint.step)

    try:
        run_until_done(engine, job, logs, left, "steps")
    finally:
        Path(job.done).unlink(missing_ok=True)
    return Run(run)
