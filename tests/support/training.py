"""Recipes of small runs, and how runs are stopped and compared."""

from __future__ import annotations

import torch

from pipeline.config import plugins
from pipeline.config.recipe import Recipe
from pipeline.train.run import Run
from support.material import FPS


def recipe(**changes) -> Recipe:
    table = {
        "name": "test",
        "task": {"name": "classify", "readout_width": 16, "heads": 2},
        "temporal": {"name": "gru"},
        "windows": {"frames": 4, "fps": FPS},
        "model": {"width": 12},
        "training": {
            "steps": 12,
            "batch_size": 4,
            "warmup_steps": 2,
            "checkpoint_every": 5,
            "evaluate_every": 6,
        },
    }
    for key, value in changes.items():
        table[key] = {**table.get(key, {}), **value} if isinstance(value, dict) else value
    return plugins.validate(Recipe, table, "test")


def final(run: Run) -> dict[str, torch.Tensor]:
    return run.tensors("last")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


class Stop(Exception):
    pass


def stop_at(step: int):
    def on_progress(state):
        if state.step == step:
            raise Stop

    return on_progress
