"""A run and a split -> scores with 95 % intervals, streaming and window-wide, into its folder.

The interval is a percentile bootstrap over *videos*: clips of one are not independent witnesses.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from safetensors.numpy import save

from pipeline.cache.cache import Cache
from pipeline.cache.storage.local import write_atomically
from pipeline.config.json_files import to_json
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.datasets.manifest.targets import QUESTION, TOKENS, Arrays, collate, joined
from pipeline.models.step_memory import evaluation_batch
from pipeline.models.tasks.contract import TaskPlugin
from pipeline.models.temporal.contract import NotFinite
from pipeline.models.video_model import TRIVIAL, VideoModel, untrained_answers, with_truth
from pipeline.records import Batch
from pipeline.train.bootstrap import Interval, interval, median_interval
from pipeline.train.compatibility import check, require_same_tower, require_truth
from pipeline.train.evaluation import (
    BaselineScores,
    Ceilings,
    ClipScores,
    Evaluation,
    KindScores,
    MetricFacts,
    ScoredCheckpoint,
    by_kind,
)
from pipeline.train.run import Run, load_model, loss_fall
from pipeline.train.setup import RunContext, task_key, trivial_statistics
from pipeline.train.trainer import weighted_sum
from pipeline.train.weights.seen_videos import videos_seen
from pipeline.train.windows.windows import Windows

log = logging.getLogger(__name__)

CEILING = "ceiling"
"""Name, among the forms, of the best scores that the codec leaves within reach."""


def evaluate(
    run: Run,
    cache: Cache,
    split: str = "val",
    checkpoint: str = "last",
    manifest: Manifest | None = None,
    device: torch.device | None = None,
    allow_missing: bool = False,
) -> Evaluation:
    """Scores of every clip of `split`, also written to `evaluation-<split>.json` in the run
    folder.

    The `last` checkpoint is scored by default: `best` was chosen on the evaluation split, which
    flatters it there. The answers themselves go to `answers-<split>.safetensors`, unless the task's
    are too large, with the times (windows, T) of the frames that they are about, in seconds after
    the first frame of the video.
    """
    context = RunContext.of(cache, manifest, device, allow_missing)
    return evaluate_together([run], context, split, checkpoint)[0]


def evaluate_together(
    runs: Sequence[Run],
    context: RunContext,
    split: str = "val",
    checkpoint: str = "last",
    *,
    dual_softmax: bool = False,
) -> list[Evaluation]:
    """Evaluations of several runs from one read of each batch, written as `evaluate` writes them.
    Their recipes must be alike in `compatibility.window_needs`. With `dual_softmax`, scores look at
    the whole split, and are written beside the others, to `evaluation-<split>-dual_softmax.json`;
    raises BadInput where a task has none such."""
    return Scoring(tuple(runs), context, split, checkpoint, dual_softmax).evaluations()


@dataclass(frozen=True)
class Scoring:
    """Trained runs, opened to be scored side by side on the windows of one split. What scoring
    needs is made once, when it is first asked for."""

    runs: tuple[Run, ...]
    context: RunContext
    split: str
    checkpoint: str
    dual_softmax: bool = False

    def evaluations(self) -> list[Evaluation]:
        """Scores all runs from one read of each batch, and writes what came out into their
        folders. Raises BadInput where runs, cache and manifest do not fit together."""
        context, keys, grid_hw = self.context, self._task_keys, self.context.cache.shape.grid_hw
        check([run.recipe for run in self.runs], context.cache, context.manifest, self.runs)
        require_truth(self.loaded[0][1], self.windows)
        for run in self.runs:
            require_same_tower(run, self.windows.tower)
        tables = [Scores(self.windows, task, model.layers) for model, task in self.loaded]
        settings = [run.recipe.training for run in self.runs]
        size = min(evaluation_batch(each.batch_size // each.accumulate) for each in settings)
        tasks = dict(zip(keys, self.loaded, strict=True))
        for batch in self.windows.evaluation(size):
            device_batch = self.windows.on_device(batch, context.device)
            whole = {
                key: with_truth(batch, device_batch, task, model.layers[-1])
                for key, (model, task) in tasks.items()
            }
            untrained = {
                key: untrained_answers(
                    task, self.statistics[key], grid_hw, whole[key], device_batch, model.layers
                )
                for key, (model, task) in tasks.items()
            }
            for table, key, (model, task) in zip(tables, keys, self.loaded, strict=True):
                table.add(whole[key], model.answers(device_batch, task), untrained[key])
        log.debug("answered all windows of split %s; intervals are made", self.split)
        return [
            self._written(run, table, self.statistics[key])
            for run, table, key in zip(self.runs, tables, keys, strict=True)
        ]

    def trivial_score(self) -> float:
        """First metric of the trivial answer to the first run's task. No tokens are read for it."""
        (_, task), statistics = self.loaded[0], self.statistics[self._task_keys[0]]
        total = weight = 0.0
        refs = [[ref] for ref in self.windows.order.evaluation()]
        if task.scores_together:
            refs = [[ref for each in refs for ref in each]]
        for some in refs:
            truth = self.windows.truth(some)
            scores = task.score(task.trivial(truth, statistics), truth)[task.metrics[0].name]
            weights = task.weight(truth)
            total, weight = total + weighted_sum(scores, weights), weight + float(weights.sum())
        return total / weight

    @cached_property
    def loaded(self) -> list[tuple[VideoModel, TaskPlugin]]:
        """The model and the task of every run, with the weights of the checkpoint."""
        shape, device = self.context.cache.shape, self.context.device
        loaded = [load_model(run, shape, self.checkpoint, device) for run in self.runs]
        if self.dual_softmax:
            for _, task in loaded:
                task.use_dual_softmax()
        return loaded

    @cached_property
    def windows(self) -> Windows:
        """The windows of the split, with all layers that any of the models reads."""
        layers = sorted({layer for model, _ in self.loaded for layer in model.layers})
        return self._context.windows(self.split, self.runs[0].recipe, self.loaded[0][1], layers)

    @cached_property
    def _context(self) -> RunContext:
        return replace(self.context, tower=self.runs[0].header.text)

    @cached_property
    def statistics(self) -> dict[str, Arrays]:
        """What the trivial answer to every run's task may know, read once for tasks that are
        equal."""
        by_task = dict[str, Arrays]()
        for key, run, (model, task) in zip(self._task_keys, self.runs, self.loaded, strict=True):
            if key not in by_task:
                by_task[key] = trivial_statistics(
                    task, run.recipe, self._context, self.split, model.layers
                )
        return by_task

    @cached_property
    def _task_keys(self) -> list[str]:
        """A key for every run, in their order: two runs have the same one where their answers
        without training are the same."""
        return [
            task_key(run.recipe, task, model.layers)
            for run, (model, task) in zip(self.runs, self.loaded, strict=True)
        ]

    def _written(self, run: Run, table: Scores, statistics: Arrays) -> Evaluation:
        """The evaluation that all batches amount to, written into the run folder."""
        table.finish()
        evaluation = table.record(run, self.checkpoint, table.task.trivial_loss(statistics))
        split, how = evaluation.split, "-dual_softmax" if self.dual_softmax else ""
        if table.task.keeps_answers and not how:
            write_atomically(run.path / f"answers-{split}.safetensors", save(table.answers))
        write_atomically(run.path / f"evaluation-{split}{how}.json", to_json(evaluation))
        return evaluation


