"""What meta/ of a LeRobot folder says: cameras, columns, and where every episode lies.

    v2.0, v2.1   meta/info.json  episodes.jsonl      one Parquet file and one video for each episode
    v3.x         meta/info.json  episodes/*/*.parquet   several episodes in each file

`info.json` has the patterns of the paths, `data_path` and `video_path`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pipeline.config.json_files import json_value
from pipeline.datasets.formats.annotations import DAMAGED, few, field, load_json
from pipeline.datasets.formats.splits import read_lines
from pipeline.datasets.robots.tables import read_columns, read_names
from pipeline.errors import BadInput

INFO, LINES, TABLES = "meta/info.json", "meta/episodes.jsonl", "meta/episodes"
OF_ROWS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Columns that say which row it is."""
NUMBERS = re.compile(r"(float|u?int)(8|16|32|64)|bool")
SPLITS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}


class EpisodeVideo(NamedTuple):
    """Where one camera shows an episode: seconds [start, stop) of a file; None: up to its end."""

    source: str
    start_s: float
    stop_s: float | None


@dataclass(frozen=True)
class Episode:
    """One recording."""

    number: int
    tasks: tuple[str, ...]
    """What was to be done, in words."""
    table: str
    """Parquet file of its columns, relative to the root."""
    places: Mapping[str, EpisodeVideo]
    """Camera -> where it shows the episode."""
    split: str | None
    """As info.json states it; None: it names no other split than train."""


@dataclass(frozen=True)
class RobotData:
    """A LeRobot folder."""

    version: str
    fps: float
    cameras: tuple[str, ...]
    left_out: tuple[str, ...]
    """Cameras that show depth."""
    columns: tuple[str, ...]
    """Columns of numbers, beside those that say which row it is."""
    episodes: tuple[Episode, ...]

    @property
    def shares_files(self) -> bool:
        """Whether a file may hold several episodes."""
        return self.version.startswith("v3")


def read_robot_data(root: Path) -> RobotData:
    """What a folder holds. Raises BadInput where it is none, of another version, or damaged."""
    path = root / INFO
    if not path.is_file():
        raise BadInput(f"{root} holds no {INFO}", "name the folder of one LeRobot data set")
    info = load_json(path, dict)
    where = str(path)
    version = field(info, "codebase_version", str, where)
    if not re.match(r"v(2\.[01]|3\.\d+)$", version):
        raise BadInput(
            f"{path}: codebase_version {version[:20]} is not read, v2.0, v2.1 and v3 are",
            "convert it with LeRobot's own scripts",
        )
    features = field(info, "features", dict, where)
    videos = [key for key, told in features.items() if _told(told, "dtype") == "video"]
    if not videos:
        images = [key for key, told in features.items() if _told(told, "dtype") == "image"]
        found = f"; {few(images)} are images in Parquet" if images else ""
        raise BadInput(f"{path}: no feature is a video{found}", "convert it to videos with LeRobot")
    depth = tuple(key for key in videos if _is_depth(features[key]))
    columns = tuple(
        key
        for key, told in features.items()
        if key not in OF_ROWS and NUMBERS.fullmatch(str(_told(told, "dtype")))
    )
    cameras = tuple(key for key in videos if key not in depth)
    read = _episodes_of_files if version.startswith("v3") else _episodes_of_lines
    return RobotData(
        version,
        field(info, "fps", float, where),
        cameras,
        depth,
        columns,
        tuple(read(root, info, cameras)),
    )


def _told(told: object, key: str) -> object:
    return told.get(key) if isinstance(told, dict) else None


def _is_depth(told: object) -> bool:
    tables = [_told(told, "info"), _told(told, "video_info")]
    names = ("is_depth_map", "video.is_depth_map")
    return any(_told(table, name) is True for table in tables for name in names)


