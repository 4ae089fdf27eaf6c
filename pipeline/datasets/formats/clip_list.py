"""A CSV file that lists clips, one a line: columns path, label and, if wanted, split, start_s,
stop_s and group.

It is read as spreadsheets of any country write it: split by commas, semicolons, tabs or bars; in
UTF-8, with or without a byte order mark, or in UTF-16; seconds with a decimal point or comma; with
empty lines and empty columns at the end.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pipeline.config.regular_files import read_regular
from pipeline.datasets.contract import DatasetPlugin
from pipeline.errors import BadInput, unknown_name
from pipeline.video.probe import Probe

SPLITS = ("train", "val", "test")
COLUMNS = ("path", "label", "split", "start_s", "stop_s", "group")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
PUBLISHED = "lists of published data sets are read by --set lists=FILE"
AS_UTF8 = "save it as 'CSV UTF-8'"
THOUSANDS = re.compile(r"\d{1,3}(,\d{3})+")
"""A number that is one thousand or one and a bit, depending on the country."""


class Row(NamedTuple):
    """A clip to be; `split` is None where it is still to be drawn."""

    source: str
    label: str | None
    """None for clips without labels, as for pre-training."""
    split: str | None = None
    start_s: float = 0.0
    stop_s: float | None = None
    group: str | None = None
    """The recording that the clip was cut from, where that is known."""
    images: int | None = None
    """Images that the folder of frames should have."""
    stretch_frames: tuple[int, int] | None = None
    """Stretch in frames of the video, [first, end); seconds are known once it is looked at."""

    @property
    def clip_id(self) -> str:
        if (self.start_s, self.stop_s) == (0.0, None):
            return self.source
        return (
            f"{self.source}@{self.start_s!r}-{'end' if self.stop_s is None else repr(self.stop_s)}"
        )


def read_csv(dataset: DatasetPlugin, name: str, group: str | None = None) -> Iterator[Row]:
    """The rows of a CSV file in its order. Groups are those of the column called `group` or, where
    that is None, "group"; without such a column there are none.

    `name`, and the paths in it, are relative to the root or to the working folder, the paths also
    to the folder of the file: where they are found, they are used. What is found in two of these is
    taken from the first, and a note says so. Raises BadInput with the line's number.
    """
    path = _find_csv(dataset, name)
    sources = _Sources(dataset.root, path.parent)
    first_line: dict[str, int] = {}
    split_of: dict[str, str | None] = {}
    column = group or "group"
    for line, cells, separator in csv_lines(path, (*COLUMNS, column), _check_columns):
        where = f"{path} line {line}"
        row = _row(sources, cells, separator, where)._replace(group=cells.get(column) or None)
        if row.clip_id in first_line:
            raise BadInput(f"{where} repeats line {first_line[row.clip_id]}: {row.clip_id}")
        if split_of.setdefault(row.source, row.split) != row.split:
            raise BadInput(
                f"{where}: {row.source} is in split '{split_of[row.source]}' further up, "
                f"'{row.split}' here"
            )
        first_line[row.clip_id] = line
        yield row
    if not first_line:
        raise BadInput(f"{path} has no rows below its header")
    if sources.doubles:
        used, other = next(iter(sources.doubles.items()))
        dataset.notes[str(path)] = (
            f"{len(sources.doubles)} of its paths lead to two files; {used} is used, not {other}"
        )


def _find_csv(dataset: DatasetPlugin, name: str) -> Path:
    """The CSV file called `name`, in the root or in the working folder."""
    candidates = [dataset.root / name, Path(name)]
    found = [path for path in candidates if path.is_file()]
    if not found:
        tried = " and ".join(dict.fromkeys(str(path.absolute()) for path in candidates))
        raise BadInput(f"csv {name} does not exist", f"looked for {tried}")
    if len(found) > 1 and not found[0].samefile(found[1]):
        dataset.notes[name] = f"is there twice: {found[0]} is read, not {found[1].absolute()}"
    return found[0]


Check = Callable[[str, Sequence[str], Sequence[str], str], None]
"""Called with (place of the header, its columns, those that are known, what splits them)."""


def csv_lines(
    path: Path, known: Sequence[str], check: Check
) -> Iterator[tuple[int, dict[str, str], str]]:
    """(number, column -> cell, separator) of every line below the header that holds anything.

    Raises BadInput where the file is no CSV file, and what `check` raises.
    """
    try:
        text = decoded(read_regular(path))
        first = text.splitlines()[0] if text else ""
        declared = re.fullmatch(r"sep=([,;\t|])", first)  # a line for Excel
        header = text.splitlines()[1:2] if declared else [first]
        separator = declared[1] if declared else _separator(first, known)
        columns = _cells(next(csv.reader(header, delimiter=separator), []))
        check(f"{path} line {2 if declared else 1}", columns, known, separator)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        for record in reader:
            cells = _cells(record)
            if not any(cells) or reader.line_num <= (2 if declared else 1):
                continue
            cells += [""] * (min(len(record), len(columns)) - len(cells))
            if len(cells) != len(columns):
                amount = "more" if len(cells) > len(columns) else "fewer"
                raise BadInput(
                    f"{path} line {reader.line_num}: {amount} cells than the header has columns",
                    f"a cell that holds {SEPARATORS[separator]} stands in quotation marks"
                    if amount == "more"
                    else "",
                )
            yield reader.line_num, dict(zip(columns, cells, strict=True)), separator
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not a CSV file in UTF-8: {error}", AS_UTF8) from error


def decoded(data: bytes) -> str:
    """The text of a file. Bytes that are no UTF-8 become lone surrogates, as in file names."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    return data.decode("utf-8-sig", errors="surrogateescape")


