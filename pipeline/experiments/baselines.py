"""What a cache is worth to a task before anything is trained on it: the scores of the task's
baselines, layer by layer, beside the trivial answer; and how far the points of a sweep are ahead of
them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.config.plugins import Settings
from pipeline.config.recipe import Recipe
from pipeline.datasets.manifest.targets import TOKENS
from pipeline.experiments.resampling import BootstrapTable, PointScores, interval_of
from pipeline.experiments.seed_variance import SeedVariance
from pipeline.models.step_memory import evaluation_batch
from pipeline.models.tasks.contract import TaskPlugin, labels_of, make_task
from pipeline.models.video_model import untrained_answers, with_truth
from pipeline.train.bootstrap import TIE, Interval
from pipeline.train.compatibility import check, require_truth
from pipeline.train.evaluate import Scores, metric_facts
from pipeline.train.evaluation import BaselineScores, Ceilings, Evaluation, MetricFacts
from pipeline.train.run import CacheFacts
from pipeline.train.setup import RunContext, trivial_statistics
from pipeline.train.windows.windows import Windows

NO_SEEDS = SeedVariance(common=0.0, common_freedom=1, own=0.0, own_freedom=1)
"""What is not trained has no seeds that could have been others."""


class BaselineSummary(Settings):
    """An answer without training, beside a point of a sweep that was scored on the same clips."""

    layer: int | None
    """The recorded layer whose tokens it looks at; None: it looks at none."""
    interval: Interval
    """First metric, with its interval over videos."""
    metrics: dict[str, float]
    gains: dict[str, Interval]
    """Form -> paired gain of the point over it, over seeds and videos; positive is better, whatever
    the metric's direction."""


class BaselineEvaluation(Settings):
    """The scores of the answers to a task that need no training, on one split over one cache."""

    cache: CacheFacts
    split: str
    task: str
    metrics: tuple[MetricFacts, ...]
    """The first is the one that counts."""
    clips_scored: int
    clips_skipped: int
    videos: int
    baselines: dict[str, BaselineScores]
    """Name -> scores: the trivial answer first, then layer by layer."""
    ceilings: Ceilings


def evaluate_baselines(
    recipe: Recipe, context: RunContext, split: str = "val"
) -> BaselineEvaluation:
    """Scores of the answers that need no training, on the windows on which a run of the recipe
    would be scored, for every layer of the cache. Nothing is written. Raises BadInput where recipe,
    cache and manifest do not fit together."""
    cache, manifest = context.cache, context.manifest
    check([recipe], cache, manifest)
    task, all_layers = make_task(recipe, labels_of(recipe, manifest)), cache.shape.layers
    baselines: dict[str, BaselineScores] = {}
    ceilings: Ceilings = {}
    # Where tokens are the truth, every layer has its own.
    for layers in [(layer,) for layer in all_layers] if TOKENS in task.needs else [all_layers]:
        windows = context.windows(split, recipe, task, layers)
        task.require_windows(recipe.windows, windows.step_s)
        require_truth(task, windows)
        table = _untrained_scores(task, recipe, context, windows, layers)
        clips = table.of_clips(task.metrics[0].name)
        baselines |= table.baselines(clips)
        ceilings |= table.ceilings()
    return BaselineEvaluation(
        cache=CacheFacts.of(cache),
        split=split,
        task=recipe.task.name,
        metrics=metric_facts(task),
        clips_scored=len(clips),
        clips_skipped=len(windows.index.skipped),
        videos=len({scores.video for scores in clips.values()}),
        baselines=baselines,
        ceilings=ceilings,
    )


def _untrained_scores(
    task: TaskPlugin, recipe: Recipe, context: RunContext, windows: Windows, layers: Sequence[int]
) -> Scores:
    """The scores of all answers without training on `windows`, which hold `layers`."""
    statistics = trivial_statistics(task, recipe, context, windows.split, layers)
    table, training, shape = Scores(windows, task, layers), recipe.training, windows.cache.shape
    for batch in windows.evaluation(evaluation_batch(training.batch_size // training.accumulate)):
        device_batch = windows.on_device(batch, context.device)
        whole = with_truth(batch, device_batch, task, layers[-1])
        answers = untrained_answers(task, statistics, shape.grid_hw, whole, device_batch, layers)
        table.add(whole, {}, answers)
    table.finish()
    return table


def baseline_rows(evaluation: Evaluation, clips: Sequence[str]) -> dict[str, PointScores]:
    """Name of a row -> scores of each answer without training in an evaluation, on `clips` in
    order; the row belongs into a table of points that were scored on them."""
    weight_C = np.array([evaluation.clips[clip].weight for clip in clips], np.float64)
    return {
        _row_name(evaluation, name): PointScores(
            seeds=(0,),
            clips_SC=np.array([[baseline.clips[clip] for clip in clips]], np.float64),
            weight_C=weight_C,
            flops=0.0,
        )
        for name, baseline in evaluation.baselines.items()
    }


def summarise_baselines(
    point: str, evaluation: Evaluation, tables: Mapping[str, BootstrapTable]
) -> dict[str, BaselineSummary]:
    """Name -> the answers without training beside a point, from one of its evaluations and form ->
    the table that holds the point and the rows of `baseline_rows`."""
    summaries = {}
    for name, baseline in evaluation.baselines.items():
        row = _row_name(evaluation, name)
        gains = {}
        for form, table in tables.items():
            least, greatest = table.range
            gain, within = table.gain(point, row, None), (least - greatest, greatest - least)
            gains[form] = interval_of(*gain, within, table.videos, TIE)
        summaries[name] = BaselineSummary(
            layer=baseline.layer,
            interval=next(iter(tables.values())).interval(row),
            metrics={metric: scores.score for metric, scores in baseline.metrics.items()},
            gains=gains,
        )
    return summaries


def _row_name(evaluation: Evaluation, name: str) -> str:
    """Equal for answers that score the same on every clip: the same answer over the same cache
    scores otherwise where windows do."""
    scores = [evaluation.baselines[name].clips, [c.weight for c in evaluation.clips.values()]]
    digest = hashlib.sha256(json.dumps(scores, sort_keys=True).encode()).hexdigest()
    return f"{name} {digest}"
