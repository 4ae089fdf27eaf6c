"""Memory is said before it is taken: what a step takes is counted, warned of where less is free,
and a kill for want of it is told at the next start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.paths import ROOT
from support.training import recipe

from pipeline import device
from pipeline.models.step_memory import (
    NotCounted,
    TrainingMemory,
    evaluation_batch,
    step_memory,
)
from pipeline.models.temporal import gru
from pipeline.records import TokenShape
from pipeline.train import loop
from pipeline.train.setup import RunContext, training_memory

SHAPE = TokenShape(64, (7, 7), 1, (1,))
WINDOWS = {"gru": 1024, "causal_attention": 256, "gated_mamba_mix": 256}
"""Temporal module -> windows of a step that take about a gigabyte, more than the program itself."""
MEASURE = """
import gc, json, sys
from pathlib import Path
from pipeline.cache.cache import Cache
from pipeline.config import plugins
from pipeline.config.recipe import Recipe
from pipeline.train.loop import train
from pipeline.train.setup import RunContext, training_memory

def status_bytes(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024

cache, out, table = sys.argv[1:]
cache, recipe = Cache(cache), plugins.validate(Recipe, json.loads(table), "test")
counted = training_memory([recipe], RunContext.of(cache)).peak_bytes()
gc.collect()
Path("/proc/self/clear_refs").write_text("5")
before = status_bytes("VmRSS")
train(recipe, cache, Path(out))
print(json.dumps([counted + before, status_bytes("VmHWM")]))
"""


def memory(**changes) -> TrainingMemory:
    return TrainingMemory([recipe(**changes)], SHAPE, ("a", "b"), 128, 5, 1000)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    "temporal",
    [
        "gru",
        pytest.param("causal_attention", marks=pytest.mark.slow),
        pytest.param("gated_mamba_mix", marks=pytest.mark.slow),
    ],
)
def test_the_peak_is_within_a_quarter_of_what_training_takes(material, tmp_path, temporal):
    wanted = recipe(
        temporal={"name": temporal},
        model={"width": 96},
        training={"steps": 2, "batch_size": WINDOWS[temporal], "evaluate_every": 1},
    )
    arguments = [material.cache.path, tmp_path / "run", json.dumps(wanted.canonical())]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    counted, measured = json.loads(done.stdout)
    assert measured > 500e6, "too little is trained to tell"
    assert 0.75 < counted / measured < 1.25


def test_weights_gradients_and_moments_are_four_times_the_parameters():
    wanted = recipe(model={"width": None}, temporal={"name": "gru"})
    counted = step_memory(wanted, SHAPE, ("a", "b"), 1, 1)
    gru = 6 * SHAPE.width * (SHAPE.width + 1)
    assert counted.weights > 4 * 4 * gru
    assert counted.checkpoint == pytest.approx(counted.weights * 3 / 4, rel=0.01)


def test_frozen_parts_take_no_gradients_moments_or_activations():
    parts = {"model": {"width": None}, "temporal": {"name": "gru"}}
    trained, frozen = (
        step_memory(recipe(**parts, **init), SHAPE, ("a", "b"), 4, 1)
        for init in ({}, {"init": {"run": "elsewhere", "frozen": True}})
    )
    width = SHAPE.width
    norms = 2 * 4 * width  # of the batch norm, and two of the GRU, which has one more below
    count = 4 * width**2 + 3 * width + 7 * width**2 + 7 * width + norms - 2 * width
    saved = trained.weights - frozen.weights
    assert saved == pytest.approx(3 * 4 * count, rel=0.02)
    assert frozen.activations < trained.activations / 2
    assert frozen.checkpoint == pytest.approx(trained.checkpoint - 2 * 4 * count, rel=0.02)


def test_activations_are_proportional_to_the_windows_of_a_micro_batch():
    one, two, four = (
        step_memory(recipe(), SHAPE, ("a", "b"), windows, 1).activations for windows in (1, 2, 4)
    )
    assert four - two == pytest.approx(2 * (two - one), rel=0.01)
    parts = {"training": {"batch_size": 256}}
    whole, cut = memory(**parts).peak_bytes(), memory(**parts).peak_bytes(accumulate=8)
    assert cut < whole
    accumulating = memory(training={"batch_size": 256, "accumulate": 8})
    assert accumulating.peak_bytes() == cut


def test_runs_side_by_side_take_their_weights_each_and_their_activations_in_turn():
    alone = memory(training={"batch_size": 64})
    both = replace(alone, recipes=[*alone.recipes, recipe(training={"batch_size": 64})])
    weights = step_memory(alone.recipes[0], SHAPE, ("a", "b"), 64, 64).weights
    assert both.peak_bytes() - alone.peak_bytes() == pytest.approx(1.15 * weights, abs=2)


def test_evaluation_answers_no_more_windows_at_once_than_a_step_has():
    assert [evaluation_batch(size) for size in (1, 32, 64, 500)] == [1, 32, 64, 64]


def test_the_warning_names_the_setting_that_mends_it():
    needs = memory(training={"batch_size": 512})
    peak = needs.peak_bytes()
    free = (peak + needs.peak_bytes(accumulate=512)) // 2
    text = needs.warning(peak, free)
    assert "the system may kill it" in text and "too much still" not in text
    parts = int(text.split("training.accumulate = ")[1].split()[0])
    assert needs.peak_bytes(accumulate=parts) < free < needs.peak_bytes(accumulate=parts // 2)
    assert "too much still: lower windows.frames" in needs.warning(peak, 10**6)


def test_training_warns_before_it_begins_and_several_runs_do_not_begin(
    material, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "free_memory_bytes", lambda: 10**5)
    told, wanted = [], recipe(training={"steps": 1, "evaluate_every": None})
    run = loop.train(wanted, material.cache, tmp_path / "run", say=told.append)
    assert len(told) == 1 and told[0].startswith("training takes about 0.1 GB at its peak")
    assert not (run.path / "training.json").exists()
    context = RunContext.of(material.cache)
    with pytest.raises(MemoryError):
        loop.train_together({tmp_path / "a": wanted, tmp_path / "b": wanted}, context)
    assert not (tmp_path / "a" / "last.json").exists()


def test_nothing_is_counted_where_there_is_plenty(material):
    needs = training_memory([recipe()], RunContext.of(material.cache))
    assert needs.is_plenty(10**12) and not needs.is_plenty(10**6)


def test_a_model_that_cannot_run_on_fake_tensors_trains_without_an_estimate(
    material, tmp_path, monkeypatch
):
    run_gru = gru.Temporal._run

    def by_numbers(self, x_BTND, state):
        assert len(x_BTND.detach().numpy().tolist()) == len(x_BTND)
        return run_gru(self, x_BTND, state)

    monkeypatch.setattr(gru.Temporal, "_run", by_numbers)
    monkeypatch.setattr(loop, "free_memory_bytes", lambda: 10**5)
    with pytest.raises(NotCounted):
        memory().peak_bytes()
    told, wanted = [], recipe(training={"steps": 1, "evaluate_every": None})
    runs = {tmp_path / "a": wanted, tmp_path / "b": wanted}
    loop.train_together(runs, RunContext.of(material.cache), say=told.append)
    assert (tmp_path / "b" / "last.json").exists() and not told


def test_a_killed_training_is_told_at_the_next_start(material, tmp_path):
    out, told = tmp_path / "run", []
    code = MEASURE.replace("print(", "#")
    wanted = recipe(training={"steps": 100_000, "evaluate_every": None, "checkpoint_every": 1})
    table = json.dumps(wanted.canonical())
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(material.cache.path), str(out), table],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    while not (out / "last.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = json.loads((out / "training.json").read_text())
    assert first["pid"] == process.pid

    def start() -> str:
        told.clear()
        with pytest.raises(KeyboardInterrupt):
            loop.train(wanted, material.cache, out, on_progress=interrupt, say=told.append)
        assert not (out / "training.json").exists()
        return "".join(told)

    def interrupt(_):
        raise KeyboardInterrupt

    text = start()
    assert f"the last training of {out} was killed on" in text and "it goes on from step" in text
    assert start() == ""  # an interrupt is no kill
    before = first | {"out_of_memory_kills": (first["out_of_memory_kills"] or 0) - 1}
    (out / "training.json").write_text(json.dumps(before))
    assert "was killed for want of memory" in start()
    for pid in (os.getpid(), 2**40):  # another process had this one's number; none has that
        (out / "training.json").write_text(json.dumps(first | {"pid": pid}))
        assert "was killed on" in start()
    (out / "training.json").write_text(json.dumps(first | {"pid": os.getppid()}))
    assert start() == ""  # somebody is at it
    (out / "training.json").write_text("{")
    assert start() == ""


@pytest.mark.parametrize("version", [1, 2])
def test_free_memory_is_that_of_the_machine_or_of_the_tightest_control_group(
    tmp_path, monkeypatch, version
):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable: 9000 kB\n")
    (proc / "vmstat").write_text("pgfault 7\noom_kill 3\n")
    monkeypatch.setattr(device, "PROC", proc)
    monkeypatch.setattr(device, "CGROUPS", groups)
    assert device.free_memory_bytes() == 9000 * 1024
    assert device.out_of_memory_kills() == 3

    (proc / "self" / "cgroup").write_text(
        "5:cpu,memory:/job/step\n0::/x\n" if version == 1 else "0::/job/step\n"
    )
    top = groups / "memory" if version == 1 else groups
    limit, used, cached = device.CGROUP_FILES[version]
    for folder, limit_bytes in ((top / "job", 5_000_000), (top / "job" / "step", "max")):
        folder.mkdir(parents=True)
        (folder / limit).write_text(f"{limit_bytes}\n")
        (folder / used).write_text("4000000\n")
        (folder / "memory.stat").write_text(f"anon 1\n{cached} 300000\n")
    assert device.free_memory_bytes() == 5_000_000 - 4_000_000 + 300_000
    (proc / "meminfo").unlink()
    assert device.free_memory_bytes() == 1_300_000


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
            True,
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED"), False),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("shape '[3]' is invalid"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_of_memory_are_told_from_others(error, is_one):
    assert device.is_out_of_memory(error) is is_one
