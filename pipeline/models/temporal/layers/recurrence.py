"""The element-wise linear recurrence h_t = a_t h_{t-1} + b_t, time first.

One fused multiply-add per frame, each over a contiguous slab, is limited by memory alone. Of the
ways without a loop, doubling passes over everything log T times, and cumulative sums in log space
lose digits where the decay is strong.
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
        """The same recurrence, last frame first: the gradient of h_t, which is that of b_t, takes
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
