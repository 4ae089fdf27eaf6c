"""JSON schemas of specs, recipes and sweeps, by which editors complete and check TOML files.

Pydantic gives the schema of every table. What it cannot know is added here: which plug-ins lie on
disk and which settings each has, what a sweep may vary, and that TOML has no null. The schemas
keep to draft 7, which TOML editors understand.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec
from pipeline.config.recipe import Recipe
from pipeline.config.shipped import shipped
from pipeline.experiments.sweep_spec import INIT, SweepSpec

Schema = dict[str, Any]
DRAFT = "http://json-schema.org/draft-07/schema#"
PLUGIN_TABLES = {"spec": ("encoder", "codec"), "recipe": ("task", "temporal")}
"""The tables that name a plug-in, which are called like its kind."""

INITS = '"none" draws all weights; the folder of a run takes them over; a table says how.'
CACHES = 'Name of a cache: "given" is the one that the sweep is started on, others are in [caches].'
TEXT = "#/$defs/text"
"""What stands in the settings of a plug-in that has a text tower of its own."""
VALUES = "values"
"""The definition of what a sweep sets: keys of a recipe, each with one value."""


class TomlSchema(GenerateJsonSchema):
    """Pydantic's own schema without titles and null: a TOML key that has no value is left out."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def nullable_schema(self, schema: Any) -> Schema:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: Any) -> Schema:
        if "default" in schema and schema["default"] is None:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)


def schemas() -> dict[str, Schema]:
    """The schema of each kind of TOML file: `spec`, `recipe` and `sweep`."""
    return {"spec": spec_schema(), "recipe": recipe_schema(), "sweep": sweep_schema()}


def spec_schema() -> Schema:
    return _document(CacheSpec, "Cache spec", PLUGIN_TABLES["spec"], defaulted={"codec", "name"})


def recipe_schema() -> Schema:
    return _document(Recipe, "Recipe", PLUGIN_TABLES["recipe"], defaulted={"name"})


def sweep_schema() -> Schema:
    """A sweep writes keys of a recipe with dots, each with a value or, on an axis, with many."""
    schema = _document(SweepSpec, "Sweep", (), defaulted={"name"})
    keys = _recipe_keys()
    inner = {"type": "object", "not": {"required": ["name"]}}
    for kind in PLUGIN_TABLES["recipe"]:
        schema["$defs"] |= plugin_definitions(kind)
        keys[kind] = {
            "description": f"A {kind} plug-in: its name, its table, or some of its settings.",
            "anyOf": [{"enum": plugins.names(kind)}, {"$ref": f"#/$defs/{kind}"}, inner],
        }
    open_keys: dict[str, Schema] = {rf"^({'|'.join(PLUGIN_TABLES['recipe'])})\.[a-z0-9_]+$": {}}
    schema["$defs"][VALUES] = {
        "type": "object",
        "properties": keys,
        "patternProperties": open_keys,
        "additionalProperties": False,
    }
    properties = schema["properties"]
    properties["recipe"]["anyOf"] = [
        {"enum": [*shipped("recipe")]},
        {"pattern": r"\.toml$"},
        {"type": "object"},
    ]
    for key in ("type", "additionalProperties"):
        del properties["recipe"][key]
    for name in ("reference", "changes"):
        properties[name]["allOf"] = [{"$ref": f"#/$defs/{VALUES}"}]
    properties["settings"]["items"] = {"$ref": f"#/$defs/{VALUES}"}
    axes: Schema = {key: _axis(value) for key, value in keys.items()}
    for kind in PLUGIN_TABLES["recipe"]:
        said = axes[kind].pop("description")
        axes[kind] = {"description": f'{said} "*": all.', "anyOf": [{"const": "*"}, axes[kind]]}
    properties["axes"] |= {
        "properties": axes,
        "patternProperties": {key: {"type": "array", "minItems": 1} for key in open_keys},
        "additionalProperties": False,
    }
    settings = (settings_schema(kind, name) for kind, name in _every(PLUGIN_TABLES["recipe"]))
    setting_names = sorted({key for table in settings for key in table["properties"]})
    properties["each"]["propertyNames"] = {"enum": setting_names}
    return schema


def _axis(value: Schema) -> Schema:
    """Values of one key to compare, at least one."""
    said = {"description": value["description"]}
    return said | {"type": "array", "items": value, "minItems": 1}


