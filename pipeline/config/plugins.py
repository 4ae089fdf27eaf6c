"""The file system is the registry: a plug-in is one file in its kind's folder, and nothing else is
edited.

`encoders/address.py` defines a class `Encoder` and is then known everywhere as the encoder
'address'. A plug-in states its own settings as a class `Settings`; a table in a spec or a recipe is
checked against those fields and nothing is ever ignored.

Files that the user names and packages that the user has installed bring more of them, see
`outside`. What is made with one of those keeps which it was, and is refused with another one.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import pipeline
from pipeline.config import outside
from pipeline.config.outside import Origin, Plugin
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
BASES = {
    "dataset": "DatasetPlugin",
    "encoder": "EncoderPlugin",
    "text": "TextPlugin",
    "codec": "CodecPlugin",
    "engine": "EnginePlugin",
    "temporal": "TemporalModule",
    "task": "TaskPlugin",
}
"""Kind of plug-in -> the base, in its folder's contract, of all plug-ins of that kind."""
FROM = "from"
"""Key of a plug-in's table that says which one it was, where it is from outside. No setting is
called so, since this is a word of Python's own."""
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


def shipped_names(kind: str) -> list[str]:
    """The plug-ins of one kind that come with the package, sorted. Imports none of them."""
    files = (PACKAGE / FOLDERS[kind]).glob("*.py")
    return sorted(
        file.stem for file in files if file.stem != CONTRACT and not file.stem.startswith("_")
    )


def names(kind: str) -> list[str]:
    """All plug-ins of one kind, those from outside included, sorted. Imports none of them."""
    return sorted({*shipped_names(kind), *outside.outside_names(kind)})


def module_of(kind: str) -> str:
    """Dotted name of the package that holds the plug-ins of a kind, beside their contract."""
    return f"pipeline.{FOLDERS[kind].replace('/', '.')}"


def load(kind: str, name: str, where: str = "") -> Any:
    """The class that plug-in `name` defines: `Dataset`, `Encoder`, `Text`, `Codec`, `Engine`,
    `Temporal` or `Task`. Raises BadInput where there is none of that name, or more than one, or
    where one from outside cannot be imported or is not what its contract asks for."""
    found = from_outside(kind, name)
    if found is not None:
        return _checked(kind, name, found)
    if name not in shipped_names(kind):
        raise _unknown(kind, name, where)
    try:
        module = importlib.import_module(f"{module_of(kind)}.{name}")
    except ModuleNotFoundError as error:
        raise StillframeError(
            f"{kind} '{name}' needs the package '{error.name}', which is not installed",
            f"pip install {error.name}",
        ) from error
    return getattr(module, kind.capitalize())


def _unknown(kind: str, name: str, where: str) -> BadInput:
    error = unknown_name(kind, name, names(kind), where)
    own = "if it is in a file of yours: stillframe --plugins DIR ..., with the file's folder"
    return BadInput(error.message, error.hint or own)


# From outside


def add(path: Path) -> None:
    """Makes the plug-ins of a file, or of the files in a folder, known by their names, for this
    process. Runs none of them. Raises BadInput where there are none, and for a name that ships with
    the package or that another file has."""
    for file in outside.read_files(path, tuple(FOLDERS)):
        _keep(file)


def _keep(file: outside.PluginFile) -> None:
    for kind in file.kinds:
        if file.name in shipped_names(kind):
            raise BadInput(
                f"plug-in {file}: '{file.name}' is the name of a {kind} that ships with stillframe",
                "rename the file: its name is the plug-in's name",
            )
    outside.keep(file)


def plugin_name(kind: str, name: str, folder: Path = Path()) -> str:
    """The name of a plug-in that the user has written: a file, such as `./mine.py`, relative to
    `folder`, is made known. Raises BadInput where it cannot be."""
    if not name.endswith(outside.SUFFIX):
        return name
    file = outside.read_file(folder / name, (kind,))
    _keep(file)
    return file.name


def with_files_known(key: str, value: Any, folder: Path = Path()) -> Any:
    """The value of a key that the user has written, such as `temporal.name`, or a whole table, with
    plug-ins by their names: files that it names, relative to `folder`, are made known.

    What a cache or a run says never comes here: code is run only if the user has named it.
    """
    if isinstance(value, dict):
        return {
            inner: with_files_known(f"{key}.{inner}", part, folder) for inner, part in value.items()
        }
    if isinstance(value, list):
        return [with_files_known(key, part, folder) for part in value]
    kind = key.removesuffix(".name").rpartition(".")[2]
    if isinstance(value, str) and kind in FOLDERS:
        return plugin_name(kind, value, folder)
    return value


