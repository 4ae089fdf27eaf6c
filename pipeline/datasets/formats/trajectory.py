"""Poses of a camera at the times of its frames, where the two were recorded by different clocks.

A motion capture system tells the pose a hundred times a second and a camera takes thirty frames: at
walking speed the nearest pose is off by millimetres, which is a tenth of the motion between two
frames. So the pose at a frame's time lies on the way from the pose before to the pose after it.

Shape letters: K known poses, F frames.
"""

from __future__ import annotations

import numpy as np

from pipeline.datasets.formats.recordings import motion


def poses_at(
    time_s_F: np.ndarray,
    known_s_K: np.ndarray,
    translation_K3: np.ndarray,
    wxyz_K4: np.ndarray,
    most_s: float,
) -> np.ndarray:
    """(F, 4, 4) camera to world at every frame's time, from places and quaternions, real part
    first, at the sorted times `known_s_K`.

    Between a pose before and one after that are both at most `most_s` seconds away, the place is
    interpolated linearly and the rotation along the shorter arc at constant speed (slerp). Where
    only the nearest pose is that near, as at the ends and beside a gap, it is taken as it is; NaN
    where none is.
    """
    if not len(known_s_K):
        return np.full((len(time_s_F), 4, 4), np.nan)
    known_K44 = motion(translation_K3, wxyz_K4)
    rows_F = nearest(known_s_K, time_s_F, most_s)
    pose_F44 = np.where((rows_F >= 0)[:, None, None], known_K44[rows_F], np.nan)

    place_F = np.searchsorted(known_s_K, time_s_F)
    before_F, after_F = (place_F - 1).clip(0), place_F.clip(max=len(known_s_K) - 1)
    is_known_K = np.isfinite(known_K44).all((1, 2))
    is_between_F = (
        (known_s_K[before_F] < time_s_F)
        & (time_s_F < known_s_K[after_F])
        & (time_s_F - known_s_K[before_F] <= most_s)
        & (known_s_K[after_F] - time_s_F <= most_s)
        & is_known_K[before_F]
        & is_known_K[after_F]
    )
    before, after, time_s = before_F[is_between_F], after_F[is_between_F], time_s_F[is_between_F]
    share = ((time_s - known_s_K[before]) / (known_s_K[after] - known_s_K[before]))[:, None]
    pose_F44[is_between_F] = motion(
        (1 - share) * translation_K3[before] + share * translation_K3[after],
        slerp(wxyz_K4[before], wxyz_K4[after], share),
    )
    return pose_F44


def slerp(first_F4: np.ndarray, second_F4: np.ndarray, share_F1: np.ndarray) -> np.ndarray:
    """(F, 4) unit quaternions that have gone the share, in [0, 1], of the shorter arc from the
    first to the second, which may be of any length but 0."""
    first = first_F4 / np.linalg.norm(first_F4, axis=1, keepdims=True)
    second = second_F4 / np.linalg.norm(second_F4, axis=1, keepdims=True)
    # A quaternion and its negative are one rotation, and trackers change between them.
    second = np.where((first * second).sum(1, keepdims=True) < 0, -second, second)
    angle = 2 * np.arctan2(
        np.linalg.norm(second - first, axis=1, keepdims=True),
        np.linalg.norm(second + first, axis=1, keepdims=True),
    )

    def weight(share: np.ndarray) -> np.ndarray:
        """sin(share angle) / sin(angle), also at angle 0."""
        part: np.ndarray = share * np.sinc(share * angle / np.pi) / np.sinc(angle / np.pi)
        return part

    rotated: np.ndarray = weight(1 - share_F1) * first + weight(share_F1) * second
    return rotated


def nearest(known_s_K: np.ndarray, time_s_F: np.ndarray, most_s: float) -> np.ndarray:
    """(F,) place in the sorted `known_s_K` of the time nearest to each frame's; -1 where it is more
    than `most_s` seconds away."""
    if not len(known_s_K):
        return np.full(len(time_s_F), -1)
    after = np.searchsorted(known_s_K, time_s_F).clip(0, len(known_s_K) - 1)
    before = (after - 1).clip(0)
    rows = np.where(
        np.abs(time_s_F - known_s_K[before]) <= np.abs(known_s_K[after] - time_s_F), before, after
    )
    return np.where(np.abs(known_s_K[rows] - time_s_F) <= most_s, rows, -1)
