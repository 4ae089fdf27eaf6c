"""The selective scan (Mamba, arXiv 2312.00752, section 3.2) in plain PyTorch.

Shape letters of this file: T frames, R rows (independent sequences, B * N of them), E inner width, K state size. Time is the
first axis and E the last: one time step of all rows is one contiguous slab, and every broadcast runs along E.

The state at all frames, (T, R, K, E), would be by far the largest tensor of the model. It is only ever made for a block of
rows: the forward pass keeps none of it, and the backward pass makes each block's once more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
"""T * R * K * E of one block. CPU: a few MB, which mostly stay in its caches; CUDA: enough to fill the device."""


def selective_scan(
    x_TRE: torch.Tensor,
    dt_TRE: torch.Tensor,
    A_KE: torch.Tensor,
    B_TRK: torch.Tensor,
    C_TRK: torch.Tensor,
    state_RKE: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t and y_t = sum over K of C_t h_t, from h_{-1} = `state_RKE`.

    Returns y_TRE and the last h_RKE. Runs in at least float32, also under autocast; exact in float64.
    """
    dtype = torch.promote_types(x_TRE.dtype, torch.float32)
    with torch.autocast(x_TRE.device.type, enabled=False):
        parts = (part.to(dtype) for part in (x_TRE, dt_TRE, A_KE, B_TRK, C_TRK, state_RKE))
        y_TRE, last_RKE = _SelectiveScan.apply(*parts)
    return y_TRE, last_RKE


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dt: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        state: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(x, dt, A, B, C, state)
        y, last = torch.empty_like(x), torch.empty_like(state)
        for rows in _blocks(x, A):
            _, h = _states(x[:, rows], dt[:, rows], A, B[:, rows], state[rows])
            y[:, rows] = (C[:, rows].unsqueeze(2) @ h).squeeze(2)
            last[rows] = h[-1]
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, dt, A, B, C, state = ctx.saved_tensors
        grad_y, grad_last = grads
        grad_x, grad_dt, grad_B, grad_C, grad_state = (torch.empty_like(part) for part in (x, dt, B, C, state))
        grad_A = torch.zeros_like(A)
        for rows in _blocks(x, A):
            inputs = x[:, rows], dt[:, rows], A, B[:, rows], C[:, rows], state[rows]
            parts = _block_gradient(*inputs, grad_y[:, rows], grad_last[rows])
            grad_x[:, rows], grad_dt[:, rows], grad_B[:, rows], grad_C[:, rows], grad_state[rows] = parts[:5]
            grad_A += parts[5]
        return grad_x, grad_dt, grad_A, grad_B, grad_C, grad_state


def _blocks(x_TRE: torch.Tensor, A_KE: torch.Tensor) -> list[slice]:
    """Ranges of rows whose states fit one block."""
    frames, rows, width = x_TRE.shape
    budget = BLOCK_ELEMENTS.get(x_TRE.device.type, BLOCK_ELEMENTS["cuda"])
    block = max(1, budget // (frames * width * A_KE.shape[0]))
    return [slice(start, min(start + block, rows)) for start in range(0, rows, block)]


def _states(
    x_TRE: torch.Tensor, dt_TRE: torch.Tensor, A_KE: torch.Tensor, B_TRK: torch.Tensor, state_RKE: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """exp(dt A) and h of every frame, both (T, R, K, E)."""
    decay = (dt_TRE.unsqueeze(2) * A_KE).exp_()
    h = (dt_TRE * x_TRE).unsqueeze(2) * B_TRK.unsqueeze(3)
    for t in range(len(h)):
        h[t].addcmul_(decay[t], state_RKE if t == 0 else h[t - 1])
    return decay, h


def _block_gradient(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    state: torch.Tensor,
    grad_y: torch.Tensor,
    grad_last: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Gradients of one block of rows, in the order x, dt, B, C, state, A."""
    decay, h = _states(x, dt, A, B, state)
    grad_h = grad_y.unsqueeze(2) * C.unsqueeze(3)
    grad_h[-1] += grad_last
    for t in reversed(range(len(h) - 1)):
        grad_h[t].addcmul_(decay[t + 1], grad_h[t + 1])

    grad_C = (h @ grad_y.unsqueeze(3)).squeeze(3)
    grad_B = (grad_h @ (dt * x).unsqueeze(3)).squeeze(3)
    grad_drive = (B.unsqueeze(2) @ grad_h).squeeze(2)  # of dt x

    grad_before = grad_h.mul_(decay)  # of h_{t-1}
    grad_state = grad_before[0].clone()
    grad_exponent = grad_before  # of dt A, once multiplied by h_{t-1}
    grad_exponent[0] *= state
    grad_exponent[1:] *= h[:-1]
    grad_dt = grad_drive * x + (grad_exponent * A).sum(2)
    grad_A = (grad_exponent * dt.unsqueeze(2)).sum((0, 1))
    return grad_drive * dt, grad_dt, grad_B, grad_C, grad_state, grad_A
