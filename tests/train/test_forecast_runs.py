"""Runs whose truth is the cache itself: trained, scored and followed as any others, on the layer that each reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.training import Stop, assert_same, final, stop_at

from pipeline.cache.cache import Cache
from pipeline.config.cache_spec import load_spec
from pipeline.config.recipe import Recipe, load_recipe
from pipeline.config.shipped import shipped
from pipeline.datasets.manifest.manifest import build
from pipeline.datasets.manifest.targets import TOKENS
from pipeline.errors import BadInput
from pipeline.experiments.baselines import evaluate_baselines
from pipeline.experiments.predictability import predictability
from pipeline.extract.derive import derive
from pipeline.extract.extract import extract
from pipeline.models.tasks.contract import make_task
from pipeline.models.tasks.forecasts.errors import normalised
from pipeline.report.report import report
from pipeline.train import setup
from pipeline.train.evaluate import evaluate, evaluate_together
from pipeline.train.loop import train, train_together
from pipeline.train.setup import RunContext
from pipeline.train.stream import Stream
from pipeline.train.windows.windows import Windows

LAYERS = (0, 1)


def recipe(**changes: object) -> Recipe:
    small = {
        "training.steps": 2,
        "training.batch_size": 4,
        "windows.frames": 9,
        "windows.fps": 12,
        "task.horizons_s": [0.25, 0.5],
        "task.pairs": 2,
        "task.places": 3,
        "task.readout_width": 8,
        "task.heads": 2,
        "model.width": 8,
    }
    sets = [f"{key}={value}" for key, value in (small | changes).items()]
    return load_recipe(shipped("recipe")["demo_forecast"], sets)


@pytest.fixture(scope="module")
def plane(tmp_path_factory) -> Cache:
    """Sixteen clips of one second, with a random encoder, of which two layers are recorded."""
    folder = tmp_path_factory.mktemp("plane")
    dials = {"clips_per_class": 2, "val_fraction": 0.5, "frames": 12, "size_px": 32}
    videos = build("world", None, folder / "data", dials)
    spec = load_spec(shipped("spec")["demo"], ["encoder.layers=[0,1]", "frames.size_px=32"])
    return extract(spec, videos, folder / "caches")


@pytest.fixture(scope="module")
def runs(plane, tmp_path_factory):
    """Two runs that were trained side by side and forecast another layer each."""
    folder, context = tmp_path_factory.mktemp("runs"), RunContext.of(plane)
    recipes = {
        folder / "deep": recipe(),
        folder / "shallow": recipe(**{"model.layers": [0]}),
    }
    return train_together(recipes, context)


def test_side_by_side_each_forecasts_its_own_layer_as_alone(runs, plane, tmp_path):
    alone = [
        train(recipe(), plane, tmp_path / "deep"),
        train(recipe(**{"model.layers": [0]}), plane, tmp_path / "shallow"),
    ]
    together = evaluate_together(runs, RunContext.of(plane))
    for run, run_alone, result, layer in zip(runs, alone, together, (1, 0), strict=True):
        assert_same(final(run), final(run_alone))
        result_alone = evaluate(run_alone, plane)
        assert result.forms == result_alone.forms
        assert result.baselines.keys() == {
            "trivial",
            *(f"{name}, layer {layer}" for name in ("damped", "linear", "mean")),
        }
        assert result.trivial["skill"] == 0 and result.trivial["skill, 0.5 s"] == 0
        (ceiling,) = result.ceilings.values()
        assert list(result.ceilings) == [f"ceiling, layer {layer}"]
        assert ceiling.keys() == result.trivial.keys()
        assert result.forms["streaming"]["skill"].score < ceiling["skill"].score < 1
        assert (
            result.baselines[f"damped, layer {layer}"]
            == result_alone.baselines[f"damped, layer {layer}"]
        )
    assert not (runs[0].path / "answers-val.safetensors").exists(), "they are as large as the cache"


@pytest.mark.parametrize("label", ["left", "right", "clockwise", "counter_clockwise"])
def test_a_skill_is_the_sum_of_errors_over_that_of_copies(runs, plane, label):
    """Of the baseline `mean` in a clip, added up here from the tokens as they are in the cache. In
    clips of other labels frames are copies of others, or jump."""
    result = evaluate(runs[0], plane)
    windows = Windows(plane, plane.manifest, "val", runs[0].recipe.windows, None, [1])
    clips = windows.index.clips
    (index,) = (number for number, clip in enumerate(clips) if clip.label == label)
    (ref,) = (ref for ref in windows.order.evaluation() if ref.clip == index)
    batch, made, copied = windows.read([ref]), 0.0, 0.0
    _, (tokens,) = windows.tokens(batch, RunContext.of(plane).device)
    x = tokens[0].double().numpy()
    mean, std = x.mean(-1, keepdims=True), np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    z = (x - mean) / std
    for ahead in (1, 3, 6):  # at 12 frames a second, of windows of 9 frames
        frames = np.arange(2, 9 - ahead)
        for t in frames[np.unique(np.linspace(0, len(frames) - 1, 4).round().astype(int))]:
            so_far = x[: t + 1].mean(0)
            made += (((so_far - mean[t]) / std[t] - z[t + ahead]) ** 2).mean()
            copied += ((z[t] - z[t + ahead]) ** 2).mean()
    score = result.baselines["mean, layer 1"].clips[clips[index].clip_id]
    assert score == pytest.approx(1 - made / copied, abs=1e-4)


def test_the_ceiling_of_a_cache_is_what_the_tokens_before_its_codec_score(plane, tmp_path):
    """Those of the same videos in a finer codec."""
    coarse = derive(plane, ["codec.name=int4"], tmp_path)
    wanted = recipe()
    task, scores, weights = make_task(wanted, ()), [], []
    fine_windows, windows = (
        Windows(cache, plane.manifest, "val", wanted.windows, task, [1])
        for cache in (plane, coarse)
    )
    for ref in windows.order.evaluation():
        targets = task.for_scoring(windows.truth([ref]))
        batch = np.arange(1)[:, None]
        true = torch.from_numpy(fine_windows.truth([ref])[TOKENS][batch, targets["to"]])
        mean, deviation = (torch.from_numpy(targets[name]) for name in ("mean", "deviation"))
        scores.append(task.score((mean + deviation * normalised(true)).numpy(), targets))
        weights.append(task.metric_weights(targets))
    ceiling = evaluate_baselines(wanted, RunContext.of(coarse)).ceilings["ceiling, layer 1"]
    finer = evaluate_baselines(wanted, RunContext.of(plane)).ceilings["ceiling, layer 1"]
    for name in (
        "skill",
        "cosine skill",
        "moving skill",
        "skill, next frame",
        "cosine skill, 0.5 s",
    ):
        reached = np.average(
            [score[name][0] for score in scores], weights=[weight[name][0] for weight in weights]
        )
        assert 1 - reached == pytest.approx(1 - ceiling[name].score, rel=0.1), name
        assert ceiling[name].score < 0.99 < 0.99999 < finer[name].score < 1


def test_truth_without_a_batch_has_the_tokens_of_the_last_layer(plane, runs):
    task = recipe()

    windows = Windows(plane, plane.manifest, "val", task.windows, make_task(task, ()), list(LAYERS))
    ref = next(iter(windows.order.evaluation()))
    truth, batch = windows.truth([ref]), windows.read([ref])
    device_batch = windows.on_device(batch, RunContext.of(plane).device)
    assert np.array_equal(truth[TOKENS], device_batch.patches[1].numpy())
    assert all(np.array_equal(truth[name], array) for name, array in batch.targets.items())


def test_parts_of_a_batch_add_up_to_its_loss(plane, tmp_path):
    whole = train(recipe(), plane, tmp_path / "whole")
    parts = train(recipe(**{"training.accumulate": 2}), plane, tmp_path / "parts")
    assert_close = np.testing.assert_allclose
    for one, other in zip(final(whole).values(), final(parts).values(), strict=True):
        assert_close(one.numpy(), other.numpy(), atol=2e-5)


def test_a_run_that_goes_on_has_what_its_loss_is_measured_by(plane, tmp_path, monkeypatch):
    """From its checkpoint: training videos are not looked at again for it."""
    settings = {"training.steps": 3, "training.checkpoint_every": 1}
    undisturbed = train(recipe(**settings), plane, tmp_path / "whole")
    with pytest.raises(Stop):
        train(recipe(**settings), plane, tmp_path / "stopped", on_progress=stop_at(2))
    monkeypatch.setattr(setup, "trivial_statistics", None)
    resumed = train(recipe(**settings), plane, tmp_path / "stopped")
    assert_same(final(resumed), final(undisturbed))
    assert final(resumed)["model.readouts.streaming.change_K"].min() > 0


def test_a_stream_tells_how_far_tokens_will_go(runs, plane):
    path = plane.manifest.root / plane.manifest.clips[0].source
    stream = Stream(runs[0])
    seen = list(stream.follow(path))
    assert len(seen) == 12
    said = stream.task.plain(seen[0].answer, seen[0].affine_23)
    assert list(said["changes"]) == ["0.25", "0.5"]
    assert all(change >= 0 for change in said["changes"].values())


def test_predictability_is_told_of_every_layer_at_the_horizons_that_clips_hold(plane):
    found = predictability(RunContext.of(plane))
    assert [metric.at for metric in found.metrics if metric.at][:3] == [
        "next frame",
        "0.25 s",
        "0.5 s",
    ]
    names = [f"{name}, layer {layer}" for layer in LAYERS for name in ("damped", "linear", "mean")]
    assert list(found.baselines) == ["trivial", *names]
    assert list(found.ceilings) == [f"ceiling, layer {layer}" for layer in LAYERS]
    assert {
        each.score for each in found.baselines["trivial"].metrics.values() if each.score <= 0
    } == {0}
    assert found.baselines["damped, layer 1"].metrics["skill"].score > 0
    one = predictability(RunContext.of(plane), ahead_s=[0.3], fps=10)
    assert [metric.at for metric in one.metrics if metric.at][:2] == ["next frame", "0.3 s"]


def test_horizons_that_no_clip_holds_are_refused_before_training(plane, tmp_path):
    long = {"task.horizons_s": [0.25, 1.5], "windows.frames": 26}
    with pytest.raises(BadInput, match=r"anything to score in 'skill, 1\.5 s'"):
        train(recipe(**long), plane, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_page_draws_the_skill_over_its_horizons(runs, plane, tmp_path):
    evaluate(runs[0], plane)
    report([runs[0]], tmp_path)
    plots = {file.stem for file in tmp_path.glob("places_*.png")}
    assert plots == {"places_skill", "places_cosine_skill", "places_raw_skill"}
    assert "Raw skill" in (tmp_path / "report.md").read_text()
