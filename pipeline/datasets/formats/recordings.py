"""Helpers that data sets of camera recordings share: frames as image folders, depth and poses.

None of their official layouts is a readable video: frames lie inside large files, among depth maps,
or in several folders with times elsewhere. So `clips()` lays every recording out once, as one image
folder with its true times, and the clip reads that:

    FRAMES_DIR/<clip>/frame_000000.jpg ...  frames in order of time: links to the official files,
                                            or, where frames lie inside a larger file, their bytes
                                            as they stand there; no pixel is encoded anew
    FRAMES_DIR/<clip>/timestamps.txt        seconds since the recording's first frame, one line per
                                            frame

FRAMES_DIR is the setting `frames_dir`, a folder beside the manifest; nothing else is written, and
the official files are never touched. Links are relative where FRAMES_DIR lies inside the root. A
recording that is laid out already, with the same frames and times, is left alone; a new one is
written aside and renamed.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import av
import numpy as np
from pydantic import Field

from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.formats.folders import walk
from pipeline.datasets.formats.splits import SplitSettings, split_dataset
from pipeline.errors import BadInput, BadVideo
from pipeline.records import Clip
from pipeline.video.probe import TIMESTAMPS, probe

FRAMES_DIR = "stillframe_frames"
OURS = re.compile(rf"frame_\d{{6,}}\.\w+|{re.escape(TIMESTAMPS)}")
"""Names of the files in an image folder that this module has laid out; it holds no others."""
ORTHONORMAL = 0.05
"""Largest entry of R R^T - I that still passes for a rotation: official files round to a few
digits."""


class FramesSettings(SplitSettings):
    """Where frames are laid out."""

    frames_dir: str = FRAMES_DIR
    """Folder for the frames, relative to that of the manifest or absolute; several manifests of one
    data set may share one."""
    val_last: float = Field(default=0.0, ge=0, lt=1)
    """Share at the end of every `train` recording that becomes a `val` recording of its own, for
    where there is but one."""


class DepthSettings(FramesSettings):
    """Where frames are laid out, and how finely depth is kept."""

    depth_px: int = Field(default=224, ge=1)
    """Short side of the depth maps, each value that of the nearest pixel; smaller maps keep their
    size."""


@dataclass(frozen=True)
class Stretch:
    """One image inside a larger file."""

    path: Path
    offset: int
    length: int
    suffix: str
    head: bytes = b""
    """What makes an image of bytes that are none by themselves."""

    @property
    def size(self) -> int:
        return len(self.head) + self.length

    def read_bytes(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return self.head + file.read(self.length)


Image = Path | Stretch


@dataclass(frozen=True)
class Recording:
    """A sequence of frames with what is known of them."""

    name: str
    """Clip, video and folder of frames; may hold slashes."""
    split: str
    images: Sequence[Image]
    """F frames in order of time."""
    time_s: np.ndarray
    """(F,) strictly increasing; counted from its first when laid out."""
    pose: np.ndarray | None = None
    """(F, 4, 4) camera to world; NaN where unknown."""
    depth: Sequence[Image | None] = ()
    """The depth map of every frame, None where it has none; empty: the data set has none."""
    group: str | None = None
    """As in `Clip`."""


class RecordingDataset(DatasetPlugin):
    """One clip per recording. A plug-in defines `recordings()` and, where there is depth,
    `metres()`."""

    def __init__(
        self, root: Path, settings: Any, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        super().__init__(root, settings, on_progress)
        self.official = root.resolve()
        """The user's folder; `root` is from `write_beside` on the folder of frames, which the
        sources are relative to."""
        self._recordings: dict[str, Recording] = {}

    def write_beside(self, manifest_folder: Path) -> None:
        """Frames go into the folder `frames_dir` of that of the manifest."""
        self.root = (manifest_folder / self.settings.frames_dir).resolve()

    @abstractmethod
    def recordings(self) -> Iterator[Recording]:
        """All recordings in a stable order; what cannot be one goes to `rejected`."""

    def metres(self, depth: Image) -> np.ndarray:
        """One depth map (H, W) along the optical axis; 0 where unknown. Raises BadInput if it is
        damaged."""
        raise NotImplementedError

    def clips(self) -> Iterator[Clip]:
        """Lays out what is not there yet. Raises BadInput if the frames cannot be written."""
        if self.official.is_relative_to(self.root):
            raise BadInput(
                f"frames_dir must not be the root or hold it, found {self.settings.frames_dir}"
            )
        recordings = [
            part
            for recording in self._split(list(self.recordings()))
            for part in split_off(recording, self.settings.val_last)
        ]
        for done, recording in enumerate(recordings, start=1):
            if self._is_good(recording):
                self._recordings[recording.name] = recording
                yield _clip(recording)
            self.on_progress(done, len(recordings))

    def _split(self, recordings: list[Recording]) -> list[Recording]:
        """The recordings in the splits that the settings ask for."""
        placed = {clip.clip_id: clip for clip in split_dataset(self, map(_clip, recordings))}
        return [
            replace(recording, split=clip.split, group=clip.group)
            for recording in recordings
            if (clip := placed.get(recording.name))
        ]

    def walk(self) -> Iterator[tuple[Path, list[str], list[str]]]:
        """(folder, names of its folders, names of its files) of the root and all below it, in
        order, without folders of frames, of which earlier versions put one there; see
        `folders.walk`."""
        for folder, folders, files in walk(self.official, self.leave_out):
            if self.is_laid_out(folder):
                folders.clear()
                continue
            yield folder, folders, files

    def is_laid_out(self, path: Path) -> bool:
        """Whether a path under the root is, or lies in, a folder of frames."""
        is_ours = self.root != self.official and path.is_relative_to(self.root)
        return is_ours or FRAMES_DIR in path.relative_to(self.official).parts

    def name_of(self, folder: Path) -> str:
        """Path of a folder under the root; of the root itself, its name."""
        return (
            folder.name if folder == self.official else folder.relative_to(self.official).as_posix()
        )

    def _is_good(self, recording: Recording) -> bool:
        """Lays the recording out; if it cannot be a clip, rejects it."""
        name, frames = recording.name, len(recording.images)
        if name in self._recordings:
            self.rejected[f"{name} ({self.where(recording.images[0])})"] = (
                f"there is a '{name}' already"
            )
            return False
        if PurePosixPath(name).is_absolute() or {"..", "."} & set(name.split("/")):
            self.rejected[name] = "its name leads out of the folder of frames"
            return False
        if not frames:
            self.rejected[name] = "has no frames"
            return False
        if not (np.isfinite(recording.time_s).all() and (np.diff(recording.time_s) > 0).all()):
            self.rejected[name] = "its times are not finite and strictly increasing"
            return False
        lay_out(self.root / name, recording, self.official)
        try:
            probe(self.root / name)
        except BadVideo as error:
            self.rejected[name] = f"{self.where(recording.images[0])}: {error.message}"
            return False
        if recording.depth:
            without = [
                image
                for image, depth in zip(recording.images, recording.depth, strict=True)
                if depth is None
            ]
            self.note_images(name, "depth", without, frames, "frames have no depth")
        if recording.pose is not None:
            lost = [
                image
                for image, pose in zip(recording.images, recording.pose, strict=True)
                if np.isnan(pose).any()
            ]
            lacking = "frames have no finite pose, kept as NaN"
            self.note_images(name, "pose", lost, frames, lacking)
        return True

    def note_images(
        self, name: str, what: str, images: Sequence[Image], total: int, lacking: str
    ) -> None:
        """Notes what a clip lacks, though it is a clip: how many of its images, and the first."""
        if images:
            remark = f"{len(images)} of {total} {lacking}; first {self.where(images[0])}"
            self.note(f"{name}: {what}", remark)

    def where(self, image: Image) -> str:
        """A file's path for the user, relative to the root if inside it."""
        path = image if isinstance(image, Path) else image.path
        shown = (
            path.relative_to(self.official).as_posix()
            if path.is_relative_to(self.official)
            else str(path)
        )
        return shown if isinstance(image, Path) else f"{shown} at byte {image.offset}"

    def targets(self, clip: Clip) -> dict[str, np.ndarray]:
        """`pose` of every frame and `depth_m`, float16, of those that have it. Raises BadInput at a
        damaged depth map."""
        recording = self._recordings[clip.clip_id]
        time_s = recording.time_s - recording.time_s[0]
        arrays: dict[str, np.ndarray] = {}
        if recording.pose is not None:
            arrays |= {"pose": recording.pose, "pose_time_s": time_s}
        frames = [frame for frame, depth in enumerate(recording.depth) if depth is not None]
        if frames:
            maps = [self._small_depth(depth) for depth in recording.depth if depth is not None]
            if len({depth.shape for depth in maps}) > 1:
                raise BadInput(
                    f"{self.where(recording.images[0])}: the depth maps of '{recording.name}' "
                    "differ in size"
                )
            arrays |= {"depth_m": np.stack(maps), "depth_m_time_s": time_s[frames]}
        return arrays

    def _small_depth(self, depth: Image) -> np.ndarray:
        return nearest_pixels(self.metres(depth), self.settings.depth_px).astype(np.float16)


