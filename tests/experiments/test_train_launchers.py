"""One training as the job of an engine: on this machine, a real Slurm, a real Ray. Its processes end with whoever asked for it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.commands import RECIPE, assert_refused, call, fine
from support.launchers import queued
from support.paths import ROOT

from pipeline.train.run import Run, read_metrics

STEPS = 12
GROUNDS = {"local": None, "slurm": "slurm_user", "ray": "ray_cluster"}
"""Engine -> the fixture that it runs on."""


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find the package as those of an installed one do."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "mine.toml"
    text = RECIPE.replace("steps = 3", f"steps = {STEPS}\ncheckpoint_every = 2")
    file.write_text(text.replace('"identity"', '"gru"'))
    return file


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUNDS)
def test_two_processes_of_an_engine_train_what_one_does(request, place, recipe, tmp_path, name):
    if GROUNDS[name]:
        request.getfixturevalue(GROUNDS[name])
    words = ("train", recipe, place.cache, "--device", "cpu")
    engine = ("--engine", name, "--workers", 2, "--logs", tmp_path / "logs")
    told = call(*words, "--out", tmp_path / "two", *engine, "--json")
    assert told.code == 0, told
    assert told.json["steps"] == STEPS and told.json["run"] == str(tmp_path / "two")
    fine(*words, "--out", tmp_path / "one", "--json")
    ours, theirs = read_metrics(tmp_path / "two"), read_metrics(tmp_path / "one")
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in ours] == pytest.approx(
        [line["loss"] for line in theirs], rel=1e-4
    )
    assert list((tmp_path / "logs").glob("*.done")) == []
    # Finished before: nothing is trained again.
    assert call(*words, "--out", tmp_path / "two", *engine).code == 0


@pytest.mark.slow
def test_a_lost_process_ends_the_others_and_the_same_command_goes_on(place, recipe, tmp_path):
    out, logs = tmp_path / "run", tmp_path / "logs"
    words = ["train", recipe, place.cache, "--out", out, "--set", "training.steps=400"]
    command = [sys.executable, "-m", "pipeline.cli", *words, "--workers", 2, "--logs", logs]
    for end in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True)
        before = Run(out).checkpoint("last").step if (out / "last.json").is_file() else 0
        while not (out / "last.json").is_file() or Run(out).checkpoint("last").step == before:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        ranks = ranks_below(process.pid)
        assert len(ranks) == 2
        if end == signal.SIGKILL:
            os.kill(ranks[1], end)
        else:
            process.send_signal(end)
        _, said = process.communicate(timeout=300)
        assert process.returncode == (1 if end == signal.SIGKILL else 130), said
        assert "Traceback" not in said
        if end == signal.SIGKILL:
            assert "the workers are gone: worker 0: exit code 1" in said
        for rank in ranks:
            while Path(f"/proc/{rank}").exists():
                time.sleep(0.02)
    shorter = fine(*words[:-2], "--set", "training.steps=400", "--dry-run")
    assert f"--out {out}" in shorter.out


def ranks_below(pid: int) -> list[int]:
    """Processes of a training that a command has started, in the order of their ranks."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            above = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        ranks = [int(item[5:]) for item in environment if item.startswith(b"RANK=")]
        if ranks and above == pid:
            found[ranks[0]] = int(folder.name)
    return [found[rank] for rank in sorted(found)]


@pytest.mark.slow
def test_dry_run_prints_what_would_be_submitted(slurm_user, place, recipe, tmp_path):
    before = queued()
    words = ("train", recipe, place.cache, "--out", tmp_path / "run", "--workers", 2, "--dry-run")
    told = call(*words, "--engine", "slurm", "--engine-set", "time_min=7")
    assert told.code == 0 and f"stillframe train {recipe}" in told.out
    assert "#SBATCH --time=7\n" in told.err and "--array" not in told.err
    assert re.search(r"--gpus-per-node", told.err) is None
    assert not (tmp_path / "run").exists() and queued() <= before


def test_what_cannot_be_trained_is_refused_before_anything_is_submitted(place, recipe, tmp_path):
    words = ("train", recipe, place.cache, "--out", tmp_path / "run", "--workers", 2)
    assert_refused(call(*words, "--set", "model.layers=[9]"), "layer")
    assert_refused(call(*words, "--engine", "slurn"), "no engine called 'slurn'")
    refused = call(*words[:-2], "--engine-set", "time_min=7")
    assert_refused(refused, "--engine-set time_min=7 is for an engine, and none is named")
    assert not (tmp_path / "run").exists()
