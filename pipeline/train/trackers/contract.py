"""Contract of a tracker: it takes the numbers of one run while they come, and goes on with what it
has of that run where the run goes on.

A tracker imports its package when it is opened, and not before. What it needs to find its own run
again lies in the run folder, beside what vouches for the run, and is part of no fingerprint.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pipeline.cache.storage.local import write_atomically
from pipeline.config.json_files import read_json, to_json
from pipeline.config.plugins import Settings
from pipeline.errors import BadInput

PATIENCE_S = 60.0
"""Seconds that the end of a training waits for a tracker that is behind."""

Outcome = Literal["finished", "failed", "stopped"]
"""How a training ended: at its last step, with an error, or by a person."""


class KeptRun(Settings):
    """The content of tracker-NAME.json: which of the tracker's runs a run folder belongs to."""

    id: str


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker sees it."""

    folder: Path
    config: dict[str, Any]
    """What it is made from, as plain JSON: `recipe`, `cache` and the version of `stillframe`."""
    group: str | None = None
    """Name of the sweep that it is a member of."""

    @property
    def name(self) -> str:
        return self.folder.name

    def kept_id(self, tracker: str) -> str | None:
        """The id that `keep_id` has kept for this tracker. Raises BadInput where the file is
        damaged."""
        file = self._file(tracker)
        return read_json(KeptRun, file, f"remove {file}").id if file.is_file() else None

    def keep_id(self, tracker: str, run_id: str) -> None:
        """Keeps the tracker's own id of this run for the next time."""
        write_atomically(self._file(tracker), to_json(KeptRun(id=run_id)))

    def _file(self, tracker: str) -> Path:
        return self.folder / f"tracker-{tracker}.json"


class Tracker(ABC):
    """One run at one tracker. After a failure, which may be any exception, it is asked nothing
    more."""

    title: ClassVar[str]
    """As people know it."""
    package: ClassVar[str]
    """What is imported; an extra of the tracker's name brings it."""
    takes_scores: ClassVar[bool] = True
    """Whether it keeps scores with intervals beside the steps."""

    where: str = ""
    """Where a person finds the run, if that is worth a line."""
    last_step: int | None = None
    """The last step that it had when it was opened: earlier ones are not logged again. None: it
    takes those that a run does again in the place of the older."""

    @abstractmethod
    def __init__(self, run: TrackedRun) -> None:
        """Begins the tracker's run, or goes on with it. Raises BadInput where it does not take
        it."""

    @classmethod
    def require(cls, extra: str) -> None:
        """Raises BadInput where its package is not installed; `extra` brings it."""
        try:
            importlib.import_module(cls.package)
        except ImportError as error:
            raise BadInput(
                f"{cls.title} is not installed", f"pip install 'stillframe[{extra}]'"
            ) from error

    @abstractmethod
    def log(self, step: int, values: dict[str, float]) -> None:
        """Takes the numbers of a step: name -> value. Does not wait for a network."""

    @abstractmethod
    def close(self, outcome: Outcome, step: int, scores: dict[str, float]) -> None:
        """Ends the tracker's run at `step`, with scores if there are any: name -> value. Returns
        within some `PATIENCE_S`."""


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """Tag -> value of a line of metrics.jsonl: `loss`, `learning_rate`, `gradient_norm`, and by
    form `losses/...` and, if scored, `val/...`."""
    by_form = {
        f"{group}/{form}": value
        for group in ("losses", "val")
        for form, value in line.get(group, {}).items()
    }
    return {name: line[name] for name in ("loss", "learning_rate", "gradient_norm")} | by_form


def flat(table: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Nested tables as pairs of dotted keys and values."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def one_line(error: BaseException) -> str:
    """What an error of somebody else's says, short and in one line."""
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
