"""A run leaves as files that say what it says, in a process that has no PyTorch, or it does not leave."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support.commands import VIT, assert_refused, call, digest, fine
from support.manual import blocks
from support.paths import ROOT, SHARED
from support.spoken import WIDTH, spoken_cache
from support.training import recipe

from pipeline.cache.cache import Cache
from pipeline.errors import StillframeError
from pipeline.exchange import parity
from pipeline.exchange.export import (
    Stage,
    export,
    few_frames,
    opened,
    shape_of,
    step_of_run,
    written,
)
from pipeline.exchange.loaded import OnnxStep
from pipeline.train.loop import train
from pipeline.train.run import Run
from pipeline.train.stream import Stream

GUIDE = ROOT / "docs/guide/export.md"
TINY_VIT = SHARED / "weights/vit_tiny_patch16_224"
RECURRENT = {"GRU", "LSTM", "RNN", "Loop", "Scan"}
"""Operators that a step has no use for; exporters have written GRU with another meaning than PyTorch's."""


@pytest.fixture(scope="module")
def vit_run(place, tmp_path_factory) -> Path:
    """A run of a cache whose tokens a small image model made."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "vit.toml").write_text(VIT.replace("[0, 7]", "[0, 1]"))
    (folder / "gru.toml").write_text(place.recipe.read_text().replace("identity", "gru"))
    fine("extract", folder / "vit.toml", place.data, "--out", folder / "caches")
    (cache,) = (folder / "caches").iterdir()
    fine("train", folder / "gru.toml", cache, "--out", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def exported(vit_run):
    """What the command has said, and written."""
    return call("export", vit_run, "--out", vit_run.parent / "export", "--encoder", "--json")


@pytest.mark.slow
def test_the_command_writes_two_files_that_say_what_the_run_says(vit_run, exported):
    assert exported.code == 0
    step, encoder = exported.json["files"]
    assert step["differences"].keys() == {"answer", "features", "next_state_0"}
    assert encoder["differences"].keys() == {"special", "layer_0", "layer_1"}
    assert max({**step["differences"], **encoder["differences"]}.values()) < 1e-4
    assert min(each[way] for each in (step, encoder) for way in ("torch_ms", "file_ms")) > 0
    assert "does not round tokens as codec 'float16' of the cache does" in exported.err
    names = sorted(path.name for path in (vit_run.parent / "export").iterdir())
    assert names == ["encoder.json", "encoder.onnx", "step.json", "step.onnx"]


@pytest.mark.slow
def test_what_is_known_of_a_file_is_in_it_and_beside_it(vit_run, exported):
    folder = vit_run.parent / "export"
    for name in ("step", "encoder"):
        file = onnx.load(folder / f"{name}.onnx")
        onnx.checker.check_model(file, full_check=True)
        inside = {each.key: json.loads(each.value) for each in file.metadata_props}
        assert inside == json.loads((folder / f"{name}.json").read_text())
        shapes = {
            value.name: [
                axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim
            ]
            for value in (*file.graph.input, *file.graph.output)
        }
        ports = (*inside["inputs"], *inside["outputs"])
        assert shapes == {port["name"]: port["shape"] for port in ports}
        assert not RECURRENT & {node.op_type for node in file.graph.node}
    about = json.loads((folder / "step.json").read_text())
    header = Run(vit_run).header
    assert about["labels"] == list(header.labels) and about["task"] == "classify"
    assert about["cache"]["fingerprint"] == header.cache.fingerprint
    assert about["frames_per_second"] == 10 and about["states"][0]["shape"] == ["B", 5, 16]
    assert str(vit_run.parent) not in json.dumps(about)


@pytest.mark.slow
def test_the_runner_of_the_guide_says_what_a_stream_says_without_pytorch(vit_run, exported):
    runner, use = blocks(GUIDE, "python")
    assert runner == (ROOT / "pipeline/exchange/runner.py").read_text()
    code = f"{runner}\n{use}\nimport sys\nassert 'torch' not in sys.modules\n"
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=vit_run.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    stream, state = Stream(Run(vit_run)), None
    squares = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 1, 3, 64, 64)))
    with torch.no_grad():
        for square, line in zip(squares, done.stdout.splitlines(), strict=True):
            tokens = stream.encoder(square.float())
            patches = [tokens.patches_NPD[layer] for layer in stream.model.layers]
            state = state or stream.model.start(1)
            logits, state = stream.model.step(tokens.special_NSD, patches, state)
            label, _, numbers = line.partition(" ")
            assert label == Run(vit_run).header.labels[int(logits.argmax())]
            np.testing.assert_allclose(json.loads(numbers), logits[0], atol=1e-4)


@pytest.mark.slow
def test_what_torch_export_saves_says_the_same(vit_run, tmp_path):
    result = call("export", vit_run, "--format", "pt2", "--out", tmp_path / "out")
    assert result.code == 0 and "step.pt2" in result.out, result
    texts = {"labels": ""}
    step = torch.export.load(tmp_path / "out/step.pt2", extra_files=texts).module()
    assert json.loads(texts["labels"]) == list(Run(vit_run).header.labels)
    about = json.loads((tmp_path / "out/step.json").read_text())
    whole = {
        port["name"]: torch.zeros(
            [4 if axis == "B" else axis for axis in port["shape"]],
            dtype=getattr(torch, port["dtype"]),
        )
        for port in about["inputs"]
    }
    assert step(whole)["answer"].shape == (4, 2)


@pytest.mark.slow
def test_a_file_that_says_something_else_is_not_left_behind(vit_run, tmp_path, monkeypatch):
    """Nothing agrees to the last bit with another library; the files of before stay as they are."""
    monkeypatch.setattr(parity, "TOLERANCE", 1e-12)
    monkeypatch.setattr(parity, "MAGNIFIED", 0.0)
    (tmp_path / "step.json").write_text("of before")
    before = digest(tmp_path)
    result = call("export", vit_run, "--out", tmp_path)
    assert result.code == 1 and result.out == ""
    assert re.fullmatch(
        r"error: the step as onnx does not say what PyTorch says: output '[a-z_0-9]+' differs by up "
        r"to [0-9.]+e-\d\d, at frame \d+, where [0-9.]+e-12 is allowed; nothing was written; "
        r"next: [^\n]+\n",
        result.err,
    )
    assert digest(tmp_path) == before


@pytest.mark.slow
def test_other_weights_are_noticed(vit_run, tmp_path):
    """The file of a run is asked beside a run whose readout differs in one number."""
    run = Run(vit_run)
    step, cache = step_of_run(run, shape_of(run, None)), Cache(run.header.cache_path)
    stage = Stage("step", step, step.example(), {"stillframe": "0", "states": []})
    file = written(stage, tmp_path, "pt2")
    with torch.no_grad():
        step.streaming.classifier.bias[1] += 0.25
    with opened(file, stage) as loaded:
        found = parity.compared_steps(
            step, parity.CheckFrames(step, few_frames(step, cache)), loaded
        )
    assert found.worst["answer"].difference == pytest.approx(0.25, abs=1e-5)
    assert found.worst["features"].is_within
    with pytest.raises(StillframeError, match="output 'answer' differs by up to 0.25, at frame"):
        found.require("the step")


@pytest.mark.slow
def test_the_encoder_of_an_image_text_model_gives_the_embedding_that_the_step_reads(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    cache = spoken_cache(tmp_path)
    task = {"name": "classify", "prompts": ("a {}.",), "width": WIDTH}
    windows = {"frames": 4, "fps": None, "every": 1}
    run = train(recipe(task=task, windows=windows, training={"steps": 0}), cache, tmp_path / "run")
    made = export(run, tmp_path / "out", "pt2", cache, encoder={})
    step, encoder = made.files
    assert "frame_embedding" in encoder.differences and step.differences.keys() >= {"answer"}
    names = [
        port["name"] for port in json.loads((tmp_path / "out/step.json").read_text())["inputs"]
    ]
    assert "frame_embedding" in names
    assert str(tmp_path) not in (tmp_path / "out/step.json").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not TINY_VIT.is_dir(), reason="no weights of a real ViT beside the checkout")
def test_a_real_vit_leaves_with_its_run(place, tmp_path):
    spec = f"""
        [encoder]
        name = "transformers"
        layers = [5, 11]
        model = "{TINY_VIT}"
        [frames]
        size_px = 64
        [codec]
        name = "pca"
        components = 32
        frames = 16
        """
    (tmp_path / "vit.toml").write_text(spec)
    fine("extract", tmp_path / "vit.toml", place.data, "--out", tmp_path / "caches")
    (cache,) = (tmp_path / "caches").iterdir()
    fine("train", place.recipe, cache, "--out", tmp_path / "run", "--set", "training.steps=1")
    result = call("export", tmp_path / "run", "--encoder", "--set", f"model={TINY_VIT}", "--json")
    assert result.code == 0, result
    assert "does not round tokens as codec 'pca'" in result.err
    differences = result.json["files"][1]["differences"]
    assert differences.keys() == {"special", "layer_5", "layer_11"}
    # What the codec cuts off is cut off: tokens lie in the span of 32 components.
    file = OnnxStep(tmp_path / "run/export/encoder.onnx")
    with file as loaded:
        said, _ = loaded("one", {"pixels": np.zeros((1, 3, 64, 64), np.float32)}, False)
    assert np.linalg.matrix_rank(said["layer_11"][0].astype(np.float64), tol=1e-2) <= 33


def test_without_the_cache_the_shape_is_that_of_the_encoder_and_tokens_are_random(vit_run):
    run = Run(vit_run)
    assert shape_of(run, None) == Cache(run.header.cache_path).shape
    step = step_of_run(run, shape_of(run, None))
    random, real = few_frames(step, None), few_frames(step, Cache(run.header.cache_path))
    assert random.keys() == real.keys() == {"special", "layer_0", "layer_1"}
    assert all(random[name].shape == real[name].shape for name in real)
    cache = Cache(run.header.cache_path)
    first = cache.locations[min(cache.locations)]
    stored = cache.stored_rows(first.store, "layer_1", np.array([first.start]))
    decoded = cache.codecs["layer_1"].decode({"": torch.from_numpy(stored[""])})
    assert torch.equal(real["layer_1"][0], decoded[0])


def test_what_cannot_leave_is_refused_in_one_line(place, vit_run, material, tmp_path, monkeypatch):
    def refused(path: Path, *arguments: object) -> str:
        result = call("export", path, "--out", tmp_path / "out", *arguments)
        assert_refused(result)
        assert not (tmp_path / "out").exists()
        return result.err

    assert "no format called 'onix'; there are: onnx, pt2" in refused(vit_run, "--format", "onix")
    assert "is not a run" in refused(tmp_path)
    assert "--set is for the encoder" in refused(vit_run, "--set", "model=x")
    assert "no checkpoint called 'first'" in refused(vit_run, "--checkpoint", "first")
    window = train(recipe(task={"forms": ("window",)}), material.cache, tmp_path / "window")
    assert "only in the form window" in refused(window.path)
    clip = recipe(windows={"fps": None, "span": "clip"})
    whole = train(clip, material.cache, tmp_path / "clip")
    assert 'it was trained with windows.span = "clip"' in refused(whole.path)
    assert "was trained on the cache with fingerprint" in refused(vit_run, "--cache", place.cache)
    # As where the extra is not installed.
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = call("export", vit_run, "--out", tmp_path / "out")
    assert (result.code, result.out) == (1, "")
    assert "ONNX files need the package 'onnx', which is not installed" in result.err
    assert "next: pip install 'stillframe[export]'" in result.err
