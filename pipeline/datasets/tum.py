"""TUM RGB-D: hand-held and robot sequences with depth and motion-captured camera poses (Sturm et
al., IROS 2012).

    root/<sequence>/{rgb,depth,groundtruth}.txt  `time file` and `time tx ty tz qx qy qz qw`, times
                                                 in seconds
    root/<sequence>/{rgb,depth}/<time>.png

The root may also be one sequence. The three are recorded at different times: a colour frame gets
the depth map nearest to it in time if that is at most 0.02 s away, the tool's own limit
(associate.py), and the pose at its own time, interpolated between a pose before and one after that
are both so near; where only one is, as at the ends, that one. Depth is registered to the colour
image, 5000 units per metre, 0 where unknown. A pose is that of the colour camera, camera to world.

There is no official split of the sequences with truth: those in the setting `val_sequences` are
`val`, those whose name ends in `_validation`, which come without truth, are `test`, and all others
are `train`.

How frames are laid out is said in `_rgbd.py`. Written against the set's page "File Formats" and its
tool associate.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.datasets.formats.recordings import (
    DepthSettings,
    Image,
    Recording,
    RecordingDataset,
    read_depth16,
    read_numbers,
)
from pipeline.datasets.formats.trajectory import nearest, poses_at
from pipeline.errors import BadInput

UNITS_PER_M = 5000
MAX_GAP_S = 0.02


class Settings(DepthSettings):
    """Where frames are laid out, how finely depth is kept, and which sequences are held out."""


class Dataset(RecordingDataset):
    """One clip per sequence."""

    Settings = Settings

    def recordings(self) -> Iterator[Recording]:
        """Sorted by path."""
        folders = [folder for folder, _, files in self.walk() if "rgb.txt" in files]
        for folder in folders:
            name = self.name_of(folder)
            try:
                yield self._read(name, folder)
            except BadInput as error:
                self.rejected[name] = error.message

    def metres(self, depth: Image) -> np.ndarray:
        """(H, W) of one frame."""
        assert isinstance(depth, Path)
        return read_depth16(depth) / UNITS_PER_M

    def _read(self, name: str, folder: Path) -> Recording:
        time_s, images = self._listed(name, folder, "rgb")
        depth_time_s, depth_files = self._listed(name, folder, "depth")
        rows = nearest(depth_time_s, time_s, MAX_GAP_S)
        split = "test" if folder.name.endswith("_validation") else "train"
        return Recording(
            name=name,
            split=split,
            images=images,
            time_s=time_s,
            pose=self._poses(folder, time_s),
            depth=[None if row < 0 else depth_files[row] for row in rows],
        )

    def _poses(self, folder: Path, time_s: np.ndarray) -> np.ndarray | None:
        path = folder / "groundtruth.txt"
        if not path.is_file():
            return None
        table = read_numbers(path, 8)
        table = table[np.argsort(table[:, 0], kind="stable")]
        return poses_at(time_s, table[:, 0], table[:, 1:4], table[:, [7, 4, 5, 6]], MAX_GAP_S)

    def _listed(self, name: str, folder: Path, kind: str) -> tuple[np.ndarray, list[Path]]:
        """Times in order and files of rgb.txt or depth.txt; lines whose file is missing, or whose
        time repeats, are noted."""
        path = folder / f"{kind}.txt"
        if not path.is_file():
            return np.empty(0), []
        files: dict[float, Path] = {}
        missing, repeated = [], []
        lines = [
            line.split()
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip() and line[0] != "#"
        ]
        for words in lines:
            try:
                time_s, file = float(words[0]), folder / words[1]
            except (ValueError, IndexError) as error:
                raise BadInput(
                    f"{path}: wanted lines of a time and a file, found '{' '.join(words)[:60]}'"
                ) from error
            if not file.is_file():
                missing.append(file)
            elif time_s in files:
                repeated.append(file)
            else:
                files[time_s] = file
        self.note_images(name, f"{kind}.txt", missing, len(lines), "files are missing")
        self.note_images(
            name, f"{kind}.txt again", repeated, len(lines), "files repeat a time and are left out"
        )
        times = sorted(files)
        return np.array(times), [files[time_s] for time_s in times]
