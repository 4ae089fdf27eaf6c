"""What a run says of frames that nobody has seen yet, in the metric of its task: its answers to
forecast tokens beside those to the tokens that came, over a split.

The frames are those that a forecast is scored on itself: behind the first quarter of a window, and
none that repeats, lies past the end of its clip, or behind a camera cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.cache.storage.local import write_atomically
from pipeline.config.json_files import to_json
from pipeline.config.plugins import Settings
from pipeline.datasets.manifest.targets import Arrays, seen_s
from pipeline.errors import BadInput
from pipeline.models.ahead import COPY, FORECAST, NOW, ORACLE, ReadAhead, answers_ahead
from pipeline.models.step_memory import evaluation_batch
from pipeline.models.tasks.contract import TaskPlugin
from pipeline.models.tasks.forecasts.errors import normalised
from pipeline.models.tasks.forecasts.pairs import told, told_from
from pipeline.records import Batch
from pipeline.train.ahead.pair import (
    beyond_training,
    horizons_of,
    require_pair,
    require_unseen,
)
from pipeline.train.bootstrap import Interval, interval
from pipeline.train.compatibility import check
from pipeline.train.evaluate import TRIVIAL, metric_facts, require_finite
from pipeline.train.evaluation import MetricFacts, ScoredCheckpoint
from pipeline.train.run import CacheFacts, Run, load_model
from pipeline.train.setup import RunContext, trivial_statistics
from pipeline.train.weights.initial import digest_of
from pipeline.train.windows.windows import Windows

BASELINES = (COPY, NOW, TRIVIAL)
"""Answers that need no forecast."""


class ForecasterFacts(Settings):
    """The run whose forecasts were read."""

    run: str
    step: int
    """Steps that its last checkpoint has."""
    sha256: str
    """Over its weights, see `weights.initial.digest_of`."""


class HorizonScores(Settings):
    """The scores of answers about what comes in so many seconds."""

    ahead_s: float
    frames: int
    """Frames that were told and scored."""
    answers: dict[str, dict[str, Interval]]
    """oracle: the run's answers to the frames themselves; forecast: to the forecasts of all frames
    from the present one up to them; copy: to the present frame in their place; now: its answers to
    the present frame, left as they are; trivial. Each metric -> score."""
    gains: dict[str, Interval]
    """copy, now, trivial -> how much better the answers to forecasts are in the first metric,
    paired; positive is better."""


class AheadEvaluation(Settings):
    """The scores of a run that reads what another forecasts: the content of
    ahead-<split>-<digest>.json, with the first letters of the digest of the forecaster."""

    run: str
    split: str
    checkpoint: ScoredCheckpoint
    forecaster: ForecasterFacts
    cache: CacheFacts
    task: str
    metrics: tuple[MetricFacts, ...]
    """The first is the one that counts."""
    clips: int
    videos: int
    horizons: tuple[HorizonScores, ...]
    notes: tuple[str, ...] = ()
    """What is to be said of the forecaster: whether its videos are known, and what it has
    learnt."""

    @property
    def file_name(self) -> str:
        return f"ahead-{self.split}-{self.forecaster.sha256[:8]}.json"


def evaluate_ahead(
    run: Run,
    forecaster: Run,
    context: RunContext,
    asked_s: Sequence[float] = (),
    split: str = "val",
    checkpoint: str = "last",
) -> AheadEvaluation:
    """Scores of what `run` says `asked_s` seconds ahead (none: the forecaster's own horizons) after
    forecasts of `forecaster`, also written into the folder of `run`; its evaluation stays as it is.

    Raises BadInput, before any work, where the two do not go together, or such horizons do not fit
    the windows.
    """
    require_pair(run, forecaster)
    check([run.recipe], context.cache, context.manifest, [run, forecaster])
    unknown = require_unseen(forecaster, context.manifest)
    shape, device = context.cache.shape, context.device
    reader, task = load_model(run, shape, checkpoint, device)
    model, _ = load_model(forecaster, shape, device=device)
    both = ReadAhead(reader, model)
    layers = sorted({*reader.layers, *model.layers})
    windows = context.windows(split, run.recipe, task, layers)
    asked_s = asked_s or forecaster.recipe.task.settings.horizons_s
    ahead_s = horizons_of(asked_s, windows.step_s, windows.index.num_frames)
    _require_told(task, windows, ahead_s)
    statistics = trivial_statistics(task, run.recipe, context, split, reader.layers)
    table = _Table(windows, task, ahead_s)
    training = run.recipe.training
    for batch in windows.evaluation(evaluation_batch(training.batch_size // training.accumulate)):
        device_batch = windows.on_device(batch, device)
        seen_s_BT = _seen_s(windows, batch)
        from_KBT = frames_told(seen_s_BT, ahead_s, device_batch.patches[both.layer])
        answers = answers_ahead(both, task, device_batch, seen_s_BT, from_KBT)
        trivial = task.trivial(batch.targets, statistics)
        if not task.by_frame:
            trivial = np.repeat(trivial[:, None], seen_s_BT.shape[1], axis=1)
        table.add(batch, answers | {TRIVIAL: [trivial] * len(ahead_s)}, from_KBT)
    facts, told_facts = run.checkpoint(checkpoint), forecaster.checkpoint("last")
    assert facts is not None and told_facts is not None
    weights = {name: part.cpu() for name, part in model.state_dict().items()}
    evaluation = AheadEvaluation(
        run=run.path.name,
        split=split,
        checkpoint=ScoredCheckpoint(which=checkpoint, step=facts.step),
        forecaster=ForecasterFacts(
            run=forecaster.path.name, step=told_facts.step, sha256=digest_of(weights)
        ),
        cache=run.header.cache,
        task=run.recipe.task.name,
        metrics=metric_facts(task),
        clips=len(windows),
        videos=len({clip.video_id for clip in windows.index.clips}),
        horizons=table.horizons(),
        notes=tuple(filter(None, (unknown, beyond_training(forecaster, ahead_s)))),
    )
    write_atomically(run.path / evaluation.file_name, to_json(evaluation))
    return evaluation


def _seen_s(windows: Windows, batch: Batch) -> np.ndarray:
    """(B, T) seconds at which the models see the frames of a batch."""
    speeds = [windows.clip(int(clip)).speed for clip in batch.clip_index]
    return np.stack([seen_s(*pair) for pair in zip(batch.time_s_BT, speeds, strict=True)])


def frames_told(
    seen_s_BT: np.ndarray, ahead_s: Sequence[float], patches_BTPD: torch.Tensor
) -> np.ndarray:
    """(K, B, T) int64: the frame after which each frame is told at each horizon; -1: none, or one
    that says nothing of it, as on the other side of a camera cut."""
    from_KBT = np.stack(
        [[told_from(seen_s_T, each_s) for seen_s_T in seen_s_BT] for each_s in ahead_s]
    )
    horizons, batch, frames = from_KBT.shape
    from_BM = torch.from_numpy(from_KBT.transpose(1, 0, 2).reshape(batch, -1))
    to_BM = torch.arange(frames).repeat(horizons).expand(batch, -1)
    pairs = (frame_BM.to(patches_BTPD.device) for frame_BM in (from_BM.clamp(min=0), to_BM))
    belong_BM = told(normalised(patches_BTPD.float()), *pairs).cpu().numpy()
    return np.where(belong_BM.reshape(batch, horizons, frames).transpose(1, 0, 2), from_KBT, -1)


def _require_told(task: TaskPlugin, windows: Windows, ahead_s: Sequence[float]) -> None:
    """Refuses a horizon at which nothing can be scored in any window."""
    left = list(ahead_s)
    for ref in windows.order.evaluation():
        seen_s_T = seen_s(windows.locate(ref).time_s_T, windows.clip(ref.clip).speed)
        truth = windows.truth([ref])
        left = [
            each_s
            for each_s in left
            if not _weights(task, truth, told_from(seen_s_T, each_s)[None])[task.metrics[0].name][0]
        ]
        if not left:
            return
    raise BadInput(
        f"no window of split '{windows.split}' has anything to score {left[0]:.3g} s ahead",
        "ask for less: --ahead SECONDS",
    )


def _weights(task: TaskPlugin, truth: Arrays, from_BT: np.ndarray) -> dict[str, np.ndarray]:
    """metric -> what each window counts in it, (B,)."""
    if task.by_frame:
        return task.metric_weights(task.of_frames(truth, from_BT))
    is_told_B = (from_BT >= 0).any(1)
    return {name: weight * is_told_B for name, weight in task.metric_weights(truth).items()}


def _scores(
    task: TaskPlugin, answer: np.ndarray, truth: Arrays, from_BT: np.ndarray
) -> dict[str, np.ndarray]:
    """metric -> score of every window over the frames that were told, (B,); where the truth is of
    the clip, the mean of what its frames' answers score."""
    if task.by_frame:
        return task.score(answer, task.of_frames(truth, from_BT))
    share_BT = (from_BT >= 0) / np.maximum(1, (from_BT >= 0).sum(1, keepdims=True))
    total = {metric.name: np.zeros(len(answer)) for metric in task.metrics}
    for time in range(answer.shape[1]):
        for name, scores in task.score(answer[:, time], truth).items():
            total[name] += scores * share_BT[:, time]
    return total


class _Table:
    """Scores of every window at every horizon, and what they amount to."""

    def __init__(self, windows: Windows, task: TaskPlugin, ahead_s: Sequence[float]) -> None:
        self.windows, self.task, self.ahead_s = windows, task, tuple(ahead_s)
        self._frames = np.zeros(len(self.ahead_s), np.int64)
        self._values: dict[tuple[int, str, str], list[np.ndarray]] = {}
        """(horizon, answer, metric) -> scores, batch by batch."""
        self._weights: dict[tuple[int, str], list[np.ndarray]] = {}
        self._videos: list[str] = []

    def add(self, batch: Batch, answers: dict[str, list[np.ndarray]], from_KBT: np.ndarray) -> None:
        """Scores what `models.ahead.answers_ahead` has made of a batch, and the trivial answer."""
        self._videos += [self.windows.clip(int(clip)).video_id for clip in batch.clip_index]
        for number, from_BT in enumerate(from_KBT):
            self._frames[number] += (from_BT >= 0).sum()
            weights = _weights(self.task, batch.targets, from_BT)
            for metric, weight in weights.items():
                self._weights.setdefault((number, metric), []).append(weight)
            for name, of_horizons in answers.items():
                scores = _scores(self.task, of_horizons[number], batch.targets, from_BT)
                for metric, values in scores.items():
                    require_finite(name, metric, values[weights[metric] > 0])
                    self._values.setdefault((number, name, metric), []).append(values)

    def horizons(self) -> tuple[HorizonScores, ...]:
        """The scores of all horizons, with intervals over videos."""
        return tuple(map(self._horizon, range(len(self.ahead_s))))

    def _horizon(self, number: int) -> HorizonScores:
        weights = {
            metric.name: np.concatenate(self._weights[number, metric.name])
            for metric in self.task.metrics
        }
        metric = self.task.metrics[0]
        ahead_s = self.ahead_s[number]
        if not weights[metric.name].any():
            raise BadInput(
                f"nothing of split '{self.windows.split}' can be scored {ahead_s:.3g} s ahead: its "
                "frames are copies of those before, or lie behind camera cuts",
                "ask for less: --ahead SECONDS",
            )

        def values(answer: str, metric_name: str) -> np.ndarray:
            return np.concatenate(self._values[number, answer, metric_name])

        sign = 1 if metric.higher_is_better else -1
        ours = values(FORECAST, metric.name)
        return HorizonScores(
            ahead_s=ahead_s,
            frames=int(self._frames[number]),
            answers={
                answer: {
                    name: interval(values(answer, name), self._videos, weight)
                    for name, weight in weights.items()
                }
                for answer in (ORACLE, FORECAST, *BASELINES)
            },
            gains={
                answer: interval(
                    sign * (ours - values(answer, metric.name)), self._videos, weights[metric.name]
                )
                for answer in BASELINES
            },
        )
