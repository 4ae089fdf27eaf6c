"""The pages of the reference in Markdown, and the list of rooms in the README."""

from __future__ import annotations

import ast
import importlib
import json
import sys
from pathlib import Path

import torch

from pipeline import errors
from pipeline.cli.reference.commands import commands_page
from pipeline.cli.reference.markdown import NOTE, anchor, paragraphs, table, type_text
from pipeline.cli.reference.schema import VALUES, Schema, first_paragraph, schemas, settings_schema
from pipeline.config import plugins
from pipeline.config.plugins import PACKAGE
from pipeline.config.shipped import first_sentence, shipped
from pipeline.experiments.sweep_spec import SweepSpec

ROOMS_BEGIN, ROOMS_END = "<!-- rooms:begin -->", "<!-- rooms:end -->"
ROOMS = (
    "config",
    "video",
    "datasets",
    "models",
    "cache",
    "extract",
    "train",
    "experiments",
    "report",
    "search",
    "exchange",
    "cli",
)
"""In data order, which is the order of imports."""
SCHEMA_HINT = """Editors that know TOML schemas, such as VS Code with Even Better TOML, complete
and check such a file if its first line is `#:schema PATH/{kind}.schema.json`, with the path of
[this schema](schema/{kind}.schema.json) from the file's own folder. The files of a checkout need no
such line: `.taplo.toml` says which schema is theirs.
"""
PLUGINS = """A plug-in is one file in the folder of its kind. Specs and recipes name it in a table
of its kind, with its settings beside `name`; data sets and launchers take theirs from `--set` and
`--engine-set`. How to write one: [extending](../extending.md).
"""
TITLES = {
    "dataset": "Data sets",
    "encoder": "Encoders",
    "text": "Text towers",
    "codec": "Codecs",
    "engine": "Launchers",
    "temporal": "Temporal modules",
    "task": "Tasks",
}
WIDTH, TOKENS, FRAMES, LAYERS = 1024, 201, 16, 4
"""Width and tokens of DINOv3 ViT-L/16 at 224 px, frames of a window, and depth of a module, as in
the paper."""
SIZES = f"""Sizes for D = {WIDTH} channels and N = {TOKENS} tokens, which DINOv3 ViT-L/16 gives
at 224 px, with {LAYERS} layers and all else as by default: trained parameters, operations of the
forward pass over a window of {FRAMES} frames (2 for a multiply and add), and the state of one
stream in float32.
"""
ERRORS = """An error is one line on stderr: what is wrong and where, what was found and wanted, and
the next step.
"""


def files(root: Path) -> dict[Path, str]:
    """Every generated file of the checkout at `root`, and its whole text."""
    pages = {
        "cli.md": commands_page(),
        "spec.md": spec_page(),
        "recipe.md": recipe_page(),
        "sweep.md": sweep_page(),
        "plugins.md": plugins_page(),
        "exit_codes.md": exit_codes_page(),
    }
    for kind, schema in schemas().items():
        pages[f"schema/{kind}.schema.json"] = json.dumps(schema, indent=1) + "\n"
    generated = {root / "docs" / "reference" / name: text for name, text in pages.items()}
    readme = root / "README.md"
    return generated | {readme: with_rooms(readme.read_text(encoding="utf-8"))}


def with_rooms(text: str) -> str:
    """The README with the rooms between its two marks."""
    if ROOMS_BEGIN not in text:
        return text
    before, begin, rest = text.partition(ROOMS_BEGIN)
    _, end, after = rest.partition(ROOMS_END)
    return f"{before}{begin}\n{rooms()}{end}{after}"


def rooms() -> str:
    """A row for each room: what its docstring says happens there, and what comes in and goes
    out."""
    rows = []
    for room in ROOMS:
        tree = ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))
        what, in_and_out, *_ = paragraphs(ast.get_docstring(tree))
        rows.append((f"[`{room}/`](pipeline/{room})", what, in_and_out))
    return table(("room", "what happens there", "in and out"), rows)


def spec_page() -> str:
    example = shipped("spec")["dinov2_small"].read_text(encoding="utf-8")
    return _file_page("spec", "Cache specs", "stillframe extract SPEC DATA", example)


def recipe_page() -> str:
    example = shipped("recipe")["demo_gru"].read_text(encoding="utf-8")
    return _file_page("recipe", "Recipes", "stillframe train RECIPE CACHE", example)


def sweep_page() -> str:
    """The example is that of the module's docstring, which says what each key is for."""
    example = (sys.modules[SweepSpec.__module__].__doc__ or "").partition("\n\n")[2]
    return _file_page("sweep", "Sweeps", "stillframe sweep SWEEP CACHE", example)


