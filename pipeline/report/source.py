"""A page is made of runs, a sweep or a cache, which are told apart by what is in the folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cache.cache import Cache
from pipeline.cache.layout import HEADER_FILE
from pipeline.cache.parts.chosen import is_parted, open_cache
from pipeline.cache.storage.open import open_storage
from pipeline.config.json_files import read_json
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import BadInput
from pipeline.experiments.summary import Outcome, PointSummary, ScoredPoint, Summary, summarise
from pipeline.experiments.sweep import SUMMARIES, SWEEP_FILE
from pipeline.models.encoders.contract import token_shape, without_network
from pipeline.models.profile import Cost, cost
from pipeline.records import TokenShape
from pipeline.train.evaluation import Evaluation, MetricFacts, read_evaluation
from pipeline.train.run import Run

RESUME_HINT = "run the same sweep again: it goes on where it was"
Source = Sequence[Run] | Path | Cache
"""Evaluated runs, the folder of a sweep, or a cache."""


@dataclass(frozen=True)
class ReportData:
    """The points that a page compares, and the runs behind them."""

    path: Path | None
    """The folder of a sweep; None: runs from anywhere, of which those that differ in nothing but
    the seed are one point."""
    summary: Summary
    runs: Mapping[str, Run]
    """Name of a run -> the run, for those that were scored."""
    evaluations: Mapping[str, Evaluation]
    has_costs: bool
    """False: of the costs in `summary` only the parameters are known."""

    @property
    def metric(self) -> MetricFacts:
        return self.summary.metric

    @property
    def form(self) -> str:
        """The form that points are ranked by: the first that was scored."""
        return next(form for point in self.summary.settings for form in point.intervals)

    def ranked(self) -> list[PointSummary]:
        """The points that were scored, best first."""
        sign = -1 if self.metric.higher_is_better else 1
        scored = [point for point in self.summary.settings if self.form in point.intervals]
        return sorted(scored, key=lambda point: sign * point.intervals[self.form].score)

    def scored_runs(self, point: PointSummary) -> list[str]:
        """Names of the runs of a point that were scored, by seed."""
        return [name for name in point.runs if name in self.runs]

    def shown(self, point: PointSummary) -> tuple[Run, str]:
        """The first scored run of a point, and which checkpoint of it was scored."""
        name = self.scored_runs(point)[0]
        return self.runs[name], self.evaluations[name].checkpoint.which

    @property
    def references(self) -> list[str]:
        """Names of the points that others are compared with."""
        return list(dict.fromkeys(point.reference for point in self.summary.settings))

    @property
    def is_one_question(self) -> bool:
        """Whether one point can be the best: all have one reference, or the same windows, which an
        equal score of the trivial answer shows."""
        return (
            len(self.references) == 1 or len({self.trivial(point) for point in self.ranked()}) == 1
        )

    def trivial(self, point: PointSummary) -> float:
        """Score of the trivial answer on the clips of a scored point."""
        return self.evaluations[self.scored_runs(point)[0]].trivial[self.metric.name]

    def baseline(self, point: PointSummary) -> str | None:
        """Name of the best answer without training on the clips of a point; None where the files
        are of an earlier version."""
        sign = 1 if self.metric.higher_is_better else -1
        scores = {name: sign * each.interval.score for name, each in point.baselines.items()}
        return max(scores, key=lambda name: scores[name], default=None)

    def tracker(self, point: PointSummary) -> str | None:
        """Name of the best of those that look at tokens; None where the task has none."""
        looking = {name: each for name, each in point.baselines.items() if each.layer is not None}
        return self.baseline(point.model_copy(update={"baselines": looking}))

    def compared(self) -> list[PointSummary]:
        """The best point, and its reference where that is another: both were scored on the same
        clips."""
        ranked = self.ranked()
        return ranked[:1] + [point for point in ranked[1:] if point.name == ranked[0].reference]


def find_source(arguments: Sequence[str]) -> Source:
    """The source that the arguments of a command name. Raises BadInput where they name none, or do
    not go together."""
    whole = next(
        (name for name in arguments if _holds(name, SWEEP_FILE) or _holds(name, HEADER_FILE)), None
    )
    if whole is None:
        unknown = [name for name in arguments if not _holds(name, "run.json")]
        if unknown:
            raise BadInput(
                f"{unknown[0]} is no run, sweep or cache: "
                f"it has no run.json, {SWEEP_FILE} or {HEADER_FILE}",
                "name the folders of runs, one sweep or one cache",
            )
        return [Run(Path(name)) for name in arguments]
    if len(arguments) > 1:
        raise BadInput(
            "a page is about runs, or about one sweep or cache; "
            f"found {len(arguments)} arguments, and {whole} is no run",
            f"stillframe report {whole}",
        )
    return Path(whole) if _holds(whole, SWEEP_FILE) else Cache(whole)


def _holds(folder: str, name: str) -> bool:
    """Whether a folder or URL has a file of that name."""
    return open_storage(folder).exists(name)


def read_sweep(path: Path, split: str) -> list[ReportData]:
    """The data of a sweep, one for each task. Raises BadInput for a sweep that is not finished, or
    was scored on another split."""
    files = sorted(path.glob(SUMMARIES))
    if not files:
        raise BadInput(f"sweep {path} is not finished: it has no {SUMMARIES}", RESUME_HINT)
    return [_of_summary(path, read_json(Summary, file, RESUME_HINT), split) for file in files]


def _of_summary(path: Path, summary: Summary, split: str) -> ReportData:
    if summary.split != split:
        raise BadInput(
            f"sweep {path} was scored on split '{summary.split}', not on '{split}'",
            f"--split {summary.split}",
        )
    if not any(point.intervals for point in summary.settings):
        raise BadInput(
            f"sweep {path} has no member that was scored",
            "see failed.json in the folders of its members",
        )
    scored = [name for point in summary.settings for name in point.runs if name not in point.failed]
    runs = {name: Run(path / "runs" / name) for name in scored}
    evaluations, unscored = _evaluations(runs, split)
    if unscored:
        raise _not_evaluated(unscored, split)
    return ReportData(path, summary, runs, evaluations, has_costs=True)


def read_runs(
    runs_from_anywhere: Sequence[Run], split: str, say: Callable[[str], object] = lambda _: None
) -> ReportData:
    """The data of those runs that were scored on `split`; `say` is told which were not. The
    reference is a run without a temporal module if there is one, else the first run.

    Raises BadInput where none was scored on `split`, or not all on the same clips of one task.
    """
    if not runs_from_anywhere:
        raise BadInput("a page of no runs", "name at least one run folder")
    named = dict(zip(_names(runs_from_anywhere), runs_from_anywhere, strict=True))
    evaluations, unscored = _evaluations(named, split)
    if not evaluations:
        raise _not_evaluated(unscored, split)
    for run in unscored:
        say(f"left out: {_not_evaluated([run], split).with_hint}")
    runs = {name: named[name] for name in evaluations}
    costs = _costs(runs)
    points = []
    for names in _by_recipe(runs):
        first = runs[names[0]]
        outcomes = tuple(
            Outcome(name, runs[name].recipe.training.seed, evaluations[name]) for name in names
        )
        parameters_alone = Cost(
            parameters=sum(first.header.parameters.values()),
            flops=0,
            latency_ms=None,
            state_bytes=0,
        )
        title = names[0] + (f" and {len(names) - 1} more seeds" if len(names) > 1 else "")
        points.append(
            ScoredPoint(
                title,
                {"temporal": first.recipe.temporal.name},
                costs.get(_architecture(first), parameters_alone),
                outcomes,
            )
        )
    without_module = (point.name for point in points if point.values["temporal"] == "identity")
    reference = next(without_module, points[0].name)
    task = next(iter(evaluations.values())).task
    summary = _with_evaluated_intervals(summarise(task, {}, points, reference), evaluations)
    return ReportData(None, summary, runs, evaluations, has_costs=bool(costs))


def _with_evaluated_intervals(summary: Summary, evaluations: Mapping[str, Evaluation]) -> Summary:
    """The summary with the interval that `evaluate` gave where a point is one run: it was resampled
    less often, but people know it."""

    def evaluated(point: PointSummary) -> PointSummary:
        if len(point.runs) > 1:
            return point
        evaluation, metric = evaluations[point.runs[0]], summary.metric.name
        intervals = {form: scores[metric] for form, scores in evaluation.forms.items()}
        baselines = {
            name: point.baselines[name].model_copy(
                update={"interval": scores.metrics[metric], "gains": scores.run_gains}
            )
            for name, scores in evaluation.baselines.items()
        }
        return point.model_copy(update={"intervals": intervals, "baselines": baselines})

    return summary.model_copy(update={"settings": tuple(map(evaluated, summary.settings))})


def cache_of(run: Run) -> Cache:
    """The cache that the run was trained on. Raises BadInput where it is not at hand."""
    header = run.header
    if run.cache_path is None:
        raise BadInput(f"run {run.path.name} was imported and knows no cache")
    folder = header.manifest_path if is_parted(run.cache_path) else None
    cache = open_cache(run.cache_path, Manifest.load(Path(folder)) if folder else None)
    if cache.fingerprint != header.cache.fingerprint:
        raise BadInput(
            f"{cache} is another cache now: its fingerprint is not {header.cache.fingerprint}"
        )
    return cache


def _names(runs: Sequence[Run]) -> list[str]:
    """Folder names; whole paths where two runs have the same."""
    names = [run.path.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def _evaluations(runs: Mapping[str, Run], split: str) -> tuple[dict[str, Evaluation], list[Run]]:
    """Name of a run -> its evaluation on `split`; and the runs that have none."""
    found = {name: read_evaluation(run.path, split) for name, run in runs.items()}
    evaluations = {name: each for name, each in found.items() if each is not None}
    return evaluations, [run for name, run in runs.items() if name not in evaluations]


def _not_evaluated(runs: Sequence[Run], split: str) -> BadInput:
    more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
    return BadInput(
        f"not evaluated on split '{split}': {', '.join(str(run.path) for run in runs[:3])}{more}",
        f"stillframe evaluate {runs[0].path} --split {split}",
    )


def _by_recipe(runs: Mapping[str, Run]) -> list[list[str]]:
    """Names of runs of one manifest that differ in nothing but name and seed, by seed. A second run
    with the same seed is a point of its own: it is no second witness."""
    groups: list[tuple[dict[str, Any], dict[int, str]]] = []
    for name, run in runs.items():
        recipe, seed = run.header.recipe, run.recipe.training.seed
        common = recipe | {
            "name": None,
            "training": {key: value for key, value in recipe["training"].items() if key != "seed"},
            "fingerprint": run.header.cache.fingerprint,
            "manifest": run.header.manifest,
        }
        names_by_seed = next(
            (names for other, names in groups if other == common and seed not in names), None
        )
        if names_by_seed is None:
            groups.append((common, {seed: name}))
        else:
            names_by_seed[seed] = name
    return [[names[seed] for seed in sorted(names)] for _, names in groups]


def _architecture(run: Run) -> str:
    """Equal for runs whose models cost the same."""
    recipe = run.header.recipe
    parts = [recipe[key] for key in ("task", "temporal", "model", "windows")]
    return str((*parts, run.header.cache.fingerprint))


def _costs(runs: Mapping[str, Run]) -> dict[str, Cost]:
    """Architecture -> its cost, the latency measured here and now; nothing where some run's tokens
    are not known."""
    costs: dict[str, Cost] = {}
    shapes: dict[str, TokenShape] = {}
    for run in runs.values():
        architecture, fingerprint = _architecture(run), run.header.cache.fingerprint
        if architecture in costs:
            continue
        try:
            with without_network():
                shapes.setdefault(fingerprint, token_shape(run.spec))
        except (BadInput, OSError):
            return {}
        costs[architecture] = cost(run.recipe, shapes[fingerprint], run.header.labels)
    return costs
