"""Recipes, a cache and a manifest become windows, tasks and trainers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from pipeline.cache.cache import Cache
from pipeline.cache.corruption import require_valid
from pipeline.cache.storage.local import write_atomically
from pipeline.config import plugins
from pipeline.config.json_files import to_json
from pipeline.config.recipe import Recipe
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import BadInput
from pipeline.models.tasks.contract import TaskPlugin
from pipeline.models.video_model import VideoModel, layers_read
from pipeline.train.compatibility import (
    made_from,
    require_covered,
    require_same,
    require_shared,
    require_truth,
    require_wanted,
)
from pipeline.train.distributed import ALONE, Ranks
from pipeline.train.run import Run, RunHeader, tool_versions
from pipeline.train.trainer import Trainer
from pipeline.train.windows.windows import Windows


def make_trainers(
    recipes: Mapping[Path, Recipe],
    tasks: Sequence[TaskPlugin],
    windows: Windows,
    device: torch.device,
    ranks: Ranks = ALONE,
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
    """The task of each recipe, and the windows that all of them train and are scored on. Raises
    BadInput for what cannot be trained."""
    require_shared(recipes)
    for recipe in recipes:
        require_wanted(recipe, cache)
    require_covered(cache, manifest)
    require_valid(cache)
    first, tasks = recipes[0], [make_task(recipe, manifest) for recipe in recipes]
    layers = sorted({layer for recipe in recipes for layer in layers_read(recipe, cache.shape)})
    windows, held_out = (
        Windows(cache, manifest, split, first.windows, tasks[0], layers, allow_missing)
        for split in ("train", "val")
    )
    windows.require_views(first.task.name, tasks[0].mirrorable)
    require_truth(tasks[0], held_out)
    return tasks, windows, held_out


def make_task(recipe: Recipe, manifest: Manifest) -> TaskPlugin:
    task: TaskPlugin = plugins.load("task", recipe.task.name)(recipe.task.settings, manifest.labels)
    return task


def open_or_create(
    path: Path,
    recipe: Recipe,
    cache: Cache,
    manifest: Manifest,
    model: VideoModel,
    windows: Windows,
    ranks: Ranks = ALONE,
) -> Run:
    """The run at `path`, checked against recipe, cache and manifest; the first rank creates it if
    it is not there yet."""
    header = RunHeader(
        **made_from(recipe, cache, manifest),
        spec=cache.spec,
        encoder=cache.header.encoder,
        cache_path=cache.storage.address,
        manifest_path=None
        if manifest.folder == cache.manifest.folder
        else str(manifest.folder.absolute()),
        parameters=model.parameter_counts(),
        clips={
            "train": len(windows),
            "padded": windows.index.padded,
            "slower": windows.index.slower,
            "skipped": len(windows.index.skipped),
        },
        versions=tool_versions(),
    )
    if not ranks.all_equal(json.dumps([header.made_from(), header.clips])):
        raise BadInput(
            "the processes of this training have not found the same recipe, cache and manifest",
            "give all machines the same files and the same arguments",
        )
    if ranks.is_first and not (path / "run.json").is_file():
        path.mkdir(parents=True, exist_ok=True)
        cache.copy_learnt(path)
        write_atomically(path / "run.json", to_json(header))
    ranks.barrier()
    if not ranks.all_equal(str((path / "run.json").is_file())):
        raise BadInput(
            f"not all processes of this training see run {path}",
            "--out a folder that all machines share",
        )
    require_same(path, recipe, cache, manifest)
    return Run(path)
