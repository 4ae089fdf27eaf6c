"""Settings of a sweep side by side: scores with intervals over seeds and videos, gains over a reference, and what they cost.

Two things make a score uncertain: which videos are asked, and with which seed was trained. The interval is that of their sum.
- Videos are resampled, whole and the same for all settings, and give the mean over seeds anew each time (percentile bootstrap,
  as in `pipeline.evaluate`).
- Seeds are too few to be resampled: three values drawn again from three have a third less variance than the seeds they stand
  for, and Student's tails are lost (Hesterberg, The American Statistician 69, 2015). To every resample is added s / sqrt(S)
  times a number drawn from Student's t of S - 1 degrees of freedom, s being the standard deviation of the S scores.
Where the seed decides alone and there are three, such an interval holds the truth about 95 times in 100, resampling seeds and
videos (the pigeonhole bootstrap, Owen, Annals of Applied Statistics 1, 2007) about 78 times. Where videos decide it is a little
too wide, as that one is. Two seeds know their own spread badly, and the interval says so by being very wide.

With one seed it is an interval over videos only: it says nothing of what another seed would give. With fewer than some twenty
videos it is too narrow, and with one it has no width; p is therefore never below 2^(1 - videos).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from pipeline.costs import Cost
from pipeline.errors import BadInput, StillframeError, unknown_name
from pipeline.evaluate import Interval, MetricFacts
from pipeline.plugins import Settings

RESAMPLES = 10_000
"""Of the videos. The least p is 2 / (RESAMPLES + 1), which a hundred comparisons raise to 0.02."""
BLOCK_NUMBERS = 4_000_000
"""Resamples times videos that are in memory at once; changes no result."""
TIE = 1e-9
"""Scores that differ by less are even."""


class Comparison(Settings):
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


class SettingSummary(Settings):
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
    comparisons: dict[str, Comparison]
    """form -> against the reference; empty for the reference itself and where either has no score."""
    metrics: dict[str, dict[str, float]]
    """form -> every metric's mean over seeds."""
    cost: Cost
    training_s: float | None
    """Own share of the time, mean over seeds; None where no seed finished."""
    pareto: dict[str, bool]
    """form -> whether no other setting is at least as good and cheaper in FLOPs, or better and as cheap."""


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
    settings: tuple[SettingSummary, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of one member: it was scored, or it was stopped."""

    member: str
    seed: int
    evaluation: Mapping[str, Any] | None = None
    """As `pipeline.evaluate.read_evaluation` gives it."""
    training_s: float | None = None
    failed: str | None = None
    """Why it was stopped; whatever was scored of it before does not count."""


@dataclass(frozen=True)
class Setting:
    """One point of the grid, what it costs, and what became of its members."""

    name: str
    values: dict[str, Any]
    cost: Cost
    outcomes: tuple[Outcome, ...]
    reference: str | None = None
    """Name of the setting it is compared with; None: the sweep's."""

    def scored(self) -> dict[int, Mapping[str, Any]]:
        """seed -> evaluation, in order, of the members that were not stopped."""
        found = {}
        for one in sorted(self.outcomes, key=lambda one: one.seed):
            if one.failed is None and one.evaluation is None:
                raise BadInput(f"member {one.member} was neither scored nor stopped", "run the sweep again: it goes on")
            if one.failed is None and one.evaluation is not None:
                found[one.seed] = one.evaluation
        return found


def summarise(name: str, axes: dict[str, list[Any]], settings: Sequence[Setting], reference: str) -> Summary:
    """The summary of sweep `name`; `reference` names what settings are compared with that name nothing themselves.

    A setting without a scored seed keeps its row, with its failures. Settings that are not compared may have been scored on
    other clips, as harder videos are. Raises BadInput: no such reference, members that are neither scored nor failed, that were
    scored in another metric or on other clips than their reference; StillframeError: nothing was scored.
    """
    reference_of = _references(name, settings, reference)
    scored = {one.name: list(one.scored().values()) for one in settings}
    evaluations = [each for one in [reference, *scored] for each in scored[one]]
    if not evaluations:
        reasons = sorted({str(one.failed) for setting in settings for one in setting.outcomes})
        raise StillframeError(f"no member of sweep '{name}' was scored; why: {'; '.join(reasons)}")
    first = evaluations[0]
    for other in evaluations[1:]:
        _require_same_measure(first, other)
    for ours, theirs in reference_of.items():
        for each in scored[ours]:
            _require_same_clips((scored[theirs] or scored[ours])[0], each)
    metric = MetricFacts(**first["metrics"][0])
    tables = _tables(metric, settings, scored)
    comparisons = {form: compared(found, reference_of) for form, found in tables.items()}
    pareto = {form: undominated(found, reference_of) for form, found in tables.items()}

    def of_form(setting: Setting) -> Iterator[tuple[str, dict[str, FormTable]]]:
        return ((form, found) for form, found in tables.items() if setting.name in found)

    return Summary(
        name=name,
        split=first["split"],
        task=first["task"],
        metric=metric,
        reference=reference,
        trivial=first["trivial"][metric.name],
        axes=axes,
        settings=tuple(
            SettingSummary(
                name=setting.name,
                values=setting.values,
                reference=reference_of[setting.name],
                runs=tuple(one.member for one in sorted(setting.outcomes, key=lambda one: one.seed)),
                failed={one.member: one.failed for one in setting.outcomes if one.failed is not None},
                scores={
                    form: found[setting.name].scores(setting.name) for form, found in tables.items() if setting.name in found
                },
                intervals={
                    form: found[setting.name].interval(setting.name) for form, found in tables.items() if setting.name in found
                },
                comparisons={form: found[setting.name] for form, found in comparisons.items() if setting.name in found},
                metrics=_metrics(setting),
                cost=setting.cost,
                training_s=_training_s(setting),
                pareto={form: found[setting.name] for form, found in pareto.items() if setting.name in found},
            )
            for setting in settings
        ),
    )


def _references(name: str, settings: Sequence[Setting], reference: str) -> dict[str, str]:
    """Setting -> the one it is compared with."""
    found = {one.name: one.reference or reference for one in settings}
    for wanted in [reference, *found.values()]:
        if wanted not in found:
            raise unknown_name("setting", wanted, list(found), f"reference of sweep '{name}'")
    return found


def _tables(
    metric: MetricFacts, settings: Sequence[Setting], scored: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, dict[str, FormTable]]:
    """form -> setting -> the table of all settings that were scored on the same clips."""
    blocks: dict[tuple[str, ...], list[Setting]] = {}
    for one in settings:
        if scored[one.name]:
            blocks.setdefault(tuple(sorted(scored[one.name][0]["clips"])), []).append(one)
    found: dict[str, dict[str, FormTable]] = {}
    for form in dict.fromkeys(form for each in chain(*scored.values()) for form in each["forms"]):
        made = [FormTable(form, clips, metric, block) for clips, block in blocks.items()]
        found[form] = {row: table for table in made for row in table.rows}
    return found


def _require_same_measure(first: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Refuses scores of something else: another task, split or metric."""
    for key in ("task", "split", "metrics"):
        if first[key] != other[key]:
            raise BadInput(
                f"runs {first['run']} and {other['run']} cannot be compared: {key} is {first[key]} / {other[key]}",
                "summarise settings of one task, evaluated on one split",
            )


def _require_same_clips(first: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    ours, theirs = first["clips"], other["clips"]
    strange = sorted(ours.keys() ^ theirs.keys()) or [one for one in ours if ours[one]["video"] != theirs[one]["video"]]
    if strange:
        raise BadInput(
            f"runs {first['run']} and {other['run']} were not scored on the same clips: {len(strange)} differ, "
            f"first {strange[0]}",
            "evaluate both on the same split of one manifest",
        )


@dataclass(frozen=True)
class Scored:
    """The first metric of one setting in one form."""

    seeds: tuple[int, ...]
    clips_SC: np.ndarray
    """Score of every clip, one row per seed."""
    weight_C: np.ndarray
    """The same for all seeds: it is of the truth in the windows."""
    flops: float

    @property
    def means(self) -> np.ndarray:
        """Score of every seed, (S,)."""
        score_S: np.ndarray = self.clips_SC @ self.weight_C / self.weight_C.sum()
        return score_S


class FormTable:
    """All settings that were scored in one form, on the same clips."""

    def __init__(self, form: str, clips: Sequence[str], metric: MetricFacts, settings: Sequence[Setting]) -> None:
        self.sign = 1 if metric.higher_is_better else -1
        self.rows: dict[str, Scored] = {}
        videos: list[str] = []
        for setting in settings:
            found = {seed: each["clips"] for seed, each in setting.scored().items() if form in each["forms"]}
            if found:
                tables = [[rows[clip] for clip in clips] for rows in found.values()]
                self.rows[setting.name] = Scored(
                    seeds=tuple(found),
                    clips_SC=np.array([[row[form] for row in table] for table in tables], np.float64),
                    weight_C=np.array([row["weight"] for row in tables[0]], np.float64),
                    flops=setting.cost.flops,
                )
                videos = [row["video"] for row in tables[0]]
        number = {video: place for place, video in enumerate(sorted(set(videos)))}
        self.video_C = np.array([number[video] for video in videos])
        self.videos = len(number)
        self.column = {name: place for place, name in enumerate(self.rows)}
        self.resampled = self._resampled()

    def scores(self, name: str) -> tuple[float, ...]:
        return tuple(self.rows[name].means.tolist())

    def interval(self, name: str) -> Interval:
        score_S = self.rows[name].means
        return _interval(score_S.mean(), self.resampled[:, self.column[name]] + seed_noise(score_S))

    def gain(self, name: str, reference: str) -> tuple[float, np.ndarray]:
        """The gain, and the same for every resample. Seeds are paired where both have the same ones."""
        ours, theirs = self.rows[name], self.rows[reference]
        resampled = self.sign * (self.resampled[:, self.column[name]] - self.resampled[:, self.column[reference]])
        if ours.seeds == theirs.seeds:
            noise = seed_noise(ours.means - theirs.means)
        else:
            noise = seed_noise(ours.means) + seed_noise(theirs.means, stream=1)
        return self.sign * float(ours.means.mean() - theirs.means.mean()), resampled + noise

    def against(self, name: str, reference: str) -> np.ndarray:
        """By how much each clip is better, mean over seeds, (C,)."""
        better_C: np.ndarray = self.sign * (self.rows[name].clips_SC.mean(0) - self.rows[reference].clips_SC.mean(0))
        return better_C

    def _resampled(self) -> np.ndarray:
        """Mean over seeds of every setting, with the videos resampled: (RESAMPLES, settings)."""
        rows = self.rows.values()
        sums_VK = np.stack([self._by_video(row.clips_SC.mean(0) * row.weight_C) for row in rows], axis=1)
        weights_VK = np.stack([self._by_video(row.weight_C) for row in rows], axis=1)
        rng = np.random.default_rng(0)
        step = max(1, BLOCK_NUMBERS // self.videos)
        parts = []
        for begin in range(0, RESAMPLES, step):
            count = min(step, RESAMPLES - begin)
            drawn = rng.integers(0, self.videos, (count, self.videos)) + self.videos * np.arange(count)[:, None]
            times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)
            parts.append((times @ sums_VK) / (times @ weights_VK))
        return np.concatenate(parts)

    def _by_video(self, values_C: np.ndarray) -> np.ndarray:
        return np.bincount(self.video_C, values_C, self.videos)


def compared(tables: Mapping[str, FormTable], reference_of: Mapping[str, str]) -> dict[str, Comparison]:
    """Setting -> what it gains over its reference; none for a reference itself, or where that has no score."""
    pairs = {name: reference_of[name] for name in tables if reference_of[name] != name and reference_of[name] in tables}
    gains = {name: tables[name].gain(name, theirs) for name, theirs in pairs.items()}
    p = [two_sided(resampled, tables[name].videos) for name, (_, resampled) in gains.items()]
    found = {}
    for (name, theirs), plain, adjusted in zip(pairs.items(), p, holm(p), strict=True):
        better_C = tables[name].against(name, theirs)
        wins, losses = int((better_C >= TIE).sum()), int((better_C <= -TIE).sum())
        found[name] = Comparison(
            gain=_interval(*gains[name]),
            p=plain,
            p_adjusted=adjusted,
            wins=wins,
            ties=len(better_C) - wins - losses,
            losses=losses,
        )
    return found


def undominated(tables: Mapping[str, FormTable], reference_of: Mapping[str, str]) -> dict[str, bool]:
    """Setting -> whether no other with the same reference is at least as good and as cheap, and one of the two strictly."""
    found: dict[str, bool] = {}
    for reference in dict.fromkeys(reference_of[name] for name in tables):
        names = [name for name in tables if reference_of[name] == reference]
        rows = [tables[name].rows[name] for name in names]
        score = np.array([tables[name].sign * row.means.mean() for name, row in zip(names, rows, strict=True)])
        flops = np.array([row.flops for row in rows])
        as_good, as_cheap = score >= score[:, None], flops <= flops[:, None]
        strictly = (score > score[:, None]) | (flops < flops[:, None])
        beaten = np.any(as_good & as_cheap & strictly, axis=1)
        found |= {name: not lost for name, lost in zip(names, beaten, strict=True)}
    return found


def seed_noise(score_S: np.ndarray, stream: int = 0) -> np.ndarray:
    """What other seeds would have added to the mean over seeds, once for every resample: (RESAMPLES,).

    0 for one seed, which knows nothing of others. Numbers of another `stream` are independent of these.
    """
    count = len(score_S)
    if count == 1:
        return np.zeros(RESAMPLES)
    student = np.random.default_rng([stream, count]).standard_t(count - 1, RESAMPLES)
    noise: np.ndarray = score_S.std(ddof=1) / np.sqrt(count) * student
    return noise


def two_sided(resampled: np.ndarray, videos: int) -> float:
    """p of no gain: twice the share of resampled gains on the rarer side of 0, the observed one counted with them, since a p
    from draws is never 0 (Phipson and Smyth, 2010). Nor is it below what any paired test could show with so few videos."""
    rarer = min((resampled < TIE).sum(), (resampled > -TIE).sum())  # a rounding error is on both sides
    return float(min(1.0, max(2 * (rarer + 1) / (len(resampled) + 1), 2.0 ** (1 - videos))))


def holm(p: Sequence[float]) -> list[float]:
    """p corrected for how many there are: the chance of even one false finding stays below the level (Holm, 1979)."""
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    raised = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(raised, 1)
    return [float(one) for one in adjusted]


def _interval(score: float, resampled: np.ndarray) -> Interval:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(score=float(score), low=float(low), high=float(high))


def _metrics(setting: Setting) -> dict[str, dict[str, float]]:
    """form -> metric -> mean over seeds."""
    forms = [each["forms"] for each in setting.scored().values()]
    return {
        form: {metric: float(np.mean([each[form][metric]["score"] for each in forms])) for metric in forms[0][form]}
        for form in (forms[0] if forms else {})
    }


def _training_s(setting: Setting) -> float | None:
    seconds = [one.training_s for one in setting.outcomes if one.failed is None and one.training_s is not None]
    return float(np.mean(seconds)) if seconds else None
