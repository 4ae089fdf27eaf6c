"""A sweep in several processes: workers of a real Slurm and a real Ray cluster, and what torchrun starts. One is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from support.commands import call, fine
from support.launchers import make, queued
from support.material import Material
from support.paths import ROOT
from support.processes import ended, start
from support.sweeps import BASE, assert_as_alone

from pipeline.cache.cache import Cache
from pipeline.cache.leases import Holder, holders
from pipeline.cache.storage.open import open_storage
from pipeline.device import cores
from pipeline.experiments.sweep import Sweep, sweep
from pipeline.experiments.sweep_spec import SweepSpec, load_sweep
from pipeline.train.run import Run

STEPS = 40
GROUNDS = {"slurm": ("slurm_user", {"cpus_per_task": 1}), "ray": ("ray_cluster", {})}
"""Engine -> the fixture that it runs on, and settings under which a worker computes in one thread."""


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum over other threads rounds otherwise. Workers find the package as those of an installed one do."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    torch.set_num_threads(1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A sweep of four members that share one read."""
    tables = BASE | {"training": BASE["training"] | {"steps": STEPS, "evaluate_every": STEPS}}
    lines = (
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in of.items())
        for name, of in tables.items()
    )
    (tmp_path / "base.toml").write_text("".join(lines))
    path = tmp_path / "four.toml"
    path.write_text(
        'recipe = "base.toml"\nseeds = [0, 5]\n[axes]\ntemporal = ["identity", "gru"]\n'
    )
    return path


@pytest.fixture
def four(file: Path) -> SweepSpec:
    return load_sweep(file)


def under_way(out: Path) -> dict[str, Holder]:
    """Members that have saved a checkpoint before their last step -> who is at them."""
    held = holders(open_storage(out)) if (out / "sweep.json").is_file() else {}
    if not held:  # so that this waits without work
        return {}
    steps = {member.name: member.progress for member in Sweep(out).members}
    return {
        name: one
        for name, one in held.items()
        if (saved := steps.get(name)) and saved[0] < saved[1]
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUNDS)
def test_workers_share_a_sweep_and_take_over_from_one_that_is_killed(
    request, material: Material, four, tmp_path, name
):
    ground, settings = GROUNDS[name]
    request.getfixturevalue(ground)
    out, engine = tmp_path / "sweep", make(name, 2, **settings)
    rest = {"engine": engine, "logs": tmp_path / "logs"}
    thread = threading.Thread(
        target=sweep, args=(four, {"given": material.cache}, out), kwargs=rest
    )
    thread.start()
    try:
        while not (found := under_way(out)):
            assert thread.is_alive()
            time.sleep(0.01)
        os.kill(next(iter(found.values())).pid, signal.SIGKILL)
    finally:
        thread.join()
    made = Sweep(out)
    assert not made.left() and (out / "summary-classify.json").is_file()
    assert_as_alone(made, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUNDS)
def test_workers_know_the_plugins_that_their_command_was_told(request, place, tmp_path, name):
    """Both stages: a codec for what workers write, a temporal module for what they train."""
    request.getfixturevalue(GROUNDS[name][0])
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "half.py").write_text("from pipeline.cache.codecs.float16 import Codec\n")
    (mine / "nothing.py").write_text("from pipeline.models.temporal.identity import Temporal\n")
    engine = ("--engine", name, "--workers", 2, "--logs", tmp_path / "logs")
    out = tmp_path / "caches"
    words = ("extract", place.spec, place.data, "--out", out, "--set", "codec.name=half", *engine)
    assert call("--plugins", mine, *words).code == 0  # slow workers are told of on the way
    (cache,) = out.iterdir()
    made = Cache(cache)
    assert made.missing_stores() == []
    assert made.spec["codec"]["from"]["file"] == "half.py"
    file = tmp_path / "two.toml"
    file.write_text(f'recipe = "{place.recipe}"\n[axes]\ntemporal = ["identity", "nothing"]\n')
    words = ("sweep", file, cache, "--out", tmp_path / "sweep", *engine)
    assert call("--plugins", mine, *words).code == 0
    runs = [Run(path).header.recipe for path in sorted((tmp_path / "sweep/runs").iterdir())]
    assert [recipe["temporal"]["name"] for recipe in runs] == ["identity", "nothing"]
    assert runs[1]["temporal"]["from"]["file"] == "nothing.py"


@pytest.mark.slow
def test_dry_run_prints_what_would_be_submitted(slurm_user, material: Material, file, tmp_path):
    before = queued()
    arguments = [
        "sweep",
        file,
        material.cache.path,
        "--out",
        tmp_path / "sweep",
        "--workers",
        2,
        "--dry-run",
    ]
    told = call(*arguments, "--engine", "slurm", "--engine-set", "time_min=7")
    assert told.code == 0 and "4 members of four, trained from 1 read" in told.out
    assert re.findall(r"--array=(\S+)", told.err) == ["0-1%2"] and "#SBATCH --time=7\n" in told.err
    assert not (tmp_path / "sweep").exists() and queued() <= before
    assert fine(*arguments, "--engine", "local").out == told.out


def command(file: Path, cache: Path, out: Path) -> list[object]:
    return ["-m", "pipeline.cli", "sweep", file, cache, "--out", out, "--device", "cpu", "--json"]


@pytest.mark.slow
def test_processes_of_torchrun_share_a_sweep(material: Material, file, tmp_path):
    out = tmp_path / "sweep"
    process = start(2, *command(file, material.cache.path, out))
    seen = set[int]()
    while process.poll() is None:
        seen |= {one.pid for one in under_way(out).values()}
        time.sleep(0.03)
    assert len(seen) == 2
    code, said, errors = ended(process)
    assert (code, errors) == (0, [])
    told = json.loads(said)
    assert told["pages"] == [str(out / "report/report.html")] and Path(told["pages"][0]).is_file()
    assert [one["name"] for one in told["summaries"]["classify"]["settings"]] == ["identity", "gru"]
    made = Sweep(out)
    assert not made.left() and holders(open_storage(out)) == {}
    torch.set_num_threads(max(1, cores() // 2))  # what each process has taken
    assert_as_alone(made, tmp_path)


@pytest.mark.slow
def test_torchrun_and_an_engine_are_refused_once(material: Material, file, tmp_path):
    code, said, errors = ended(
        start(2, *command(file, material.cache.path, tmp_path / "sweep"), "--workers", 2)
    )
    assert (code, said) == (1, "")
    assert errors == [
        "error: an engine starts workers of its own, and torchrun has started 2; next: leave one out"
    ]
    assert not (tmp_path / "sweep").exists()
