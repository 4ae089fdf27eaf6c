"""A TOML file that says what to compare becomes the points of a grid, with a recipe for each seed.

recipe = "demo_gru"                    # a shipped recipe or a .toml file: what all start from
seeds = [0, 1, 2]                      # every point is trained with each
reference = { temporal = "identity" }  # what a point is compared with: itself, but for this

[changes]                              # values that all members have
"training.steps" = 200

[axes]                                 # every combination is a point of the grid
temporal = "*"                         # all modules there are
cache = ["given", "int8"]              # the cache that the sweep is started on, and another
"windows.train_fraction" = [0.1, 1.0]

[each]                                 # settings of plug-ins named alone, where they have them
layers = 1

[[settings]]                           # more points, one by one
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config import plugins
from pipeline.config.cache_spec import PlainName
from pipeline.config.json_files import read_json
from pipeline.config.plugins import Seed, Settings
from pipeline.config.recipe import Recipe
from pipeline.config.shipped import shipped
from pipeline.config.toml_tables import read_own, read_table, set_nested
from pipeline.errors import BadInput, unknown_name
from pipeline.train.compatibility import window_needs

GIVEN = "given"
"""Name, in a sweep, of the cache that the sweep was started on."""
CACHE = "cache"
"""The axis over caches; all other axes are keys of a recipe."""
INIT, DRAWN = "init", "none"
"""The axis over initial weights, and its value for those that are drawn; others are a run's folder,
or a table."""
SEED = "training.seed"
OF_SEED = "{seed}"
"""Stands for the member's own seed in the folder of the run that it begins with."""
SWEEP_FORMAT = 2
"""Version of sweep.json."""


class DerivedCache(Settings):
    """A cache that is made for the sweep from the one it is started on."""

    derive: tuple[str, ...] = ()
    """Keys of the spec to change, each as for `stillframe derive --set`."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Settings of the data set, in the place of those that the cache's own videos were rendered
    with."""

    @model_validator(mode="after")
    def _exactly_one_source(self) -> Self:
        if bool(self.derive) == bool(self.data):
            raise ValueError("wanted either derive or data")
        return self


