"""Recipes, a cache and a manifest become windows, tasks and trainers."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from pipeline.cache.cache import Cache
from pipeline.cache.storage.local import write_atomically
from pipeline.config.json_files import sealed_json, to_json
from pipeline.config.recipe import Recipe
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.datasets.manifest.targets import TOKENS, Arrays
from pipeline.device import Uploads, native_precision
from pipeline.errors import BadInput
from pipeline.models.step_memory import EVAL_BATCH, TrainingMemory
from pipeline.models.tasks.contract import TaskPlugin, labels_of, make_task
from pipeline.models.video_model import VideoModel, layers_read
from pipeline.train.compatibility import (
    check,
    identity_of,
    require_same_run,
    require_same_tower,
    require_truth,
)
from pipeline.train.distributed import ALONE, Ranks
from pipeline.train.language.language import Language, Say, open_language
from pipeline.train.run import InitFacts, Run, RunHeader, tool_versions
from pipeline.train.trainer import Trainer
from pipeline.train.weights.initial import initial_weights
from pipeline.train.weights.seen_videos import VIDEOS_FILE, SeenVideos
from pipeline.train.windows.reader import BATCHES_IN_MEMORY
from pipeline.train.windows.source import TrainingSource
from pipeline.train.windows.windows import Windows

log = logging.getLogger(__name__)

TRIVIAL_WINDOWS = 512
"""Training windows whose truth the trivial answer may look at."""
TOKEN_WINDOWS = 128
"""The same, where truth is tokens, which are large."""


@dataclass(frozen=True)
class RunContext:
    """The data that runs are trained and scored on, and the device that does it."""

    cache: Cache
    manifest: Manifest
    """Clips and labels over the cache's videos."""
    device: torch.device
    allow_missing: bool = False
    """Whether clips that the cache does not cover are left out, and are no error."""
    ranks: Ranks = ALONE
    say: Say = lambda _: None
    """Told what is made on the way that is kept: embeddings of texts, and of frames."""
    tower: dict[str, Any] | None = None
    """Identity of the text tower that runs were trained with, where there are some."""
    _languages: dict[str, Language] = field(default_factory=dict, compare=False)

    @classmethod
    def of(
        cls,
        cache: Cache,
        manifest: Manifest | None = None,
        device: torch.device | None = None,
        allow_missing: bool = False,
        ranks: Ranks = ALONE,
        say: Say = lambda _: None,
        tower: dict[str, Any] | None = None,
    ) -> Self:
        """None: the cache's own manifest, and CUDA where there is one. Raises BadInput where this
        rank has no GPU."""
        chosen_manifest = cache.manifest if manifest is None else manifest
        device = ranks.device(device)
        stores = len(cache.plan)
        log.debug("cache %s of %d stores, device %s", cache, stores, device)
        return cls(cache, chosen_manifest, device, allow_missing, ranks, say, tower)

    def windows(
        self,
        split: str,
        recipe: Recipe,
        task: TaskPlugin,
        layers: Sequence[int],
        videos: Container[str] | None = None,
    ) -> Windows:
        """The windows of a split that a recipe asks for, with the truth of its task; `videos`:
        ids of those whose clips are looked at, None: all."""
        return Windows(
            self.cache,
            self.manifest,
            split,
            recipe.windows,
            task,
            layers,
            self.allow_missing,
            self.language(task),
            videos,
            Uploads(self.device) if self.device.type == "cuda" else None,
        )

    def language(self, task: TaskPlugin) -> Language | None:
        """What a task is told in words; None where it is told nothing. Opened once."""
        wanted = task.wanted_texts
        if wanted is None:
            return None
        tower = None if wanted.tower is None else wanted.tower.table()
        key = json.dumps([tower, *wanted[1:]])
        if key not in self._languages:
            self._languages[key] = open_language(
                wanted, self.cache, self.manifest, self.device, self.say, self.tower
            )
        return self._languages[key]


def open_windows(
    recipes: Sequence[Recipe], context: RunContext
) -> tuple[list[TaskPlugin], Windows, Windows]:
    """The task of each recipe, and the windows of the training split and of the evaluation split,
    which all of them share. Raises BadInput for what cannot be trained."""
    cache, manifest = context.cache, context.manifest
    check(recipes, cache, manifest)
    tasks = [make_task(recipe, labels_of(recipe, manifest)) for recipe in recipes]
    layers = sorted({layer for recipe in recipes for layer in layers_read(recipe, cache.shape)})
    windows, held_out = (
        context.windows(split, recipes[0], tasks[0], layers) for split in ("train", "val")
    )
    tasks[0].require_windows(recipes[0].windows, windows.step_s)
    windows.require_views(recipes[0].task.name, tasks[0].mirrorable)
    require_truth(tasks[0], held_out)
    return tasks, windows, held_out


