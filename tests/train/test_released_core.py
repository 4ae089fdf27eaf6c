"""RVM from a released file to a stream, by command: encoder and frozen core of one file, as the guide says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import rvm
from support.commands import assert_refused, call, fine
from support.manual import ROOT, blocks

from pipeline.experiments.sweep_spec import load_sweep
from pipeline.models.rvm_weights import core_weights

SPEC = """
[encoder]
name = "rvm"
weights = "weights/rvm_small.npz"
layers = [2]
[frames]
size_px = 64
"""
SMALL = [
    f"--set={setting}"
    for setting in (
        "training.steps=3",
        "training.warmup_steps=1",
        "training.batch_size=4",
        "windows.frames=4",
        "task.readout_width=8",
        "task.heads=2",
    )
]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a file of weights, a world of few clips, its cache, and the guide's recipe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("desk"))
        _make()
        return Path.cwd()


@pytest.fixture
def desk(made, monkeypatch) -> None:
    """Commands run in that folder, whose file of weights is as it was."""
    monkeypatch.chdir(made)
    rvm.write(Path("weights/rvm_small.npz"))


def _make() -> None:
    Path("weights").mkdir()
    rvm.write(Path("weights/rvm_small.npz"))
    Path("rvm.toml").write_text(SPEC)
    recipe = next(b for b in blocks(ROOT / "docs/guide/rvm.md", "toml") if "[training]" in b)
    Path("rvm_classify.toml").write_text(recipe.replace("epochs = 40\n", ""))
    world = ["clips_per_class=3", "frames=6", "size_px=64", "val_fraction=0.34"]
    fine("manifest", "world", "--out", "data", *(f"--set={setting}" for setting in world))
    fine("extract", "rvm.toml", "data", "--out", "caches")


def weights(run: str) -> dict[str, torch.Tensor]:
    last = json.loads(Path(run, "last.json").read_text())
    return {
        name.removeprefix("model.temporal."): tensor
        for name, tensor in load_file(Path(run, last["file"])).items()
        if name.startswith("model.temporal.")
    }


@pytest.mark.usefixtures("desk")
def test_from_a_released_file_to_a_stream():
    """The core stays as it was released; the run is used, and gone on with, when the file is gone."""
    (cache,) = Path("caches").iterdir()
    fine("train", "rvm_classify.toml", cache, "--out", "runs/rvm", *SMALL)
    released = core_weights(Path("weights/rvm_small.npz"))
    trained = weights("runs/rvm")
    assert trained.keys() == released.keys()
    assert all(torch.equal(trained[name], released[name]) for name in released)
    header = json.loads(Path("runs/rvm/run.json").read_text())
    assert header["parameters"]["temporal"] == 0 < header["parameters"]["readout"]
    assert len(header["recipe"]["temporal"]["released"]["sha256"]) == 64

    tuned = ["--set=temporal.tune=true", *SMALL]
    fine("train", "rvm_classify.toml", cache, "--out", "runs/tuned", *tuned)
    changed = weights("runs/tuned")
    assert not any(torch.equal(changed[name], released[name]) for name in released)

    rvm.write(Path("weights/rvm_small.npz"), rvm.random_weights(seed=1))
    again = call("train", "rvm_classify.toml", cache, "--out", "runs/rvm", *SMALL)
    assert_refused(again, "runs/rvm was made from something else", "temporal.released.sha256")
    anew = call("train", "runs/rvm", cache, "--out", "runs/new")
    assert_refused(anew, "are not those that the recipe was written for")
    assert not Path("runs/new").exists()

    Path("weights/rvm_small.npz").unlink()
    assert_refused(call("train", "rvm_classify.toml", cache), "rvm_small.npz cannot be read")
    fine("train", "runs/rvm", cache, "--out", "runs/rvm")
    scores = fine("evaluate", "runs/rvm", "--json").json
    assert scores
    rvm.write(Path("weights/rvm_small.npz"))  # the encoder needs it
    (clip, *_) = sorted(Path("data").rglob("*.mp4"))
    result = call("stream", "runs/rvm", clip)
    answers = result.out.splitlines()
    assert result.code == 0 and len(answers) == 6 and "label" in json.loads(answers[0])


@pytest.mark.usefixtures("desk")
def test_tokens_of_another_width_and_damaged_weights_are_refused_before_a_run_is_made():
    (cache,) = Path("caches").iterdir()
    rvm.write(Path("other.npz"), rvm.random_weights(32, heads=2))
    damaged = rvm.random_weights()
    damaged["rnn_core/input_update/kernel"][0, 0] = torch.nan
    rvm.write(Path("damaged.npz"), damaged)
    Path("none.npz").write_bytes(b"no archive")
    for file, said in (
        ("other.npz", "are for tokens of width 32, found 24"),
        ("damaged.npz", "1 of 576 numbers of array rnn_core/input_update/kernel are not finite"),
        ("none.npz", "is no .npz archive of weights"),
    ):
        named = [f"--set=temporal.weights={file}", "--out", "runs/x", *SMALL]
        assert_refused(call("train", "rvm_classify.toml", cache, *named), said)
        assert not Path("runs/x").exists()


def test_the_sweep_of_the_guide_has_the_pre_trained_core_as_a_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("weights").mkdir()
    rvm.write(Path("weights/rvm_small.npz"))
    toml = blocks(ROOT / "docs/guide/rvm.md", "toml")
    Path("rvm_classify.toml").write_text(next(block for block in toml if "[training]" in block))
    Path("cores.toml").write_text(next(block for block in toml if "seeds" in block))
    points = load_sweep(Path("cores.toml")).grid_points
    settings = [next(iter(point.members.values())).temporal.settings for point in points]
    assert [getattr(each, "tune", None) for each in settings] == [None, False, False, True]
    assert [getattr(each, "released", None) is not None for each in settings] == [
        False,
        False,
        True,
        True,
    ]
