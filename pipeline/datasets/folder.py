"""Your own labelled videos: one folder per label, or a CSV file.

    root/<label>/**/*.mp4               the folder is the label; the split is drawn, the same on
                                        every machine
    root/{train,val,test}/<label>/**/*  the first folder is the split
    root/labels.csv                     columns path, label and, if wanted, split, start_s, stop_s

A folder that holds two or more images of one size, and no video, is one video too, `image_fps`
images a second. Hidden files, thumbnails and folders of the system are passed over.
A clip's id is its path under the root, suffix and all, so that `a.mp4` and `a.mov` stay two clips.
"""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pydantic import Field

from pipeline.config import plugins
from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.formats.annotations import probe_all
from pipeline.datasets.formats.folders import find_media
from pipeline.errors import BadInput, unknown_name
from pipeline.records import Clip
from pipeline.video.probe import Probe

SPLITS = ("train", "val", "test")
COLUMNS = ("path", "label", "split", "start_s", "stop_s")


class Settings(plugins.Settings):
    """These settings say how labels and splits are read."""

    csv: str | None = None
    """Path of a CSV file, relative to the root; None: the folders are the labels."""
    val_fraction: float = Field(default=0.2, ge=0, lt=1)
    """Share of each label's videos that goes to `val`, where neither folders nor CSV file name the
    splits."""
    seed: plugins.Seed = 0
    """Draws the split."""
    image_fps: float = Field(default=25.0, gt=0, le=1000)
    """Frame rate of image folders."""


class Row(NamedTuple):
    """A clip to be; `split` is None where it is still to be drawn."""

    source: str
    label: str
    split: str | None = None
    start_s: float = 0.0
    stop_s: float | None = None

    @property
    def clip_id(self) -> str:
        if (self.start_s, self.stop_s) == (0.0, None):
            return self.source
        return (
            f"{self.source}@{self.start_s!r}-{'end' if self.stop_s is None else repr(self.stop_s)}"
        )


class Dataset(DatasetPlugin):
    """Clips that cover whole videos or, from a CSV file, stretches of them."""

    Settings = Settings

    def clips(self) -> Iterator[Clip]:
        """Sorted by path, or in the order of the CSV file. Raises BadInput where folders or CSV
        file are unclear."""
        rows = (
            list(read_csv(self.root, self.settings.csv))
            if self.settings.csv
            else self._from_folders()
        )
        facts = probe_all(
            self, list(dict.fromkeys(row.source for row in rows)), self.settings.image_fps
        )
        rows = [
            row for row in rows if row.source in facts and self._is_inside(row, facts[row.source])
        ]
        drawn = draw_splits(
            {row.source: row.label for row in rows}, self.settings.val_fraction, self.settings.seed
        )
        for row in rows:
            image_fps = self.settings.image_fps if (self.root / row.source).is_dir() else None
            split = row.split or drawn[row.source]
            yield Clip(
                row.clip_id,
                row.source,
                row.source,
                split,
                row.start_s,
                row.stop_s,
                row.label,
                image_fps=image_fps,
            )

    def _is_inside(self, row: Row, facts: Probe) -> bool:
        """Whether the row's stretch holds any of the video; if not, it is rejected under the id of
        its clip."""
        end_s = None if facts.duration_s is None else facts.start_s + facts.duration_s
        past_end = end_s is not None and row.start_s >= end_s
        if past_end or (row.stop_s is not None and row.stop_s <= facts.start_s):
            until = "" if end_s is None else f" to {end_s:.2f} s"
            self.rejected[row.clip_id] = (
                f"holds nothing of the video, which runs from {facts.start_s:.2f} s{until}"
            )
            return False
        return True

    def _from_folders(self) -> list[Row]:
        sources = find_media(self)
        top = {parts[0] for source in sources if len(parts := PurePosixPath(source).parts) > 1}
        splits = top & set(SPLITS)
        # A label may well be called "train": splits are meant when there are two of them, or
        # nothing else.
        has_splits = len(splits) > 1 or (bool(splits) and splits == top)
        if has_splits and splits != top:
            raise BadInput(
                f"{self.root} mixes split folders ({', '.join(sorted(splits))}) "
                f"and others ({', '.join(sorted(top - splits)[:5])})",
                "put every label folder inside train, val or test, or none of them",
            )
        rows = []
        for source in sources:
            folders = PurePosixPath(source).parts[:-1]
            if len(folders) > has_splits:
                rows.append(Row(source, folders[has_splits], folders[0] if has_splits else None))
            else:
                self.rejected[source] = "lies in no label folder"
        return rows


