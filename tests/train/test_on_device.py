"""Stage two on another device: a whole training, its scores, its checkpoints and its streams are those of the CPU, within
rounding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.on_device import CPU, differ
from support.paths import ROOT
from support.processes import ended, start
from support.training import Stop, assert_same, final, recipe, stop_at

from pipeline.train.evaluate import evaluate
from pipeline.train.loop import train
from pipeline.train.run import Run, read_metrics
from pipeline.train.stream import Stream

pytestmark = pytest.mark.cuda
LOSSES_WITHIN, WEIGHTS_WITHIN = 1e-3, 1e-2
"""After a dozen steps, each of which passes the roundings before it on."""
BFLOAT16_WITHIN = 0.05
MODULES = ("gru", "mamba", "gated_transformer")


@pytest.fixture(autouse=True)
def _one_thread(_threads: None) -> None:
    torch.set_num_threads(1)  # what is this small runs slower on two


def module(name: str) -> dict[str, object]:
    return {"name": name} | ({} if name == "gru" else {"layers": 1})


def losses(run: Run) -> torch.Tensor:
    return torch.tensor([line["loss"] for line in read_metrics(run.path)])


@pytest.mark.parametrize("name", MODULES)
def test_a_run_is_that_of_the_cpu(name, material, tmp_path, device, record_property):
    asked = recipe(temporal=module(name), training={"precision": "float32"})
    ours, wanted = (
        train(asked, material.cache, tmp_path / str(number), device=at)
        for number, at in enumerate((device, CPU))
    )
    apart = differ(losses(ours), losses(wanted))
    record_property("difference", apart)
    assert apart < LOSSES_WITHIN
    there, here = final(ours), final(wanted)
    assert there.keys() == here.keys()
    weights = [key for key in here if not key.startswith("optimizer.")]
    moved = max(float((there[key].float() - here[key].float()).abs().max()) for key in weights)
    assert moved < WEIGHTS_WITHIN
    scores = [
        {form: facts["top-1"].score for form, facts in found.forms.items()}
        for found in (
            evaluate(ours, material.cache, device=device),
            evaluate(ours, material.cache, device=CPU),
        )
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_a_run_that_was_stopped_goes_on(material, tmp_path, device, record_property):
    asked = recipe(training={"precision": "float32"})
    whole = train(asked, material.cache, tmp_path / "whole", device=device)
    with pytest.raises(Stop):
        train(asked, material.cache, tmp_path / "cut", device=device, on_progress=stop_at(8))
    again = train(asked, material.cache, tmp_path / "cut", device=device)
    assert [line["step"] for line in read_metrics(again.path)] == list(range(1, 13))
    apart = differ(losses(again), losses(whole))
    record_property("difference", apart)
    if device == CPU:
        assert_same(final(again), final(whole))
    assert apart < LOSSES_WITHIN


@pytest.mark.parametrize("name", MODULES)
def test_steps_in_bfloat16_are_near(name, material, tmp_path, device, record_property):
    ours, wanted = (
        train(
            recipe(temporal=module(name), training={"precision": precision, "steps": 3}),
            material.cache,
            tmp_path / precision,
            device=device,
        )
        for precision in ("bfloat16", "float32")
    )
    apart = differ(losses(ours), losses(wanted))
    record_property("difference", apart)
    assert 0 < apart < BFLOAT16_WITHIN


def test_a_stream_answers_as_on_the_cpu(place, device, record_property):
    video = next((place.folder / "videos").rglob("*.mp4"))
    answers = [
        np.stack([seen.answer for seen in Stream(Run(place.run), at).follow(video)])
        for at in (device, CPU)
    ]
    apart = differ(*map(torch.from_numpy, answers))
    record_property("difference", apart)
    assert apart < LOSSES_WITHIN


def test_two_devices_train_as_one(material, tmp_path, device, record_property):
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device, and two processes want one each")
    asked = recipe(training={"precision": "float32", "batch_size": 4})
    whole = train(asked, material.cache, tmp_path / "whole", device=device)
    jobs = tmp_path / "jobs.json"
    job = {
        "recipe": asked.canonical(),
        "cache": str(material.cache.path),
        "out": str(tmp_path / "two"),
    }
    jobs.write_text(json.dumps([job]))
    code, _, said = ended(start(2, ROOT / "tests" / "support" / "ranks_worker.py", jobs))
    assert code == 0, said
    assert not list(tmp_path.glob("*.error"))
    apart = differ(losses(Run(Path(job["out"]))), losses(whole))
    record_property("difference", apart)
    assert apart < LOSSES_WITHIN
