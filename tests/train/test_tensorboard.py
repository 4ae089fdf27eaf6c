"""Event files hold what metrics.jsonl holds, each step once, as TensorBoard itself reads them."""

from __future__ import annotations

import sys

import pytest
from support.commands import assert_refused, call, fine
from support.events import drawn, drawn_by
from support.training import Stop, recipe, stop_at

from pipeline.train.loop import train
from pipeline.train.run import read_metrics
from pipeline.train.trackers.tracking import Tracking


def test_a_run_that_goes_on_draws_no_step_twice(material, tmp_path):
    def go(stop=None):
        on_progress = stop_at(stop)
        with Tracking(["tensorboard"]) as tracking:
            return train(
                recipe(),
                material.cache,
                tmp_path / "run",
                on_progress=on_progress,
                tracking=tracking,
            )

    with pytest.raises(Stop):
        go(stop=8)
    assert max(drawn(tmp_path / "run")["loss"]) == 8  # the checkpoint is at step 5
    run = go()
    lines = read_metrics(run.path)
    assert drawn(run.path) == drawn_by(lines)
    assert {"losses/streaming", "losses/window", "val/streaming", "val/window"} < drawn(
        run.path
    ).keys()
    before = sorted(run.path.iterdir())
    go()  # nothing is left to do, and nothing is written
    assert sorted(run.path.iterdir()) == before


def test_the_command_draws_only_when_asked(place, tmp_path, monkeypatch):
    command = ("train", place.recipe, place.cache, "--out", tmp_path / "run")
    fine(*command)
    assert not list((tmp_path / "run").glob("events*"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    refused = call("train", place.recipe, place.cache, "--out", tmp_path / "other", "--tensorboard")
    assert_refused(refused, "TensorBoard is not installed", "pip install 'stillframe[tensorboard]'")
    assert not (tmp_path / "other").exists()
