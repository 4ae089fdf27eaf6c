"""A clip as a line of manifest.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from types import NoneType
from typing import Any

from pipeline.errors import BadInput, unknown_name
from pipeline.records import Clip

TYPES: dict[str, type] = {
    "clip_id": str,
    "video_id": str,
    "source": str,
    "start_s": float,
    "stop_s": float,
    "split": str,
    "label": str,
    "reverse": bool,
    "speed": float,
    "image_fps": float,
}
"""Keys of a line, in their order."""
NULLABLE = ("stop_s", "label", "image_fps")
DEFAULTS: dict[str, Any] = {"reverse": False, "speed": 1.0, "image_fps": None}
"""Keys that a line leaves out where it would say just this."""
REQUIRED = TYPES.keys() - DEFAULTS.keys()
AT_ONCE = 10_000
"""Lines that are parsed together."""
REBUILD = "build it again with: stillframe manifest"


def to_line(clip: Clip) -> str:
    """One line of manifest.jsonl. ASCII, so that file names that are no UTF-8 survive."""
    record = {key: getattr(clip, key) for key in TYPES}
    kept = {
        key: value for key, value in record.items() if key not in DEFAULTS or value != DEFAULTS[key]
    }
    return json.dumps(kept, separators=(", ", ": ")) + "\n"


def from_lines(lines: Sequence[str], where: str) -> tuple[Clip, ...]:
    """All lines of manifest.jsonl, checked. Raises BadInput that names the line, counted from 1."""
    clips: list[Clip] = []
    for first in range(0, len(lines), AT_ONCE):
        some = lines[first : first + AT_ONCE]
        clips += _at_once(some) or [
            from_line(line, f"{where} line {number}") for number, line in enumerate(some, first + 1)
        ]
    return tuple(clips)


def _at_once(lines: Sequence[str]) -> list[Clip] | None:
    """The same in less time, as there may be very many; None where a line may be other than
    `to_line` writes it."""
    if not all(line.startswith("{") and line.endswith("}") for line in lines):
        return None
    try:
        records = json.loads("[" + ",\n".join(lines) + "]")
        # Values that are no objects or lists, as is seen to here, leave no room for an object that spans two lines.
        if len(records) != len(lines) or set(map(type, records)) != {dict}:
            return None
        if not all(REQUIRED <= set(keys) <= TYPES.keys() for keys in set(map(tuple, records))):
            return None
        for key, wanted in TYPES.items():
            values = [record[key] for record in records if key in record]
            if not set(map(type, values)) <= {wanted, NoneType if key in NULLABLE else wanted}:
                return None
            if wanted is float and not all(map(math.isfinite, filter(None, values))):
                return None
        return [Clip(**record) for record in records]
    except ValueError:
        return None


def from_line(line: str, where: str) -> Clip:
    """One line of manifest.jsonl, checked."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise BadInput(f"{where} is not JSON: {error}", REBUILD) from error
    if not isinstance(record, dict):
        raise BadInput(f"{where}: wanted a JSON object, found {line[:40]}", REBUILD)
    for key, value in record.items():
        if key not in TYPES:
            raise unknown_name("key", key, TYPES, where)
        if value is None and key in NULLABLE:
            continue
        wanted = TYPES[key]
        if wanted is float and type(value) is int:
            value = record[key] = float(value)
        if type(value) is not wanted or (isinstance(value, float) and not math.isfinite(value)):
            raise BadInput(
                f"{where}: {key} must be a {wanted.__name__}, found {json.dumps(value)}", REBUILD
            )
    if not record.keys() >= REQUIRED:
        missing = next(key for key in TYPES if key in REQUIRED - record.keys())
        raise BadInput(f"{where}: key '{missing}' is missing", REBUILD)
    try:
        return Clip(**record)
    except ValueError as error:
        raise BadInput(f"{where}: {error}", REBUILD) from error