class SweepSpec(Settings):
    """A sweep spec says which trainings to compare."""

    name: PlainName
    """Name of the sweep and of its folder; None: the name of the file."""
    recipe: dict[str, Any]
    """The recipe that every member starts from: a table, the name of a shipped recipe, or the path
    of a .toml file beside this one."""
    seeds: tuple[Seed, ...] = (0,)
    """Every point of the grid is trained once with each, as `training.seed`."""
    reference: dict[str, Any] = Field(default_factory=dict)
    """Axis -> the value of the point that all others are compared with. Empty: the first value of
    the first axis."""
    controls: tuple[str, ...] = ()
    """Names of points, such as "gru, shuffle True", that see less than there is. All others are
    compared with each of them too: a gain that holds over all is due to what none of them sees."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """Key of the recipe -> the value that all members have."""
    axes: dict[str, list[Any] | Literal["*"]] = Field(default_factory=dict)
    """Key of the recipe, or `cache` -> the values to compare. "*": all plug-ins there are. Values
    of `init` are "none", the folder of a run, or a table, whose `name` is what tables and pictures
    call it."""
    each: dict[str, Any] = Field(default_factory=dict)
    """Settings, such as layers = 1, of all plug-ins that are named alone and have such a
    setting."""
    settings: tuple[dict[str, Any], ...] = ()
    """More points of the grid, one by one: axis -> value."""
    caches: dict[str, DerivedCache] = Field(default_factory=dict)
    """Name of a cache, as on the axis `cache` -> how that cache is made."""

    @field_validator("recipe", mode="before")
    @classmethod
    def _read_recipe(cls, recipe: Any) -> Any:
        if not isinstance(recipe, str):
            return recipe
        recipes = shipped("recipe")
        if not recipe.endswith(".toml") and recipe not in recipes:
            raise unknown_name("recipe", recipe, recipes)
        return read_table(recipes.get(recipe, Path(recipe)), "recipe")

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError("wanted at least one seed, each once")
        return seeds

    @field_validator("axes", mode="before")
    @classmethod
    def _nonempty_axes(cls, axes: Any) -> Any:
        for key, values in axes.items() if isinstance(axes, dict) else ():
            if values != "*" and not isinstance(values, list):
                raise ValueError(f"axis '{key}' wants a list of values, found {values!r}")
            if not values:
                raise ValueError(f"axis '{key}' has no values")
            if values == "*" and key not in ("temporal", "task"):
                raise ValueError(f"axis '{key}': \"*\" is for temporal and task")
        return axes

    @model_validator(mode="after")
    def _nonempty_grid(self) -> Self:
        if not self.axes and not self.settings:
            raise ValueError("nothing to compare: wanted [axes] or [[settings]]")
        if GIVEN in self.caches:
            raise ValueError(
                f"caches.{GIVEN}: this is the name of the cache that the sweep is started on"
            )
        return self

    @cached_property
    def grid_points(self) -> tuple[GridPoint, ...]:
        """All points, those of the axes first, made when they are first asked for.

        Raises BadInput for an axis that does not exist, a value that a recipe refuses, two points
        with the same name, a reference that is no point, and an unknown cache.
        """
        return _expand(self)


class SweepHeader(Settings):
    """sweep.json: a sweep that was started, with every change that was made on its command
    line."""

    format_version: int
    sweep: SweepSpec
    caches: dict[str, str]
    """Name of a cache in the sweep -> its address."""
    fingerprints: dict[str, str]
    """Name of a cache in the sweep -> its fingerprint."""
    manifest: str | None = None
    """Folder of the manifest that takes the place of the caches' own; new in format 2."""
    split: str = "val"
    """The split that members are scored on; new in format 2."""


@dataclass(frozen=True)
class GridPoint:
    """One point of the grid: a choice of values, trained once with every seed."""

    name: str
    values: dict[str, Any]
    """Axis -> value."""
    cache: str
    """Name, in the sweep, of the cache that it is trained on."""
    reference: str
    """Name of the point it is compared with; its own where it is a reference."""
    is_control: bool
    members: dict[str, Recipe]
    """Name of a run -> its recipe, one for each seed, in the order of the seeds."""


def groups_of(points: Sequence[GridPoint]) -> list[list[str]]:
    """Names of the members that share one read: those that want the same windows of the same
    cache."""
    groups: dict[str, list[str]] = {}
    for point in points:
        for name, recipe in point.members.items():
            windows = json.dumps([point.cache, window_needs(recipe)], sort_keys=True)
            groups.setdefault(windows, []).append(name)
    return list(groups.values())


def load_sweep(
    path: Path,
    changes: Mapping[str, Any] | None = None,
    axes: Mapping[str, Any] | None = None,
    seeds: int | None = None,
    recipe: Path | None = None,
) -> SweepSpec:
    """Reads a sweep from a file, with `changes` and `axes` added to its own, and the seeds 0, 1,
    ... below `seeds`, and the file `recipe`, in the place of its own.

    The file is TOML, in which plug-ins may be named by their files, or the sweep.json of a sweep
    that was started, which holds every change that was made to it then. A [[settings]] row is
    dropped where it has another value on one of the `axes`. Raises BadInput for a file or a table
    that is no sweep.
    """
    if path.suffix == ".json":
        table = read_header(path).sweep.model_dump(mode="json")
    else:
        table = read_own(path, "sweep")
        if isinstance(named := table.get("recipe"), str) and named.endswith(".toml"):
            table["recipe"] = read_own(path.parent / named, "recipe")
    for key, overrides in (("changes", changes), ("axes", axes)):
        if overrides:
            table[key] = table.get(key, {}) | dict(overrides)
    for axis, values in (axes or {}).items():
        table["settings"] = [
            row
            for row in table.get("settings", ())
            if values == "*" or row.get(axis) in (None, *values)
        ]
    if seeds is not None:
        table["seeds"] = list(range(seeds))
    if recipe is not None:
        table["recipe"] = read_own(recipe, "recipe")
    return plugins.validate(SweepSpec, table, str(path))


