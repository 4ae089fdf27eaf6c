"""Markdown and the words that the pages of the reference share."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NOTE = "<!-- Made from the code by `make docs`: change the code, not this page. -->\n"
MOST_CHOICES = 8
"""Where there are more names to choose from they are not repeated at every key."""


TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "object": "table",
}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def type_text(schema: Mapping[str, Any]) -> str:
    """The type of a value in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(type_text(part) for part in schema["anyOf"]))
    choices = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if len(choices) > MOST_CHOICES or "pattern" in schema:
        return "text"
    if choices:
        return " or ".join(f"`{json.dumps(choice)}`" for choice in choices)
    if schema.get("type") == "array":
        count = f"{schema['minItems']} " if schema.get("minItems", 0) > 1 else ""
        values = type_text(schema.get("items", {}))
        return f"list of {count}{values.replace('number', 'numbers').replace('table', 'tables')}"
    return TYPES["object" if "$ref" in schema else schema["type"]] + bounds(schema)


def bounds(schema: Mapping[str, Any]) -> str:
    """Where a number may lie; a bound that only says what 64 bits hold is left out."""
    limits = {key: schema[key] for key in BOUNDS if schema.get(key) is not None}
    parts = [f"{BOUNDS[key]} {number:.10g}" for key, number in limits.items() if number < 2**62]
    return f" {', '.join(parts)}" if parts else ""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n".replace("|  |", "| |") for line in lines)


def _cell(text: str) -> str:
    """A bar would end the cell, and what looks like a tag would not be shown, but for code."""
    parts = text.replace("|", "\\|").split("`")
    shown = (part if i % 2 else re.sub("<(?=[a-z/])", "&lt;", part) for i, part in enumerate(parts))
    return "`".join(shown)


def paragraphs(text: str | None) -> list[str]:
    """Each on one line."""
    return [" ".join(part.split()) for part in inspect.cleandoc(text or "").split("\n\n")]


def anchor(heading: str) -> str:
    """The anchor that links to a heading."""
    return re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-")
