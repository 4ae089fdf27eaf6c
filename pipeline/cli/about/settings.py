"""Every key of a recipe, a spec or a sweep that is in effect: its value, type, default and meaning,
and who set it."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from pipeline.cli.reference.markdown import type_text
from pipeline.cli.reference.schema import first_paragraph, table_schema
from pipeline.config.cache_spec import DEFAULT_CODEC, Choice, load_spec
from pipeline.config.plugins import FROM
from pipeline.config.recipe import RUN_FILE, load_recipe
from pipeline.config.shipped import first_sentence
from pipeline.config.toml_tables import assignment, override
from pipeline.experiments.sweep_spec import CACHE, SEED, SweepSpec, load_sweep

FILE, SET, RUN = "file", "--set", "run"
"""Who has set a key: the file that was named, the command line, the run that the recipe is of."""
SWEEP, RECIPE, AXIS = "sweep", "recipe", "axis"
"""Who has set a key of a sweep's runs: the sweep for all of them, their recipe, or the sweep for
each of them."""

WhoSet = Callable[[str], str | None]
"""Takes a key with dots, tells who has set it; None where it has its default."""


@dataclass(frozen=True)
class SettingKey:
    """One key in effect. As JSON it is what `show --json` prints."""

    key: str
    """With dots: `training.steps`."""
    value: Any
    """As plain JSON; None where the key is left out."""
    type: str
    default: Any
    required: bool
    """Whether a file must have the key; it has no default then."""
    meaning: str
    set_by: str | None


@dataclass(frozen=True)
class SettingTable:
    """The keys of one table, such as `[training]`; those at the top of a file are in the table
    ""."""

    name: str
    what: str
    keys: tuple[SettingKey, ...]


@dataclass(frozen=True)
class FileInEffect:
    """A recipe, spec or sweep as it is used."""

    kind: str
    name: str
    file: str
    what: str
    """The first sentence of the file's comment; "" where it has none."""
    tables: tuple[SettingTable, ...]
    runs: int = 0
    """How many runs a sweep has."""
    run: str = ""
    """Of a sweep: the run whose recipe `recipe` holds, which is the first."""
    recipe: tuple[SettingTable, ...] = ()


def file_in_effect(kind: str, file: Path, sets: Sequence[str]) -> FileInEffect:
    """Every key of a "recipe", "spec" or "sweep" in a .toml file, or in what a run or a sweep has
    kept, with `--set` laid over it. Raises BadInput as training, extraction and sweep do."""
    if kind == "sweep":
        return _sweep_in_effect(file, sets)
    load = load_recipe if kind == "recipe" else load_spec
    settings = load(file, sets)
    if kind == "recipe" and (file / RUN_FILE).is_file():
        file = file / RUN_FILE
    table = _written(file, "recipe")
    changed = override({}, sets)
    laid_over = override(copy.deepcopy(table), sets)
    author = RUN if file.suffix == ".json" else FILE

    def who_set(key: str) -> str | None:
        return SET if _holds(changed, key) else author if _holds(laid_over, key) else None

    what = "" if file.suffix == ".json" else first_sentence(file)
    return FileInEffect(kind, settings.name, str(file), what, _tables(settings, who_set))


def _sweep_in_effect(file: Path, sets: Sequence[str]) -> FileInEffect:
    """The keys of a sweep, and those of the recipe of its first run."""
    changes = dict(map(assignment, sets))
    sweep = load_sweep(file, changes)
    table = _written(file, "sweep")
    members = {name: one for point in sweep.grid_points for name, one in point.members.items()}
    run, recipe = next(iter(members.items()))
    varied = {key for point in sweep.grid_points for key in point.values} - {CACHE}
    who_set = _who_set_a_member(sweep, changes, {*varied, SEED, "name"})
    return FileInEffect(
        "sweep",
        sweep.name,
        str(file),
        "" if file.suffix == ".json" else first_sentence(file),
        _tables(sweep, lambda key: SET if key == "changes" and sets else _by_file(table, key)),
        len(members),
        run,
        _tables(recipe, who_set),
    )


def _by_file(table: Mapping[str, Any], key: str) -> str | None:
    return FILE if _holds(table, key) else None


