"""What is there and what is in effect, on the command line: show, list, doctor."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import FINISHED_WITH_FAILURES, AsJson, Sets, app, named_file
from pipeline.errors import unknown_name

if TYPE_CHECKING:
    from pipeline.cli.about.settings import FileInEffect, SettingTable

SHOWN = ("recipe", "spec", "sweep")
WIDEST_TEXT = 100
"""Characters of a line of prose: longer ones are hard to read."""
INDENT = 6
"""Blanks before what a key means."""
FAILED = 1


@app.command()
def show(
    kind: Annotated[str, typer.Argument(help="recipe, spec or sweep.")],
    name: Annotated[
        str,
        typer.Argument(
            help="A .toml file, the name of a shipped one, the folder of a run or its run.json, or "
            "a sweep.json."
        ),
    ],
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Show every key in effect, and which of them are set. There are its value, type, default and
    meaning. Of a sweep it shows the recipe of the first run, too, and which keys differ from run to
    run.

    Example: stillframe show recipe demo_gru --set training.steps=1000
    """
    from pipeline.cli import console
    from pipeline.cli.about.settings import file_in_effect

    if kind not in SHOWN:
        raise unknown_name("kind", kind, SHOWN)
    shown = file_in_effect(kind, named_file(kind, name), sets or [])
    if as_json:
        console.show_json(_plain(shown))
    else:
        _show_file(shown)


def _plain(shown: FileInEffect) -> dict[str, Any]:
    """As JSON: keys of all tables in one list."""

    def keys(tables: Sequence[SettingTable]) -> list[dict[str, Any]]:
        return [asdict(key) for table in tables for key in table.keys]

    facts: dict[str, Any] = {
        "kind": shown.kind,
        "name": shown.name,
        "file": shown.file,
        "what": shown.what,
        "keys": keys(shown.tables),
    }
    if shown.run:
        facts |= {"runs": shown.runs, "run": shown.run, "recipe": keys(shown.recipe)}
    return facts


def _show_file(shown: FileInEffect) -> None:
    """As text: table after table, as they would stand in a file."""
    from pipeline.cli import console

    console.show(f"{shown.kind} {shown.name}: {shown.file}")
    _show_prose(shown.what)
    _show_prose("Behind # stands who has set a key; the others have their defaults.")
    _show_tables(shown.tables)
    if shown.run:
        console.show()
        _show_prose(
            f"The recipe of {shown.run}, the first of {shown.runs} runs. What `axis` has set "
            "differs from run to run."
        )
        _show_tables(shown.recipe)


def _show_tables(tables: Sequence[SettingTable]) -> None:
    from pipeline.cli import console

    for table in tables:
        console.show()
        if table.name:
            console.show(f"[{table.name}]")
        _show_prose(table.what)
        for key in table.keys:
            console.show()
            last = key.key.removeprefix(f"{table.name}.")
            by = f"  # {key.set_by}" if key.set_by else ""
            equals = ":" if key.value is None else " ="
            _show_prose(f"{last}{equals} {_value_text(key.value)}{by}", INDENT, first=0)
            default = "required" if key.required else f"default {_value_text(key.default)}"
            _show_prose(f"({key.type}, {default}) {key.meaning}", INDENT)


def _value_text(value: Any) -> str:
    return "left out" if value is None else json.dumps(value, ensure_ascii=False)


def _show_prose(text: str, indent: int = 0, first: int | None = None) -> None:
    """Text folded at blanks, `indent` blanks before each line but the first, which has `first`."""
    from pipeline.cli import console

    width = min(console.out.width, WIDEST_TEXT)
    before = " " * (indent if first is None else first)
    for line in textwrap.wrap(
        text, width, initial_indent=before, subsequent_indent=" " * indent, break_on_hyphens=False
    ):
        console.show(line)


@app.command("list")
def list_names(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="dataset, encoder, text, codec, engine, temporal, task, spec, recipe, sweep."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List all that can be named, and what it is. Names stand in a spec, a recipe, a sweep or a
    command. Of one kind the settings are listed, too, and it says what is from outside.

    Exit code 3 if a plug-in from outside is among it that cannot be used.

    Example: stillframe list temporal
    """
    from pipeline.cli import console
    from pipeline.cli.about.listing import BROKEN, all_kinds, named_things

    if kind is not None and kind not in all_kinds():
        raise unknown_name("kind", kind, all_kinds())
    rows = [row for each in (all_kinds() if kind is None else [kind]) for row in named_things(each)]
    if as_json:
        console.show_json(rows)
    else:
        _show_names(rows, with_settings=kind is not None)
    if any(row["what"].startswith(BROKEN) for row in rows):
        raise typer.Exit(FINISHED_WITH_FAILURES)


def _show_names(rows: Sequence[dict[str, str]], with_settings: bool) -> None:
    """A table in which names are whole; where each is from if not all come with stillframe."""
    from pipeline.cli import console
    from pipeline.cli.about.listing import SHIPPED

    is_apart = any(row["from"] != SHIPPED for row in rows)
    columns = ("kind", "name", "what", *(["from"] if is_apart else []))
    cells = []
    for row in rows:
        settings = f" Settings: {row['settings']}." if with_settings and row["settings"] else ""
        shown = row | {"what": f"{row['what']}{settings}"}
        cells.append([shown[column] for column in columns])
    console.show_table("", columns, cells, whole=2)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say whether all that is needed is there. It looks at versions, devices, disks and limits, and
    ends with what to paste into a report on a defect.

    Exit code 1 if something needed is missing or broken; what is optional changes no exit code.

    Example: stillframe doctor
    """
    from pipeline.cli import console
    from pipeline.cli.about.doctor import all_checks, problems_text, report_text, without_names

    checks = all_checks()
    problems = [check for check in checks if check.state == "problem"]
    if as_json:
        facts = {"ok": not problems, "checks": [asdict(check) for check in checks]}
        console.show_json(facts | {"report": report_text(checks)})
    else:
        rows = [(check.name, check.state, without_names(check.text)) for check in checks]
        console.show_table("", ("what", "state", "found"), rows, whole=2)
        for check in checks:
            if check.next and check.state != "absent":
                console.show(f"{check.state}: {check.name}; next: {check.next}")
        console.show(problems_text(checks))
        console.show()
        console.show("For a report on a defect:")
        console.show()
        console.show(report_text(checks))
    if problems:
        raise typer.Exit(FAILED)
