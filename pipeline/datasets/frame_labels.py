"""What happens when in videos of your own, or of 50Salads, Breakfast and GTEA as their community
shares them: a class for every frame, or intervals.

    root/groundTruth/NAME.txt           the class of every frame of video NAME, one a line
    root/mapping.txt                    if there: `0 class`, one a line, in the order of the classes
    root/splits/train.split1.bundle     if there: `NAME.txt`, one a line; test and val likewise
    root/**/NAME.mp4                    the videos, in any folder

or, instead of groundTruth:

    a CSV file                          columns video, start_s, stop_s, label, and if wanted split;
                                        intervals of a video may overlap

The official division has no `val`: where there is no bundle of that name, that of `test` is `val`,
on which these data sets are compared. A video that is not there is a clip all the same, since its
features can be imported: its frames are then `fps` a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from pydantic import Field

from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.formats.annotations import few, probe_all, videos_by_name
from pipeline.datasets.formats.clip_list import SPLITS, csv_lines, found_columns, stretch
from pipeline.datasets.formats.folders import list_files
from pipeline.datasets.formats.splits import SplitSettings, find_list, read_lines, split_dataset
from pipeline.errors import BadInput, count_text, unknown_name
from pipeline.records import Clip
from pipeline.video.probe import MEDIA_SUFFIXES

TRUTH, MAPPING, BUNDLES = "groundTruth", "mapping.txt", "splits"
COLUMNS = ("video", "start_s", "stop_s", "label", "split")
DRAWN = 0.2
"""Share of the videos that is drawn for `val` where nothing says which are."""


class Settings(SplitSettings):
    """These settings say where the labels are."""

    csv: str | None = None
    """CSV file of intervals, relative to the root or to the working folder; None: the files of
    groundTruth."""
    fps: float | None = Field(default=None, gt=0, le=1000)
    """Lines of a file of groundTruth in a second of its video. None: as many as the video has
    frames, as in the official files; it must be given where videos are not there."""
    bundle: int = Field(default=1, ge=1)
    """Which of the official divisions is read from the folder splits."""
    background: str = "background"
    """With csv: the class of the frames that no interval covers; empty: they have none."""


class Labelled(NamedTuple):
    """A video, and what happens when."""

    name: str
    source: str
    split: str | None
    segments: list[tuple[float, float, str]]
    """Start and stop in frames, or, of intervals, in seconds; class."""
    stop: float | None
    """Where the truth ends, in the same unit; None: with the video."""
    where: str


class Dataset(DatasetPlugin):
    """One clip per video, named as its file of labels."""

    Settings = Settings

    def clips(self) -> Iterator[Clip]:
        """By name, or in the order of the CSV file. Raises BadInput where labels are damaged, no
        list or setting says what they need, or two videos have one name."""
        files = list_files(self)
        media = videos_by_name(self.root, files, MEDIA_SUFFIXES)
        by_interval = self.settings.csv is not None
        labelled = list(self._intervals(media) if by_interval else self._lines(files, media))
        there = [each.source for each in labelled if each.source in set(media.values())]
        readable = probe_all(self, there)
        missing = [each.name for each in labelled if each.source not in there]
        if missing:
            self.note(
                TRUTH if not by_interval else str(self.settings.csv),
                f"{len(missing)} of {count_text(len(labelled), 'video')} are not there, and can "
                f"only be used with imported features: {few(missing)}",
            )
        self._segments: dict[str, tuple[np.ndarray, list[str]]] = {}
        clips = []
        for each in labelled:
            if each.source in there and each.source not in readable:
                continue  # rejected
            facts = readable.get(each.source)
            rate = 1.0 if by_interval else self.settings.fps or (facts and facts.fps)
            if not rate:
                raise BadInput(
                    f"{each.where}: nothing says how many of its lines are a second: video "
                    f"{each.name} is not there, or its header has no rate",
                    "give the frames per second of the labels, for example: --set fps=15",
                )
            length_s = facts.duration_s if facts else None
            stop_s = each.stop / rate if each.stop is not None else None
            segments_s = np.array([part[:2] for part in each.segments], np.float64).reshape(-1, 2)
            names = [part[2] for part in each.segments]
            segments_s /= rate
            if by_interval and self.settings.background:
                gaps = uncovered(segments_s, stop_s or length_s or np.inf)
                segments_s = np.concatenate([segments_s, gaps])
                names += [self.settings.background] * len(gaps)
            self._segments[each.name] = segments_s, names
            clips.append(
                Clip(each.name, each.name, each.source, each.split or "train", 0.0, stop_s)
            )
        self.classes = self._names(clips)
        stated = any(each.split is not None for each in labelled)
        yield from split_dataset(self, clips, None if stated else DRAWN)

    def targets(self, clip: Clip) -> dict[str, np.ndarray]:
        """The segments of equal lines, or the intervals and what they leave uncovered."""
        segments_s, names = self._segments[clip.clip_id]
        number = {name: place for place, name in enumerate(self.classes)}
        classes = np.array([number[name] for name in names], np.int64)
        return {"segments_s": segments_s, "segment_class": classes}

    def _names(self, clips: Sequence[Clip]) -> tuple[str, ...]:
        """The classes in the order of mapping.txt, or by alphabet. Raises BadInput where a label is
        none of them."""
        used = {name for clip in clips for name in self._segments[clip.clip_id][1]}
        path = self.root / MAPPING
        if not path.is_file():
            return tuple(sorted(used))
        numbered: dict[int, str] = {}
        for line in read_lines(path):
            match = re.fullmatch(r"(\d+)\s+(.+)", line)
            if match is None or int(match[1]) in numbered or match[2] in numbered.values():
                raise BadInput(
                    f"{path}: wanted one class a line, as '0 class', found '{line[:40]}'"
                )
            numbered[int(match[1])] = match[2].strip()
        classes = tuple(numbered[number] for number in sorted(numbered))
        if self.settings.csv is not None and self.settings.background in used - set(classes):
            classes = (*classes, self.settings.background)
        for clip in clips:
            for name in self._segments[clip.clip_id][1]:
                if name not in classes:
                    raise unknown_name("class", name, classes, f"{path}: clip {clip.clip_id}")
        return classes

    # A class for every frame

    def _lines(self, files: Sequence[str], media: Mapping[str, str]) -> Iterator[Labelled]:
        folder = self.root / TRUTH
        texts = [file for file in files if re.fullmatch(rf"{TRUTH}/[^/]+\.txt", file)]
        if not texts:
            raise BadInput(
                f"{self.root} holds no {TRUTH}/NAME.txt",
                "put the labels of every frame there, or name a CSV file of intervals: "
                "--set csv=FILE",
            )
        split_of = self._bundles([PurePosixPath(file).stem for file in texts])
        for file in texts:
            name = PurePosixPath(file).stem
            if split_of and name not in split_of:
                continue
            labels = [line.strip() for line in read_lines(folder / f"{name}.txt")]
            source = media.get(name, name)
            split = split_of.get(name)
            runs = equal_lines(labels)
            yield Labelled(name, source, split, runs, len(labels), str(folder / f"{name}.txt"))

    def _bundles(self, names: Sequence[str]) -> dict[str, str]:
        """Video -> split, by the official division; empty where there is none."""
        folder, number = self.root / BUNDLES, self.settings.bundle
        there = sorted(path.name for path in folder.glob("*.bundle")) if folder.is_dir() else []
        if not there:
            return {}
        found = {split: folder / f"{split}.split{number}.bundle" for split in SPLITS}
        found = {split: path for split, path in found.items() if path.is_file()}
        if "train" not in found:
            raise BadInput(
                f"{folder} holds no train.split{number}.bundle, found: {few(there)}",
                "choose one that is there, for example: --set bundle=1",
            )
        split_of: dict[str, str] = {}
        lost: list[str] = []
        for official, path in found.items():
            split = "val" if official == "test" and "val" not in found else official
            for line in read_lines(path):
                name = PurePosixPath(line).stem
                if split_of.setdefault(name, split) != split:
                    raise BadInput(f"{path}: video {name} is in two splits")
                if name not in names:
                    lost.append(name)
        if lost:
            self.note(BUNDLES, f"{len(lost)} videos have no labels in {TRUTH}: {few(lost)}")
        others = [name for name in names if name not in split_of]
        if others:
            text = f"{len(others)} files of {TRUTH} are in no bundle and left out: {few(others)}"
            self.note(TRUTH, text)
        return split_of

    # Intervals

    def _intervals(self, media: Mapping[str, str]) -> Iterator[Labelled]:
        path = find_list(self.root, self.settings.csv, "csv")
        rows: dict[str, Labelled] = {}
        for line, cells, separator in csv_lines(path, COLUMNS, _check_columns):
            where = f"{path} line {line}"
            for column in ("video", "start_s", "stop_s", "label"):
                if not cells[column]:
                    raise BadInput(f"{where}: {column} is empty")
            name, split = PurePosixPath(cells["video"]).stem, cells.get("split") or None
            if split not in (None, *SPLITS):
                raise unknown_name("split", cells["split"], SPLITS, where)
            start_s, stop_s = stretch(cells, separator, where)
            assert stop_s is not None
            source = media.get(name, cells["video"])
            video = rows.setdefault(name, Labelled(name, source, split, [], None, where))
            if video.split != split:
                raise BadInput(
                    f"{where}: video {name} is in split '{split}', and in '{video.split}' before"
                )
            video.segments.append((start_s, stop_s, cells["label"]))
        if not rows:
            raise BadInput(f"{path} has no rows below its header")
        for name, video in rows.items():
            if video.source not in media.values():  # what is told of it is all that is known
                stop_s = max(part[1] for part in video.segments)
                rows[name] = video._replace(stop=stop_s)
        yield from rows.values()


def _check_columns(
    where: str, columns: Sequence[str], known: Sequence[str], separator: str
) -> None:
    found = found_columns(columns, separator)
    for column in known:
        if column != "split" and columns.count(column) != 1:
            raise BadInput(
                f"{where}: wanted the column '{column}' once; found: {found}",
                "the first line names the columns: video,start_s,stop_s,label",
            )
    for column in columns:
        if column not in known:
            raise unknown_name("column", column, dict.fromkeys(known), where)


def equal_lines(labels: Sequence[str]) -> list[tuple[float, float, str]]:
    """[first, stop) and name of every run of equal lines."""
    edges = [at for at in range(1, len(labels)) if labels[at] != labels[at - 1]]
    pairs = zip([0, *edges], [*edges, len(labels)], strict=True)
    return [(first, stop, labels[first]) for first, stop in pairs]


def uncovered(segments_s_S2: np.ndarray, stop_s: float) -> np.ndarray:
    """(G, 2): the stretches of [0, stop_s) that no segment covers."""
    gaps, reached_s = [], 0.0
    for start_s, end_s in sorted(segments_s_S2.tolist()):
        if start_s > reached_s:
            gaps.append((reached_s, min(start_s, stop_s)))
        reached_s = max(reached_s, end_s)
    if reached_s < stop_s:
        gaps.append((reached_s, stop_s))
    return np.array([gap for gap in gaps if gap[1] > gap[0]], np.float64).reshape(-1, 2)
