"""The whole path, end to end: real videos, a cache, three temporal modules, a report."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pipeline.cache.cache import Cache
from pipeline.cache.status import status
from pipeline.cli import demo
from pipeline.train.run import Run

pytestmark = pytest.mark.slow
WORLD = {"clips_per_class": 4, "frames": 12, "val_fraction": 0.5}
OVERRIDES = [
    "training.steps=6",
    "training.evaluate_every=3",
    "training.batch_size=8",
    "windows.frames=4",
]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The demo, small: few clips and few steps."""
    out = tmp_path_factory.mktemp("demo")
    said, steps = [], set()

    def run():
        return demo.demo(
            out,
            Path("cache_specs/demo.toml"),
            lambda what, *_: steps.add(what),
            said.append,
            WORLD,
            OVERRIDES,
        )

    results, page, _ = run()
    return out, results, page, said, steps, run


def test_three_modules_are_trained_from_one_cache(done):
    out, results, _, said, steps, _ = done
    (cache,) = (out / "caches").iterdir()
    assert status(Cache(cache)).frames == 4 * 8 * 12
    assert [result.temporal for result in results] == ["identity", "gru", "gated_mamba_mix"]
    assert {result.cache.name for result in results} == {cache.name}
    assert (
        len(said) == 5 and {"rendering videos", "extracting tokens", "training demo_gru"} <= steps
    )
    for result in results:
        assert (
            result.clips_scored == 16
            and result.clips_skipped == 0
            and result.trivial["top-1"] == 1 / 8
        )
        assert set(result.forms) == {"streaming", "window"}


def test_the_report_holds_every_score(done):
    out, results, page, _, _, _ = done
    assert page == out / "report/report.html"
    text = page.read_text()
    rows = list(csv.DictReader((out / "report/scores.csv").read_text().splitlines()))
    assert len(rows) == 6
    for result in results:
        for form, metrics in result.forms.items():
            values = metrics["top-1"]
            (row,) = [row for row in rows if (row["setting"], row["form"]) == (result.run, form)]
            assert [float(row[key]) for key in ("score", "low", "high")] == [
                values.score,
                values.low,
                values.high,
            ]
            assert f">{values.low:.3f} .. {values.high:.3f}</td>" in text
            assert f"| {result.run} |" in (out / "report/report.md").read_text()
    assert 'src="http' not in text
    for name in ("scores", "loss", "validation", "confusion", "tokens"):
        assert (out / f"report/{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_goes_on_from_what_it_finds(done):
    out, results, _, _, _, run = done
    before = {
        path: path.stat().st_mtime_ns
        for path in out.rglob("*.safetensors")
        if path.name.startswith(("last", "best"))
    }
    assert len(before) == 6
    again, *_ = run()
    assert again == results
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_few_labels_from_scratch_and_from_a_pretraining(done):
    out = done[0]
    (cache,) = (out / "caches").iterdir()
    results, gain = demo.demo_few_labels(
        out,
        Cache(cache),
        lambda *_: None,
        lambda _: None,
        [*OVERRIDES, "windows.train_fraction=0.5"],
    )
    assert [(result.run, result.task) for result in results] == [
        ("demo_forecast", "forecast"),
        ("few_labels", "classify"),
        ("few_labels_pretrained", "classify"),
    ]
    scores = [result.forms["streaming"]["top-1"].score for result in results[1:]]
    assert gain.score == pytest.approx(scores[1] - scores[0], abs=1e-9)
    scratch, pretrained = (Run(out / "runs" / result.run) for result in results[1:])
    assert scratch.header.init is None and pretrained.header.init.run.endswith("demo_forecast")


def test_five_tasks_from_one_cache_with_and_without_time(tmp_path):
    world = {"clips_per_class": 5, "frames": 12, "val_fraction": 0.4}
    overrides = [
        "training.steps=3",
        "training.evaluate_every=3",
        "training.batch_size=4",
        "windows.frames=4",
    ]
    said = []
    found = demo.demo_tasks(
        tmp_path,
        Path("cache_specs/demo.toml"),
        demo.TASKS,
        lambda *_: None,
        said.append,
        world,
        overrides,
    )
    assert list(found) == ["classify", "boxes", "points", "depth", "pose"]
    assert len(list((tmp_path / "caches").iterdir())) == 1 and len(said) == 2 + 3 * 5
    for task, (results, ahead) in found.items():
        assert [result.temporal for result in results] == ["identity", "gru"]
        assert all(result.task == task and result.clips_scored == 12 for result in results)
        metric = results[0].metrics[0]
        scores = [result.forms["streaming"][metric.name].score for result in results]
        gain = scores[1] - scores[0] if metric.higher_is_better else scores[0] - scores[1]
        assert (
            ahead.score == pytest.approx(gain, abs=1e-9) and ahead.low <= ahead.score <= ahead.high
        )
        run = tmp_path / "runs" / f"demo_{task}_gru"
        assert (run / "drawn-val.png").is_file() and len(
            list((run / "drawn-val").glob("*.mp4"))
        ) == demo.DRAWN
        assert (tmp_path / "report" / task / "report.html").is_file()
