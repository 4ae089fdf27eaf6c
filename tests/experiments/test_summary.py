"""Settings side by side: intervals over seeds and videos, paired gains, corrected p values, Pareto; against closed forms."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipeline.errors import BadInput, StillframeError
from pipeline.experiments import resampling
from pipeline.experiments.resampling import two_sided
from pipeline.experiments.summary import (
    Outcome,
    ScoredPoint,
    Summary,
    holm,
    least_gain,
    summarise,
)
from pipeline.models.profile import Cost
from pipeline.train import bootstrap
from pipeline.train.bootstrap import Interval, interval
from pipeline.train.evaluation import Evaluation, MetricFacts, ScoredCheckpoint, difference
from pipeline.train.run import CacheFacts

FORM = "streaming"
STUDENT_975 = {2: 12.706, 3: 4.303, 5: 2.776}
"""Seeds -> the 97.5 % point of Student's t with one degree of freedom less."""


def evaluation(
    run,
    scores_C,
    videos=None,
    weights=None,
    higher=True,
    forms=(FORM,),
    task="classify",
    ends=(1e6, None),
    label=None,
):
    """As `evaluate` writes it: clip c scores `scores_C[c]` in every form; a second metric is half of that."""
    scores_C = np.asarray(scores_C, float)
    videos = videos or [f"video {clip}" for clip in range(len(scores_C))]
    weights = np.ones(len(scores_C)) if weights is None else np.asarray(weights, float)
    metrics = tuple(
        MetricFacts(
            name=name,
            higher_is_better=higher,
            perfect=ends[0] if higher else -ends[0],
            unit="",
            worst=ends[1],
        )
        for name in ("first", "second")
    )
    mean = float(np.average(scores_C, weights=weights))
    found = {
        "first": Interval(score=mean, low=mean, high=mean),
        "second": Interval(score=mean / 2, low=mean, high=mean),
    }
    rows = zip(scores_C.tolist(), videos, weights.tolist(), strict=True)
    return Evaluation(
        run=run,
        split="val",
        checkpoint=ScoredCheckpoint(which="last", step=10),
        cache=CacheFacts(name="demo", fingerprint="0" * 12, codec="float16"),
        task=task,
        temporal="gru",
        metrics=metrics,
        trivial={"first": 0.125, "second": 0.25},
        clips_scored=len(scores_C),
        clips_skipped=0,
        clips_without_truth=0,
        videos=len(set(videos)),
        forms=dict.fromkeys(forms, found),
        clips={
            f"clip {place:04d}": {
                "label": label,
                "video": video,
                "weight": weight,
                **dict.fromkeys(forms, score),
            }
            for place, (score, video, weight) in enumerate(rows)
        },
    )


def setting(name, runs, flops=1e9, **keys):
    """`runs`: seed -> score of every clip."""
    outcomes = tuple(
        Outcome(
            f"{name} {seed}",
            seed,
            evaluation(f"{name} {seed}", scores_C, **keys),
            training_s=10.0 + seed,
        )
        for seed, scores_C in runs.items()
    )
    cost = Cost(parameters=7, flops=flops, latency_ms=1.5, state_bytes=4)
    return ScoredPoint(name, {"temporal.name": name}, cost, outcomes)


def rows(*settings, reference="base"):
    """Setting -> its row."""
    return {
        row.name: row
        for row in summarise("sweep", {"temporal.name": []}, settings, reference).settings
    }


def table(shape, seed=0, spread=1.0):
    return np.random.default_rng(seed).normal(size=shape) * spread


def test_one_seed_is_what_evaluate_says(monkeypatch):
    """The same resamples, the same interval; the gain is `difference`."""
    monkeypatch.setattr(resampling, "RESAMPLES", bootstrap.RESAMPLES)
    videos = [f"video {clip // 3}" for clip in range(90)]
    weights = np.random.default_rng(5).uniform(0.5, 2, 90)
    base = setting("base", {0: table(90)}, videos=videos, weights=weights)
    other = setting("other", {0: table(90, 1)}, videos=videos, weights=weights)
    found = rows(base, other)
    for name, seed in (("base", 0), ("other", 1)):
        expected = interval(table(90, seed), videos, weights)
        assert found[name].intervals[FORM].model_dump() == pytest.approx(
            expected.model_dump(), rel=1e-9
        )
        assert found[name].scores[FORM] == pytest.approx((found[name].metrics[FORM]["first"],))
    expected = difference(other.outcomes[0].evaluation, base.outcomes[0].evaluation, FORM)
    assert found["other"].comparisons[FORM].gain.model_dump() == pytest.approx(
        expected.model_dump(), rel=1e-9
    )


