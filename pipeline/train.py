"""Stage two: one loop for every temporal module and task, on cached tokens.

Any number of runs that want the same windows train side by side: every batch is read, moved and decoded once for all of them.
What a run computes is a function of its recipe and the cache alone, whoever trains beside it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import plugins
from pipeline.cache import Cache
from pipeline.errors import BadInput
from pipeline.ledger import to_json
from pipeline.manifest import Manifest
from pipeline.model import Moments, VideoModel, layers_read
from pipeline.places.folder import write_atomically
from pipeline.ranks import ALONE, Ranks
from pipeline.records import Batch
from pipeline.run import RUN_FORMAT, CacheFacts, Run, RunHeader, tool_versions
from pipeline.spec import Recipe, TrainingSettings
from pipeline.tables import differences
from pipeline.tasks import TaskPlugin
from pipeline.trainer import Diverged, OnProgress, Trainer
from pipeline.windows import OnDevice, Windows

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
    """Trains `recipe` on `cache` into the run folder `out`, going on from its last checkpoint if there is one.

    `manifest` replaces the cache's own: other clips or labels over the same videos. Raises BadInput where recipe, cache,
    manifest and an existing run do not fit together, Diverged where the loss is no longer finite.
    """
    (run,) = train_together({out: recipe}, cache, manifest, device, allow_missing, on_progress, ranks=ranks)
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
    """Trains several recipes, each into its run folder, from one read of each batch. They must be alike in `shared`.

    A run that cannot go on is handed to `on_failure` and left; without that, its error is raised.
    """
    device = ranks.device(device)
    manifest = manifest or cache.manifest
    tasks, windows, held_out = open_windows(list(recipes.values()), cache, manifest, allow_missing)
    require_division(next(iter(recipes.values())).training, ranks)
    trainers = make_trainers(recipes, tasks, windows, device, ranks)
    Group(trainers, windows, held_out, device, ranks, on_progress, on_failure).fit()
    return [trainer.run for trainer in trainers]


def make_trainers(
    recipes: Mapping[Path, Recipe], tasks: Sequence[TaskPlugin], windows: Windows, device: torch.device, ranks: Ranks = ALONE
) -> list[Trainer]:
    """Of each recipe, for the run in its folder, which is made or opened."""
    trainers = []
    for (out, recipe), task in zip(recipes.items(), tasks, strict=True):
        torch.manual_seed(recipe.training.seed)
        model = VideoModel(recipe, windows.cache.shape, task).to(device)
        run = open_or_create(out, recipe, windows.cache, windows.manifest, model, windows, ranks)
        trainers.append(Trainer(run, model, task.to(device), len(windows), device, ranks))
    return trainers


def open_windows(
    recipes: Sequence[Recipe], cache: Cache, manifest: Manifest, allow_missing: bool
) -> tuple[list[TaskPlugin], Windows, Windows]:
    """The task of each recipe, and the windows that all of them train and are scored on. Raises BadInput for what cannot be
    trained."""
    require_shared(recipes)
    for recipe in recipes:
        require_wanted(recipe, cache)
    require_covered(cache, manifest)
    cache.require_sound()
    first, tasks = recipes[0], [make_task(recipe, manifest) for recipe in recipes]
    layers = sorted({layer for recipe in recipes for layer in layers_read(recipe, cache.shape)})
    windows, held_out = (
        Windows(cache, manifest, split, first.windows, tasks[0], layers, allow_missing) for split in ("train", "val")
    )
    windows.require_views(first.task.name, tasks[0].mirrorable)
    require_truth(tasks[0], held_out)
    return tasks, windows, held_out


def shared(recipe: Recipe) -> dict[str, Any]:
    """What recipes that train side by side have in common: everything that decides which windows and truth are read."""
    task, training = plugins.load("task", recipe.task.name), recipe.training
    return {
        "task": {"name": recipe.task.name, **{name: getattr(recipe.task.settings, name) for name in task.truth_settings}},
        "windows": recipe.windows.model_dump(mode="json"),
        "training": {"batch_size": training.batch_size, "accumulate": training.accumulate},
    }


def require_shared(recipes: Sequence[Recipe]) -> None:
    """Refuses recipes that want other windows or truth than the first of them."""
    first, *others = recipes
    for other in others:
        if changed := differences(shared(first), shared(other)):
            raise BadInput(f"recipes '{first.name}' and '{other.name}' cannot share windows: {'; '.join(changed)}")


def make_task(recipe: Recipe, manifest: Manifest) -> TaskPlugin:
    task: TaskPlugin = plugins.load("task", recipe.task.name)(recipe.task.settings, manifest.labels)
    return task


def require_wanted(recipe: Recipe, cache: Cache) -> None:
    """Refuses a recipe that was written for another cache."""
    if recipe.cache and not cache.fingerprint.startswith(recipe.cache):
        raise BadInput(
            f"recipe '{recipe.name}' wants the cache with fingerprint {recipe.cache}, {cache} has {cache.fingerprint}",
            "give the cache it wants, or change `cache` in the recipe",
        )


def require_covered(cache: Cache, manifest: Manifest) -> None:
    """Refuses a manifest of other videos."""
    planned = {video_id for videos in cache.plan.values() for video_id in videos}
    strange = [video.video_id for video in manifest.videos if video.video_id not in planned]
    if strange:
        raise BadInput(
            f"{len(strange)} videos of manifest {manifest.folder} are not in cache {cache}, the first is {strange[0]}",
            "extract this manifest into another --out, or train with the manifest the cache was made from",
        )


def require_division(settings: TrainingSettings, ranks: Ranks) -> None:
    """Refuses a batch that cannot be cut into equal parts, which equal steps of all ranks rest on."""
    parts = ranks.size * settings.accumulate
    if settings.batch_size % parts:
        raise BadInput(
            f"training.batch_size {settings.batch_size} is no multiple of {ranks.size} processes x {settings.accumulate} parts",
            f"make it a multiple of {parts}",
        )


def require_truth(task: TaskPlugin, windows: Windows) -> None:
    """Refuses a split in which nothing can be scored."""
    if not any((task.weight(windows.truth([sample])) > 0).any() for sample in windows.evaluation_samples()):
        raise BadInput(
            f"no window of split '{windows.split}' has anything to score: of {', '.join(task.needs)} nothing is valid in any",
            "look at the truth in targets.h5, or choose other windows.fps and windows.frames",
        )


def made_from(recipe: Recipe, cache: Cache, manifest: Manifest) -> dict[str, Any]:
    """What a run is made from, as its header keeps it."""
    return {
        "format_version": RUN_FORMAT,
        "recipe": recipe.canonical(),
        "cache": CacheFacts.of(cache),
        "manifest": manifest.digest,
        "labels": manifest.labels,
    }


def require_same(path: Path, recipe: Recipe, cache: Cache, manifest: Manifest) -> None:
    """Refuses a run folder that was made from something else."""
    if (path / "run.json").is_file():
        now = made_from(recipe, cache, manifest)
        now |= {"cache": now["cache"].model_dump(mode="json"), "labels": list(manifest.labels)}
        if changed := differences(now, Run(path).header.made_from()):
            raise BadInput(f"run {path} was made from something else; now / then: {'; '.join(changed)}", "use another --out")


def open_or_create(
    path: Path, recipe: Recipe, cache: Cache, manifest: Manifest, model: VideoModel, windows: Windows, ranks: Ranks = ALONE
) -> Run:
    """The run at `path`, checked against recipe, cache and manifest; the first rank creates it if it is not there yet."""
    header = RunHeader(
        **made_from(recipe, cache, manifest),
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
    if not ranks.agree(json.dumps([header.made_from(), header.clips])):
        raise BadInput(
            "the processes of this training have not found the same recipe, cache and manifest",
            "give all machines the same files and the same arguments",
        )
    if ranks.is_first and not (path / "run.json").is_file():
        path.mkdir(parents=True, exist_ok=True)
        cache.copy_learnt(path)
        write_atomically(path / "run.json", to_json(header))
    ranks.wait()
    if not ranks.agree(str((path / "run.json").is_file())):
        raise BadInput(f"not all processes of this training see run {path}", "--out a folder that all machines share")
    require_same(path, recipe, cache, manifest)
    return Run(path)


class Group:
    """Runs that train side by side: each batch is read and decoded once, and every run that is at this step learns from it."""

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

    def fit(self) -> None:
        """Trains all to their last step, evaluating and saving on the way."""
        for trainer in self.left:
            trainer.restore()
        # Nobody writes a checkpoint before all have read theirs, and all have read the same.
        if not self.ranks.agree(json.dumps([trainer.step for trainer in self.left])):
            paths = ", ".join(str(trainer.run.path) for trainer in self.left)
            raise BadInput(f"processes of this training see different checkpoints of {paths}", "--out a folder that all share")
        stretches = {range(trainer.step, trainer.steps) for trainer in self.left}
        steps = sorted({step for stretch in stretches for step in stretch})
        batches = self.windows.train(self.settings.batch_size, steps, self.ranks.rank, self.ranks.size)
        for step in steps:
            active = [trainer for trainer in self.left if trainer.step == step < trainer.steps]
            if not active:  # those that wanted it have failed
                continue
            with _timed(active, "data"):
                found, batch = next(batches)
                while found < step:
                    found, batch = next(batches)
            self._step(active, batch)

    def _step(self, active: list[Trainer], batch: Batch) -> None:
        parts = batch.parts(self.settings.accumulate)
        shares = self._shares(active[0].task, parts)
        whole = list(self._given(active, parts)) if len(parts) == 1 else None  # several are there one at a time, decoded twice
        if len(parts) * self.ranks.size > 1:
            self._observe(active, whole or self._given(active, parts))
        for number, (given, share) in enumerate(zip(whole or self._given(active, parts), shares, strict=True)):
            self._each(active, "steps", lambda trainer: trainer.learn(number, given, share))  # noqa: B023  called at once
        self._each(active, "steps", Trainer.update)
        self._evaluate([trainer for trainer in active if trainer.is_due(trainer.settings.evaluate_every)])
        going = [trainer for trainer in active if trainer in self.left]
        self._each(
            [trainer for trainer in going if trainer.is_due(trainer.settings.checkpoint_every)], "checkpoints", Trainer.save
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
        """What each part of this rank counts in the step's loss, which is a mean over all that is valid in the whole batch."""
        if len(parts) * self.ranks.size == 1:
            return [1.0]
        terms = torch.tensor([task.terms(part.targets) for part in parts], dtype=torch.float64)
        total = terms.sum(0, keepdim=True)
        self.ranks.add_up([total])
        return (terms / total.clamp(min=1)).tolist()

    def _observe(self, active: Sequence[Trainer], parts: Iterable[OnDevice]) -> None:
        """Moments of the whole batch's tokens, for the models that have batch norms: these see a part as if it were all."""
        normed = [trainer for trainer in active if trainer.norms]
        layers = sorted({layer for trainer in normed for layer in trainer.model.layers})
        if not layers:
            return
        sums = {layer: torch.zeros(3, self.windows.cache.shape.width, dtype=torch.float64) for layer in layers}
        for given in parts:
            for layer, total in sums.items():
                x_MD = given.patches[layer].flatten(0, -2).double()
                total += torch.stack([x_MD.sum(0), x_MD.square().sum(0), torch.full_like(x_MD[0], len(x_MD))]).cpu()
        self.ranks.add_up(list(sums.values()))
        moments = {}
        for layer, (total, squares, counts) in sums.items():
            mean, count = total / counts, int(counts[0])
            variance = (squares / counts - mean.square()).clamp(min=0)
            moments[layer] = Moments(mean.float().to(self.device), variance.float().to(self.device), count)
        for trainer in normed:
            trainer.observe(moments)

    def _evaluate(self, due: list[Trainer]) -> None:
        """Mean score per form on the evaluation split."""
        if not due:
            return
        totals = {trainer: torch.zeros(len(trainer.task.forms) + 1, dtype=torch.float64) for trainer in due}
        for batch in self.held_out.evaluation(EVAL_BATCH, self.ranks.rank, self.ranks.size):
            with _timed(due, "evaluation"):
                given = self.held_out.on_device(batch, self.device)
            for trainer in due:
                with trainer.progress.timed("evaluation"):
                    totals[trainer] += _score_sums(trainer, batch, given)
        self.ranks.add_up(list(totals.values()))
        self._each(due, "evaluation", lambda trainer: trainer.scored(*totals[trainer].tolist()))