def _clip(recording: Recording) -> Clip:
    name = recording.name
    return Clip(name, name, name, recording.split, group=recording.group)


def split_off(recording: Recording, share: float) -> list[Recording]:
    """A recording of `train` as its beginning and, in `val`, its end; others, and those too short
    to be split, as they are."""
    frames = len(recording.images)
    cut = frames - round(frames * share)
    if recording.split != "train" or cut in (0, frames):
        return [recording]

    def part(rows: slice, name: str, split: str) -> Recording:
        pose = None if recording.pose is None else recording.pose[rows]
        return Recording(
            f"{recording.name}_{name}",
            split,
            recording.images[rows],
            recording.time_s[rows],
            pose,
            recording.depth[rows],
            recording.group,
        )

    return [part(slice(cut), "first", "train"), part(slice(cut, None), "last", "val")]


def lay_out(folder: Path, recording: Recording, official: Path) -> None:
    """Makes `folder` the image folder of a recording. Raises BadInput if it may not be written or
    holds other files."""
    named = {
        f"frame_{number:06d}{image.suffix.lower()}": image
        for number, image in enumerate(recording.images)
    }
    inside = folder.is_relative_to(official)
    links = {
        name: _link(image, folder, inside)
        for name, image in named.items()
        if isinstance(image, Path)
    }
    times = "".join(f"{float(time_s)!r}\n" for time_s in recording.time_s - recording.time_s[0])
    if _is_laid_out(folder, named, links, times):
        return
    aside = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name, image in named.items():
            if isinstance(image, Path):
                (aside / name).symlink_to(links[name])
            else:
                (aside / name).write_bytes(image.read_bytes())
        (aside / TIMESTAMPS).write_text(times, encoding="ascii")
        if folder.exists():
            _check_ours(folder)
            shutil.rmtree(folder)
        aside.replace(folder)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        hint = "name a folder that can be written: --set frames_dir=FOLDER"
        raise BadInput(f"frames cannot be laid out in {folder}: {error.strerror}", hint) from error


