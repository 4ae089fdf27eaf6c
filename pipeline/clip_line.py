"""A clip as a line of manifest.jsonl."""

from __future__ import annotations

import json
import math
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
REBUILD = "build it again with: stillframe manifest"


def to_line(clip: Clip) -> str:
    """One line of manifest.jsonl. ASCII, so that file names that are no UTF-8 survive."""
    record = {key: getattr(clip, key) for key in TYPES}
    kept = {key: value for key, value in record.items() if key not in DEFAULTS or value != DEFAULTS[key]}
    return json.dumps(kept, separators=(", ", ": ")) + "\n"


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
            raise BadInput(f"{where}: {key} must be a {wanted.__name__}, found {json.dumps(value)}", REBUILD)
    if not record.keys() >= REQUIRED:
        missing = next(key for key in TYPES if key in REQUIRED - record.keys())
        raise BadInput(f"{where}: key '{missing}' is missing", REBUILD)
    try:
        return Clip(**record)
    except ValueError as error:
        raise BadInput(f"{where}: {error}", REBUILD) from error