def _separator(header: str, known: Sequence[str]) -> str:
    """What splits a header into the most columns that are known, or else the most at all."""

    def columns(separator: str) -> tuple[int, int]:
        cells = next(csv.reader([header], delimiter=separator), [])
        return len({cell.strip() for cell in cells} & set(known)), len(cells)

    return max(SEPARATORS, key=columns)


def _cells(record: Sequence[str]) -> list[str]:
    """Cells without blanks around them and without the empty ones at the end."""
    cells = [cell.strip() for cell in record]
    while cells and not cells[-1]:
        cells.pop()
    return cells


def found_columns(columns: Sequence[str], separator: str) -> str:
    """The columns of a header, and what splits them, as errors say it."""
    split = f" (split by {SEPARATORS[separator]})" if len(columns) > 1 else " (in one piece)"
    return f"{', '.join(columns)}{split}" if columns else "nothing"


def _check_columns(
    where: str, columns: Sequence[str], known: Sequence[str], separator: str
) -> None:
    found = found_columns(columns, separator)
    if not {"path", "label"} & set(columns):
        raise BadInput(
            f"{where}: columns 'path' and 'label' are missing; found: {found}",
            f"the first line names the columns, for example: path,label; {PUBLISHED}",
        )
    for column in columns:
        if column not in known:
            error = unknown_name("column", column, dict.fromkeys(known), where)
            raise BadInput(error.message, f"{error.hint} {PUBLISHED}".strip())
        if columns.count(column) > 1:
            raise BadInput(f"{where}: column '{column}' is there {columns.count(column)} times")
    for column in ("path", "label"):
        if column not in columns:
            raise BadInput(f"{where}: column '{column}' is missing; found: {found}")


def _row(sources: _Sources, cells: Mapping[str, str], separator: str, where: str) -> Row:
    """One checked line."""
    for column in ("path", "label", "split"):
        if cells.get(column) == "":
            raise BadInput(f"{where}: {column} is empty")
    if re.search(r"[\udc80-\udcff]", cells["label"]):
        raise BadInput(f"{where}: label is not UTF-8, found {cells['label']!a}", AS_UTF8)
    if cells.get("split") not in (None, *SPLITS):
        raise unknown_name("split", cells["split"], SPLITS, where)
    source = sources.find(cells["path"], where)
    start_s, stop_s = stretch(cells, separator, where)
    return Row(source, cells["label"], cells.get("split"), start_s, stop_s)


