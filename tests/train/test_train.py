"""Stage two: a killed run ends as an undisturbed one, identity cannot tell what only time tells,
wrong input is named."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.commands import assert_refused, call
from support.material import THREADS, address_spec, write_video
from support.training import Stop, assert_same, final, recipe, stop_at

from pipeline.cache.cache import Cache
from pipeline.cache.layout import receipt_name
from pipeline.cli.show import show_scores
from pipeline.config import plugins
from pipeline.config.recipe import TrainingSettings
from pipeline.datasets.manifest import manifest
from pipeline.errors import BadInput, StillframeError
from pipeline.extract import extract
from pipeline.report.predictions import answers
from pipeline.report.source import read_runs
from pipeline.train.bootstrap import Interval, interval
from pipeline.train.evaluate import evaluate
from pipeline.train.evaluation import Evaluation, difference, read_evaluation
from pipeline.train.loop import train
from pipeline.train.run import UNDER_TRAINED, Run, loss_fall, read_metrics
from pipeline.train.stream import Stream
from pipeline.train.trainer import learning_rate, steps_of
from pipeline.train.windows.windows import Windows


def first(result: Evaluation) -> dict[str, Interval]:
    """form -> score of the first metric."""
    return {form: scores["top-1"] for form, scores in result.forms.items()}


@pytest.fixture(scope="module", params=plugins.names("temporal"))
def whole(request, material, tmp_path_factory) -> Run:
    """An undisturbed run of each temporal module."""
    fields = plugins.load("temporal", request.param).Settings.model_fields
    small = {key: value for key, value in {"layers": 1, "heads": 2}.items() if key in fields}
    wanted = recipe(temporal={"name": request.param, **small})
    return train(wanted, material.cache, tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 5, 11])
def test_a_stopped_run_ends_with_the_weights_of_an_undisturbed_one(material, whole, tmp_path, step):
    with pytest.raises(Stop):
        train(whole.recipe, material.cache, tmp_path / "stopped", on_progress=stop_at(step))
    again = train(whole.recipe, material.cache, tmp_path / "stopped")
    assert_same(final(whole), final(again))
    assert_same(whole.tensors("best"), again.tensors("best"))
    assert read_metrics(whole.path) == read_metrics(again.path)


def test_a_run_killed_by_the_system_goes_on(material, tmp_path):
    whole = train(recipe(), material.cache, tmp_path / "whole")
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "import torch\n"
        f"torch.set_num_threads({THREADS})\n"
        "from pipeline.config import plugins\n"
        "from pipeline.cache.cache import Cache\n"
        "from pipeline.config.recipe import Recipe\n"
        "from pipeline.train.loop import train\n"
        "recipe = plugins.validate(Recipe, json.loads(sys.argv[1]), 'test')\n"
        "train(recipe, Cache(Path(sys.argv[2])), Path(sys.argv[3]))\n"
    )
    arguments = [
        json.dumps(recipe().canonical()),
        str(material.cache.path),
        str(tmp_path / "killed"),
    ]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments])
    while process.poll() is None and not (tmp_path / "killed" / "last.json").exists():
        time.sleep(0.002)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert_same(final(whole), final(train(recipe(), material.cache, tmp_path / "killed")))


def test_only_the_newest_checkpoint_files_are_kept(material, tmp_path):
    run = train(recipe(), material.cache, tmp_path / "run")
    files = sorted(path.name for path in run.path.glob("*.safetensors"))
    assert len(files) == 2 and "last-000012.safetensors" in files
    assert run.checkpoint("last").step == 12


def test_a_finished_run_is_left_alone(material, tmp_path):
    run = train(recipe(), material.cache, tmp_path / "run")
    before = (run.path / "metrics.jsonl").read_bytes()
    steps = []
    train(
        recipe(),
        material.cache,
        tmp_path / "run",
        on_progress=lambda state: steps.append(state.step),
    )
    assert not steps and (run.path / "metrics.jsonl").read_bytes() == before


def test_metrics_have_a_line_for_every_step(material, tmp_path):
    lines = read_metrics(train(recipe(), material.cache, tmp_path / "run").path)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["step"] for line in lines if "val" in line] == [6, 12]
    for line in lines:
        assert line["loss"] == pytest.approx(sum(line["losses"].values()), rel=1e-5)
        assert line["gradient_norm"] > 0


@pytest.fixture(scope="module")
def brightening(tmp_path_factory):
    """Clips that grow brighter or darker; each frame alone is equally likely in both."""
    root = tmp_path_factory.mktemp("ramp")
    levels = np.linspace(40, 215, 8).astype(np.uint8)
    for number in range(24):
        for label, order in (("up", levels), ("down", levels[::-1])):
            shifted = np.roll(
                order, number
            )  # the ramp wraps, so that no frame's place tells either
            write_video(
                root / label / f"{number:02d}.mp4",
                [np.full((64, 64, 3), level, np.uint8) for level in shifted],
            )
    built = manifest.build(
        "folder", root, tmp_path_factory.mktemp("ramp_manifest"), {"val_fraction": 0.25}
    )
    spec = address_spec(
        encoder={
            "name": "transformers",
            "layers": [0],
            "seed": 0,
            "config": {
                "model_type": "vit",
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "patch_size": 32,
                "image_size": 64,
            },
        },
        store={"store_mb": 1, "shard_mb": 1},
    )
    return extract.extract(spec, built, tmp_path_factory.mktemp("ramp_cache"))


@pytest.mark.slow
def test_time_is_learned_by_a_temporal_module_and_not_by_identity(brightening, tmp_path):
    scores = {}
    for name in ("identity", "gru"):
        wanted = recipe(
            task={"forms": ["streaming"]},
            temporal={"name": name},
            windows={"frames": 6},
            training={
                "steps": 150,
                "batch_size": 16,
                "learning_rate": 0.01,
                "warmup_steps": 5,
                "evaluate_every": 150,
            },
        )
        run = train(wanted, brightening, tmp_path / name)
        scores[name] = evaluate(run, brightening).forms["streaming"]["top-1"]
    assert scores["gru"].score >= 0.9 and scores["gru"].low > 0.6
    assert scores["identity"].score <= 0.75
    assert scores["identity"].low <= 0.5


def test_evaluation_is_written_and_adds_up(material, tmp_path):
    run = train(recipe(windows={"eval_windows": 3}), material.cache, tmp_path / "run")
    result = evaluate(run, material.cache)
    assert json.loads((run.path / "evaluation-val.json").read_text()) == result.model_dump(
        mode="json"
    )
    assert read_evaluation(run.path, "val") == result
    for form, values in first(result).items():
        scores = [clip.scores[form] for clip in result.clips.values()]
        assert values.score == pytest.approx(np.mean(scores))
        assert values.low <= values.score <= values.high
        assert load_file(run.path / "answers-val.safetensors")[form].shape == (
            3 * result.clips_scored,
            2,
        )
    assert result.clips_scored == len(material.manifest.split("val"))
    val = next(line["val"] for line in reversed(read_metrics(run.path)) if "val" in line)
    assert val == pytest.approx({form: values.score for form, values in first(result).items()})


def test_the_fall_of_a_loss_is_a_share_of_the_trivial_one_or_of_the_first(tmp_path):
    losses = [1.5, 1.4, 1.3, 1.2, 1.1, *np.linspace(1, 0.5, 15)]
    lines = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    end = (losses[-1] + losses[-2]) / 2
    assert loss_fall(tmp_path, 20, 2.0) == pytest.approx(1 - end / 2)
    assert loss_fall(tmp_path, 20, None) == pytest.approx(1 - end / 1.3)
    assert loss_fall(tmp_path, 19, 2.0) is None  # too few steps to tell
    assert loss_fall(tmp_path, 20, 0.0) is None and loss_fall(tmp_path / "none", 20, 1.0) is None


def test_a_run_whose_loss_has_hardly_moved_is_called_under_trained(material, tmp_path, capsys):
    """A rate so low that nothing is learned, beside one that is not."""
    falls = {}
    for name, rate in (("slow", 1e-12), ("quick", 1e-2)):
        training = {"learning_rate": rate, "min_learning_rate": 0.0, "steps": 30}
        run = train(recipe(training=training), material.cache, tmp_path / name)
        result = evaluate(run, material.cache)
        falls[name] = result.loss_fall
        losses = [line["loss"] for line in read_metrics(run.path)]
        labels = [clip.label for clip in material.manifest.clips if clip.split == "train"]
        share = np.unique(labels, return_counts=True)[1] / len(labels)
        trivial = -2 * (share * np.log(share)).sum()  # two forms
        assert result.loss_fall == pytest.approx(1 - np.mean(losses[-3:]) / trivial)
        show_scores([result])
        assert ("under-trained" in capsys.readouterr().err) == (name == "slow")
    assert falls["slow"] < UNDER_TRAINED < falls["quick"]


def test_interval_resamples_videos_not_clips():
    scores = np.array([1.0, 1, 1, 1, 0, 0, 0, 0])
    alone = interval(scores, list("abcdefgh"))
    grouped = interval(scores, list("aaaabbbb"))
    assert alone.score == grouped.score == 0.5
    assert (grouped.low, grouped.high) == (0, 1)
    assert 0 < alone.low < 0.5 < alone.high < 1
    assert interval(np.ones(5), list("abcde")) == Interval(score=1, low=1, high=1)
    one_video = interval(scores, list("aaaaaaaa"))
    assert one_video == Interval(score=0.5, low=None, high=None) and one_video.ends == (0.5, 0.5)


def test_interval_weighs_windows():
    scores, videos = np.array([1.0, 0, 0.5]), list("abb")
    assert interval(scores, videos, np.array([1.0, 2, 2])).score == pytest.approx(0.4)
    assert interval(scores, videos, np.array([4.0, 0, 0])).score == 1


def test_difference_is_paired(material, tmp_path):
    one, other = (
        evaluate(
            train(recipe(training={"seed": seed}), material.cache, tmp_path / str(seed)),
            material.cache,
        )
        for seed in (0, 1)
    )
    same = difference(one, one, "streaming")
    assert (same.low, same.score, same.high) == (None, 0, None)  # all clips are even
    for form in ("streaming", "window"):
        gain = difference(one, other, form)
        assert gain.score == pytest.approx(first(one)[form].score - first(other)[form].score)
        assert difference(other, one, form).score == -gain.score
    with pytest.raises(BadInput, match="were not scored on the same clips in form 'window'"):
        difference(one, other.model_copy(update={"clips": {}}), "window")


def test_interval_covers_at_its_rate():
    rng = np.random.default_rng(0)
    videos = [str(number) for number in range(60)]
    hits = 0
    for trial in range(200):
        found = interval((rng.random(60) < 0.7).astype(float), videos, seed=trial)
        hits += found.low <= 0.7 <= found.high
    assert 0.89 <= hits / 200 <= 0.99


def test_learning_rate_warms_up_and_falls_to_its_minimum():
    settings = TrainingSettings(
        steps=100, learning_rate=1.0, min_learning_rate=0.1, warmup_steps=10
    )
    rates = [learning_rate(settings, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and rates[10] == 1.0
    assert rates[99] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert math.isclose(rates[10 + 89 // 2 + 1], 0.55, abs_tol=0.02)


def test_epochs_become_steps():
    assert steps_of(TrainingSettings(epochs=3, batch_size=32), 100) == 10
    assert steps_of(TrainingSettings(epochs=0.1, batch_size=32), 10) == 1
    assert steps_of(TrainingSettings(steps=7), 10) == 7


def test_another_recipe_in_the_same_folder_is_refused(material, tmp_path):
    train(recipe(), material.cache, tmp_path / "run")
    with pytest.raises(
        BadInput,
        match=r"was made from something else; now / then: recipe.training.learning_rate: 0.1 / 0.0003",
    ):
        train(recipe(training={"learning_rate": 0.1}), material.cache, tmp_path / "run")


def test_a_run_from_before_a_setting_goes_on_and_means_its_default(material, tmp_path):
    with pytest.raises(Stop):
        train(recipe(), material.cache, tmp_path / "old", on_progress=stop_at(7))
    header = json.loads((tmp_path / "old/run.json").read_text())
    for key in ("span", "shuffle", "still"):
        del header["recipe"]["windows"][key]
    (tmp_path / "old/run.json").write_text(json.dumps(header | {"checksum": None}))
    assert train(recipe(), material.cache, tmp_path / "old").checkpoint("last").step == 12
    with pytest.raises(BadInput, match="now / then: recipe.windows.shuffle: true / false"):
        train(recipe(windows={"shuffle": True}), material.cache, tmp_path / "old")


def test_a_run_on_shuffled_frames_is_stopped_and_goes_on_and_follows_no_stream(material, tmp_path):
    shuffled = recipe(windows={"shuffle": True})
    whole = train(shuffled, material.cache, tmp_path / "whole")
    with pytest.raises(Stop):
        train(shuffled, material.cache, tmp_path / "stopped", on_progress=stop_at(5))
    again = train(shuffled, material.cache, tmp_path / "stopped")
    assert_same(final(whole), final(again))
    assert read_metrics(whole.path) == read_metrics(again.path)
    assert evaluate(whole, material.cache).forms == evaluate(again, material.cache).forms
    with pytest.raises(BadInput, match="cannot follow a stream: it was .* windows.shuffle = true"):
        Stream(whole)


def test_clips_that_count_by_length_are_trained_and_scored_by_it(material, tmp_path):
    """An epoch is all windows of all clips, a stopped run goes on, and scores weigh clips by their
    windows, as the page's confusion matrix does."""
    settings = recipe(windows={"per_clip": "length", "eval_windows": 2})
    training = settings.training.model_copy(update={"steps": None, "epochs": 1.5})
    settings = settings.model_copy(update={"training": training})
    manifest = material.manifest
    whole = train(settings, material.cache, tmp_path / "whole")
    windows = Windows(material.cache, manifest, "train", settings.windows).order.windows
    assert whole.header.clips["windows"] == windows > 2 * whole.header.clips["train"]
    steps = math.ceil(1.5 * windows / 4)
    assert whole.checkpoint("last").step == steps
    with pytest.raises(Stop):
        train(settings, material.cache, tmp_path / "cut", on_progress=stop_at(steps // 2))
    assert_same(final(train(settings, material.cache, tmp_path / "cut")), final(whole))
    result = evaluate(whole, material.cache)
    held_out = Windows(material.cache, manifest, "val", settings.windows)
    weights = {
        clip.clip_id: 2 * n
        for clip, n in zip(held_out.index.clips, held_out.order.counts, strict=True)
    }
    assert {name: clip.weight for name, clip in result.clips.items()} == weights
    mean = np.average(
        [clip.scores["window"] for clip in result.clips.values()], weights=list(weights.values())
    )
    assert result.forms["window"]["top-1"].score == pytest.approx(mean)
    (figure,) = answers(read_runs([whole], "val")).values()
    shares = figure.axes[0].images[0].get_array()[..., 3]  # of answers to each label, as ink
    assert shares.shape == (2, 2) and np.isfinite(shares).all()


def test_a_cache_of_another_fingerprint_is_refused(material, tmp_path):
    with pytest.raises(
        BadInput, match=f"wants the cache with fingerprint abc, .* has {material.cache.fingerprint}"
    ):
        train(recipe(cache="abc"), material.cache, tmp_path / "run")
    train(recipe(cache=material.cache.fingerprint[:5]), material.cache, tmp_path / "run")
    run = train(recipe(), material.cache, tmp_path / "free")
    other = extract.extract(address_spec(store={"chunk_frames": 8}), material.manifest, tmp_path)
    with pytest.raises(
        BadInput,
        match=f"was trained on the cache with fingerprint {material.cache.fingerprint}, .* {other.fingerprint}",
    ):
        evaluate(run, other)


def test_a_manifest_of_other_videos_is_refused(material, tmp_path):
    clips = tuple(
        dataclasses.replace(clip, video_id=f"new/{clip.video_id}")
        for clip in material.manifest.clips
    )
    other = dataclasses.replace(material.manifest, clips=clips)
    with pytest.raises(
        BadInput, match=r"cache .* lacks 6 videos of manifest .*, the first is new/a/v0.mp4"
    ):
        train(recipe(), material.cache, tmp_path / "run", manifest=other)


def test_other_clips_over_the_same_videos_are_welcome(material, tmp_path):
    clips = tuple(
        dataclasses.replace(
            clip, clip_id=f"{clip.clip_id} x{speed}", speed=speed, reverse=speed == 2
        )
        for clip in material.manifest.clips
        for speed in (1.0, 2.0)
    )
    other = dataclasses.replace(material.manifest, clips=clips)
    assert train(recipe(), material.cache, tmp_path / "run", manifest=other).header.clips[
        "train"
    ] == 2 * len(material.manifest.split("train"))


def test_a_damaged_store_is_refused_before_training(material, tmp_path):
    shutil.copytree(material.cache.path, tmp_path / "cache")
    shard = next((tmp_path / "cache/stores/00001.zarr/layer_5/c").rglob("0"))
    while shard.is_dir():
        shard = shard / "0"
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(
        BadInput,
        match=r"is damaged: stores/00001.zarr/layer_5/c/0/0/0: \d+ bytes, receipt says \d+",
    ):
        train(recipe(), Cache(tmp_path / "cache"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(material, tmp_path):
    wanted = recipe(training={"learning_rate": 1e30, "clip_norm": 1e30, "warmup_steps": 0})
    with pytest.raises(
        StillframeError, match=r"not finite, at step \d+ of run .*; the last checkpoint is kept"
    ):
        train(wanted, material.cache, tmp_path / "run")


def test_answers_that_are_no_numbers_are_refused_and_not_scored(material, tmp_path):
    """A readout whose weights are NaN would else name the first label for every clip."""
    run = train(recipe(training={"steps": 1}), material.cache, tmp_path / "run")
    tensors = run.tensors("last")
    for name in tensors:
        if name.startswith("model.readouts.") and name.endswith("classifier.bias"):
            tensors[name][:] = math.nan
    run.save("last", tensors, step=1, steps=1, best=None)
    result = call("evaluate", run.path)
    assert_refused(result, "numbers of the model's answers in form 'streaming' are NaN")
    assert not (run.path / "evaluation-val.json").exists()
    clip = material.manifest.clips[0]
    result = call("stream", run.path, material.manifest.root / clip.source)
    assert_refused(result, "in form 'streaming' are NaN")


def test_allow_missing_counts_what_it_leaves_out(material, tmp_path):
    shutil.copytree(material.cache.path, tmp_path / "cache")
    cache = Cache(tmp_path / "cache")
    (cache.path / receipt_name(0)).unlink()
    train_split = [clip for clip in material.manifest.clips if clip.split == "train"]
    skipped = sum(clip.video_id in cache.plan[0] for clip in train_split)
    with pytest.raises(BadInput, match="has holes"):
        train(recipe(), cache, tmp_path / "run")
    run = train(recipe(), cache, tmp_path / "run", allow_missing=True)
    assert run.header.clips == {
        "train": len(train_split) - skipped,
        "padded": 0,
        "slower": 0,
        "skipped": skipped,
    }
