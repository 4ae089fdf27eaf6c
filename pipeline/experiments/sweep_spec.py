"""What a sweep compares: TOML in, and out come the settings of a grid, with a recipe for each seed.

recipe = "demo_gru"                    # a shipped recipe or a .toml file: what all start from
seeds = [0, 1, 2]                      # each setting is trained with each
reference = { temporal = "identity" }  # what a setting is compared with: itself, but for this

[changes]                              # laid over the recipe for all members
"training.steps" = 200

[axes]                                 # every combination is a setting
temporal = "*"                         # all modules there are
cache = ["given", "int8"]              # the cache that the sweep is started on, and another
"windows.train_fraction" = [0.1, 1.0]

[each]                                 # settings of plug-ins that are named alone, if they have them
layers = 1

[[settings]]                           # more of them, one by one
temporal = { name = "gru", layers = 2 }
cache = "given"
"windows.train_fraction" = 1.0

[caches.int8]                          # how a cache of that name is made
derive = ["codec.name=int8"]
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config import plugins
from pipeline.config.cache_spec import PlainName
from pipeline.config.json_files import read_json
from pipeline.config.plugins import Seed, Settings
from pipeline.config.recipe import Recipe
from pipeline.config.shipped import shipped
from pipeline.config.toml_tables import read_table, set_nested
from pipeline.errors import BadInput, unknown_name

GIVEN = "given"
"""The cache that the sweep was started on."""
CACHE = "cache"
"""The axis over caches; all others are keys of a recipe."""
SEED = "training.seed"
SWEEP_FORMAT = 1


class DerivedCache(Settings):
    """A cache that is made for the sweep from the one it is started on."""

    derive: tuple[str, ...] = ()
    """Keys of the spec, as for `stillframe derive --set`."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Settings of the data set, laid over those that the cache's own videos were rendered with."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.derive) == bool(self.data):
            raise ValueError("wanted either derive or data")
        return self