def test_every_other_setting_is_compared_with_each_control():
    """As with a reference of that name, each control a family of its own."""
    clips = [f"video {clip // 2}" for clip in range(80)]
    base, mixed, still, one, two = (
        setting(name, {seed: table(80, 10 * place + seed) + shift for seed in (0, 1)}, videos=clips)
        for place, (name, shift) in enumerate(
            [("base", 0), ("mixed", 0.4), ("still", 0.1), ("one", 1), ("two", 0.5)]
        )
    )
    controls = [dataclasses.replace(point, is_control=True) for point in (mixed, still)]
    found = rows(base, *controls, one, two)
    assert {name: list(row.controls.get(FORM, ())) for name, row in found.items()} == {
        "base": ["mixed", "still"],
        "mixed": [],
        "still": [],
        "one": ["mixed", "still"],
        "two": ["mixed", "still"],
    }
    for control in ("mixed", "still"):
        plain = [base, {"mixed": mixed, "still": still}[control], one, two]
        expected = rows(*plain, reference=control)
        for name in ("base", "one", "two"):
            ours, theirs = found[name].controls[FORM][control], expected[name].comparisons[FORM]
            # Resamples are the same; what seeds do is known from more points here.
            assert ours.gain.score == pytest.approx(theirs.gain.score)
            assert (ours.wins, ours.losses) == (theirs.wins, theirs.losses)
    name, least = least_gain(found["one"].controls[FORM])
    assert name == "mixed" and least.gain.score == pytest.approx(
        np.mean([table(80, 30 + seed) + 1 - table(80, 10 + seed) - 0.4 for seed in (0, 1)])
    )
    assert rows(base, one)["one"].controls == {}


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_seeds_alone_give_the_interval_of_student(seeds):
    """All clips of a run score the same: videos make no difference, and mean +- t s / sqrt(S) is left."""
    scores_S = table(seeds)
    found = rows(
        setting("base", {seed: np.full(40, score) for seed, score in enumerate(scores_S)})
    )["base"].intervals[FORM]
    half = STUDENT_975[seeds] * scores_S.std(ddof=1) / np.sqrt(seeds)
    assert found.score == pytest.approx(scores_S.mean())
    assert found.high - found.score == pytest.approx(half, rel=0.1)
    assert found.score - found.low == pytest.approx(half, rel=0.1)


def test_videos_alone_give_the_interval_of_the_normal_law():
    """All seeds score the same: mean +- 1.96 s / sqrt(V) is left, which whole videos widen."""
    scores_V = table(400)
    same = rows(setting("base", dict.fromkeys(range(3), scores_V)))["base"].intervals[FORM]
    assert same.high - same.low == pytest.approx(2 * 1.96 * scores_V.std() / 20, rel=0.05)
    videos = [f"video {clip // 4}" for clip in range(1600)]
    four = rows(setting("base", {0: scores_V.repeat(4)}, videos=videos))["base"].intervals[FORM]
    assert four.model_dump() == pytest.approx(same.model_dump())


@pytest.mark.parametrize(("seed_spread", "video_spread"), [(1.0, 0.1), (0.1, 1.0), (0.2, 1.0)])
def test_coverage(seed_spread, video_spread, monkeypatch):
    """Three seeds and sixty videos, 300 times over: the interval holds the truth about 95 times in 100, for the score and for
    the gain, and a gain that is not there is found about 5 times in 100. The bounds are 4 standard errors and more away."""
    monkeypatch.setattr(resampling, "RESAMPLES", 1000)
    rng, trials = np.random.default_rng(0), 300
    held, gained, found = 0, 0, 0

    def runs():
        """Seed effect, what this setting makes of a video, and what neither explains."""
        effects = seed_spread * rng.normal(size=(3, 1)) + video_spread * rng.normal(size=60)
        return dict(enumerate(effects + 0.3 * rng.normal(size=(3, 60)) + hard))

    for _ in range(trials):
        hard = 2 * rng.normal(size=60)
        row = rows(setting("base", runs()), setting("other", runs()))["other"]
        gain = row.comparisons[FORM]
        held += row.intervals[FORM].low <= 0 <= row.intervals[FORM].high
        gained += gain.gain.low <= 0 <= gain.gain.high
        found += gain.p < 0.05
    assert 0.89 < held / trials <= 1
    assert 0.89 < gained / trials <= 1
    assert found / trials < 0.11


