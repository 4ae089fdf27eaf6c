"""What a page is about: runs, a sweep or a cache, found out by what is in the folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cache.cache import Cache
from pipeline.cache.layout import HEADER_FILE
from pipeline.cache.storage.open import open_storage
from pipeline.config.json_files import read_json
from pipeline.errors import BadInput
from pipeline.experiments.summary import Outcome, PointSummary, ScoredPoint, Summary, summarise
from pipeline.experiments.sweep import SUMMARIES, SWEEP_FILE
from pipeline.models.encoders.contract import token_shape
from pipeline.models.profile import Cost, cost
from pipeline.records import TokenShape
from pipeline.train.evaluate import Evaluation, MetricFacts, read_evaluation
from pipeline.train.run import Run

AGAIN = "run the same sweep again: it goes on where it was"
Source = Sequence[Run] | Path | Cache
"""Evaluated runs, the folder of a sweep, or a cache."""


@dataclass(frozen=True)
class ReportData:
    """Settings that were scored on the same clips, and the runs behind them."""

    path: Path | None
    """The folder of a sweep; None: runs from anywhere, of which those that differ in nothing but
    the seed are one setting."""
    summary: Summary
    runs: Mapping[str, Run]
    """Name of a run -> the run, those that were scored."""
    evaluations: Mapping[str, Evaluation]
    has_costs: bool
    """False: of the costs in `summary` only the parameters are known."""

    @property
    def metric(self) -> MetricFacts:
        return self.summary.metric

    @property
    def form(self) -> str:
        """The form that settings are ranked by: the first that was scored."""
        return next(form for point in self.summary.settings for form in point.intervals)

    def ranked(self) -> list[PointSummary]:
        """The settings that were scored, best first."""
        sign = -1 if self.metric.higher_is_better else 1
        scored = [point for point in self.summary.settings if self.form in point.intervals]
        return sorted(scored, key=lambda point: sign * point.intervals[self.form].score)

    def scored_runs(self, point: PointSummary) -> list[str]:
        """Their names, by seed."""
        return [name for name in point.runs if name in self.runs]

    def shown(self, point: PointSummary) -> tuple[Run, str]:
        """Its first scored run, and which checkpoint of it was scored."""
        name = self.scored_runs(point)[0]
        return self.runs[name], self.evaluations[name].checkpoint.which

    @property
    def references(self) -> list[str]:
        """Names of the settings that others are compared with."""
        return list(dict.fromkeys(point.reference for point in self.summary.settings))

    @property
    def is_one_question(self) -> bool:
        """Whether one setting can be the best: all have one reference, or the same windows, which
        the trivial answer tells."""
        return (
            len(self.references) == 1 or len({self.trivial(point) for point in self.ranked()}) == 1
        )

    def trivial(self, point: PointSummary) -> float:
        """What the trivial answer scores on the clips of a scored setting."""
        return self.evaluations[self.scored_runs(point)[0]].trivial[self.metric.name]

    def compared(self) -> list[PointSummary]:
        """The best setting, and its reference where it is another: both were scored on the same
        clips."""
        ranked = self.ranked()
        return ranked[:1] + [point for point in ranked[1:] if point.name == ranked[0].reference]


def find_source(places: Sequence[str]) -> Source:
    """The source that the arguments of a command mean. Raises BadInput where they are none, or do
    not go together."""
    whole = next(
        (place for place in places if _holds(place, SWEEP_FILE) or _holds(place, HEADER_FILE)), None
    )
    if whole is None:
        strange = [place for place in places if not _holds(place, "run.json")]
        if strange:
            raise BadInput(
                f"{strange[0]} is no run, sweep or cache: it has no run.json, {SWEEP_FILE} or {HEADER_FILE}",
                "name the folders of runs, one sweep or one cache",
            )
        return [Run(Path(place)) for place in places]
    if len(places) > 1:
        raise BadInput(
            f"a page is about runs, or about one sweep or cache; found {len(places)} arguments, and {whole} is no run",
            f"stillframe report {whole}",
        )
    return Path(whole) if _holds(whole, SWEEP_FILE) else Cache(whole)


def _holds(place: str, name: str) -> bool:
    return open_storage(place).exists(name)


def read_sweep(path: Path, split: str) -> list[ReportData]:
    """One for each task. Raises BadInput for a sweep that is not finished, or was scored on another
    split."""
    found = sorted(path.glob(SUMMARIES))
    if not found:
        raise BadInput(f"sweep {path} is not finished: it has no {SUMMARIES}", AGAIN)
    return [_of_summary(path, read_json(Summary, file, AGAIN), split) for file in found]


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
    return ReportData(path, summary, runs, _evaluations(runs, split), has_costs=True)


def read_runs(given: Sequence[Run], split: str) -> ReportData:
    """Raises BadInput for runs that were not scored on `split`, or not on the same clips of one
    task.

    The reference is a run without a temporal module if there is one, else the first run.
    """
    runs = dict(zip(_names(given), given, strict=True))
    evaluations = _evaluations(runs, split)
    if not runs:
        raise BadInput("a page of no runs", "name at least one run folder")
    costs = _costs(runs)
    points = []
    for names in _by_recipe(runs):
        first = runs[names[0]]
        outcomes = tuple(
            Outcome(name, runs[name].recipe.training.seed, evaluations[name]) for name in names
        )
        known = costs.get(_architecture(first)) or Cost(
            parameters=sum(first.header.parameters.values()),
            flops=0,
            latency_ms=None,
            state_bytes=0,
        )
        title = names[0] + (f" and {len(names) - 1} more seeds" if len(names) > 1 else "")
        points.append(ScoredPoint(title, {"temporal": first.recipe.temporal.name}, known, outcomes))
    still = (point.name for point in points if point.values["temporal"] == "identity")
    reference = next(still, points[0].name)
    task = next(iter(evaluations.values())).task
    summary = _as_evaluated(summarise(task, {}, points, reference), evaluations)
    return ReportData(None, summary, runs, evaluations, has_costs=bool(costs))


def _as_evaluated(summary: Summary, evaluations: Mapping[str, Evaluation]) -> Summary:
    """With the interval that `evaluate` gave where a setting is one run: it was resampled less
    often, but people know it."""

    def known(point: PointSummary) -> PointSummary:
        if len(point.runs) > 1:
            return point
        forms = evaluations[point.runs[0]].forms
        intervals = {form: scores[summary.metric.name] for form, scores in forms.items()}
        return point.model_copy(update={"intervals": intervals})

    return summary.model_copy(update={"settings": tuple(map(known, summary.settings))})


def cache_of(run: Run) -> Cache:
    """The cache that the run was trained on. Raises BadInput where it is not at hand."""
    header = run.header
    if header.cache_path is None:
        raise BadInput(f"run {run.path.name} was imported and knows no cache")
    cache = Cache(header.cache_path)
    if cache.fingerprint != header.cache.fingerprint:
        raise BadInput(
            f"{cache} is another cache now: its fingerprint is not {header.cache.fingerprint}"
        )
    return cache


def _names(runs: Sequence[Run]) -> list[str]:
    """Folder names; whole paths where two runs have the same."""
    names = [run.path.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def _evaluations(runs: Mapping[str, Run], split: str) -> dict[str, Evaluation]:
    found = {name: read_evaluation(run.path, split) for name, run in runs.items()}
    missing = [str(runs[name].path) for name, result in found.items() if result is None]
    if missing:
        shown = ", ".join(missing[:3]) + (
            f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        )
        raise BadInput(
            f"not evaluated on split '{split}': {shown}",
            f"stillframe evaluate {missing[0]} --split {split}",
        )
    return {name: result for name, result in found.items() if result is not None}


def _by_recipe(runs: Mapping[str, Run]) -> list[list[str]]:
    """Names of runs that differ in nothing but name and seed, by seed; the same seed twice is no
    second witness."""
    groups: list[tuple[dict[str, Any], dict[int, str]]] = []
    for name, run in runs.items():
        recipe, seed = run.header.recipe, run.recipe.training.seed
        training = {key: value for key, value in recipe["training"].items() if key != "seed"}
        made = recipe | {
            "name": None,
            "training": training,
            "fingerprint": run.header.cache.fingerprint,
        }
        group = next(
            (names for other, names in groups if other == made and seed not in names), None
        )
        if group is None:
            groups.append((made, {seed: name}))
        else:
            group[seed] = name
    return [[names[seed] for seed in sorted(names)] for _, names in groups]


def _architecture(run: Run) -> str:
    recipe = run.header.recipe
    return str(
        (
            *(recipe[key] for key in ("task", "temporal", "model", "windows")),
            run.header.cache.fingerprint,
        )
    )


def _costs(runs: Mapping[str, Run]) -> dict[str, Cost]:
    """Architecture -> what it costs, the latency measured here and now; nothing where some run's
    tokens are not known."""
    found: dict[str, Cost] = {}
    shapes: dict[str, TokenShape] = {}
    for run in runs.values():
        known, fingerprint = _architecture(run), run.header.cache.fingerprint
        if known in found:
            continue
        try:
            shapes.setdefault(fingerprint, token_shape(run.spec))
        except (BadInput, OSError):
            return {}
        found[known] = cost(run.recipe, shapes[fingerprint], run.header.labels)
    return found
