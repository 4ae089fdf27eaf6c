"""Runs side by side: each is bit for bit what it would be alone, whoever stops, fails or joins
beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.material import FPS
from support.training import Stop, assert_same, final, recipe, stop_at

from pipeline.config import plugins
from pipeline.config.recipe import Recipe, WindowSettings
from pipeline.errors import BadInput
from pipeline.train.evaluate import evaluate, evaluate_together
from pipeline.train.loop import TrainLoop, train, train_together
from pipeline.train.run import read_metrics
from pipeline.train.setup import RunContext, make_trainers, open_windows
from pipeline.train.windows.index import share_of_videos
from pipeline.train.windows.windows import Windows

OTHERS = {
    "gru": {},
    "seed": {"training": {"seed": 7}},
    "identity": {"temporal": {"name": "identity"}},
    "mixed": {
        "temporal": {"name": "gated_mamba_mix", "layers": 1, "heads": 2},
        "training": {"learning_rate": 1e-3},
    },
    "last": {"model": {"mixer": "last", "width": 8}},
    "layer": {"model": {"layers": [2]}},
    "short": {"training": {"steps": 7}},
    "rarely": {"training": {"evaluate_every": 5, "checkpoint_every": 3}},
    "readout": {"task": {"readout_width": 8, "supervise": "last"}},
}


def changed(one, changes):
    """`one` with other tables: unlike `recipe`, a table is replaced as a whole where it names a
    plug-in."""
    table = one.canonical()
    table |= {
        key: value if "name" in value else table[key] | value for key, value in changes.items()
    }
    return plugins.validate(Recipe, table, "test")


def together(material, folder, names, **rest):
    recipes = {folder / name: recipe(**OTHERS[name]) for name in names}
    return dict(
        zip(names, train_together(recipes, RunContext.of(material.cache), **rest), strict=True)
    )


@pytest.fixture(scope="module")
def alone(material, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return {
        name: train(recipe(**changes), material.cache, folder / name)
        for name, changes in OTHERS.items()
    }


def assert_as_alone(run, alone):
    assert_same(final(run), final(alone))
    assert_same(run.tensors("best"), alone.tensors("best"))
    assert read_metrics(run.path) == read_metrics(alone.path)
    assert run.header.identity() == alone.header.identity()


@pytest.mark.slow
def test_runs_side_by_side_are_what_they_are_alone(material, alone, tmp_path):
    for name, run in together(material, tmp_path, list(OTHERS)).items():
        assert_as_alone(run, alone[name])


def test_stopped_runs_go_on_side_by_side_from_wherever_they_are(material, alone, tmp_path):
    with pytest.raises(Stop):
        together(material, tmp_path, ["gru", "mixed", "rarely"], on_progress=stop_at(8))
    with pytest.raises(
        Stop
    ):  # two stand at steps 5 and 6 of 12, and a third joins that has not begun
        together(material, tmp_path, ["gru", "rarely", "identity"], on_progress=stop_at(7))
    for name, run in together(
        material, tmp_path, ["gru", "mixed", "rarely", "identity", "short"]
    ).items():
        assert_as_alone(run, alone[name])


def test_a_run_that_cannot_go_on_leaves_the_others_as_they_are(material, alone, tmp_path):
    wild = recipe(training={"learning_rate": 1e30, "clip_norm": 1e30, "warmup_steps": 0})
    recipes = {
        tmp_path / "gru": recipe(),
        tmp_path / "wild": wild,
        tmp_path / "seed": recipe(**OTHERS["seed"]),
    }
    failed = []
    runs = train_together(
        recipes,
        RunContext.of(material.cache),
        on_failure=lambda trainer, error: failed.append((trainer, error)),
    )
    assert_as_alone(runs[0], alone["gru"])
    assert_as_alone(runs[2], alone["seed"])
    ((trainer, error),) = failed
    assert trainer.run.path == runs[1].path and "not finite" in error.reason
    assert [line["step"] for line in read_metrics(runs[1].path)] == list(range(1, error.step))


def test_a_mistake_of_the_model_is_no_failed_run(material, tmp_path):
    """Only tokens that are not finite stop a run of several; a wrong width is raised."""
    recipes, context = {tmp_path / "gru": recipe()}, RunContext.of(material.cache)
    tasks, windows, held_out = open_windows(list(recipes.values()), context)
    (trainer,) = make_trainers(recipes, tasks, windows, context)
    trainer.model.temporal.width += 1
    failed = []
    loop = TrainLoop(
        [trainer],
        windows,
        held_out,
        context,
        on_failure=lambda trainer, error: failed.append(error),
    )
    with pytest.raises(BadInput, match=r"wanted tokens \(B, T, N, D\) with D = 13, found"):
        loop.fit()
    assert not failed


def test_scores_are_the_same_from_one_read(material, alone):
    expected = [evaluate(run, material.cache) for run in alone.values()]
    assert evaluate_together(list(alone.values()), RunContext.of(material.cache)) == expected


def test_recipes_that_want_other_windows_are_refused(material, tmp_path):
    for changes, key in (
        ({"windows": {"frames": 3}}, "windows.frames"),
        ({"training": {"batch_size": 2}}, "training.batch_size"),
        ({"task": {"name": "boxes"}}, "task.name"),
    ):
        with pytest.raises(BadInput, match=f"cannot share windows: .*{key}: "):
            train_together(
                {tmp_path / "a": recipe(), tmp_path / "b": changed(recipe(), changes)},
                RunContext.of(material.cache),
            )
    assert not list(tmp_path.iterdir())


TRUTH = {
    "boxes": np.tile(np.array([0.1, 0.1, 0.5, 0.5], np.float32), (4, 3, 1)),
    "boxes_valid": np.ones((4, 3), bool),
    "points": np.full((4, 5, 2), 0.5, np.float32),
    "points_valid": np.ones((4, 5), bool),
    "visible": np.ones((4, 5), bool),
    "depth_m": np.ones((4, 32, 32), np.float32),
    "pose": np.tile(np.eye(4), (4, 1, 1)),
    "pose_valid": np.ones(4, bool),
    "label": np.array(0),
    "seen_s": 0.5 * np.arange(4),
    "question": np.zeros((3, 8), np.float32),
    "question_valid": np.ones(3, bool),
    "is_answered": np.array(True),
    "choices": np.zeros((2, 8), np.float32),
    "choice": np.array(0),
}
UNUSUAL = {
    "size_px": 32,
    "patch_px": 16,
    "queries": "strided",
    "unknown": "occluded",
    "points": 2,
    "objects": 1,
    "answers": "choices",
}


class Watched:
    """Settings that know what was asked of them."""

    def __init__(self, inner):
        self.inner, self.seen = inner, set()

    def __getattr__(self, key):
        self.seen.add(key)
        return getattr(self.inner, key)


@pytest.mark.parametrize("name", plugins.names("task"))
@pytest.mark.parametrize("changes", [{}, UNUSUAL, {"train_queries": "random"}])
@pytest.mark.parametrize("in_training", [True, False])
def test_truth_depends_on_no_other_setting_than_those_that_are_named(name, changes, in_training):
    plugin = plugins.load("task", name)
    fields = plugin.Settings.model_fields
    required = {"min_m": 0.1, "max_m": 9.0}
    chosen = {key: value for key, value in (required | changes).items() if key in fields}
    task = plugin(plugin.Settings(**chosen), ("1", "2"))
    task.settings = watched = Watched(task.settings)
    task.prepare(
        {key: array.copy() for key, array in TRUTH.items()},
        np.random.default_rng(0) if in_training else None,
    )
    assert task.dense_px is None or task.dense_px > 0
    assert watched.seen <= set(plugin.truth_settings) <= set(fields)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["mlp", "last", "norm", "concat"])
@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_gives_the_losses_of_the_whole(material, tmp_path, mixer, parts):
    changes = {"model": {"mixer": mixer}}
    whole = train(recipe(**changes), material.cache, tmp_path / "whole")
    cut = train(recipe(**changes, training={"accumulate": parts}), material.cache, tmp_path / "cut")
    for a, b in zip(read_metrics(whole.path), read_metrics(cut.path), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-3)
    for name, tensor in final(whole).items():
        if name.startswith("model."):
            torch.testing.assert_close(final(cut)[name], tensor, rtol=1e-2, atol=1e-4)


def test_a_batch_that_does_not_divide_is_refused(material, tmp_path):
    with pytest.raises(BadInput, match=r"batch_size 4 is no multiple of 1 processes x 3 parts"):
        train(recipe(training={"accumulate": 3}), material.cache, tmp_path / "run")


def test_a_layer_that_the_cache_lacks_is_named(material, tmp_path):
    with pytest.raises(BadInput, match=r"recipe 'test' reads layer 3, the cache has 2, 5"):
        train(recipe(model={"layers": [3, 5]}), material.cache, tmp_path / "run")


def test_shares_of_the_training_videos_are_nested_and_of_every_label_alike(material):
    clips = [clip for clip in material.manifest.clips if clip.split == "train"]
    label_of = {clip.video_id: clip.label for clip in clips}
    shares = [share_of_videos(clips, fraction, 3) for fraction in (0.5, 0.9, 1.0)]
    for smaller, larger in zip(shares, shares[1:], strict=False):
        assert smaller <= larger
    assert all({label_of[video] for video in share} == set(label_of.values()) for share in shares)
    assert shares[-1] == set(label_of)
    assert shares == [share_of_videos(clips[::-1], fraction, 3) for fraction in (0.5, 0.9, 1.0)]


def test_a_share_counts_for_training_and_not_for_evaluation(material):
    few, whole = (
        WindowSettings(frames=2, fps=FPS, train_fraction=fraction) for fraction in (0.5, 1.0)
    )
    sizes = [
        len(Windows(material.cache, material.manifest, "train", settings))
        for settings in (few, whole)
    ]
    assert sizes[0] == 2 < sizes[1]
    ours, theirs = (
        Windows(material.cache, material.manifest, "val", settings) for settings in (few, whole)
    )
    assert ours.index.clips == theirs.index.clips


def test_evaluation_may_see_longer_windows_than_training(material, tmp_path):
    wanted = recipe(task={"forms": ["streaming"]}, windows={"eval_frames": 7})
    windows = [
        Windows(material.cache, material.manifest, split, wanted.windows)
        for split in ("train", "val")
    ]
    assert [one.read([one.order.sample(0)]).time_s_BT.shape for one in windows] == [(1, 4), (1, 7)]
    run = train(wanted, material.cache, tmp_path / "run")
    assert evaluate(run, material.cache).forms.keys() == {"streaming"}
    usual = train(recipe(task={"forms": ["streaming"]}), material.cache, tmp_path / "usual")
    ours, theirs = ([line["loss"] for line in read_metrics(one.path)] for one in (run, usual))
    assert ours == theirs


def test_a_window_form_refuses_other_windows_in_evaluation(material, tmp_path):
    with pytest.raises(
        BadInput,
        match="the form 'window' reads 4 frames at once, no other number; windows.eval_frames is 7",
    ):
        train(recipe(windows={"eval_frames": 7}), material.cache, tmp_path / "run")
