"""Point tracks of a rendered scene: where a point seen in some frame is in all others, and whether
it is seen there.

The rules are those of kubric's `track_points` (challenges/point_tracking/dataset.py of
github.com/google-research/kubric), on the whole frame. Query points lie on a grid of every 4th
pixel and frame at a random offset; every segment, the rarest first, gets an equal share of what is
left to draw, but at most a tenth of its grid points. A point of an object is carried by the
object's 3-D box, a point of the background stays where it is. A point is hidden in a frame if it is
out of the frame or behind the camera, if what is seen there is nearer by over 1 %, if none of the 4
pixels around it shows its segment, or if its surface faces away.

What differs: the draws are numpy's, seeded by a text, and are without replacement.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass

import numpy as np

from pipeline.datasets.formats.recordings import motion

STRIDE = 4
MAX_SHARE = 0.1
"""Largest share of a segment's grid points that become tracks."""
NEARER = 0.99
ROUGH, ROUGH_SIDES = 0.05, 2
"""A normal that differs by more than this from over so many of its 4 diagonal neighbours is of a
normal map, not the mesh."""
UNIT_BOX = np.array([[*corner, 1.0] for corner in itertools.product([-0.5, 0.5], repeat=3)])
"""(8, 4) corners in the order of `bboxes_3d`."""
UINT16 = 65535


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along -z, y up, as Blender's."""

    pose_F44: np.ndarray
    """Camera to world."""
    focal: float
    """Focal length over sensor width."""

    def rays(self, xy: np.ndarray, aspect: float) -> np.ndarray:
        """Places (..., 2) in the frame, [0, 1], -> directions (..., 3) with z = -1; `aspect` is
        width over height."""
        x, y = (xy[..., 0] - 0.5) / self.focal, (0.5 - xy[..., 1]) / (self.focal * aspect)
        return np.stack([x, y, np.full_like(x, -1.0)], axis=-1)

    def ray_length(self, height: int, width: int) -> np.ndarray:
        """(H, W): distance from the camera's centre per distance along the optical axis, at the
        pixels' centres."""
        x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
        return np.linalg.norm(self.rays(np.stack([x, y], axis=-1), width / height), axis=-1)

    def project(self, world_QF3: np.ndarray, aspect: float) -> np.ndarray:
        """(Q, F, 2) places in the frame; NaN behind the camera."""
        rotation, centre = self.pose_F44[:, :3, :3], self.pose_F44[:, :3, 3]
        x, y, z = np.moveaxis(np.einsum("qfi,fij->qfj", world_QF3 - centre, rotation), -1, 0)
        ahead = np.where(z < 0, -z, np.nan)
        return np.stack(
            [0.5 + self.focal * x / ahead, 0.5 - self.focal * aspect * y / ahead], axis=-1
        )


@dataclass(frozen=True)
class RenderedScene:
    """The scene of a clip as its renderer knows it."""

    camera: Camera
    distance_FHW: np.ndarray
    """From the camera's centre."""
    segment_FHW: np.ndarray
    """0 background, o + 1 object o."""
    in_box_FHW3: np.ndarray
    """uint16: place in the object's 3-D box."""
    normal_FHW3: np.ndarray
    """uint16: surface normal in the world."""
    corners_OF83: np.ndarray
    """Corners of every object's box in the world."""
    wxyz_OF4: np.ndarray
    """Rotation of every object."""


def draw_tracks(scene: RenderedScene, count: int, seed: str) -> tuple[np.ndarray, np.ndarray]:
    """`count` points, or fewer where the clip offers fewer: places (Q, F, 2) float32, and visible
    (Q, F)."""
    rng = np.random.default_rng(
        int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little")
    )
    grids = [np.arange(rng.integers(STRIDE), size, STRIDE) for size in scene.segment_FHW.shape]
    queries = np.stack(np.meshgrid(*grids, indexing="ij"), axis=-1).reshape(-1, 3)
    segment_of = scene.segment_FHW[tuple(queries.T)]
    segments, available = np.unique(segment_of, return_counts=True)
    smooth_FHW = _is_smooth(scene.normal_FHW3)
    points, visible = (
        [np.empty((0, len(scene.distance_FHW), 2))],
        [np.empty((0, len(scene.distance_FHW)), bool)],
    )
    for segment, share in zip(segments, shares(available, count), strict=True):
        chosen = rng.choice(queries[segment_of == segment], share, replace=False)
        xy, seen = _follow(scene, int(segment), chosen, smooth_FHW)
        points.append(xy)
        visible.append(seen)
    return np.concatenate(points).astype(np.float32), np.concatenate(visible)


