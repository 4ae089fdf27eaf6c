"""ScanNet v2: indoor scans with depth and camera poses, from `.sens` files or from folders that
SensReader exported.

    root/**/scene0000_00/scene0000_00.sens                    as downloaded (scans/, scans_test/)
    root/**/scene0000_00/{color,depth,pose}/17.{jpg,png,txt}  as SensReader's reader.py exports
                                                              them; used where both exist
    root/scannetv2_{train,val,test}.txt                       the official splits: one scan per line

Depth is in millimetres, 0 where unknown, and seen by a camera of nearly the same view as the colour
camera; it is taken as it is. A pose is camera to world; where tracking was lost it is -inf and
becomes NaN. Exported frames have no times: frame k is shown at k / 30 s, so frames left out by
`--frame_skip` leave gaps. A `.sens` file is read alike where any of its times is missing or stray.

Scans of one place are a group. A scan that no split file lists is left out, with a note. Without
split files, scans under scans_test are `test` and all others `train`.

How frames are laid out is said in `_rgbd.py`. Written against SensReader of
github.com/ScanNet/ScanNet (.sens version 4).
"""

from __future__ import annotations

import re
from collections import defaultdict
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
    rigid,
)
from pipeline.datasets.formats.sens import Sens, read_sens
from pipeline.errors import BadInput

FPS = 30
MM_PER_M = 1000
LONGEST_STEP = 1000
"""Steps between time stamps that are this many times the usual one are no pause of the camera."""
SPLITS = ("train", "val", "test")


class Settings(DepthSettings):
    """Where frames are laid out, and how finely depth is kept."""


class Dataset(RecordingDataset):
    """One clip per scan."""

    Settings = Settings
    _sens: dict[Path, Sens]

    def recordings(self) -> Iterator[Recording]:
        """Sorted by scan. Raises BadInput if a scan is there twice, or in two splits."""
        self._sens = {}
        scans = self._find()
        listed = self._read_splits()
        self._note_missing(scans, listed)
        for name in sorted(scans):
            path = scans[name]
            split = (
                listed.get(name) if listed else "test" if "scans_test" in path.parts else "train"
            )
            if split is None:
                self.note(name, "none of scannetv2_{train,val,test}.txt lists it")
                continue
            try:
                yield (
                    self._from_sens(name, split, path)
                    if path.suffix == ".sens"
                    else self._from_export(name, split, path)
                )
            except BadInput as error:
                self.rejected[name] = error.message

    def metres(self, depth: Image) -> np.ndarray:
        """(H, W) of one frame."""
        if isinstance(depth, Path):
            return read_depth16(depth) / MM_PER_M
        return self._sens[depth.path].metres(depth)

    def _find(self) -> dict[str, Path]:
        """Scan -> its exported folder, else its `.sens` file."""
        exported: dict[str, list[Path]] = defaultdict(list)
        packed: dict[str, list[Path]] = defaultdict(list)
        for folder, folders, files in self.walk():
            for name in files:
                if name.endswith(".sens"):
                    packed[name.removesuffix(".sens")].append(folder / name)
            if "color" in folders:
                exported[folder.name].append(folder)
                folders.clear()
        paths_of_scan = packed | exported
        for name, paths in paths_of_scan.items():
            if len(paths) > 1:
                raise BadInput(
                    f"scan '{name}' is there {len(paths)} times: {paths[0]} and {paths[1]}",
                    "keep one of them",
                )
        return {name: paths[0] for name, paths in paths_of_scan.items()}

    def _read_splits(self) -> dict[str, str]:
        """Scan -> split; empty without split files."""
        split_of: dict[str, str] = {}
        for split in SPLITS:
            path = self.official / f"scannetv2_{split}.txt"
            for name in path.read_text(encoding="utf-8").split() if path.is_file() else ():
                if split_of.setdefault(name, split) != split:
                    raise BadInput(f"{path}: scan '{name}' is in split '{split_of[name]}' too")
        return split_of

    def _note_missing(self, scans: dict[str, Path], listed: dict[str, str]) -> None:
        for split in SPLITS:
            names = [name for name in listed if listed[name] == split]
            missing = [name for name in names if name not in scans]
            if missing:
                text = (
                    f"{len(missing)} of the {len(names)} scans it lists are not there; "
                    f"first {missing[0]}"
                )
                self.note(f"scannetv2_{split}.txt", text)

    def _from_sens(self, name: str, split: str, path: Path) -> Recording:
        sens = read_sens(path)
        self._sens[path] = sens
        time_s = self._times(name, sens.time_us)
        pose = rigid(sens.camera_to_world)
        return Recording(name, split, sens.colour, time_s, pose, sens.depth, place_of(name))

    def _times(self, name: str, time_us: np.ndarray) -> np.ndarray:
        """(F,) seconds of the frames of a .sens file: its time stamps if all of them can be times,
        else k / FPS, with a note unless it has none at all."""
        frames, stamped, step_us = len(time_us), np.count_nonzero(time_us), np.diff(time_us)
        usual_us = np.median(step_us) if frames > 1 else 0.0
        stray = (step_us <= 0) | (step_us > LONGEST_STEP * usual_us)
        if stamped and not stray.any():
            return time_us / 1e6
        if stamped:
            problem = (
                f"{frames - stamped} of {frames} frames have no time stamp"
                if stamped < frames - 1
                else f"the time stamp of frame {int(stray.argmax()) + 1} does not follow the others"
            )
            self.note(name, f"{problem}: frame k is taken at k / {FPS} s")
        return np.arange(frames) / FPS

    def _from_export(self, name: str, split: str, folder: Path) -> Recording:
        colour, depth, poses = (
            frames_by_number(folder / kind) for kind in ("color", "depth", "pose")
        )
        lost = sorted((depth.keys() | poses.keys()) - colour.keys())
        places = [depth.get(number) or poses[number] for number in lost]
        frames = len(colour) + len(lost)
        self.note_images(name, "color", places, frames, "frames have no colour image")
        numbers = sorted(colour)
        return Recording(
            name=name,
            split=split,
            images=[colour[number] for number in numbers],
            time_s=np.array(numbers) / FPS,
            pose=read_poses(poses.get(number) for number in numbers),
            depth=[depth.get(number) for number in numbers],
            group=place_of(name),
        )


def place_of(scan: str) -> str | None:
    """`scene0000` of `scene0000_01`, its second scan; None for other names."""
    match = re.fullmatch(r"(scene\d{4})_\d\d", scan)
    return match and match[1]


def frames_by_number(folder: Path) -> dict[int, Path]:
    """Frame -> file, for names such as 17.jpg or 000017.jpg; empty if there is no such folder."""
    return {int(path.stem): path for path in sorted(folder.glob("*")) if path.stem.isdecimal()}