def plugin_definitions(kind: str) -> dict[str, Schema]:
    """`kind`: a table that names one of the plug-ins on disk; `kind-NAME`: that plug-in's table.

    The keys of all plug-ins are listed once more in the first, with no say in what is right:
    editors complete from `properties` and do not look behind `if`. A chain of `if` and `else`
    rather than `oneOf` lets a validator name the wrong key and not just the wrong table.
    """
    names = plugins.names(kind)
    definitions: dict[str, Schema] = {}
    meanings: dict[str, dict[str, list[str]]] = {}
    for name in names:
        table = settings_schema(kind, name)
        for key, value in table["properties"].items():
            meaning = value.get("description", "")
            meanings.setdefault(key, {}).setdefault(meaning, []).append(name)
        definitions |= table.pop("$defs", {})
        table["properties"] = {"name": {"const": name}} | table["properties"]
        table["required"] = ["name", *table.get("required", ())]
        definitions[f"{kind}-{name}"] = table | {"description": first_paragraph(kind, name)}
        if TEXT in str(table):
            definitions |= plugin_definitions("text")
    listed = {
        key: {
            "description": " ".join(f"{', '.join(some)}: {what}" for what, some in of_key.items())
        }
        for key, of_key in meanings.items()
    }
    choice: Schema = {}
    for name in reversed(names):
        is_it = {"properties": {"name": {"const": name}}}
        choice = {"if": is_it, "then": {"$ref": f"#/$defs/{kind}-{name}"}} | (
            {"else": choice} if choice else {}
        )
    table = {
        "description": f"Which {kind} plug-in, with its settings beside its name.",
        "type": "object",
        "properties": {"name": {"description": f"Which {kind}.", "enum": names}} | listed,
        "required": ["name"],
    }
    return {kind: table | choice} | definitions


def settings_schema(kind: str, name: str) -> Schema:
    """The schema of what may stand beside `name = "..."` in the table of one plug-in."""
    return {"properties": {}} | table_schema(plugins.load(kind, name).Settings)


def first_paragraph(kind: str, name: str) -> str:
    """The first paragraph of a plug-in's docstring, on one line."""
    module = importlib.import_module(plugins.load(kind, name).__module__)
    return " ".join((module.__doc__ or "").strip().split("\n\n")[0].split())


def table_schema(model: type[BaseModel]) -> Schema:
    """The schema of one table, its descriptions on one line each."""
    schema: Schema = _plain(model.model_json_schema(schema_generator=TomlSchema))
    schema.pop("title", None)
    return schema


def _document(
    model: type[BaseModel], title: str, kinds: Iterable[str], defaulted: Iterable[str]
) -> Schema:
    """The schema of a whole file. Keys in `defaulted` are filled in where the file lacks them,
    so that they are not required."""
    schema = table_schema(model)
    definitions = schema.pop("$defs", {})
    definitions.pop("Choice", None)
    for kind in kinds:
        definitions |= plugin_definitions(kind)
        schema["properties"][kind] = {"$ref": f"#/$defs/{kind}"}
    schema["required"] = [key for key in schema["required"] if key not in defaulted]
    return {"$schema": DRAFT, "title": title, **schema, "$defs": definitions}


def _recipe_keys() -> dict[str, Schema]:
    """`cache`, whole tables of a recipe, and every key in them written with a dot."""
    recipe = recipe_schema()
    keys: dict[str, Schema] = {"cache": {"type": "string", "description": CACHES}}
    for name, value in recipe["properties"].items():
        reference = value.get("$ref", "").rpartition("/")[2]
        if reference and name not in PLUGIN_TABLES["recipe"]:
            table = {
                key: part for key, part in recipe["$defs"][reference].items() if key != "required"
            }
            keys[name] = table
            if name == INIT:  # all there is of it, or a short form
                text = {"type": "string", "description": INITS}
                called = {"name": {"type": "string", "description": "What tables call it."}}
                whole = recipe["$defs"][reference]
                whole = whole | {"properties": called | whole["properties"]}
                keys[name] = {"description": INITS, "anyOf": [text, whole]}
            keys |= {f"{name}.{key}": part for key, part in table["properties"].items()}
    return keys


def _every(kinds: Iterable[str]) -> list[tuple[str, str]]:
    return [(kind, name) for kind in kinds for name in plugins.names(kind)]


def _plain(value: Any) -> Any:
    """Without what draft 7 has no word for: tuples, which here hold values of one kind."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if not isinstance(value, Mapping):
        return value
    table = {key: _plain(part) for key, part in value.items()}
    if isinstance(table.get("description"), str):
        text = " ".join(table["description"].split())
        table["description"] = text.replace(". None: ", ". Left out: ").replace(
            "; None: ", "; left out: "
        )
    if isinstance(kind := table.pop(plugins.OF_KIND, None), str):
        table["$ref"] = f"#/$defs/{kind}"
    if isinstance(table.get("prefixItems"), list):
        table["items"] = table.pop("prefixItems")[0]
    return table
