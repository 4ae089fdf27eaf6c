"""The points of a sweep side by side: scores with intervals over seeds and videos, gains over a
reference, and what they cost.

What makes a score uncertain, and how that is told, stands in `resampling` and `seed_variance`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from pipeline.config.plugins import Settings
from pipeline.errors import BadInput, StillframeError, unknown_name
from pipeline.experiments.baselines import (
    NO_SEEDS,
    BaselineSummary,
    baseline_rows,
    summarise_baselines,
)
from pipeline.experiments.resampling import BootstrapTable, PointScores, interval_of, two_sided
from pipeline.experiments.seed_variance import SeedVariance, seed_variances
from pipeline.models.profile import Cost
from pipeline.train.bootstrap import TIE, Interval
from pipeline.train.evaluation import Evaluation, MetricFacts
from pipeline.train.run import UNDER_TRAINED


class ReferenceComparison(Settings):
    """A point against its reference, on the same clips and in one form."""

    gain: Interval
    """Paired; positive is better, whatever the metric's direction."""
    p: float
    """Two-sided, of the hypothesis that there is no gain."""
    p_adjusted: float
    """Corrected by Holm's method for all points that are compared in this form."""
    wins: int
    """Clips that the point answers better than its reference, mean over seeds."""
    ties: int
    losses: int


def least_gain(controls: Mapping[str, ReferenceComparison]) -> tuple[str, ReferenceComparison]:
    """The control over which a point gains least, and the comparison with it."""
    return min(controls.items(), key=lambda item: item[1].gain.score)


class PointSummary(Settings):
    """One point of the grid with all its seeds."""

    name: str
    values: dict[str, Any]
    """Axis -> value, seeds left out."""
    reference: str
    """Name of the point it is compared with; its own for a reference."""
    runs: tuple[str, ...]
    """Names of the members, by seed."""
    failed: dict[str, str]
    """Member -> why it was stopped."""
    loss_falls: dict[str, float] = Field(default_factory=dict)
    """Member -> share by which its training loss had fallen, see `pipeline.train.run.loss_fall`."""
    scores: dict[str, tuple[float, ...]]
    """Form -> score in the first metric, by seed; no forms where no seed was scored."""
    intervals: dict[str, Interval]
    """Form -> mean and 95 % interval over seeds and videos."""
    comparisons: dict[str, ReferenceComparison]
    """Form -> against the reference; empty for the reference itself and where either has no
    score."""
    controls: dict[str, dict[str, ReferenceComparison]] = Field(default_factory=dict)
    """Form -> control -> against it; empty for controls themselves."""
    baselines: dict[str, BaselineSummary] = Field(default_factory=dict)
    """Name -> answers without training on the same clips; empty where no seed was scored."""
    metrics: dict[str, dict[str, float]]
    """Form -> metric -> mean over seeds."""
    cost: Cost
    training_s: float | None
    """Its own share of the training time, mean over seeds; None where no seed finished."""
    pareto: dict[str, bool]
    """Form -> whether no other point is at least as good and cheaper in FLOPs, or better and as
    cheap."""

    @property
    def under_trained(self) -> list[str]:
        """The members whose training loss has hardly moved."""
        return [member for member, fall in self.loss_falls.items() if fall < UNDER_TRAINED]


class Summary(Settings):
    """summary-<task>.json of a sweep."""

    name: str
    split: str
    task: str
    metric: MetricFacts
    """The first metric of the task, which counts."""
    reference: str
    """Name of the point that others are compared with where they name none themselves."""
    trivial: float
    """Score of the trivial answer, which does not look at the video."""
    axes: dict[str, list[Any]]
    settings: tuple[PointSummary, ...]
    """The points, in the order of the sweep."""


@dataclass(frozen=True)
class Outcome:
    """The end of one member of a sweep: it was scored, or it was stopped."""

    member: str
    seed: int
    evaluation: Evaluation | None = None
    training_s: float | None = None
    failed: str | None = None
    """Why it was stopped; whatever was scored of it before does not count."""


@dataclass(frozen=True)
class ScoredPoint:
    """One point of the grid, what it costs, and what became of its members."""

    name: str
    values: dict[str, Any]
    cost: Cost
    outcomes: tuple[Outcome, ...]
    reference: str | None = None
    """Name of the point it is compared with; None: the sweep's."""
    is_control: bool = False
    """Whether it sees less than there is, so that all others are compared with it too."""

    @property
    def by_seed(self) -> list[Outcome]:
        """The outcomes, by seed."""
        return sorted(self.outcomes, key=lambda outcome: outcome.seed)

    def evaluations(self) -> dict[int, Evaluation]:
        """Seed -> evaluation, by seed, of the members that were not stopped. Raises BadInput for a
        member that was neither scored nor stopped."""
        evaluations: dict[int, Evaluation] = {}
        for outcome in self.by_seed:
            if outcome.failed is not None:
                continue
            if outcome.evaluation is None:
                raise BadInput(
                    f"member {outcome.member} was neither scored nor stopped",
                    "run the sweep again: it goes on",
                )
            evaluations[outcome.seed] = outcome.evaluation
        return evaluations