def _score_sums(trainer: Trainer, batch: Batch, given: OnDevice) -> torch.Tensor:
    """Of one batch: the weighted sum of the first metric in every form, then that of the weights. NaN: no answers."""
    task, metric = trainer.task, trainer.task.metrics[0].name
    weights = task.weight(batch.targets)
    try:
        answers = trainer.model.eval().answers(given, task)
    except BadInput as error:
        trainer.trouble = error
        return torch.tensor(math.nan, dtype=torch.float64)
    sums = [weighted_sum(task.score(answer, batch.targets)[metric], weights) for answer in answers.values()]
    return torch.tensor([*sums, weights.sum()], dtype=torch.float64)


def weighted_sum(values: np.ndarray, weights: np.ndarray) -> float:
    """Sum of value times weight over windows that count: a value where the weight is 0 may be NaN."""
    return float((values[weights > 0] * weights[weights > 0]).sum())


@contextmanager
def _timed(trainers: Sequence[Trainer], what: str) -> Iterator[None]:
    """What is done for several runs at once counts in equal shares."""
    begin = time.perf_counter()
    yield
    share = (time.perf_counter() - begin) / len(trainers)
    for trainer in trainers:
        trainer.progress.seconds[what] = trainer.progress.seconds.get(what, 0.0) + share
