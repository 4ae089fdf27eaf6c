"""Lists with named columns: CSV files with a header, and JSON.

    label,youtube_id,time_start,time_end,split    Kinetics; the test list has no label
    clip_path,label ...                           any table of paths and classes
    {id: {"annotations": {"label", "segment"}, "subset"}}        Kinetics as JSON
    {"database": {id: {"subset", "annotations": [{"label", "segment"}]}}}   ActivityNet
    [{"vid_name", "label", "start_frame", "end_frame"}]          Diving48
    [{"id", "template" or "label"}]                              Something-Something, Jester

A file that was cut to its stretch is called <youtube_id>_<start>_<end>, in whole seconds of six
digits; where there is a file of the id alone, it is the whole video, and the stretch is cut from
it. After tools/data/parse_file_list.py of github.com/open-mmlab/mmaction2 and crawler/Kinetics of
github.com/activitynet/ActivityNet.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.datasets.lists.entries import Entry, split_named
from pipeline.errors import BadInput

PATHS = (
    *("path", "clip_path", "video_path", "file_path", "filepath", "filename", "file_name", "file"),
    *("video", "vid_name", "video_name", "clip_name", "video_id", "vid", "id", "name"),
)
LABELS = (
    "label",
    "template",
    "class",
    "class_name",
    "label_name",
    "action",
    "category",
    "activity",
)
SUBSETS = ("split", "subset", "set")
MANY = ("tags", "labels", "classes", "actions")
"""Columns that hold several classes of one clip."""
MANY_LABELS = "stillframe reads one class for each clip: write a list with one, path,label"


def is_table(columns: Sequence[str]) -> bool:
    """Whether a first line names columns of a list of clips."""
    names = [column.lower() for column in columns]
    has_class = set(names) & {*LABELS, *MANY, *SUBSETS}
    return "youtube_id" in names or (bool(set(names) & set(PATHS)) and bool(has_class))


def read_csv_list(path: Path, lines: Sequence[tuple[int, str]], separator: str) -> list[Entry]:
    """The clips of a CSV file with a header. Raises BadInput, naming the line."""
    rows = [(number, _cells(text, separator, f"{path} line {number}")) for number, text in lines]
    columns = [cell.lower() for cell in rows[0][1]]
    entries = []
    for number, cells in rows[1:]:
        where = f"{path} line {number}"
        if len(cells) > len(columns):
            raise BadInput(f"{where} has {len(cells)} cells, the header has {len(columns)} columns")
        record = dict(zip(columns, cells, strict=False))
        entries.append(_from_record(number, record, where))
    return entries


def _cells(text: str, separator: str, where: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([text], delimiter=separator), [])]
    except csv.Error as error:
        raise BadInput(f"{where} is no line of a CSV file: {error}") from error


def read_json_list(path: Path, content: Any) -> list[Entry]:
    """The clips of a JSON file. Raises BadInput, naming the entry, where it is none of the lists
    that are known."""
    if isinstance(content, list) and content and all(isinstance(item, dict) for item in content):
        return [
            _from_record(number, item, f"{path} entry {number}")
            for number, item in enumerate(content, start=1)
        ]
    if isinstance(content, dict):
        database = content.get("database", content)
        if isinstance(database, dict) and database and all(map(_is_annotated, database.values())):
            return list(_from_database(path, database))
    raise BadInput(
        f"{path} is no list of clips that is known",
        "known are JSON lists of Kinetics, ActivityNet, Diving48, Something-Something and Jester",
    )


def is_json_list(content: Any) -> bool:
    """Whether a JSON file lists clips, and not, say, names of classes."""
    if isinstance(content, list):
        return any(isinstance(item, dict) for item in content)
    return isinstance(content, dict) and (
        "database" in content or any(isinstance(value, dict) for value in content.values())
    )


def _is_annotated(value: Any) -> bool:
    return isinstance(value, dict) and "annotations" in value


def _from_record(line: int, record: Mapping[str, Any], where: str) -> Entry:
    """One row of a table, or one object of a list."""
    many = next((name for name in MANY if record.get(name)), None)
    if many is not None:
        raise BadInput(f"{where}: column '{many}' holds several classes of one clip", MANY_LABELS)
    label, number = _class(next((record[key] for key in LABELS if key in record), None), where)
    split = split_named(next((record[key] for key in SUBSETS if record.get(key)), None), where)
    entry = Entry(line, "", label, number, split, group=record.get("group") or None)
    if "youtube_id" in record:
        start_s, stop_s = (_seconds(record, key, where) for key in ("time_start", "time_end"))
        return _stretch(entry, str(record["youtube_id"]), start_s, stop_s)
    path = next((record[key] for key in PATHS if record.get(key) not in (None, "")), None)
    if path is None:
        raise BadInput(f"{where} names no file; it has: {', '.join(map(str, record))}")
    entry = entry._replace(path=str(path))
    if "start_frame" in record and "end_frame" in record:
        frames = _frames(record["start_frame"], record["end_frame"], where)
        entry = entry._replace(stretch_frames=frames)
    return entry


def _from_database(path: Path, database: Mapping[str, Any]) -> Iterator[Entry]:
    """ActivityNet, whose videos have several stretches, and Kinetics, which has one of each."""
    for line, (video, record) in enumerate(database.items(), start=1):
        where = f"{path} {video}"
        split = split_named(record.get("subset"), where)
        annotations = record["annotations"]
        is_kinetics = isinstance(annotations, dict)
        for stretch in [annotations] if is_kinetics else annotations:
            label, number = _class(stretch.get("label"), where)
            segment = stretch.get("segment")
            if not (isinstance(segment, list) and len(segment) == 2):
                raise BadInput(f"{where}: wanted a segment of two times, found {str(segment)[:40]}")
            entry = Entry(line, "", label, number, split)
            start_s, stop_s = (_seconds({"segment": time}, "segment", where) for time in segment)
            yield _stretch(entry, video, start_s, stop_s, is_cut=is_kinetics)
        if not annotations:  # a test set
            yield Entry(line, video, split=split)


def _stretch(entry: Entry, video: str, start_s: float, stop_s: float, is_cut: bool = True) -> Entry:
    """The entry with its place in a video, of which there may be one file for each stretch. The
    files of ActivityNet are called v_<id>."""
    cut = f"{video}_{int(start_s):06d}_{int(stop_s):06d}" if is_cut else None
    return entry._replace(
        path=video, also=f"v_{video}", start_s=start_s, stop_s=stop_s, cut=cut, group=video
    )


def _class(value: Any, where: str) -> tuple[str | None, int | None]:
    """Name or number of a class; (None, None) where none is told."""
    if value is None or value == "" or value == -1:
        return None, None
    if isinstance(value, str):
        text = value.strip().replace("[", "").replace("]", "")
        return (None, int(text)) if text.isdecimal() else (text, None)
    if isinstance(value, int) and not isinstance(value, bool):
        return None, value
    if isinstance(value, list):
        raise BadInput(f"{where}: its class is a list of several", MANY_LABELS)
    raise BadInput(f"{where}: wanted the name or number of a class, found {str(value)[:40]}")


def _seconds(record: Mapping[str, Any], key: str, where: str) -> float:
    try:
        value = float(record[key])
    except (KeyError, TypeError, ValueError):
        value = -1.0
    if not 0 <= value < float("inf"):
        raise BadInput(
            f"{where}: {key} must be seconds, 0 or more, found '{str(record.get(key))[:40]}'"
        )
    return value


def _frames(start: Any, end: Any, where: str) -> tuple[int, int]:
    if not (type(start) is int and type(end) is int and 0 <= start < end):
        raise BadInput(f"{where}: wanted start_frame below end_frame, found {start} and {end}")
    return start, end
