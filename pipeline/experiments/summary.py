"""Settings of a sweep side by side: scores with intervals over seeds and videos, gains over a
reference, and what they cost.

What makes a score uncertain, and how that is told, stands in `resampling` and `seed_variance`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from pipeline.config.plugins import Settings
from pipeline.errors import BadInput, StillframeError, unknown_name
from pipeline.experiments.resampling import BootstrapTable, Scored, interval_of, two_sided
from pipeline.experiments.seed_variance import TIE, SeedVariance, seed_variances
from pipeline.models.profile import Cost
from pipeline.train.bootstrap import Interval
from pipeline.train.evaluate import Evaluation, MetricFacts


class ReferenceComparison(Settings):
    """Against the reference setting, on the same clips."""

    gain: Interval
    """Paired; positive is better, whatever the metric's direction."""
    p: float
    """Two-sided."""
    p_adjusted: float
    """Holm over all settings that are compared in this form."""
    wins: int
    """Clips."""
    ties: int
    losses: int


class PointSummary(Settings):
    """One point of the grid with all its seeds."""

    name: str
    values: dict[str, Any]
    """axis -> value, seeds left out."""
    reference: str
    """Name of the setting it is compared with; its own for a reference."""
    runs: tuple[str, ...]
    """Names of the members, by seed."""
    failed: dict[str, str]
    """Member -> why it was stopped."""
    scores: dict[str, tuple[float, ...]]
    """form -> score of the first metric of each seed that was scored; no forms where none was."""
    intervals: dict[str, Interval]
    """form -> mean and 95 % interval over seeds and videos."""
    comparisons: dict[str, ReferenceComparison]
    """form -> against the reference; empty for the reference itself and where either has no
    score."""
    metrics: dict[str, dict[str, float]]
    """form -> every metric's mean over seeds."""
    cost: Cost
    training_s: float | None
    """Own share of the time, mean over seeds; None where no seed finished."""
    pareto: dict[str, bool]
    """form -> whether no other setting is at least as good and cheaper in FLOPs, or better and as
    cheap."""


