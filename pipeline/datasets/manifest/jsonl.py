"""A clip as a line of manifest.jsonl."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from pydantic import ConfigDict, ValidationError

from pipeline.config.json_files import json_value
from pipeline.config.plugins import Settings
from pipeline.errors import BadInput, unknown_name
from pipeline.records import Clip, Clock

REBUILD = "build it again with: stillframe manifest"
TYPE_NAMES = {"string_type": "str", "bool_type": "bool"}
"""Pydantic's name of an error -> the type that was wanted; all others are about a float."""


Wanted = Callable[[str], bool]
"""Whether a video of this id is wanted."""


class ClipLine(Settings):
    """The keys of a line, in their order, as `Clip` has them. A key with a default is left out of a
    line that would say just this."""

    model_config = ConfigDict(strict=True)

    clip_id: str
    video_id: str
    source: str
    start_s: float
    stop_s: float | None
    split: str
    label: str | None
    reverse: bool = False
    speed: float = 1.0
    image_fps: float | None = None
    group: str | None = None


NEEDED = tuple(key for key, field in ClipLine.model_fields.items() if field.is_required())
TEXT = r'[^"\\]*(?:\\.[^"\\]*)*'
"""A text as JSON has it between its quotes; this way of saying it is the quick one to match."""
VIDEO_ID = re.compile(rf'\{{(?:"clip_id": "{TEXT}", )?"video_id": "({TEXT})"')
"""A line up to the id of its video."""
DEFAULTS = {
    key: field.default for key, field in ClipLine.model_fields.items() if not field.is_required()
}


def to_line(clip: Clip) -> str:
    """One line of manifest.jsonl. It is ASCII, so that file names that are no UTF-8 survive."""
    values = {key: getattr(clip, key) for key in NEEDED}
    for key, default in DEFAULTS.items():
        if (value := getattr(clip, key)) != default:
            values[key] = value
    return json.dumps(values) + "\n"


def is_of(line: str, wanted: Wanted) -> bool:
    """Whether a line of manifest.jsonl or videos.jsonl is of a `wanted` video, by its id. Nothing
    else of it is parsed; one that does not begin as it is written here is, for all that is known,
    and whoever parses it says what is wrong."""
    found = VIDEO_ID.match(line)
    if found is None:
        return True
    return wanted(json.loads(f'"{found[1]}"') if "\\" in found[1] else found[1])


def from_lines(
    lines: Sequence[str],
    where: str,
    clock: Clock = "first_frame",
    wanted: Wanted | None = None,
) -> tuple[Clip, ...]:
    """The clips of all lines of manifest.jsonl, or of those of `wanted` videos, whose seconds count
    by `clock`. Raises BadInput that names the line, counted from 1."""
    clips = []
    for number, line in enumerate(lines, 1):
        if wanted is not None and not is_of(line, wanted):
            continue
        try:
            clips.append(Clip(**vars(ClipLine.model_validate_json(line)), clock=clock))
        except ValueError:
            clips.append(_from_line(line, f"{where} line {number}", clock))
    return tuple(clips)


def _from_line(line: str, where: str, clock: Clock) -> Clip:
    """The clip of a line through Python's own JSON parser, which takes the lone surrogates that
    stand for bytes of file names that are no UTF-8. Raises BadInput in this project's words."""
    try:
        table = json_value(line)
    except ValueError as error:
        raise BadInput(f"{where} is not JSON: {error}", REBUILD) from error
    if not isinstance(table, dict):
        raise BadInput(f"{where}: wanted a JSON object, found {line[:40]}", REBUILD)
    try:
        return Clip(**vars(ClipLine.model_validate(table)), clock=clock)
    except ValidationError as error:
        raise _explain(error, where) from error
    except ValueError as error:  # of Clip itself
        raise BadInput(f"{where}: {error}", REBUILD) from error


def _explain(error: ValidationError, where: str) -> BadInput:
    """One of a line's problems: a key that is misspelt before the one that is missing for it."""
    rank = {"extra_forbidden": 0, "missing": 2}
    problem = min(error.errors(include_url=False), key=lambda item: rank.get(item["type"], 1))
    key = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        return unknown_name("key", key, ClipLine.model_fields, where)
    if problem["type"] == "missing":
        return BadInput(f"{where}: key '{key}' is missing", REBUILD)
    type_name = TYPE_NAMES.get(problem["type"], "float")
    value = json.dumps(problem["input"])
    return BadInput(f"{where}: {key} must be a {type_name}, found {value}", REBUILD)
