"""7-Scenes: RGB-D sequences of seven rooms with camera poses (Shotton et al., CVPR 2013).

    root/<scene>/{TrainSplit,TestSplit}.txt                       lines such as `sequence1`
    root/<scene>/seq-01/frame-000000.{color.png,depth.png,pose.txt}

The root may also be one scene, or one bare sequence. Colour may be PNG or JPEG. A sequence that no
split file lists is `train`. Frames have no times: frame k is shown at k / 30 s.

Depth is in millimetres; 0 and 65535 are unknown. The set comes unregistered: its depth camera has f
= 585 px, as its page says, its colour camera about f = 525 px, the field's value, both at 640 x 480
with the centre as principal point, and they lie some centimetres apart. Depth is moved into the
colour camera, which leaves a border of unknown depth, and so are the poses, which are the depth
camera's, camera to world.

How frames are laid out is said in `_rgbd.py`. Written against the layout described on the set's
page at Microsoft Research.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.datasets.formats.recordings import (
    DepthSettings,
    Image,
    Recording,
    RecordingDataset,
    read_depth16,
    read_poses,
)
from pipeline.errors import BadInput

FPS = 30
MM_PER_M = 1000
UNKNOWN = 65535
DEPTH_FOCAL_PX, COLOUR_FOCAL_PX = 585, 525
"""At a width of 640 px."""
BASELINE_M = 0.02
"""The colour camera lies this far to the right of the depth camera. Fitted: with it, edges of depth
and colour agree best."""
COLOUR_TO_DEPTH = np.eye(4)
COLOUR_TO_DEPTH[0, 3] = BASELINE_M
FRAME = re.compile(r"frame-(\d+)\.(color|depth|pose)\.(png|jpg|jpeg|txt)")


class Settings(DepthSettings):
    """Where frames are laid out, and how finely depth is kept."""


class Dataset(RecordingDataset):
    """One clip per sequence, named by its path under the root."""

    Settings = Settings

    def recordings(self) -> Iterator[Recording]:
        """Sorted by path. Raises BadInput if a split file is malformed."""
        splits: dict[Path, dict[str, str]] = {}
        for folder, _, names in self.walk():
            listed = read_splits(folder)
            if listed:
                splits[folder] = listed
                missing = [name for name in listed if not (folder / name).is_dir()]
                self._note_missing(folder, missing, len(listed))
            files: dict[str, dict[int, Path]] = {"color": {}, "depth": {}, "pose": {}}
            for match in filter(None, map(FRAME.fullmatch, names)):
                files[match[2]][int(match[1])] = folder / match[0]
            if any(files.values()):
                yield self._read(
                    folder, splits.get(folder.parent, {}).get(folder.name, "train"), files
                )

    def metres(self, depth: Image) -> np.ndarray:
        """(H, W) of one frame, as the colour camera sees it."""
        assert isinstance(depth, Path)
        raw = read_depth16(depth)
        return as_colour_camera(np.where(raw == UNKNOWN, 0, raw) / MM_PER_M)

    def _note_missing(self, scene: Path, missing: list[str], total: int) -> None:
        if missing:
            text = (
                f"{len(missing)} of the {total} sequences that its split files list are not there; "
                f"first {missing[0]}"
            )
            self.note(f"{self.name_of(scene)}: sequences", text)

    def _read(self, folder: Path, split: str, files: dict[str, dict[int, Path]]) -> Recording:
        name, numbers = self.name_of(folder), sorted(files["color"])
        lost = sorted((files["depth"].keys() | files["pose"].keys()) - files["color"].keys())
        places = [files["depth"].get(number) or files["pose"][number] for number in lost]
        frames = len(lost) + len(numbers)
        self.note_images(name, "color", places, frames, "frames have no colour image")
        return Recording(
            name=name,
            split=split,
            images=[files["color"][number] for number in numbers],
            time_s=np.array(numbers) / FPS,
            pose=read_poses(files["pose"].get(number) for number in numbers) @ COLOUR_TO_DEPTH,
            depth=[files["depth"].get(number) for number in numbers],
        )


def read_splits(scene: Path) -> dict[str, str]:
    """Folder of a sequence -> split, from TrainSplit.txt and TestSplit.txt of a scene; empty where
    there are none."""
    split_of: dict[str, str] = {}
    for split in ("Train", "Test"):
        path = scene / f"{split}Split.txt"
        for line in path.read_text(encoding="utf-8").split() if path.is_file() else ():
            match = re.fullmatch(r"sequence(\d+)", line)
            if match is None:
                raise BadInput(f"{path}: wanted lines such as 'sequence1', found '{line}'")
            name = f"seq-{int(match[1]):02d}"
            if split_of.setdefault(name, split.lower()) != split.lower():
                raise BadInput(f"{path}: {name} is in TrainSplit.txt too")
    return split_of


def as_colour_camera(depth_m_HW: np.ndarray) -> np.ndarray:
    """The map as the colour camera sees it: every value moves to its place there, the nearest one
    wins; 0 where none comes."""
    height, width = depth_m_HW.shape
    rows, columns = np.nonzero(depth_m_HW)
    z = depth_m_HW[rows, columns]
    zoom, shift = COLOUR_FOCAL_PX / DEPTH_FOCAL_PX, BASELINE_M * COLOUR_FOCAL_PX * width / 640 / z
    rows = np.floor((rows + 0.5 - height / 2) * zoom + height / 2).astype(int)
    columns = np.floor((columns + 0.5 - width / 2) * zoom + width / 2 - shift).astype(int)
    inside = (columns >= 0) & (columns < width)
    seen = np.full(depth_m_HW.shape, np.inf)
    np.minimum.at(seen, (rows[inside], columns[inside]), z[inside])
    return np.where(np.isinf(seen), 0, seen)
