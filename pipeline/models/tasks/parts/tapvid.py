"""Scores of TAP-Vid for tracked points (arXiv 2211.03726), many windows at once.

Distances are in pixels of a frame of 256 x 256. "first" counts the frames after a query's own,
"strided" all but its own.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", np.ndarray, torch.Tensor)

FRAME_PX = 256
WITHIN_PX = (1, 2, 4, 8, 16)


def frames_counted(query_frame_BQ: Array, time_T: Array, queries: str) -> Array:
    """(B, T, Q) bool: frames `time_T`, 0 to T - 1, in which each query is asked for."""
    frame_B1Q, time_T1 = query_frame_BQ[:, None], time_T[:, None]
    return time_T1 > frame_B1Q if queries == "first" else time_T1 != frame_B1Q


def tapvid(
    xy_BTQ2: np.ndarray,
    said_visible: np.ndarray,
    truth_BTQ2: np.ndarray,
    visible: np.ndarray,
    counted: np.ndarray,
) -> dict[str, np.ndarray]:
    """AJ, delta_avg and OA of every window, (B,) float64 each; places are x, y in 0..1, all else is
    (B, T, Q) bool.

    OA: the share of counted point-frames whose visibility is right. delta_avg: the share of visible
    ones that are within 1, 2, 4, 8 and 16 px, mean of the five. AJ: mean over the five of TP /
    (visible + FP); TP is visible, said so and within; FP is said visible, and either is not or is
    not within. A share of nothing is 0.
    """
    visible, said_visible = visible & counted, said_visible & counted
    squared_px = np.square((xy_BTQ2.astype(np.float64) - truth_BTQ2) * FRAME_PX).sum(-1)
    # Only what is both visible and within can be correct: distances elsewhere may be anything.
    squared_px[~visible] = np.inf
    predicted_px2 = np.where(said_visible, squared_px, np.inf)
    visible_B, said_B = (np.count_nonzero(mask, axis=(1, 2)) for mask in (visible, said_visible))
    within, jaccard = np.zeros(len(visible)), np.zeros(len(visible))
    for limit_px in WITHIN_PX:
        true_positives = np.count_nonzero(predicted_px2 < limit_px**2, axis=(1, 2))
        jaccard += _share(true_positives, visible_B + said_B - true_positives)
        within += _share(np.count_nonzero(squared_px < limit_px**2, axis=(1, 2)), visible_B)
    right = np.count_nonzero((said_visible == visible) & counted, axis=(1, 2))
    return {
        "AJ": jaccard / len(WITHIN_PX),
        "delta_avg": within / len(WITHIN_PX),
        "OA": _share(right, np.count_nonzero(counted, axis=(1, 2))),
    }


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return part / np.maximum(1, whole)
