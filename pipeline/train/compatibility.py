"""Whether a recipe, a cache, a manifest and a run fit together, asked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.cache.cache import Cache
from pipeline.config import plugins
from pipeline.config.recipe import Recipe, TrainingSettings
from pipeline.config.toml_tables import differences
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import BadInput
from pipeline.models.tasks.contract import TaskPlugin
from pipeline.train.distributed import Ranks
from pipeline.train.run import RUN_FORMAT, CacheFacts, Run
from pipeline.train.windows.windows import Windows


def shared(recipe: Recipe) -> dict[str, Any]:
    """What recipes that train side by side have in common: everything that decides which windows
    and truth are read."""
    task, training = plugins.load("task", recipe.task.name), recipe.training
    return {
        "task": {
            "name": recipe.task.name,
            **{name: getattr(recipe.task.settings, name) for name in task.truth_settings},
        },
        "windows": recipe.windows.model_dump(mode="json"),
        "training": {"batch_size": training.batch_size, "accumulate": training.accumulate},
    }


def require_shared(recipes: Sequence[Recipe]) -> None:
    """Refuses recipes that want other windows or truth than the first of them."""
    first, *others = recipes
    for other in others:
        if changed := differences(shared(first), shared(other)):
            raise BadInput(
                f"recipes '{first.name}' and '{other.name}' cannot share windows: {'; '.join(changed)}"
            )


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
    """Refuses a batch that cannot be cut into equal parts, which equal steps of all ranks rest
    on."""
    parts = ranks.size * settings.accumulate
    if settings.batch_size % parts:
        raise BadInput(
            f"training.batch_size {settings.batch_size} is no multiple of {ranks.size} processes x {settings.accumulate} parts",
            f"make it a multiple of {parts}",
        )


def require_truth(task: TaskPlugin, windows: Windows) -> None:
    """Refuses a split in which nothing can be scored."""
    if not any(
        (task.weight(windows.truth([sample])) > 0).any() for sample in windows.order.evaluation()
    ):
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
            raise BadInput(
                f"run {path} was made from something else; now / then: {'; '.join(changed)}",
                "use another --out",
            )