def draw_splits(label_of: Mapping[str, str], val_fraction: float, seed: int) -> dict[str, str]:
    """source -> `train` or `val`: of each label, the share `val_fraction` whose hashes come first.

    A label with two or more videos has at least one in each split. A new video moves at most its
    own label's border.
    """
    by_label: dict[str, list[str]] = defaultdict(list)
    for source, label in label_of.items():
        by_label[label].append(source)
    split = dict.fromkeys(label_of, "train")
    for sources in by_label.values():
        held_out = (
            min(max(round(len(sources) * val_fraction), 1), len(sources) - 1) if val_fraction else 0
        )
        split |= dict.fromkeys(sorted(sources, key=partial(_lot, seed))[:held_out], "val")
    return split


def _lot(seed: int, source: str) -> bytes:
    return hashlib.sha256(f"{seed} {source}".encode(errors="surrogateescape")).digest()


def read_csv(root: Path, name: str) -> Iterator[Row]:
    """The rows of a CSV file in its order. Raises BadInput with the line's number."""
    path = root / name
    if not path.is_file():
        raise BadInput(
            f"csv {path} does not exist", "the path is relative to the root of the data set"
        )
    first_line: dict[str, int] = {}
    split_of: dict[str, str | None] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            _check_columns(path, reader.fieldnames or [])
            for record in reader:
                where = f"{path} line {reader.line_num}"
                row = _row(root, record, where)
                if row.clip_id in first_line:
                    raise BadInput(f"{where} repeats line {first_line[row.clip_id]}: {row.clip_id}")
                if split_of.setdefault(row.source, row.split) != row.split:
                    raise BadInput(
                        f"{where}: {row.source} is in split '{split_of[row.source]}' further up, "
                        f"'{row.split}' here"
                    )
                first_line[row.clip_id] = reader.line_num
                yield row
    except (csv.Error, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not a CSV file in UTF-8: {error}") from error
    if not first_line:
        raise BadInput(f"{path} has no rows below its header")


def _check_columns(path: Path, columns: Iterable[str]) -> None:
    columns = list(columns)
    for column in columns:
        if column not in COLUMNS:
            raise unknown_name("column", column, COLUMNS, f"{path} line 1")
    for column in ("path", "label"):
        if column not in columns:
            raise BadInput(
                f"{path} line 1: column '{column}' is missing; found: "
                f"{', '.join(columns) or 'nothing'}"
            )


def _row(root: Path, record: Mapping[str | None, str | None], where: str) -> Row:
    """One checked line."""
    if None in record or None in record.values():
        raise BadInput(
            f"{where}: {'more' if None in record else 'fewer'} cells than the header has columns"
        )
    cells = {str(column): str(cell).strip() for column, cell in record.items()}
    for column in ("path", "label", "split"):
        if cells.get(column) == "":
            raise BadInput(f"{where}: {column} is empty")
    source = PurePosixPath(cells["path"])
    if source.is_absolute() or ".." in source.parts:
        raise BadInput(f"{where}: path must lie under {root}, found {cells['path']}")
    if cells.get("split") not in (None, *SPLITS):
        raise unknown_name("split", cells["split"], SPLITS, where)
    if not (root / source).exists():
        raise BadInput(f"{where}: {root / source} does not exist", f"paths are relative to {root}")
    start_s = _seconds(cells, "start_s", where)
    stop_s = _seconds(cells, "stop_s", where)
    if stop_s is not None and stop_s <= (start_s or 0.0):
        raise BadInput(
            f"{where}: wanted start_s < stop_s, found {cells.get('start_s') or 0} and "
            f"{cells['stop_s']}"
        )
    return Row(str(source), cells["label"], cells.get("split"), start_s or 0.0, stop_s)


def _seconds(cells: Mapping[str, str], column: str, where: str) -> float | None:
    text = cells.get(column, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise BadInput(f"{where}: {column} must be seconds, 0 or more, found '{text}'")
    return value
