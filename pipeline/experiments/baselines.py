"""What a cache is worth to a task before anything is trained on it: the scores of the task's
baselines, layer by layer, beside the trivial answer."""

from __future__ import annotations

from pipeline.config.plugins import Settings
from pipeline.config.recipe import Recipe
from pipeline.models.step_memory import evaluation_batch
from pipeline.models.tasks.contract import make_task
from pipeline.train.compatibility import check, require_truth
from pipeline.train.evaluate import (
    BaselineScores,
    MetricFacts,
    Scores,
    metric_facts,
    trivial_statistics,
    untrained_answers,
)
from pipeline.train.run import CacheFacts
from pipeline.train.setup import RunContext


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


def evaluate_baselines(
    recipe: Recipe, context: RunContext, split: str = "val"
) -> BaselineEvaluation:
    """Scores of the answers that need no training, on the windows on which a run of the recipe
    would be scored, for every layer of the cache. Nothing is written. Raises BadInput where recipe,
    cache and manifest do not fit together."""
    cache, manifest, training = context.cache, context.manifest, recipe.training
    check([recipe], cache, manifest)
    task = make_task(recipe, manifest.labels)
    windows = context.windows(split, recipe, task, cache.shape.layers)
    require_truth(task, windows)
    statistics = trivial_statistics(task, recipe, context, split)
    table = Scores(windows, task, cache.shape.layers)
    for batch in windows.evaluation(evaluation_batch(training.batch_size // training.accumulate)):
        device_batch = windows.on_device(batch, context.device)
        table.add(batch, {}, untrained_answers(task, statistics, windows, batch, device_batch))
    table.finish()
    clips = table.of_clips(task.metrics[0].name)
    return BaselineEvaluation(
        cache=CacheFacts.of(cache),
        split=split,
        task=recipe.task.name,
        metrics=metric_facts(task),
        clips_scored=len(clips),
        clips_skipped=len(windows.index.skipped),
        videos=len({scores.video for scores in clips.values()}),
        baselines=table.baselines(clips),
    )
