"""Engines that run, for tests of what they are used for."""

from __future__ import annotations

import subprocess

from pipeline.config import plugins
from pipeline.extract.launchers.contract import EnginePlugin


def make(name: str, workers: int, **settings: object) -> EnginePlugin:
    engine: EnginePlugin = plugins.load("engine", name)(
        plugins.settings("engine", name, settings, name), workers
    )
    return engine


def queued() -> set[str]:
    """Tasks that have not come to their end; those of the test before may be among them."""
    seen = subprocess.run(
        ["squeue", "--noheader", "--array", "--format=%i"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(seen.stdout.split())
