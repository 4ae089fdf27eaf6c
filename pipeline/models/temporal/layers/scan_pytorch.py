"""The selective scan in plain PyTorch: the recurrence of `selective_scan` and its gradients, in
blocks of rows.

Time is the first axis and E the last: one frame of all rows is one contiguous slab, and every
broadcast runs along E. The state at all frames, (T, R, K, E), would be by far the largest tensor of
the model. It is only ever made for a block of rows, and only in the backward pass; all else in the
loops is of one frame of a block, is written in place and stays in the caches.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import is_fake
from torch.autograd.function import once_differentiable

BLOCK_ELEMENTS = {"cpu": 6 * 2**20, "cuda": 2**28}
"""T * R * K * E of one block. CPU: one frame of it fits the second-level caches; CUDA: enough to
fill the device."""
LOG2_E = math.log2(math.e)
"""exp(a) is taken as exp2(a log2 e): in PyTorch's CPU builds exp2 is several times faster than exp,
and as exact."""


def row_blocks(frames: int, rows: int, A_KE: torch.Tensor) -> list[slice]:
    """Ranges of rows whose states at all frames fit one block; of one row at least. The first two
    of them where tensors are fake: all others would take the same memory and operations."""
    budget = BLOCK_ELEMENTS.get(A_KE.device.type, BLOCK_ELEMENTS["cuda"])
    block = max(1, budget // (frames * A_KE.numel()))
    stop = rows if torch.compiler.is_compiling() or not is_fake(A_KE) else 2 * block
    return [slice(start, min(start + block, rows)) for start in range(0, min(stop, rows), block)]


class Operands(NamedTuple):
    """Inputs of a scan, named as in `selective_scan`: x and dt (T, R, E), A (K, E), B and C
    (T, R, K), and the state before the first frame (R, K, E), None for zeros."""

    x: torch.Tensor
    dt: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor
    state: torch.Tensor | None

    def of_rows(self, rows: slice) -> Operands:
        x, dt, A, B, C, state = self
        return Operands(
            x[:, rows],
            dt[:, rows],
            A,
            B[:, rows],
            C[:, rows],
            None if state is None else state[rows],
        )


class PytorchScan(torch.autograd.Function):
    """The scan with its gradients. `states_TRKE`, if given, is filled with h of every frame and
    read by the backward pass, which else makes these again, block by block."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dt: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        state: torch.Tensor | None,
        states_TRKE: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(x, dt, A, B, C, state)
        ctx.states_TRKE = states_TRKE
        ctx.set_materialize_grads(False)
        if states_TRKE is None:
            scan = _forward_operator if torch.compiler.is_compiling() else scan_forward
            return scan(x, dt, A, B, C, state)
        y, h = _scan_block(Operands(x, dt, A, B, C, state), states_TRKE)
        return y, h.clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_y: torch.Tensor | None, grad_last: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        operands = Operands(*ctx.saved_tensors)
        grad_y = torch.zeros_like(operands.x) if grad_y is None else grad_y
        if ctx.states_TRKE is None:
            backward = _backward_operator if torch.compiler.is_compiling() else scan_backward
            gradients = backward(*operands, grad_y, grad_last)
        else:
            gradients = _block_gradients(operands, grad_y, grad_last, ctx.states_TRKE)
        return *gradients[:5], None if operands.state is None else gradients[5], None