def test_no_interval_leaves_the_range_of_its_metric():
    """Top-1 of two seeds; an error has no upper end, and what was written before metrics had a worst score no lower one."""
    scores = {
        "base": {0: [0.0, 0.2] * 20, 1: [0.8, 1.0] * 20},
        "other": {0: [1.0] * 40, 1: [0.1] * 40},
    }

    def intervals(higher, ends):
        found = rows(
            *(setting(name, runs, higher=higher, ends=ends) for name, runs in scores.items())
        )["other"]
        return found.intervals[FORM], found.comparisons[FORM].gain

    free, gain = intervals(True, (1e6, None))
    assert free.low < 0 < 1 < free.high and gain.low < -1 < 1 < gain.high
    assert [(one.low, one.high) for one in intervals(True, (1.0, 0.0))] == [(0, 1), (-1, 1)]
    older, gain_of_older = intervals(True, (1.0, None))
    assert (older.low, older.high, gain_of_older) == (free.low, 1, gain)
    error, gain_of_error = intervals(False, (0.0, None))
    assert (error.low, error.high) == (0, free.high)
    assert gain_of_error.low < -1 < 1 < gain_of_error.high


def test_evaluations_from_before_metrics_had_a_worst_score_are_compared_with_later_ones():
    older, later = (
        setting("base", {0: [0, 1]}, ends=(1.0, None)),
        setting("other", {0: [1, 1]}, ends=(1.0, 0.0)),
    )
    written = older.outcomes[0].evaluation.model_dump(mode="json")
    for metric in written["metrics"]:
        del metric["worst"]
    first_outcome = dataclasses.replace(older.outcomes[0], evaluation=Evaluation(**written))
    older = dataclasses.replace(older, outcomes=(first_outcome,))
    found = rows(older, later)["other"]
    assert found.comparisons[FORM].gain.score == 0.5
    assert difference(later.outcomes[0].evaluation, older.outcomes[0].evaluation, FORM).score == 0.5


def test_settings_of_a_sweep_know_together_what_seeds_do():
    """Two seeds, ten settings, one of which lost a seed: narrower than each alone, and the one left is not taken for certain."""
    tables = {
        f"setting {k}": table((2, 1), seed=k) + table((2, 80), seed=100 + k, spread=0.1)
        for k in range(10)
    }
    settings = [setting(name, dict(enumerate(each))) for name, each in tables.items()]
    lone = setting("lone", {0: tables["setting 0"][0]})
    found = rows(*settings, lone, reference="setting 0")
    together = {name: row.intervals[FORM] for name, row in found.items()}
    alone = {
        one.name: rows(one, reference=one.name)[one.name].intervals[FORM]
        for one in (*settings, lone)
    }
    width = {name: one.high - one.low for name, one in together.items()}
    assert np.mean([width[name] for name in tables]) < 0.6 * np.mean(
        [alone[name].high - alone[name].low for name in tables]
    )
    assert (
        width["lone"]
        > np.median(list(width.values()))
        > 10 * (alone["lone"].high - alone["lone"].low)
    )
    spread = [
        rows(settings[0], one, reference="setting 0")[one.name].comparisons[FORM].gain
        for one in settings[1:]
    ]
    gains = [found[one.name].comparisons[FORM].gain for one in settings[1:]]
    assert [one.score for one in gains] == [one.score for one in spread]
    assert np.mean([one.high - one.low for one in gains]) < 0.9 * np.mean(
        [one.high - one.low for one in spread]
    )


