"""Text files of ids and of captions, and CSV files of ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.config.regular_files import read_regular
from pipeline.datasets.formats.clip_list import Check, csv_lines, decoded, found_columns
from pipeline.errors import BadInput

MOST_BYTES = 4 << 30
COMMENT = "#"
VIDEO_ID = "video_id"
"""The column of a CSV file that holds ids."""


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines that hold anything, without the ends of lines. Raises BadInput
    where the file cannot be read, or holds none."""
    try:
        text = decoded(read_regular(path, MOST_BYTES))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} cannot be read: {error}") from error
    # Captions may hold letters that Python takes for ends of lines, too.
    lines = [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), start=1)]
    lines = [(number, line) for number, line in lines if line.strip()]
    if not lines:
        raise BadInput(f"{path} is empty")
    yield from lines


def read_ids(path: Path) -> list[str]:
    """The ids of a list: one a line, or the column video_id of a CSV file. Raises BadInput where
    one is there twice."""
    if path.suffix.lower() == ".csv":
        lines = [
            (number, cells[VIDEO_ID])
            for number, cells, _ in csv_lines(path, (VIDEO_ID,), needing([VIDEO_ID]))
        ]
    else:
        lines = [(number, line.strip()) for number, line in text_lines(path)]
    first: dict[str, int] = {}
    for number, video in lines:
        if video.startswith(COMMENT):
            continue
        if not video:
            raise BadInput(f"{path} line {number}: {VIDEO_ID} is empty")
        if first.setdefault(video, number) != number:
            raise BadInput(f"{path} line {number} repeats line {first[video]}: {video}")
    if not first:
        raise BadInput(f"{path} holds no ids")
    return list(first)


def needing(*groups: Sequence[str], hint: str = "") -> Check:
    """A check of the header of a CSV file: one column of each group is there, and none twice."""

    def check(where: str, columns: Sequence[str], _known: Sequence[str], separator: str) -> None:
        for names in groups:
            if not set(names) & set(columns):
                raise BadInput(
                    f"{where}: column {' or '.join(map(repr, names))} is missing; found: "
                    f"{found_columns(columns, separator)}",
                    hint,
                )
        twice = next((column for column in columns if columns.count(column) > 1), None)
        if twice is not None:
            raise BadInput(f"{where}: column '{twice}' is there {columns.count(twice)} times")

    return check
