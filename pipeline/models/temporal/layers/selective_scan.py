"""The selective scan (Mamba, arXiv 2312.00752, section 3.2) and its back ends: plain PyTorch, and
mamba_ssm where it helps.

Shape letters: T frames, R rows (independent sequences, B * N of them), E inner width, K state size.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from pipeline.models.temporal.layers.scan_pytorch import PytorchScan, scan_backward, scan_step

KERNELS = "mamba_ssm.ops.selective_scan_interface"


def selective_scan(
    x_TRE: torch.Tensor,
    dt_TRE: torch.Tensor,
    A_KE: torch.Tensor,
    B_TRK: torch.Tensor,
    C_TRK: torch.Tensor,
    state_RKE: torch.Tensor | None = None,
    states_TRKE: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t and y_t = sum over K of C_t h_t, from h_{-1} =
    `state_RKE` (None: zeros).

    Returns y_TRE and the last h_RKE. Runs in at least float32, also under autocast; exact in
    float64. With `states_TRKE` the plain form leaves h of every frame there for the backward pass,
    which else makes it once more, block by block of rows.
    """
    dtype = torch.promote_types(x_TRE.dtype, torch.float32)
    with torch.autocast(x_TRE.device.type, enabled=False):
        x, dt, A, B, C = (
            part.to(dtype).contiguous() for part in (x_TRE, dt_TRE, A_KE, B_TRK, C_TRK)
        )
        if uses_kernel(x, state_RKE):
            return _kernel_scan(x, dt, A, B, C)
        state = None if state_RKE is None else state_RKE.to(dtype)
        if torch.compiler.is_compiling() and state is not None and len(x) == 1:
            return scan_step(x, dt, A, B, C, state)
        y_TRE, last_RKE = PytorchScan.apply(x, dt, A, B, C, state, states_TRKE)
    return y_TRE, last_RKE


def uses_kernel(x: torch.Tensor, state: Any) -> bool:
    """Whether mamba_ssm serves this call: it is for CUDA, takes no incoming state, and
    torch.compile cannot trace it."""
    return (
        x.is_cuda and state is None and not torch.compiler.is_compiling() and _kernel() is not None
    )


@functools.cache
def _kernel() -> Callable[..., tuple[torch.Tensor, torch.Tensor]] | None:
    """Imported at its first use; None, after one warning, where that fails."""
    try:
        return importlib.import_module(KERNELS).selective_scan_fn
    except Exception as error:  # a build for another torch, CUDA or driver fails in many ways
        warnings.warn(
            f"mamba_ssm cannot be used ({type(error).__name__}: {error}): the selective scan runs "
            "in plain PyTorch, slower",
            stacklevel=2,
        )
        return None


def _kernel_scan(
    x_TRE: torch.Tensor,
    dt_TRE: torch.Tensor,
    A_KE: torch.Tensor,
    B_TRK: torch.Tensor,
    C_TRK: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    kernel = _kernel()
    assert kernel is not None
    x, dt, B, C = (part.permute(1, 2, 0).contiguous() for part in (x_TRE, dt_TRE, B_TRK, C_TRK))
    y_RET, last_REK = kernel(x, dt, A_KE.T.contiguous(), B, C, return_last_state=True)
    return y_RET.permute(2, 0, 1), _LastState.apply(
        last_REK.detach(), x_TRE, dt_TRE, A_KE, B_TRK, C_TRK
    )


class _LastState(torch.autograd.Function):
    """(R, E, K) -> (R, K, E), with the gradient that the kernel leaves out. It costs nothing unless
    one flows."""

    @staticmethod
    def forward(ctx: Any, last_REK: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        return last_REK.transpose(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RKE: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if grad_RKE is None:
            return (None,) * 6
        x, dt, A, B, C = ctx.saved_tensors
        return None, *scan_backward(x, dt, A, B, C, None, torch.zeros_like(x), grad_RKE)[:5]
