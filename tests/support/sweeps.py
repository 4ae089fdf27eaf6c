"""A small sweep, and whether its members are the runs they would be alone."""

from __future__ import annotations

from pathlib import Path

from pipeline.experiments.sweep import Sweep
from pipeline.train.loop import train
from pipeline.train.run import Run, read_metrics
from support.material import FPS
from support.training import assert_same, final

BASE = {
    "task": {"name": "classify", "readout_width": 16, "heads": 2},
    "temporal": {"name": "gru"},
    "windows": {"frames": 4, "fps": FPS},
    "model": {"width": 12},
    "training": {
        "steps": 8,
        "batch_size": 4,
        "warmup_steps": 2,
        "checkpoint_every": 3,
        "evaluate_every": 4,
    },
}


def assert_as_alone(made: Sweep, folder: Path) -> None:
    for member in made.members:
        alone = train(member.recipe, made.caches[member.point.cache], folder / member.name)
        assert_same(final(Run(member.path)), final(alone))
        assert read_metrics(member.path) == read_metrics(alone.path)
