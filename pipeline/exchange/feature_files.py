"""Files of features, one for each video, as the temporal action community has them.

An array is (T, C), a vector for each of T frames, or (C, T), or (T, N, C), N vectors for each
frame; all of a folder alike. It lies in an .npy file, or under some name in an .npz or HDF5 file.
Nothing is unpickled, and no link out of a file is followed.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import h5py
import numpy as np

from pipeline.config.regular_files import open_regular
from pipeline.datasets.formats.annotations import few
from pipeline.errors import BadInput, count_text
from pipeline.records import Video

Layout = Literal["TC", "CT", "TNC"]
SUFFIXES = (".npy", ".npz", ".h5", ".hdf5")
HELD_FRAMES = 4096
"""Frames that are in memory at once."""
READING = (OSError, ValueError, KeyError, RuntimeError, EOFError, zipfile.BadZipFile)
"""What damaged files raise."""


@dataclass(frozen=True)
class FeatureFile:
    """The features of one video."""

    path: Path
    key: str | None
    """Name of the array in the file; None: there is one alone."""
    layout: Layout

    @contextmanager
    def opened(self) -> Iterator[FeatureArray]:
        """The array, of which parts can be read. Raises BadInput where there is none."""
        try:
            with open_regular(self.path):  # no pipe, which would never end
                pass
            if self.path.suffix == ".npy":
                yield FeatureArray(np.load(self.path, mmap_mode="r", allow_pickle=False), self)
            elif self.path.suffix == ".npz":
                with np.load(self.path, allow_pickle=False) as archive:
                    yield FeatureArray(archive[self._chosen(archive.files)], self)
            else:
                with h5py.File(self.path, "r", locking=False) as file:
                    yield FeatureArray(self._plain(file), self)
        except READING as error:
            raise BadInput(f"{self.path} cannot be read: {_reason(error)}") from error

    def sha256(self) -> str:
        """The SHA-256 of all bytes of the file, in hexadecimal digits."""
        with open_regular(self.path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]

    def _chosen(self, names: list[str]) -> str:
        if self.key is None and len(names) == 1:
            return names[0]
        if self.key not in names:
            wanted = "say which one" if self.key is None else f"wanted '{self.key}'"
            raise BadInput(f"{self.path} holds the arrays {few(names)}: {wanted}", "--key NAME")
        return self.key

    def _plain(self, file: h5py.File) -> h5py.Dataset:
        array = file.get(self._chosen(list(file)), getlink=True)
        name = self._chosen(list(file))
        dataset = file[name] if isinstance(array, h5py.HardLink) else None
        if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
            raise ValueError(f"'{name}' is no array that lies in the file")
        return dataset


class FeatureArray:
    """(T, N, C) float32, read in parts, whatever the layout of the file."""

    def __init__(self, array: Any, file: FeatureFile) -> None:
        """Raises BadInput where it holds no numbers in the layout."""
        self._array, self._file = array, file
        axes = {2: "TC, or CT by --layout CT", 3: "TNC"}
        if array.ndim != len(file.layout):
            raise BadInput(
                f"{file.path}: the array is {shape_text(array.shape)}, wanted {len(file.layout)} "
                f"axes, {file.layout}",
                f"{array.ndim} axes are {axes[array.ndim]}" if array.ndim in axes else "",
            )
        if array.dtype.kind not in "fiu":
            raise BadInput(f"{file.path}: the array holds {array.dtype}, wanted numbers")
        if 0 in array.shape:
            raise BadInput(f"{file.path} is empty: {shape_text(array.shape)}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, N, C)."""
        sizes = dict(zip(self._file.layout, self._array.shape, strict=True))
        return sizes["T"], sizes.get("N", 1), sizes["C"]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """(frames, N, C) float32 of some frames."""
        if self._file.layout == "CT":
            part = np.asarray(self._array[:, start:stop]).T
        else:
            part = np.asarray(self._array[start:stop])
        _, count, width = self.shape
        return np.array(part, np.float32, order="C").reshape(len(part), count, width)

    def extremes(self) -> tuple[float, float]:
        """Its least and greatest number. Raises BadInput where one is not finite."""
        frames, low, high = self.shape[0], np.inf, -np.inf
        for start in range(0, frames, HELD_FRAMES):
            rows = self.rows(start, min(frames, start + HELD_FRAMES))
            is_good = np.isfinite(rows).all((1, 2))
            if not is_good.all():
                first = int(np.argmin(is_good))
                value = rows[first][~np.isfinite(rows[first])][0]
                raise BadInput(
                    f"{self._file.path} holds {value:g} in frame {start + first} of {frames}, "
                    "counted from 0",
                    "mend the file, or leave the video out of the manifest",
                )
            low, high = min(low, float(rows.min())), max(high, float(rows.max()))
        return low, high


def feature_files(
    folder: Path, videos: tuple[Video, ...], key: str | None, layout: Layout
) -> Mapping[str, FeatureFile]:
    """video_id -> its file in the folder: called like the id or the video, with or without the
    folders and the suffix of the video. Raises BadInput where some have none, or two share one."""
    if not folder.is_dir():
        raise BadInput(f"folder of features {folder} does not exist")
    there = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix in SUFFIXES and path.is_file()
    }
    found: dict[str, FeatureFile] = {}
    missing, owner = [], dict[str, str]()
    for video in videos:
        names = [name + suffix for name in _names_of(video) for suffix in SUFFIXES]
        name = next((name for name in names if name in there), None)
        if name is None:
            missing.append(video.video_id)
        elif owner.setdefault(name, video.video_id) != video.video_id:
            raise BadInput(
                f"{folder / name} is of two videos: {owner[name]} and {video.video_id}",
                "give their features the names of the videos, with their folders",
            )
        else:
            found[video.video_id] = FeatureFile(folder / name, key, layout)
    if missing:
        raise BadInput(
            f"{folder} has no features of {len(missing)} of {count_text(len(videos), 'video')} of "
            f"the manifest: {few(missing)}",
            f"wanted NAME{' or NAME'.join(SUFFIXES)}; stillframe manifest select makes a manifest "
            "without them",
        )
    return found


def _names_of(video: Video) -> list[str]:
    """What the file of a video may be called, without its suffix, the most telling first."""
    names = []
    for text in (video.video_id, video.source):
        path = PurePosixPath(text)
        names += [path.as_posix(), path.with_suffix("").as_posix(), path.name, path.stem]
    return list(dict.fromkeys(names))


def shape_text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__