def scan_forward(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    state: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    operands, blocks = Operands(x, dt, A, B, C, state), row_blocks(len(x), x.shape[1], A)
    if len(blocks) == 1:
        return _scan_block(operands, None)
    y, last = torch.empty_like(x), x.new_empty(x.shape[1], *A.shape)
    for rows in blocks:
        y[:, rows], last[rows] = _scan_block(operands.of_rows(rows), None)
    return y, last


def scan_backward(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    state: torch.Tensor | None,
    grad_y: torch.Tensor,
    grad_last: torch.Tensor | None,
) -> list[torch.Tensor]:
    gradients = [torch.empty_like(part) for part in (x, dt, A, B, C)] + [
        x.new_empty(x.shape[1], *A.shape)
    ]
    grad_x, grad_dt, grad_A, grad_B, grad_C, grad_state = gradients
    grad_A.zero_()
    operands, blocks = Operands(x, dt, A, B, C, state), row_blocks(len(x), x.shape[1], A)
    states_TRKE = x.new_empty(len(x), blocks[0].stop, *A.shape)
    for rows in blocks:
        block, h = operands.of_rows(rows), states_TRKE[:, : rows.stop - rows.start]
        _scan_block(block, h)
        block_grads = _block_gradients(
            block, grad_y[:, rows], None if grad_last is None else grad_last[rows], h
        )
        grad_x[:, rows], grad_dt[:, rows], grad_B[:, rows], grad_C[:, rows], grad_state[rows] = (
            *block_grads[:2],
            *block_grads[3:],
        )
        grad_A += block_grads[2]
    return gradients


def scan_step(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One frame as `_scan_block` takes it, the same operations in the same order, but nothing in
    place: a graph that leaves for other tools has no operator of this package in it."""
    decay = torch.exp2(dt[0].unsqueeze(1) * (A * LOG2_E))
    h = torch.addcmul(decay * state, (dt[0] * x[0]).unsqueeze(1), B[0].unsqueeze(2))
    return torch.bmm(C[0].unsqueeze(1), h).transpose(0, 1), h


def _scan_block(
    block: Operands, states_TRKE: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """y and the last h of one block; h of every frame is left in `states_TRKE`, if there is one."""
    x, dt, A, B, C, state = block
    dt_x, A_log2e = (dt * x).unsqueeze(2), A * LOG2_E
    y, h = torch.empty_like(x), x.new_empty(x.shape[1], *A.shape)
    decay, h_prev = torch.empty_like(h), state
    for t in range(len(x)):
        if states_TRKE is not None:
            h = states_TRKE[t]
        if h_prev is None:
            torch.mul(dt_x[t], B[t].unsqueeze(2), out=h)
        else:
            torch.mul(dt[t].unsqueeze(1), A_log2e, out=decay).exp2_()
            torch.mul(decay, h_prev, out=h).addcmul_(dt_x[t], B[t].unsqueeze(2))
        torch.bmm(C[t].unsqueeze(1), h, out=y[t].unsqueeze(1))
        h_prev = h
    return y, h


def _block_gradients(
    block: Operands, grad_y: torch.Tensor, grad_last: torch.Tensor | None, h: torch.Tensor
) -> list[torch.Tensor]:
    """Gradients of x, dt (T, R, E), A (K, E), B, C (T, R, K) and state (R, K, E) of one block, from
    those of y (T, R, E) and of the last h (R, K, E), and from h (T, R, K, E) of every frame."""
    x, dt, A, B, C, state = block
    dt_x, A_log2e = (dt * x).unsqueeze(2), A * LOG2_E
    grad_dt_x, grad_dt, grad_B, grad_C = (
        torch.empty_like(dt_x),
        torch.zeros_like(x),
        torch.empty_like(B),
        torch.empty_like(C),
    )
    grad_h = torch.zeros_like(h[0]) if grad_last is None else grad_last.clone()
    grad_A, decay, grad_exponent = (
        torch.zeros_like(h[0]),
        torch.empty_like(h[0]),
        torch.empty_like(h[0]),
    )
    for t in reversed(range(len(x))):
        grad = grad_y[t].unsqueeze(1)
        grad_h.addcmul_(grad, C[t].unsqueeze(2))
        # As rows times a transposed matrix: for matrix times a column PyTorch has a slower kernel.
        torch.bmm(grad, h[t].transpose(1, 2), out=grad_C[t].unsqueeze(1))
        torch.bmm(dt_x[t], grad_h.transpose(1, 2), out=grad_B[t].unsqueeze(1))
        torch.bmm(B[t].unsqueeze(1), grad_h, out=grad_dt_x[t])
        h_prev = h[t - 1] if t > 0 else state
        if h_prev is not None:
            # One exp2 more is cheaper than keeping the decay of every frame.
            torch.mul(dt[t].unsqueeze(1), A_log2e, out=decay).exp2_()
            torch.mul(grad_h.mul_(decay), h_prev, out=grad_exponent)  # of dt A
            grad_A.addcmul_(grad_exponent, dt[t].unsqueeze(1))
            torch.sum(grad_exponent.mul_(A), 1, out=grad_dt[t])
    grad_dt_x = grad_dt_x.squeeze(2)
    grad_dt.addcmul_(grad_dt_x, x)
    return [grad_dt_x.mul_(dt), grad_dt, grad_A.sum(0), grad_B, grad_C, grad_h]


# Operators of their own: torch.compile takes them as they are, and does not unroll the loops over
# blocks and frames.
_forward_operator = torch.library.custom_op(
    "stillframe::selective_scan", scan_forward, mutates_args=()
)
_backward_operator = torch.library.custom_op(
    "stillframe::selective_scan_backward", scan_backward, mutates_args=()
)


@_forward_operator.register_fake
def _(x: Any, dt: Any, A: Any, B: Any, C: Any, state: Any) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG001
    return torch.empty_like(x), x.new_empty(x.shape[1], *A.shape)


@_backward_operator.register_fake
def _(
    x: Any,
    dt: Any,
    A: Any,
    B: Any,
    C: Any,
    state: Any,  # noqa: ARG001
    grad_y: Any,  # noqa: ARG001
    grad_last: Any,  # noqa: ARG001
) -> list[torch.Tensor]:
    return [torch.empty_like(part) for part in (x, dt, A, B, C)] + [
        x.new_empty(x.shape[1], *A.shape)
    ]
