"""Points that a mask determines, as tracks for the task `points`.

A mask says where an object is, not where a given spot of its surface went: a track of a *material*
point, as TAP-Vid has them, cannot be had from masks. What can be had is a point that the mask alone
defines in every frame, by the same rule:

    centroid   the mean of the mask's pixels. It moves smoothly, and may lie beside the object, as
               with a ring or a bent arm
    inside     the same, moved into the object where it is not well inside: the mask's pixel nearest
               to the centroid among those at least half as deep as the deepest. Depth is the
               distance to the mask's border along the row or the column, the shorter one
    extremes   four points: the topmost, rightmost, lowest and leftmost pixels of the mask, of
               several the middle. Where the object reaches the frame's edge there, the true extreme
               is out of sight, and the point is not known

All of them follow the outline, so a turning object leaves its points behind, and one that is partly
covered shifts them. A point is visible where its object has a mask. Scores on such tracks compare
models with one another; they are no TAP-Vid scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

import numpy as np
from pydantic import BeforeValidator

PointKind = Literal["centroid", "inside", "extremes"]
PointKinds = Annotated[
    tuple[PointKind, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
]
"""Kinds of points in a table; a single one needs no brackets."""
COUNT = {"centroid": 1, "inside": 1, "extremes": 4}
"""Points that one object has of each kind."""
assert set(COUNT) == set(get_args(PointKind))


def points_of(own_HW: np.ndarray, kinds: Sequence[PointKind]) -> np.ndarray:
    """(n, 2) x, y in pixels of an object that has at least one pixel, whose centre lies half a
    pixel from its edge; kind after kind. NaN where a point is not known."""
    rows, columns = np.flatnonzero(own_HW.any(1)), np.flatnonzero(own_HW.any(0))
    top, left = rows[0], columns[0]
    crop = own_HW[top : rows[-1] + 1, left : columns[-1] + 1]
    makers = {"centroid": _centroid, "inside": _inside}
    points = [
        _extremes(crop, top, left, own_HW.shape) if kind == "extremes" else makers[kind](crop)
        for kind in kinds
    ]
    placed: np.ndarray = np.concatenate(points) + np.array([left + 0.5, top + 0.5])
    return placed


def _centroid(crop_HW: np.ndarray) -> np.ndarray:
    """(1, 2), in the crop, a pixel's centre being a whole number."""
    rows, columns = np.nonzero(crop_HW)
    return np.array([[columns.mean(), rows.mean()]])


def _inside(crop_HW: np.ndarray) -> np.ndarray:
    x, y = _centroid(crop_HW)[0].tolist()
    depth = depth_of(crop_HW)
    deep = depth * 2 >= depth.max()
    row, column = round(y), round(x)
    if deep[row, column]:
        return np.array([[x, y]])
    rows, columns = np.nonzero(deep)
    nearest = int(np.argmin((columns - x) ** 2 + (rows - y) ** 2))
    return np.array([[columns[nearest], rows[nearest]]], np.float64)


def depth_of(mask_HW: np.ndarray) -> np.ndarray:
    """int (H, W): pixels from each pixel of a mask to its border, along row or column, whichever is
    shorter; 1 at the border, 0 outside. The mask ends at the edge of the array."""
    padded = np.pad(mask_HW, 1)
    depths = []
    for axis in (0, 1):
        shape = (-1, 1) if axis == 0 else (1, -1)
        place = np.arange(padded.shape[axis]).reshape(shape)
        before = np.maximum.accumulate(np.where(padded, -1, place), axis=axis)
        flipped = np.flip(np.where(padded, padded.shape[axis], place), axis=axis)
        after = np.flip(np.minimum.accumulate(flipped, axis=axis), axis=axis)
        depths += [place - before, after - place]
    depth: np.ndarray = np.where(padded, np.minimum.reduce(depths), 0)[1:-1, 1:-1]
    return depth


def _extremes(crop_HW: np.ndarray, top: int, left: int, frame_hw: tuple[int, int]) -> np.ndarray:
    """(4, 2): top, right, bottom, left; in the crop."""
    height, width = crop_HW.shape
    points = np.array(
        [
            [_middle(crop_HW[0]), 0],
            [width - 1, _middle(crop_HW[:, -1])],
            [_middle(crop_HW[-1]), height - 1],
            [0, _middle(crop_HW[:, 0])],
        ],
        np.float64,
    )
    at_the_edge = [top == 0, left + width == frame_hw[1], top + height == frame_hw[0], left == 0]
    points[at_the_edge] = np.nan
    return points


def _middle(line: np.ndarray) -> int:
    """The middle one of the places that hold."""
    places = np.flatnonzero(line)
    return int(places[(len(places) - 1) // 2])
