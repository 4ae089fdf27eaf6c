"""A short causal depthwise convolution over time, time first, with its past as state."""

from __future__ import annotations

import torch


def causal_conv(
    x_TRE: torch.Tensor, history_RHE: torch.Tensor, weight_E1W: torch.Tensor, bias_E: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """y_t = bias + sum over the W taps, the last at x_t, and the H = W - 1 inputs that the next
    frame needs.

    `weight_E1W` and `bias_E` are those of a depthwise torch.nn.Conv1d. Tap by tap: no axis is
    moved.
    """
    frames = len(x_TRE)
    padded = torch.cat([history_RHE.transpose(0, 1).to(x_TRE.dtype), x_TRE])
    y_TRE = bias_E
    for i, tap_E in enumerate(weight_E1W.squeeze(1).unbind(-1)):
        y_TRE = torch.addcmul(y_TRE, tap_E, padded[i : i + frames])
    # A copy even where the transpose is contiguous already: a view would keep the window alive.
    return y_TRE, padded[frames:].transpose(0, 1).clone(memory_format=torch.contiguous_format)
