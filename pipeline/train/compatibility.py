"""Whether recipes, a cache, a manifest and runs fit together, asked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.cache.cache import Cache, require_planned
from pipeline.cache.corruption import require_valid
from pipeline.config.recipe import Recipe, TrainingSettings
from pipeline.config.toml_tables import differences
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.datasets.manifest.targets import CLASSES, LABELLED
from pipeline.errors import BadInput
from pipeline.models.tasks.contract import TaskPlugin, labels_of, make_task, task_class
from pipeline.models.video_model import VideoModel
from pipeline.train.distributed import Ranks
from pipeline.train.run import RUN_FORMAT, CacheFacts, InitFacts, Run
from pipeline.train.weights.initial import initial_weights
from pipeline.train.windows.order import SampleOrder
from pipeline.train.windows.windows import Windows

MORE_WINDOWS = (2, 4, 8)
"""How many times as many windows of a clip are tried, where none that is asked for has truth."""


def check(
    recipes: Sequence[Recipe], cache: Cache, manifest: Manifest, runs: Sequence[Run] = ()
) -> None:
    """Refuses recipes that cannot be trained or scored on `cache` side by side: such as want other
    windows or truth than the first, or were written for another cache; videos that are not in the
    cache; `runs` that were trained on another cache or know other labels; a damaged cache.

    Everything is asked here, once. Raises BadInput.
    """
    _require_one_read(recipes)
    for recipe in recipes:
        _require_fingerprint(recipe, cache)
    require_planned(cache, manifest)
    for run in runs:
        _require_trained_on(run, cache, manifest)
    require_valid(cache)


def window_needs(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that is equal in all that train side by side: everything that decides
    which windows and truth are read."""
    table, training = recipe.task.table(), recipe.training
    truth_settings = task_class(recipe).truth_settings
    return {
        "task": {
            "name": recipe.task.name,
            **{name: table[name] for name in truth_settings},
        },
        "windows": recipe.windows.model_dump(mode="json"),
        "training": {"batch_size": training.batch_size, "accumulate": training.accumulate},
    }


def _require_one_read(recipes: Sequence[Recipe]) -> None:
    first, *others = recipes
    for other in others:
        if changed := differences(window_needs(first), window_needs(other)):
            raise BadInput(
                f"recipes '{first.name}' and '{other.name}' cannot share windows: "
                f"{'; '.join(changed)}"
            )


def _require_fingerprint(recipe: Recipe, cache: Cache) -> None:
    if recipe.cache and not cache.fingerprint.startswith(recipe.cache):
        raise BadInput(
            f"recipe '{recipe.name}' wants the cache with fingerprint {recipe.cache}, "
            f"{cache} has {cache.fingerprint}",
            "give the cache it wants, or change `cache` in the recipe",
        )


def _require_trained_on(run: Run, cache: Cache, manifest: Manifest) -> None:
    fingerprint = run.header.cache.fingerprint
    if cache.fingerprint != fingerprint:
        raise BadInput(
            f"run {run.path} was trained on the cache with fingerprint {fingerprint}, "
            f"{cache} has {cache.fingerprint}",
            f"give the cache {run.header.cache.name}",
        )
    knows_labels = {*LABELLED, CLASSES} & {*task_class(run.recipe).needs}
    labels = labels_of(run.recipe, manifest)
    if knows_labels and labels != run.header.labels:
        raise BadInput(
            f"run {run.path} knows the labels {_first_few(run.header.labels)}; "
            f"manifest {manifest.folder} has {_first_few(labels)}",
            "give the manifest it was trained with: --manifest DIR",
        )


def _first_few(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:5]) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")


def require_division(settings: TrainingSettings, ranks: Ranks) -> None:
    """Refuses a batch that cannot be cut into equal micro batches, which equal steps of all ranks
    rest on."""
    parts = ranks.size * settings.accumulate
    if settings.batch_size % parts:
        raise BadInput(
            f"training.batch_size {settings.batch_size} is no multiple of "
            f"{ranks.size} processes x {settings.accumulate} parts",
            f"make it a multiple of {parts}",
        )