def make_trainers(
    recipes: Mapping[Path, Recipe],
    tasks: Sequence[TaskPlugin],
    windows: TrainingSource,
    context: RunContext,
    say: Callable[[str], object] = lambda _: None,
) -> list[Trainer]:
    """A trainer for each recipe, whose run is in its folder, which is made or opened. `tasks` are
    those of the recipes, in order. `say` is told what is not known of initial weights."""
    trainers, notes, known = [], dict[str, None](), dict[str, Arrays]()
    for (path, asked), task in zip(recipes.items(), tasks, strict=True):
        recipe = with_precision_of(asked, context.device)
        initial = initial_weights(recipe, context.cache, context.manifest, path)
        torch.manual_seed(recipe.training.seed)
        model = VideoModel(recipe, context.cache.shape, task)
        # What a run goes on from holds its weights, and all that its loss is measured by.
        begins = not (path / "last.json").is_file()
        if begins and "temporal" not in model.taken_over:
            model.temporal.load_released()
        language = context.language(task)
        if begins and language is not None:
            task.take_texts(language.own_ND)
        if begins and TOKENS in task.needs:
            key = task_key(recipe, task, model.layers)
            if key not in known:
                known[key] = trivial_statistics(task, recipe, context, "train", model.layers)
            task.fit(known[key])
        facts = before = None
        if initial is not None:
            facts, before = initial.facts, initial.seen
            initial.load_into(model)
        if before is not None and before.note:
            notes[before.note] = None
        model, task = model.to(context.device), task.to(context.device)
        header = _header(recipe, model, windows, context, facts)
        seen = partial(SeenVideos.of, context.manifest, windows.clips, before)
        run = open_or_create(path, header, recipe, context, seen)
        state = "begins" if begins else "goes on"
        parameters, count = sum(header.parameters.values()), windows.per_epoch
        log.debug("run %s %s: %d parameters, %d windows an epoch", path, state, parameters, count)
        trainers.append(Trainer(run, model, task, count, context.device, context.ranks))
    for note in notes if context.ranks.is_first else ():
        say(note)
    return trainers


def with_precision_of(recipe: Recipe, device: torch.device) -> Recipe:
    """A recipe with the precision that `native` is on a device; any other as it is."""
    training = recipe.training
    if training.precision != "native":
        return recipe
    known = training.model_copy(update={"precision": native_precision(device)})
    return recipe.model_copy(update={"training": known})


def task_key(recipe: Recipe, task: TaskPlugin, layers: Sequence[int]) -> str:
    """Equal for runs whose answers without training are; `layers` are those that the model
    reads."""
    truth_layer = layers[-1] if TOKENS in task.needs else None
    return json.dumps([recipe.task.table(), truth_layer], sort_keys=True)


def trivial_statistics(
    task: TaskPlugin, recipe: Recipe, context: RunContext, split: str, layers: Sequence[int]
) -> Arrays:
    """The facts that the trivial answer may know: truth of training windows, or of the split itself
    where there is no training split. `layers` are those that the model reads."""
    where = "train" if "train" in context.manifest.splits else split
    is_tokens = TOKENS in task.needs
    # Clips that the cache does not cover are no error here: fewer windows do as well.
    read = layers[-1:] if is_tokens else ()
    windows = replace(context, allow_missing=True).windows(where, recipe, task, read)
    refs = windows.order.some_of_evaluation(TOKEN_WINDOWS if is_tokens else TRIVIAL_WINDOWS)
    return task.statistics(windows.truth([ref]) for ref in refs)


def _header(
    recipe: Recipe,
    model: VideoModel,
    windows: TrainingSource,
    context: RunContext,
    init: InitFacts | None,
) -> RunHeader:
    cache, manifest = context.cache, context.manifest
    is_caches_own = cache.is_its_own(manifest)
    return RunHeader(
        **identity_of(recipe, cache, manifest, init),
        spec=cache.spec,
        encoder=cache.header.encoder,
        cache_path=cache.storage.address,
        tokens=cache.header.tokens,
        manifest_path=None if is_caches_own else str(manifest.folder.absolute()),
        parameters=model.parameter_counts(),
        text=windows.tower,
        clips=windows.clip_counts,
        versions=tool_versions(),
    )


def open_or_create(
    path: Path,
    header: RunHeader,
    recipe: Recipe,
    context: RunContext,
    seen: Callable[[], SeenVideos],
) -> Run:
    """The run at `path`, checked against recipe, cache and manifest; the first rank creates it with
    `header`, and with the videos that it will have `seen`, if it is not there yet. Raises BadInput
    where ranks disagree on any of it."""
    ranks = context.ranks
    if not ranks.all_equal(json.dumps([header.identity(), header.clips])):
        raise BadInput(
            "the processes of this training have not found the same recipe, cache and manifest",
            "give all machines the same files and the same arguments",
        )
    if ranks.is_first and not (path / "run.json").is_file():
        path.mkdir(parents=True, exist_ok=True)
        context.cache.copy_learnt(path)
        videos = to_json(seen())
        write_atomically(path / VIDEOS_FILE, videos)
        sha256 = hashlib.sha256(videos).hexdigest()
        whole = header.model_copy(update={"videos_sha256": sha256})
        write_atomically(path / "run.json", sealed_json(whole))
    ranks.barrier()
    if not ranks.all_equal(str((path / "run.json").is_file())):
        raise BadInput(
            f"not all processes of this training see run {path}",
            "--out a folder that all machines share",
        )
    require_same_run(path, recipe, context.cache, context.manifest, header.init)
    run = Run(path)
    require_same_tower(run, header.text)
    return run


def training_memory(recipes: Sequence[Recipe], context: RunContext) -> TrainingMemory:
    """The memory that training `recipes` side by side takes, where there are no GPUs."""
    cache, manifest = context.cache, context.manifest
    return TrainingMemory(
        recipes,
        cache.shape,
        labels_of(recipes[0], manifest),
        cache.codec.bytes_per_token(cache.shape.width),
        BATCHES_IN_MEMORY,
        len(manifest.split("val")) * recipes[0].windows.eval_windows
        if recipes[0].windows.per_clip == "one"
        else EVAL_BATCH,
    )
