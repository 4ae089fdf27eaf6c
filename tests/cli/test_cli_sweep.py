"""Sweeps on the command line: shipped ones hold what they promise, wrong input is one line, pages name every reference."""

from __future__ import annotations

import csv

import matplotlib
import pytest
from support.commands import SPEC, assert_refused, call, fine

from pipeline.config.shipped import shipped
from pipeline.experiments.sweep import SWEEP_FILE, Sweep
from pipeline.experiments.sweep_spec import load_sweep
from pipeline.report import axis_plots
from pipeline.report.axis_plots import (
    axes_side_by_side,
    axis_figure,
    comparable_axes,
    curves_by_axis,
)
from pipeline.report.provenance import commands
from pipeline.report.sections import page_of_data
from pipeline.report.source import read_sweep
from pipeline.report.style import FULL_INCHES, HALF_INCHES, STYLE
from pipeline.train.run import Run

FACTORS = """
recipe = "demo_boxes"
reference = { temporal = "identity" }
settings = [
    { cache = "long", temporal = "identity", "windows.eval_frames" = 2 },
    { cache = "long", temporal = "identity", "windows.eval_frames" = 6 },
    { cache = "long", temporal = "gru", "windows.eval_frames" = 2 },
    { cache = "long", temporal = "gru", "windows.eval_frames" = 6 },
]
[changes]
windows = { frames = 2, fps = 6 }
training = { steps = 2, batch_size = 2, evaluate_every = 2, warmup_steps = 0 }
model = { width = 8 }
task = { readout_width = 8, heads = 2, hidden = 8 }
[axes]
cache = ["given", "hidden"]
temporal = ["identity", "gru"]
[caches.hidden]
data = { occlusion = 1 }
[caches.long]
data = { frames = 12 }
"""


def test_rates_are_compared_over_the_same_seconds():
    settings = load_sweep(shipped("sweep")["frame_rate"]).grid_points
    windows = [next(iter(one.members.values())).windows for one in settings]
    assert {(one.frames - 1) / one.fps for one in windows} == {1.5}
    assert sorted({one.fps for one in windows}) == [
        2,
        4,
        12,
    ]  # all are frames of a cache of 12 a second


def test_length_is_asked_up_to_hundreds_of_frames():
    found = {one.name: one for one in load_sweep(shipped("sweep")["motion_factors"]).grid_points}
    long = {name: one for name, one in found.items() if one.cache == "frames_384"}
    assert len(long) == 16 and len(found) == 60
    for one in long.values():
        recipe = next(iter(one.members.values()))
        assert recipe.task.settings.forms == ("streaming",)
        assert recipe.windows.frames == 8 and recipe.windows.eval_frames in (8, 24, 96, 192)
        assert (recipe.windows.eval_frames - 1) / recipe.windows.fps <= 383 / 12
        assert found[one.reference].values == one.values | {"temporal": "identity"}
    for one in found.values():
        assert found[one.reference].values == one.values | {"temporal": "identity"}


def test_a_given_axis_chooses_among_settings_too():
    path = shipped("sweep")["motion_factors"]
    spec = load_sweep(path, axes={"cache": ["given", "speed_1"], "temporal": ["identity", "gru"]})
    assert [one.name for one in spec.grid_points] == [
        "given, identity",
        "given, gru",
        "speed_1, identity",
        "speed_1, gru",
    ]
    few = load_sweep(path, axes={"temporal": ["identity", "gru"]})
    assert {one["temporal"] for one in few.settings} == {"identity", "gru"} and len(
        few.settings
    ) == 8
    assert len(load_sweep(path, axes={"model.width": [8]}).settings) == 16
    lengths = {
        "cache": ["frames_384"],
        "temporal": ["identity", "gru"],
        "windows.eval_frames": [8, 48],
    }
    names = [
        f"frames_384, {module}, eval_frames {frames}"
        for module in ("identity", "gru")
        for frames in (8, 48)
    ]
    assert [one.name for one in load_sweep(path, axes=lengths).grid_points] == names


def test_another_recipe_takes_the_place_of_the_sweeps_own():
    own, other = (
        load_sweep(shipped("sweep")["label_efficiency"], recipe=recipe).grid_points
        for recipe in (None, shipped("recipe")["demo_depth"])
    )
    assert [one.name for one in own] == [one.name for one in other]
    tasks = [
        {member.task.name for one in points for member in one.members.values()}
        for points in (own, other)
    ]
    assert tasks == [{"classify"}, {"depth"}]


