"""Runs of tasks that are told something in words, by command: scores that look at a whole split, and streams
that are asked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.commands import assert_refused, call
from support.image_text import whole_model
from support.spoken import WIDTH, spoken_cache
from support.training import recipe
from torch.nn import functional
from transformers import AutoTokenizer

from pipeline.cache.cache import Cache
from pipeline.cli import console
from pipeline.train.loop import train
from pipeline.train.run import Run, load_model
from pipeline.train.setup import RunContext
from pipeline.train.stream import Stream
from pipeline.train.windows.index import WindowRef

CPU = torch.device("cpu")
PACE = {"frames": 4, "fps": 12}


@pytest.fixture(autouse=True)
def _one_thread(_threads: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return spoken_cache(tmp_path_factory.mktemp("spoken"))


@pytest.fixture(scope="module")
def runs(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """One of each task, with a readout that has learnt a little."""
    small = {"readout_width": 16, "heads": 2, "width": WIDTH}
    tables = {
        "retrieve": {"name": "retrieve", **small},
        "classify": {"name": "classify", "prompts": ("a {}.",), **small},
    }
    training = {"steps": 2, "warmup_steps": 0, "learning_rate": 1e-2}
    out = tmp_path_factory.mktemp("runs")
    return {
        name: train(recipe(task=table, windows=PACE, training=training), cache, out / name)
        for name, table in tables.items()
    }


def test_dual_softmax_is_scored_beside_and_not_over_the_plain_scores(
    runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.out, "width", 80)
    path = runs["retrieve"].path
    assert call("evaluate", path).code == 0
    plain = (path / "evaluation-val.json").read_bytes()
    result = call("evaluate", path, "--dual-softmax")
    assert "retrieve on split val, dual softmax: 8 clips" in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert result.err.startswith("dual softmax: every score looks at the whole split 'val'")
    assert (path / "evaluation-val.json").read_bytes() == plain
    kept = json.loads((path / "evaluation-val-dual_softmax.json").read_text())
    assert kept["metrics"][0]["name"] == "t2v R@1, dual softmax"
    for row in ("retrieve", "mean_of_frames"):
        assert len([line for line in result.out.splitlines() if line.startswith(f" {row} ")]) >= 3


def test_only_retrieval_looks_at_a_whole_split(runs: dict[str, Run]) -> None:
    refused = call("evaluate", runs["classify"].path, "--dual-softmax")
    assert_refused(refused, "task 'classify' does not look for anything among a split")
    together = call("evaluate", runs["retrieve"].path, "--dual-softmax", "--draw", 1)
    assert_refused(together, "--dual-softmax is about the scores of a split")


def streamed(*arguments: object) -> list[dict[str, Any]]:
    """The lines that a stream prints."""
    result = call("stream", *arguments)
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


def window_answers(run: Run, cache: Cache) -> tuple[Path, np.ndarray]:
    """A video, and the streaming prediction (T, ...) of a window that begins with its first frame."""
    model, task = load_model(run, cache.shape)
    windows = RunContext.of(cache, device=CPU).windows("val", run.recipe, task, model.layers)
    batch = windows.on_device(windows.read([WindowRef(0, 0.0)]), CPU)
    with torch.no_grad():
        said = model.predict(batch, task)["streaming"][0]
    return cache.manifest.root / windows.clip(0).source, said


def test_a_stream_says_how_much_the_video_so_far_is_like_each_text(
    runs: dict[str, Run], cache: Cache, tmp_path: Path
) -> None:
    run, texts = runs["retrieve"], ("a dog", "red cat")
    video, said_TE = window_answers(run, cache)
    folder = cache.path.parents[1] / "clip"
    tokens = AutoTokenizer.from_pretrained(folder)(list(texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        own_KE = whole_model(folder).get_text_features(**tokens).pooler_output
    cosine_TK = functional.normalize(said_TE, dim=1) @ functional.normalize(own_KE, dim=1).T
    file = tmp_path / "drawn.mp4"
    lines = streamed(run.path, video, "--ask", texts[0], "--ask", texts[1], "--draw", file)
    assert len(lines) == 8 and file.stat().st_size > 0
    assert list(lines[0]["scores"]) == list(texts)
    for line, cosine_K in zip(lines, cosine_TK.tolist(), strict=False):
        assert list(line["scores"].values()) == pytest.approx(cosine_K, abs=1e-3)
    assert lines[0]["scores"] != lines[3]["scores"]
    assert list(streamed(run.path, video)[0]) == ["time_s", "vector"]


def test_a_stream_of_named_classes_is_that_of_a_window(runs: dict[str, Run], cache: Cache) -> None:
    video, said_TE = window_answers(runs["classify"], cache)
    _, task = load_model(runs["classify"], cache.shape)
    answers = [frame.answer for frame in Stream(runs["classify"], CPU).follow(video)]
    for answer, said_E in zip(answers, said_TE, strict=False):
        logits_K = task.answer("window", said_E[None])[0].detach().numpy()
        np.testing.assert_allclose(answer, logits_K, atol=0.05)  # cosines within 0.0005
    assert np.abs(answers[0] - answers[3]).max() > 0.1


def test_what_a_stream_cannot_be_asked(runs: dict[str, Run], cache: Cache) -> None:
    video = next(cache.manifest.root.rglob("*.mp4"))
    refused = call("stream", runs["classify"].path, video, "--ask", "a dog")
    assert_refused(refused, "a run of classify is asked nothing in words; next: leave --ask out")
    assert_refused(call("stream", runs["retrieve"].path, video, "--ask", " "), "empty")


def test_a_run_searches_by_the_windows_that_it_sees(runs: dict[str, Run], cache: Cache) -> None:
    run, text = runs["retrieve"], "a dog"
    asked = ("search", cache.path, text, "--run", run.path, "--top", 40, "--seconds", 0.3, "--json")
    found = call(*asked)
    assert found.code == 0, found.err
    kept = cache.path.parent / ".search"
    name = re.escape(f"{kept}/{cache.name}.{run.path.name}-")
    assert re.search(rf"index: {name}\w{{12}}\.f16, 32 windows, [\d,]+ bytes\n", found.err)
    again = call(*asked)
    assert again.err == "" and again.json == found.json
    assert len(list(kept.glob("*.f16"))) == 2  # and that of single frames, which both kept
    moments = found.json[0]["moments"]
    assert len(moments) == 32  # two windows of four frames in each of 16 videos
    model, task = load_model(run, cache.shape)
    windows = RunContext.of(cache, device=CPU).windows("val", run.recipe, task, model.layers)
    answer_E = model.answers(windows.on_device(windows.read([WindowRef(0, 0.0)]), CPU), task)
    folder = cache.path.parents[1] / "clip"
    tokens = AutoTokenizer.from_pretrained(folder)([text], return_tensors="pt")
    with torch.no_grad():
        own_1E = whole_model(folder).get_text_features(**tokens).pooler_output
    own_E = functional.normalize(own_1E, dim=1)[0].numpy()
    (first,) = [m for m in moments if (m["video"], m["start_s"]) == (windows.clip(0).video_id, 0)]
    assert first["score"] == pytest.approx(float(answer_E["streaming"][0] @ own_E), abs=1e-3)
    assert first["stop_s"] == pytest.approx(0.3)
    refused = call("search", cache.path, text, "--run", runs["classify"].path)
    assert_refused(refused, "is of task 'classify', which compares no videos with words")