def test_holm_by_hand():
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04; and none is below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9, 0.5]) == [1, 1, 1]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_holm_one_by_one_and_in_any_order():
    p = [*np.random.default_rng(0).uniform(size=20).tolist(), 0.01, 0.01]
    slow = []
    for one in p:
        smaller = [other for other in p if other <= one]
        slow.append(
            min(1.0, max((len(p) - sum(each < other for each in p)) * other for other in smaller))
        )
    assert holm(p) == pytest.approx(slow)
    assert holm(p[::-1]) == pytest.approx(slow[::-1])


def test_p_from_resamples():
    """99 resamples above 0: nothing but the observed one is on the other side, 2 * 1 / 100."""
    assert two_sided(np.ones(99), videos=50) == 0.02
    assert two_sided(-np.ones(99), videos=50) == 0.02
    assert two_sided(np.array([-1.0] * 4 + [1.0] * 95), videos=50) == 0.1
    assert two_sided(np.zeros(99), videos=50) == two_sided(np.full(99, 1e-15), videos=50) == 1
    assert [two_sided(np.ones(9999), videos) for videos in (1, 2, 5)] == [1, 0.5, 0.0625]


def test_p_and_its_correction():
    base, scores = table(200), {}
    for name, gain in (("none", 0.0), ("small", 0.15), ("large", 0.5)):
        scores[name] = base + gain + table(200, seed=len(name), spread=0.9)
    found = rows(
        setting("base", {0: base}), *(setting(name, {0: each}) for name, each in scores.items())
    )
    p = {name: found[name].comparisons[FORM].p for name in scores}
    assert p["none"] > 0.05 > p["large"] == 2 / 10_001
    assert [found[name].comparisons[FORM].p_adjusted for name in scores] == pytest.approx(
        holm(list(p.values()))
    )
    assert found["base"].comparisons == {}


def test_wins_ties_and_losses_are_of_clips_on_the_mean_over_seeds():
    base = setting("base", {0: [0, 1, 0, 1, 1], 1: [1, 0, 0, 1, 1]})
    other = setting("other", {0: [1, 1, 0, 0, 1], 1: [1, 0, 1e-10, 1, 1]})
    found = rows(base, other)["other"].comparisons[FORM]
    assert (found.wins, found.ties, found.losses) == (1, 3, 1)
    assert found.gain.score == pytest.approx(0, abs=1e-9)


def test_seeds_are_paired_where_both_have_the_same():
    """A seed that is good for both says nothing of the gain."""
    seed_effect, clips = [-1.0, 0.0, 1.0], table(50, spread=0.1)
    base = setting("base", {seed: clips + seed_effect[seed] for seed in range(3)})
    paired = rows(
        base, setting("other", {seed: clips + seed_effect[seed] + 0.1 for seed in range(3)})
    )["other"].comparisons[FORM]
    apart = rows(
        base, setting("other", {seed + 5: clips + seed_effect[seed] + 0.1 for seed in range(3)})
    )["other"].comparisons[FORM]
    assert paired.gain.score == pytest.approx(apart.gain.score) == pytest.approx(0.1)
    assert paired.gain.low == pytest.approx(0.1) == pytest.approx(paired.gain.high)
    assert apart.gain.low < -1 and apart.gain.high > 1
    assert paired.p < 0.001 < 0.5 < apart.p
    fewer = rows(base, setting("other", {0: clips + 0.1}))["other"].comparisons[FORM]
    assert fewer.gain.score == pytest.approx(0.1)
    assert fewer.gain.high - fewer.gain.low == pytest.approx(
        2 * STUDENT_975[3] / np.sqrt(3), rel=0.1
    )


def worlds():
    """Three settings of three seeds with something of everything."""
    videos = [f"video {clip // 2}" for clip in range(60)]
    weights = np.random.default_rng(9).uniform(0.5, 2, 60)
    tables = {
        name: table((3, 60), seed) + 0.2 * seed for seed, name in enumerate(("base", "one", "two"))
    }
    return tables, {"videos": videos, "weights": weights}


def test_the_order_of_settings_runs_and_clips_changes_nothing():
    tables, keys = worlds()
    settings = [setting(name, dict(enumerate(each)), **keys) for name, each in tables.items()]
    turned = []
    for one in settings[::-1]:
        outcomes = []
        for outcome in one.outcomes[::-1]:
            clips = dict(reversed(outcome.evaluation.clips.items()))
            outcomes.append(
                Outcome(
                    outcome.member,
                    outcome.seed,
                    outcome.evaluation.model_copy(update={"clips": clips}),
                    training_s=outcome.training_s,
                )
            )
        turned.append(ScoredPoint(one.name, one.values, one.cost, tuple(outcomes)))
    assert rows(*turned) == rows(*settings)