def stretch(cells: Mapping[str, str], separator: str, where: str) -> tuple[float, float | None]:
    """Start and end of the columns start_s and stop_s; the whole video where they are missing or
    empty. Raises BadInput."""
    start_s = _seconds(cells, "start_s", separator, where)
    stop_s = _seconds(cells, "stop_s", separator, where)
    if stop_s is not None and stop_s <= (start_s or 0.0):
        raise BadInput(
            f"{where}: wanted start_s < stop_s, found {cells.get('start_s') or 0} and "
            f"{cells['stop_s']}"
        )
    return start_s or 0.0, stop_s


def outside(start_s: float, facts: Probe) -> str | None:
    """Why a stretch that begins at `start_s` holds nothing of a video; None where it does."""
    length_s = facts.duration_s
    if length_s is None or start_s < length_s:
        return None
    file_s = f"{facts.start_s:.2f} s to {facts.start_s + length_s:.2f} s"
    return (
        f"holds nothing of the video: it starts {start_s:.2f} s after the first frame, and the "
        f"video is {length_s:.2f} s long (from {file_s} on the clock of the file)"
    )


def _seconds(cells: Mapping[str, str], column: str, separator: str, where: str) -> float | None:
    text = cells.get(column, "")
    if not text:
        return None
    is_unclear = separator == "," and THOUSANDS.fullmatch(text)
    try:
        value = -1.0 if is_unclear else float(text.replace(",", "."))
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise BadInput(f"{where}: {column} must be seconds, 0 or more, found '{text}'")
    return value


class _Sources:
    """Finds the files that the paths of a CSV file name, as sources under the root."""

    def __init__(self, root: Path, csv_folder: Path) -> None:
        self.root = Path(os.path.normpath(root.absolute()))
        self.roots = (self.root, self.root.resolve())
        folders = (self.root, Path(os.path.normpath(csv_folder.absolute())), Path.cwd())
        self.folders = list(dict.fromkeys(folders))
        self.doubles: dict[str, str] = {}
        """Path that is used -> another file of that name, in a folder further down the list."""
        self._names = cache(_names_by_nfc)

    def find(self, text: str, where: str) -> str:
        """The source that a path names. Raises BadInput if there is none."""
        candidates = [Path(os.path.normpath(folder / text)) for folder in self.folders]
        if "\\" in text:  # written by Windows
            slashes = text.replace("\\", "/")
            candidates += [Path(os.path.normpath(folder / slashes)) for folder in self.folders]
        inside = [
            self.root / path.relative_to(root)
            for path in dict.fromkeys(candidates)
            for root in dict.fromkeys(self.roots)
            if path.is_relative_to(root)
        ]
        found = [path for path in map(self._on_disk, inside) if path is not None]
        if not found and (not inside or any(map(self._on_disk, candidates))):
            raise BadInput(
                f"{where}: path must lie under {self.root}, found {text}",
                "give the command the folder that holds all videos",
            )
        if not found:
            tried = ", ".join(map(str, self.folders))
            not_utf8 = f"; or the file is not UTF-8: {AS_UTF8}" if not text.isprintable() else ""
            raise BadInput(
                f"{where}: {inside[0]} does not exist",
                f"paths are relative to one of {tried}{not_utf8}",
            )
        other = next((path for path in found[1:] if not path.samefile(found[0])), None)
        if other is not None:
            self.doubles[str(found[0])] = str(other)
        return found[0].relative_to(self.root).as_posix()

    def _on_disk(self, path: Path) -> Path | None:
        """The path as the disk has it: Unicode writes é as one letter or as two, and people, macOS
        and Linux differ in which. None if there is no such file or folder."""
        if path.exists():
            return path
        parent = None if path.parent == path else self._on_disk(path.parent)
        if parent is None:
            return None
        name = self._names(parent).get(unicodedata.normalize("NFC", path.name))
        return None if name is None else parent / name


def _names_by_nfc(folder: Path) -> dict[str, str]:
    """Composed form -> name of all that lies in a folder; empty if it cannot be listed."""
    try:
        names = sorted((path.name for path in folder.iterdir()), reverse=True)
    except OSError:
        return {}
    return {unicodedata.normalize("NFC", name): name for name in names}
