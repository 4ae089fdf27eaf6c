"""How pixels become the input of a model: read from its image processor's file, as transformers
reads it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pipeline.errors import BadInput
from pipeline.models.encoders.tower.files import json_object

HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}
"""Normalisation of a tower that comes from no model: [0, 1] becomes [-1, 1]."""


def normalisation(settings: Any, folder: Path | None) -> dict[str, Any]:
    """Normalisation of pixels to input, (pixel * rescale - mean) / std, as plain JSON. Raises
    BadInput where neither the settings nor the model's files say it."""
    file, table = _image_processor(folder) if folder else (None, {})
    rescale = table.get("rescale_factor", 1 / 255) if table.get("do_rescale", True) else 1.0
    if not _are_numbers([rescale]):
        raise BadInput(f"{file}: rescale_factor must be a number, found {rescale!r}")
    if settings.mean is not None:
        return {"rescale": rescale, "mean": list(settings.mean), "std": list(settings.std)}
    if folder is None:
        return {"rescale": rescale} | HALF
    if not table.get("do_normalize", True):
        return {"rescale": rescale, "mean": [0.0] * 3, "std": [1.0] * 3}
    named: dict[str, Any] = {"mean": table.get("image_mean"), "std": table.get("image_std")}
    good = all(
        isinstance(values, list) and len(values) == 3 and _are_numbers(values)
        for values in named.values()
    )
    if not good or min(named["std"]) <= 0:
        raise BadInput(
            f"model {settings.model} does not say how pixels are normalised: no image_mean and "
            "image_std of three numbers, the latter above 0, in its "
            f"{file.name if file else 'processor_config.json or preprocessor_config.json'}",
            "write those that it was trained with into the spec's [encoder] table, as mean = "
            "[R, G, B] and std = [R, G, B]",
        )
    return {"rescale": rescale} | {
        name: [float(value) for value in values] for name, values in named.items()
    }


def _image_processor(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """The table of the image processor, and its file: the part of `processor_config.json` where
    that has one, as transformers 5 writes it, else `preprocessor_config.json`; empty where there
    is neither."""
    combined = folder / "processor_config.json"
    if combined.exists():
        table = json_object(combined).get("image_processor")
        if isinstance(table, dict):
            return combined, table
        if table is not None:
            raise BadInput(f"{combined}: image_processor must be an object", "fetch it again")
    separate = folder / "preprocessor_config.json"
    return (separate, json_object(separate)) if separate.exists() else (None, {})


def _are_numbers(values: list[Any]) -> bool:
    """Whether all are finite; JSON's true and false are no numbers."""
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)