def _who_set_a_member(sweep: SweepSpec, changes: Mapping[str, Any], varied: set[str]) -> WhoSet:
    def who_set(key: str) -> str | None:
        if _is_within(key, varied):
            return AXIS
        if _is_within(key, changes):
            return SET
        if _is_within(key, sweep.changes):
            return SWEEP
        return RECIPE if _holds(sweep.recipe, key) else None

    return who_set


def _is_within(key: str, others: set[str] | Mapping[str, Any]) -> bool:
    """Whether a key is one of some others, or lies in a table that is."""
    return any(key == other or key.startswith(f"{other}.") for other in others)


def _written(file: Path, inner: str) -> dict[str, Any]:
    """What stands in a file that has been found right before; of JSON the part called `inner`."""
    text = file.read_text(encoding="utf-8")
    table: dict[str, Any] = (
        json.loads(text)[inner] if file.suffix == ".json" else tomllib.loads(text)
    )
    return table


def _holds(table: Any, key: str) -> bool:
    """Whether nested tables have a key with dots, or a value in the place of one of its tables."""
    for part in key.split("."):
        if not isinstance(table, Mapping):
            return True
        if part not in table:
            return False
        table = table[part]
    return table is not None


def _tables(settings: BaseModel, who_set: WhoSet) -> tuple[SettingTable, ...]:
    """Those of a whole file: what stands at its top, then table after table."""
    schema, values = table_schema(type(settings)), settings.model_dump(mode="json")
    top, tables = list[SettingKey](), list[SettingTable]()
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Choice):
            tables += _plugin_tables(name, name, value, who_set)
        elif isinstance(value, BaseModel):
            of_table = table_schema(type(value))
            keys, inner = _keys(name, value, who_set)
            tables += [SettingTable(name, of_table["description"], keys), *inner]
        else:
            # The file's name stands for the missing one of a file.
            required = field.is_required() and name != "name"
            described = schema["properties"][name]
            top.append(_key("", name, values[name], described, field, required, who_set))
    return (SettingTable("", schema["description"], tuple(top)), *tables)


def _plugin_tables(path: str, kind: str, chosen: Choice, who_set: WhoSet) -> list[SettingTable]:
    """The table that names a plug-in, and those of plug-ins inside it."""
    name, default = f"{path}.name", DEFAULT_CODEC if kind == "codec" else None
    said = f"Which plug-in of the kind {kind}."
    keys = [SettingKey(name, chosen.name, "text", default, not default, said, who_set(name))]
    if chosen.origin:
        said = "Which plug-in of that name it is, since it did not come with stillframe."
        keys.append(
            SettingKey(f"{path}.{FROM}", chosen.origin, "table", None, False, said, who_set(name))
        )
    own, inner = _keys(path, chosen.settings, who_set)
    return [SettingTable(path, first_paragraph(kind, chosen.name), (*keys, *own)), *inner]


def _keys(
    path: str, settings: BaseModel, who_set: WhoSet
) -> tuple[tuple[SettingKey, ...], list[SettingTable]]:
    """The keys of a table, and the tables inside it."""
    schema, values = table_schema(type(settings)), settings.model_dump(mode="json")
    keys, tables = list[SettingKey](), list[SettingTable]()
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Choice):
            tables += _plugin_tables(f"{path}.{name}", name, value, who_set)
        else:
            described = schema["properties"][name]
            required = field.is_required()
            # A setting at its default may be left out of what is written down.
            stands = values.get(name, to_jsonable_python(value))
            keys.append(_key(path, name, stands, described, field, required, who_set))
    return tuple(keys), tables


def _key(
    path: str,
    name: str,
    value: Any,
    schema: Mapping[str, Any],
    field: Any,
    required: bool,
    who_set: WhoSet,
) -> SettingKey:
    key = f"{path}.{name}" if path else name
    default = None
    if not field.is_required():
        default = to_jsonable_python(field.get_default(call_default_factory=True))
    said = schema.get("description", "")
    words = type_text(schema).replace("`", "")
    return SettingKey(key, value, words, default, required, said, who_set(key))
