"""Stage two: one loop for every temporal module and task, on cached tokens.

Any number of runs that want the same windows train side by side: every batch is read, moved and
decoded once for all of them. What a run computes is a function of its recipe and the cache alone,
whoever trains beside it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.cache.cache import Cache
from pipeline.config.recipe import Recipe
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.datasets.manifest.targets import Arrays, joined
from pipeline.device import free_memory_bytes, keep_freed_memory
from pipeline.errors import BadInput
from pipeline.models.mixers import Moments
from pipeline.models.step_memory import NotCounted, evaluation_batch
from pipeline.models.tasks.contract import TaskPlugin
from pipeline.records import Batch, OnDevice
from pipeline.train.compatibility import require_division
from pipeline.train.distributed import ALONE, Ranks
from pipeline.train.follow.windows import is_followed, open_followed
from pipeline.train.run import Run
from pipeline.train.setup import RunContext, make_trainers, open_windows, training_memory
from pipeline.train.trackers.tracking import UNTRACKED, Tracking
from pipeline.train.trainer import Diverged, OnProgress, Trainer
from pipeline.train.windows.evenness import uneven_windows_text
from pipeline.train.windows.source import BatchSource, HeldOutSource

log = logging.getLogger(__name__)

ANSWER = "answer "
"""How the name of an answer begins where it stands beside targets."""
OnFailure = Callable[[Trainer, Diverged], object]
Say = Callable[[str], object]
"""Takes a line for the person who waits."""


def train(
    recipe: Recipe,
    cache: Cache,
    out: Path,
    manifest: Manifest | None = None,
    device: torch.device | None = None,
    allow_missing: bool = False,
    on_progress: OnProgress | None = None,
    ranks: Ranks = ALONE,
    say: Say = lambda _: None,
    follow: bool = False,
    tracking: Tracking = UNTRACKED,
) -> Run:
    """Trains `recipe` on `cache` into the run folder `out`, going on from its last checkpoint if
    there is one.

    `manifest` replaces the cache's own: other clips or labels over the same videos. `follow`: the
    cache may still be being filled, see `pipeline.train.follow`; a run that was begun so goes on
    so. `tracking` takes every step of the run, and is left to the caller to finish. Raises BadInput
    where recipe, cache, manifest and an existing run do not fit together, Diverged where the loss
    is no longer finite.
    """
    context = RunContext.of(cache, manifest, device, allow_missing, ranks, say)
    if is_followed(out, cache, follow):
        return _train_following(recipe, out, context, on_progress, tracking)
    (run,) = train_together({out: recipe}, context, on_progress, say=say, tracking=tracking)
    return run


def _train_following(
    recipe: Recipe,
    out: Path,
    context: RunContext,
    on_progress: OnProgress | None,
    tracking: Tracking,
) -> Run:
    """Trains `recipe` on a cache while it is being filled."""
    require_division(recipe.training, context.ranks)
    task, windows, held_out = open_followed(recipe, out, context)
    # Only what the cache holds is asked of it: the headers of runs, what a task is fitted to.
    come = replace(context, cache=windows.arrivals.cache)
    (trainer,) = make_trainers({out: recipe}, [task], windows, come, context.say)

    def on_saved(step: int) -> None:
        if context.ranks.is_first:
            context.say(f"step {step}: {windows.progress_text}")

    with ExitStack() as stack:
        if context.ranks.is_first:
            tracking.begin(trainer.run)
            peak_bytes = _memory([recipe], context, context.say)
            stack.enter_context(trainer.run.in_training(peak_bytes, context.say))
        after_step = tracking.before(on_progress)
        loop = TrainLoop([trainer], windows, held_out, context, after_step, on_saved=on_saved)
        loop.fit()
    if context.ranks.is_first:
        context.say(windows.difference_text)
    return trainer.run


def train_together(
    recipes: Mapping[Path, Recipe],
    context: RunContext,
    on_progress: OnProgress | None = None,
    on_failure: OnFailure | None = None,
    say: Say = lambda _: None,
    tracking: Tracking = UNTRACKED,
) -> list[Run]:
    """Trains several recipes, each into its run folder, from one read of each batch. They must be
    alike in `compatibility.window_needs`.

    A run that cannot go on is handed to `on_failure` and left; without that, its error is raised.
    `say` is told before it begins where memory may not do, and where the last training of a run was
    killed. Raises MemoryError, before it begins, where several recipes take more than is free.
    """
    tasks, windows, held_out = open_windows(list(recipes.values()), context)
    require_division(next(iter(recipes.values())).training, context.ranks)
    uneven = uneven_windows_text(windows)
    trainers = make_trainers(recipes, tasks, windows, context, say)
    with ExitStack() as stack:
        if context.ranks.is_first:
            for trainer in trainers:
                tracking.begin(trainer.run)
            if uneven:
                say(uneven)
            peak_bytes = _memory(list(recipes.values()), context, say)
            for trainer in trainers:
                stack.enter_context(trainer.run.in_training(peak_bytes, say))
        after_step = tracking.before(on_progress)
        TrainLoop(trainers, windows, held_out, context, after_step, on_failure).fit()
    return [trainer.run for trainer in trainers]


def _memory(recipes: Sequence[Recipe], context: RunContext, say: Say) -> int | None:
    """Bytes that training takes at its peak; says so where less is free. None where there is plenty
    of it, or nobody knows."""
    free, memory = free_memory_bytes(), training_memory(recipes, context)
    if context.device.type != "cpu" or free is None or memory.is_plenty(free):
        return None
    try:
        peak_bytes = memory.peak_bytes()
        if peak_bytes > free:
            if len(recipes) > 1:
                raise MemoryError
            say(memory.warning(peak_bytes, free))
    except NotCounted:
        return None
    return peak_bytes


class TrainLoop:
    """Runs that train side by side: each batch is read and decoded once, and every run that is at
    this step learns from it."""

    def __init__(
        self,
        trainers: Sequence[Trainer],
        windows: BatchSource,
        held_out: HeldOutSource,
        context: RunContext,
        on_progress: OnProgress | None = None,
        on_failure: OnFailure | None = None,
        on_saved: Callable[[int], object] = lambda _: None,
    ) -> None:
        """`windows` are trained on, `held_out` are evaluated on. `on_saved` is handed the step of
        every checkpoint."""
        self.running = list(trainers)
        """Those that have not failed."""
        self.windows, self.held_out = windows, held_out
        self.device, self.ranks = context.device, context.ranks
        self.on_progress = on_progress or (lambda _: None)
        self.on_failure, self.on_saved = on_failure, on_saved
        self.width = context.cache.shape.width
        self.settings = trainers[0].settings
        self._is_stopped = False

    def stop(self) -> None:
        """Ends `fit` after the step that it is at; nothing is evaluated or saved for it."""
        self._is_stopped = True

    def fit(self) -> None:
        """Trains all to their last step, evaluating and saving on the way."""
        keep_freed_memory()
        for trainer in self.running:
            trainer.restore()
        # Nobody writes a checkpoint before all have read theirs, and all have read the same.
        if not self.ranks.all_equal(json.dumps([trainer.step for trainer in self.running])):
            paths = ", ".join(str(trainer.run.path) for trainer in self.running)
            raise BadInput(
                f"processes of this training see different checkpoints of {paths}",
                "--out a folder that all share",
            )
        to_do = {range(trainer.step, trainer.steps) for trainer in self.running}
        steps = sorted({step for steps in to_do for step in steps})
        batches = self.windows.train(
            self.settings.batch_size, steps, self.ranks.rank, self.ranks.size
        )
        untouched = [trainer for trainer in self.running if not trainer.steps]
        self._validate(untouched)
        for trainer in untouched:
            trainer.save()
            self.on_progress(trainer.progress)
        for step in steps:
            if self._is_stopped:
                return
            active = [trainer for trainer in self.running if trainer.step == step < trainer.steps]
            if not active:  # those that had this step to do have failed
                continue
            with _timed(active, "data"):
                batch = next(batch for batch_step, batch in batches if batch_step == step)
            self._step(active, batch)

    def _step(self, active: list[Trainer], batch: Batch) -> None:
        """One step of every active run: gradients, optimiser, and what is due after it."""
        micro_batches = batch.micro_batches(self.settings.accumulate)
        loss_weights = self._loss_weights(active[0].task, micro_batches)
        # A single one stays on the device. Several are there one at a time, to need less memory,
        # and are decoded twice where batch norms must look at all of them first.
        kept = None
        if len(micro_batches) == 1:
            kept = list(self._device_batches(active, micro_batches))
        if len(micro_batches) * self.ranks.size > 1:
            self._set_batch_moments(active, kept or self._device_batches(active, micro_batches))
        device_batches = kept or self._device_batches(active, micro_batches)
        for index, (device_batch, loss_weight) in enumerate(
            zip(device_batches, loss_weights, strict=True)
        ):
            for trainer in active:
                with trainer.progress.timed("steps"):
                    trainer.backward(index, device_batch, loss_weight)
        active = self._each(active, "steps", Trainer.optimizer_step)
        self._validate(
            [trainer for trainer in active if trainer.is_due(trainer.settings.evaluate_every)]
        )
        active = [trainer for trainer in active if trainer in self.running]
        for trainer in active:
            if trainer.is_due(trainer.settings.checkpoint_every):
                with trainer.progress.timed("checkpoints"):
                    trainer.save()
                self.on_saved(trainer.step)
        for trainer in active:
            self.on_progress(trainer.progress)

    def _each(
        self, trainers: Sequence[Trainer], stage: str, action: Callable[[Trainer], object]
    ) -> list[Trainer]:
        """Those for which `action` went well. Who cannot go on is no longer running, and is handed
        to `on_failure`; without that, its error is raised."""
        survivors = []
        for trainer in trainers:
            try:
                with trainer.progress.timed(stage):
                    action(trainer)
            except Diverged as error:
                trainer.write_metrics()
                if self.on_failure is None:
                    raise
                self.running.remove(trainer)
                self.on_failure(trainer, error)
            else:
                survivors.append(trainer)
        return survivors

    def _device_batches(
        self, active: Sequence[Trainer], micro_batches: Sequence[Batch]
    ) -> Iterator[OnDevice]:
        for micro_batch in micro_batches:
            with _timed(active, "tokens"):
                device_batch = self.windows.on_device(micro_batch, self.device)
            yield device_batch

    def _loss_weights(self, task: TaskPlugin, micro_batches: Sequence[Batch]) -> list[float]:
        """The weight of each micro batch of this rank in the step's loss, which is a mean over all
        that is valid in the whole batch."""
        if len(micro_batches) * self.ranks.size == 1:
            return [1.0]
        loss_counts = torch.tensor(
            [task.terms(micro_batch.targets) for micro_batch in micro_batches], dtype=torch.float64
        )
        total = loss_counts.sum(0, keepdim=True)
        self.ranks.all_reduce_sum([total])
        return (loss_counts / total.clamp(min=1)).tolist()

    def _set_batch_moments(
        self, active: Sequence[Trainer], device_batches: Iterable[OnDevice]
    ) -> None:
        """Tells the models that have batch norms the moments of the whole batch's tokens, over all
        micro batches and ranks: a norm sees a part as if it were all."""
        normed = [trainer for trainer in active if trainer.norms]
        layers = sorted({layer for trainer in normed for layer in trainer.model.layers})
        if not layers:
            return
        # Rows: the sum of the tokens, that of their squares, and how many they are.
        sums_3D = {layer: torch.zeros(3, self.width, dtype=torch.float64) for layer in layers}
        for device_batch in device_batches:
            for layer, sums in sums_3D.items():
                x_MD = device_batch.patches[layer].flatten(0, -2).double()
                sums += torch.stack(
                    [x_MD.sum(0), x_MD.square().sum(0), torch.full_like(x_MD[0], len(x_MD))]
                ).cpu()
        self.ranks.all_reduce_sum(list(sums_3D.values()))
        moments = {layer: self._moments(*sums) for layer, sums in sums_3D.items()}
        for trainer in normed:
            trainer.set_batch_moments(moments)

    def _moments(
        self, total_D: torch.Tensor, squares_D: torch.Tensor, count_D: torch.Tensor
    ) -> Moments:
        mean_D = total_D / count_D
        # Rounding may make the variance of equal numbers negative.
        var_D = (squares_D / count_D - mean_D.square()).clamp(min=0)
        return Moments(
            mean_D.float().to(self.device), var_D.float().to(self.device), int(count_D[0])
        )

    def _validate(self, due: Sequence[Trainer]) -> None:
        """Scores of the runs that are due on the evaluation split, added up over all ranks."""
        if not due:
            return
        share = self.held_out.share
        if not share:  # nothing of it has come yet
            return
        totals = {
            trainer: torch.zeros(len(trainer.task.forms) + 1, dtype=torch.float64)
            for trainer in due
        }
        size = evaluation_batch(self.settings.batch_size // self.settings.accumulate)
        together = {trainer: Collected() for trainer in due if trainer.task.scores_together}
        for batch in self.held_out.evaluation(size, self.ranks.rank, self.ranks.size):
            with _timed(due, "evaluation"):
                device_batch = self.held_out.on_device(batch, self.device)
            for trainer in due:
                with trainer.progress.timed("evaluation"):
                    answers, targets = trainer.answered(batch, device_batch)
                    if trainer in together:
                        together[trainer].add(answers, targets)
                    else:
                        totals[trainer] += trainer.score_sums(answers, targets)
        for trainer, collected in together.items():
            with trainer.progress.timed("evaluation"):
                answers, targets = collected.of_all(self.ranks)
                if self.ranks.is_first or answers is None:
                    totals[trainer] += trainer.score_sums(answers, targets)
        self.ranks.all_reduce_sum(list(totals.values()))
        self._each(
            due,
            "evaluation",
            lambda trainer: trainer.record_validation(*totals[trainer].tolist(), share=share),
        )
        for trainer in due:
            scores = ", ".join(
                f"{form} {score:.4f}" for form, score in trainer.progress.scores.items()
            )
            log.debug("scored %s after step %d: %s", trainer.run.path, trainer.step, scores)


class Collected:
    """Answers of a run to all windows of a split, with their truth, for scores that depend on all
    of them."""

    def __init__(self) -> None:
        self._batches: list[tuple[Arrays | None, Arrays]] = []

    def add(self, answers: Arrays | None, targets: Arrays) -> None:
        """Keeps one batch; None where there are no answers to it."""
        self._batches.append((answers, targets))

    def of_all(self, ranks: Ranks) -> tuple[Arrays | None, Arrays]:
        """Those of all ranks: the answers by form, None where this rank lacks some, and the
        truth."""
        own = [
            {f"{ANSWER}{name}": array for name, array in answers.items()} | targets
            for answers, targets in self._batches
            if answers is not None
        ]
        whole = joined(ranks.gathered(joined(own)))
        answers = {
            name.removeprefix(ANSWER): array
            for name, array in whole.items()
            if name.startswith(ANSWER)
        }
        targets = {name: array for name, array in whole.items() if not name.startswith(ANSWER)}
        return (None if len(own) < len(self._batches) else answers), targets


@contextmanager
def _timed(trainers: Sequence[Trainer], stage: str) -> Iterator[None]:
    """Times a stage. Time that is spent for several runs at once counts for each in equal
    shares."""
    begin = time.perf_counter()
    yield
    share_s = (time.perf_counter() - begin) / len(trainers)
    for trainer in trainers:
        trainer.progress.add_seconds(stage, share_s)
