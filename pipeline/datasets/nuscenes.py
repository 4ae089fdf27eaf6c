"""nuScenes: front camera of city drives, all frames (about 12 per second) with the camera's pose
(Caesar et al., CVPR 2020).

    root/v1.0-{trainval,mini,test}/*.json  tables
    root/{samples,sweeps}/CAM_FRONT/*.jpg  key frames (2 per second), and the frames between them

One clip per scene of about 20 s, with the true times of sample_data.json, which are not even. A
pose is the calibration of the camera on the car followed by the car's own pose at the camera's
time: camera to map, axes x right, y down, z forward. Frames whose file is missing are left out and
listed; the others keep their times.

Splits are the official ones of scenes: `val` as in the development kit's splits.py, where the mini
version has its own, and `test` for v1.0-test.

How frames are laid out is said in `_rgbd.py`. Written against schema.md and splits.py of
github.com/nutonomy/nuscenes-devkit (schema v1.x).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline.datasets.formats.recordings import FramesSettings, Recording, RecordingDataset, motion
from pipeline.errors import BadInput, unknown_name

CHANNEL = "CAM_FRONT"
Row = dict[str, Any]
VAL = (
    "3 12-18 35-36 38-39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629-630 "
    "632-638 770-771 775 777-778 "
    "780-784 794-800 802 904-917 919-931 962-963 966-969 971-972 1059-1073"
)
"""Numbers of the 150 scenes of the official split `val` of v1.0-trainval."""
MINI_VAL = "103 916"
MOTION = ("translation", "rotation")
SAMPLE_DATA = ("sample_token", "ego_pose_token", "calibrated_sensor_token", "filename", "timestamp")
SEPARATORS = re.compile(r"[\s,]*")


class Settings(FramesSettings):
    """These settings say which version is read and where frames are laid out."""

    version: str | None = None
    """Folder of the tables, such as v1.0-mini; None: the only one there is."""


class Dataset(RecordingDataset):
    """One clip per scene, named as in scene.json."""

    Settings = Settings

    def recordings(self) -> Iterator[Recording]:
        """Clips in the order of scene.json. Raises BadInput where tables are missing, damaged or
        point at rows that are not there."""
        tables = self._tables()
        scenes = {row["token"]: row for row in read_rows(tables / "scene.json", "name")}
        scene_of = {
            row["token"]: row["scene_token"]
            for row in read_rows(tables / "sample.json", "scene_token")
        }
        camera = {
            row["token"]
            for row in read_rows(tables / "sensor.json", "channel")
            if row["channel"] == CHANNEL
        }
        sensors = read_rows(tables / "calibrated_sensor.json", "sensor_token", *MOTION)
        mounted = {row["token"]: row for row in sensors if row["sensor_token"] in camera}
        frames: dict[str, list[Row]] = defaultdict(list)
        for row in read_rows(tables / "sample_data.json", *SAMPLE_DATA):
            if row["calibrated_sensor_token"] in mounted:
                if scene_of.get(row["sample_token"]) not in scenes:
                    raise BadInput(
                        f"{tables / 'sample_data.json'}: row {row['token']} belongs to no sample "
                        "of a scene"
                    )
                frames[scene_of[row["sample_token"]]].append(row)
        pose_tokens = {row["ego_pose_token"] for rows in frames.values() for row in rows}
        ego = {
            row["token"]: row
            for row in read_rows(tables / "ego_pose.json", *MOTION)
            if row["token"] in pose_tokens
        }
        for token, scene in scenes.items():
            recording = self._scene(
                scene["name"], split_of(scene["name"], tables.name), frames[token], mounted, ego
            )
            if recording is not None:
                yield recording

    def _tables(self) -> Path:
        versions = sorted(path.name for path in self.official.glob("v1.0-*") if path.is_dir())
        version = self.settings.version or (versions[0] if len(versions) == 1 else None)
        if version is None:
            there = (
                f"{len(versions)} versions ({', '.join(versions)})"
                if versions
                else "no tables (v1.0-trainval or the like)"
            )
            raise BadInput(
                f"{self.official} holds {there}",
                "name one: --set version=v1.0-mini" if versions else "",
            )
        if version not in versions:
            raise unknown_name("version", version, versions, str(self.official))
        return self.official / version

    def _scene(
        self, name: str, split: str, rows: list[Row], mounted: dict[str, Row], ego: dict[str, Row]
    ) -> Recording | None:
        by_time: dict[int, Row] = {}
        missing, repeated = [], []
        for row in rows:
            file = PurePosixPath(str(row["filename"]))
            if file.is_absolute() or ".." in file.parts:
                raise BadInput(
                    f"scene {name}: image '{file}' does not lie below {self.official}",
                    "download the tables again",
                )
            path = self.official / file
            if not path.is_file():
                missing.append(path)
            elif row["timestamp"] in by_time:
                repeated.append(path)
            else:
                by_time[row["timestamp"]] = row
        if not by_time:
            few = f"; first {self.where(missing[0])}" if missing else ""
            self.note(name, f"none of its {len(rows)} {CHANNEL} images is there{few}")
            return None
        self.note_images(name, "images", missing, len(rows), f"{CHANNEL} images are not there")
        self.note_images(
            name, "times", repeated, len(rows), f"{CHANNEL} images repeat a time and are left out"
        )
        rows = [by_time[time] for time in sorted(by_time)]
        return Recording(
            name=name,
            split=split,
            images=[self.official / row["filename"] for row in rows],
            time_s=np.array([row["timestamp"] - rows[0]["timestamp"] for row in rows]) / 1e6,
            pose=poses(ego, [row["ego_pose_token"] for row in rows])
            @ poses(mounted, [row["calibrated_sensor_token"] for row in rows]),
        )


def poses(table: dict[str, Row], tokens: list[str]) -> np.ndarray:
    """(F, 4, 4) of rows with a translation and a quaternion; NaN for tokens that the table does not
    hold."""
    unknown = {"translation": [np.nan] * 3, "rotation": [np.nan] * 4}
    rows = [table.get(token, unknown) for token in tokens]
    return motion(*(np.array([row[name] for row in rows], np.float64) for name in MOTION))


def split_of(scene: str, version: str) -> str:
    """The official split of a scene such as `scene-0061`."""
    if version.endswith("-test"):
        return "test"
    ranges = [part.split("-") for part in (MINI_VAL if version.endswith("-mini") else VAL).split()]
    number = int("0" + scene.removeprefix("scene-"))
    return "val" if any(int(ends[0]) <= number <= int(ends[-1]) for ends in ranges) else "train"


def read_rows(path: Path, *columns: str) -> Iterator[Row]:
    """The objects of a table, one at a time, as the largest holds millions.

    Raises BadInput if the table is missing, damaged or cut off, or if a row lacks its token or one
    of `columns`.
    """
    decoder, text, offset = json.JSONDecoder(), "", 0
    try:
        with path.open(encoding="utf-8") as file:
            if file.read(1) != "[":
                raise BadInput(f"{path} is no table: wanted a JSON list")
            while True:
                offset = SEPARATORS.match(text, offset).end()  # type: ignore[union-attr]  # it matches nothing, too
                if text.startswith("]", offset):
                    return
                try:
                    row, offset = decoder.raw_decode(text, offset)
                except ValueError as error:
                    more = file.read(1 << 20)
                    if not more:
                        raise BadInput(
                            f"{path} is damaged or cut off: {error}", "download it again"
                        ) from error
                    text, offset = text[offset:] + more, 0
                    continue
                lacking = [column for column in ("token", *columns) if column not in row]
                if lacking:
                    raise BadInput(f"{path}: a row has no '{lacking[0]}': {json.dumps(row)[:80]}")
                yield row
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read: {error.strerror}", "wanted the tables of the metadata archive"
        ) from error