def shares(available: np.ndarray, count: int) -> np.ndarray:
    """Divides `count` points among the segments, the rarest first: each gets an equal part of what
    is left, and at most a tenth of its own points."""
    drawn = np.zeros(len(available), np.int64)
    left = count
    for rank, segment in enumerate(np.argsort(available, kind="stable")):
        drawn[segment] = min(
            round(left / (len(available) - rank)), round(available[segment] * MAX_SHARE)
        )
        left -= drawn[segment]
    return drawn


def _follow(
    scene: RenderedScene, segment: int, queries_Q3: np.ndarray, smooth_FHW: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(Q, F, 2) and (Q, F) of points of one segment, each given as frame, row and column."""
    frame, row, column = queries_Q3.T
    frames, height, width = scene.segment_FHW.shape
    centre_F3 = scene.camera.pose_F44[:, :3, 3]
    if segment == 0:
        xy = np.stack([(column + 0.5) / width, (row + 0.5) / height], axis=-1)
        ray = scene.camera.rays(xy, width / height)
        ray *= (scene.distance_FHW[frame, row, column] / np.linalg.norm(ray, axis=-1))[:, None]
        fixed = (
            np.einsum("qij,qj->qi", scene.camera.pose_F44[frame, :3, :3], ray) + centre_F3[frame]
        )
        world_QF3 = np.repeat(fixed[:, None], frames, axis=1)
    else:
        in_box_Q4 = np.concatenate(
            [scene.in_box_FHW3[frame, row, column] / UINT16 - 0.5, np.ones((len(frame), 1))], axis=1
        )
        world_QF3 = np.einsum(
            "qi,fij->qfj", in_box_Q4, np.linalg.pinv(UNIT_BOX) @ scene.corners_OF83[segment - 1]
        )
    xy = scene.camera.project(world_QF3, width / height)
    distance = np.linalg.norm(world_QF3 - centre_F3, axis=-1)
    hidden = _is_covered(scene, segment, xy, distance)
    if segment:
        normal = scene.normal_FHW3[frame, row, column] / UINT16 * 2 - 1
        rotation_F33 = motion(np.zeros((frames, 3)), scene.wxyz_OF4[segment - 1])[:, :3, :3]
        turned = np.einsum(
            "fij,qj->qfi", rotation_F33, np.einsum("qji,qj->qi", rotation_F33[frame], normal)
        )
        away = (turned * (world_QF3 - centre_F3)).sum(-1) > 0
        # A normal that faces away where its point was seen is wrong, and so is its track.
        trusted = smooth_FHW[frame, row, column] & ~away[np.arange(len(frame)), frame]
        hidden |= away & trusted[:, None]
    return xy, ~hidden


def _is_covered(
    scene: RenderedScene, segment: int, xy_QF2: np.ndarray, distance_QF: np.ndarray
) -> np.ndarray:
    """(Q, F): out of the frame, behind the camera, or behind what is seen there."""
    frames, height, width = scene.segment_FHW.shape
    outside = np.logical_not(np.all((xy_QF2 >= 0) & (xy_QF2 <= 1), axis=-1))
    corner = np.floor(np.where(outside[..., None], 0, xy_QF2) * [width, height] - 0.5).astype(
        np.int64
    )
    seen, same = np.zeros(distance_QF.shape), np.zeros(distance_QF.shape, bool)
    for right, down in itertools.product((0, 1), repeat=2):
        pixel = (
            np.arange(frames),
            (corner[..., 1] + down).clip(0, height - 1),
            (corner[..., 0] + right).clip(0, width - 1),
        )
        seen = np.maximum(seen, scene.distance_FHW[pixel])
        same |= scene.segment_FHW[pixel] == segment
    return outside | (seen < NEARER * distance_QF) | ~same


def _is_smooth(normal_FHW3: np.ndarray) -> np.ndarray:
    """(F, H, W): whether a pixel's normal is like its neighbours', so that it can be trusted."""
    normal = normal_FHW3.astype(np.float32) * np.float32(2 / UINT16) - 1
    padded = np.pad(normal, [(0, 0), (1, 1), (1, 1), (0, 0)])
    _, height, width, _ = normal.shape
    rough: np.ndarray = np.zeros(normal.shape[:3], np.int64)
    for down, right in itertools.product((0, 2), repeat=2):
        difference = padded[:, down : down + height, right : right + width] - normal
        rough += (difference**2).sum(-1) > ROUGH**2
    smooth: np.ndarray = rough <= ROUGH_SIDES
    return smooth
