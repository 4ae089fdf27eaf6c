"""What every process of tests/train/test_distributed.py does: the trainings of a list, one after the other, in one group of processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from pipeline.cache.cache import Cache
from pipeline.config import plugins
from pipeline.config.recipe import Recipe
from pipeline.errors import StillframeError
from pipeline.train import distributed
from pipeline.train.loop import train
from pipeline.train.windows.windows import Windows

CLEAN = Windows.on_device


class Stop(Exception):
    pass


def spoiling(split: str):
    """Tokens of `split` reach this process as if a GPU had failed."""

    def on_device(self, batch, device):
        given = CLEAN(self, batch, device)
        return (
            given._replace(special_BTSD=given.special_BTSD * torch.nan)
            if self.split == split
            else given
        )

    return on_device


def do(job: dict, ours: distributed.Ranks) -> None:
    out = Path(job["out"]) / str(ours.rank) if job.get("apart") else Path(job["out"])
    Windows.on_device = spoiling(job["spoil"]) if "spoil" in job and ours.rank == 1 else CLEAN

    def on_progress(state):
        if state.step == job.get("stop"):
            raise Stop

    try:
        train(
            plugins.validate(Recipe, job["recipe"], "test"),
            Cache(job["cache"]),
            out,
            on_progress=on_progress,
            ranks=ours,
        )
    except Stop:
        pass
    except StillframeError as error:
        Path(f"{job['out']}.{ours.rank}.error").write_text(f"{error.message}; next: {error.hint}")


if __name__ == "__main__":
    with distributed.init_process_group() as ours:
        for job in json.loads(Path(sys.argv[1]).read_text()):
            do(job, ours)