def test_labels_are_counted_over_any_number_of_steps():
    spec = load_sweep(shipped("sweep")["label_efficiency"], axes={"training.steps": [150]})
    found = {one.name: one for one in spec.grid_points}
    assert len(found) == 5 * 4
    assert all(
        one.values["init"] == "none"
        for one in map(found.get, {one.reference for one in found.values()})
    )
    assert found["pre-trained, frozen, steps 150, train_fraction 0.1"].reference == (
        "init none, steps 150, train_fraction 0.1"
    )


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["temporal_module"],
            ["no sweep called 'temporal_module'", "did you mean 'temporal_modules'?"],
        ),
        (
            ["temporal_modules", "--axis", "temporal=gru"],
            ["wants a list, found 'gru'", "--axis 'temporal=[\"gru\"]'"],
        ),
        (
            ["temporal_modules", "--axis", "temporal=[gru]"],
            ["wants a list, found '[gru]'", "'temporal=[\"gru\"]'"],
        ),
        (
            ["temporal_modules", "--axis", "windows.fps=4"],
            ["wants a list, found 4", "'windows.fps=[4]'"],
        ),
        (["temporal_modules", "--seeds", "0"], ["--seeds", "greater than or equal to 1"]),
        (
            ["temporal_modules", "--axis", "model.layers=[[7]]", "--dry-run"],
            ["reads layer 7, the cache has 2, 5"],
        ),
        (
            ["temporal_modules", "--set", "cache=0123456789ab", "--dry-run"],
            ["wants the cache with fingerprint 0123456789ab"],
        ),
        (
            ["motion_factors", "--dry-run"],
            ["data set 'folder'", "renders none", "--set scene=room"],
        ),
    ],
)
def test_wrong_input_is_one_line(place, arguments, parts, tmp_path):
    name, *options = arguments
    assert_refused(call("sweep", name, place.cache, "--out", tmp_path / "sweep", *options), *parts)
    assert not (tmp_path / "sweep").exists()


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A cache of a small room world, and a sweep over dials and lengths of it. Read only."""
    folder = tmp_path_factory.mktemp("factors")
    (folder / "address.toml").write_text(SPEC)
    (folder / "factors.toml").write_text(FACTORS)
    world = ["scene=room", "clips_per_class=2", "val_fraction=0.5", "size_px=64", "frames=6"]
    sets = [part for one in world for part in ("--set", one)]
    fine("manifest", "world", "--out", folder / "data", *sets)
    fine("extract", folder / "address.toml", folder / "data", "--out", folder / "caches")
    (cache,) = (folder / "caches").iterdir()
    result = call("sweep", folder / "factors.toml", cache, "--out", folder / "sweep", "--json")
    assert result.code == 0, result
    return folder, cache, result.json


@pytest.mark.slow
def test_each_setting_is_told_beside_its_own_reference(room):
    folder, _, told = room
    (summary,) = told["summaries"].values()
    references = {one["name"]: one["reference"] for one in summary["settings"]}
    rows = list(csv.DictReader((folder / "sweep/report/scores.csv").read_text().splitlines()))
    assert {row["setting"] for row in rows if row["is_reference"] == "True"} == {
        name for name, reference in references.items() if name == reference
    }
    assert all(
        row["reference"] == references[row["setting"]]
        for row in rows
        if row["is_reference"] == "False"
    )
    text = (folder / "sweep/report/report.md").read_text()
    assert "| over |" in text and text.count("hidden, identity") >= 2


@pytest.mark.slow
def test_curves_run_from_the_videos_at_rest_to_the_hard_ones(room):
    folder, _, _ = room
    (data,) = read_sweep(folder / "sweep", "val")
    curves = curves_by_axis(data)
    assert list(curves) and set(curves) == {"occlusion", "windows.eval_frames"}
    score = {one.name: one.intervals["streaming"].score for one in data.ranked()}
    lines = {
        line.get_label(): line
        for line in axis_figure(data, "occlusion", curves["occlusion"]).axes[0].lines
    }
    assert list(lines["gru"].get_xdata()) == [0, 1]
    assert list(lines["gru"].get_ydata()) == [score["given, gru"], score["hidden, gru"]]
    trivial = {one.name: data.trivial(one) for one in data.ranked()}
    assert list(lines["trivial answer"].get_ydata()) == [
        trivial["given, gru"],
        trivial["hidden, gru"],
    ]
    axis = "windows.eval_frames"
    lengths = {
        line.get_label(): line for line in axis_figure(data, axis, curves[axis]).axes[0].lines
    }
    assert list(lengths["identity"].get_xdata()) == [2, 6]


@pytest.mark.slow
@pytest.mark.parametrize(("width_inches", "columns"), [(FULL_INCHES, 3), (HALF_INCHES, 2)])
def test_factors_stand_side_by_side_with_their_gains(room, width_inches, columns):
    (data,) = read_sweep(room[0] / "sweep", "val")
    curves = comparable_axes(curves_by_axis(data))
    assert list(curves) == ["occlusion", "windows.eval_frames"]
    panels = axes_side_by_side(data, curves | {"once_more": curves["occlusion"]}, width_inches).axes
    assert (
        len(panels) == 6 and len({one.get_subplotspec().colspan.start for one in panels}) == columns
    )
    score, gain = panels[0], panels[columns]
    assert [score.get_title(), panels[1].get_title(), gain.get_title()] == [
        "occlusion",
        "eval_frames",
        "",
    ]
    assert score.get_ylim() == panels[1].get_ylim() and gain.get_xlim() == score.get_xlim()
    assert score.get_ylabel() == "mIoU, streaming" and gain.get_ylabel() == "gain over identity"
    over = {
        one.name: one.comparisons["streaming"].gain.score
        for one in data.ranked()
        if one.comparisons
    }
    assert [over["given, gru"], over["hidden, gru"]] in [
        list(line.get_ydata()) for line in gain.lines
    ]


@pytest.mark.slow
def test_axes_that_do_not_stand_side_by_side_are_named_on_the_page(room, tmp_path, monkeypatch):
    (data,) = read_sweep(room[0] / "sweep", "val")
    curves = curves_by_axis(data)
    names = list(curves["occlusion"])
    alone = curves | {"speed": {names[0]: curves["occlusion"][names[0]]}}
    assert list(comparable_axes(alone)) == list(curves)
    monkeypatch.setattr(axis_plots, "curves_by_axis", lambda data: alone)
    with matplotlib.rc_context(STYLE):
        plots = page_of_data(data, tmp_path).plots["axes"]
    assert [plot.name for plot in plots] == ["factors", "over_speed"]
    assert "stand alone below: speed." in plots[0].caption
    monkeypatch.undo()
    text = (room[0] / "sweep/report/report.html").read_text(encoding="utf-8")
    assert "stand alone below" not in text


@pytest.mark.slow
def test_of_several_questions_none_is_the_best(room):
    text = (room[0] / "sweep/report/report.md").read_text()
    assert "of 4 settings are significantly better than the reference of each" in text
    assert "has the best" not in text and "was chosen on the clips" not in text


def test_a_scene_without_the_dial_is_refused_before_anything_is_rendered(room, tmp_path):
    folder, cache, _ = room
    text = (folder / "factors.toml").read_text().replace("occlusion = 1", "occlusion = 2")
    (tmp_path / "wrong.toml").write_text(text)
    for options in ([], ["--dry-run"]):
        result = call(
            "sweep", tmp_path / "wrong.toml", cache, "--out", tmp_path / "sweep", *options
        )
        assert_refused(
            result,
            "cache 'hidden' of the sweep",
            "occlusion",
            "less than or equal to 1",
            "--set scene=room",
        )
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_a_page_says_what_it_was_made_by_and_lives_without_its_cache(room, tmp_path):
    folder, cache, _ = room
    moved = cache.rename(cache.with_name("moved"))
    try:
        result = call("report", folder / "sweep", "--out", tmp_path)
    finally:
        moved.rename(cache)
    assert result.code == 0, result
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (
        f"stillframe sweep {folder / 'sweep' / SWEEP_FILE} {cache} --out {folder / 'sweep'}" in html
    )
    assert (tmp_path / "over_windows.eval_frames.png").is_file()


@pytest.mark.slow
def test_the_command_of_a_page_makes_the_same_sweep_with_all_that_was_laid_over_it(place, tmp_path):
    """From another folder than it was made in, and on top of it what is asked for now."""
    changes = [
        "--set",
        "training.steps=2",
        "--set",
        "training.evaluate_every=2",
        "--set",
        "training.warmup_steps=0",
        "--set",
        "windows.fps=5",  # of the 10 of the videos: even, of which nothing is said
    ]
    axes = ["--axis", 'temporal=["identity", "gru"]', "--axis", "model.width=[8, 12]"]
    made = tmp_path / "made"
    fine("sweep", "temporal_modules", place.cache, *changes, *axes, "--seeds", "2", "--out", made)
    (command,) = [
        line for line in commands(read_sweep(made, "val")[0]) if line.startswith("stillframe sweep")
    ]
    _, *arguments = command.split()
    assert arguments == ["sweep", str(made / SWEEP_FILE), str(place.cache), "--out", str(made)]
    fine(*arguments[:-1], tmp_path / "again")
    first, second = (Sweep(folder) for folder in (made, tmp_path / "again"))
    assert second.header == first.header and len(second.members) == 8
    assert [Run(member.path).recipe for member in second.members] == [
        Run(member.path).recipe for member in first.members
    ]
    scores = [
        [one.scores for one in sweep.summaries["classify"].settings] for sweep in (first, second)
    ]
    assert scores[0] == scores[1]
    planned = fine(
        *arguments[:-1],
        tmp_path / "more",
        "--seeds",
        "3",
        "--set",
        "model.layers=[5]",
        "--dry-run",
        "--json",
    ).json
    assert len(planned["members"]) == 12
    assert all(one["recipe"]["training"]["steps"] == 2 for one in planned["members"])
    assert all(one["recipe"]["model"]["layers"] == [5] for one in planned["members"])


def test_a_sweep_file_that_is_none_is_named(place, tmp_path):
    assert_refused(
        call("sweep", tmp_path / "sweep.json", place.cache), tmp_path / "sweep.json", "No such file"
    )
    (tmp_path / "sweep.json").write_text('{"format_version": 9}')
    assert_refused(
        call("sweep", tmp_path / "sweep.json", place.cache), "has format 9", "upgrade stillframe"
    )
    assert not (tmp_path / "over_occlusion.png").exists()  # nobody knows what its dials were
