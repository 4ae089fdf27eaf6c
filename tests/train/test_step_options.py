"""What changes how a step is computed and not what: gradient checkpointing, torch.compile, the number format of the device,
and windows that are sent there while the step before computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.on_device import BOTH, named
from support.training import assert_same, final, recipe

from pipeline.cli.bench.memory import peak_bytes
from pipeline.cli.bench.training.steps import TrainingStep
from pipeline.config import plugins
from pipeline.device import Uploads
from pipeline.errors import BadInput
from pipeline.models.step_memory import step_memory
from pipeline.records import OnDevice, TokenShape
from pipeline.train import setup, trainer
from pipeline.train.loop import train
from pipeline.train.run import read_metrics
from pipeline.train.setup import RunContext, open_windows

CPU = torch.device("cpu")
SHAPE = TokenShape(16, (3, 3), 1, (2,))
LABELS = tuple("abcdefgh")


def step(name: str, frames: int, gradient_checkpointing: bool, width: int = 16) -> TrainingStep:
    table = plugins.load("temporal", name).Settings.model_fields
    temporal = {"name": name} | ({"dropout": 0.0} if "dropout" in table else {})
    temporal |= {"drop_path": 0.0} if "drop_path" in table else {}
    asked = recipe(
        temporal=temporal,
        windows={"frames": frames},
        model={"width": width},
        training={"gradient_checkpointing": gradient_checkpointing},
    )
    return TrainingStep(asked, SHAPE, CPU)


@pytest.mark.parametrize("name", plugins.names("temporal"))
def test_gradients_with_checkpointing_are_those_without(name):
    """Seven frames: stretches of three, three and one."""
    gradients = []
    for is_on in (False, True):
        one = step(name, 7, is_on)
        one()
        gradients.append([parameter.grad for parameter in one.model.parameters()])
    for ours, wanted in zip(*gradients, strict=True):
        assert (ours is None) == (wanted is None)
        if ours is not None:
            torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-6)


def test_checkpointing_takes_less_memory_and_is_counted():
    """As measured, and as the count of a step's memory says."""
    measured, counted = [], []
    for is_on in (False, True):
        one = step("gru", 64, is_on, width=64)
        one()
        measured.append(peak_bytes(one, CPU))
        counted.append(step_memory(one.recipe, SHAPE, LABELS, 4, 4).activations)
    assert counted[1] < 0.6 * counted[0]
    assert None in measured or measured[1] < 0.7 * measured[0]


def test_a_stream_of_a_checkpointed_run_is_its_window(material, tmp_path):
    run = train(recipe(training={"gradient_checkpointing": True}), material.cache, tmp_path / "run")
    plain = train(recipe(), material.cache, tmp_path / "plain")
    ours, wanted = ([line["loss"] for line in read_metrics(each.path)] for each in (run, plain))
    assert ours == pytest.approx(wanted, rel=1e-4)
    assert final(run).keys() == final(plain).keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch itself
def test_a_compiled_run_is_near_and_names_its_parameters_alike(material, tmp_path):
    small = {"temporal": {"name": "identity"}, "model": {"mixer": "last", "width": 4}}
    small |= {"task": {"name": "classify", "readout_width": 4, "heads": 1, "forms": ["streaming"]}}
    steps = {"steps": 3, "evaluate_every": None}
    asked = recipe(training=steps | {"compile": True}, **small)
    run = train(asked, material.cache, tmp_path / "compiled")
    plain = train(recipe(training=steps, **small), material.cache, tmp_path / "plain")
    ours, wanted = ([line["loss"] for line in read_metrics(each.path)] for each in (run, plain))
    assert ours == pytest.approx(wanted, rel=1e-3)
    assert final(run).keys() == final(plain).keys()


def test_without_a_compiler_a_compiled_training_is_refused(material, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("No working C++ compiler found\nand much more")

    monkeypatch.setattr(trainer.torch, "compile", lambda _: broken)
    with pytest.raises(BadInput, match=r"cannot compile for cpu here: No working C\+\+ compiler"):
        train(recipe(training={"compile": True}), material.cache, tmp_path / "run")


@pytest.mark.parametrize("name", BOTH)
def test_windows_that_reading_threads_send_are_those_that_are_moved(material, name):
    """Whole, and in parts, while the device is busy with something else."""
    device = named(name)
    context = RunContext.of(material.cache, device=device)
    _, windows, _ = open_windows([recipe()], context)
    windows.uploads, steps = Uploads(device), range(12)
    busy = torch.ones(512, 512, device=device)
    for _, batch in windows.train(4, steps):
        for _ in range(8):  # the computing stream lags behind the one that copies
            busy = (busy @ busy).clamp(0, 1)
        assert batch.sent.keys() == batch.arrays.keys() | batch.targets.keys()
        parts = [windows.on_device(part, device) for part in batch.micro_batches(2)]
        plain = windows.on_device(replace(batch, sent={}), device)
        for whole in (windows.on_device(batch, device), joined(parts)):
            assert torch.equal(whole.special_BTSD, plain.special_BTSD)
            assert all(torch.equal(whole.patches[name], plain.patches[name]) for name in (2, 5))
            assert torch.equal(whole.targets["label"], plain.targets["label"])


def joined(parts: list[OnDevice]) -> OnDevice:
    return OnDevice(
        torch.cat([part.special_BTSD for part in parts]),
        {name: torch.cat([part.patches[name] for part in parts]) for name in parts[0].patches},
        {name: torch.cat([part.targets[name] for part in parts]) for name in parts[0].targets},
    )


@pytest.mark.parametrize("native", ["bfloat16", "float32"])
def test_native_precision_is_written_as_what_it_became(native, material, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "native_precision", lambda _: native)
    steps = {"steps": 3, "evaluate_every": None}
    asked = recipe(training={"precision": "native"} | steps)
    run = train(asked, material.cache, tmp_path / "native")
    assert run.recipe.training.precision == native
    plain = train(recipe(training={"precision": native} | steps), material.cache, tmp_path / "run")
    assert_same(final(run), final(plain))
    assert train(asked, material.cache, tmp_path / "native").path == run.path
    other = {"bfloat16": "float32", "float32": "bfloat16"}[native]
    monkeypatch.setattr(setup, "native_precision", lambda _: other)
    with pytest.raises(BadInput, match=f'training.precision: "{other}" / "{native}"'):
        train(asked, material.cache, tmp_path / "native")
