"""Answers as they are scored and kept: the likeliest few with their probabilities, since those of a
vocabulary of thousands would be as large as what they are read from.

An answer is (B, R, 2) float32: the number of an answer, counted from 0, and its probability, the
likeliest first. Where there are fewer answers the last rows have the probability 0.
"""

from __future__ import annotations

import numpy as np
import torch

MOST = 5
"""R at most."""


def of_choices(logits: torch.Tensor, is_there: torch.Tensor) -> torch.Tensor:
    """Logits (..., C) in float32, the least number where there is no choice."""
    logits = logits.float()
    return logits.masked_fill(~is_there, torch.finfo(logits.dtype).min)


def ranked(logits_BK: torch.Tensor) -> torch.Tensor:
    """(B, R, 2) of logits; of equal ones the first is the likelier."""
    logits_BK = logits_BK.float()
    order_BR = logits_BK.sort(dim=-1, descending=True, stable=True).indices[:, :MOST]
    share_BR = logits_BK.softmax(-1).gather(-1, order_BR)
    return torch.stack([order_BR.float(), share_BR], dim=-1)


def is_named(answer_BR2: np.ndarray, right_B: np.ndarray, most: int) -> np.ndarray:
    """(B,) float64: 1 where the right answer is among the `most` likeliest, else 0. A right answer
    that is -1 is none of them; an answer that is not finite names nothing."""
    hit_B = (answer_BR2[:, :most, 0] == right_B[:, None]).any(1)
    named: np.ndarray = (hit_B & np.isfinite(answer_BR2).all((1, 2))).astype(np.float64)
    return named


def cross_entropy(
    logits_BK: torch.Tensor,
    right_B: torch.Tensor,
    is_there_BK: torch.Tensor | None,
    smoothing: float,
) -> torch.Tensor:
    """Mean over the rows whose right answer is known, which are those with 0 or more; 0 where none
    is. `smoothing` is the share of the target that is spread over the answers that are there; None:
    all of them are."""
    logits_BK = logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))
    log_BK, is_known_B = logits_BK.log_softmax(-1), right_B >= 0
    right_log_B = log_BK.gather(-1, right_B.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    loss_B = -(1 - smoothing) * right_log_B
    if smoothing:
        is_there_BK = (
            torch.ones_like(log_BK, dtype=torch.bool) if is_there_BK is None else is_there_BK
        )
        spread_B = log_BK.masked_fill(~is_there_BK, 0).sum(-1) / is_there_BK.sum(-1).clamp(min=1)
        loss_B = loss_B - smoothing * spread_B
    return loss_B.masked_fill(~is_known_B, 0).sum() / is_known_B.sum().clamp(min=1)


def entropy(counts_K: np.ndarray, smoothing: float) -> float:
    """Entropy in nats of answers that occur so often, smoothed as in the loss."""
    share_K = counts_K / max(1.0, counts_K.sum())
    share_K = (1 - smoothing) * share_K + smoothing / len(share_K)
    share_K = share_K[share_K > 0]
    return -float((share_K * np.log(share_K)).sum())