def read_header(file: Path) -> SweepHeader:
    """Reads a sweep.json. Raises BadInput where it is damaged or of a later version."""
    hint = "remove it and run the same sweep again: what is trained is kept"
    return read_json(SweepHeader, file, hint, range(1, SWEEP_FORMAT + 1))


def axis_values(key: str, values: list[Any] | str) -> list[Any]:
    """The values of an axis; "*" stands for all plug-ins of that kind."""
    return list(plugins.names(key) if isinstance(values, str) else values)


# From axes to points


def _expand(spec: SweepSpec) -> tuple[GridPoint, ...]:
    """The points of a sweep; `SweepSpec.grid_points` says what is refused."""
    base_table = copy.deepcopy(spec.recipe)
    for key, value in spec.changes.items():
        _apply_value(base_table, key, value, {})
    values_of_points = list(_point_values(spec))
    reference_of = _reference_names(spec, values_of_points)
    points: dict[str, GridPoint] = {}
    for values, reference in zip(values_of_points, reference_of, strict=True):
        name = _point_name(values)
        if name in points:
            raise BadInput(
                f"sweep '{spec.name}': two settings are called '{name}'", "name each point once"
            )
        cache = values.get(CACHE, GIVEN)
        if cache != GIVEN and cache not in spec.caches:
            raise unknown_name("cache", str(cache), [GIVEN, *spec.caches], f"sweep '{spec.name}'")
        runs = {seed: f"{_slug(name)}-seed{seed}" for seed in spec.seeds}
        members = {
            run: _member_recipe(spec, base_table, values, seed, run) for seed, run in runs.items()
        }
        is_control = name in spec.controls
        points[name] = GridPoint(name, values, cache, reference, is_control, members)
    if strange := [name for name in spec.controls if name not in points]:
        raise unknown_name("control", strange[0], list(points), f"sweep '{spec.name}'")
    folders = {run for point in points.values() for run in point.members}
    if len(folders) < len(points) * len(spec.seeds):
        raise BadInput(
            f"sweep '{spec.name}': two members would share a folder",
            "use other names or fewer signs in values",
        )
    return tuple(points.values())


