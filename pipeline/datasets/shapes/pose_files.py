"""Poses of cameras in text, NumPy, JSON and Sintel files.

A file holds one pose, of one frame, or a row for every pose of a sequence. The columns of a row are
a list of names:

    matrix                          the rest of the row: 3x4 or 4x4 numbers, row by row
    tx, ty, tz, qx, qy, qz, qw      a place and a quaternion, in any order
    time, frame                     when, or of which frame, the pose is
    -                               a column that nobody reads; `...` at the end is any more

Without `time` and `frame`, row k is of the k-th image. `.npy` holds matrices (N, 3, 4) or (N, 4,
4), or one; `.json` is a list of `frames` with `file_path` and `transform_matrix`, as NeRF's data
sets have it; `.cam` is the camera of a frame of MPI Sintel (sintel_io.py: world to camera).
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from pipeline.config.regular_files import read_regular
from pipeline.datasets.formats.annotations import field, load_json, numbers
from pipeline.datasets.formats.recordings import motion, rigid
from pipeline.errors import BadInput

MOST_BYTES = 1 << 30
"""Of a file of poses."""
MATRIX, MORE, UNREAD = "matrix", "...", "-"
PLACE, TURN = ("tx", "ty", "tz"), ("qw", "qx", "qy", "qz")
SINTEL_TAG = np.float32(202021.25)
"""First four bytes of Sintel's binary files."""


class PoseRows(NamedTuple):
    """N poses as they stand in a file; NaN where one is no rigid motion."""

    pose: np.ndarray
    """(N, 4, 4)."""
    time: np.ndarray | None = None
    """(N,) as written."""
    frame: list[str] | None = None
    """Name or number of each one's frame."""


def check_pose_columns(text: str, where: str) -> tuple[str, ...]:
    """The names of the columns. Raises BadInput unless they hold one pose."""
    names = tuple(name.strip() for name in text.split(","))
    named = [name for name in names if name not in (UNREAD, MORE)]
    known = {MATRIX, "time", "frame", *PLACE, *TURN}
    odd = [name for name in named if name not in known or named.count(name) > 1]
    poses = (MATRIX in named) + ({*PLACE, *TURN} <= set(named))
    if odd or poses != 1 or (MATRIX in named and names[-1] != MATRIX) or MORE in names[:-1]:
        raise BadInput(
            f"{where}: wanted columns such as 'matrix' or 'time,tx,ty,tz,qx,qy,qz,qw', found "
            f"'{text}'",
            "matrix stands last and is the rest of the row; - is a column that is not read",
        )
    return names


def read_pose_rows(path: Path, columns: tuple[str, ...], header_lines: int) -> PoseRows:
    """All poses of a file. Raises BadInput with the line where one is not as the columns say."""
    if path.suffix.lower() == ".npy":
        return PoseRows(rigid(_matrices(load_npy(path), path)))
    if path.suffix.lower() == ".json":
        return _nerf(path)
    if path.suffix.lower() == ".cam":
        return PoseRows(rigid(_sintel(path)))
    try:
        text = read_regular(path, MOST_BYTES).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    rows: list[list[float]] = []
    frames: list[str] = []
    at = {name: place for place, name in enumerate(columns) if name != UNREAD}
    for number, line in enumerate(text.splitlines(), start=1):
        words = [word for word in re.split(r"[,;\s]+", line.strip()) if word]
        if number <= header_lines or not words or words[0].startswith("#"):
            continue
        if "frame" in at and at["frame"] < len(words):
            frames.append(words[at["frame"]])
        rows.append(_row(words, columns, at, f"{path} line {number}"))
    table = np.array(rows, np.float64).reshape(len(rows), -1)
    time = table[:, 0] if "time" in at else None
    return PoseRows(_poses(table[:, 1:], columns), time, frames if "frame" in at else None)


def read_pose_of_frame(path: Path, columns: tuple[str, ...], header_lines: int) -> np.ndarray:
    """(4, 4) of a file that holds one pose; NaN where it holds none that is whole."""
    try:
        if columns == (MATRIX,) and path.suffix.lower() not in (".npy", ".json", ".cam"):
            words = read_regular(path, MOST_BYTES).decode("utf-8-sig", errors="replace").split()
            values = np.array([float(word.strip(",;")) for word in words])
            rows = rigid(_matrices(values, path))
        else:
            rows = read_pose_rows(path, columns, header_lines).pose
    except (OSError, ValueError, BadInput):
        return np.full((4, 4), np.nan)
    return rows[0] if len(rows) == 1 else np.full((4, 4), np.nan)


