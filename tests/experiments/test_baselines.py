"""Answers without training beside the points of a sweep and on a page: scores, paired gains, and files that have none."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.experiments.summary import Outcome, ScoredPoint, Summary, summarise
from pipeline.models.profile import Cost
from pipeline.report import tables
from pipeline.report.sections import result
from pipeline.report.source import ReportData
from pipeline.train.bootstrap import Interval, interval
from pipeline.train.evaluation import BaselineScores, Evaluation, MetricFacts, ScoredCheckpoint
from pipeline.train.run import CacheFacts

CLIPS, FORM = 12, "streaming"
VIDEOS = [f"video {clip // 2}" for clip in range(CLIPS)]
RNG = np.random.default_rng(0)
STILL_C, TRACKED_C = RNG.uniform(0.2, 0.6, CLIPS), RNG.uniform(0.5, 0.8, CLIPS)
LEARNT_SC = TRACKED_C + RNG.uniform(-0.1, 0.3, (3, CLIPS))
WEIGHT_C = RNG.integers(1, 9, CLIPS).astype(float)


def mean(scores_C: np.ndarray) -> float:
    return float(np.average(scores_C, weights=WEIGHT_C))


def baseline(scores_C: np.ndarray, layer: int | None) -> BaselineScores:
    metrics = {"mIoU": interval(scores_C, VIDEOS, WEIGHT_C), "success": interval(scores_C, VIDEOS)}
    clips = {f"clip {clip}": score for clip, score in enumerate(scores_C.tolist())}
    return BaselineScores(layer=layer, metrics=metrics, clips=clips)


def evaluation(name: str, scores_C: np.ndarray, *, higher: bool, has_baselines: bool) -> Evaluation:
    found = interval(scores_C, VIDEOS, WEIGHT_C)
    rows = zip(scores_C.tolist(), VIDEOS, WEIGHT_C.tolist(), strict=True)
    metrics = tuple(
        MetricFacts(name=metric, higher_is_better=higher, perfect=float(higher), unit="")
        for metric in ("mIoU", "success")
    )
    return Evaluation(
        run=name,
        split="val",
        checkpoint=ScoredCheckpoint(which="last", step=10),
        cache=CacheFacts(name="cache-1", fingerprint="0" * 12, codec="float16"),
        task="boxes",
        temporal="gru",
        metrics=metrics,
        trivial={"mIoU": mean(STILL_C), "success": mean(STILL_C)},
        clips_scored=CLIPS,
        clips_skipped=0,
        clips_without_truth=0,
        videos=CLIPS // 2,
        forms={FORM: {"mIoU": found, "success": found}},
        clips={
            f"clip {place}": {"label": None, "video": video, "weight": weight, FORM: score}
            for place, (score, video, weight) in enumerate(rows)
        },
        baselines={
            "trivial": baseline(STILL_C, None),
            "likeness, layer 8": baseline(TRACKED_C, 8),
        }
        if has_baselines
        else {},
    )


def data_of(higher: bool = True, has_baselines: bool = True) -> ReportData:
    """A sweep of two points with three seeds and one."""
    points, evaluations = [], {}
    for name, scores_SC in (("learnt", LEARNT_SC), ("static", STILL_C[None] - 0.1)):
        outcomes = []
        for seed, scores_C in enumerate(scores_SC):
            member = f"{name} {seed}"
            evaluations[member] = evaluation(
                member, scores_C, higher=higher, has_baselines=has_baselines
            )
            outcomes.append(Outcome(member, seed, evaluations[member]))
        cost = Cost(parameters=7, flops=1e9, latency_ms=None, state_bytes=4)
        points.append(ScoredPoint(name, {"temporal.name": name}, cost, tuple(outcomes)))
    summary = summarise("sweep", {"temporal.name": []}, points, "static")
    return ReportData(None, summary, dict.fromkeys(evaluations), evaluations, has_costs=False)


@pytest.mark.parametrize("higher", [True, False])
def test_gains_over_what_needs_no_training_are_paired_and_positive_where_better(higher):
    summary = data_of(higher).summary
    assert Summary.model_validate_json(summary.model_dump_json()) == summary
    learnt = next(point for point in summary.settings if point.name == "learnt")
    assert list(learnt.baselines) == ["trivial", "likeness, layer 8"]
    sign = 1 if higher else -1
    for scores_C, found in zip((STILL_C, TRACKED_C), learnt.baselines.values(), strict=True):
        plain = interval(scores_C, VIDEOS, WEIGHT_C)
        assert found.interval.score == pytest.approx(mean(scores_C))
        assert found.interval.ends == pytest.approx(plain.ends, abs=0.01)
        assert found.metrics == {"mIoU": plain.score, "success": interval(scores_C, VIDEOS).score}
        gain = found.gains[FORM]
        paired = interval(sign * (LEARNT_SC.mean(0) - scores_C), VIDEOS, WEIGHT_C)
        assert gain.score == pytest.approx(paired.score)
        # Other seeds would have given something else: no narrower than over videos alone.
        assert gain.ends[0] < paired.ends[0] + 0.01 and gain.ends[1] > paired.ends[1] - 0.01


def test_an_answer_that_scores_otherwise_in_other_windows_stands_beside_the_points_of_these():
    """As where points differ in the order or the rate of their frames, on the same clips of one cache."""
    points = []
    for name, tracked_C in (("ordered", TRACKED_C), ("shuffled", TRACKED_C / 2)):
        found = evaluation(name, LEARNT_SC[0], higher=True, has_baselines=True)
        found = found.model_copy(
            update={"baselines": found.baselines | {"likeness, layer 8": baseline(tracked_C, 8)}}
        )
        cost = Cost(parameters=7, flops=1e9, latency_ms=None, state_bytes=4)
        points.append(ScoredPoint(name, {"order": name}, cost, (Outcome(name, 0, found),)))
    summary = summarise("sweep", {"order": []}, points, "ordered")
    for point, tracked_C in zip(summary.settings, (TRACKED_C, TRACKED_C / 2), strict=True):
        scores = point.baselines["likeness, layer 8"]
        assert scores.interval.score == pytest.approx(mean(tracked_C))
        gain = scores.gains[FORM].score
        assert gain == pytest.approx(mean(LEARNT_SC[0]) - mean(tracked_C))


def test_baselines_change_nothing_else_and_may_be_missing():
    """As in summaries of evaluations that an earlier version wrote."""
    newer, older = (data_of(has_baselines=has).summary for has in (True, False))
    for new, old in zip(newer.settings, older.settings, strict=True):
        assert not old.baselines
        assert new.model_copy(update={"baselines": {}}) == old
    data = data_of(has_baselines=False)
    assert tables.baselines(data).rows == [] and "over no training" not in titles(data)
    assert "without training" not in result(data)


def titles(data: ReportData) -> list[str]:
    return [column.title for column in tables.scores(data).columns]


def test_a_page_shows_what_needs_no_training_beside_what_was_trained():
    data = data_of()
    learnt = data.summary.settings[0]
    table = tables.baselines(data)
    assert [row["answer"] for row in table.rows] == ["likeness, layer 8", "trivial"]
    for row in table.rows:
        of = learnt.baselines[row["answer"]]
        assert (row["best"], row["cache"]) == ("learnt", "cache-1")
        assert Interval(score=row["score"], low=row["low"], high=row["high"]) == of.interval
        ends = row["gain_low"], row["gain_high"]
        assert (row["gain"], *ends) == (of.gains[FORM].score, *of.gains[FORM].ends)
        assert row["metric success"] == of.metrics["success"]
    assert "over no training" in titles(data)
    for row, point in zip(tables.scores(data).rows, data.ranked(), strict=True):
        assert row["best_untrained"] == "likeness, layer 8"
        gain = point.baselines["likeness, layer 8"].gains[FORM]
        assert (row["untrained"], row["untrained_low"], row["untrained_high"]) == (
            gain.score,
            gain.low,
            gain.high,
        )
    said = result(data)
    score = learnt.baselines["likeness, layer 8"].interval.score
    assert f"without training (likeness, layer 8), scores {score:.3f}" in said
