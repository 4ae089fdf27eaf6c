"""Every command of the pages is one that the program takes: commands, flags, names, settings, targets of make."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from support import rvm
from support.manual import (
    HANDWRITTEN,
    PAGES,
    README,
    ROOT,
    Line,
    blocks,
    code_in_prose,
    lines,
    name,
    read,
)

from pipeline.cli.main import app
from pipeline.cli.talk.loudness import FLAGS
from pipeline.config import plugins
from pipeline.config.cache_spec import load_spec
from pipeline.config.recipe import load_recipe
from pipeline.config.shipped import shipped
from pipeline.config.toml_tables import override
from pipeline.experiments.sweep_spec import load_sweep

PROGRAM = typer.main.get_command(app)
LINES = [line for page in HANDWRITTEN for line in lines(page)]
COMMANDS = [line for line in LINES if line.arguments is not None]
SPECS = {file.stem: file for file in (ROOT / "cache_specs").glob("*.toml")}


def commands_of(command: Any) -> dict[str, Any]:
    """The commands of a group, by name; none for a command. Versions of typer differ in where their click is."""
    return getattr(command, "commands", {})


def command_of(arguments: list[str]) -> tuple[Any, list[str], list[str]]:
    """The command that the arguments name, its names, and the arguments left for it, without --quiet and --verbose, which all take."""
    command, names, left = PROGRAM, [], [word for word in arguments if word not in FLAGS]
    while left and left[0] in commands_of(command):
        names.append(left.pop(0))
        command = commands_of(command)[names[-1]]
    return command, names, left


def parsed(line: Line) -> tuple[list[str], dict[str, Any]]:
    """Names and parameters of the command, as the program itself reads the line."""
    arguments = line.arguments
    assert arguments is not None
    command, names, left = command_of(arguments)
    assert names or left == ["--help"], f"no such command: {line}"
    if "--help" in left:
        return names, {}
    return names, command.make_context(" ".join(names), left).params


def helps(group: Any) -> list[str]:
    """What every command says of itself, a paragraph on one line."""
    inner = [text for command in commands_of(group).values() for text in helps(command)]
    return [*inner, *(" ".join(text.split()) for text in (group.help or "").split("\n\n"))]


@pytest.mark.parametrize("line", COMMANDS, ids=str)
def test_commands_in_blocks_are_read_by_the_program(line):
    parsed(line)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_in_prose_exist_with_their_flags(page):
    """Inline code that begins with the program's name, with whatever flags it shows."""
    for text in code_in_prose(page):
        if not text.startswith("stillframe "):
            continue
        arguments = (
            text.replace("\\|", " ")
            .replace("...", " ")
            .replace("[", " ")
            .replace("]", " ")
            .split()[1:]
        )
        command, names, left = command_of(arguments)
        assert names or any(word.startswith("--") for word in left), text
        known = {
            flag
            for parameter in command.params
            for flag in (*parameter.opts, *parameter.secondary_opts)
        } | {"--help"}
        assert {word for word in left if word.startswith("--")} <= known, text


EXAMPLES = [
    Line(ROOT / "docs/reference/cli.md", text)
    for text in re.findall(r"Example: (stillframe [^\n]+)", "\n".join(helps(PROGRAM)))
]


@pytest.mark.parametrize("line", [*COMMANDS, *EXAMPLES], ids=str)
def test_names_and_settings_in_blocks_are_taken(line):
    if (
        "/mnt/" in line.text
        or line.page.name == "extending.md"
        or line.page.parent.name == "template"
    ):  # a folder that must be there; plug-ins that are not yet
        return
    names, given = parsed(line)
    sets = given.get("sets") or []
    if given.get("engine"):
        plugins.settings(
            "engine", given["engine"], override({}, given.get("engine_sets") or []), str(line)
        )
    if names == ["manifest"]:
        plugins.settings("dataset", given["dataset"], override({}, sets), str(line))
    if names in (["extract"], ["plan"], ["diff"]):
        specs = given["specs"] if "specs" in given else [given["spec"]]
        for spec in filter(is_name, map(str, specs)):
            load_spec(SPECS[spec], sets)
        if names == ["plan"]:
            recipe = given.get("recipe") or (
                given.get("data") if is_name(str(given.get("data"))) else None
            )
            assert recipe is None or recipe in shipped("recipe")
    if names in (["train"], ["import-checkpoint"]) and is_name(given["recipe"]):
        load_recipe(shipped("recipe")[given["recipe"]], sets)
    if names == ["sweep"] and is_name(given["sweep"]):
        changes, axes = override({}, sets), {}
        for axis in given.get("axes") or []:
            key, _, value = axis.partition("=")
            axes[key] = override({}, [f"values={value}"])["values"]
        loaded = load_sweep(
            shipped("sweep")[given["sweep"]], flat(changes), axes, given.get("seeds")
        )
        assert loaded.grid_points