def summarise(
    name: str, axes: dict[str, list[Any]], points: Sequence[ScoredPoint], reference: str
) -> Summary:
    """The summary of sweep `name`; `reference` is the point that others are compared with where
    they name none themselves.

    A point without a scored seed keeps its row, with its failures. Points that are not compared may
    have been scored on other clips, as harder videos are. Raises BadInput where the reference is no
    point, where members are neither scored nor stopped, and where they were scored in another
    metric or on other clips than their reference; StillframeError where no member was scored.
    """
    reference_of = _references(name, points, reference)
    evaluations_of = {point.name: list(point.evaluations().values()) for point in points}
    first = _first_evaluation(name, points, evaluations_of, reference)
    _require_comparable(first, evaluations_of, reference_of)
    metric = first.metrics[0]
    tables = _tables(metric, points, evaluations_of)
    comparisons = {form: compared(of_form, reference_of) for form, of_form in tables.items()}
    controls = [point.name for point in points if point.is_control]
    controlled = {form: against_controls(of_form, controls) for form, of_form in tables.items()}
    pareto = {form: undominated(of_form, reference_of) for form, of_form in tables.items()}

    def summary_of(point: ScoredPoint) -> PointSummary:
        name = point.name
        own = {form: of_form[name] for form, of_form in tables.items() if name in of_form}
        scored = evaluations_of[name]
        return PointSummary(
            name=name,
            values=point.values,
            reference=reference_of[name],
            runs=tuple(outcome.member for outcome in point.by_seed),
            failed={
                outcome.member: outcome.failed
                for outcome in point.outcomes
                if outcome.failed is not None
            },
            loss_falls={
                outcome.member: outcome.evaluation.loss_fall
                for outcome in point.by_seed
                if outcome.evaluation is not None and outcome.evaluation.loss_fall is not None
            },
            scores={form: table.scores(name) for form, table in own.items()},
            intervals={form: table.interval(name) for form, table in own.items()},
            comparisons={
                form: of_form[name] for form, of_form in comparisons.items() if name in of_form
            },
            controls={
                form: of_form[name] for form, of_form in controlled.items() if name in of_form
            },
            baselines=summarise_baselines(name, scored[0], own) if scored else {},
            metrics=_mean_metrics(scored),
            cost=point.cost,
            training_s=_mean_training_s(point),
            pareto={form: of_form[name] for form, of_form in pareto.items() if name in of_form},
        )

    return Summary(
        name=name,
        split=first.split,
        task=first.task,
        metric=metric,
        reference=reference,
        trivial=first.trivial[metric.name],
        axes=axes,
        settings=tuple(map(summary_of, points)),
    )


# What may be compared


def _references(sweep: str, points: Sequence[ScoredPoint], reference: str) -> dict[str, str]:
    """Point -> the one it is compared with. Raises BadInput for a reference that is no point."""
    reference_of = {point.name: point.reference or reference for point in points}
    for name in [reference, *reference_of.values()]:
        if name not in reference_of:
            raise unknown_name("setting", name, list(reference_of), f"reference of sweep '{sweep}'")
    return reference_of


def _first_evaluation(
    sweep: str,
    points: Sequence[ScoredPoint],
    evaluations_of: Mapping[str, Sequence[Evaluation]],
    reference: str,
) -> Evaluation:
    """The first evaluation of the reference, or else of the first point that has one."""
    for name in [reference, *evaluations_of]:
        if evaluations_of[name]:
            return evaluations_of[name][0]
    reasons = sorted({str(outcome.failed) for point in points for outcome in point.outcomes})
    raise StillframeError(f"no member of sweep '{sweep}' was scored; why: {'; '.join(reasons)}")


def _require_comparable(
    first: Evaluation,
    evaluations_of: Mapping[str, Sequence[Evaluation]],
    reference_of: Mapping[str, str],
) -> None:
    """Refuses evaluations in another metric than the first, and those of a point on other clips
    than those of its reference."""
    for evaluations in evaluations_of.values():
        for evaluation in evaluations:
            _require_same_measure(first, evaluation)
    for name, reference in reference_of.items():
        for evaluation in evaluations_of[name]:
            _require_same_clips((evaluations_of[reference] or evaluations_of[name])[0], evaluation)


