"""Rays against balls and boxes, exact to rounding.

A body is the unit ball or the cube [-1, 1]^3 under an affine map of its own in every frame. A ray
is carried into the body's own coordinates and cut there; an affine map keeps ratios along a line,
so the place on the ray is the place in the scene.

Camera: x right, y down, z forward; focal length one frame side, principal point at the frame's
centre. Rays are depth * (x, y, 1): their parameter is the depth along the optical axis. Everything
here is in camera coordinates, in metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FOCAL = 1.0
"""Focal length in frame sides: a field of view of 53 degrees."""
ROOM = -1
"""The number that `first_hit` gives the room; bodies are numbered from 0."""
NEAR_M = 0.05
"""A point that is nearer than this, or behind the camera, has no place in the frame."""


@dataclass(frozen=True)
class Body:
    """A convex body over T frames."""

    round: bool
    """The unit ball; else the cube [-1, 1]^3."""
    axes_T33: np.ndarray
    """Columns: where the body's own unit axes point."""
    centre_T3: np.ndarray

    def seen_from(self, pose_T44: np.ndarray) -> Body:
        """This body in the coordinates of a camera, given camera to world."""
        to_camera_T33 = pose_T44[:, :3, :3].transpose(0, 2, 1)
        centre_T3 = np.einsum("tij,tj->ti", to_camera_T33, self.centre_T3 - pose_T44[:, :3, 3])
        return Body(self.round, to_camera_T33 @ self.axes_T33, centre_T3)

    def place(self, own_P3: np.ndarray) -> np.ndarray:
        """Places in the body's own coordinates -> (T, P, 3)."""
        return self.centre_T3[:, None] + own_P3 @ self.axes_T33.transpose(0, 2, 1)

    def own_ray(self, ray_3N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Start (T, 3, 1) and direction (T, 3, N) of rays, (3, N) or (T, 3, N), in the body's own
        coordinates."""
        inverse_T33 = np.linalg.inv(self.axes_T33)
        start_T31 = -inverse_T33 @ self.centre_T3[:, :, None]
        return start_T31.astype(ray_3N.dtype), inverse_T33.astype(ray_3N.dtype) @ ray_3N

    def cut(self, ray_3N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Depths (T, N) at which rays enter and leave the body; both inf where they miss it or it
        lies behind."""
        start_T31, way_T3N = self.own_ray(ray_3N)
        if self.round:
            a, b = (way_T3N**2).sum(1), (start_T31 * way_T3N).sum(1)
            inside = b**2 - a * ((start_T31**2).sum(1) - 1)
            root = np.sqrt(np.maximum(inside, 0))
            enter, leave, hit = (-b - root) / a, (-b + root) / a, inside > 0
        else:
            # A ray along a face never meets the planes beside it: a tiny slope stands for none.
            inverse = 1 / np.where(np.abs(way_T3N) < 1e-12, way_T3N.dtype.type(1e-12), way_T3N)
            middle, reach = -start_T31 * inverse, np.abs(inverse)
            enter, leave = (middle - reach).max(1), (middle + reach).min(1)
            hit = enter < leave
        hit &= leave > NEAR_M
        infinite = ray_3N.dtype.type(np.inf)
        return np.where(hit, enter, infinite), np.where(hit, leave, infinite)


def rays(xy_N2: np.ndarray) -> np.ndarray:
    """Places (..., N, 2) of the frame -> rays (..., 3, N)."""
    return np.stack(
        [(xy_N2[..., 0] - 0.5) / FOCAL, (xy_N2[..., 1] - 0.5) / FOCAL, np.ones_like(xy_N2[..., 0])],
        axis=-2,
    )


def project(xyz: np.ndarray) -> np.ndarray:
    """Places (..., 3) -> xy in the frame, (..., 2); NaN where nearer than NEAR_M or behind."""
    depth = np.where(xyz[..., 2:] > NEAR_M, xyz[..., 2:], np.nan)
    xy: np.ndarray = xyz[..., :2] / depth * FOCAL + 0.5
    return xy


def first_hit(
    room: Body, bodies: Sequence[Body], ray_3N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Casts rays (3, N) or (T, 3, N) from the camera. Returns the depth (T, N) at which each first
    meets something, and what it meets (T, N): ROOM or the number of a body."""
    _, depth_TN = room.cut(ray_3N)
    which_TN = np.full(depth_TN.shape, ROOM, np.int8)
    for number, body in enumerate(bodies):
        enter_TN, _ = body.cut(ray_3N)
        nearer = enter_TN < depth_TN
        depth_TN = np.where(nearer, enter_TN, depth_TN)
        which_TN[nearer] = number
    return depth_TN, which_TN


def extent(body: Body) -> np.ndarray:
    """(T, 4) xyxy: the bounds of the body's whole projection, cut at the frame; NaN where nothing
    of them is in it.

    Seen from the camera along y, the body spans an angle around the optical axis; its ends are
    corners of the box or tangents of the ball. Likewise along x. Angles of 90 degrees and more lie
    outside of every frame. The camera stays outside.
    """
    low_high = [_angles(body, axis) for axis in (0, 1)]
    bound = np.stack([ends for pair in zip(*low_high, strict=True) for ends in pair], axis=-1)
    # Beyond 89 degrees: far outside of the frame either way.
    box_T4 = np.tan(np.clip(bound, -1.55, 1.55)) * FOCAL + 0.5
    apart = (box_T4[:, :2] >= 1).any(-1) | (box_T4[:, 2:] <= 0).any(-1)
    return np.where(apart[:, None], np.nan, box_T4.clip(0, 1))


def _angles(body: Body, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """(T,) least and greatest angle towards camera axis `axis`, off the optical axis."""
    flat = [axis, 2]
    centre_T2, axes_T23 = body.centre_T3[:, flat], body.axes_T33[:, flat]
    if body.round:
        # The projected ball is an ellipse: the unit circle under the root of axes axes^T. Tangents
        # of a circle from a point.
        root_T22 = np.linalg.cholesky(axes_T23 @ axes_T23.transpose(0, 2, 1))
        circle_T2 = np.linalg.solve(root_T22, centre_T2[..., None])[..., 0]
        square = (circle_T2**2).sum(-1, keepdims=True)
        across_T2 = np.stack([-circle_T2[:, 1], circle_T2[:, 0]], axis=-1) * np.sqrt(
            np.maximum(square - 1, 0)
        )
        touch_TP2 = (
            np.stack([circle_T2 * (square - 1) + side * across_T2 for side in (-1, 1)], axis=1)
            / square[:, None]
        )
        ends_TP2 = touch_TP2 @ root_T22.transpose(0, 2, 1)
    else:
        corners_P3 = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T
        ends_TP2 = centre_T2[:, None] + corners_P3 @ axes_T23.transpose(0, 2, 1)
    middle_T1 = np.arctan2(centre_T2[:, :1], centre_T2[:, 1:])
    around_TP = np.arctan2(ends_TP2[..., 0], ends_TP2[..., 1]) - middle_T1
    around_TP = (around_TP + np.pi) % (2 * np.pi) - np.pi + middle_T1
    least_T, most_T = around_TP.min(1), around_TP.max(1)
    # Where the camera is level with the body, between its ends, the body is all around it.
    around_T = (square[:, 0] <= 1) if body.round else (most_T - least_T >= np.pi)
    return np.where(around_T, -np.pi / 2, least_T), np.where(around_T, np.pi / 2, most_T)
