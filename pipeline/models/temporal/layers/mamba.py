"""The Mamba block over time, each token position on its own. Parameter names are those of the
published implementations.

Shape letters: T frames, B streams, N tokens, R = B N rows (independent sequences), D width,
E = expand * D inner width, K state size, H = conv - 1 past inputs of the convolution. Modules take
tokens time first, (T, B, N, D).

What a layer computes on rows is computed block by block where there are many. A layer makes some
ten tensors wider than its input. Made for all rows at once they go through memory, and fresh memory
at that; made for a block of rows they stay in the caches. The forward pass keeps its input only:
backward makes each block again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from pipeline.models.temporal.contract import State
from pipeline.models.temporal.layers.scan_pytorch import row_blocks
from pipeline.models.temporal.layers.selective_scan import selective_scan, uses_kernel

STEP_RANGE = (1e-3, 1e-1)
"""Range of the step size dt at initialisation."""


class Mamba(nn.Module):
    """Gated selective state space model with a short causal convolution (Mamba, arXiv
    2312.00752)."""

    def __init__(self, width: int, state: int, expand: int, conv: int) -> None:
        super().__init__()
        self.inner = expand * width
        self.rank = math.ceil(width / 16)
        self.state = state
        self.in_proj = nn.Linear(width, 2 * self.inner, bias=False)
        self.conv1d = nn.Conv1d(self.inner, self.inner, conv, groups=self.inner)
        self.x_proj = nn.Linear(self.inner, self.rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(self.rank, self.inner)
        self.A_log = nn.Parameter(torch.arange(1, state + 1).float().log().repeat(self.inner, 1))
        self.D = nn.Parameter(torch.ones(self.inner))
        self.out_proj = nn.Linear(self.inner, width, bias=False)
        self._initialise_step()

    def _initialise_step(self) -> None:
        """dt starts log-uniform over STEP_RANGE: the bias is the inverse softplus of such a
        draw."""
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        low, high = (math.log(step) for step in STEP_RANGE)
        dt = torch.empty(self.inner).uniform_(low, high).exp()
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def state_shapes(self, tokens: int) -> tuple[tuple[int, ...], ...]:
        """The last inputs of the convolution, (N, conv - 1, E), and h, (N, K, E)."""
        return (tokens, self.conv1d.kernel_size[0] - 1, self.inner), (
            tokens,
            self.state,
            self.inner,
        )

    def flops(self, tokens: int) -> int:
        """Operations of one frame of N = `tokens`. The scan counts 9 for each of E * K: decay, dt x
        B, update and read-out; 2 E are for the skip D."""
        products = sum(
            part.weight.numel()
            for part in (self.in_proj, self.x_proj, self.dt_proj, self.out_proj, self.conv1d)
        )
        return tokens * (2 * products + 9 * self.inner * self.state + 2 * self.inner)

    def forward(
        self, x_TBND: torch.Tensor, state: State | None = None
    ) -> tuple[torch.Tensor, State]:
        """`state` None: the start of a stream."""
        conv_RHE, h_RKE = (None, None) if state is None else (part.flatten(0, 1) for part in state)
        y_RTD, *parts = mamba_rows(
            x_TBND.flatten(1, 2).transpose(0, 1), conv_RHE, h_RKE, self._weights()
        )
        streams = x_TBND.shape[1:3]
        after = tuple(part.unflatten(0, streams).to(self.D.dtype) for part in parts)
        return y_RTD.transpose(0, 1).unflatten(1, streams), after

    def _weights(self) -> MambaWeights:
        assert self.conv1d.bias is not None
        return MambaWeights(
            in_proj=self.in_proj.weight,
            conv=self.conv1d.weight,
            conv_bias=self.conv1d.bias,
            x_proj=self.x_proj.weight,
            dt_proj=self.dt_proj.weight,
            dt_bias=self.dt_proj.bias,
            A_KE=-self.A_log.exp().T,
            D=self.D,
            out_proj=self.out_proj.weight,
        )


class MambaBlock(nn.Module):
    """Dropout(Mamba(LN(x))): the residual branch, without the residual."""

    def __init__(self, width: int, state: int, expand: int, conv: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mamba = Mamba(width, state, expand, conv)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x_TBND: torch.Tensor, state: State | None = None
    ) -> tuple[torch.Tensor, State]:
        y_TBND, state = self.mamba(self.norm(x_TBND), state)
        return self.dropout(y_TBND), state


class MambaWeights(NamedTuple):
    """Weights of one layer, shaped as its parameters are, but for A_KE = -exp(A_log).T."""

    in_proj: torch.Tensor
    conv: torch.Tensor
    conv_bias: torch.Tensor
    x_proj: torch.Tensor
    dt_proj: torch.Tensor
    dt_bias: torch.Tensor
    A_KE: torch.Tensor
    D: torch.Tensor
    out_proj: torch.Tensor


LayerOutput = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def mamba_rows(
    x_RTD: torch.Tensor, conv_RHE: torch.Tensor | None, h_RKE: torch.Tensor | None, w: MambaWeights
) -> LayerOutput:
    """Output (R, T, D), and the state after it: the last H inputs of the convolution, and h. No
    state given: zeros."""
    rows, frames, _ = x_RTD.shape
    # Asked first: a graph that is being made knows no number of rows.
    is_whole = torch.compiler.is_compiling() or uses_kernel(x_RTD, h_RKE)
    if is_whole or len(row_blocks(frames, rows, w.A_KE)) == 1:
        y_TRE, conv_RHE, h_RKE = _mix((x_RTD, conv_RHE, h_RKE), w)
        return F.linear(y_TRE, w.out_proj).transpose(0, 1), conv_RHE, h_RKE
    return _MambaInBlocks.apply(x_RTD, conv_RHE, h_RKE, *w)


def _mix(
    inputs: Iterable[Any], w: MambaWeights, states_TRKE: torch.Tensor | None = None
) -> LayerOutput:
    """All but the last projection, time first, and the state. `inputs` are those of
    `mamba_rows`."""
    x_RTD, conv_RHE, h_RKE = inputs
    x_TRE, gate_TRE = F.linear(x_RTD.transpose(0, 1).contiguous(), w.in_proj).chunk(2, dim=-1)
    taps_HE = w.conv.squeeze(1).T
    if conv_RHE is None:
        conv_RHE = w.conv.new_zeros(x_TRE.shape[1], len(taps_HE) - 1, x_TRE.shape[2])
    padded_TRE = torch.cat([conv_RHE.transpose(0, 1), x_TRE])
    x_TRE = F.silu(_CausalConv.apply(padded_TRE, taps_HE, w.conv_bias))

    state, rank = len(w.A_KE), w.dt_proj.shape[1]
    dt_TRr, B_TRK, C_TRK = F.linear(x_TRE, w.x_proj).split([rank, state, state], dim=-1)
    # The bias is added apart: near -7 bfloat16 would round it, and with it dt, by some percent.
    dt_TRE = F.softplus(F.linear(dt_TRr, w.dt_proj) + w.dt_bias)
    y_TRE, h_RKE = selective_scan(x_TRE, dt_TRE, w.A_KE, B_TRK, C_TRK, h_RKE, states_TRKE)
    y_TRE = torch.addcmul(y_TRE, w.D, x_TRE) * F.silu(gate_TRE)
    # A copy always: a view would keep all of `padded_TRE` alive for as long as the stream.
    conv_RHE = padded_TRE[len(x_TRE) :].transpose(0, 1).clone(memory_format=torch.contiguous_format)
    return y_TRE.type_as(gate_TRE), conv_RHE, h_RKE


class _CausalConv(torch.autograd.Function):
    """Depthwise convolution over time, tap by tap: no axis is moved, and its gradient makes no
    tensor per tap."""

    @staticmethod
    def forward(
        ctx: Any, padded_TRE: torch.Tensor, taps_HE: torch.Tensor, bias_E: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(padded_TRE, taps_HE)
        frames = len(padded_TRE) - len(taps_HE) + 1
        y_TRE = torch.addcmul(bias_E, taps_HE[0], padded_TRE[:frames])
        for i in range(1, len(taps_HE)):
            y_TRE.addcmul_(taps_HE[i], padded_TRE[i : i + frames])
        return y_TRE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TRE: torch.Tensor) -> tuple[torch.Tensor, ...]:
        padded_TRE, taps_HE = ctx.saved_tensors
        frames = len(grad_TRE)
        grad_padded, grad_taps = torch.zeros_like(padded_TRE), torch.empty_like(taps_HE)
        for i, tap in enumerate(taps_HE):
            grad_padded[i : i + frames].addcmul_(grad_TRE, tap)
            grad_taps[i] = (grad_TRE * padded_TRE[i : i + frames]).sum((0, 1))
        return grad_padded, grad_taps, grad_TRE.sum((0, 1))


class _MambaInBlocks(torch.autograd.Function):
    """`mamba_rows`, block by block. Keeps its inputs only."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        conv: torch.Tensor | None,
        h: torch.Tensor | None,
        *weights: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(x, conv, h, *weights)
        ctx.set_materialize_grads(False)
        device = x.device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        # Detached: autocast keeps its casts of parameters, and one made here, without a graph,
        # would be found by others.
        w = MambaWeights(*(part.detach() for part in weights))
        outputs: list[torch.Tensor] = []
        for rows in row_blocks(x.shape[1], len(x), w.A_KE):
            y_TRE, *state = _mix(_block((x, conv, h), rows), w)
            parts = [F.linear(y_TRE, w.out_proj).transpose(0, 1), *state]
            if not outputs:
                outputs = [
                    torch.empty_like(x, dtype=parts[0].dtype),
                    *(part.new_empty(len(x), *part.shape[1:]) for part in state),
                ]
            for whole, part in zip(outputs, parts, strict=True):
                whole[rows] = part
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        inputs, needed = ctx.saved_tensors, ctx.needs_input_grad
        x, w = inputs[0], MambaWeights(*_leaves(inputs[3:], needed[3:]))
        totals = [
            torch.zeros_like(part) if need else None
            for part, need in zip(inputs, needed, strict=True)
        ]
        blocks = row_blocks(x.shape[1], len(x), w.A_KE)
        states_TRKE = w.A_KE.new_empty(
            x.shape[1],
            blocks[0].stop,
            *w.A_KE.shape,
            dtype=torch.promote_types(w.A_KE.dtype, torch.float32),
        )
        for rows in blocks:
            leaves = _leaves(_block(inputs[:3], rows), needed)
            sinks = [*_block(totals[:3], rows), *totals[3:]]
            grad_y, *grad_state = _block(grads, rows)
            with torch.autocast(*ctx.autocast):
                with torch.enable_grad():
                    y_TRE, *state = _mix(leaves, w, states_TRKE[:, : rows.stop - rows.start])
                grad_y_TRE = None
                if (
                    grad_y is not None
                ):  # back through the last projection by hand: its output need not be made again
                    grad_y = grad_y.transpose(0, 1).flatten(0, 1)
                    grad_y_TRE = (grad_y @ w.out_proj.detach()).view_as(y_TRE)
                    if sinks[-1] is not None:
                        sinks[-1] += grad_y.T @ y_TRE.detach().flatten(0, 1)
            pairs = zip((y_TRE, *state), (grad_y_TRE, *grad_state), strict=True)
            reached = [
                (output, grad)
                for output, grad in pairs
                if grad is not None and output.requires_grad
            ]
            if reached:
                needing_grad = [
                    leaf for leaf in (*leaves, *w[:-1]) if leaf is not None and leaf.requires_grad
                ]
                outputs, grad_outputs = zip(*reached, strict=True)
                leaf_grads = torch.autograd.grad(
                    outputs, needing_grad, grad_outputs, materialize_grads=True
                )
                for sink, grad in zip(
                    [sink for sink in sinks[:-1] if sink is not None], leaf_grads, strict=True
                ):
                    sink += grad
        return tuple(totals)


def _block(parts: Iterable[torch.Tensor | None], rows: slice) -> list[Any]:
    return [None if part is None else part[rows] for part in parts]


def _leaves(parts: Iterable[torch.Tensor | None], needed: Iterable[bool]) -> list[Any]:
    return [
        None if part is None else part.detach().requires_grad_(need)
        for part, need in zip(parts, needed, strict=False)
    ]
