"""Stage two: one loop for every temporal module and task, on cached tokens.

Any number of runs that want the same windows train side by side: every batch is read, moved and
decoded once for all of them. What a run computes is a function of its recipe and the cache alone,
whoever trains beside it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from pipeline.cache.cache import Cache
from pipeline.config.recipe import Recipe
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import BadInput
from pipeline.models.mixers import Moments
from pipeline.models.tasks.contract import TaskPlugin
from pipeline.records import Batch, OnDevice
from pipeline.train.compatibility import require_division
from pipeline.train.distributed import ALONE, Ranks
from pipeline.train.run import Run
from pipeline.train.setup import make_trainers, open_windows
from pipeline.train.trainer import Diverged, OnProgress, Trainer
from pipeline.train.windows.windows import Windows

EVAL_BATCH = 64
"""Windows per batch in evaluation; changes no result."""

OnFailure = Callable[[Trainer, Diverged], object]


def train(
    recipe: Recipe,
    cache: Cache,
    out: Path,
    manifest: Manifest | None = None,
    device: torch.device | None = None,
    allow_missing: bool = False,
    on_progress: OnProgress | None = None,
    ranks: Ranks = ALONE,
) -> Run:
    """Trains `recipe` on `cache` into the run folder `out`, going on from its last checkpoint if
    there is one.

    `manifest` replaces the cache's own: other clips or labels over the same videos. Raises BadInput
    where recipe, cache, manifest and an existing run do not fit together, Diverged where the loss
    is no longer finite.
    """
    (run,) = train_together(
        {out: recipe}, cache, manifest, device, allow_missing, on_progress, ranks=ranks
    )
    return run


def train_together(
    recipes: Mapping[Path, Recipe],
    cache: Cache,
    manifest: Manifest | None = None,
    device: torch.device | None = None,
    allow_missing: bool = False,
    on_progress: OnProgress | None = None,
    on_failure: OnFailure | None = None,
    ranks: Ranks = ALONE,
) -> list[Run]:
    """Trains several recipes, each into its run folder, from one read of each batch. They must be
    alike in `shared`.

    A run that cannot go on is handed to `on_failure` and left; without that, its error is raised.
    """
    device = ranks.device(device)
    manifest = manifest or cache.manifest
    tasks, windows, held_out = open_windows(list(recipes.values()), cache, manifest, allow_missing)
    require_division(next(iter(recipes.values())).training, ranks)
    trainers = make_trainers(recipes, tasks, windows, device, ranks)
    TrainLoop(trainers, windows, held_out, device, ranks, on_progress, on_failure).fit()
    return [trainer.run for trainer in trainers]


class TrainLoop:
    """Runs that train side by side: each batch is read and decoded once, and every run that is at
    this step learns from it."""

    def __init__(
        self,
        trainers: Sequence[Trainer],
        windows: Windows,
        held_out: Windows,
        device: torch.device,
        ranks: Ranks,
        on_progress: OnProgress | None,
        on_failure: OnFailure | None,
    ) -> None:
        self.left = list(trainers)
        self.windows, self.held_out, self.device, self.ranks = windows, held_out, device, ranks
        self.on_progress = on_progress or (lambda _: None)
        self.on_failure = on_failure
        self.settings = trainers[0].settings
        self._is_stopped = False

    def stop(self) -> None:
        """Ends `fit` after the step that it is at; nothing is evaluated or saved for it."""
        self._is_stopped = True

    def fit(self) -> None:
        """Trains all to their last step, evaluating and saving on the way."""
        for trainer in self.left:
            trainer.restore()
        # Nobody writes a checkpoint before all have read theirs, and all have read the same.
        if not self.ranks.all_equal(json.dumps([trainer.step for trainer in self.left])):
            paths = ", ".join(str(trainer.run.path) for trainer in self.left)
            raise BadInput(
                f"processes of this training see different checkpoints of {paths}",
                "--out a folder that all share",
            )
        stretches = {range(trainer.step, trainer.steps) for trainer in self.left}
        steps = sorted({step for stretch in stretches for step in stretch})
        batches = self.windows.train(
            self.settings.batch_size, steps, self.ranks.rank, self.ranks.size
        )
        for step in steps:
            if self._is_stopped:
                return
            active = [trainer for trainer in self.left if trainer.step == step < trainer.steps]
            if not active:  # those that wanted it have failed
                continue
            with _timed(active, "data"):
                found, batch = next(batches)
                while found < step:
                    found, batch = next(batches)
            self._step(active, batch)

    def _step(self, active: list[Trainer], batch: Batch) -> None:
        parts = batch.micro_batches(self.settings.accumulate)
        shares = self._shares(active[0].task, parts)
        whole = (
            list(self._given(active, parts)) if len(parts) == 1 else None
        )  # several are there one at a time, decoded twice
        if len(parts) * self.ranks.size > 1:
            self._observe(active, whole or self._given(active, parts))
        for number, (given, share) in enumerate(
            zip(whole or self._given(active, parts), shares, strict=True)
        ):
            self._each(active, "steps", lambda trainer: trainer.backward(number, given, share))  # noqa: B023  called at once
        self._each(active, "steps", Trainer.optimizer_step)
        self._evaluate(
            [trainer for trainer in active if trainer.is_due(trainer.settings.evaluate_every)]
        )
        going = [trainer for trainer in active if trainer in self.left]
        self._each(
            [trainer for trainer in going if trainer.is_due(trainer.settings.checkpoint_every)],
            "checkpoints",
            Trainer.save,
        )
        for trainer in going:
            self.on_progress(trainer.progress)

    def _given(self, active: Sequence[Trainer], parts: Sequence[Batch]) -> Iterator[OnDevice]:
        for part in parts:
            with _timed(active, "tokens"):
                given = self.windows.on_device(part, self.device)
            yield given

    def _each(self, active: list[Trainer], what: str, do: Callable[[Trainer], object]) -> None:
        """One after the other; who cannot go on leaves `active` and the group."""
        for trainer in list(active):
            try:
                with trainer.progress.timed(what):
                    do(trainer)
            except Diverged as error:
                trainer.write_metrics()
                if self.on_failure is None:
                    raise
                active.remove(trainer)
                self.left.remove(trainer)
                self.on_failure(trainer, error)

    def _shares(self, task: TaskPlugin, parts: Sequence[Batch]) -> list[float]:
        """What each part of this rank counts in the step's loss, which is a mean over all that is
        valid in the whole batch."""
        if len(parts) * self.ranks.size == 1:
            return [1.0]
        terms = torch.tensor([task.terms(part.targets) for part in parts], dtype=torch.float64)
        total = terms.sum(0, keepdim=True)
        self.ranks.all_reduce_sum([total])
        return (terms / total.clamp(min=1)).tolist()

    def _observe(self, active: Sequence[Trainer], parts: Iterable[OnDevice]) -> None:
        """Moments of the whole batch's tokens, for the models that have batch norms: these see a
        part as if it were all."""
        normed = [trainer for trainer in active if trainer.norms]
        layers = sorted({layer for trainer in normed for layer in trainer.model.layers})
        if not layers:
            return
        sums = {
            layer: torch.zeros(3, self.windows.cache.shape.width, dtype=torch.float64)
            for layer in layers
        }
        for given in parts:
            for layer, total in sums.items():
                x_MD = given.patches[layer].flatten(0, -2).double()
                total += torch.stack(
                    [x_MD.sum(0), x_MD.square().sum(0), torch.full_like(x_MD[0], len(x_MD))]
                ).cpu()
        self.ranks.all_reduce_sum(list(sums.values()))
        moments = {}
        for layer, (total, squares, counts) in sums.items():
            mean, count = total / counts, int(counts[0])
            variance = (squares / counts - mean.square()).clamp(min=0)
            moments[layer] = Moments(
                mean.float().to(self.device), variance.float().to(self.device), count
            )
        for trainer in normed:
            trainer.set_batch_moments(moments)

    def _evaluate(self, due: list[Trainer]) -> None:
        """Mean score per form on the evaluation split."""
        if not due:
            return
        totals = {
            trainer: torch.zeros(len(trainer.task.forms) + 1, dtype=torch.float64)
            for trainer in due
        }
        for batch in self.held_out.evaluation(EVAL_BATCH, self.ranks.rank, self.ranks.size):
            with _timed(due, "evaluation"):
                given = self.held_out.on_device(batch, self.device)
            for trainer in due:
                with trainer.progress.timed("evaluation"):
                    totals[trainer] += _score_sums(trainer, batch, given)
        self.ranks.all_reduce_sum(list(totals.values()))
        self._each(
            due, "evaluation", lambda trainer: trainer.record_validation(*totals[trainer].tolist())
        )


def _score_sums(trainer: Trainer, batch: Batch, given: OnDevice) -> torch.Tensor:
    """Of one batch: the weighted sum of the first metric in every form, then that of the weights.
    NaN: no answers."""
    task, metric = trainer.task, trainer.task.metrics[0].name
    weights = task.weight(batch.targets)
    try:
        answers = trainer.model.eval().answers(given, task)
    except BadInput as error:
        trainer.pending_error = error
        return torch.tensor(math.nan, dtype=torch.float64)
    sums = [
        weighted_sum(task.score(answer, batch.targets)[metric], weights)
        for answer in answers.values()
    ]
    return torch.tensor([*sums, weights.sum()], dtype=torch.float64)


def weighted_sum(values: np.ndarray, weights: np.ndarray) -> float:
    """Sum of value times weight over windows that count: a value where the weight is 0 may be
    NaN."""
    return float((values[weights > 0] * weights[weights > 0]).sum())


@contextmanager
def _timed(trainers: Sequence[Trainer], what: str) -> Iterator[None]:
    """What is done for several runs at once counts in equal shares."""
    begin = time.perf_counter()
    yield
    share = (time.perf_counter() - begin) / len(trainers)
    for trainer in trainers:
        trainer.progress.seconds[what] = trainer.progress.seconds.get(what, 0.0) + share