def from_outside(kind: str, name: str) -> Plugin | None:
    """What brings the plug-in of that name, if it does not ship with the package. Raises BadInput
    where there are two of that name."""
    found = outside.candidates(kind, name)
    others = [str(plugin) for plugin in found]
    if name in shipped_names(kind):
        others.insert(0, "stillframe itself")
    if len(others) > 1:
        raise BadInput(
            f"{kind} '{name}' is brought by {' and by '.join(others)}",
            "rename the file, or uninstall the package: each name is to have one meaning",
        )
    return found[0] if found else None


def origin_of(kind: str, name: str) -> Origin | None:
    """What is kept of a plug-in beside its name, in what is made with it; None for those that ship
    with the package."""
    found = from_outside(kind, name)
    return found.origin if found else None


def require_origin(kind: str, name: str, wanted: Any, where: str = "") -> None:
    """Refuses another plug-in of that name than the one that something was made with, and says
    which that was: `wanted`, as `origin_of` told it then, None for one that shipped. `where`:
    beginning of the error."""
    found = from_outside(kind, name)
    # Where both are None it ships, or is not there, of which `load` says more.
    if (found.origin if found else None) != wanted:
        message, hint = _other_plugin(kind, name, wanted, found)
        raise BadInput(f"{where}{message}", hint)


def _other_plugin(kind: str, name: str, wanted: Any, found: Plugin | None) -> tuple[str, str]:
    """What is wanted and found, and the next step."""
    if wanted is None:
        return (
            f"made with the {kind} '{name}' that came with stillframe, and {found} brings another",
            "leave that one out, or rename it",
        )
    known = {"file", "sha256"}, {"distribution", "version"}
    if not isinstance(wanted, dict) or {*wanted} not in known:
        return f"{kind} '{name}': `{FROM}` is no origin of a plug-in, found {wanted!r}", ""
    if "file" in wanted:
        text = f"needs the {kind} plug-in {wanted['file']} (sha256 {str(wanted['sha256'])[:12]})"
        hint = f"stillframe --plugins DIR ..., where DIR has {wanted['file']}"
    else:
        text = f"needs the {kind} plug-in '{name}' of {wanted['distribution']} {wanted['version']}"
        hint = f"pip install '{wanted['distribution']}=={wanted['version']}'"
    if found is not None:
        sha256 = found.origin.get("sha256")
        other = f"{found} (sha256 {sha256[:12]})" if sha256 else str(found)
        return f"{text}, found {other}", f"{hint}, or make it anew"
    if name in names(kind):
        return f"{text}, found the {kind} '{name}' that ships with stillframe", hint
    return f"{text}, which is not here", hint


def as_recorded(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a cache or a run, in which plug-ins that shipped are marked as such: one from
    outside is then refused, although a table of the user's may name it."""
    marked = {}
    for key, part in table.items():
        if isinstance(part, dict):
            part = as_recorded(part)
            if key in FOLDERS and isinstance(part.get("name"), str):
                part.setdefault(FROM, None)
        marked[key] = part
    return marked


def _checked(kind: str, name: str, found: Plugin) -> Any:
    """The class of a plug-in from outside. Raises BadInput for the first thing that its contract
    asks for and that it lacks."""
    plugin = found.plugin(kind)
    contract = f"{module_of(kind)}.{CONTRACT}"
    base = getattr(importlib.import_module(contract), BASES[kind])
    what = f"{kind} plug-in '{name}' of {found} breaks its contract"
    hint = f"see docs/extending.md, then: stillframe check-plugin {name}"
    if not isinstance(plugin, type) or not issubclass(plugin, base):
        raise BadInput(f"{what}: it is not below {BASES[kind]} of {contract}", hint)
    if inspect.isabstract(plugin):
        missing = ", ".join(sorted(getattr(plugin, "__abstractmethods__", ())))
        raise BadInput(f"{what}: it does not define {missing}", hint)
    table = getattr(plugin, "Settings", None)
    if not isinstance(table, type) or not issubclass(table, Settings):
        raise BadInput(
            f"{what}: it has no class Settings below that of pipeline.config.plugins", hint
        )
    return plugin


def describe(kind: str, name: str) -> tuple[str, str]:
    """The first paragraph of a plug-in's docstring in one line, and its settings with their
    defaults."""
    plugin = load(kind, name)
    module = sys.modules[plugin.__module__]
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
    is_list = problem["type"] in ("tuple_type", "list_type")  # which TOML writes alike
    message = "wanted a list, in brackets" if is_list else problem["msg"]
    message = message.removeprefix("Value error, ")
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