def _link(image: Path, folder: Path, inside: bool) -> str:
    return os.path.relpath(image, folder) if inside else str(image)


def _is_laid_out(folder: Path, named: dict[str, Image], links: dict[str, str], times: str) -> bool:
    if (
        not (folder / TIMESTAMPS).is_file()
        or (folder / TIMESTAMPS).read_text(encoding="utf-8", errors="replace") != times
    ):
        return False
    if {file.name for file in folder.iterdir()} != {TIMESTAMPS, *named}:
        return False
    return all(
        (folder / name).is_symlink() and str((folder / name).readlink()) == links[name]
        if isinstance(image, Path)
        else (folder / name).stat().st_size == image.size
        for name, image in named.items()
    )


def _check_ours(folder: Path) -> None:
    """A folder that holds anything else is the user's own and is never replaced."""
    foreign = sorted(file.name for file in folder.iterdir() if not OURS.fullmatch(file.name))
    if foreign:
        names = ", ".join(foreign[:3])
        problem = f"frames cannot be laid out in {folder}: it holds other files ({names})"
        raise BadInput(problem, "name another folder: --set frames_dir=FOLDER")


def read_image(image: Image | memoryview | bytes, where: str) -> np.ndarray:
    """(H, W) or (H, W, C) of an 8 or 16 bit image as stored. Raises BadInput, naming `where`, if it
    cannot be decoded."""
    try:
        data = image if isinstance(image, memoryview | bytes) else image.read_bytes()
        with av.open(io.BytesIO(data), "r") as container:
            for frame in container.decode(video=0):
                return frame.to_ndarray()
    except (av.FFmpegError, OSError) as error:
        raise BadInput(f"{where} cannot be read as an image: {error.strerror}") from error
    raise BadInput(f"{where} holds no picture")