def _require_same_measure(first: Evaluation, other: Evaluation) -> None:
    """Refuses scores of another task or split, or in another metric."""
    for key, ours in first.measure.items():
        theirs = other.measure[key]
        if theirs != ours:
            if key == "metrics":  # those of either alone are enough to say
                ours, theirs = ([each["name"] for each in table] for table in (ours, theirs))
                ours, theirs = (
                    ", ".join(name for name in these if name not in those) or "the same names"
                    for these, those in ((ours, theirs), (theirs, ours))
                )
            raise BadInput(
                f"runs {first.run} and {other.run} cannot be compared: {key} is {ours} / {theirs}",
                "summarise settings of one task, evaluated on one split",
            )


def _require_same_clips(first: Evaluation, other: Evaluation) -> None:
    ours, theirs = first.clips, other.clips
    differing = sorted(ours.keys() ^ theirs.keys()) or [
        clip for clip in ours if ours[clip].video != theirs[clip].video
    ]
    if differing:
        raise BadInput(
            f"runs {first.run} and {other.run} were not scored on the same clips: "
            f"{len(differing)} differ, first {differing[0]}",
            "evaluate both on the same split of one manifest",
        )
    # One manifest may ask something else of the clips of another one, as speed and direction do.
    relabelled = [clip for clip in ours if ours[clip].label != theirs[clip].label]
    if relabelled:
        clip = relabelled[0]
        raise BadInput(
            f"runs {first.run} and {other.run} were scored on other labels: {len(relabelled)} "
            f"clips differ, first {clip}: '{ours[clip].label}' / '{theirs[clip].label}'",
            "make a page for each manifest",
        )


# Tables of scores


def _tables(
    metric: MetricFacts,
    points: Sequence[ScoredPoint],
    evaluations_of: Mapping[str, Sequence[Evaluation]],
) -> dict[str, dict[str, BootstrapTable]]:
    """Form -> point -> the table of all points that were scored in this form on the same clips."""
    by_clips: dict[tuple[str, ...], list[ScoredPoint]] = {}
    for point in points:
        if evaluations_of[point.name]:
            clips = tuple(sorted(evaluations_of[point.name][0].clips))
            by_clips.setdefault(clips, []).append(point)
    every_evaluation = [
        evaluation for evaluations in evaluations_of.values() for evaluation in evaluations
    ]
    forms = dict.fromkeys(form for evaluation in every_evaluation for form in evaluation.forms)
    return {form: _tables_of_form(metric, form, by_clips) for form in forms}


def _tables_of_form(
    metric: MetricFacts, form: str, by_clips: Mapping[tuple[str, ...], Sequence[ScoredPoint]]
) -> dict[str, BootstrapTable]:
    """Point -> the table of all points with its clips. What seeds do is known from all points
    together, whatever clips they were scored on."""
    rows_of = {
        clips: {
            point.name: scores for point in group if (scores := _point_scores(form, clips, point))
        }
        for clips, group in by_clips.items()
    }
    variances = seed_variances(
        {name: scores.by_seed for rows in rows_of.values() for name, scores in rows.items()}
    )
    table_of: dict[str, BootstrapTable] = {}
    for clips, rows in rows_of.items():
        if rows:
            evaluations = [next(iter(point.evaluations().values())) for point in by_clips[clips]]
            videos = [evaluations[0].clips[clip].video for clip in clips]
            untrained: dict[str, PointScores] = {}
            for evaluation in evaluations:
                untrained |= baseline_rows(evaluation, clips)
            every_variance = {**variances, **dict.fromkeys(untrained, NO_SEEDS)}
            table = BootstrapTable(metric, rows | untrained, videos, every_variance)
            table_of |= dict.fromkeys(rows, table)
    return table_of


def _point_scores(form: str, clips: Sequence[str], point: ScoredPoint) -> PointScores | None:
    """A point's scores in one form; None where no seed was scored in it."""
    clips_by_seed = {
        seed: evaluation.clips
        for seed, evaluation in point.evaluations().items()
        if form in evaluation.forms
    }
    rows = [[facts[clip] for clip in clips] for facts in clips_by_seed.values()]
    if not rows:
        return None
    return PointScores(
        seeds=tuple(clips_by_seed),
        clips_SC=np.array([[clip.scores[form] for clip in row] for row in rows], np.float64),
        weight_C=np.array([clip.weight for clip in rows[0]], np.float64),
        flops=point.cost.flops,
    )


