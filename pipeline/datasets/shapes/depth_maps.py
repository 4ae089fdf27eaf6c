"""Depth maps in files: 16-bit PNG, NumPy, PFM, OpenEXR, and the .dpt of MPI Sintel."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from pipeline.config.regular_files import read_regular
from pipeline.datasets.formats.recordings import read_depth16, read_image
from pipeline.datasets.shapes.pose_files import SINTEL_TAG, load_npy
from pipeline.errors import BadInput

MOST_BYTES = 1 << 30
"""Of one map."""
FORMATS = (".png", ".npy", ".pfm", ".exr", ".dpt")


def read_depth_map(path: Path) -> np.ndarray:
    """(H, W) as stored, in whatever unit. Raises BadInput if it is no map in one of the formats."""
    suffix = path.suffix.lower()
    if suffix == ".png":
        return read_depth16(path)
    if suffix == ".npy":
        values = load_npy(path)
    elif suffix == ".pfm":
        values = _pfm(_bytes(path), path)
    elif suffix == ".dpt":
        values = _dpt(_bytes(path), path)
    elif suffix == ".exr":
        values = read_image(path, str(path))
        values = values[..., 0] if values.ndim == 3 else values
    else:
        raise BadInput(f"{path}: wanted a depth map ending in {', '.join(FORMATS)}")
    values = np.squeeze(values)
    if values.ndim != 2 or not values.size:
        raise BadInput(f"{path}: wanted a map of one number a pixel, found {values.shape}")
    return values


def along_axis(distance_HW: np.ndarray, fx_fy_cx_cy: tuple[float, ...]) -> np.ndarray:
    """Distances from the camera's centre, along the ray of each pixel, as distances along its axis.

    The focal lengths and the principal point are in pixels of the map; a pixel's centre lies at i +
    0.5.
    """
    fx, fy, cx, cy = fx_fy_cx_cy
    height, width = distance_HW.shape
    x_W = (np.arange(width) + 0.5 - cx) / fx
    y_H = (np.arange(height) + 0.5 - cy) / fy
    ray: np.ndarray = np.sqrt(1 + x_W[None] ** 2 + y_H[:, None] ** 2)
    return distance_HW / ray


def _bytes(path: Path) -> bytes:
    try:
        return read_regular(path, MOST_BYTES)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error


def _pfm(data: bytes, path: Path) -> np.ndarray:
    """A portable float map of one channel: its rows run from below."""
    match = re.match(rb"Pf\s+(\d+)\s+(\d+)\s+(-?[\d.]+)\s", data)
    if match is None:
        raise BadInput(f"{path} is no portable float map of one channel")
    width, height = int(match[1]), int(match[2])
    order = "<" if float(match[3]) < 0 else ">"
    return _grid(data[match.end() :], order, height, width, path)[::-1]


def _dpt(data: bytes, path: Path) -> np.ndarray:
    """A tag, width, height, and 32-bit floats."""
    if len(data) < 12 or np.frombuffer(data[:4], "<f4")[0] != SINTEL_TAG:
        raise BadInput(f"{path} is no depth map of Sintel")
    width, height = np.frombuffer(data[4:12], "<i4").tolist()
    return _grid(data[12:], "<", height, width, path)


def _grid(data: bytes, order: str, height: int, width: int, path: Path) -> np.ndarray:
    if min(height, width) < 1 or len(data) != 4 * height * width:
        raise BadInput(f"{path}: {len(data)} bytes are no {width} x {height} floats")
    return np.frombuffer(data, f"{order}f4").reshape(height, width).astype(np.float32)