def wxyz_of(pose_N44: np.ndarray) -> np.ndarray:
    """(N, 4) unit quaternions, real part first, of the rotations; NaN where they are.

    The quaternion is the eigenvector of the largest eigenvalue of a symmetric matrix (Bar-Itzhack,
    2000), which also is the nearest one where digits were rounded.
    """
    is_known = np.isfinite(pose_N44).all((1, 2))
    r = np.where(is_known[:, None, None], pose_N44, np.eye(4))
    k = np.empty((len(r), 4, 4))
    k[:, 0, 0] = r[:, 0, 0] + r[:, 1, 1] + r[:, 2, 2]
    k[:, 1, 1] = r[:, 0, 0] - r[:, 1, 1] - r[:, 2, 2]
    k[:, 2, 2] = r[:, 1, 1] - r[:, 0, 0] - r[:, 2, 2]
    k[:, 3, 3] = r[:, 2, 2] - r[:, 0, 0] - r[:, 1, 1]
    k[:, 0, 1] = k[:, 1, 0] = r[:, 2, 1] - r[:, 1, 2]
    k[:, 0, 2] = k[:, 2, 0] = r[:, 0, 2] - r[:, 2, 0]
    k[:, 0, 3] = k[:, 3, 0] = r[:, 1, 0] - r[:, 0, 1]
    k[:, 1, 2] = k[:, 2, 1] = r[:, 0, 1] + r[:, 1, 0]
    k[:, 1, 3] = k[:, 3, 1] = r[:, 0, 2] + r[:, 2, 0]
    k[:, 2, 3] = k[:, 3, 2] = r[:, 1, 2] + r[:, 2, 1]
    wxyz = np.linalg.eigh(k)[1][:, :, -1]
    return np.where(is_known[:, None], wxyz, np.nan)


def load_npy(path: Path) -> np.ndarray:
    """The numbers of a .npy file, which is read without pickles. Raises BadInput."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"{path} cannot be read as a NumPy array: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise BadInput(f"{path}: wanted an array of numbers")
    return array


def _row(words: list[str], columns: tuple[str, ...], at: dict[str, int], where: str) -> list[float]:
    """The time, if there is one (else 0), and the numbers of the pose."""
    wanted = len(columns) - (columns[-1] in (MATRIX, MORE))
    rest = len(words) - wanted
    right = (
        rest in (12, 16)
        if columns[-1] == MATRIX
        else rest >= 0
        if columns[-1] == MORE
        else not rest
    )
    if not right:
        more = " and 12 or 16 numbers" if columns[-1] == MATRIX else ""
        raise BadInput(
            f"{where}: wanted {wanted} columns{more} ({','.join(columns)}), found {len(words)}"
        )
    names = (*PLACE, *TURN)
    pose = words[at[MATRIX] :] if MATRIX in at else [words[at[name]] for name in names]
    try:
        return [float(word) for word in [words[at["time"]] if "time" in at else "0", *pose[:12]]]
    except ValueError as error:
        raise BadInput(f"{where}: wanted numbers, found '{' '.join(words)[:40]}'") from error


def _poses(table: np.ndarray, columns: tuple[str, ...]) -> np.ndarray:
    if MATRIX in columns:
        return rigid(table.reshape(-1, 3, 4))
    return motion(table[:, :3], table[:, 3:])


def _matrices(values: np.ndarray, path: Path) -> np.ndarray:
    """(N, 3, 4) of an array that holds matrices of 3x4 or 4x4 numbers, or one."""
    values = values.astype(np.float64)
    if values.shape[-2:] in ((3, 4), (4, 4)):
        return values[..., :3, :].reshape(-1, 3, 4)
    if values.ndim and values.shape[-1] in (12, 16):
        return values[..., :12].reshape(-1, 3, 4)
    raise BadInput(f"{path}: wanted matrices of 3x4 or 4x4 numbers, found {values.shape}")


def _nerf(path: Path) -> PoseRows:
    poses, names = [], []
    for number, frame in enumerate(
        field(load_json(path, dict), "frames", list, str(path)), start=1
    ):
        where = f"{path} frame {number}"
        names.append(PurePosixPath(field(frame, "file_path", str, where)).name)
        poses.append(numbers(frame.get("transform_matrix"), (4, 4), where))
    return PoseRows(rigid(np.array(poses).reshape(-1, 4, 4)), None, names)


def _sintel(path: Path) -> np.ndarray:
    """(1, 3, 4): a tag, 3x3 doubles of the camera, and 3x4 of its pose."""
    try:
        data = read_regular(path, 4096)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    if len(data) != 4 + 21 * 8 or np.frombuffer(data[:4], "<f4")[0] != SINTEL_TAG:
        raise BadInput(f"{path} is no camera file of Sintel")
    return np.frombuffer(data[4:], "<f8")[9:].reshape(1, 3, 4).astype(np.float64)
