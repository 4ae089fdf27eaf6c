"""Stage two: one loop for every temporal module and task, on cached tokens.

All randomness is a function of (seed, step): a resumed run ends with the same weights as an undisturbed one on CPU.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline import plugins
from pipeline.cache import Cache
from pipeline.device import chosen
from pipeline.errors import BadInput, StillframeError
from pipeline.ledger import to_json
from pipeline.manifest import Manifest
from pipeline.model import VideoModel, layers_read, parameter_groups
from pipeline.places.folder import write_atomically
from pipeline.progress import Timed
from pipeline.records import Batch
from pipeline.run import RUN_FORMAT, CacheFacts, Run, RunHeader, load_weights, read_metrics, tool_versions
from pipeline.spec import Recipe, TrainingSettings, differences
from pipeline.tasks import TaskPlugin
from pipeline.windows import Windows

EVAL_BATCH = 64
"""Windows per batch in evaluation; changes no result."""


@dataclass
class Progress(Timed):
    """What training has done so far; handed to `on_progress` after every step."""

    steps: int
    step: int = 0
    loss: float = math.nan
    scores: dict[str, float] = field(default_factory=dict)
    windows_per_s: float = 0.0


OnProgress = Callable[[Progress], None]


def train(
    recipe: Recipe,
    cache: Cache,
    out: Path,
    manifest: Manifest | None = None,
    device: torch.device | None = None,
    allow_missing: bool = False,
    on_progress: OnProgress | None = None,
) -> Run:
    """Trains `recipe` on `cache` into the run folder `out`, going on from its last checkpoint if there is one.

    `manifest` replaces the cache's own: other clips or labels over the same videos. Raises BadInput where recipe, cache,
    manifest and an existing run do not fit together, StillframeError where the loss is no longer finite.
    """
    device = chosen(device)
    manifest = manifest or cache.manifest
    require_fit(recipe, cache, manifest)
    cache.require_sound()
    task: TaskPlugin = plugins.load("task", recipe.task.name)(recipe.task.settings, manifest.labels)
    layers = layers_read(recipe, cache.shape)
    windows, held_out = (
        Windows(cache, manifest, split, recipe.windows, task, layers, recipe.training.seed, allow_missing)
        for split in ("train", "val")
    )
    require_truth(task, held_out)
    torch.manual_seed(recipe.training.seed)
    model = VideoModel(recipe, cache.shape, task).to(device)
    task.to(device)
    run = open_or_create(out, recipe, cache, manifest, model, windows)
    Trainer(run, recipe, model, task, windows, held_out, device, on_progress).fit()
    return run


def require_fit(recipe: Recipe, cache: Cache, manifest: Manifest) -> None:
    """Refuses a recipe that was written for another cache, and a manifest of other videos."""
    if recipe.cache and not cache.fingerprint.startswith(recipe.cache):
        raise BadInput(
            f"recipe '{recipe.name}' wants the cache with fingerprint {recipe.cache}, {cache} has {cache.fingerprint}",
            "give the cache it wants, or change `cache` in the recipe",
        )
    planned = {video_id for videos in cache.plan.values() for video_id in videos}
    strange = [video.video_id for video in manifest.videos if video.video_id not in planned]
    if strange:
        raise BadInput(
            f"{len(strange)} videos of manifest {manifest.folder} are not in cache {cache}, the first is {strange[0]}",
            "extract this manifest into another --out, or train with the manifest the cache was made from",
        )


def require_truth(task: TaskPlugin, windows: Windows) -> None:
    """Refuses a split in which nothing can be scored."""
    if not any((task.weight(windows.truth([sample])) > 0).any() for sample in windows.evaluation_samples()):
        raise BadInput(
            f"no window of split '{windows.split}' has anything to score: of {', '.join(task.needs)} nothing is valid in any",
            "look at the truth in targets.h5, or choose other windows.fps and windows.frames",
        )


def open_or_create(path: Path, recipe: Recipe, cache: Cache, manifest: Manifest, model: VideoModel, windows: Windows) -> Run:
    """The run at `path`, checked against recipe, cache and manifest; created if it is not there yet."""
    header = RunHeader(
        format_version=RUN_FORMAT,
        recipe=recipe.canonical(),
        cache=CacheFacts.of(cache),
        manifest=manifest.digest,
        labels=manifest.labels,
        spec=cache.spec,
        encoder=cache.header.encoder,
        cache_path=cache.place.address,
        manifest_path=None if manifest.folder == cache.manifest.folder else str(manifest.folder.absolute()),
        parameters=model.parameter_counts(),
        clips={
            "train": len(windows),
            "padded": windows.padded,
            "slower": windows.slower,
            "skipped": len(windows.skipped),
        },
        versions=tool_versions(),
    )
    if (path / "run.json").is_file():
        run = Run(path)
        changed = differences(header.made_from(), run.header.made_from())
        if changed:
            raise BadInput(f"run {path} was made from something else; now / then: {'; '.join(changed)}", "use another --out")
        return run
    path.mkdir(parents=True, exist_ok=True)
    cache.copy_learnt(path)
    write_atomically(path / "run.json", to_json(header))
    return Run(path)


class Trainer:
    """The loop. Everything that changes from step to step is in the model, the optimiser and `step`."""

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        model: VideoModel,
        task: TaskPlugin,
        windows: Windows,
        held_out: Windows,
        device: torch.device,
        on_progress: OnProgress | None,
    ) -> None:
        self.run, self.settings, self.model, self.task = run, recipe.training, model, task
        self.windows, self.held_out, self.device = windows, held_out, device
        self.on_progress = on_progress or (lambda _: None)
        self.steps = steps_of(self.settings, len(windows))
        self.trained = nn.ModuleDict({"model": model, "task": task})
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.trained, self.settings.weight_decay),
            lr=self.settings.learning_rate,
            betas=self.settings.betas,
        )
        self.step = 0
        self.best: float | None = None
        self.progress = Progress(self.steps)

    def fit(self) -> None:
        """Trains to the last step, evaluating and saving on the way."""
        self._restore()
        begin, first = time.perf_counter(), self.step
        batches = self.windows.train(self.settings.batch_size, self.step, self.steps)
        with (self.run.path / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
            while self.step < self.steps:
                with self.progress.timed("data"):
                    step, batch = next(batches)
                with self.progress.timed("steps"):
                    record: dict[str, Any] = self._train_step(step, batch)
                self.step = step + 1
                if self._due(self.settings.evaluate_every):
                    with self.progress.timed("evaluation"):
                        record["val"] = self._evaluate()
                metrics.write(json.dumps({"step": self.step, **record}) + "\n")
                if self._due(self.settings.checkpoint_every):
                    metrics.flush()
                    with self.progress.timed("checkpoints"):
                        self._save("last", self._everything())
                self.progress.step, self.progress.loss = self.step, record["loss"]
                self.progress.windows_per_s = (self.step - first) * self.settings.batch_size / (time.perf_counter() - begin)
                self.on_progress(self.progress)

    def _due(self, every: int | None) -> bool:
        return self.step == self.steps or (every is not None and self.step % every == 0)

    def _train_step(self, step: int, batch: Batch) -> dict[str, Any]:
        torch.manual_seed(np.random.SeedSequence([self.settings.seed, step]).generate_state(1, np.uint64).item() >> 1)
        rate = learning_rate(self.settings, step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        special_BTSD, patches = self.windows.tokens(batch, self.device)
        targets = {name: torch.from_numpy(array).to(self.device) for name, array in batch.targets.items()}
        try:
            with self._autocast():
                predictions = self.model(special_BTSD, patches, self.task.query(targets))
        except BadInput as error:
            where = f"step {step + 1} of run {self.run.path}; the last checkpoint is kept"
            raise StillframeError(f"{error.message}, at {where}", error.hint) from error
        losses = {form: self.task.loss(form, prediction.float(), targets) for form, prediction in predictions.items()}
        loss = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(loss):
            raise StillframeError(
                f"loss is {loss.item()} at step {step + 1} of run {self.run.path}; the last checkpoint is kept",
                "check the cache with stillframe verify, or lower training.learning_rate",
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trained.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        values = {form: value.item() for form, value in losses.items()}
        return {"loss": loss.item(), "losses": values, "learning_rate": rate, "gradient_norm": norm.item()}

    def _autocast(self) -> AbstractContextManager[Any]:
        wanted = self.settings.precision == "bfloat16" or (self.settings.precision == "auto" and self.device.type == "cuda")
        return torch.autocast(self.device.type, torch.bfloat16) if wanted else nullcontext()

    def _evaluate(self) -> dict[str, float]:
        """Mean score per form on the evaluation split; keeps the weights that are best in the first form."""
        metric = self.task.metrics[0]
        total, weight = dict.fromkeys(self.task.forms, 0.0), 0.0
        for batch, answers in predict(self.model, self.task, self.held_out, self.device):
            weights = self.task.weight(batch.targets)
            weight += weights.sum()
            for form, answer in answers.items():
                total[form] += weighted_sum(self.task.score(answer, batch.targets)[metric.name], weights)
        values = {form: float(score / weight) for form, score in total.items()}
        self.progress.scores = values
        value = values[self.task.forms[0]]
        if self.best is None or (value > self.best if metric.higher_is_better else value < self.best):
            self.best = value
            self._save("best", self._weights())
        return values

    # Checkpoints

    def _weights(self) -> dict[str, torch.Tensor]:
        return dict(self.trained.state_dict())

    def _everything(self) -> dict[str, torch.Tensor]:
        names: dict[torch.Tensor, str] = {parameter: name for name, parameter in self.trained.named_parameters()}
        moments = {
            f"optimizer.{key}.{names[parameter]}": value
            for parameter, state in self.optimizer.state.items()
            for key, value in state.items()
        }
        return self._weights() | moments

    def _save(self, which: str, tensors: dict[str, torch.Tensor]) -> None:
        self.run.save(which, tensors, self.step, self.steps, self.best)

    def _restore(self) -> None:
        """Goes on from the last checkpoint, if there is one, and forgets metrics that were written after it."""
        checkpoint = self.run.checkpoint("last")
        if checkpoint:
            tensors = self.run.tensors("last")
            load_weights(self.model, self.task, tensors)
            for name, parameter in self.trained.named_parameters():
                keys = ("step", "exp_avg", "exp_avg_sq")
                found = {key: tensors[f"optimizer.{key}.{name}"] for key in keys if f"optimizer.{key}.{name}" in tensors}
                if found:
                    self.optimizer.state[parameter] = {
                        key: value if key == "step" else value.to(self.device) for key, value in found.items()
                    }
            self.step, self.best = checkpoint.step, checkpoint.best
        self.progress.step = self.step
        kept = [line for line in read_metrics(self.run.path) if line["step"] <= self.step]
        write_atomically(self.run.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept).encode())


def weighted_sum(values: np.ndarray, weights: np.ndarray) -> float:
    """Sum of value times weight over windows that count: a value where the weight is 0 may be NaN."""
    return float((values[weights > 0] * weights[weights > 0]).sum())


def predict(
    model: VideoModel, task: TaskPlugin, windows: Windows, device: torch.device
) -> Iterator[tuple[Batch, dict[str, np.ndarray]]]:
    """Every evaluation batch with the model's answer in each form."""
    model.eval()
    for batch in windows.evaluation(EVAL_BATCH):
        with torch.inference_mode():
            targets = {name: torch.from_numpy(array).to(device) for name, array in batch.targets.items()}
            predictions = model(*windows.tokens(batch, device), task.query(targets))
            yield batch, {form: task.answer(form, prediction).cpu().numpy() for form, prediction in predictions.items()}


def steps_of(settings: TrainingSettings, clips: int) -> int:
    """Steps of a run; epochs are converted here and nowhere else."""
    if settings.steps is not None:
        return settings.steps
    assert settings.epochs is not None
    return max(1, math.ceil(settings.epochs * clips / settings.batch_size))


def learning_rate(settings: TrainingSettings, step: int, steps: int) -> float:
    """Linear warm-up to the peak, then a cosine down to the minimum at the last step."""
    warmup = min(settings.warmup_steps, steps - 1)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - 1 - warmup)
    low, high = settings.min_learning_rate, settings.learning_rate
    return low + (high - low) * (1 + math.cos(math.pi * share)) / 2
