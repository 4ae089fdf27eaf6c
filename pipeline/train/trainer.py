"""One run in training: its model, its optimiser and its place in the schedule. Who feeds it is
`pipeline.train.loop`'s affair.

All randomness is a function of (seed, step): a resumed run ends with the same weights as an
undisturbed one on CPU.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.cache.storage.local import write_atomically
from pipeline.config.recipe import TrainingSettings
from pipeline.datasets.manifest.targets import Arrays
from pipeline.errors import BadInput, StillframeError
from pipeline.models.compiling import require_compiler
from pipeline.models.mixers import Moments, TokenNorm
from pipeline.models.tasks.contract import TaskPlugin
from pipeline.models.temporal.contract import NotFinite
from pipeline.models.video_model import VideoModel, parameter_groups, with_truth
from pipeline.records import Batch, OnDevice
from pipeline.timing import Timed
from pipeline.train.distributed import Ranks
from pipeline.train.run import Run, load_weights, read_metrics

log = logging.getLogger(__name__)


@dataclass
class TrainProgress(Timed):
    """The state of the training of a run so far; it is handed to `on_progress` after every step."""

    run: str
    """Name of its folder."""
    steps: int
    """Optimiser steps of the whole training."""
    step: int = 0
    """Steps done."""
    loss: float = math.nan
    """Loss of the last step, the sum over forms."""
    scores: dict[str, float] = field(default_factory=dict)
    """form -> first metric on the evaluation split, when last scored."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """The step's line of metrics.jsonl."""
    windows_per_s: float = 0.0
    """Training windows per second of wall time, evaluations and checkpoints included, since this
    process went on with the run."""
    steps_per_s: float = 0.0
    """Optimiser steps per second of the same time."""

    @property
    def eta_s(self) -> float:
        """Seconds to the last step at this pace."""
        return (self.steps - self.step) / max(1e-9, self.steps_per_s)


OnProgress = Callable[[TrainProgress], None]


class Diverged(StillframeError):
    """A run cannot go on: its loss or its gradient is no longer finite. Its last checkpoint is
    kept."""

    def __init__(self, run: Run, step: int, reason: str, hint: str) -> None:
        super().__init__(
            f"{reason}, at step {step} of run {run.path}; the last checkpoint is kept", hint
        )
        self.step, self.reason = step, reason


