"""ScanNet's `.sens` files, version 4: one scan's colour, depth and poses in one file.

Little-endian: version uint32, sensor name (uint64 length, bytes), four float32 4x4 matrices
(intrinsics and extrinsics of colour, then of depth), colour and depth compression int32, colour
width and height, depth width and height uint32, depth shift float32 (units per metre), number of
frames uint64. Then each frame: camera to world float32 4x4, colour and depth time uint64
(microseconds), bytes of colour and of depth uint64, and the two. What follows the frames (inertial
readings) is not read.

Written against SensReader/python/SensorData.py of github.com/ScanNet/ScanNet.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.datasets.formats.recordings import Stretch
from pipeline.errors import BadInput

VERSION = 4
COLOUR_SUFFIX = {1: ".png", 2: ".jpg"}
"""Compression -> suffix; 0 is raw."""
RAW_USHORT, ZLIB_USHORT = 0, 1
"""Compression of depth; 2 is OCCI, which no published scan uses."""
FRAME = struct.Struct("<16f4Q")


@dataclass(frozen=True)
class Sens:
    """Where everything lies in one file."""

    colour: list[Stretch]
    depth: list[Stretch]
    camera_to_world: np.ndarray
    """(F, 4, 4) float64 as stored: not finite where tracking was lost."""
    time_us: np.ndarray
    """(F,) float64, of the colour frames; 0 where none was recorded, and at times a stray one."""
    depth_hw: tuple[int, int]
    depth_shift: float
    depth_compression: int

    def metres(self, depth: Stretch) -> np.ndarray:
        """(H, W) float64, 0 where unknown. Raises BadInput if the bytes are no depth map."""
        where = f"{depth.path} at byte {depth.offset}"
        data = depth.read_bytes()
        try:
            data = zlib.decompress(data) if self.depth_compression == ZLIB_USHORT else data
        except zlib.error as error:
            raise BadInput(f"{where}: the depth map is damaged: {error}") from error
        height, width = self.depth_hw
        if len(data) != 2 * height * width:
            raise BadInput(
                f"{where}: wanted {2 * height * width} bytes of depth, found {len(data)}"
            )
        return np.frombuffer(data, "<u2").reshape(height, width) / self.depth_shift


def read_sens(path: Path) -> Sens:
    """Reads all but the images. Raises BadInput: another format, or cut off."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (version,) = _read(file, path, "<I")
        if version != VERSION:
            raise BadInput(
                f"{path}: wanted a .sens file of version {VERSION}, found version {version}"
            )
        (name_bytes,) = _read(file, path, "<Q")
        file.seek(name_bytes + 4 * 64, 1)
        compression_colour, compression_depth = _read(file, path, "<2i")
        if compression_colour not in COLOUR_SUFFIX or compression_depth not in (
            RAW_USHORT,
            ZLIB_USHORT,
        ):
            compression = (
                f"compression {compression_colour} of colour and {compression_depth} of depth"
            )
            raise BadInput(f"{path}: {compression} cannot be read, wanted 1 or 2 and 0 or 1")
        *_, width, height = _read(file, path, "<4I")
        (shift,) = _read(file, path, "<f")
        (frames,) = _read(file, path, "<Q")
        colour, depth, poses, times = [], [], [], []
        for number in range(frames):
            head = file.read(FRAME.size)
            values = FRAME.unpack(head) if len(head) == FRAME.size else None
            start = file.tell()
            if values is None or start + values[18] + values[19] > size:
                raise BadInput(f"{path}: the file is cut off: holds {number} of {frames} frames")
            poses.append(values[:16])
            times.append(values[16])
            colour.append(Stretch(path, start, values[18], COLOUR_SUFFIX[compression_colour]))
            depth.append(Stretch(path, start + values[18], values[19], ".depth"))
            file.seek(start + values[18] + values[19])
    matrices = np.array(poses, np.float64).reshape(-1, 4, 4)
    return Sens(
        colour,
        depth,
        matrices,
        np.array(times, np.float64),
        (height, width),
        shift,
        compression_depth,
    )


def _read(file: BinaryIO, path: Path, layout: str) -> tuple:
    """The next values. Raises BadInput at the end of the file."""
    data = file.read(struct.calcsize(layout))
    if len(data) < struct.calcsize(layout):
        raise BadInput(f"{path}: the file is cut off in its header: {path.stat().st_size} bytes")
    return struct.unpack(layout, data)