def metric_facts(task: TaskPlugin) -> tuple[MetricFacts, ...]:
    """The metrics of a task as an evaluation keeps them."""
    return tuple(MetricFacts(**metric._asdict()) for metric in task.metrics)


class Scores:
    """Scores of answers to every evaluation window in order, those of a run and those that need no
    training, and what they amount to."""

    def __init__(self, windows: Windows, task: TaskPlugin, layers: Sequence[int]) -> None:
        """`layers` are those whose baselines are kept."""
        self.windows, self.task, self.layers = windows, task, (None, *layers)
        self._medians = {metric.name for metric in task.metrics if metric.is_median}
        self.truth_layer = layers[-1]
        """The layer whose tokens are the truth, if tokens are."""
        self.values: dict[tuple[str, str], np.ndarray] = {}
        """(form, metric) -> score of every window; a baseline is a form, too."""
        self.layer_of: dict[str, int | None] = {}
        """Name of a baseline, with its layer in it -> the layer."""
        self.weight, self.clip = np.zeros(0), np.zeros(0, np.int64)
        """The weight of every window in the first metric, and the index of its clip."""
        self.weights: dict[str, np.ndarray] = {}
        """metric -> the weight of every window."""
        self.answer_weights: dict[tuple[str, str], np.ndarray] = {}
        """(form, metric) -> the weight of every window, where it depends on the answer."""
        self.answers: Arrays = {}
        """form -> answer to every window, where the task keeps them; and `time_s`, (windows, T),
        when its frames appear, in seconds after the first frame of their video. Windows that are
        shorter than the longest are filled up with zeros."""
        self._together: list[tuple[Arrays, Arrays]] = []
        """Answers and truth of every batch, where a score depends on all of them."""
        self._columns: dict[tuple[str, str], list[np.ndarray]] = {}
        self._rows: dict[str, list[np.ndarray]] = {form: [] for form in task.forms}
        self._answer_weights: dict[tuple[str, str], list[np.ndarray]] = {}
        self._times_s: list[np.ndarray] = []
        self._weights: list[np.ndarray] = []
        self._metric_weights: dict[str, list[np.ndarray]] = {}
        self._clips: list[np.ndarray] = []

    def add(
        self, batch: Batch, answers: Arrays, untrained: dict[str, dict[int | None, np.ndarray]]
    ) -> None:
        """Scores the answers of a run to one batch, by form, and those of `untrained_answers`."""
        self._clips.append(batch.clip_index)
        scored = dict(answers)
        for name, by_layer in untrained.items():
            for layer in by_layer.keys() & set(self.layers):
                baseline = name if layer is None else f"{name}, layer {layer}"
                self.layer_of[baseline] = layer
                scored[baseline] = by_layer[layer]
        if self.task.scores_together:
            self._together.append((scored, batch.targets))
        else:
            self._score(scored, batch.targets)
        if TOKENS in self.task.needs:
            noise_BTP = self.windows.noise(batch, self.truth_layer)
            for metric, values in self.task.ceiling(noise_BTP, batch.targets).items():
                self._columns.setdefault((CEILING, metric), []).append(values)
        if self.task.keeps_answers and answers:
            first_s_B = [self.windows.index.clip_rows[clip].first_s for clip in batch.clip_index]
            self._times_s += list(batch.time_s_BT - np.array(first_s_B)[:, None])
            for form, answer in answers.items():
                self._rows[form] += list(answer)

    def _score(self, answers: Arrays, targets: Arrays) -> None:
        weights = self.task.metric_weights(targets)
        self._weights.append(weights[self.task.metrics[0].name])
        for metric, weight in weights.items():
            self._metric_weights.setdefault(metric, []).append(weight)
        for form, answer in answers.items():
            for metric, weight in self.task.answer_weights(answer, targets).items():
                self._answer_weights.setdefault((form, metric), []).append(weight)
            for metric, values in self.task.score(answer, targets).items():
                require_finite(form, metric, values[weights[metric] > 0])
                self._columns.setdefault((form, metric), []).append(values)

    def finish(self) -> None:
        """Puts together what `add` has collected; to be called once, after the last batch."""
        if self._together:
            self._score(*(joined(parts) for parts in zip(*self._together, strict=True)))
            self._together = []
        self.values = {key: np.concatenate(parts) for key, parts in self._columns.items()}
        self.weight, self.clip = np.concatenate(self._weights), np.concatenate(self._clips)
        self.weights = {key: np.concatenate(parts) for key, parts in self._metric_weights.items()}
        self.answer_weights = {
            key: np.concatenate(parts) for key, parts in self._answer_weights.items()
        }
        if self._times_s:
            table = self._rows | {"time_s": self._times_s}
            rows = zip(*table.values(), strict=True)
            self.answers = collate([dict(zip(table, row, strict=True)) for row in rows])

    def interval(self, form: str, metric: str) -> Interval:
        """A metric in one form over all windows, with its interval over videos."""
        of_videos = median_interval if metric in self._medians else interval
        weights = self.answer_weights.get((form, metric), self.weights[metric])
        return of_videos(self.values[form, metric], self._videos, weights)

    def gain(self, form: str, baseline: str) -> Interval:
        """How much better the first metric is in one form than in another, videos resampled;
        positive is better."""
        metric = self.task.metrics[0]
        better = self.values[form, metric.name] - self.values[baseline, metric.name]
        return interval(better if metric.higher_is_better else -better, self._videos, self.weight)

    @cached_property
    def _videos(self) -> list[str]:
        return [self.windows.clip(int(clip)).video_id for clip in self.clip]

    def of_clips(self, metric: str) -> dict[int, ClipScores]:
        """Index of a clip that has something to score -> its scores, and those of baselines."""
        weight = np.bincount(self.clip, self.weight, len(self.windows))
        counted = self.weight > 0
        means = {
            form: np.bincount(self.clip[counted], (values * self.weight)[counted], len(weight))
            / np.maximum(weight, 1e-300)
            for (form, name), values in self.values.items()
            if name == metric
        }
        rows = {}
        for index in np.flatnonzero(weight).tolist():
            clip = self.windows.clip(index)
            scores = {form: float(mean[index]) for form, mean in means.items()}
            rows[index] = ClipScores(clip.label, clip.video_id, float(weight[index]), scores)
        return rows

    def baselines(self, clips: dict[int, ClipScores]) -> dict[str, BaselineScores]:
        """Name -> the scores of a baseline, the trivial one first, then layer by layer. `clips` is
        what `of_clips` gives."""
        main = self.task.metrics[0].name
        forms = [form for form in self.task.forms if (form, main) in self.values]

        def scores(name: str, layer: int | None) -> BaselineScores:
            return BaselineScores(
                layer=layer,
                metrics={
                    metric.name: self.interval(name, metric.name) for metric in self.task.metrics
                },
                over_trivial=None if name == TRIVIAL else self.gain(name, TRIVIAL),
                run_gains={form: self.gain(form, name) for form in forms},
                clips={
                    self.windows.clip(index).clip_id: of_clip.scores[name]
                    for index, of_clip in clips.items()
                },
            )

        ordered = sorted(self.layer_of.items(), key=lambda pair: -1 if pair[1] is None else pair[1])
        return {name: scores(name, layer) for name, layer in ordered}

    def ceilings(self) -> Ceilings:
        """The best scores that the codec leaves within reach, if truth has been through it."""
        scores = {
            metric: self.interval(form, metric) for form, metric in self.values if form == CEILING
        }
        return {f"{CEILING}, layer {self.truth_layer}": scores} if scores else {}

    def kinds(self, clips: dict[int, ClipScores]) -> dict[str, KindScores]:
        """The first metric of questions, kind by kind; empty where nothing is asked. `clips` is
        what `of_clips` gives."""
        if QUESTION not in self.task.needs:
            return {}
        texts = self.windows.manifest.texts
        kind_of = {name: said.kind for name, said in texts.items() if said.kind is not None}
        return by_kind({self.windows.clip(i).clip_id: each for i, each in clips.items()}, kind_of)

    def record(self, run: Run, checkpoint: str, trivial_loss: float | None) -> Evaluation:
        """The evaluation as it is written, of `run` at `checkpoint`."""
        facts, metrics = run.checkpoint(checkpoint), self.task.metrics
        assert facts is not None
        clips = self.of_clips(metrics[0].name)
        baselines, videos = self.baselines(clips), {scores.video for scores in clips.values()}
        return Evaluation(
            run=run.path.name,
            split=self.windows.split,
            checkpoint=ScoredCheckpoint(which=checkpoint, step=facts.step),
            cache=run.header.cache,
            task=run.recipe.task.name,
            temporal=run.recipe.temporal.name,
            metrics=metric_facts(self.task),
            trivial={name: score.score for name, score in baselines[TRIVIAL].metrics.items()},
            clips_scored=len(clips),
            clips_skipped=len(self.windows.index.skipped),
            clips_without_truth=len(self.windows) - len(clips),
            videos=len(videos),
            forms={
                form: {metric.name: self.interval(form, metric.name) for metric in metrics}
                for form in self.task.forms
            },
            clips={
                self.windows.clip(index).clip_id: scores._replace(
                    scores={form: scores.scores[form] for form in self.task.forms}
                )
                for index, scores in clips.items()
            },
            loss_fall=loss_fall(run.path, facts.step, trivial_loss),
            baselines=baselines,
            ceilings=self.ceilings(),
            kinds=self.kinds(clips),
            videos_seen=videos_seen(run, self.windows.manifest, videos),
        )


def require_finite(form: str, metric: str, values: np.ndarray) -> None:
    """Raises NotFinite where a score is NaN or infinite: no mean over windows would be one."""
    lost = int((~np.isfinite(values)).sum())
    if lost:
        raise NotFinite(
            f"{metric} in form '{form}' is not finite for {lost} of {len(values)} windows",
            "the training has diverged: take another checkpoint, or train again with a lower "
            "training.learning_rate",
        )
