"""Lists of videos and their captions in one file, which anybody may write:

    [{"video": "video7020.mp4", "caption": "a woman creates ..." or ["...", "..."]}, ...]    JSON
    {"video": ..., "caption": ...}                                               a line: JSON Lines
    video_id,sentence                                                            CSV with a header

A video is named by `video`, `video_id` or `path`, and described by `caption` or `sentence`.
`split`, `start_s`, `stop_s` and `label` may stand beside them; all else is passed over. The lists
of VindLU and UMT (`msrvtt_ret_train9k.json`, ...) are such JSON, those of JSFusion and of the
Perception Encoder such CSV.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config.json_files import json_value
from pipeline.datasets.captioned.described import caption
from pipeline.datasets.captioned.list_files import needing, text_lines
from pipeline.datasets.formats.annotations import DAMAGED, field, load_json
from pipeline.datasets.formats.clip_list import csv_lines, stretch
from pipeline.datasets.lists.entries import split_named
from pipeline.errors import BadInput

VIDEOS = ("video", "video_id", "path")
CAPTIONS = ("caption", "sentence")
"""Keys, or columns, that name a video, and that say what it shows."""
EXAMPLE = "the first line names the columns, for example: video,caption"
EXAMPLE_JSON = '[{"video": "a.mp4", "caption": "a dog runs"}, ...]'
INFINITE = float("inf")


class CaptionRow(NamedTuple):
    """One row of a file, or one object."""

    place: str
    """The file and the row's place in it, for errors."""
    video: str
    """Path or name, with a suffix or without."""
    captions: tuple[str, ...]
    split: str | None
    start_s: float
    stop_s: float | None
    label: str | None


def read_caption_rows(path: Path, separator: str | None = None) -> list[CaptionRow]:
    """The rows of a file in its order; what it is, its suffix says. `separator` stands between
    several captions in one cell of a CSV file; None: a cell is one caption. Raises BadInput that
    names the row."""
    read = _READERS.get(path.suffix.lower())
    if read is None:
        known = ", ".join(_READERS)
        raise BadInput(f"{path} is no list of captions by its name", f"wanted one of {known}")
    rows = list(read(path, separator))
    if not rows:
        raise BadInput(f"{path} has no rows below its header")
    return rows


def _from_json(path: Path, _: str | None) -> Iterator[CaptionRow]:
    try:
        records = load_json(path, list)
    except BadInput as error:
        raise BadInput(error.message, error.hint or f"wanted {EXAMPLE_JSON}") from error
    for number, record in enumerate(records, start=1):
        yield _from_record(record, f"{path} entry {number}")


def _from_json_lines(path: Path, _: str | None) -> Iterator[CaptionRow]:
    for number, line in text_lines(path):
        try:
            record = json_value(line)
        except ValueError as error:
            raise BadInput(f"{path} line {number} is not JSON: {error}", DAMAGED) from error
        yield _from_record(record, f"{path} line {number}")


def _from_csv(path: Path, separator: str | None) -> Iterator[CaptionRow]:
    known = (*VIDEOS, *CAPTIONS, "split", "start_s", "stop_s", "label")
    for number, cells, columns_by in csv_lines(
        path, known, needing(VIDEOS, CAPTIONS, hint=EXAMPLE)
    ):
        place = f"{path} line {number}"
        video = _first(cells, VIDEOS, place)
        text = caption(_first(cells, CAPTIONS, place), place)
        parts = text.split(separator) if separator else [text]
        yield _checked(
            CaptionRow(
                place,
                video,
                tuple(part.strip() for part in parts),
                split_named(cells.get("split") or None, place),
                *stretch(cells, columns_by, place),
                cells.get("label") or None,
            )
        )


_READERS: dict[str, Callable[[Path, str | None], Iterator[CaptionRow]]] = {
    ".json": _from_json,
    ".jsonl": _from_json_lines,
    ".csv": _from_csv,
    ".tsv": _from_csv,
}
SUFFIXES = frozenset(_READERS)


def _from_record(record: object, place: str) -> CaptionRow:
    if not isinstance(record, Mapping):
        raise BadInput(f"{place}: wanted an object, found {str(record)[:40]}")
    said = {str(key): value for key, value in record.items() if value is not None}
    video, captions = _first(said, VIDEOS, place), _first(said, CAPTIONS, place)
    start_s = field(said, "start_s", float, place) if "start_s" in said else 0.0
    stop_s = field(said, "stop_s", float, place) if "stop_s" in said else None
    if not (0 <= start_s < (INFINITE if stop_s is None else stop_s) and stop_s != INFINITE):
        raise BadInput(f"{place}: wanted 0 <= start_s < stop_s, found {start_s} and {stop_s}")
    return _checked(
        CaptionRow(
            place,
            video,
            tuple(
                caption(each, place)
                for each in (captions if isinstance(captions, list) else [captions])
            ),
            split_named(said.get("split"), place),
            start_s,
            stop_s,
            field(said, "label", str, place) if "label" in said else None,
        )
    )


def _first(record: Mapping[str, Any], keys: Sequence[str], place: str) -> Any:
    """The value of the first of these keys that is there. Raises BadInput."""
    key = next((key for key in keys if key in record), None)
    if key is None:
        there = ", ".join(record) or "none"
        raise BadInput(f"{place}: none of the keys {', '.join(keys)} is there; there are: {there}")
    return record[key]


def _checked(row: CaptionRow) -> CaptionRow:
    if not isinstance(row.video, str) or not row.video.strip():
        raise BadInput(
            f"{row.place}: the video must be a path or a name, found {str(row.video)[:40]!r}"
        )
    return row
