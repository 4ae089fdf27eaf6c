"""Image folders with depth maps, camera poses, or both: any recording of that shape, by settings.

    root/<sequence>/rgb/0001.png    images, where `images` says; `{frame}` is the name of a frame
    root/<sequence>/depth/0001.png  a map for each frame, where `depth` says: 16-bit PNG, .npy,
                                    .pfm, .exr or .dpt
    root/<sequence>/poses.txt       a row for each pose, or a file for each frame, where `poses`
                                    says; `pose_columns` is what stands in a row

The root may also be one sequence, with patterns that have no `{sequence}`. Depth becomes metres
along the optical axis; poses become camera to world in metres, with x right, y down, z forward. A
pose that has a time of its own is interpolated to the time of a frame, linearly and along the
shorter arc, between two that are both at most `max_gap_s` away.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from pipeline.datasets.formats.annotations import few
from pipeline.datasets.formats.recordings import (
    DepthSettings,
    Image,
    Recording,
    RecordingDataset,
)
from pipeline.datasets.formats.splits import SPLITS
from pipeline.datasets.formats.trajectory import nearest, poses_at
from pipeline.datasets.shapes.depth_maps import along_axis, read_depth_map
from pipeline.datasets.shapes.patterns import Found, check_pattern, fields_of, find
from pipeline.datasets.shapes.pose_files import (
    PoseRows,
    check_pose_columns,
    read_pose_of_frame,
    read_pose_rows,
    wxyz_of,
)
from pipeline.errors import BadInput
from pipeline.video.probe import IMAGE_SUFFIXES

FPS, NAMES = "fps", "names"
AXES = {
    "opencv": np.eye(4),
    "opengl": np.diag([1.0, -1.0, -1.0, 1.0]),
    "ned": np.array([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]),
}
"""Axes of a camera -> from the contract's axes to them."""


class Settings(DepthSettings):
    """Where images, depth, poses and times are, and what stands in them."""

    images: str = "{sequence}/rgb/{frame}.*"
    """Pattern of the images: `{sequence}` is the name of a sequence, `{frame}` that of a frame,
    other names in braces are fields to use in the other patterns, `*` is any part of a name, and
    `**` any number of folders. A field `{split}` is the split, where it begins with train, val or
    test."""
    depth: str | None = None
    """Pattern of the depth maps, with `{frame}`."""
    depth_per_m: float = Field(default=1000.0, gt=0)
    """Units of a depth map in a metre."""
    depth_unknown: tuple[float, ...] = (65535.0,)
    """Values that mean that nothing is known; 0, what is below it and what is not finite always
    do."""
    depth_along: Literal["axis", "ray"] = "axis"
    """Whether depth is measured along the optical axis, or along the ray of each pixel, which needs
    `intrinsics`."""
    intrinsics: tuple[float, float, float, float] | None = None
    """Focal lengths and principal point fx, fy, cx, cy, in pixels of the depth maps."""
    poses: str | None = None
    """Pattern of the poses: with `{frame}` a file for each frame, else one with a row for each
    pose."""
    pose_columns: str = "matrix"
    """What stands in a row: matrix, or tx,ty,tz,qx,qy,qz,qw in any order; before it time or frame,
    and - for what is not read."""
    pose_header_lines: int = Field(default=0, ge=0)
    """Lines at the beginning that are passed over; those that begin with # always are."""
    pose_is: Literal["camera_to_world", "world_to_camera"] = "camera_to_world"
    """What a pose does."""
    pose_axes: Literal["opencv", "opengl", "ned"] = "opencv"
    """The camera's axes: opencv is x right, y down, z forward; opengl is x right, y up, z back; ned
    is x forward, y right, z down."""
    pose_per_m: float = Field(default=1.0, gt=0)
    """Units of a pose's translation in a metre."""
    pose_time_s: float = Field(default=1.0, gt=0)
    """Seconds in a unit of the column `time`: 1e-9 for nanoseconds."""
    times: str = FPS
    """When frames are shown: fps (number of the frame / `image_fps`), names (`{frame}` is the
    time), or the pattern of a file with a line for each image, which is the time, or the time and
    the image."""
    time_s: float = Field(default=1.0, gt=0)
    """Seconds in a unit of these times."""
    image_fps: float = Field(default=30.0, gt=0, le=1000)
    """Frame rate, where `times` is fps."""
    max_gap_s: float = Field(default=0.02, ge=0)
    """How far in time a frame may be from its pose and, where names are times, from its depth
    map."""

    @field_validator("images", "depth", "poses", "times")
    @classmethod
    def _is_path_pattern(cls, value: str | None, info: Any) -> str | None:
        return value if value in (None, FPS, NAMES) else check_pattern(value, info.field_name)

    @field_validator("pose_columns")
    @classmethod
    def _is_a_pose(cls, value: str) -> str:
        check_pose_columns(value, "pose_columns")
        return value

    @model_validator(mode="after")
    def _fit(self) -> Settings:
        for key in ("images", "depth"):
            value = getattr(self, key)
            if value is not None and "frame" not in fields_of(value):
                raise BadInput(f"{key}: wanted {{frame}} in the pattern, found '{value}'")
        if self.depth_along == "ray" and self.intrinsics is None:
            raise BadInput("depth_along=ray needs intrinsics=[fx, fy, cx, cy]")
        return self