def _mean_metrics(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, float]]:
    """Form -> metric -> mean over seeds."""
    forms = evaluations[0].forms if evaluations else {}
    return {
        form: {
            metric: float(
                np.mean([evaluation.forms[form][metric].score for evaluation in evaluations])
            )
            for metric in metrics
        }
        for form, metrics in forms.items()
    }


def _mean_training_s(point: ScoredPoint) -> float | None:
    seconds = [
        outcome.training_s
        for outcome in point.outcomes
        if outcome.failed is None and outcome.training_s is not None
    ]
    return float(np.mean(seconds)) if seconds else None


# Comparisons


def compared(
    tables: Mapping[str, BootstrapTable], reference_of: Mapping[str, str]
) -> dict[str, ReferenceComparison]:
    """Point -> its gain over its reference, for all points of one form; without the references
    themselves, and without points whose reference has no score."""
    pairs = {
        name: reference_of[name]
        for name in tables
        if reference_of[name] != name and reference_of[name] in tables
    }
    variances = _paired_variances(tables, pairs)
    gains = {
        name: tables[name].gain(name, reference, variances.get(name))
        for name, reference in pairs.items()
    }
    p_values = [two_sided(gain_R, tables[name].videos) for name, (_, gain_R) in gains.items()]
    comparisons = {}
    for (name, reference), p, p_adjusted in zip(
        pairs.items(), p_values, holm(p_values), strict=True
    ):
        better_C = tables[name].against(name, reference)
        wins, losses = int((better_C >= TIE).sum()), int((better_C <= -TIE).sum())
        least, greatest = tables[name].range
        comparisons[name] = ReferenceComparison(
            gain=interval_of(
                *gains[name], (least - greatest, greatest - least), tables[name].videos, TIE
            ),
            p=p,
            p_adjusted=p_adjusted,
            wins=wins,
            ties=len(better_C) - wins - losses,
            losses=losses,
        )
    return comparisons


def against_controls(
    tables: Mapping[str, BootstrapTable], controls: Sequence[str]
) -> dict[str, dict[str, ReferenceComparison]]:
    """Point -> control -> its gain over it, for the points of one form that are no controls and
    were scored on the control's clips. Each control is a family of comparisons: who claims to be
    above all of them must be above each, and needs no correction for their number."""
    found: dict[str, dict[str, ReferenceComparison]] = {}
    for control in (name for name in controls if name in tables):
        others = [
            name for name, table in tables.items() if name not in controls and control in table.rows
        ]
        of_control = {name: tables[name] for name in (control, *others)}
        for name, comparison in compared(of_control, dict.fromkeys(of_control, control)).items():
            found.setdefault(name, {})[control] = comparison
    return found


def _paired_variances(
    tables: Mapping[str, BootstrapTable], pairs: Mapping[str, str]
) -> dict[str, SeedVariance]:
    """Point -> variance of its gain over seeds, for the points that have the seeds of their
    reference. Gains over one reference know it together."""
    variances: dict[str, SeedVariance] = {}
    for reference in dict.fromkeys(pairs.values()):
        theirs = tables[reference].rows[reference].by_seed
        gains = {}
        for name in (name for name, other in pairs.items() if other == reference):
            ours = tables[name].rows[name].by_seed
            if ours.keys() == theirs.keys():
                gains[name] = {seed: ours[seed] - theirs[seed] for seed in ours}
        variances |= seed_variances(gains)
    return variances


def undominated(
    tables: Mapping[str, BootstrapTable], reference_of: Mapping[str, str]
) -> dict[str, bool]:
    """Point -> whether no other with the same reference is at least as good and as cheap, and
    better or cheaper."""
    on_front: dict[str, bool] = {}
    for reference in dict.fromkeys(reference_of[name] for name in tables):
        names = [name for name in tables if reference_of[name] == reference]
        rows = [tables[name].rows[name] for name in names]
        score_K = np.array(
            [tables[name].sign * row.means.mean() for name, row in zip(names, rows, strict=True)]
        )
        flops_K = np.array([row.flops for row in rows])
        as_good, as_cheap = score_K >= score_K[:, None], flops_K <= flops_K[:, None]
        strictly = (score_K > score_K[:, None]) | (flops_K < flops_K[:, None])
        dominated_K = np.any(as_good & as_cheap & strictly, axis=1)
        on_front |= {name: not lost for name, lost in zip(names, dominated_K, strict=True)}
    return on_front


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for how many there are, so that the chance of even one false finding stays
    below the level (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values, kind="stable")
    raised = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(raised, 1)
    return adjusted.tolist()
