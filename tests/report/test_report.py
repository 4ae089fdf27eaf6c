"""Reports: what the tables, files and pictures say, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import assert_refused, call, fine
from support.forgery import edit
from support.modules import NAMES, make

from pipeline.cache.cache import Cache
from pipeline.cache.status import FailureGroup
from pipeline.config import plugins
from pipeline.config.recipe import Recipe, load_recipe
from pipeline.experiments.summary import Summary
from pipeline.models.tasks.parts.token_colours import principal_colours
from pipeline.models.temporal.contract import Gate
from pipeline.models.video_model import VideoModel
from pipeline.records import TokenShape
from pipeline.report import axis_plots, plots, sections, style, tables
from pipeline.report.frames import token_maps
from pipeline.report.frames.token_maps import state_and_gates
from pipeline.report.page import Page, render_page
from pipeline.report.plots import front_of, mean_and_band
from pipeline.report.provenance import commands, common_part
from pipeline.report.report import report
from pipeline.report.source import find_source, read_runs, read_sweep
from pipeline.train.bootstrap import Interval
from pipeline.train.evaluation import difference
from pipeline.train.run import Run

PNG = b"\x89PNG"


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def plain_text(page: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8")))


# A sweep


@pytest.fixture(scope="module")
def summary(sweep) -> Summary:
    return Summary.model_validate_json(
        (sweep / "summary-classify.json").read_text(encoding="utf-8")
    )


def test_files_hold_the_numbers_of_the_sweep(sweep, page, summary):
    rows = rows_of(page.parent / "scores.csv")
    scored = {
        (setting.name, form): setting for setting in summary.settings for form in setting.intervals
    }
    assert len(rows) == len(scored) == 18
    markdown = (page.parent / "report.md").read_text(encoding="utf-8")
    data = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))
    for row, same in zip(rows, data["scores"], strict=True):
        setting = scored[row["setting"], row["form"]]
        found = setting.intervals[row["form"]]
        assert (float(row["score"]), float(row["low"]), float(row["high"])) == (
            found.score,
            found.low,
            found.high,
        )
        assert (float(row["flops"]), int(row["parameters"])) == (
            setting.cost.flops,
            setting.cost.parameters,
        )
        assert float(row["axis training.learning_rate"]) == setting.values["training.learning_rate"]
        if setting.name == summary.reference:
            assert row["gain"] == "" and row["is_reference"] == "True"
        else:
            comparison = setting.comparisons[row["form"]]
            assert (
                float(row["gain"]) == comparison.gain.score
                and float(row["p_adjusted"]) == comparison.p_adjusted
            )
            assert [int(row[key]) for key in ("wins", "ties", "losses")] == [
                comparison.wins,
                comparison.ties,
                comparison.losses,
            ]
        assert same["score"] == found.score and same["setting"] == setting.name
        assert f"| {setting.name} | {row['form']} | {found.score:.3f} |" in markdown
    assert (data["task"], data["split"], data["metric"]["name"], data["reference"]) == (
        "classify",
        "val",
        "top-1",
        summary.reference,
    )


def test_settings_stand_best_first_in_both_directions(sweep, summary):
    (data,) = read_sweep(sweep, "val")
    scores = [setting.intervals["streaming"].score for setting in data.ranked()]
    assert scores == sorted(scores, reverse=True) and len(scores) == 9
    worse = summary.model_copy(
        update={"metric": summary.metric.model_copy(update={"higher_is_better": False})}
    )
    turned = type(data)(**{**vars(data), "summary": worse})
    assert [setting.intervals["streaming"].score for setting in turned.ranked()] == sorted(scores)


def test_a_member_that_was_stopped_is_named_with_its_reason(page):
    (stopped,) = [row for row in rows_of(page.parent / "runs.csv") if row["failed"]]
    assert (stopped["run"], stopped["failed"]) == ("min_gru-lr0.01-s1", "loss is nan at step 120")
    text = plain_text(page)
    assert "min_gru-lr0.01-s1: loss is nan at step 120" in text and "runs scored, 1 stopped" in text


def test_the_page_says_the_result_in_a_sentence(page, summary):
    best = max(summary.settings, key=lambda setting: setting.intervals["streaming"].score)
    found, gain = best.intervals["streaming"], best.comparisons["streaming"].gain
    text = plain_text(page)
    assert f"{best.name} has the best streaming top-1 of {found.score:.3f}" in text
    assert f"ahead of {summary.reference} by {tables.signed_text(gain.score)}" in text
    assert f"scores {summary.trivial:.3f}" in text


def test_every_plot_is_a_file_and_in_the_page(page):
    names = [
        "scores",
        "score_over_FLOPs",
        "score_over_latency",
        "loss",
        "validation",
        "over_training.learning_rate",
        "confusion",
    ]
    for name in [*names, "confusion_reference", "tokens"]:
        assert (page.parent / f"{name}.png").read_bytes().startswith(PNG)
    html = page.read_text(encoding="utf-8")
    assert (
        html.count("<svg role=") == len(names) + 1 + 1
    )  # and the interval plot once more for phones
    assert (
        html.count("data:video/mp4;base64,")
        == 6
        == len(list((page.parent / "videos").rglob("*.mp4")))
    )
    assert html.count("data:image/jpeg;base64,") == token_maps.CLIPS * token_maps.MOMENTS
    assert not re.search(r'(?:src|href)="(?!data:|#)', html) and "url(http" not in html


@pytest.mark.slow
def test_the_page_is_the_same_every_time(sweep, page, tmp_path):
    """But for the videos: their encoder runs in threads."""
    first, second = (
        re.sub('data:video[^"]*', "", file.read_text(encoding="utf-8"))
        for file in (page, report(sweep, tmp_path)[0])
    )
    assert first == second


def test_provenance_tells_what_runs_share_and_what_is_their_own(page):
    found = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))["provenance"]
    (shared,) = [facts for what, facts in found.items() if "in common" in what]
    (own,) = [facts for what, facts in found.items() if "own" in what]
    assert (
        shared["recipe"]["windows"]["frames"] == 12 and "seed" not in shared["recipe"]["training"]
    )
    assert own["gru-lr0.001-s1"]["recipe"]["training"] == {"learning_rate": 0.001, "seed": 1}
    assert own["gru-lr0.001-s1"]["checkpoint"] == {"which": "last", "step": 2}
    assert common_part([{"a": 1, "b": 2}, {"a": 1, "b": 3}]) == {"a": 1}


@pytest.mark.slow
def test_the_page_of_a_large_sweep_can_be_measured():
    found = fine("bench", "report", "--runs", "3", "--json").json
    assert found["runs"] == 3 and found["seconds"] > 0 and found["page_bytes"] > 50_000


# Runs


@pytest.fixture(scope="module")
def some_runs(sweep) -> list[Run]:
    names = ("gru-lr0.003-s0", "gru-lr0.003-s1", "identity-lr0.003-s0", "min_gru-lr0.003-s0")
    return [Run(sweep / "runs" / name) for name in names]


def test_runs_that_differ_in_the_seed_alone_are_one_setting(some_runs):
    data = read_runs(some_runs, "val")
    settings = {setting.name: setting for setting in data.summary.settings}
    assert list(settings) == [
        "gru-lr0.003-s0 and 1 more seeds",
        "identity-lr0.003-s0",
        "min_gru-lr0.003-s0",
    ]
    assert settings["gru-lr0.003-s0 and 1 more seeds"].runs == ("gru-lr0.003-s0", "gru-lr0.003-s1")
    assert data.summary.reference == "identity-lr0.003-s0"


def test_one_run_has_the_interval_that_evaluate_gave(some_runs):
    data = read_runs(some_runs, "val")
    (setting,) = [
        setting for setting in data.summary.settings if setting.name == "min_gru-lr0.003-s0"
    ]
    evaluation = data.evaluations["min_gru-lr0.003-s0"]
    assert setting.intervals["window"] == evaluation.forms["window"]["top-1"]
    gain = difference(evaluation, data.evaluations["identity-lr0.003-s0"], "window").score
    assert setting.comparisons["window"].gain.score == pytest.approx(gain)


def test_a_run_alone_needs_no_reference(some_runs, tmp_path):
    (page,) = report(some_runs[:1], tmp_path)
    (row, _) = rows_of(tmp_path / "scores.csv")
    assert "gain" not in row and not (tmp_path / "score_over_FLOPs.png").exists()
    assert "gru-lr0.003-s0 has a streaming top-1 of" in plain_text(page)


def test_runs_that_are_not_scored_are_left_out_and_named(some_runs, tmp_path):
    unscored = shutil.copytree(some_runs[0].path, tmp_path / "stopped")
    (unscored / "evaluation-val.json").unlink()
    said: list[str] = []
    data = read_runs([*some_runs[2:], Run(unscored)], "val", said.append)
    assert list(data.runs) == ["identity-lr0.003-s0", "min_gru-lr0.003-s0"]
    assert said == [
        f"left out: not evaluated on split 'val': {unscored} "
        f"(stillframe evaluate {unscored} --split val)"
    ]


def test_the_commands_of_a_page_make_its_runs_again(some_runs, tmp_path):
    (run,) = some_runs[:1]
    train, evaluate, again = commands(read_runs([run], "val"))
    cache = run.header.cache_path
    assert train == f"stillframe train {run.path}/run.json {cache} --out {run.path}"
    assert evaluate == f"stillframe evaluate {run.path} --split val"
    assert again == f"stillframe report {run.path} --split val"
    # As printed, it is the same run, whatever was set on the command line.
    result = fine(*shlex.split(train)[1:], "--json")
    assert result.json["steps"] == run.checkpoint("last").step
    assert load_recipe(run.path) == load_recipe(run.path / "run.json") == run.recipe
    changed = load_recipe(run.path, ["training.learning_rate=0.5"])
    assert changed.training.learning_rate == 0.5 and changed.temporal == run.recipe.temporal


def test_without_its_cache_a_page_says_so(some_runs, tmp_path):
    copy = Path(shutil.copytree(some_runs[2].path, tmp_path / "run"))
    edit(copy / "run.json", lambda header: header.update(cache_path=str(tmp_path / "gone")))
    (page,) = report([Run(copy)], tmp_path / "out")
    assert "The cache cannot be reached:" in plain_text(
        page
    ) and "Not drawn for run:" in plain_text(page)
    assert "<video" not in page.read_text(encoding="utf-8")
    assert (tmp_path / "out/scores.png").read_bytes().startswith(PNG)


def test_without_its_videos_a_page_shows_tokens_and_says_what_is_missing(
    sweep, some_runs, tmp_path
):
    world = sweep.parent / "world"
    world.rename(sweep.parent / "moved")
    try:
        (page,) = report(some_runs[:1], tmp_path)
    finally:
        (sweep.parent / "moved").rename(world)
    text = plain_text(page)
    assert (
        "Not drawn for gru-lr0.003-s0: video" in text
        and "The frames themselves are not shown" in text
    )
    assert (
        page.read_text(encoding="utf-8").count("data:image/png;base64,")
        >= 3 * token_maps.CLIPS * token_maps.MOMENTS
    )


# A cache


def test_the_page_of_a_cache(sweep, tmp_path):
    (cache,) = (sweep.parent / "caches").iterdir()
    result = fine("report", cache, "--html", tmp_path)
    assert result.out.strip() == str(tmp_path / "report.html")
    assert rows_of(tmp_path / "coverage.csv")[0] == {
        "split": "train", "clips": "32", "covered": "32", "videos": "32", "whole": "32", "expected": "512", "frames": "512",
    }  # fmt: skip
    text = plain_text(tmp_path / "report.html")
    assert (
        "64 of 64 videos are stored whole, 1,024 frames" in text
        and "7 × 7 patches, 1 special, 32 wide" in text
    )
    assert (tmp_path / "tokens.png").read_bytes().startswith(PNG) and not (
        tmp_path / "scores.csv"
    ).exists()


def test_the_page_of_a_cache_that_holds_nothing_yet(cache, tmp_path):
    shutil.rmtree(cache / "receipts")
    report(Cache(cache), tmp_path)
    text = plain_text(tmp_path / "report.html")
    assert "0 of 6 videos are stored whole, 0 frames" in text and "Tokens cannot be shown" in text


def test_failures_stand_by_reason():
    table = tables.failures([FailureGroup(reason="no frame could be decoded", videos=["b", "a"])])
    assert table.rows == [{"count": 2, "reason": "no frame could be decoded", "videos": "b, a"}]
    assert table.markdown().splitlines()[2] == "| 2 | no frame could be decoded | b, a |"


# What is refused


def test_what_is_no_run_sweep_or_cache_is_named(place, sweep, tmp_path):
    assert_refused(
        call("report", tmp_path),
        tmp_path,
        "no run, sweep or cache",
        "run.json, sweep.json or cache.json",
    )
    assert_refused(call("report", place.run, tmp_path), tmp_path, "no run, sweep or cache")
    assert_refused(call("report", place.run, sweep), "2 arguments", sweep)
    assert_refused(
        call("report", place.run, "--split", "train"),
        "not evaluated on split 'train'",
        "stillframe evaluate",
    )


def test_runs_that_cannot_be_compared_are_named(place, some_runs, tmp_path):
    assert_refused(
        call("report", place.run, some_runs[0].path, "--out", tmp_path / "out"),
        "cannot be compared",
        "tiny",
    )


def test_a_sweep_that_is_not_finished_is_refused(sweep, tmp_path):
    (tmp_path / "sweep.json").write_text("{}")
    assert_refused(call("report", tmp_path), "not finished", "summary-*.json")
    assert_refused(call("report", sweep, "--split", "test"), "scored on split 'val'", "--split val")
    (tmp_path / "summary-classify.json").write_text("{")
    assert_refused(call("report", tmp_path), "summary-classify.json", "damaged")


def test_sources_are_found_by_what_is_in_them(place, sweep):
    (run,) = find_source([str(place.run)])
    assert isinstance(run, Run) and run.path == place.run
    assert find_source([str(sweep)]) == sweep
    cache = find_source([f"file://{place.cache}"])
    assert isinstance(cache, Cache) and cache.fingerprint == Cache(place.cache).fingerprint


# Parts


def test_names_are_escaped():
    name = "<script>alert(1)</script> & | co"
    column = tables.Column(name, "name", tables.plain("name"), about='"quoted"')
    table = tables.Table("scores", [column], [{"name": name}])
    html = render_page(
        Page(title=name, kind="runs", result=name, scores=table, provenance={name: {"key": name}})
    )
    assert "<script>alert" not in html and html.count("&lt;script&gt;alert(1)") >= 5
    assert "\\| co |" in table.markdown() and tables.Table("x", [column], []).cells == []


def test_how_numbers_are_written():
    assert [tables.scaled_text(value, "B") for value in (0, 999, 1240, 999_600, 3.25e9)] == [
        "0 B",
        "999 B",
        "1.24 kB",
        "1 MB",
        "3.25 GB",
    ]
    assert [tables.seconds_text(value) for value in (0.5, 89, 120, 7200)] == [
        "0.5 s",
        "89 s",
        "2 min",
        "2 h",
    ]
    assert (
        tables.signed_text(-0.5) == f"{tables.MINUS}0.500" and tables.signed_text(0.25) == "+0.250"
    )


def test_long_names_lose_first_what_all_have():
    names = [
        f"{arm}, steps 400, fraction {share}" for arm in ("tuned", "frozen") for share in (1, 3)
    ]
    assert style.shortened(names, 40) == names
    short = ["tuned, fraction 1", "tuned, fraction 3", "frozen, fraction 1", "frozen, fraction 3"]
    assert style.shortened(names, 20) == short
    assert style.shortened([*names, "trivial answer"], 20) == [*short, "trivial answer"]
    assert style.shortened(names, 10) == [
        "tune…ion 1",
        "tune…ion 3",
        "froz…ion 1",
        "froz…ion 3",
    ]
    assert style.shortened(["steps 400, fraction 1"], 10) == ["step…ion 1"]


def test_the_front_is_what_nothing_beats():
    rng = np.random.default_rng(0)
    costs, scores = rng.integers(1, 9, 40).astype(float), rng.integers(1, 9, 40).astype(float)
    for sign in (1, -1):
        better = [
            any(
                c <= cost and sign * s >= sign * score and (c, s) != (cost, score)
                for c, s in zip(costs, scores, strict=True)
            )
            for cost, score in zip(costs, scores, strict=True)
        ]
        front = front_of(costs, scores, sign == 1)
        assert sorted(front) == [place for place, beaten in enumerate(better) if not beaten]
        assert [sign * scores[place] for place in front] == sorted(
            (sign * scores[place] for place in front), reverse=True
        )


def test_curves_are_averaged_where_all_have_values():
    curves = [
        (np.array([1, 3, 5]), np.array([0.0, 2, 4])),
        (np.array([2, 3, 4]), np.array([3.0, 4, 5])),
    ]
    steps, mean, low, high = mean_and_band(curves)
    assert steps.tolist() == [2, 3, 4]
    assert mean.tolist() == [2, 3, 4] and low.tolist() == [1, 2, 3] and high.tolist() == [3, 4, 5]


def test_a_page_says_which_runs_are_under_trained(sweep):
    (data,) = read_sweep(sweep, "val")
    settings = [one.model_copy(update={"loss_falls": {}}) for one in data.summary.settings]
    data = replace(data, summary=data.summary.model_copy(update={"settings": tuple(settings)}))
    assert "Under-trained" not in sections._caution(data)
    point = data.ranked()[-1]
    falls = dict(zip(data.scored_runs(point), (0.03, 0.62), strict=False))
    points = [
        one.model_copy(update={"loss_falls": falls}) if one is point else one
        for one in data.summary.settings
    ]
    evaluations = {
        name: result.model_copy(update={"loss_fall": falls.get(name)})
        for name, result in data.evaluations.items()
    }
    summary = data.summary.model_copy(update={"settings": tuple(points)})
    slow = replace(data, summary=summary, evaluations=evaluations)
    assert f"Under-trained: the training loss of {point.name} has hardly" in sections._caution(slow)
    table = tables.runs(slow)
    column = [column.title for column in table.columns].index("loss fell by")
    texts = {
        row["run"]: cells[column].text for row, cells in zip(table.rows, table.cells, strict=True)
    }
    assert [texts[name] for name in falls] == ["3%, under-trained", "62%"][: len(falls)]
    assert {text for name, text in texts.items() if name not in falls} == {""}


def test_a_dash_stands_where_an_interval_is_not_known(sweep):
    """In tables; a script finds nothing, and plots have no bar."""
    (data,) = read_sweep(sweep, "val")
    unknown = {"low": None, "high": None}
    points = [
        point.model_copy(
            update={
                "intervals": {
                    form: found.model_copy(update=unknown)
                    for form, found in point.intervals.items()
                },
                "comparisons": {
                    form: found.model_copy(update={"gain": found.gain.model_copy(update=unknown)})
                    for form, found in point.comparisons.items()
                },
            }
        )
        for point in data.summary.settings
    ]
    one = replace(data, summary=data.summary.model_copy(update={"settings": tuple(points)}))
    table = tables.scores(one)
    titles = [column.title for column in table.columns]
    for row, cells in zip(table.rows, table.cells, strict=True):
        texts = dict(zip(titles, (cell.text for cell in cells), strict=True))
        if "form" in row:
            assert texts["95 % interval"] == "\N{EN DASH}"
            assert texts["its interval"] == ("\N{EN DASH}" if "gain" in row else "")
    (first, *_) = csv.DictReader(io.StringIO(table.csv()))
    assert (first["low"], first["high"]) == ("", "") and float(first["score"]) > 0
    assert "(95 % interval \N{EN DASH})" in sections.result(one)
    low, high = plots.intervals(one, 9).axes[0].get_xlim()
    scores = [found.score for point in one.ranked() for found in point.intervals.values()]
    assert low < min(scores) and max(scores) < high


def test_every_plot_of_scores_holds_whole_intervals(sweep):
    (data,) = read_sweep(sweep, "val")
    settings = [
        point.model_copy(
            update={
                "intervals": {
                    form: found.model_copy(update={"low": found.score - 7, "high": found.score + 9})
                    for form, found in point.intervals.items()
                },
                "comparisons": {
                    form: found.model_copy(
                        update={"gain": Interval(score=found.gain.score, low=-5.0, high=6.0)}
                    )
                    for form, found in point.comparisons.items()
                },
            }
        )
        for point in data.summary.settings
    ]
    wide = replace(data, summary=data.summary.model_copy(update={"settings": tuple(settings)}))
    scores = [found.score for point in wide.ranked() for found in point.intervals.values()]
    by_axis = axis_plots.curves_by_axis(wide)
    (across,) = plots.intervals(wide, style.FULL_INCHES).axes
    low, high = across.get_xlim()
    assert low < min(scores) - 7 and high > max(scores) + 9
    assert high - low < 1.1 * (max(scores) - min(scores) + 16)
    upright = [
        *plots.pareto(wide).values(),
        *(axis_plots.axis_figure(wide, axis, curves) for axis, curves in by_axis.items()),
        axis_plots.axes_side_by_side(wide, by_axis, style.FULL_INCHES),
    ]
    assert len(upright) >= 4
    for axes in (axes for figure in upright for axes in figure.axes):
        low, high = axes.get_ylim()
        bars = [line.get_ydata() for line in axes.lines]
        bars += [path.vertices[:, 1] for band in axes.collections for path in band.get_paths()]
        drawn = np.concatenate(bars)
        assert np.ptp(drawn) > 10 and low < drawn.min() and drawn.max() < high


def test_an_axis_of_equal_scores_has_room_on_both_sides():
    assert style.view([0.5, 0.5]) == (0, 1)
    assert style.view([0.369, 0.474, 0.581]) == pytest.approx((0.36052, 0.58948))


def test_colours_of_tokens_are_fixed_by_a_rule():
    rng = np.random.default_rng(0)
    scale = np.array([5.0, 3, 1, 0.1, 0.1])
    tokens = rng.standard_normal((4, 6, 5)) * scale
    tokens[..., 0] += 7
    (colours,) = principal_colours([tokens])
    assert colours.shape == (4, 6, 3) and colours.dtype == np.uint8
    for channel in range(3):
        # The largest entry of each component is positive: more of the token's number, more of the colour.
        assert np.corrcoef(colours[..., channel].ravel(), tokens[..., channel].ravel())[0, 1] > 0.9
    halves = principal_colours([tokens[:2], tokens[2:]])
    assert np.array_equal(np.concatenate(halves), colours)


def test_a_page_has_the_colours_that_plots_are_drawn_in():
    css = (Path(style.__file__).parent / "assets" / "page.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", part)) for part in css.split("@media", 2)[:2]
    )
    assert {name: light[name] for name in style.COLOURS} == style.COLOURS
    assert set(style.COLOURS) <= set(dark) and len(style.NAMES) == len(style.COLOURS)
    assert all(light[name] != dark[name] for name in style.COLOURS)


# Gates and states, of every temporal module there is


def model_of(name: str) -> VideoModel:
    table = {
        "name": "test",
        "task": {"name": "classify", "readout_width": 8, "heads": 2},
        "temporal": {"name": name},
        "windows": {"frames": 5, "fps": 5},
        "model": {"mixer": "last"},
        "training": {"steps": 1, "batch_size": 1},
    }
    recipe = plugins.validate(Recipe, table, "test")
    task = plugins.load("task", "classify")(recipe.task.settings, ("a", "b"))
    model = VideoModel(recipe, TokenShape(16, (2, 3), 1, (0,)), task)
    model.temporal = make(name)
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
def test_states_and_gates_of_every_module_can_be_watched(name):
    model = model_of(name)
    special, patches = torch.randn(1, 5, 1, 16), torch.randn(1, 5, 6, 16)
    found = {
        what: values for (what, _), values in state_and_gates(model, special, [patches]).items()
    }
    gates = [part for part in model.temporal.modules() if isinstance(part, Gate)]
    assert ("gate" in found) == bool(gates) == (name in GATED)
    assert ("state" in found) == (name != "identity")
    for values in found.values():
        assert values.shape == (5, 6) and np.isfinite(values).all()
    if "gate" in found:
        assert 0 < found["gate"].min() < found["gate"].max() < 1
    assert not any(part._forward_hooks for part in model.modules())


GATED = {"gru", "min_gru", "rg_lru", "gated_mamba_mix", "gated_transformer"}


def test_what_is_watched_is_what_the_module_does():
    """Of one GRU layer, computed by hand."""
    model = model_of("gru")
    model.temporal = make("gru", layers=1)
    special, patches = torch.randn(1, 3, 1, 16), torch.randn(1, 3, 6, 16)
    found = {
        what: values for (what, _), values in state_and_gates(model, special, [patches]).items()
    }
    (layer,) = model.temporal.layers
    h = torch.zeros(7, 16)
    with torch.no_grad():
        for t in range(3):
            x = layer.norm(torch.cat([special[0, t], patches[0, t]]))
            given, kept = layer.input_gates(x), layer.hidden_gates(h)
            reset, update = (
                torch.sigmoid(given[:, :16] + kept[:, :16]),
                torch.sigmoid(given[:, 16:32] + kept[:, 16:32]),
            )
            h = (1 - update) * torch.tanh(given[:, 32:] + reset * kept[:, 32:]) + update * h
            np.testing.assert_allclose(found["gate"][t], update.mean(1)[1:].numpy(), rtol=1e-5)
            np.testing.assert_allclose(found["state"][t], h.norm(dim=1)[1:].numpy(), rtol=1e-5)
