"""A run and a split -> scores with 95 % intervals, streaming and window-wide, written into the run folder.

The interval is a percentile bootstrap over *videos*, not clips: clips of one video are not independent witnesses.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

from pipeline import plugins
from pipeline.cache import Cache
from pipeline.device import chosen
from pipeline.errors import BadInput
from pipeline.ledger import read_json, to_json
from pipeline.manifest import Manifest
from pipeline.model import VideoModel, layers_read
from pipeline.places.folder import write_atomically
from pipeline.plugins import Settings
from pipeline.run import CacheFacts, Run, load_model
from pipeline.spec import WindowSettings
from pipeline.targets import Arrays, collate
from pipeline.tasks import TaskPlugin
from pipeline.train import predict, require_fit, require_truth
from pipeline.windows import Windows

RESAMPLES = 2000
TRIVIAL_WINDOWS = 512
"""Training windows whose truth the trivial answer may look at."""


class Interval(Settings):
    """A mean score and its 95 % interval."""

    score: float
    low: float
    high: float


class MetricFacts(Settings):
    name: str
    higher_is_better: bool
    perfect: float
    unit: str


class Evaluation(Settings):
    """evaluation-<split>.json."""

    run: str
    split: str
    checkpoint: dict[str, str | int]
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
    clips: dict[str, dict[str, str | float | None]]
    """clip -> its label, video and weight, and the first metric in every form."""


def evaluate(
    run: Run,
    cache: Cache,
    split: str = "val",
    checkpoint: str = "last",
    manifest: Manifest | None = None,
    device: torch.device | None = None,
    allow_missing: bool = False,
) -> dict[str, Any]:
    """Scores of every clip of `split`, also written to `evaluation-<split>.json` in the run folder; see `Evaluation`.

    The `last` checkpoint is scored by default: `best` was chosen on the evaluation split, which flatters it there. The answers
    themselves go to `answers-<split>.safetensors`, unless the task's are too large.
    """
    device = chosen(device)
    manifest = manifest or cache.manifest
    recipe = run.recipe
    require_fit(recipe, cache, manifest)
    require_same_cache(run, cache, manifest)
    cache.require_sound()
    model, task = load_model(run, cache.shape, checkpoint, device)
    layers = layers_read(recipe, cache.shape)
    windows = Windows(cache, manifest, split, recipe.windows, task, layers, allow_missing=allow_missing)
    require_truth(task, windows)
    known = statistics(task, cache, manifest, split, recipe.windows)
    table = score_windows(model, task, windows, known, device)
    facts = run.checkpoint(checkpoint)
    assert facts is not None
    clips = table.of_clips(task.metrics[0].name)
    record = Evaluation(
        run=run.path.name,
        split=split,
        checkpoint={"which": checkpoint, "step": facts.step},
        cache=run.header.cache,
        task=recipe.task.name,
        temporal=recipe.temporal.name,
        metrics=tuple(MetricFacts(**metric._asdict()) for metric in task.metrics),
        trivial={metric.name: table.interval(TRIVIAL, metric.name).score for metric in task.metrics},
        clips_scored=len(clips),
        clips_skipped=len(windows.skipped),
        clips_without_truth=len(windows) - len(clips),
        videos=len({windows.clip(place).video_id for place in clips}),
        forms={form: {metric.name: table.interval(form, metric.name) for metric in task.metrics} for form in task.forms},
        clips={windows.clip(place).clip_id: row for place, row in clips.items()},
    )
    if task.keeps_answers:
        write_atomically(run.path / f"answers-{split}.safetensors", save(table.answers))
    write_atomically(run.path / f"evaluation-{split}.json", to_json(record))
    return record.model_dump(mode="json")


def require_same_cache(run: Run, cache: Cache, manifest: Manifest) -> None:
    """Refuses tokens of another cache, which the run was not trained on, and labels in another order."""
    wanted = run.header.cache.fingerprint
    if cache.fingerprint != wanted:
        raise BadInput(
            f"run {run.path} was trained on the cache with fingerprint {wanted}, {cache} has {cache.fingerprint}",
            f"give the cache {run.header.cache.name}",
        )
    task: type[TaskPlugin] = plugins.load("task", run.recipe.task.name)
    if "label" in task.needs and manifest.labels != run.header.labels:
        raise BadInput(
            f"run {run.path} knows the labels {_some(run.header.labels)}; "
            f"manifest {manifest.folder} has {_some(manifest.labels)}",
            "give the manifest it was trained with: --manifest DIR",
        )


def _some(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:5]) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")


def statistics(task: TaskPlugin, cache: Cache, manifest: Manifest, split: str, settings: WindowSettings) -> Arrays:
    """What the trivial answer may know: training windows' truth, or that of `split` itself where there is no training split."""
    known = Windows(cache, manifest, "train" if "train" in manifest.splits else split, settings, task, allow_missing=True)
    samples = islice(known.evaluation_samples(), TRIVIAL_WINDOWS)
    return task.statistics(known.truth([sample]) for sample in samples)


