"""A run and a split -> scores with 95 % intervals, streaming and window-wide, written into the run folder.

The interval is a percentile bootstrap over *videos*, not clips: clips of one video are not independent witnesses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

from pipeline import plugins
from pipeline.cache import Cache
from pipeline.errors import BadInput
from pipeline.ledger import read_json, to_json
from pipeline.manifest import Manifest
from pipeline.model import VideoModel, layers_read
from pipeline.plugins import Settings
from pipeline.store import write_atomically
from pipeline.tasks import TaskPlugin
from pipeline.train import Run, load_weights, predict, require_fit
from pipeline.windows import Windows

RESAMPLES = 2000


class Interval(Settings):
    """A mean score and its 95 % interval."""

    score: float
    low: float
    high: float


class Evaluation(Settings):
    """evaluation-<split>.json."""

    run: str
    split: str
    checkpoint: dict[str, str | int]
    cache: dict[str, str]
    task: str
    temporal: str
    metric: str
    higher_is_better: bool
    trivial: float
    clips_scored: int
    clips_skipped: int
    videos: int
    forms: dict[str, Interval]
    clips: dict[str, dict[str, str | float | None]]


def evaluate(
    run: Run,
    cache: Cache,
    split: str = "val",
    checkpoint: str = "last",
    manifest: Manifest | None = None,
    device: torch.device | None = None,
    allow_missing: bool = False,
) -> dict[str, Any]:
    """Scores of every clip of `split`, also written to `evaluation-<split>.json` in the run folder.

    Returns plain data: per form `score`, `low`, `high` (95 %), and `clips`: clip_id -> label and score per form. The `last`
    checkpoint is scored by default: `best` was chosen on the evaluation split, which flatters it there. The answers themselves
    go to `answers-<split>.safetensors`.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    manifest = manifest or cache.manifest
    recipe = run.recipe
    require_fit(recipe, cache, manifest)
    require_same_cache(run, cache, manifest)
    cache.require_sound()
    task: TaskPlugin = plugins.load("task", recipe.task.name)(recipe.task.settings, manifest.labels)
    layers = layers_read(recipe, cache.shape)
    windows = Windows(cache, manifest, split, recipe.windows, task.needs, layers, allow_missing=allow_missing)
    model = VideoModel(recipe, cache.shape, task).to(device)
    load_weights(model, run.tensors(checkpoint))
    clip_scores, answers = score_clips(model, task, windows, device)
    videos = [windows.clip(place).video_id for place in range(len(windows))]
    facts = run.checkpoint(checkpoint)
    assert facts is not None
    record = Evaluation(
        run=run.path.name,
        split=split,
        checkpoint={"which": checkpoint, "step": facts.step},
        cache=run.header.cache.model_dump(),
        task=recipe.task.name,
        temporal=recipe.temporal.name,
        metric=task.metric_name,
        higher_is_better=task.higher_is_better,
        trivial=task.trivial_score,
        clips_scored=len(windows),
        clips_skipped=len(windows.skipped),
        videos=len(set(videos)),
        forms={form: Interval(**interval(scores, videos)) for form, scores in clip_scores.items()},
        clips={
            windows.clip(place).clip_id: {"label": windows.clip(place).label}
            | {form: float(scores[place]) for form, scores in clip_scores.items()}
            for place in range(len(windows))
        },
    )
    write_atomically(run.path / f"answers-{split}.safetensors", save(answers))
    write_atomically(run.path / f"evaluation-{split}.json", to_json(record))
    return record.model_dump()


def require_same_cache(run: Run, cache: Cache, manifest: Manifest) -> None:
    """Refuses tokens of another cache, which the run was not trained on, and labels in another order."""
    wanted = run.header.cache.fingerprint
    if cache.fingerprint != wanted:
        raise BadInput(
            f"run {run.path} was trained on the cache with fingerprint {wanted}, {cache.path} has {cache.fingerprint}",
            f"give the cache {run.header.cache.name}",
        )
    if manifest.labels != run.header.labels:
        raise BadInput(
            f"run {run.path} knows the labels {_some(run.header.labels)}; "
            f"manifest {manifest.folder} has {_some(manifest.labels)}",
            "give the manifest it was trained with: --manifest DIR",
        )


def _some(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:5]) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")


def score_clips(
    model: VideoModel, task: TaskPlugin, windows: Windows, device: torch.device
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """form -> score of every clip (mean over its windows), and form -> answers of every window in order."""
    total = {form: np.zeros(len(windows)) for form in task.forms}
    answers: dict[str, list[np.ndarray]] = {form: [] for form in task.forms}
    for batch, given in predict(model, task, windows, device):
        for form, answer in given.items():
            np.add.at(total[form], batch.clip_index, task.score(answer, batch.targets))
            answers[form].append(answer)
    means = {form: scores / windows.settings.eval_windows for form, scores in total.items()}
    return means, {form: np.concatenate(given) for form, given in answers.items()}


def interval(scores: np.ndarray, videos: list[str], seed: int = 0) -> dict[str, float]:
    """Mean over clips and its 95 % percentile interval when whole videos are resampled."""
    _, group = np.unique(videos, return_inverse=True)
    sums, counts = np.bincount(group, scores), np.bincount(group)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"score": float(scores.mean()), "low": float(low), "high": float(high)}


def read_evaluation(path: Path, split: str) -> dict[str, Any] | None:
    """What `evaluate` wrote, or None. Raises BadInput where it is damaged."""
    file = path / f"evaluation-{split}.json"
    if not file.is_file():
        return None
    return read_json(Evaluation, file, f"stillframe evaluate {path} --split {split}").model_dump()