def is_name(text: str) -> bool:
    """Whether this is the name of something that ships, and not a path, nor a word in capitals for the reader to fill in."""
    return re.fullmatch(r"[a-z][a-z0-9_]*", text) is not None and text != "None"


def flat(table: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= (
            flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
        )
    return found


def test_targets_of_make_exist():
    targets = set(re.findall(r"^([a-z-]+):", read(ROOT / "Makefile"), re.MULTILINE))
    variables = set(re.findall(r"\b([A-Z]{3,})\b", read(ROOT / "Makefile")))
    texts = [line.text for line in LINES if line.words[0] == "make"]
    texts += [
        text for page in PAGES for text in code_in_prose(page) if re.match(r"make [a-z]", text)
    ]
    assert len(texts) > 10
    for text in texts:
        for word in shlex.split(text.partition("&&")[0], comments=True)[1:]:
            key, equals, _ = word.partition("=")
            assert key in (variables if equals else targets), text


def test_every_command_is_in_the_handwritten_pages():
    shown = {tuple(command_of(line.arguments or [])[1]) for line in COMMANDS}
    for page in HANDWRITTEN:
        for text in code_in_prose(page):
            shown.add(
                tuple(command_of(text.split()[1:])[1]) if text.startswith("stillframe ") else ()
            )
    assert set(every_command(PROGRAM)) - shown == set()


def every_command(group: Any, names: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """All commands that the help lists."""
    found = []
    for each, command in commands_of(group).items():
        inner = every_command(command, (*names, each))
        found += inner or [(*names, each)] * (not command.hidden)
    return found


@pytest.mark.parametrize(
    "page", [page for page in (ROOT / "docs/guide").glob("*.md") if blocks(page, "toml")], ids=name
)
def test_toml_blocks_are_checked_settings(page, tmp_path, monkeypatch):
    """A recipe is saved under the name that the page gives it, in a folder with small weights in the place of released ones."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    rvm.write(tmp_path / "weights/rvm_small.npz")
    saved = re.search(r"Save this as\s`(\w+\.toml)`", read(page))
    for number, text in enumerate(blocks(page, "toml")):
        file = tmp_path / (saved[1] if saved and "[task]" in text else f"block_{number}.toml")
        if text.startswith("[[views]]"):
            text = read(ROOT / "cache_specs/demo.toml") + text
        if text.startswith("[init]"):
            text = read(shipped("recipe")["demo_gru"]) + text
        file.write_text(text, encoding="utf-8")
        if "[frames]" in text:
            load_spec(file)
        elif "[task]" in text:
            load_recipe(file)
        else:
            assert load_sweep(file).grid_points


def test_the_recipe_in_the_guide_is_the_shipped_one(tmp_path):
    (text,) = [text for text in blocks(ROOT / "docs/guide/train.md", "toml") if "[task]" in text]
    (tmp_path / "demo_gru.toml").write_text(text, encoding="utf-8")
    assert load_recipe(tmp_path / "demo_gru.toml") == load_recipe(shipped("recipe")["demo_gru"])


def test_the_readme_shows_eight_commands():
    (block,) = [text for text in blocks(README) if "stillframe manifest folder" in text]
    assert len(block.splitlines()) == 8


def test_what_the_readme_names_is_shipped():
    specs = {Path(file).stem for file in re.findall(r"cache_specs/(\w+)\.toml", read(README))}
    assert specs <= SPECS.keys()
