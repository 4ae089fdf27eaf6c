"""The reference says what the code says, and editors refuse what the program refuses."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from jsonschema import Draft7Validator
from support.paths import ROOT

from pipeline import errors
from pipeline.cli.main import INTERRUPTED, app, main
from pipeline.cli.options import FINISHED_WITH_FAILURES
from pipeline.cli.reference import pages
from pipeline.cli.reference.schema import schemas
from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec
from pipeline.config.recipe import Recipe
from pipeline.config.shipped import KINDS, shipped
from pipeline.experiments.sweep_spec import SweepSpec, load_sweep

REFERENCE = ROOT / "docs" / "reference"
SCHEMAS = schemas()
SHIPPED = [
    pytest.param(kind, path, id=f"{kind}-{name}")
    for kind in KINDS
    for name, path in shipped(kind).items()
]
SPEC = {"encoder": {"name": "address", "layers": [1]}, "frames": {"size_px": 32}}
RECIPE = {
    "task": {"name": "classify"},
    "temporal": {"name": "gru"},
    "windows": {"fps": 4},
    "training": {"steps": 2},
}
SWEEP = {"recipe": "demo_gru", "axes": {"temporal": ["identity", "gru"]}}
MODELS = {"spec": CacheSpec, "recipe": Recipe, "sweep": SweepSpec}
START = {"spec": SPEC, "recipe": RECIPE, "sweep": SWEEP}


def problems(kind: str, table: dict[str, Any]) -> list[str]:
    """What an editor would underline."""
    return [error.message for error in Draft7Validator(SCHEMAS[kind]).iter_errors(table)]


def check(kind: str, table: dict[str, Any]) -> None:
    """The program's own check of such a file. Raises BadInput."""
    checked = plugins.validate(MODELS[kind], {"name": "test"} | table, "test")
    if isinstance(checked, SweepSpec):
        list(checked.grid_points)