TRIVIAL = "trivial"


class Scores:
    """Scores of every evaluation window, in order, and what they amount to."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows
        self.values: dict[tuple[str, str], np.ndarray] = {}
        """(form, metric) -> (windows,)."""
        self.weight = np.zeros(0)
        self.clip = np.zeros(0, np.int64)
        self.answers: Arrays = {}

    def interval(self, form: str, metric: str) -> Interval:
        videos = [self.windows.clip(int(clip)).video_id for clip in self.clip]
        return interval(self.values[form, metric], videos, self.weight)

    def of_clips(self, metric: str) -> dict[int, dict[str, str | float | None]]:
        """clip -> label, video, weight, and per form the mean over its windows, for the clips that have something to score."""
        weight = np.bincount(self.clip, self.weight, len(self.windows))
        counted = self.weight > 0
        means = {
            form: np.bincount(self.clip[counted], (values * self.weight)[counted], len(weight)) / np.maximum(weight, 1e-300)
            for (form, name), values in self.values.items()
            if name == metric and form != TRIVIAL
        }
        rows: dict[int, dict[str, str | float | None]] = {}
        for place in np.flatnonzero(weight).tolist():
            clip = self.windows.clip(place)
            rows[place] = {"label": clip.label, "video": clip.video_id, "weight": float(weight[place])}
            rows[place] |= {form: float(mean[place]) for form, mean in means.items()}
        return rows


def score_windows(model: VideoModel, task: TaskPlugin, windows: Windows, known: Arrays, device: torch.device) -> Scores:
    """Scores of the model in every form, and of the trivial answer, for every evaluation window."""
    table = Scores(windows)
    columns: dict[tuple[str, str], list[np.ndarray]] = {}
    answers: dict[str, list[np.ndarray]] = {form: [] for form in task.forms}
    weights, clips = [], []
    for batch, given in predict(model, task, windows, device):
        weights.append(task.weight(batch.targets))
        clips.append(batch.clip_index)
        for form, answer in (given | {TRIVIAL: task.trivial(batch.targets, known)}).items():
            for metric, values in task.score(answer, batch.targets).items():
                columns.setdefault((form, metric), []).append(values)
        if task.keeps_answers:
            for form, answer in given.items():
                answers[form] += list(answer)
    table.values = {key: np.concatenate(parts) for key, parts in columns.items()}
    table.weight, table.clip = np.concatenate(weights), np.concatenate(clips)
    if task.keeps_answers:
        table.answers = collate([dict(zip(answers, row, strict=True)) for row in zip(*answers.values(), strict=True)])
    return table


def interval(scores: np.ndarray, videos: Sequence[str], weights: np.ndarray | None = None, seed: int = 0) -> Interval:
    """Weighted mean over windows and its 95 % percentile interval when whole videos are resampled.

    A window of weight 0 has no say, and its score may be NaN.
    """
    weights = np.ones(len(scores)) if weights is None else weights
    counted = weights > 0
    scores, weights = scores[counted], weights[counted]
    _, group = np.unique(np.asarray(videos)[counted], return_inverse=True)
    sums, counts = np.bincount(group, scores * weights), np.bincount(group, weights)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(score=float(sums.sum() / counts.sum()), low=float(low), high=float(high))


def difference(ours: dict[str, Any], theirs: dict[str, Any], form: str) -> Interval:
    """First metric of one evaluation minus that of another on the same clips, videos resampled: paired, so that what makes a
    clip hard for both cancels."""
    same = ours["clips"].keys() == theirs["clips"].keys() and ours["metrics"] == theirs["metrics"]
    if not same or form not in theirs["forms"] or form not in ours["forms"]:
        raise BadInput(
            f"runs {ours['run']} and {theirs['run']} were not scored on the same clips in form '{form}'",
            "evaluate both on the same split of one manifest",
        )
    pairs = [(clip, theirs["clips"][clip_id]) for clip_id, clip in ours["clips"].items()]
    gain = np.array([clip[form] - other[form] for clip, other in pairs])
    return interval(gain, [clip["video"] for clip, _ in pairs], np.array([clip["weight"] for clip, _ in pairs]))


def read_evaluation(path: Path, split: str) -> dict[str, Any] | None:
    """What `evaluate` wrote, or None. Raises BadInput where it is damaged."""
    file = path / f"evaluation-{split}.json"
    if not file.is_file():
        return None
    return read_json(Evaluation, file, f"stillframe evaluate {path} --split {split}").model_dump(mode="json")
