"""Average precision over the frames of a split, as online action detection is scored: by class, all
frames ranked by their score.

Average precision is a mean over the frames in which a class is true: of the precision among all
frames that score as high or higher. So is the calibrated one (De Geest et al. 2016, arXiv
1604.06506), where a false frame counts one w-th, w being the number of false frames over that of
true ones: the precision tp / (tp + fp / w) is 0.5 for a ranking by chance, however rare the class.
"""

from __future__ import annotations

import numpy as np


def precision_at(score_M: np.ndarray, is_true_M: np.ndarray, *, calibrated: bool) -> np.ndarray:
    """The precision at each of M frames, float64: among the frames that score as high or higher.

    Frames of one score share one threshold, so that no order among them matters. A score that is
    not finite is below all others, and its frame, where the class is true, was not found: 0.
    """
    is_finite_M = np.isfinite(score_M)
    score_M = np.where(is_finite_M, score_M, -np.inf)
    order = np.argsort(-score_M, kind="stable")
    ranked = score_M[order]
    true_M = np.cumsum(is_true_M[order], dtype=np.float64)
    false_M = np.arange(1, len(order) + 1) - true_M
    # The last frame with the score of each.
    last_M = np.searchsorted(-ranked, -ranked, side="right") - 1
    ratio = false_M[-1] / true_M[-1] if calibrated and true_M[-1] else 1.0
    wrong_M = false_M[last_M] / ratio if ratio else np.zeros(len(order))
    seen_M = true_M[last_M] + wrong_M
    precision_M = np.zeros(len(order))
    precision_M[order] = true_M[last_M] / np.where(seen_M > 0, seen_M, 1)
    return np.where(is_finite_M, precision_M, 0.0)


def of_windows(
    answer_BTK: np.ndarray, true_BTK: np.ndarray, known_BT: np.ndarray, *, calibrated: bool
) -> np.ndarray:
    """(B,) the share of every window in the mean over classes: the mean precision of its true
    frames, each weighted by one over how many true frames its class has. With the weights of
    `weights_of`, the mean over windows is the mean over classes of their average precisions."""
    sums_B = np.zeros(len(answer_BTK))
    window_M = np.nonzero(known_BT)[0]
    for number in range(true_BTK.shape[-1]):
        true_M = true_BTK[..., number][known_BT]
        if true_M.any():
            scores_M = answer_BTK[..., number][known_BT].astype(np.float64)
            precision_M = precision_at(scores_M, true_M, calibrated=calibrated)
            sums_B += np.bincount(window_M[true_M], precision_M[true_M] / true_M.sum(), len(sums_B))
    weights_B = weights_of(true_BTK, known_BT)
    return np.minimum(sums_B / np.where(weights_B > 0, weights_B, 1), 1.0)  # but for rounding


def weights_of(true_BTK: np.ndarray, known_BT: np.ndarray) -> np.ndarray:
    """(B,) float64: what every window counts in a mean over classes, their true frames being those
    that count; all windows together count as many as there are classes with a true frame."""
    true_BK = (true_BTK & known_BT[..., None]).sum(1)
    total_K = true_BK.sum(0)
    weights_B: np.ndarray = (true_BK[:, total_K > 0] / total_K[total_K > 0]).sum(1)
    return weights_B