def changed(kind: str, key: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The table that a test starts from, with one value more or another one."""
    table: dict[str, Any] = json.loads(json.dumps(START[kind]))
    inner = table
    for part in key[:-1]:
        inner = inner.setdefault(part, {})
    inner[key[-1]] = value
    return table


def test_the_committed_reference_is_what_the_code_makes():
    stale, generated = [], pages.files(ROOT)
    for path, text in generated.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(str(path.relative_to(ROOT)))
    assert stale == [], "run: make docs"
    assert {file for file in REFERENCE.rglob("*") if file.is_file()} <= generated.keys()


def test_the_reference_says_nothing_of_the_machine_it_was_made_on(tmp_path):
    code = """
import hashlib, json, sys
from pathlib import Path
from pipeline.cli.reference.pages import files
made = files(Path(sys.argv[1]))
print(json.dumps({str(path): hashlib.sha256(made[path].encode()).hexdigest() for path in made}))
"""
    odd = {
        "COLUMNS": "20",
        "TERM": "dumb",
        "LC_ALL": "C",
        "HOME": str(tmp_path),
        "PYTHONHASHSEED": "7",
    }
    environment = os.environ | odd | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(ROOT)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    for path, digest in json.loads(done.stdout).items():
        assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest, path


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_schema_is_a_schema(kind):
    Draft7Validator.check_schema(SCHEMAS[kind])
    assert SCHEMAS[kind]["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert problems(kind, START[kind]) == []
    check(kind, START[kind])


@pytest.mark.parametrize(("kind", "path"), SHIPPED)
def test_what_is_shipped_is_valid(kind, path):
    assert problems(kind, tomllib.loads(path.read_text(encoding="utf-8"))) == []


MISTAKES = [
    ("spec", ("frame",), {"size_px": 32}, "'frame' was unexpected"),
    ("spec", ("frames", "size"), 32, "'size' was unexpected"),
    ("spec", ("frames", "size_px"), "small", "'small' is not of type 'integer'"),
    ("spec", ("frames", "size_px"), 0, "0 is less than the minimum of 1"),
    ("spec", ("frames", "fit"), "cut", "'cut' is not one of ['crop', 'squash']"),
    ("spec", ("encoder", "name"), "transformer", "'transformer' is not one of"),
    ("spec", ("encoder", "layer"), [1], "'layer' was unexpected"),
    ("spec", ("encoder",), {"name": "address"}, "'layers' is a required property"),
    ("spec", ("encoder",), {"layers": [1]}, "'name' is a required property"),
    ("spec", ("codec",), {"name": "int3"}, "'int3' is not one of"),
    ("spec", ("codec",), {"name": "pca", "components": 0}, "0 is less than the minimum of 1"),
    ("spec", ("codec",), {"name": "int8", "components": 4}, "'components' was unexpected"),
    ("spec", ("store", "compression"), True, "True is not one of ['none', 'zstd']"),
    ("spec", ("views",), [{"name": "left", "crop": [0, 0, 1]}], "[0, 0, 1] is too short"),
    ("recipe", ("training", "step"), 3, "'step' was unexpected"),
    ("recipe", ("training", "steps"), 2.5, "2.5 is not of type 'integer'"),
    ("recipe", ("training", "betas"), [0.9, "a"], "'a' is not of type 'number'"),
    ("recipe", ("windows", "span"), "video", "'video' is not one of"),
    ("recipe", ("model", "mixer"), "mean", "'mean' is not one of"),
    ("recipe", ("temporal", "name"), "grue", "'grue' is not one of"),
    ("recipe", ("temporal", "heads"), 2, "'heads' was unexpected"),
    ("recipe", ("task", "heads"), "two", "'two' is not of type 'integer'"),
    ("recipe", ("task", "forms"), ["stream"], "'stream' is not one of ['streaming', 'window']"),
    ("sweep", ("recipe",), "demo_grue", "'demo_grue' is not valid"),
    ("sweep", ("axis",), {}, "'axis' was unexpected"),
    ("sweep", ("seeds",), ["a"], "'a' is not of type 'integer'"),
    ("sweep", ("axes", "temporal"), ["identity", "grue"], "['identity', 'grue'] is not valid"),
    ("sweep", ("axes", "windows.frame"), [4, 8], "'windows.frame' does not match"),
    ("sweep", ("axes", "windows.frames"), [4, "eight"], "'eight' is not of type 'integer'"),
    ("sweep", ("axes", "windows.frames"), [], "[] should be non-empty"),
    ("sweep", ("changes", "training.steps"), "many", "'many' is not of type 'integer'"),
    ("sweep", ("changes", "training"), {"step": 3}, "'step' was unexpected"),
    ("sweep", ("reference",), {"temporal": "grue"}, "'grue' is not valid"),
    ("sweep", ("axes", "init"), ["none", {"froze": True}], "is not valid under any"),
    ("sweep", ("settings",), [{"temporal": {"name": "gru", "layer": 2}}], "is not valid"),
    ("sweep", ("caches", "small"), {"codec": "int8"}, "'codec' was unexpected"),
]


@pytest.mark.parametrize(("kind", "key", "value", "said"), MISTAKES)
def test_editors_refuse_what_the_program_refuses(kind, key, value, said):
    table = changed(kind, key, value)
    assert any(said in problem for problem in problems(kind, table)), problems(kind, table)
    with pytest.raises(errors.BadInput):
        check(kind, table)


def test_a_setting_for_each_plugin_that_none_has_is_underlined():
    assert problems("sweep", changed("sweep", ("each", "layers"), 1)) == []
    assert any(
        "'layer'" in problem
        for problem in problems("sweep", changed("sweep", ("each", "layer"), 1))
    )


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_key_says_what_it_is_for(kind):
    said = {
        "description",
        "$ref",
        "const",
    }  # a table says it itself, a plug-in's own name says enough
    keys = list(properties(SCHEMAS[kind]))
    assert len(keys) > 20
    assert [key for key, value in keys if not said & value.keys()] == []


def properties(schema: Any, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key that a schema describes, wherever it lies; conditions describe nothing."""
    for key, value in schema.items():
        if key == "properties":
            yield from ((f"{prefix}.{name}", part) for name, part in value.items())
        if isinstance(value, dict) and key != "if":
            yield from properties(value, f"{prefix}.{key}")


def test_the_example_of_a_sweep_is_one(tmp_path):
    page = (REFERENCE / "sweep.md").read_text(encoding="utf-8")
    example = re.search(r"```toml\n(.*?)```", page, re.S)
    assert example
    file = tmp_path / "example.toml"
    file.write_text(example[1])
    assert problems("sweep", tomllib.loads(example[1])) == []
    assert len(load_sweep(file).grid_points) > 1


def _sections() -> dict[str, str]:
    page = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    return dict(part.split("\n", 1) for part in page.split("\n## ")[1:])


def test_the_page_of_commands_has_what_help_has(capsys):
    sections = _sections()
    for name, text in sections.items():
        assert main([*name.split()[1:], "--help"]) == 0
        options = set(re.findall(r"^ +(--[a-z-]+)", capsys.readouterr().out, re.M)) - {"--help"}
        assert options == set(re.findall(r"^\| `(--[a-z-]+)", text, re.M)), name


def test_the_page_of_commands_has_all_of_them():
    group = typer.main.get_command(app)
    top = [name for name, command in group.commands.items() if not command.hidden]
    named = {name.split()[1] for name in _sections()}
    assert set(top) == named


def test_every_error_has_an_exit_code_that_is_explained():
    classes = [errors.StillframeError, *errors.StillframeError.__subclasses__(), errors.BadVideo]
    known = errors.EXIT_CODES.keys()
    assert {
        0,
        FINISHED_WITH_FAILURES,
        INTERRUPTED,
        *(error.exit_code for error in classes),
    } == known


def test_every_plugin_has_a_section():
    page = (REFERENCE / "plugins.md").read_text(encoding="utf-8")
    wanted = [f"### {kind} {name}" for kind in plugins.FOLDERS for name in plugins.names(kind)]
    assert re.findall(r"^### .*", page, re.M) == wanted


def test_editors_find_the_schemas_of_the_files_in_the_checkout():
    rules = tomllib.loads((ROOT / ".taplo.toml").read_text(encoding="utf-8"))["rule"]
    covered = {}
    for rule in rules:
        kind = Path(rule["schema"]["path"]).name.removesuffix(".schema.json")
        assert (ROOT / rule["schema"]["path"]).is_file()
        covered |= {path: kind for pattern in rule["include"] for path in ROOT.glob(pattern)}
    assert covered == {file: kind for kind in KINDS for file in shipped(kind).values()}


def test_the_rooms_of_the_readme_are_those_there_are():
    there = {path.parent.name for path in pages.PACKAGE.glob("*/__init__.py")}
    assert there == set(pages.ROOMS)
    marked = f"a\n{pages.ROOMS_BEGIN}\nold\n{pages.ROOMS_END}\nb\n"
    text = pages.with_rooms(marked)
    assert text.startswith(f"a\n{pages.ROOMS_BEGIN}\n|") and text.endswith(
        f"\n{pages.ROOMS_END}\nb\n"
    )
    assert re.findall(r"\[`(\w+)/`\]", text) == list(pages.ROOMS) and "\nold\n" not in text
    assert pages.with_rooms(text) == text