def read_depth16(path: Path) -> np.ndarray:
    """(H, W) uint16 of a depth map as stored. Raises BadInput if it is no 16-bit grey image."""
    depth = read_image(path, str(path))
    if depth.dtype != np.uint16 or depth.ndim != 2:
        raise BadInput(
            f"{path}: wanted a 16-bit grey image of depth, found {depth.dtype} {depth.shape}"
        )
    return depth


def nearest_pixels(depth_HW: np.ndarray, short_px: int) -> np.ndarray:
    """The map at a short side of at most `short_px`: of each cell its central pixel, as a mean is
    the depth of nothing."""
    height, width = depth_HW.shape
    scale = min(1.0, short_px / min(height, width))
    rows, columns = (
        ((np.arange(count) + 0.5) * size / count).astype(int)
        for size, count in ((height, round(height * scale)), (width, round(width * scale)))
    )
    return depth_HW[rows[:, None], columns]


def read_numbers(path: Path, columns: int) -> np.ndarray:
    """(rows, columns) of a text file of numbers; lines that begin with '#' are passed over. Raises
    BadInput."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            rows.append([float(word) for word in words])
        except ValueError as error:
            raise BadInput(
                f"{path} line {number}: wanted {columns} numbers, found '{line[:40]}'"
            ) from error
        if len(words) != columns:
            raise BadInput(f"{path} line {number}: wanted {columns} numbers, found {len(words)}")
    return np.array(rows, np.float64).reshape(-1, columns)


def read_poses(paths: Iterable[Path | None]) -> np.ndarray:
    """(F, 4, 4) of text files of 16 numbers; NaN where there is no file, and where it is malformed
    or no rigid motion."""
    rows = []
    for path in paths:
        try:
            values = (
                [float(word) for word in path.read_text(encoding="utf-8", errors="replace").split()]
                if path
                else []
            )
        except (OSError, ValueError):
            values = []
        rows.append(values if len(values) == 16 else [np.nan] * 16)
    return rigid(np.array(rows, np.float64).reshape(-1, 4, 4))


def rigid(pose_F44: np.ndarray) -> np.ndarray:
    """float64 (F, 4, 4) or, made up to it, (F, 3, 4): NaN in every pose that is not finite or whose
    rotation is none."""
    pose = np.tile(np.eye(4), (len(pose_F44), 1, 1))
    pose[:, :3] = pose_F44[:, :3]
    finite = np.isfinite(pose_F44).all((1, 2))
    rotation = np.where(finite[:, None, None], pose[:, :3, :3], 0)
    off = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
    pose[(off > ORTHONORMAL) | (np.linalg.det(rotation) < 0)] = np.nan
    return pose


def motion(translation_F3: np.ndarray, wxyz_F4: np.ndarray) -> np.ndarray:
    """Places (F, 3) and quaternions (F, 4), real part first and of any length, -> (F, 4, 4); NaN
    where they are not finite."""
    with np.errstate(invalid="ignore", divide="ignore"):
        w, x, y, z = (wxyz_F4 / np.linalg.norm(wxyz_F4, axis=1, keepdims=True)).T
    pose = np.tile(np.eye(4), (len(translation_F3), 1, 1))
    pose[:, 0, :3] = np.stack(
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], axis=1
    )
    pose[:, 1, :3] = np.stack(
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], axis=1
    )
    pose[:, 2, :3] = np.stack(
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], axis=1
    )
    pose[:, :3, 3] = translation_F3
    return rigid(pose)
