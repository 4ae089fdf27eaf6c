"""Arrays of one clip in targets.h5, each of which is looked at before it is read.

HDF5 can do more than hold numbers: links and virtual data sets lead into other files, and external
storage makes any file of the machine part of an array. A manifest may come from a stranger, so what
is read is plain numbers that lie in the file itself, in the shapes that `SHAPES` says, packed by
the three filters that are written.
"""

from __future__ import annotations

import os
from typing import Any

import h5py
import numpy as np

from pipeline.datasets.manifest.jsonl import REBUILD
from pipeline.datasets.manifest.targets_file import target_group
from pipeline.errors import BadInput

SHAPES: dict[str, tuple[str | int, ...]] = {
    "boxes": ("O", "F", 4),
    "points": ("Q", "F", 2),
    "visible": ("Q", "F"),
    "depth_m": ("F", "H", "W"),
    "pose": ("F", 4, 4),
    "segments_s": ("S", 2),
    "segment_class": ("S",),
}
"""Array -> its axes. F frames have times in an array of their own, such as `boxes_time_s` (F,)."""
TIMES_OF = {"visible": "points"}
"""Array -> the other one whose times are its own."""
FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
LAYOUTS = {h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED}
MOST_PACKED = 1032
"""Bytes that deflate makes of one, at most."""
MOST_ARRAYS = 64
LIBRARY = (OSError, RuntimeError, KeyError, ValueError, TypeError, IndexError, AttributeError)
"""What h5py raises for a damaged file."""


class ClipTargets:
    """The arrays of one clip. `file` is not to be used by another thread meanwhile."""

    def __init__(self, file: h5py.File, clip_id: str) -> None:
        """Without a group of the clip there are no arrays. Raises BadInput."""
        self.where = f"{file.filename}: clip '{clip_id}'"
        self._file_bytes = os.fstat(file.id.get_vfd_handle()).st_size
        self._group: Any = {}
        name, problem = target_group(clip_id), ""
        try:
            if _link_type(file, name) is not None:
                self._group = file[name] if _is_own(file, name) else None
                if not isinstance(self._group, h5py.Group) or len(self._group) > MOST_ARRAYS:
                    problem = f"is no group of at most {MOST_ARRAYS} arrays in this file"
        except LIBRARY as error:
            problem = f"cannot be read: {error}"
        if problem:
            raise self._refused(problem)

    @property
    def names(self) -> list[str]:
        return list(self._group)

    def __contains__(self, name: str) -> bool:
        return bool(self._group) and _link_type(self._group, name) is not None

    def read(self, name: str, rows: Any = ()) -> np.ndarray:
        """An array, or some rows of it. Raises BadInput."""
        array = self._checked(name)
        try:
            return np.asarray(array[rows])
        except LIBRARY as error:
            raise self._refused(f"array '{name}' cannot be read: {error}") from error

    def _checked(self, name: str) -> h5py.Dataset:
        try:
            array = self._group[name] if _is_own(self._group, name) else None
            problem = self._problem(name, array)
        except LIBRARY as error:
            problem = f"cannot be read: {error}"
        if problem:
            raise self._refused(f"array '{name}' {problem}")
        return array

    def _problem(self, name: str, array: object) -> str:
        """What is wrong with an array, "" if nothing is."""
        if not isinstance(array, h5py.Dataset):
            return "is missing, or a link"
        layout = array.id.get_create_plist()
        filters = {layout.get_filter(number)[0] for number in range(layout.get_nfilters())}
        if array.external or array.is_virtual or layout.get_layout() not in LAYOUTS:
            return "lies in another file"
        if not filters <= FILTERS:
            return f"is packed by unknown filters: {sorted(filters - FILTERS)}"
        if array.dtype.kind not in "biuf" or array.shape is None:
            return f"holds {array.dtype}, wanted numbers"
        held = MOST_PACKED * min(array.id.get_storage_size(), self._file_bytes)
        if array.nbytes > held:
            return f"claims {array.nbytes:,} bytes, and the file has at most {held:,} for them"
        return self._misfit(name, array)

    def _misfit(self, name: str, array: h5py.Dataset) -> str:
        axes: tuple[str | int, ...] = ("F",) if name.endswith("_time_s") else SHAPES.get(name, ())
        fits = len(array.shape) == len(axes) and all(
            isinstance(axis, str) or axis == size
            for axis, size in zip(axes, array.shape, strict=True)
        )
        if axes and not fits:
            return f"has the shape {array.shape}, wanted {axes}"
        if "F" in axes and name in SHAPES:
            times = f"{TIMES_OF.get(name, name)}_time_s"
            time_s = self._group[times] if _is_own(self._group, times) else None
            frames = array.shape[axes.index("F")]
            if not isinstance(time_s, h5py.Dataset) or time_s.shape != (frames,):
                return f"has {frames} frames, and '{times}' not as many times"
        return ""

    def _refused(self, problem: str) -> BadInput:
        return BadInput(f"{self.where} {problem}", REBUILD)


def _link_type(group: Any, name: str) -> int | None:
    """The type of a link in a group; None if there is none. Nothing is followed."""
    links = group.id.links
    return links.get_info(name.encode()).type if links.exists(name.encode()) else None


def _is_own(group: Any, name: str) -> bool:
    """Whether a name in a group stands for something in the same file, and not for a path."""
    return _link_type(group, name) == h5py.h5l.TYPE_HARD