def _episodes_of_lines(
    root: Path, info: dict[str, Any], cameras: tuple[str, ...]
) -> Iterator[Episode]:
    """Version 2: a file for each episode."""
    path, where = root / LINES, str(root / INFO)
    if not path.is_file():
        raise BadInput(f"{root} holds no {LINES}", DAMAGED)
    size = field(info, "chunks_size", int, where)
    splits = _splits(info)
    for number, line in enumerate(read_lines(path), start=1):
        place = f"{path} line {number}"
        try:
            record = json_value(line.encode())
        except ValueError as error:
            raise BadInput(f"{place} is not JSON: {error}", DAMAGED) from error
        index = field(record, "episode_index", int, place)
        at = {"episode_chunk": index // max(1, size), "episode_index": index}
        videos = {
            key: EpisodeVideo(_path(info, "video_path", where, video_key=key, **at), 0.0, None)
            for key in cameras
        }
        tasks = _tasks(field(record, "tasks", list, place), place)
        table = _path(info, "data_path", where, **at)
        yield Episode(index, tasks, table, videos, splits.get(index) if splits else None)


def _episodes_of_files(
    root: Path, info: dict[str, Any], cameras: tuple[str, ...]
) -> Iterator[Episode]:
    """Version 3: tables say where in which file an episode is."""
    where = str(root / INFO)
    files = sorted((root / TABLES).glob("*/*.parquet"))
    if not files:
        raise BadInput(f"{root} holds no {TABLES}/*/*.parquet", DAMAGED)
    splits = _splits(info)
    parts = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    for path in files:
        names = ["episode_index", "tasks", "data/chunk_index", "data/file_index"]
        there = read_names(path)
        shown = [key for key in cameras if f"videos/{key}/chunk_index" in there]
        names += [f"videos/{key}/{part}" for key in shown for part in parts]
        columns = read_columns(path, names)
        for row, index in enumerate(columns["episode_index"]):
            at = {name: values[row] for name, values in columns.items()}
            places = {}
            for key in shown:
                chunk, file, start_s, stop_s = (at[f"videos/{key}/{part}"] for part in parts)
                if chunk is None:  # not recorded by this camera
                    continue
                if not 0 <= start_s < stop_s:
                    raise BadInput(
                        f"{path}: episode {index} of {key} runs from {start_s} s to {stop_s} s",
                        DAMAGED,
                    )
                source = _path(
                    info, "video_path", where, video_key=key, chunk_index=chunk, file_index=file
                )
                places[key] = EpisodeVideo(source, float(start_s), float(stop_s))
            table = _path(
                info,
                "data_path",
                where,
                chunk_index=at["data/chunk_index"],
                file_index=at["data/file_index"],
            )
            tasks = _tasks(at["tasks"], f"{path}: episode {index}")
            yield Episode(index, tasks, table, places, splits.get(index) if splits else None)


def _tasks(told: object, where: str) -> tuple[str, ...]:
    texts = [told] if isinstance(told, str) else told
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadInput(f"{where}: tasks must be a list of texts, found {str(told)[:40]}")
    return tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))


def _splits(info: dict[str, Any]) -> dict[int, str]:
    """Episode -> split, where info.json names others than train, as `"val": "80:100"`."""
    told = info.get("splits")
    if not isinstance(told, dict) or not set(told) - {"train"}:
        return {}
    split_of: dict[int, str] = {}
    for name, text in told.items():
        match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", str(text))
        if match is None or name not in SPLITS:
            raise BadInput(
                f"{INFO}: splits: wanted names such as val with 80:100, found {name}: {text}"
            )
        split_of |= dict.fromkeys(range(int(match[1]), int(match[2])), SPLITS[name])
    return split_of


def _path(info: dict[str, Any], name: str, where: str, **values: object) -> str:
    """A path by the pattern that info.json has for it."""
    pattern = field(info, name, str, where)
    try:
        path = pattern.format(**values)
    except (KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
        raise BadInput(f"{where}: {name} '{pattern[:80]}' is no pattern of such a path") from error
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise BadInput(f"{where}: {name} '{pattern[:80]}' leads out of the folder")
    return path
