"""The scores of a run on a split, as they are kept in its folder and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from pipeline.config.json_files import read_json
from pipeline.config.plugins import Settings
from pipeline.errors import BadInput
from pipeline.models.tasks.contract import Metric
from pipeline.train.bootstrap import TIE, Interval, interval
from pipeline.train.run import CacheFacts


class MetricFacts(Settings):
    """A metric as an evaluation keeps it, see `pipeline.models.tasks.contract.Metric`."""

    name: str
    higher_is_better: bool
    perfect: float
    unit: str
    worst: float | None = None
    """None: there is no such end, or it was not written down yet."""
    at: str = ""
    is_median: bool = False

    @property
    def base(self) -> str:
        """Name without the place where it is measured."""
        return self.name.removesuffix(f", {self.at}")

    @property
    def range(self) -> tuple[float, float]:
        """Least and greatest score there is."""
        return Metric(**self.model_dump()).range


class ScoredCheckpoint(Settings):
    """The weights that were scored: `which` of a run's checkpoints, and after how many steps."""

    which: str
    step: int


class ClipScores(NamedTuple):
    """The scores of one clip. On disk `scores` stand beside the other keys, form by form."""

    label: str | None
    video: str
    weight: float
    """Sum of the weights of its windows, above 0."""
    scores: dict[str, float]
    """form -> first metric, mean over its windows."""


def _nested(row: Any) -> Any:
    """The keys of a clip on disk, those that are forms put together."""
    if not isinstance(row, dict):
        return row
    facts = {key: value for key, value in row.items() if key in ("label", "video", "weight")}
    return facts | {"scores": {key: value for key, value in row.items() if key not in facts}}


def _flat(clip: ClipScores) -> dict[str, str | float | None]:
    return {"label": clip.label, "video": clip.video, "weight": clip.weight, **clip.scores}


class BaselineScores(Settings):
    """The scores of an answer that needs no training. Gains are paired, and positive is better,
    whatever the metric's direction."""

    layer: int | None
    """The recorded layer whose tokens it looks at; None: it looks at none."""
    metrics: dict[str, Interval]
    over_trivial: Interval | None = None
    """Its gain over the trivial answer in the first metric; None for that one itself."""
    run_gains: dict[str, Interval] = Field(default_factory=dict)
    """form -> gain of the run over it in the first metric."""
    clips: dict[str, float]
    """clip_id -> first metric, mean over its windows."""


class KindScores(Settings):
    """The scores of the questions of one kind."""

    clips: int
    scores: dict[str, Interval]
    """form, or name of a baseline -> first metric."""


Ceilings = dict[str, dict[str, Interval]]
"""`ceiling, layer 11` -> metric -> the best score that the codec's rounding leaves within reach,
where the tokens of that layer are the truth. Empty where no codec has rounded it, and in older
files."""


class Evaluation(Settings):
    """The scores of a run on a split: the content of evaluation-<split>.json."""

    run: str
    split: str
    checkpoint: ScoredCheckpoint
    cache: CacheFacts
    task: str
    temporal: str
    metrics: tuple[MetricFacts, ...]
    """The first is the one that counts."""
    trivial: dict[str, float]
    """metric -> what the trivial answer scores."""
    clips_scored: int
    clips_skipped: int
    clips_without_truth: int
    """Covered by the cache, but with nothing to score."""
    videos: int
    forms: dict[str, dict[str, Interval]]
    """form -> metric -> score."""
    clips: dict[str, Annotated[ClipScores, BeforeValidator(_nested), PlainSerializer(_flat)]]
    """clip_id -> its scores, for clips that have something to score."""
    loss_fall: float | None = None
    """Share by which the training loss had fallen, see `run.loss_fall`; None in older files."""
    baselines: dict[str, BaselineScores] = Field(default_factory=dict)
    """Name -> answers that need no training: the trivial one, and those from the tokens of every
    layer that the run reads. Empty in older files."""
    ceilings: Ceilings = Field(default_factory=dict)
    kinds: dict[str, KindScores] = Field(default_factory=dict)
    """Kind of question, as the data set names it -> its scores, by alphabet. Empty where no clip
    has a kind, and in older files."""
    videos_seen: int | None = None
    """Those of `videos` that the run, or one that it began with, was trained on; None where that is
    not known, and in older files."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        names = {metric.name for metric in self.metrics}
        tables = [self.trivial.keys(), *(table.keys() for table in self.forms.values())]
        if not names or not all(names <= keys for keys in tables):
            raise ValueError(f"wanted the metrics {sorted(names)} of every form and of the trivial")
        if not all(self.forms.keys() <= clip.scores.keys() for clip in self.clips.values()):
            raise ValueError(f"wanted a score of every clip in the forms {sorted(self.forms)}")
        return self

    @property
    def measure(self) -> dict[str, Any]:
        """The facts that are equal in evaluations whose scores can be compared. What older
        files lack is left out."""
        newer = {"worst", "at"}
        metrics = [metric.model_dump(mode="json", exclude=newer) for metric in self.metrics]
        return {"task": self.task, "split": self.split, "metrics": metrics}


def read_evaluation(path: Path, split: str) -> Evaluation | None:
    """The evaluation that `evaluate` wrote into the run folder `path`, or None. Raises BadInput
    where it is damaged."""
    file = path / f"evaluation-{split}.json"
    if not file.is_file():
        return None
    return read_json(Evaluation, file, f"stillframe evaluate {path} --split {split}")


def by_kind(clips: Mapping[str, ClipScores], kind_of: Mapping[str, str]) -> dict[str, KindScores]:
    """Scores of clips, clip_id -> scores, kind by kind; `kind_of` has the kind of those that have
    one."""
    members: dict[str, list[ClipScores]] = {}
    for clip_id, scores in clips.items():
        if clip_id in kind_of:
            members.setdefault(kind_of[clip_id], []).append(scores)

    def of_form(some: Sequence[ClipScores], form: str) -> Interval:
        values, weights = zip(*((clip.scores[form], clip.weight) for clip in some), strict=True)
        return interval(np.array(values), [clip.video for clip in some], np.array(weights))

    return {
        kind: KindScores(
            clips=len(some), scores={form: of_form(some, form) for form in some[0].scores}
        )
        for kind, some in sorted(members.items())
    }


def difference(ours: Evaluation, theirs: Evaluation, form: str) -> Interval:
    """First metric of one evaluation minus that of another on the same clips, videos resampled:
    paired, so that what makes a clip hard for both cancels. Where all clips are even there is no
    interval. Raises BadInput where clips, metrics or forms differ."""
    same = ours.clips.keys() == theirs.clips.keys() and ours.measure == theirs.measure
    if not same or form not in theirs.forms or form not in ours.forms:
        raise BadInput(
            f"runs {ours.run} and {theirs.run} were not scored on the same clips in form '{form}'",
            "evaluate both on the same split of one manifest",
        )
    clips = ours.clips.items()
    gain = np.array([clip.scores[form] - theirs.clips[name].scores[form] for name, clip in clips])
    weights = np.array([clip.weight for _, clip in clips])
    found = interval(gain, [clip.video for _, clip in clips], weights)
    is_even = (np.abs(gain) < TIE).all()
    return found.model_copy(update={"low": None, "high": None}) if is_even else found
