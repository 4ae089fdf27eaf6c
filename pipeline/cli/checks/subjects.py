"""What the laws of a kind are tried on: a plug-in, made as its laws make it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cache.codecs._laws import CODEC_LAWS, ReadyCodecs
from pipeline.config import plugins
from pipeline.config.laws import Law, Laws
from pipeline.datasets._laws import DATASET_LAWS, BuiltManifests
from pipeline.errors import BadInput
from pipeline.extract.launchers._laws import ENGINE_LAWS, NewEngines
from pipeline.models.encoders._laws import ENCODER_LAWS, OneEncoder
from pipeline.models.tasks._laws import TASK_LAWS, SmallTasks
from pipeline.models.temporal._laws import TEMPORAL_LAWS, SmallModules
from pipeline.models.text._laws import TEXT_LAWS, OneTower


@dataclass(frozen=True)
class Material:
    """What the user has given to check a plug-in with."""

    settings: Mapping[str, Any]
    data: Path | None
    """A folder in the layout of a data set."""
    size_px: int
    """Side of the frames for an encoder."""


def laws_of(kind: str, name: str, material: Material) -> tuple[list[Law[Any]], Any]:
    """The laws of a kind, and what they are tried on. Raises BadInput for settings that the plug-in
    refuses, or lacks."""
    plugin, where = plugins.load(kind, name), f"{kind} '{name}'"
    table = dict(material.settings)
    try:
        settings = plugins.settings(kind, name, table, where)
    except BadInput as error:
        raise BadInput(
            error.message, error.hint or "settings are given by --set KEY=VALUE"
        ) from error
    subjects: dict[str, tuple[Laws[Any], Callable[[], Any]]] = {
        "temporal": (TEMPORAL_LAWS, lambda: SmallModules(plugin, table)),
        "task": (TASK_LAWS, lambda: SmallTasks(plugin, table)),
        "codec": (CODEC_LAWS, lambda: ReadyCodecs(plugin, name, table)),
        "encoder": (ENCODER_LAWS, lambda: OneEncoder(plugin, settings, material.size_px)),
        "text": (TEXT_LAWS, lambda: OneTower(plugin, settings)),
        "dataset": (DATASET_LAWS, lambda: BuiltManifests(name, table, material.data)),
        "engine": (ENGINE_LAWS, lambda: NewEngines(lambda workers: plugin(settings, workers))),
    }
    laws, subject = subjects[kind]
    return list(laws), subject()