class Dataset(RecordingDataset):
    """One clip per sequence."""

    Settings = Settings

    def recordings(self) -> Iterator[Recording]:
        """Sorted by name. Raises BadInput where there are no images, or where depth or poses were
        asked for and no sequence has any."""
        sequences: dict[tuple[tuple[str, str], ...], dict[str, Found]] = defaultdict(dict)
        for place in self._find(self.settings.images):
            if place.path.suffix.lower() in IMAGE_SUFFIXES:
                own = {key: text for key, text in place.fields.items() if key != "frame"}
                sequences[tuple(own.items())][place.fields["frame"]] = place
        if not sequences:
            raise BadInput(
                f"{self.official} holds no images at {self.settings.images}",
                "name another pattern with --set images=...",
            )
        recordings = []
        names = [dict(fields).get("sequence", self.official.name) for fields in sequences]
        count = Counter(names)
        for name, (fields, frames) in zip(names, sequences.items(), strict=True):
            if count[name] > 1:  # the same name in several scenes
                name = "/".join(text for _, text in fields if text)
            try:
                recordings.append(self._read(name, dict(fields), frames))
            except BadInput as error:
                self.rejected[name] = error.message
        for key, found in (("depth", "depth"), ("poses", "pose")):
            asked = getattr(self.settings, key)
            if recordings and asked and not any(_has(each, found) for each in recordings):
                raise BadInput(
                    f"{key}: none of the sequences has any at {asked}",
                    f"the first image is {self.where(recordings[0].images[0])}",
                )
        yield from sorted(recordings, key=lambda recording: recording.name)

    def metres(self, depth: Image) -> np.ndarray:
        """(H, W) of one frame."""
        assert isinstance(depth, Path)
        raw = read_depth_map(depth).astype(np.float64)
        known = np.isfinite(raw) & (raw > 0) & ~np.isin(raw, self.settings.depth_unknown)
        metres = np.where(known, raw, 0) / self.settings.depth_per_m
        if self.settings.depth_along == "ray":
            return along_axis(metres, self.settings.intrinsics)
        return metres

    def _find(self, pattern: str, fields: dict[str, str] | None = None) -> list[Found]:
        found = find(self.official, pattern, fields)
        return [place for place in found if not self.is_laid_out(place.path)]

    def _read(self, name: str, fields: dict[str, str], frames: dict[str, Found]) -> Recording:
        names = sorted(frames, key=_order)
        images = [frames[text].path for text in names]
        time_s = self._times(names, images, fields)
        order = np.argsort(time_s, kind="stable")
        names, images = [names[row] for row in order], [images[row] for row in order]
        time_s = time_s[order]
        split = fields.get("split", "").lower()
        return Recording(
            name=name,
            split=next((word for word in SPLITS if split.startswith(word)), SPLITS[0]),
            images=images,
            time_s=time_s,
            pose=self._poses(names, images, time_s, fields),
            depth=self._depth(name, names, time_s, fields),
        )

    def _times(self, names: list[str], images: list[Path], fields: dict[str, str]) -> np.ndarray:
        """(F,) seconds of the frames, in the order of their names. Raises BadInput."""
        if self.settings.times == FPS:
            numbers = [int(name) for name in names if name.isdecimal()]
            frames = np.array(numbers) if len(numbers) == len(names) else np.arange(len(names))
            return frames / self.settings.image_fps
        if self.settings.times == NAMES:
            return (
                np.array([_seconds(name, "the name of an image") for name in names])
                * self.settings.time_s
            )
        files = self._find(self.settings.times, fields)
        if len(files) != 1:
            raise BadInput(f"has {len(files)} files of times at {self.settings.times}, wanted one")
        path = files[0].path
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        rows = [line.replace(",", " ").split() for line in text.splitlines()]
        rows = [words for words in rows if words and not words[0].startswith("#")]
        where = self.where(path)
        if rows and all(len(words) > 1 for words in rows):
            of_image = {Path(words[1]).name: _seconds(words[0], where) for words in rows}
            missing = [image.name for image in images if image.name not in of_image]
            if missing:
                raise BadInput(f"{where} has no time of {len(missing)} images: {few(missing)}")
            return np.array([of_image[image.name] for image in images]) * self.settings.time_s
        if len(rows) != len(names):
            raise BadInput(f"{where} holds {len(rows)} times for {len(names)} images")
        return np.array([_seconds(words[0], where) for words in rows]) * self.settings.time_s

    def _depth(
        self, name: str, names: list[str], time_s: np.ndarray, fields: dict[str, str]
    ) -> list[Image | None]:
        """The map of every frame; empty where there is none at all."""
        if self.settings.depth is None:
            return []
        maps = {
            place.fields["frame"]: place.path for place in self._find(self.settings.depth, fields)
        }
        if not maps:
            return []
        if self.settings.times == NAMES:
            of_time = {
                _seconds(text, "the name of a depth map"): path for text, path in maps.items()
            }
            known_s = np.array(sorted(of_time))
            rows = nearest(known_s * self.settings.time_s, time_s, self.settings.max_gap_s)
            return [of_time[known_s[row]] if row >= 0 else None for row in rows]
        by_frame = {_order(text): path for text, path in maps.items()}
        of_images = set(map(_order, names))
        lost = [path for key, path in by_frame.items() if key not in of_images]
        self.note_images(name, "images", lost, len(maps), "depth maps have no image")
        return [by_frame.get(_order(text)) for text in names]

    def _poses(
        self, names: list[str], images: list[Path], time_s: np.ndarray, fields: dict[str, str]
    ) -> np.ndarray | None:
        """(F, 4, 4) of the frames; None where there is no file. Raises BadInput."""
        if self.settings.poses is None:
            return None
        columns = check_pose_columns(self.settings.pose_columns, "pose_columns")
        header = self.settings.pose_header_lines
        files = self._find(self.settings.poses, fields)
        if not files:
            return None
        if "frame" in fields_of(self.settings.poses):
            of_frame = {_order(place.fields["frame"]): place.path for place in files}
            rows = np.full((len(names), 4, 4), np.nan)
            for row, text in enumerate(names):
                path = of_frame.get(_order(text))
                if path is not None:
                    rows[row] = read_pose_of_frame(path, columns, header)
            return self._as_contract(rows)
        if len(files) > 1:
            raise BadInput(f"has {len(files)} files of poses at {self.settings.poses}, wanted one")
        read = read_pose_rows(files[0].path, columns, header)
        return self._of_frames(read, self.where(files[0].path), names, images, time_s)

    def _of_frames(
        self, read: PoseRows, where: str, names: list[str], images: list[Path], time_s: np.ndarray
    ) -> np.ndarray:
        """(F, 4, 4): the poses of a file, at the frames. Raises BadInput where they do not fit."""
        pose = self._as_contract(read.pose)
        if read.time is not None:
            known_s = read.time * self.settings.pose_time_s
            order = np.argsort(known_s, kind="stable")
            known_s, pose = known_s[order], pose[order]
            return poses_at(time_s, known_s, pose[:, :3, 3], wxyz_of(pose), self.settings.max_gap_s)
        keys = list(map(_order, names))
        if read.frame is not None:
            row_of = {text: row for row, text in enumerate(map(_order, read.frame))}
            ways = (
                keys,
                [(1, image.stem) for image in images],
                [(1, image.name) for image in images],
            )
            rows = [
                next((row_of[key] for key in way if key in row_of), -1)
                for way in zip(*ways, strict=True)
            ]
        elif len(pose) == len(names):
            rows = list(range(len(names)))
        elif all(isinstance(number, int) and number < len(pose) for _, number in keys):
            rows = [number for _, number in keys]
        else:
            raise BadInput(
                f"{where} holds {len(pose)} poses for {len(names)} images, and no column says "
                "which frame one is of"
            )
        poses = np.concatenate([pose, np.full((1, 4, 4), np.nan)])
        return poses[rows]

    def _as_contract(self, pose_N44: np.ndarray) -> np.ndarray:
        """Camera to world in metres, with the axes of the contract."""
        pose = pose_N44.copy()
        pose[:, :3, 3] /= self.settings.pose_per_m
        if self.settings.pose_is == "world_to_camera":
            turned = pose[:, :3, :3].transpose(0, 2, 1)
            pose[:, :3, 3] = -(turned @ pose[:, :3, 3:])[..., 0]
            pose[:, :3, :3] = turned
        return pose @ AXES[self.settings.pose_axes]


def _order(text: str) -> tuple[int, Any]:
    """Frames by number, those that are none by name behind them."""
    return (0, int(text)) if text.isdecimal() else (1, text)


def _called(image: Path) -> tuple[tuple[int, Any], ...]:
    """What else a list may call an image."""
    return (_order(image.stem), (1, image.name))


def _seconds(word: str, where: str) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise BadInput(f"{where}: wanted a time, found '{word[:40]}'") from error


def _has(recording: Recording, what: str) -> bool:
    value = getattr(recording, what)
    return value is not None and len(value) > 0