def require_truth(task: TaskPlugin, windows: Windows) -> None:
    """Refuses a split in which nothing can be scored; says where more windows of a clip would have
    something, as where an object enters late."""

    def unscored(order: SampleOrder) -> list[str]:
        names = [metric.name for metric in task.metrics]
        for ref in order.evaluation():
            weights = task.metric_weights(windows.truth([ref]))
            names = [name for name in names if not (weights[name] > 0).any()]
            if not names:
                break
        return names

    names = unscored(windows.order)
    if not names:
        return
    if len(names) < len(task.metrics):
        raise BadInput(
            f"no window of split '{windows.split}' has anything to score in '{names[0]}'",
            "its clips are too short for it, or its videos stand still: choose other settings of "
            "the task",
        )
    hint = "look at the truth in targets.h5, or choose other windows.fps and windows.frames"
    for factor in MORE_WINDOWS:
        count = factor * windows.settings.eval_windows
        settings = windows.settings.model_copy(update={"eval_windows": count})
        if not unscored(replace(windows.order, settings=settings)):
            hint = f"windows.eval_windows={count} looks at more places of a clip, where some have"
            break
    told = ", or not when a window tells what to follow" if task.asks else ""
    raise BadInput(
        f"no window of split '{windows.split}' has anything to score: "
        f"of {', '.join(task.needs)} nothing is valid in any{told}",
        hint,
    )


def identity_of(
    recipe: Recipe, cache: Cache, manifest: Manifest, init: InitFacts | None = None
) -> dict[str, Any]:
    """Everything that a run is made from, as its header keeps it. `init` says which weights it
    begins with."""
    return {
        "format_version": RUN_FORMAT,
        "recipe": recipe.canonical(),
        "cache": CacheFacts.of(cache),
        "manifest": manifest.digest,
        "labels": labels_of(recipe, manifest),
        "init": init,
    }


def require_same_run(
    path: Path, recipe: Recipe, cache: Cache, manifest: Manifest, init: InitFacts | None = None
) -> None:
    """Refuses a run folder that was made from something else, other initial weights included; one
    that is not there yet is fine."""
    if (path / "run.json").is_file():
        now = identity_of(recipe, cache, manifest, init)
        now |= {"cache": now["cache"].model_dump(mode="json"), "labels": list(now["labels"])}
        run = Run(path)
        # The recipe as it is read today: one that was written before a setting came has no such
        # key, and means its default.
        then = run.header.identity() | {"recipe": run.recipe.canonical()}
        if recipe.training.precision == "native":  # the run says which it became
            now["recipe"]["training"]["precision"] = then["recipe"]["training"]["precision"]
        del now["init"]
        now["init_sha256"] = init and init.sha256
        # Where weights came from says nothing once their digest is known.
        for table in (now, then):
            table["recipe"].get("init", {}).pop("run", None)
        if changed := differences(now, then):
            raise BadInput(
                f"run {path} was made from something else; now / then: {'; '.join(changed)}",
                "use another --out",
            )


def require_same_tower(run: Run, tower: dict[str, Any] | None) -> None:
    """Refuses texts that went through another text tower than those that a run was trained with:
    `tower` is its identity. Widths may agree where meanings do not. Raises BadInput."""
    if tower != run.header.text and run.header.text is not None:
        changed = differences(tower or {}, run.header.text)
        raise BadInput(
            f"run {run.path} was trained with another text tower; now / then: {'; '.join(changed)}",
            "name the model that it was trained with: task.model or task.text of its recipe",
        )


def require_trainable(recipe: Recipe, cache: Cache, manifest: Manifest, path: Path) -> None:
    """Refuses the recipe of a sweep's member that does not fit its cache and manifest, or whose
    initial weights do not fit it, and a run folder `path` that was made from something else."""
    try:
        with torch.device("meta"):  # shapes alone: no weights are made
            VideoModel(recipe, cache.shape, make_task(recipe, labels_of(recipe, manifest)))
    except BadInput as error:
        raise BadInput(f"member '{recipe.name}': {error.message}", error.hint) from error
    initial = initial_weights(recipe, cache, manifest, path)
    facts = None if initial is None else initial.facts
    require_same_run(path, recipe, cache, manifest, facts)
