"""Two primitives of recurrent modules, time first: the element-wise linear recurrence
h_t = a_t h_{t-1} + b_t, and a short causal depthwise convolution with its past as state.

The recurrence takes one fused multiply-add per frame. Each runs over a contiguous slab and is
limited by memory alone. Of the ways without a loop, doubling passes over everything log T times,
and cumulative sums in log space lose digits where the decay is strong.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


def linear_recurrence(a: torch.Tensor, b: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """h of every frame: `a` and `b` are (T, ...), `before` is h_{-1}, (...). The state after is the
    last frame of the result.

    Runs in at least float32, also under autocast; exact in float64.
    """
    dtype = torch.promote_types(b.dtype, torch.float32)
    with torch.autocast(b.device.type, enabled=False):
        return _LinearRecurrence.apply(a.to(dtype), b.to(dtype), before.to(dtype))


class _LinearRecurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        h = torch.empty_like(b, memory_format=torch.contiguous_format)
        for t in range(len(h)):
            torch.addcmul(b[t], a[t], before if t == 0 else h[t - 1], out=h[t])
        ctx.save_for_backward(a, h, before)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Runs the recurrence last frame first: the gradient of h_t, which is that of b_t, takes
        in a_{t+1} times the next."""
        a, h, before = ctx.saved_tensors
        (grad_h,) = grads
        grad_b, grad_a = torch.empty_like(h), torch.empty_like(h)
        last = len(h) - 1
        grad_b[last].copy_(grad_h[last])
        for t in reversed(range(last)):
            torch.addcmul(grad_h[t], a[t + 1], grad_b[t + 1], out=grad_b[t])
        torch.mul(grad_b[0], before, out=grad_a[0])
        torch.mul(grad_b[1:], h[:-1], out=grad_a[1:])
        return grad_a, grad_b, grad_b[0] * a[0]


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