def _file_page(kind: str, title: str, use: str, example: str) -> str:
    """The page about one kind of TOML file: first what is shipped and an example, then every
    key."""
    schema = schemas()[kind]
    files = [(f"`{name}`", first_sentence(path)) for name, path in shipped(kind).items()]
    top: Schema = {"properties": {}, "required": schema["required"]}
    tables = []
    for key, value in schema["properties"].items():
        heading, name = _inner_table(key, value)
        if not name:
            top["properties"][key] = value
            continue
        table_of = schema["$defs"][name]
        left_out = "" if key in schema["required"] else " May be left out."
        tables += [f"## `{heading}`\n", f"{table_of['description']}{left_out}\n"]
        tables.append(_choices(name) if name in plugins.FOLDERS else _settings_table(table_of))
    parts = [NOTE, f"# {title}\n", f"{schema['description']} It is used by `{use}`.\n"]
    parts += [SCHEMA_HINT.format(kind=kind), f"## Example\n\n```toml\n{example.strip()}\n```\n"]
    parts += ["## What ships with stillframe\n", table((kind, "what it is"), files)]
    return "\n".join([*parts, "## Keys at the top\n", _settings_table(top), *tables])


def _inner_table(key: str, value: Schema) -> tuple[str, str]:
    """The heading in TOML of the table under `key`, and its definition's name; a value has none."""
    for heading, inner in (
        (f"[{key}]", value),
        (f"[[{key}]]", value.get("items", {})),
        (f"[{key}.NAME]", value.get("additionalProperties", {})),
    ):
        name = inner.get("$ref", "").rpartition("/")[2] if isinstance(inner, dict) else ""
        if name and name != VALUES:
            return heading, name
    return "", ""


def _choices(kind: str) -> str:
    """The plug-ins that a table can name, each with a link to its settings."""
    links = [f"[`{name}`](plugins.md#{anchor(f'{kind} {name}')})" for name in plugins.names(kind)]
    return f"`name` is one of {', '.join(links)}.\n"


def plugins_page() -> str:
    """Every plug-in with its settings."""
    parts = [NOTE, "# Plug-ins\n", PLUGINS]
    for kind, folder in plugins.FOLDERS.items():
        contract = importlib.import_module(f"{plugins.module_of(kind)}.{plugins.CONTRACT}")
        said = paragraphs(contract.__doc__)[0].partition(": ")[2]
        said = f"{said[0].upper()}{said[1:]} They lie in `pipeline/{folder}/`.\n"
        parts += [f"## {TITLES[kind]}\n", said]
        if kind == "temporal":
            parts += [SIZES, sizes()]
        for name in plugins.names(kind):
            settings = settings_schema(kind, name)
            keys = _settings_table(settings) if settings["properties"] else "It has no settings.\n"
            parts += [f"### {kind} {name}\n", f"{first_paragraph(kind, name)}\n", keys]
    return "\n".join(parts)


def sizes() -> str:
    """A table of what every temporal module costs; computed without memory for the weights."""
    rows = []
    for name in plugins.names("temporal"):
        plugin = plugins.load("temporal", name)
        settings = {"layers": LAYERS} if "layers" in plugin.Settings.model_fields else {}
        with torch.device("meta"):
            module = plugin(WIDTH, plugin.Settings(**settings))
            state_mb = module.state_bytes(TOKENS) / 1e6
        parameters_m = sum(part.numel() for part in module.parameters()) / 1e6
        operations_g = module.flops(FRAMES, TOKENS) / 1e9
        numbers = (f"{parameters_m:.2f} M", f"{operations_g:.1f} G", f"{state_mb:.1f} MB")
        rows.append((f"[`{name}`](#{anchor(f'temporal {name}')})", *numbers))
    return table(("module", "parameters", "operations", "state"), rows)


def exit_codes_page() -> str:
    """The page that says what a command returns to the shell, and which error gives which code."""
    codes = [(f"`{code}`", meaning) for code, meaning in errors.EXIT_CODES.items()]
    classes = [
        (f"`{error.__name__}`", f"`{error.exit_code}`", " ".join(paragraphs(error.__doc__)))
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.StillframeError)
    ]
    parts = [NOTE, "# Exit codes\n", table(("code", "meaning"), codes), ERRORS]
    parts += [
        "## Errors in Python\n",
        table(("class in `pipeline.errors`", "code", "when"), classes),
    ]
    return "\n".join(parts)


def _settings_table(schema: Schema) -> str:
    required = schema.get("required", ())
    rows = []
    for key, value in schema["properties"].items():
        default = _schema_default(value, key in required)
        rows.append((f"`{key}`", type_text(value), default, value.get("description", "")))
    return table(("key", "type", "default", "meaning"), rows)


def _schema_default(value: Schema, required: bool) -> str:
    if required:
        return "required"
    return f"`{json.dumps(value['default'], ensure_ascii=False)}`" if "default" in value else ""
