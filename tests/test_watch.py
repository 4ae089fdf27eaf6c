"""Event files hold what metrics.jsonl holds, each step once, as TensorBoard itself reads them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from commands import assert_refused, call, fine
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_train import Stop, recipe

from pipeline.train import tensorboard
from pipeline.train.loop import train
from pipeline.train.run import read_metrics


def drawn(folder: Path) -> dict[str, dict[int, float]]:
    """tag -> step -> value."""
    events = EventAccumulator(str(folder), {"scalars": 0}).Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert all(len(dict(points)) == len(points) for points in found.values())  # no step twice
    return {tag: dict(points) for tag, points in found.items()}


def drawn_by(lines: list[dict]) -> dict[str, dict[int, float]]:
    """What these lines of metrics should look like."""
    wanted: dict[str, dict[int, float]] = {}
    for line in lines:
        values = {name: line[name] for name in ("loss", "learning_rate", "gradient_norm")}
        values |= {f"losses/{form}": loss for form, loss in line["losses"].items()}
        values |= {f"val/{form}": score for form, score in line.get("val", {}).items()}
        for tag, value in values.items():
            wanted.setdefault(tag, {})[line["step"]] = pytest.approx(value, rel=1e-6)
    return wanted


def test_a_run_that_goes_on_draws_no_step_twice(material, tmp_path):
    def go(stop=None):
        with tensorboard.tensorboard(tmp_path / "run") as draw:

            def on_progress(state):
                draw(state.metrics)
                if state.step == stop:
                    raise Stop

            return train(recipe(), material.cache, tmp_path / "run", on_progress=on_progress)

    with pytest.raises(Stop):
        go(stop=8)
    assert max(drawn(tmp_path / "run")["loss"]) == 8  # the checkpoint is at step 5
    run = go()
    lines = read_metrics(run.path)
    assert drawn(run.path) == drawn_by(lines)
    assert {"losses/streaming", "losses/window", "val/streaming", "val/window"} < drawn(run.path).keys()
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
