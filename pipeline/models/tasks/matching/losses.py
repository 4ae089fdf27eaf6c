"""What training asks of videos and their texts: that each is more like its own than like any other
of the batch.

Shape letters: B videos of this process, M of all processes, E the width of the space.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import distributed

GREATEST_SCALE = 100.0
"""What cosines are multiplied by at most (CLIP, arXiv 2103.00020)."""
SAME = 1 - 1e-5
"""Cosine above which two texts are the same: then neither is a wrong answer to the other's
video."""


class _Gather(torch.autograd.Function):
    """Rows of all processes, in their order. Each gets the gradient that all of them have for its
    own rows."""

    @staticmethod
    def forward(ctx: Any, x_BE: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(x_BE) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, x_BE.contiguous())
        ctx.rows = len(x_BE)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (total_ME,) = gradients
        total_ME = total_ME.contiguous()
        distributed.all_reduce(total_ME)
        first = distributed.get_rank() * ctx.rows
        return total_ME[first : first + ctx.rows]


def of_all_processes(x_BE: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The rows of all processes, (M, E), and the place of the first row of this one."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return x_BE, 0
    all_ME: torch.Tensor = _Gather.apply(x_BE)
    return all_ME, distributed.get_rank() * len(x_BE)


def info_nce(
    video_BE: torch.Tensor, text_BE: torch.Tensor, scale: torch.Tensor, mask_B: torch.Tensor
) -> torch.Tensor:
    """Symmetric cross-entropy (CLIP, arXiv 2103.00020) of vectors of unit length over the texts and
    the videos of all processes, as a mean over this one's. Rows where `mask_B` is False are neither
    asked nor answers, nor are texts that are equal to a row's own."""
    allowed_BM, own_B, video_ME, text_ME = _pairs(video_BE, text_BE, mask_B)
    losses = []
    for asked_BE, answers_ME in ((video_BE, text_ME), (text_BE, video_ME)):
        logits_BM = scale * asked_BE @ answers_ME.T
        logits_BM = logits_BM.masked_fill(~allowed_BM, -torch.inf)
        losses.append(F.cross_entropy(logits_BM[mask_B], own_B[mask_B], reduction="sum"))
    total: torch.Tensor = torch.stack(losses).sum() / (2 * max(1, len(video_BE)))
    return total


def sigmoid_loss(
    video_BE: torch.Tensor,
    text_BE: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    mask_B: torch.Tensor,
) -> torch.Tensor:
    """SigLIP's loss (arXiv 2303.15343): every pair is one question, whether they belong together,
    summed over the texts of all processes, as a mean over this one's videos."""
    allowed_BM, own_B, _, text_ME = _pairs(video_BE, text_BE, mask_B)
    logits_BM = scale * video_BE @ text_ME.T + bias
    sign_BM = torch.full_like(logits_BM, -1.0).scatter(1, own_B[:, None], 1.0)
    missed_BM = -F.logsigmoid(sign_BM * logits_BM) * (allowed_BM & mask_B[:, None])
    total: torch.Tensor = missed_BM.sum() / max(1, len(video_BE))
    return total


def _pairs(
    video_BE: torch.Tensor, text_BE: torch.Tensor, mask_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which answers each row has (B, M), which is its own (B,), and all answers (M, E)."""
    video_ME, first = of_all_processes(video_BE)
    text_ME, _ = of_all_processes(text_BE)
    counted_M, _ = of_all_processes(mask_B.to(text_BE.dtype)[:, None])
    own_B = torch.arange(len(video_BE), device=video_BE.device) + first
    is_own_BM = F.one_hot(own_B, len(text_ME)).bool()
    is_same_BM = text_BE.detach() @ text_ME.detach().T > SAME
    allowed_BM = is_own_BM | (~is_same_BM & (counted_M[:, 0] > 0))
    return allowed_BM, own_B, video_ME, text_ME
