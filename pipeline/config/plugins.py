"""The file system is the registry: a plug-in is one file in its kind's folder, and nothing else is
edited.

`encoders/address.py` defines a class `Encoder` and is then known everywhere as the encoder
'address'. A plug-in states its own settings as a class `Settings`; a table in a spec or a recipe is
checked against those fields and nothing is ever ignored.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import pipeline
from pipeline.errors import BadInput, StillframeError, unknown_name

PACKAGE = Path(pipeline.__path__[0])

FOLDERS = {
    "dataset": "datasets",
    "encoder": "models/encoders",
    "text": "models/text",
    "codec": "cache/codecs",
    "engine": "extract/launchers",
    "temporal": "models/temporal",
    "task": "models/tasks",
}
"""Kind of plug-in -> its folder below the package."""
OF_KIND = "plug-in"
"""Key of a setting's schema that says of which kind the plug-in is that the setting names."""
CONTRACT = "contract"
"""The file of each folder that says what a plug-in of this kind must define."""


class Settings(BaseModel):
    """Base of every table a user writes: frozen; unknown keys and numbers that are not finite are
    errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""A seed that every random generator in use takes."""


Model = TypeVar("Model", bound=BaseModel)


def names(kind: str) -> list[str]:
    """The plug-ins of one kind found on disk, sorted. Imports none of them."""
    files = (PACKAGE / FOLDERS[kind]).glob("*.py")
    return sorted(
        file.stem for file in files if file.stem != CONTRACT and not file.stem.startswith("_")
    )


def module_of(kind: str) -> str:
    """Dotted name of the package that holds the plug-ins of a kind, beside their contract."""
    return f"pipeline.{FOLDERS[kind].replace('/', '.')}"


def load(kind: str, name: str, where: str = "") -> Any:
    """The class that plug-in `name` defines: `Dataset`, `Encoder`, `Text`, `Codec`, `Engine`,
    `Temporal` or `Task`."""
    if name not in names(kind):
        raise unknown_name(kind, name, names(kind), where)
    try:
        module = importlib.import_module(f"{module_of(kind)}.{name}")
    except ModuleNotFoundError as error:
        raise StillframeError(
            f"{kind} '{name}' needs the package '{error.name}', which is not installed",
            f"pip install {error.name}",
        ) from error
    return getattr(module, kind.capitalize())


def describe(kind: str, name: str) -> tuple[str, str]:
    """The first paragraph of a plug-in's docstring in one line, and its settings with their
    defaults."""
    plugin = load(kind, name)
    module = importlib.import_module(plugin.__module__)
    fields = plugin.Settings.model_fields
    settings = ", ".join(
        f"{key}" if field.is_required() else f"{key}={field.default!r}"
        for key, field in fields.items()
    )
    paragraph = (module.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(paragraph.split()), settings


def settings(kind: str, name: str, table: Mapping[str, Any], where: str) -> Any:
    """The checked `Settings` of plug-in `name`, made from a user's table."""
    return validate(load(kind, name, where).Settings, table, where)


def validate(model: type[Model], table: Mapping[str, Any], where: str) -> Model:
    """`table` as a `model`, or one `BadInput` that lists every wrong key with the nearest legal
    name."""
    try:
        return model.model_validate(table)
    except BadInput as error:  # a plug-in's table inside this one
        raise BadInput(f"{where}: {error.message}", error.hint) from error
    except ValidationError as error:
        lines = [_explain(model, problem) for problem in error.errors(include_url=False)]
        raise BadInput(f"{where}: {'; '.join(lines)}") from error


def _explain(model: type[BaseModel], problem: Any) -> str:
    """One sentence on one pydantic problem."""
    path = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        legal = _fields(model, path[:-1])
        near = difflib.get_close_matches(path[-1], legal, n=1, cutoff=0.5)
        meant = (
            f"did you mean '{near[0]}'?"
            if near
            else f"legal keys: {', '.join(sorted(legal)) or 'none'}"
        )
        return f"unknown key '{'.'.join(path)}' ({meant})"
    if problem["type"] == "missing":
        return f"key '{'.'.join(path)}' is missing"
    input_text = (
        ""
        if problem["type"] in ("value_error", "assertion_error") and not path
        else f", found {problem['input']!r}"
    )
    message = problem["msg"].removeprefix("Value error, ")
    return f"key '{'.'.join(path)}': {message}{input_text}" if path else message


def _fields(model: type[BaseModel], path: list[str]) -> list[str]:
    """The legal keys of the table at `path` inside `model`."""
    for part in path:
        if part.isdigit():  # a place in a list of tables
            continue
        kinds = [model.model_fields[part].annotation] if part in model.model_fields else []
        kinds += [arg for kind in kinds for arg in get_args(kind)]
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)
