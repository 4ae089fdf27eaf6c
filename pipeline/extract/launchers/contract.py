"""Contract of an engine: where the workers of an extraction or a sweep run, and what has become of
them.

An engine moves a `Job` and exit states, never data: workers meet in what they make, through leases
and receipts. So a worker that is lost costs what it was at, the others take it over, and an engine
gathers no results. Whether the work is done is for what is made to say. That and `logs` must be
seen from every machine that runs a worker.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from pipeline.config import outside, plugins
from pipeline.config.plugins import Settings
from pipeline.errors import BadInput, StillframeError, in_one_line

POLL_S = 1.0
"""Seconds between two looks at the workers."""
DEATHS = 5
"""Workers that may die one after the other without anything being finished in between."""


class Job(Settings, ABC):
    """The job of every worker: plain data, with the work itself in the class."""

    device: str | None = None
    """None: the CUDA device of the worker's number where there is any, else the CPU."""
    plugins: tuple[str, ...] = Field(default_factory=outside.named_paths)
    """Files of plug-ins that the user has named to the process that makes the job: a worker knows
    them, too."""

    def work(self, index: int) -> None:
        """Does the work of worker `index`; returns when nothing is left to do. Raises
        StillframeError."""
        for file in self.plugins:
            plugins.add(Path(file))
        self._work(index)

    @property
    def devices(self) -> int:
        """CUDA devices that one worker computes on, where its device is CUDA."""
        return 1

    @abstractmethod
    def _work(self, index: int) -> None:
        """`work` where plug-ins are known."""

    @classmethod
    def kind(cls) -> str:
        """The name by which another process finds this class, as `module:class`."""
        return f"{cls.__module__}:{cls.__qualname__}"


@dataclass(frozen=True)
class Workers:
    """The state of an engine's workers."""

    running: int
    waiting: int
    """Workers that have not begun: for want of a device, or in a queue."""
    ended: tuple[str, ...]
    """A line for each worker that ended since the last look otherwise than by having nothing left
    to do."""


class EnginePlugin(ABC):
    """Base of every `Engine`. One object starts workers once; more of them join through another."""

    Settings: ClassVar[type[Settings]]

    def __init__(self, settings: Any, workers: int) -> None:
        self.settings = settings
        self.workers = workers

    @abstractmethod
    def start(self, job: Job, logs: Path) -> None:
        """Starts the workers. Each writes what it says to a file of its own in `logs`. BadInput
        where none can be started."""

    @abstractmethod
    def poll(self) -> Workers:
        """The state of the workers now. Returns at once."""

    @abstractmethod
    def stop(self) -> None:
        """Ends all of them, wherever they are."""

    def script(self, job: Job) -> str | None:
        """The script that `start` would submit; None where there is nothing to read."""
        return None


def run_until_done(
    engine: EnginePlugin, job: Job, logs: Path, left: Callable[[], int], what: str
) -> None:
    """Has an engine's workers do a job: until `left`, asked again and again, says 0. Raises
    StillframeError if all are gone.

    `what`: what is counted, in the plural.
    """
    deaths: list[str] = []
    before = left()
    if not before:
        return
    try:
        engine.start(job, logs)
        while True:
            workers = engine.poll()
            deaths += workers.ended
            now = left()
            if now < before:
                deaths.clear()
            before = now
            if not now:
                return
            if len(deaths) > DEATHS or workers.running + workers.waiting == 0:
                why = deaths[-1] if deaths else "they ended without a word"
                raise StillframeError(
                    f"{now} {what} are missing and the workers are gone: {why}",
                    f"see {logs}; what is finished is kept: run it again to go on",
                )
            time.sleep(POLL_S)
    finally:
        engine.stop()


def run_worker(kind: str, job: str, index: str) -> int:
    """A worker as a process of its own: the class of its job and the job as JSON. Returns its exit
    code."""
    module, _, name = kind.partition(":")
    try:
        worker_job: Job = plugins.validate(
            getattr(importlib.import_module(module), name), json.loads(job), "job"
        )
        worker_job.work(int(index))
    except StillframeError as error:
        log_line(f"{error.message} ({error.hint})")
        return error.exit_code
    return 0


def log_line(text: str) -> None:
    """Writes a line to the log of the worker that this process is."""
    sys.stderr.write(in_one_line(text) + "\n")


def require_package(package: str, engine: str) -> Any:
    """The package that an engine stands on, which the extra of the engine's name installs. BadInput
    where it is missing."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise BadInput(
            f"engine '{engine}' needs the package '{error.name}', which is not installed",
            f"pip install 'stillframe[{engine}]'",
        ) from error


def last_line(log: Path, beside: tuple[str, ...] = ()) -> str:
    """The last line in a log that says something and does not begin with any of `beside`; says so
    where there is none."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"no log at {log}"
    said = [line.strip() for line in lines if line.strip() and not line.startswith(beside)]
    return said[-1] if said else f"nothing in {log}"