def test_errors_are_turned_around():
    """Minus the score, where less is better: the same gains, p, wins and Pareto."""
    tables, keys = worlds()
    more = rows(*(setting(name, dict(enumerate(each)), **keys) for name, each in tables.items()))
    less = rows(
        *(
            setting(name, dict(enumerate(-each)), higher=False, **keys)
            for name, each in tables.items()
        )
    )
    for name in tables:
        assert less[name].intervals[FORM].score == pytest.approx(-more[name].intervals[FORM].score)
        assert less[name].pareto == more[name].pareto
    for name in ("one", "two"):
        assert less[name].comparisons[FORM].gain.score > 0
        assert less[name].comparisons[FORM] == more[name].comparisons[FORM]


def test_only_the_ratio_of_weights_matters():
    tables, keys = worlds()
    heavy = keys | {"weights": 1000 * keys["weights"]}
    plain, scaled = (
        rows(*(setting(name, dict(enumerate(each)), **each_keys) for name, each in tables.items()))
        for each_keys in (keys, heavy)
    )
    for name in tables:
        assert scaled[name].intervals[FORM].model_dump() == pytest.approx(
            plain[name].intervals[FORM].model_dump()
        )
    score = np.average(tables["one"], axis=1, weights=keys["weights"])
    assert plain["one"].scores[FORM] == pytest.approx(tuple(score))


def test_blocks_change_no_result(monkeypatch):
    tables, keys = worlds()
    settings = [setting(name, dict(enumerate(each)), **keys) for name, each in tables.items()]
    whole = rows(*settings)
    monkeypatch.setattr(bootstrap, "BLOCK_NUMBERS", 30 * 7)
    for name, row in rows(*settings).items():
        assert row.intervals[FORM].model_dump() == pytest.approx(
            whole[name].intervals[FORM].model_dump(), rel=1e-12
        )


@pytest.mark.parametrize("sign", [1, -1])
def test_pareto(sign):
    """score, FLOPs: worse and as dear as base, as good and dearer, cheapest, best; twins beat each other nowhere."""
    points = {
        "base": (0.5, 5),
        "worse": (0.4, 5),
        "dearer": (0.5, 6),
        "cheapest": (0.1, 1),
        "best": (0.9, 9),
        "twin": (0.9, 9),
    }
    found = rows(
        *(
            setting(name, {0: [sign * score] * 3}, flops=flops, higher=sign > 0)
            for name, (score, flops) in points.items()
        )
    )
    assert {name for name, row in found.items() if row.pareto[FORM]} == {
        "base",
        "cheapest",
        "best",
        "twin",
    }


def test_what_is_told_beside():
    base = setting("base", {1: [1, 0], 0: [1, 1]}, forms=("streaming", "window"))
    other = setting("other", {0: [0, 1]}, forms=("window",))
    summary = summarise(
        "sweep", {"temporal.name": ["base", "other"], "seed": [0, 1]}, [base, other], "base"
    )
    assert Summary.model_validate_json(summary.model_dump_json()) == summary
    assert (summary.name, summary.split, summary.task, summary.reference) == (
        "sweep",
        "val",
        "classify",
        "base",
    )
    assert (summary.metric.name, summary.trivial) == ("first", 0.125)
    first, second = summary.settings
    assert (first.runs, first.values, first.cost) == (
        ("base 0", "base 1"),
        {"temporal.name": "base"},
        base.cost,
    )
    means, scores = {"first": 0.75, "second": 0.375}, (1.0, 0.5)
    assert first.metrics == {"streaming": means, "window": means}
    assert first.scores == {"streaming": scores, "window": scores}
    assert (first.training_s, second.training_s) == (10.5, 10)
    assert [
        set(each) for each in (second.scores, second.intervals, second.comparisons, second.pareto)
    ] == [{"window"}] * 4


def stopped(name, seeds=(0, 1)):
    one = setting(name, {})
    outcomes = tuple(Outcome(f"{name} {seed}", seed, failed="loss is nan") for seed in seeds)
    return ScoredPoint(name, one.values, one.cost, outcomes)