class SweepSpec(Settings):
    """What to compare."""

    name: PlainName
    """Name of the sweep and of its folder; None: the name of the file."""
    recipe: dict[str, Any]
    """As a table; a name or a path stands for a shipped recipe or for a .toml file beside this
    one."""
    seeds: tuple[Seed, ...] = (0,)
    """Every setting is trained once with each, as `training.seed`."""
    reference: dict[str, Any] = Field(default_factory=dict)
    """Axis -> the value that every other setting is compared with. Empty: the first of the first
    axis."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """Key of the recipe -> value, for all members."""
    axes: dict[str, list[Any] | Literal["*"]] = Field(default_factory=dict)
    """Key of the recipe, or `cache` -> the values to compare. "*": all plug-ins there are."""
    each: dict[str, Any] = Field(default_factory=dict)
    """Settings such as layers = 1 of all plug-ins that are named alone, where they have them."""
    settings: tuple[dict[str, Any], ...] = ()
    """More points of the grid, one by one: axis -> value."""
    caches: dict[str, DerivedCache] = Field(default_factory=dict)
    """Name, as on the axis `cache` -> how that cache is made."""

    @field_validator("recipe", mode="before")
    @classmethod
    def _read(cls, recipe: Any) -> Any:
        if not isinstance(recipe, str):
            return recipe
        recipes = shipped("recipe")
        if not recipe.endswith(".toml") and recipe not in recipes:
            raise unknown_name("recipe", recipe, recipes)
        return read_table(recipes.get(recipe, Path(recipe)), "recipe")

    @field_validator("seeds")
    @classmethod
    def _seeds_apart(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError("wanted at least one seed, each once")
        return seeds

    @field_validator("axes", mode="before")
    @classmethod
    def _some_values(cls, axes: Any) -> Any:
        for key, values in axes.items() if isinstance(axes, dict) else ():
            if values != "*" and not isinstance(values, list):
                raise ValueError(f"axis '{key}' wants a list of values, found {values!r}")
            if not values:
                raise ValueError(f"axis '{key}' has no values")
            if values == "*" and key not in ("temporal", "task"):
                raise ValueError(f"axis '{key}': \"*\" is for temporal and task")
        return axes

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.axes and not self.settings:
            raise ValueError("nothing to compare: wanted [axes] or [[settings]]")
        if GIVEN in self.caches:
            raise ValueError(
                f"caches.{GIVEN}: this is the name of the cache that the sweep is started on"
            )
        return self


class SweepHeader(Settings):
    """sweep.json: a sweep that was started, with all that was laid over it."""

    format_version: int
    sweep: SweepSpec
    caches: dict[str, str]
    """Name in the sweep -> where it is."""
    fingerprints: dict[str, str]


@dataclass(frozen=True)
class GridPoint:
    """One point of the grid."""

    name: str
    values: dict[str, Any]
    """axis -> value."""
    cache: str
    reference: str
    """Name of the setting it is compared with; its own where it is a reference."""
    members: dict[str, Recipe]
    """Name of the run -> what it trains, one for each seed, in their order."""


def load_sweep(
    path: Path,
    changes: Mapping[str, Any] | None = None,
    axes: Mapping[str, Any] | None = None,
    seeds: int | None = None,
) -> SweepSpec:
    """A sweep from a file, with more `changes` and `axes` laid over its own, and the seeds 0, 1,
    ... below `seeds`.

    The file is TOML, or the sweep.json of a sweep that was started, which holds all that was laid
    over it then. Of its [[settings]] those are left out that have another value on a given axis;
    one that an axis makes too is there once.
    """
    made = path.suffix == ".json"
    table = read_header(path).sweep.model_dump(mode="json") if made else read_table(path, "sweep")
    for key, given in (("changes", changes), ("axes", axes)):
        if given:
            table[key] = table.get(key, {}) | dict(given)
    for key, values in (axes or {}).items():
        table["settings"] = [
            one
            for one in table.get("settings", ())
            if values == "*" or one.get(key) in (None, *values)
        ]
    if seeds is not None:
        table["seeds"] = list(range(seeds))
    recipe = table.get("recipe")
    if isinstance(recipe, str) and recipe.endswith(".toml"):
        table["recipe"] = str(path.parent / recipe)
    return plugins.check(SweepSpec, table, str(path))


def read_header(file: Path) -> SweepHeader:
    hint = "remove it and run the same sweep again: what is trained is kept"
    return read_json(SweepHeader, file, hint, range(1, SWEEP_FORMAT + 1))


def grid_points(spec: SweepSpec) -> list[GridPoint]:
    """All settings, those of the grid first. Raises BadInput: an axis that does not exist, a value
    that a recipe refuses, two settings that are the same, a reference that is no setting."""
    start = _base_table(spec)
    found: dict[str, GridPoint] = {}
    points = list(_point_values(spec))
    reference = _reference_values(spec)
    name_of = {_identity(values): _point_name(values) for values in points}
    for values in points:
        name = name_of[_identity(values)]
        wanted = [_identity(dict(values) | reference), _identity(reference)]
        compared = next((name_of[key] for key in wanted if key in name_of), None)
        if compared is None:
            raise BadInput(
                f"sweep '{spec.name}': '{name}' is to be compared with '{_point_name(reference)}', which is no setting of it",
                "change `reference`, or add that setting",
            )
        if name in found:
            raise BadInput(
                f"sweep '{spec.name}': two settings are called '{name}'", "name each point once"
            )
        cache = values.get(CACHE, GIVEN)
        if cache != GIVEN and cache not in spec.caches:
            raise unknown_name("cache", str(cache), [GIVEN, *spec.caches], f"sweep '{spec.name}'")
        members = {}
        for seed in spec.seeds:
            run = f"{_slug(name)}-seed{seed}"
            members[run] = _member_recipe(spec, start, values, seed, run)
        found[name] = GridPoint(name, values, cache, compared, members)
    if len({run for point in found.values() for run in point.members}) < len(found) * len(
        spec.seeds
    ):
        raise BadInput(
            f"sweep '{spec.name}': two members would share a folder",
            "use other names or fewer signs in values",
        )
    return list(found.values())


def _base_table(spec: SweepSpec) -> dict[str, Any]:
    """What every member starts from."""
    table = copy.deepcopy(spec.recipe)
    for key, value in spec.changes.items():
        _apply_value(table, key, value, {})
    return table


def _point_values(spec: SweepSpec) -> Iterator[dict[str, Any]]:
    axes = {key: axis_values(key, values) for key, values in spec.axes.items()}
    grid = (
        [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
        if axes
        else []
    )
    yield from grid
    yield from (
        dict(values) for values in spec.settings if values not in grid
    )  # an axis given may make points of them


def _reference_values(spec: SweepSpec) -> dict[str, Any]:
    """The values that make a setting the one that others are compared with, each with the one that
    is like it in all else."""
    if spec.reference:
        return spec.reference
    if not spec.axes:
        return spec.settings[0]
    key, among = next(iter(spec.axes.items()))
    return {key: axis_values(key, among)[0]}


def axis_values(key: str, values: list[Any] | str) -> list[Any]:
    """The values of an axis."""
    return list(plugins.names(key) if isinstance(values, str) else values)


def _member_recipe(
    spec: SweepSpec, start: Mapping[str, Any], values: Mapping[str, Any], seed: int, run: str
) -> Recipe:
    table = copy.deepcopy(dict(start))
    for key, value in sorted(
        values.items(), key=lambda item: item[0].count(".")
    ):  # a table before what is in it
        if key != CACHE:
            _apply_value(table, key, value, spec.each)
    if SEED not in values:
        set_nested(table, SEED, seed)
    table["name"] = run
    return plugins.check(Recipe, table, f"sweep '{spec.name}', setting '{_point_name(values)}'")


def _apply_value(table: dict[str, Any], key: str, value: Any, each: Mapping[str, Any]) -> None:
    """Lays an axis' value over a recipe. A table is laid key by key; a plug-in's own settings stay
    if it is the same one."""
    if key in ("temporal", "task") and isinstance(value, str):
        fields = plugins.load(key, value).Settings.model_fields
        value = {"name": value, **{name: given for name, given in each.items() if name in fields}}
    if not isinstance(value, dict):
        set_nested(table, key, value)
        return
    before = table.get(key, {})
    if "name" in value and isinstance(before, dict) and before.get("name") != value["name"]:
        table[key] = {}
    for inner, part in value.items():
        set_nested(table, f"{key}.{inner}", part)


def _identity(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)


def _point_name(values: Mapping[str, Any]) -> str:
    """For people: names of plug-ins and caches alone, all else with the last part of its key."""
    parts = []
    for key, value in values.items():
        last = key.rpartition(".")[2]
        if isinstance(value, dict):
            shown = [
                str(part) if inner == "name" else f"{inner} {_value_text(part)}"
                for inner, part in value.items()
            ]
            parts += shown
        else:
            parts.append(
                _value_text(value)
                if key in ("temporal", "task", CACHE)
                else f"{last} {_value_text(value)}"
            )
    return ", ".join(parts)


def _value_text(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "+".join(_value_text(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+=-]+", "-", name.replace(", ", "-").replace(" ", "="))
