"""Contract of an engine: where the workers of an extraction run, and what has become of them.

An engine moves a `Job` and exit states, never frames or tokens: workers meet in the cache itself, through leases and receipts.
So a worker that is lost costs the store it was at, the others take it over, and an engine gathers no results. Whether the work
is done is for the caches to say. `logs` and the caches must be seen from every machine that runs a worker.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipeline.errors import BadInput
from pipeline.plugins import Settings
from pipeline.worker import Job


@dataclass(frozen=True)
class Workers:
    """What an engine's workers are doing."""

    running: int
    waiting: int
    """Asked for, and not begun: for want of a device, or in a queue."""
    ended: tuple[str, ...]
    """Why workers ended otherwise than by having nothing left to do, since the last look: one line each."""


class EnginePlugin(ABC):
    """Base of every `Engine`. One object starts workers once; more of them join through another."""

    Settings: ClassVar[type[Settings]]

    def __init__(self, settings: Any, workers: int) -> None:
        self.settings = settings
        self.workers = workers

    @abstractmethod
    def start(self, job: Job, logs: Path) -> None:
        """Starts the workers. Each writes what it says to a file of its own in `logs`. BadInput where none can be started."""

    @abstractmethod
    def poll(self) -> Workers:
        """What they are doing now. Returns at once."""

    @abstractmethod
    def stop(self) -> None:
        """Ends all of them, wherever they are."""

    def script(self, job: Job) -> str | None:  # noqa: ARG002
        """What `start` would submit; None where there is nothing to read."""
        return None


def needed(package: str, engine: str) -> Any:
    """The package that an engine stands on, which the extra of the engine's name installs. BadInput where it is missing."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise BadInput(
            f"engine '{engine}' needs the package '{error.name}', which is not installed", f"pip install 'stillframe[{engine}]'"
        ) from error


def last_line(log: Path, beside: tuple[str, ...] = ()) -> str:
    """The last line in a log that says something and does not begin with any of `beside`; says so where there is none."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"no log at {log}"
    said = [line.strip() for line in lines if line.strip() and not line.startswith(beside)]
    return said[-1] if said else f"nothing in {log}"
