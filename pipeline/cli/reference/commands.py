"""The page of commands, from what typer knows of them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo

from pipeline.cli.main import app
from pipeline.cli.options import CommandOrGroup
from pipeline.cli.reference.markdown import NOTE, anchor, bounds, paragraphs, table

SAME = """`stillframe COMMAND --help` says the same. What a command returns to the shell is in
[exit codes](exit_codes.md).
"""


def commands_page() -> str:
    """Every command in the order of --help, those of a group after the group's own line."""
    group: Any = typer.main.get_command(app)
    lines, sections = [], list[str]()
    for name, command in _commands("stillframe", group):
        lines.append((f"[`{name}`](#{anchor(name)})", paragraphs(command.help)[0]))
        sections += [f"## {name}\n", *_command(name, command)]
    listed = table(("command", "what it does"), lines)
    before = [
        (f"`{', '.join(each.opts)} {each.metavar}`", each.help)
        for each in group.params
        if each.name != "help"
    ]
    common = table(("option before the command", "meaning"), before)
    return "\n".join([NOTE, "# Commands\n", f"{group.help}\n", SAME, listed, common, *sections])


def _commands(prefix: str, group: Any) -> Iterable[tuple[str, Any]]:
    """(how it is called, typer's command) of all that --help lists, groups opened."""
    for name in group.list_commands(typer.Context(group)):
        command = group.commands[name]
        if command.hidden:
            continue
        if not hasattr(command, "commands") or isinstance(command, CommandOrGroup):
            yield f"{prefix} {name}", command
        if hasattr(command, "commands"):
            yield from _commands(f"{prefix} {name}", command)


def _command(name: str, command: Any) -> list[str]:
    """Usage, what it does, an example, and what it takes."""
    callback = inspect.unwrap(command.callback)
    hints = get_type_hints(callback, include_extras=True)
    defaults = {
        key: parameter.default for key, parameter in inspect.signature(callback).parameters.items()
    }
    usage, rows = [name], []
    for parameter in command.params:
        if parameter.hidden or parameter.name not in hints:  # --help is no part of the callback
            continue
        kind, declared = get_args(hints[parameter.name])[:2]
        default = defaults[parameter.name]
        if isinstance(declared, ArgumentInfo):
            spelling = declared.metavar or parameter.name.upper()
            usage.append(spelling if parameter.required else f"[{spelling}]")
        else:
            spelling = ", ".join([*parameter.opts, *parameter.secondary_opts])
            spelling += f" {declared.metavar}" if declared.metavar else ""
        words = type_words(kind) + bounds({"minimum": declared.min, "maximum": declared.max})
        shown = "required" if parameter.required else _default(default)
        rows.append((f"`{spelling}`", words, shown, declared.help or ""))
    parts = [f"```\n{' '.join([*usage, '[OPTIONS]'])}\n```\n"]
    for text in paragraphs(command.help):
        example = text.partition("Example: ")[2]
        parts.append(f"Example:\n\n```\n{example}\n```\n" if example else f"{text}\n")
    return [*parts, table(("argument or option", "type", "default", "meaning"), rows)]


def type_words(kind: Any) -> str:
    """A type as a user types it."""
    inner = [part for part in get_args(kind) if part is not type(None)]
    if get_origin(kind) in (list, tuple):
        return f"{type_words(inner[0])}, may be given many times"
    if inner:
        return " or ".join(type_words(part) for part in inner)
    return {str: "text", int: "whole number", float: "number", bool: "flag", Path: "path"}[kind]


def _default(value: Any) -> str:
    return "" if value in (None, False) or value == [] else f"`{value}`"
