"""JSON files on disk as checked records: written whole, read with one sentence on what is wrong."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.config import plugins
from pipeline.config.plugins import Model, Settings
from pipeline.config.regular_files import read_regular
from pipeline.errors import BadInput

MOST_NESTED = 64
"""Objects and lists inside each other. Nothing that is written here comes near; parsers, checks and
printing of what is nested by the thousand run out of stack."""
CONTAINERS = frozenset({dict, list})
"""What the parser makes of objects and lists."""


def json_value(data: bytes | str) -> Any:
    """The value of a JSON text in UTF-8. Raises ValueError for whatever is wrong with it, nesting
    deeper than `MOST_NESTED` and whole numbers of more than 64 bits included."""
    text = data.decode("utf-8") if isinstance(data, bytes) else data
    try:
        value = json.loads(text, parse_int=_whole_number)
    except RecursionError:
        raise ValueError(f"it is nested more than {MOST_NESTED} deep") from None
    if text.count("[") + text.count("{") <= MOST_NESTED:
        return value
    level, depth = [value], 1
    while level := [
        inner
        for outer in level
        for inner in (outer.values() if type(outer) is dict else outer)
        if type(inner) in CONTAINERS
    ]:
        depth += 1
        if depth > MOST_NESTED:
            raise ValueError(f"it is nested more than {MOST_NESTED} deep")
    return value


def _whole_number(digits: str) -> int:
    number = int(digits)
    if not -(2**63) <= number < 2**64:  # no array holds it, and not every float
        raise ValueError(f"{digits[:24]}... is a whole number of more than 64 bits")
    return number


CHECKSUM, NO_CHECKSUM = "checksum", "0" * 64
"""The key of a file's own checksum, and what stands there while it is computed."""
OTHER_CONTENT = "its content differs from its checksum"


def to_json(record: Settings) -> bytes:
    """A record as UTF-8 JSON of one key a line.

    Python holds a byte of a file name that is no UTF-8 as a lone surrogate. It is written as JSON
    escapes it (\\udce9), which `parse_json` reads back; pydantic's own writer would put other
    letters in its place.
    """
    text = json.dumps(record.model_dump(), indent=1, ensure_ascii=False)
    return (text + "\n").encode("utf-8", errors="backslashreplace")


def sealed_json(record: Settings) -> bytes:
    """A record as `to_json` writes it, with its own checksum in its field `checksum`, which must be
    the last one: the SHA-256 of these bytes as they are with 64 zeros in its place."""
    return sealed(to_json(record.model_copy(update={CHECKSUM: NO_CHECKSUM})))


def sealed(data: bytes) -> bytes:
    """JSON whose last 64 zeros in a row have become the SHA-256 of it."""
    begin, _, end = data.rpartition(NO_CHECKSUM.encode())
    return begin + hashlib.sha256(data).hexdigest().encode() + end


def _is_as_sealed(data: bytes, checksum: object) -> bool:
    begin, found, end = data.rpartition(str(checksum).encode(errors="replace"))
    unsealed = begin + NO_CHECKSUM.encode() + end
    return bool(found) and hashlib.sha256(unsealed).hexdigest() == checksum


def read_json(model: type[Model], path: Path, hint: str, versions: range | None = None) -> Model:
    """A JSON file as a checked `model`, see `parse_json`."""
    try:
        data = read_regular(path)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}", hint) from error
    return parse_json(model, data, str(path), hint, versions)


def parse_json(
    model: type[Model], data: bytes, where: str, hint: str, versions: range | None = None
) -> Model:
    """JSON as a checked `model`, its format_version among `versions` if these are given, and as it
    was written if it has a checksum of its own. Raises BadInput with `hint`."""
    try:
        table = json_value(data)
        if not isinstance(table, dict):
            raise ValueError(f"wanted an object, found {str(table)[:40]}")
    except ValueError as error:
        raise BadInput(f"{where} is damaged: {error}", hint) from error
    version = table.get("format_version")
    if versions is not None and version is not None and version not in versions:
        older = isinstance(version, int) and version < versions[0]
        message = (
            f"{where} has format {version}, this version of stillframe reads format {versions[-1]}"
        )
        raise BadInput(message, hint if older else "upgrade stillframe")
    if table.get(CHECKSUM) is not None and not _is_as_sealed(data, table[CHECKSUM]):
        raise BadInput(f"{where} is damaged: {OTHER_CONTENT}", hint)
    try:
        return plugins.validate(model, table, f"{where} is damaged")
    except BadInput as error:
        raise BadInput(error.message, hint) from error
