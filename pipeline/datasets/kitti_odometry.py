"""KITTI odometry: drives with the pose of the camera for every frame (Geiger et al., CVPR 2012).

    root/sequences/00/image_{0,1,2,3}/000000.png    grey left, grey right, colour left, colour right
    root/sequences/00/{times,calib}.txt             seconds per frame; projections `P0: ` to `P3: `
    root/poses/00.txt                               a 3x4 pose of the grey left camera per frame

or a folder, or folders, that hold one drive each, with frames k at k / 10 s if there is no
times.txt:

    root/{image_l,image_0}/000000.png, poses.txt

Axes are x right, y down, z forward. Poses are moved from the grey left camera to the one that is
read, by calib.txt. There is no depth. Frame k takes row k of times and poses; sequences without
poses (11 to 21, whose truth is hidden) are `test`, 09 and 10 are `val`, all others `train`.

How frames are laid out is said in `_rgbd.py`. Written against the development kit of the odometry
benchmark (readme.txt).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.datasets.formats.recordings import (
    FramesSettings,
    Recording,
    RecordingDataset,
    read_numbers,
    rigid,
)
from pipeline.errors import BadInput
from pipeline.video.probe import IMAGE_SUFFIXES

FPS = 10
LEFT_GREY = ("image_0", "image_l")
VAL = ("09", "10")
"""Sequences that are `val` by the field's habit."""


class Settings(FramesSettings):
    """These settings say which camera is read, which sequences are held out and where frames are
    laid out."""

    camera: Literal["colour", "image_0", "image_1", "image_2", "image_3"] = "colour"
    """Folder of the frames in the official layout; colour: image_2, or image_0 of a sequence that
    has no image_2."""


class Dataset(RecordingDataset):
    """One clip per sequence, named by its path under the root."""

    Settings = Settings

    def recordings(self) -> Iterator[Recording]:
        """Sorted by path."""
        found: list[tuple[Path, set[str], Path]] = []
        for folder, folders, files in self.walk():
            cameras = {name for name in folders if name.startswith("image_")}
            if not cameras:
                continue
            folders[:] = []
            poses = (
                folder / "poses.txt"
                if "poses.txt" in files
                else folder.parent.parent / "poses" / f"{folder.name}.txt"
            )
            found.append((folder, cameras, poses))
        for folder, cameras, poses in found:
            try:
                yield self._read(folder, cameras, poses)
            except BadInput as error:
                self.rejected[self.name_of(folder)] = error.message

    def _read(self, folder: Path, cameras: set[str], poses: Path) -> Recording:
        name, camera = self.name_of(folder), self._camera(folder, cameras)
        files = [
            path
            for path in (folder / camera).iterdir()
            if path.suffix.lower() in IMAGE_SUFFIXES and path.stem.isdecimal()
        ]
        images = sorted(files, key=lambda path: int(path.stem))
        numbers = np.array([int(path.stem) for path in images], np.int64)
        times = folder / "times.txt"
        time_s = (
            read_numbers(times, 1)[:, 0]
            if times.is_file()
            else np.arange(numbers.max(initial=-1) + 1) / FPS
        )
        pose_F34 = read_numbers(poses, 12).reshape(-1, 3, 4) if poses.is_file() else None
        if len(numbers) and numbers[-1] >= len(time_s):
            raise BadInput(
                f"{times} holds {len(time_s)} times, and there is a frame {images[-1].name}"
            )
        frames = len(time_s) if pose_F34 is None else max(len(time_s), len(pose_F34))
        gaps = sorted(set(range(frames)) - set(numbers.tolist()))
        if gaps:
            text = f"{len(gaps)} of {frames} frames have no image in {camera}; first {gaps[0]:06d}"
            self.note(f"{name}: {camera}", text)
        split = "test" if pose_F34 is None else "val" if folder.name in VAL else "train"
        return Recording(
            name,
            split,
            images,
            time_s[numbers],
            None if pose_F34 is None else self._poses(folder, camera, pose_F34, numbers),
        )

    def _camera(self, folder: Path, cameras: set[str]) -> str:
        candidates = (
            ("image_2", *LEFT_GREY) if self.settings.camera == "colour" else (self.settings.camera,)
        )
        present = [name for name in candidates if name in cameras]
        if not present:
            raise BadInput(
                f"{folder} has no {' or '.join(candidates)}, only {', '.join(sorted(cameras))}"
            )
        return present[0]

    def _poses(
        self, folder: Path, camera: str, pose_F34: np.ndarray, numbers: np.ndarray
    ) -> np.ndarray:
        """(F, 4, 4) of the camera that is read; NaN beyond the last row."""
        rows = np.full((len(numbers), 3, 4), np.nan)
        inside = numbers < len(pose_F34)
        rows[inside] = pose_F34[numbers[inside]]
        pose = rigid(rows)
        if camera not in LEFT_GREY:
            pose[:, :3, 3] -= pose[:, :3, :3] @ left_grey_to(
                folder / "calib.txt", f"P{camera[-1]}:"
            )
        return pose


def left_grey_to(calib: Path, camera: str) -> np.ndarray:
    """(3,) what is added to coordinates of the grey left camera to get those of `camera`: K^-1
    times the last column of P."""
    lines = calib.read_text(encoding="utf-8").splitlines() if calib.is_file() else []
    for words in map(str.split, lines):
        if words and words[0] == camera and len(words) == 13:
            projection = np.array(words[1:], np.float64).reshape(3, 4)
            shift: np.ndarray = np.linalg.solve(projection[:, :3], projection[:, 3])
            return shift
    raise BadInput(
        f"{calib} has no line '{camera}' with 12 numbers",
        "it says where the camera is; or read image_0",
    )