def test_failures_keep_their_place():
    """One setting all of whose seeds were stopped, and one that lost a seed after it had been scored."""
    half = setting("half", {0: [1, 0], 1: [0, 0]})
    lost = Outcome("half 1", 1, half.outcomes[1].evaluation, training_s=3.0, failed="loss is inf")
    half = ScoredPoint("half", half.values, half.cost, (half.outcomes[0], lost))
    found = rows(setting("base", {0: [1, 1], 1: [1, 0]}), half, stopped("gone"))
    assert found["gone"].failed == {"gone 0": "loss is nan", "gone 1": "loss is nan"}
    assert found["gone"].runs == ("gone 0", "gone 1")
    nothing = (
        found["gone"].scores,
        found["gone"].intervals,
        found["gone"].comparisons,
        found["gone"].metrics,
    )
    assert (
        nothing == ({}, {}, {}, {})
        and found["gone"].pareto == {}
        and found["gone"].training_s is None
    )
    assert (found["half"].failed, found["half"].scores) == (
        {"half 1": "loss is inf"},
        {FORM: (0.5,)},
    )
    assert (found["half"].training_s, found["half"].comparisons[FORM].p_adjusted) == (
        10,
        found["half"].comparisons[FORM].p,
    )


def test_a_reference_that_failed_leaves_the_scores():
    found = rows(stopped("base"), setting("other", {0: [1, 0]}))
    assert found["other"].intervals[FORM].score == 0.5
    assert found["other"].comparisons == {}


def test_what_cannot_be_summarised():
    base = setting("base", {0: [1, 0]})
    with pytest.raises(
        BadInput, match="reference of sweep 'sweep': no setting called 'bass'; there are: base"
    ) as error:
        rows(base, reference="bass")
    assert error.value.hint == "did you mean 'base'?"
    with pytest.raises(
        StillframeError, match="no member of sweep 'sweep' was scored; why: loss is nan"
    ):
        rows(stopped("base"), stopped("other"))
    with pytest.raises(BadInput, match="member late 3 was neither scored nor stopped"):
        rows(base, ScoredPoint("late", {}, base.cost, (Outcome("late 3", 3),)))
    with pytest.raises(
        BadInput,
        match="runs base 0 and other 0 were not scored on the same clips: 1 differ, first clip 0002",
    ):
        rows(base, setting("other", {0: [1, 0, 1]}))
    with pytest.raises(BadInput, match="the same clips: 2 differ, first clip 0000"):
        rows(base, setting("other", {0: [1, 0]}, videos=["a", "b"]))
    speed, way = (setting(name, {0: [1, 0]}, label=name) for name in ("x1", "forward"))
    with pytest.raises(
        BadInput, match="other labels: 2 clips differ, first clip 0000: 'x1' / 'for"
    ):
        rows(speed, way, reference="x1")
    with pytest.raises(
        BadInput, match="runs base 0 and other 0 cannot be compared: task is classify / depth"
    ):
        rows(base, setting("other", {0: [1, 0]}, task="depth"))
    with pytest.raises(BadInput, match="cannot be compared: metrics"):
        rows(base, setting("other", {0: [1, 0]}, higher=False))


def test_one_video_shows_nothing():
    """There is no interval, and no p is below 1."""
    found = rows(
        setting("base", {0: [0, 1]}, videos=["a", "a"]),
        setting("other", {0: [1, 1]}, videos=["a", "a"]),
    )["other"]
    assert found.intervals[FORM] == Interval(score=1, low=None, high=None)
    assert found.comparisons[FORM].gain == Interval(score=0.5, low=None, high=None)
    assert found.comparisons[FORM].p == 1
    assert found.comparisons[FORM].gain.span() == "\N{EN DASH}"


def test_where_all_clips_are_even_a_gain_has_no_interval():
    found = rows(setting("base", {0: [0, 1, 1]}), setting("other", {0: [0, 1, 1]}))["other"]
    comparison = found.comparisons[FORM]
    assert comparison.gain == Interval(score=0, low=None, high=None)
    assert (comparison.wins, comparison.ties, comparison.losses, comparison.p) == (0, 3, 0, 1)
    assert found.intervals[FORM].low is not None