def _point_values(spec: SweepSpec) -> list[dict[str, Any]]:
    """Axis -> value of every point."""
    axes = {key: axis_values(key, values) for key, values in spec.axes.items()}
    grid = [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
    if not axes:
        grid = []  # the product of no axes is one empty point
    # An axis given on the command line may make a point that the file has as a row.
    return grid + [dict(values) for values in spec.settings if values not in grid]


def _reference_names(spec: SweepSpec, values_of_points: Sequence[dict[str, Any]]) -> list[str]:
    """The name of every point's reference: the point that is like it but for the values of
    `reference`, or else the point of these values alone."""
    reference = _reference_values(spec)
    name_of = {_canonical(values): _point_name(values) for values in values_of_points}
    names = []
    for values in values_of_points:
        candidates = [_canonical(values | reference), _canonical(reference)]
        name = next((name_of[key] for key in candidates if key in name_of), None)
        if name is None:
            raise BadInput(
                f"sweep '{spec.name}': '{_point_name(values)}' is to be compared with "
                f"'{_point_name(reference)}', which is no setting of it",
                "change `reference`, or add that setting",
            )
        names.append(name)
    return names


def _reference_values(spec: SweepSpec) -> dict[str, Any]:
    """Axis -> value of the points that others are compared with: `reference`, or else the first
    value of the first axis."""
    if spec.reference:
        return spec.reference
    if not spec.axes:
        return spec.settings[0]
    key, values = next(iter(spec.axes.items()))
    return {key: axis_values(key, values)[0]}


def _member_recipe(
    spec: SweepSpec, base_table: Mapping[str, Any], values: Mapping[str, Any], seed: int, run: str
) -> Recipe:
    """The recipe of one run. Raises BadInput for a value that it refuses."""
    table = copy.deepcopy(dict(base_table))
    # A table comes before what is in it: "temporal" before "temporal.layers".
    for key, value in sorted(values.items(), key=lambda item: item[0].count(".")):
        if key != CACHE:
            _apply_value(table, key, value, spec.each)
    if SEED not in values:
        set_nested(table, SEED, seed)
    if INIT in table and isinstance(table[INIT].get("run"), str):
        table[INIT]["run"] = table[INIT]["run"].replace(OF_SEED, str(seed))
    table["name"] = run
    return plugins.validate(Recipe, table, f"sweep '{spec.name}', setting '{_point_name(values)}'")


def _apply_value(
    table: dict[str, Any], key: str, value: Any, plugin_settings: Mapping[str, Any]
) -> None:
    """Sets an axis' value in the table of a recipe.

    A table is merged key by key; the settings of another plug-in than the one that is named are
    dropped first. A plug-in that is named alone gets those of `plugin_settings` that it has.
    Initial weights are never merged: a value of `init` is all there is.
    """
    if key == INIT:
        table.pop(INIT, None)
        if isinstance(value, dict):
            table[INIT] = {part: setting for part, setting in value.items() if part != "name"}
        elif value != DRAWN:
            table[INIT] = {"run": value}
        return
    if key in ("temporal", "task") and isinstance(value, str):
        fields = plugins.load(key, value).Settings.model_fields
        value = {"name": value} | {
            name: setting for name, setting in plugin_settings.items() if name in fields
        }
    if not isinstance(value, dict):
        set_nested(table, key, value)
        return
    before = table.get(key, {})
    if "name" in value and isinstance(before, dict) and before.get("name") != value["name"]:
        table[key] = {}
    for inner, part in value.items():
        set_nested(table, f"{key}.{inner}", part)


def _canonical(values: Mapping[str, Any]) -> str:
    """Equal for points of equal values, whatever their order; values may be lists and tables."""
    return json.dumps(values, sort_keys=True)


def _point_name(values: Mapping[str, Any]) -> str:
    """A point's name for people: "gru, width 8". Plug-ins and caches stand alone, every other value
    with the last part of its key."""
    parts = []
    for key, value in values.items():
        if key == INIT and isinstance(value, dict) and "name" in value:
            parts.append(init_name(value))
        elif key == INIT:
            parts.append(f"{INIT} {init_name(value)}")
        elif isinstance(value, dict):
            parts += [
                str(part) if inner == "name" else f"{inner} {_value_text(part)}"
                for inner, part in value.items()
            ]
        elif key in ("temporal", "task", CACHE):
            parts.append(_value_text(value))
        else:
            parts.append(f"{key.rpartition('.')[2]} {_value_text(value)}")
    return ", ".join(parts)


def init_name(value: Any) -> str:
    """A value of the axis `init` for people: its own `name`, or else "none", "runs/a" or "runs/a,
    frozen True". Of runs that differ from seed to seed the name stands alone, without the
    folder."""
    table = value if isinstance(value, dict) else {"run": value}
    if "name" in table:
        return str(table["name"])
    run, ending = str(table.get("run")), f"-seed{OF_SEED}"
    if run.endswith(ending):
        run = Path(run).name.removesuffix(ending)
    others = [f"{key} {_value_text(part)}" for key, part in table.items() if key != "run"]
    return ", ".join([run, *others])


def _value_text(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "+".join(_value_text(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _slug(name: str) -> str:
    """A point's name as part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9_.+=-]+", "-", name.replace(", ", "-").replace(" ", "="))
