"""Actors of a Ray cluster, one per worker. Nothing but the job and how a worker ended crosses the
object store."""

from __future__ import annotations

import os
import socket
import traceback
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.child_python import NAME, others_of_our_name
from pipeline.config import plugins
from pipeline.errors import BadInput
from pipeline.extract.launchers.contract import (
    EnginePlugin,
    Job,
    Workers,
    last_line,
    require_package,
)

CONNECT_S = 10.0


class Engine(EnginePlugin):
    """Joins the cluster that this process has joined already, or else that at `address`. Workers
    end with this process."""

    class Settings(plugins.Settings):
        """These settings say what a worker asks of the cluster."""

        address: str | None = None
        """Address of a running cluster, such as "auto"; not given: that of RAY_ADDRESS, or else one
        of this machine alone."""
        num_gpus: float | None = Field(default=None, ge=0)
        """GPUs of a worker; as many as it computes on where it is not given and the job's device is
        CUDA."""
        num_cpus: float = Field(default=1, gt=0)
        """Cores of a worker; Ray sets its threads from it."""

    def __init__(self, settings: Any, workers: int) -> None:
        super().__init__(settings, workers)
        self._ray = require_package("ray", "ray")
        self._actors: dict[int, Any] = {}
        self._begun: dict[int, Any] = {}
        self._done: dict[int, Any] = {}
        self._joined = False

    def start(self, job: Job, logs: Path) -> None:
        if others := others_of_our_name():
            raise BadInput(
                f"engine 'ray': {others[0]} holds another package '{NAME}', which Ray's workers "
                "would take for this one",
                "start from a folder that has none",
            )
        if not self._ray.is_initialized():
            try:
                _require_answer(self.settings.address)
                self._ray.init(
                    address=self.settings.address, include_dashboard=False, log_to_driver=False
                )
            except (OSError, ValueError, RuntimeError) as error:
                raise BadInput(
                    f"engine 'ray': no cluster at {self.settings.address}: {error}", "ray status"
                ) from error
            self._joined = True
        self._logs = logs.absolute()
        asked = self.settings
        gpus = (
            asked.num_gpus
            if asked.num_gpus is not None
            else float(job.devices if (job.device or "").startswith("cuda") else 0)
        )
        actor = self._ray.remote(num_cpus=asked.num_cpus, num_gpus=gpus, max_restarts=0)(_Actor)
        for index in range(self.workers):
            self._actors[index] = actor.remote()
            self._begun[index] = self._actors[index].begin.remote(str(self._log(index)))
            self._done[index] = self._actors[index].work.remote(job, index)

    def poll(self) -> Workers:
        ended = []
        for index in self._ready(self._done):
            if reason := self._outcome(self._done[index]):
                ended.append(f"worker {index}: {reason}: {last_line(self._log(index))}")
            self._end(index)
        running = len(self._ready(self._begun))
        return Workers(running, len(self._begun) - running, tuple(ended))

    def stop(self) -> None:
        for index in list(self._actors):
            self._end(index)
        if self._joined:
            self._ray.shutdown()
            self._joined = False

    def _ready(self, refs: dict[int, Any]) -> list[int]:
        """Workers whose answer is there."""
        done = (
            set(self._ray.wait(list(refs.values()), num_returns=len(refs), timeout=0)[0])
            if refs
            else set()
        )
        return [index for index, ref in refs.items() if ref in done]

    def _outcome(self, ref: Any) -> str | None:
        """The error that a worker ended with; None where nothing was left to do."""
        try:
            ended: str | None = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            return type(error).__name__
        return ended

    def _end(self, index: int) -> None:
        """Gives back what an actor holds, which it does not of itself."""
        self._ray.kill(self._actors.pop(index))
        del self._begun[index], self._done[index]

    def _log(self, index: int) -> Path:
        return self._logs / f"{index}.log"


def _require_answer(address: str | None) -> None:
    """Raises OSError where nothing listens at host:port: Ray itself would wait for minutes, and
    then end this process."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()


class _Actor:
    """A worker in a process of Ray's."""

    def begin(self, log: str) -> None:
        """From now on all that the process says goes to `log`."""
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        with Path(log).open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)

    def work(self, job: Job, index: int) -> str | None:
        try:
            job.work(index)
        except (
            Exception
        ) as error:  # any at all: its class may not be known where the answer is read
            traceback.print_exc()
            return type(error).__name__
        return None