class Trainer:
    """A run with its model, task and optimiser. Everything of it that changes from step to step is
    in these three and in `step`."""

    def __init__(
        self,
        run: Run,
        model: VideoModel,
        task: TaskPlugin,
        windows: int,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        """`windows`: how many an epoch has, which turns epochs into steps."""
        self.run, self.settings, self.model, self.task = run, run.recipe.training, model, task
        self.device, self.ranks = device, ranks
        self.steps = steps_of(self.settings, windows)
        self.trained = nn.ModuleDict({"model": model, "task": task})
        init = run.recipe.init
        factors = {f"model.{part}.": init.learning_rate_factor for part in model.taken_over if init}
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.trained, self.settings.weight_decay, factors),
            lr=self.settings.learning_rate,
            betas=self.settings.betas,
            # One kernel in place of many. On a CPU it would round otherwise than it always has.
            fused=device.type == "cuda",
        )
        self._predict = model.predict
        if self.settings.compile:
            require_compiler("training.compile", device)
            self._predict = torch.compile(model.predict)
        self.step = 0
        self.best: float | None = None
        self.progress = TrainProgress(run.path.name, self.steps)
        self.norms = [
            module
            for module in model.modules()
            if isinstance(module, TokenNorm) and module.weight.requires_grad
        ]
        """One for each layer the model reads, if it has any and they are not frozen."""
        self.pending_error: NotFinite | None = None
        """Why this rank has no predictions: raised when all ranks know, so that none waits for
        another."""
        self._losses: dict[str, torch.Tensor] = {}
        self._lines: list[dict[str, Any]] = []
        self._seconds = 0.0
        self._first, self._begun = 0, 0.0

    # One step

    def backward(self, index: int, device_batch: OnDevice, loss_weight: float) -> None:
        """Adds the gradient of micro batch `index` of this step, whose loss makes up `loss_weight`
        of the step's.

        Where tokens in the temporal module are no longer finite, `optimizer_step` says so: by then
        all ranks know.
        """
        seed = np.random.SeedSequence([self.settings.seed, self.step, self.ranks.rank, index])
        # Half of it: generators take 63 bits, see `config.plugins.Seed`.
        torch.manual_seed(seed.generate_state(1, np.uint64).item() >> 1)
        if index == 0:
            self.optimizer.zero_grad(set_to_none=True)
            self._losses = {}
        self.model.train()
        try:
            with self._autocast():
                predictions = self._predict(device_batch, self.task)
        except NotFinite as error:
            self.pending_error = error
            nan = torch.tensor(math.nan, device=self.device)
            self._losses = dict.fromkeys(self.task.forms, nan)
            return
        truth = self.model.truth(device_batch, self.task)
        losses = {
            form: self.task.loss(form, prediction.float(), truth)
            for form, prediction in predictions.items()
        }
        for form, loss in losses.items():
            self._losses[form] = self._losses.get(form, 0.0) + loss_weight * loss.detach()
        (loss_weight * torch.stack(list(losses.values())).sum()).backward()

    def optimizer_step(self) -> None:
        """Ends the step that `backward` has begun: one step of the optimiser, a line of metrics.
        Raises Diverged in all ranks."""
        losses = torch.stack(list(self._losses.values())).float()
        parameters = [
            parameter for parameter in self.trained.parameters() if parameter.requires_grad
        ]
        if self.ranks.size > 1:
            self.ranks.all_reduce_sum([losses, *map(_gradient, parameters)])
        total_norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm)
        # The one wait for the device in a step.
        *values, norm = torch.cat([losses, total_norm[None].to(losses)]).tolist()
        loss = sum(values)
        for what, value in (("loss", loss), ("norm of the gradient", norm)):
            if not math.isfinite(value):
                raise self._diverged(self.step + 1, f"{what} is {value}")
        lr = learning_rate(self.settings, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        self.optimizer.step()
        self.step += 1
        line = {
            "step": self.step,
            "loss": loss,
            "losses": dict(zip(self._losses, values, strict=True)),
            "learning_rate": lr,
            "gradient_norm": norm,
        }
        self._lines.append(line)
        self.progress.step, self.progress.loss, self.progress.metrics = self.step, loss, line
        spent_s = time.perf_counter() - self._begun
        self.progress.steps_per_s = (self.step - self._first) / max(1e-9, spent_s)
        self.progress.windows_per_s = self.progress.steps_per_s * self.settings.batch_size

    def set_batch_moments(self, moments: dict[int, Moments]) -> None:
        """Hands the mixer's norms the moments of their layers' tokens over the whole batch."""
        for layer, norm in zip(self.model.layers, self.norms, strict=True):
            norm.set_batch_moments(moments[layer])

    def answered(self, batch: Batch, device_batch: OnDevice) -> tuple[Arrays | None, Arrays]:
        """The answers to one batch by form, and its whole truth. None where there are no
        answers."""
        targets = with_truth(batch, device_batch, self.task, self.model.layers[-1]).targets
        try:
            return self.model.eval().answers(device_batch, self.task), targets
        except NotFinite as error:
            self.pending_error = error
            return None, targets

    def score_sums(self, answers: Arrays | None, targets: Arrays) -> torch.Tensor:
        """(forms + 1,) float64: the weighted sum of the first metric in every form, then that of
        the weights. NaN where there are no answers."""
        if answers is None:
            return torch.full((len(self.task.forms) + 1,), math.nan, dtype=torch.float64)
        metric, weights = self.task.metrics[0].name, self.task.weight(targets)
        sums = [
            weighted_sum(self.task.score(answer, targets)[metric], weights)
            for answer in answers.values()
        ]
        return torch.tensor([*sums, weights.sum()], dtype=torch.float64)

    def record_validation(self, *sums: float, share: float = 1.0) -> None:
        """Takes in what `score_sums` adds up to over the evaluation split, or over the `share` of
        it that has come: for every form the sum of scores times weights, then the sum of the
        weights.

        Keeps the weights that are best in the first form, of those that were scored on all. Raises
        Diverged where there are no answers.
        """
        *scores, weight = sums
        if not all(map(math.isfinite, sums)):
            raise self._diverged(self.step, "the model's answers are not finite")
        if share < 1 and not weight:  # of the windows that have come none has anything to score
            return
        values = {form: score / weight for form, score in zip(self.task.forms, scores, strict=True)}
        self.progress.scores = values
        if self._lines:  # none after no step
            self._lines[-1]["val"] = values
        if share < 1:
            self._lines[-1]["val_share"] = share
            return
        value, better = values[self.task.forms[0]], self.task.metrics[0].higher_is_better
        if self.best is None or (value > self.best if better else value < self.best):
            self.best = value
            self._save("best", self._weights())

    def is_due(self, every: int | None) -> bool:
        return self.step == self.steps or (every is not None and self.step % every == 0)

    def _diverged(self, step: int, reason: str) -> Diverged:
        """The error for `reason`, unless this rank knows better."""
        if self.pending_error:
            return Diverged(self.run, step, self.pending_error.message, self.pending_error.hint)
        return Diverged(
            self.run,
            step,
            reason,
            "check the cache with stillframe verify, or lower training.learning_rate",
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        is_bfloat16 = self.settings.precision == "bfloat16" or (
            self.settings.precision == "auto" and self.device.type == "cuda"
        )
        return torch.autocast(self.device.type, torch.bfloat16) if is_bfloat16 else nullcontext()

    # Checkpoints

    def save(self) -> None:
        """Metrics so far, then the checkpoint that vouches for them."""
        self.write_metrics()
        self._save("last", self._everything())
        log.debug("saved checkpoint of %s at step %d", self.run.path, self.step)

    def write_metrics(self) -> None:
        """Adds the lines of the steps since the last time to metrics.jsonl."""
        if self.ranks.is_first:
            with (self.run.path / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
                metrics.writelines(json.dumps(line) + "\n" for line in self._lines)
        self._lines = []

    def restore(self) -> None:
        """Goes on from the last checkpoint, if there is one, and forgets metrics that were written
        after it."""
        checkpoint = self.run.checkpoint("last")
        if checkpoint:
            if checkpoint.steps != self.steps:
                raise BadInput(
                    f"{self.run.path}/last.json says {checkpoint.steps} steps, the run has "
                    f"{self.steps}: the file is damaged, or the cache covers other clips than when "
                    "training began",
                    "train again into another --out",
                )
            tensors = self.run.tensors("last")
            load_weights(self.model, self.task, tensors)
            for name, parameter in self.trained.named_parameters():
                keys = ("step", "exp_avg", "exp_avg_sq")
                state = {
                    key: tensors[f"optimizer.{key}.{name}"]
                    for key in keys
                    if f"optimizer.{key}.{name}" in tensors
                }
                if state:
                    self.optimizer.state[parameter] = {
                        # The fused optimiser counts its steps on the device.
                        key: value.to(self.device)
                        if key != "step" or self.device.type == "cuda"
                        else value
                        for key, value in state.items()
                    }
            self.step, self.best, self._seconds = (
                checkpoint.step,
                checkpoint.best,
                checkpoint.seconds,
            )
        self.progress.step = self._first = self.step
        self._begun = time.perf_counter()
        if self.ranks.is_first:
            kept = [line for line in read_metrics(self.run.path) if line["step"] <= self.step]
            write_atomically(
                self.run.path / "metrics.jsonl",
                "".join(json.dumps(line) + "\n" for line in kept).encode(),
            )

    def _weights(self) -> dict[str, torch.Tensor]:
        return dict(self.trained.state_dict())

    def _everything(self) -> dict[str, torch.Tensor]:
        names: dict[torch.Tensor, str] = {
            parameter: name for name, parameter in self.trained.named_parameters()
        }
        moments = {
            f"optimizer.{key}.{names[parameter]}": value
            for parameter, state in self.optimizer.state.items()
            for key, value in state.items()
        }
        return self._weights() | moments

    def _save(self, which: str, tensors: dict[str, torch.Tensor]) -> None:
        if self.ranks.is_first:
            seconds = self._seconds + sum(self.progress.seconds.values())
            self.run.save(which, tensors, self.step, self.steps, self.best, seconds)


def steps_of(settings: TrainingSettings, windows: int) -> int:
    """Steps of a run; epochs, of so many windows, are converted here and nowhere else."""
    if settings.steps is not None:
        return settings.steps
    assert settings.epochs is not None
    return max(1, math.ceil(settings.epochs * windows / settings.batch_size))


def learning_rate(settings: TrainingSettings, step: int, steps: int) -> float:
    """Linear warm-up to the peak, then a cosine down to the minimum at the last step."""
    warmup = min(settings.warmup_steps, steps - 1)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - 1 - warmup)
    low, high = settings.min_learning_rate, settings.learning_rate
    return low + (high - low) * (1 + math.cos(math.pi * share)) / 2


def weighted_sum(values: np.ndarray, weights: np.ndarray) -> float:
    """Sum of value times weight over the windows that count: a value whose weight is 0 may be
    NaN."""
    return float((values[weights > 0] * weights[weights > 0]).sum())


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    """The gradient of a parameter: zeros, which are put down, where the loss did not reach it in
    this rank but may have in another."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
