"""How an extraction is carried out, in one place: where it computes, who does the work, and who is
told of it. None of it is in a fingerprint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.device import chosen, device_of_worker
from pipeline.extract.launchers.contract import EnginePlugin, Job
from pipeline.extract.progress import OnProgress
from pipeline.video.isolated.sandbox import DecodeLimits


@dataclass(frozen=True)
class Execution:
    """How an extraction is carried out."""

    device: torch.device | None = None
    """Where the encoder runs. None: on CUDA where there is any, where every worker of an engine has
    the device of its number."""
    decoders: int = 1
    """Number of processes that decode videos."""
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    retry_failed: bool = False
    """Whether the stores that hold a failed video are redone."""
    engine: EnginePlugin | None = None
    """Whose workers do the work; None: this process does."""
    logs: Path = Path("logs")
    """Folder of the logs of these workers."""
    on_progress: OnProgress | None = None
    say: Callable[[str], None] = lambda _: None

    @property
    def here(self) -> torch.device:
        """The device of this process."""
        return chosen(self.device)

    @property
    def of_workers(self) -> dict[str, Any]:
        """The fields of a `DecodingJob` whose workers go about it in this way."""
        device = None if self.device is None else str(self.device)
        return {"device": device, "decoders": self.decoders, "limits": self.limits}


HERE = Execution()
"""In this process, on its own device, with nobody told."""


class DecodingJob(Job):
    """A job whose workers decode videos."""

    decoders: int = 1
    """Number of processes that decode videos."""
    limits: DecodeLimits = DecodeLimits()

    def execution(self, index: int) -> Execution:
        """How worker `index` carries it out."""
        return Execution(device_of_worker(self.device, index), self.decoders, self.limits)