class Summary(Settings):
    """summary-<task>.json of a sweep."""

    name: str
    split: str
    task: str
    metric: MetricFacts
    """The first, which counts."""
    reference: str
    """Name of a setting."""
    trivial: float
    """What the trivial answer scores."""
    axes: dict[str, list[Any]]
    settings: tuple[PointSummary, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of one member: it was scored, or it was stopped."""

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
    """Name of the setting it is compared with; None: the sweep's."""

    def scored(self) -> dict[int, Evaluation]:
        """seed -> evaluation, in order, of the members that were not stopped."""
        found: dict[int, Evaluation] = {}
        for one in sorted(self.outcomes, key=lambda one: one.seed):
            if one.failed is None and one.evaluation is None:
                raise BadInput(
                    f"member {one.member} was neither scored nor stopped",
                    "run the sweep again: it goes on",
                )
            if one.failed is None and one.evaluation is not None:
                found[one.seed] = one.evaluation
        return found


def summarise(
    name: str, axes: dict[str, list[Any]], points: Sequence[ScoredPoint], reference: str
) -> Summary:
    """The summary of sweep `name`; `reference` names what settings are compared with that name
    nothing themselves.

    A setting without a scored seed keeps its row, with its failures. Settings that are not compared
    may have been scored on other clips, as harder videos are. Raises BadInput: no such reference,
    members that are neither scored nor failed, that were scored in another metric or on other clips
    than their reference; StillframeError: nothing was scored.
    """
    reference_of = _references(name, points, reference)
    scored = {one.name: list(one.scored().values()) for one in points}
    evaluations = [each for one in [reference, *scored] for each in scored[one]]
    if not evaluations:
        reasons = sorted({str(one.failed) for point in points for one in point.outcomes})
        raise StillframeError(f"no member of sweep '{name}' was scored; why: {'; '.join(reasons)}")
    first = evaluations[0]
    for other in evaluations[1:]:
        _require_same_measure(first, other)
    for ours, theirs in reference_of.items():
        for each in scored[ours]:
            _require_same_clips((scored[theirs] or scored[ours])[0], each)
    metric = first.metrics[0]
    tables = _tables(metric, points, scored)
    comparisons = {form: compared(found, reference_of) for form, found in tables.items()}
    pareto = {form: undominated(found, reference_of) for form, found in tables.items()}

    return Summary(
        name=name,
        split=first.split,
        task=first.task,
        metric=metric,
        reference=reference,
        trivial=first.trivial[metric.name],
        axes=axes,
        settings=tuple(
            PointSummary(
                name=point.name,
                values=point.values,
                reference=reference_of[point.name],
                runs=tuple(one.member for one in sorted(point.outcomes, key=lambda one: one.seed)),
                failed={one.member: one.failed for one in point.outcomes if one.failed is not None},
                scores={
                    form: found[point.name].scores(point.name)
                    for form, found in tables.items()
                    if point.name in found
                },
                intervals={
                    form: found[point.name].interval(point.name)
                    for form, found in tables.items()
                    if point.name in found
                },
                comparisons={
                    form: found[point.name]
                    for form, found in comparisons.items()
                    if point.name in found
                },
                metrics=_metrics(point),
                cost=point.cost,
                training_s=_training_s(point),
                pareto={
                    form: found[point.name] for form, found in pareto.items() if point.name in found
                },
            )
            for point in points
        ),
    )


def _references(name: str, points: Sequence[ScoredPoint], reference: str) -> dict[str, str]:
    """Setting -> the one it is compared with."""
    found = {one.name: one.reference or reference for one in points}
    for wanted in [reference, *found.values()]:
        if wanted not in found:
            raise unknown_name("setting", wanted, list(found), f"reference of sweep '{name}'")
    return found


def _tables(
    metric: MetricFacts,
    points: Sequence[ScoredPoint],
    scored: Mapping[str, Sequence[Evaluation]],
) -> dict[str, dict[str, BootstrapTable]]:
    """form -> setting -> the table of all settings that were scored on the same clips."""
    blocks: dict[tuple[str, ...], list[ScoredPoint]] = {}
    for one in points:
        if scored[one.name]:
            blocks.setdefault(tuple(sorted(scored[one.name][0].clips)), []).append(one)
    found: dict[str, dict[str, BootstrapTable]] = {}
    for form in dict.fromkeys(form for each in chain(*scored.values()) for form in each.forms):
        of_blocks = [
            {one.name: row for one in block if (row := _scored(form, clips, one))}
            for clips, block in blocks.items()
        ]
        spreads = seed_variances(
            {name: row.by_seed for rows in of_blocks for name, row in rows.items()}
        )
        found[form] = {}
        for (clips, block), rows in zip(blocks.items(), of_blocks, strict=True):
            if rows:
                asked = scored[block[0].name][0].clips
                table = BootstrapTable(metric, rows, [asked[clip].video for clip in clips], spreads)
                found[form] |= dict.fromkeys(rows, table)
    return found


def _scored(form: str, clips: Sequence[str], point: ScoredPoint) -> Scored | None:
    found = {seed: each.clips for seed, each in point.scored().items() if form in each.forms}
    tables = [[rows[clip] for clip in clips] for rows in found.values()]
    if not tables:
        return None
    return Scored(
        seeds=tuple(found),
        clips_SC=np.array([[row.scores[form] for row in table] for table in tables], np.float64),
        weight_C=np.array([row.weight for row in tables[0]], np.float64),
        flops=point.cost.flops,
    )


def _require_same_measure(first: Evaluation, other: Evaluation) -> None:
    """Refuses scores of something else: another task, split or metric."""
    theirs = other.measure
    for key, wanted in first.measure.items():
        if theirs[key] != wanted:
            raise BadInput(
                f"runs {first.run} and {other.run} cannot be compared: {key} is {wanted} / {theirs[key]}",
                "summarise settings of one task, evaluated on one split",
            )


def _require_same_clips(first: Evaluation, other: Evaluation) -> None:
    ours, theirs = first.clips, other.clips
    strange = sorted(ours.keys() ^ theirs.keys()) or [
        one for one in ours if ours[one].video != theirs[one].video
    ]
    if strange:
        raise BadInput(
            f"runs {first.run} and {other.run} were not scored on the same clips: {len(strange)} differ, "
            f"first {strange[0]}",
            "evaluate both on the same split of one manifest",
        )


def compared(
    tables: Mapping[str, BootstrapTable], reference_of: Mapping[str, str]
) -> dict[str, ReferenceComparison]:
    """Setting -> what it gains over its reference; none for a reference itself, or where that has
    no score."""
    pairs = {
        name: reference_of[name]
        for name in tables
        if reference_of[name] != name and reference_of[name] in tables
    }
    spreads = _paired_spreads(tables, pairs)
    gains = {
        name: tables[name].gain(name, theirs, spreads.get(name)) for name, theirs in pairs.items()
    }
    p = [two_sided(resampled, tables[name].videos) for name, (_, resampled) in gains.items()]
    found = {}
    for (name, theirs), plain, adjusted in zip(pairs.items(), p, holm(p), strict=True):
        better_C = tables[name].against(name, theirs)
        wins, losses = int((better_C >= TIE).sum()), int((better_C <= -TIE).sum())
        least, greatest = tables[name].range
        found[name] = ReferenceComparison(
            gain=interval_of(*gains[name], (least - greatest, greatest - least)),
            p=plain,
            p_adjusted=adjusted,
            wins=wins,
            ties=len(better_C) - wins - losses,
            losses=losses,
        )
    return found


def _paired_spreads(
    tables: Mapping[str, BootstrapTable], pairs: Mapping[str, str]
) -> dict[str, SeedVariance]:
    """Of the gains of those settings that have the seeds of their reference; all over one reference
    are taken together."""
    found: dict[str, SeedVariance] = {}
    for reference in dict.fromkeys(pairs.values()):
        theirs = tables[reference].rows[reference].by_seed
        ours = {
            name: tables[name].rows[name].by_seed
            for name, other in pairs.items()
            if other == reference
        }
        same = {name: of for name, of in ours.items() if of.keys() == theirs.keys()}
        found |= seed_variances(
            {name: {seed: of[seed] - theirs[seed] for seed in of} for name, of in same.items()}
        )
    return found


def undominated(
    tables: Mapping[str, BootstrapTable], reference_of: Mapping[str, str]
) -> dict[str, bool]:
    """Setting -> whether no other with the same reference is at least as good and as cheap, and one
    of the two strictly."""
    found: dict[str, bool] = {}
    for reference in dict.fromkeys(reference_of[name] for name in tables):
        names = [name for name in tables if reference_of[name] == reference]
        rows = [tables[name].rows[name] for name in names]
        score = np.array(
            [tables[name].sign * row.means.mean() for name, row in zip(names, rows, strict=True)]
        )
        flops = np.array([row.flops for row in rows])
        as_good, as_cheap = score >= score[:, None], flops <= flops[:, None]
        strictly = (score > score[:, None]) | (flops < flops[:, None])
        beaten = np.any(as_good & as_cheap & strictly, axis=1)
        found |= {name: not lost for name, lost in zip(names, beaten, strict=True)}
    return found


def holm(p: Sequence[float]) -> list[float]:
    """p corrected for how many there are: the chance of even one false finding stays below the
    level (Holm, 1979)."""
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    raised = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(raised, 1)
    return [float(one) for one in adjusted]


def _metrics(point: ScoredPoint) -> dict[str, dict[str, float]]:
    """form -> metric -> mean over seeds."""
    forms = [each.forms for each in point.scored().values()]
    return {
        form: {
            metric: float(np.mean([each[form][metric].score for each in forms]))
            for metric in forms[0][form]
        }
        for form in (forms[0] if forms else {})
    }


def _training_s(point: ScoredPoint) -> float | None:
    seconds = [
        one.training_s
        for one in point.outcomes
        if one.failed is None and one.training_s is not None
    ]
    return float(np.mean(seconds)) if seconds else None
