"""Mamba-2 over time at every token position (arXiv 2405.21060; parameter names of a mixer as in
mamba_ssm.Mamba2).

Shape letters of this file: R rows (independent sequences, B * N of them), E inner width, H heads of
P channels each (here P is not patches), K state size. Every head decays by one number per frame, so
a short window is an attention: with cum_t the sum of dt A up to t, y_t is the sum over s <= t of
(C_t . B_s) exp(cum_t - cum_s) dt_s x_s, plus C_t exp(cum_t) h of the state before the window
(section 6: a block of the semiseparable matrix). Tokens do not see each other.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn
from torch.autograd.function import once_differentiable

from pipeline.config import plugins
from pipeline.errors import BadInput
from pipeline.models.temporal.contract import State
from pipeline.models.temporal.layers.recurrence import causal_conv
from pipeline.models.temporal.layers.stacks import Mixer, ResidualStack

STEP_RANGE = (1e-3, 1e-1)
"""Range of the step size dt at initialisation."""
DECAY_RANGE = (1.0, 16.0)
"""Range of -A at initialisation."""
HEAD_CHANNELS = 64
"""Published width of a head; narrower where it does not divide the inner width."""
WINDOW_FRAMES = 64
"""Frames of one attention; longer windows go on from the state of the one before."""
BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}
"""T * E of the rows taken at a time. CPU: what mostly stays in its caches; CUDA: enough to fill the
device."""


class Settings(plugins.Settings):
    """Depth, inner width, convolution and dropout are those of `mamba`, so that the two compare
    like with like."""

    layers: int = Field(default=4, ge=1)
    """Mamba-2 mixers, each with its own residual."""
    state: int = Field(default=64, ge=1)
    """State size per channel. Half of mamba_ssm's default: it is what a stream costs in memory."""
    expand: int = Field(default=2, ge=1)
    """Inner width of a mixer over the width."""
    head_dim: int | None = Field(default=None, ge=1)
    """Channels per head; must divide the inner width. None: the largest such number up to 64."""
    conv: int = Field(default=4, ge=1)
    """Frames that the causal convolution sees."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout after each layer."""


class GatedRmsNorm(nn.Module):
    """RMSNorm of y * silu(gate): the gate comes before the norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        gated = y * F.silu(gate.to(y.dtype))
        return F.rms_norm(gated, self.weight.shape, self.weight, eps=1e-5)


class Mamba2(Mixer):
    """State: the last inputs of the convolution, (B, N, conv - 1, E + 2 K), and h, (B, N, K, E)."""

    def __init__(self, width: int, state: int, expand: int, head_dim: int, conv: int) -> None:
        super().__init__()
        self.inner = expand * width
        self.heads = self.inner // head_dim
        self.state = state
        self.convolved = self.inner + 2 * state
        self.in_proj = nn.Linear(width, self.inner + self.convolved + self.heads, bias=False)
        self.conv1d = nn.Conv1d(self.convolved, self.convolved, conv, groups=self.convolved)
        # dt starts log-uniform over STEP_RANGE: the bias is the inverse softplus of such a draw.
        dt = torch.empty(self.heads).uniform_(*(math.log(step) for step in STEP_RANGE)).exp()
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(*DECAY_RANGE).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = GatedRmsNorm(self.inner)
        self.out_proj = nn.Linear(self.inner, width, bias=False)

    def state_shapes(self, tokens: int) -> tuple[tuple[int, ...], ...]:
        return (tokens, self.conv1d.kernel_size[0] - 1, self.convolved), (
            tokens,
            self.state,
            self.inner,
        )

    def flops(self, frames: int, tokens: int) -> int:
        products = sum(part.weight.numel() for part in (self.in_proj, self.conv1d, self.out_proj))
        windows = [WINDOW_FRAMES] * (frames // WINDOW_FRAMES) + [frames % WINDOW_FRAMES]
        pairs = sum(window**2 for window in windows)
        attention = pairs * (self.state + self.inner) + 2 * frames * self.state * self.inner
        return 2 * tokens * (frames * products + attention)

    def forward(self, x_TBND: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        conv_RHE, h_RKE = (part.flatten(0, 1) for part in state)
        gate_TRE, x_TRE, dt_TRH = self.in_proj(x_TBND.flatten(1, 2)).split(
            [self.inner, self.convolved, self.heads], dim=-1
        )
        assert self.conv1d.bias is not None
        x_TRE, conv_RHE = causal_conv(x_TRE, conv_RHE, self.conv1d.weight, self.conv1d.bias)
        x_TRE, B_TRK, C_TRK = F.silu(x_TRE).split([self.inner, self.state, self.state], dim=-1)
        # Not in bfloat16: the bias is near -7, and rounding would move dt by some percent.
        dt_TRH = F.softplus(dt_TRH.to(self.dt_bias.dtype) + self.dt_bias)
        y_TRE, h_RKE = state_space_dual(x_TRE, dt_TRH, -self.A_log.exp(), B_TRK, C_TRK, h_RKE)
        y_TRE = y_TRE + self.D.repeat_interleave(self.inner // self.heads) * x_TRE
        y_TRD = self.out_proj(self.norm(y_TRE, gate_TRE))
        return y_TRD.view_as(x_TBND), (conv_RHE.view_as(state[0]), h_RKE.view_as(state[1]))


class Temporal(ResidualStack):
    """Per layer x <- x + Dropout(Mamba-2 of LN x)."""

    Settings = Settings

    def __init__(self, width: int, settings: Any) -> None:
        """Raises BadInput if `settings.head_dim` does not divide the inner width."""
        inner = settings.expand * width
        legal = [n for n in range(1, inner + 1) if inner % n == 0]
        head_dim = settings.head_dim or max(n for n in legal if n <= HEAD_CHANNELS)
        if head_dim not in legal:
            raise BadInput(
                f"[temporal] mamba2: head_dim must divide the inner width, found {head_dim} "
                f"channels for {inner}",
                f"set temporal.head_dim to one of {', '.join(map(str, legal))}, or leave it out",
            )
        make = settings.state, settings.expand, head_dim, settings.conv
        super().__init__(width, settings, [Mamba2(width, *make) for _ in range(settings.layers)])


def state_space_dual(
    x_TRE: torch.Tensor,
    dt_TRH: torch.Tensor,
    A_H: torch.Tensor,
    B_TRK: torch.Tensor,
    C_TRK: torch.Tensor,
    state_RKE: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """h_t = exp(dt_t A) h_{t-1} + B_t (dt_t x_t)^T and y_t = C_t h_t, from h_{-1} = `state_RKE`; dt
    and A are per head.

    Returns y_TRE and the last h_RKE. Runs in at least float32, also under autocast; exact in
    float64.
    """
    dtype = torch.promote_types(x_TRE.dtype, torch.float32)
    with torch.autocast(x_TRE.device.type, enabled=False):
        x_TRE, dt_TRH, A_H, B_TRK, C_TRK, h_RKE = (
            part.to(dtype) for part in (x_TRE, dt_TRH, A_H, B_TRK, C_TRK, state_RKE)
        )
        if torch.compiler.is_compiling() and len(x_TRE) == 1:
            return _dual_step(x_TRE, dt_TRH, A_H, B_TRK, C_TRK, h_RKE)
        outputs = []
        for x, dt, B, C in zip(
            *(part.split(WINDOW_FRAMES) for part in (x_TRE, dt_TRH, B_TRK, C_TRK)), strict=True
        ):
            y_TRE, h_RKE = _StateSpaceDual.apply(x, dt, A_H, B, C, h_RKE)
            outputs.append(y_TRE)
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0], h_RKE


def _dual_step(
    x_1RE: torch.Tensor,
    dt_1RH: torch.Tensor,
    A_H: torch.Tensor,
    B_1RK: torch.Tensor,
    C_1RK: torch.Tensor,
    h_RKE: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One frame as a recurrence, in plain operators and not in blocks of rows: for a graph that is
    being made, which knows no number of rows."""
    channels = x_1RE.shape[-1] // A_H.shape[0]
    decay_RE, dt_RE = (
        part.repeat_interleave(channels, dim=-1) for part in ((dt_1RH[0] * A_H).exp(), dt_1RH[0])
    )
    driven_R1E = (dt_RE * x_1RE[0]).unsqueeze(1)
    h_RKE = torch.addcmul(decay_RE.unsqueeze(1) * h_RKE, B_1RK[0].unsqueeze(2), driven_R1E)
    return torch.bmm(C_1RK[0].unsqueeze(1), h_RKE).transpose(0, 1), h_RKE


class _StateSpaceDual(torch.autograd.Function):
    """One window. Only the inputs are kept: the backward pass makes the decays of each block of
    rows once more."""

    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(*inputs)
        x, *_, state = inputs
        y, last = (
            torch.empty_like(x, memory_format=torch.contiguous_format),
            torch.empty_like(state),
        )
        for rows in _blocks(x):
            _write_outputs(_Block.of(inputs, rows), y[:, rows], last[rows])
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = ctx.saved_tensors
        x, dt, A, B, C, state = inputs
        grad_y, grad_last = grads
        grad_x, grad_dt, grad_B, grad_C, grad_state = (
            torch.empty_like(part, memory_format=torch.contiguous_format)
            for part in (x, dt, B, C, state)
        )
        grad_A = torch.zeros_like(A)
        for rows in _blocks(x):
            parts = _gradients(_Block.of(inputs, rows), grad_y[:, rows], grad_last[rows])
            (
                grad_x[:, rows],
                grad_dt[:, rows],
                grad_B[:, rows],
                grad_C[:, rows],
                grad_state[rows],
            ) = parts[:5]
            grad_A += parts[5]
        return grad_x, grad_dt, grad_A, grad_B, grad_C, grad_state


def _blocks(x_TRE: torch.Tensor) -> list[slice]:
    """Ranges of rows taken at a time."""
    frames, rows, width = x_TRE.shape
    block = max(
        1, BLOCK_ELEMENTS.get(x_TRE.device.type, BLOCK_ELEMENTS["cuda"]) // (frames * width)
    )
    return [slice(start, min(start + block, rows)) for start in range(0, rows, block)]


def _by_head(x_TRE: torch.Tensor, heads: int) -> torch.Tensor:
    """(T, R, E) -> (R, H, T, P)."""
    return x_TRE.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3)


def _flat(x_RHTP: torch.Tensor) -> torch.Tensor:
    """(R, H, T, P) -> (R, T, E)."""
    return x_RHTP.transpose(1, 2).flatten(2)


def _decays(
    dt_TRH: torch.Tensor, A_H: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the shares that are left by decay: of the state before at t, (R, H, T), of frame s at
    t, (R, H, T, S), and of frame s at the last t, (R, H, S)."""
    rate_RHT = (dt_TRH * A_H).permute(1, 2, 0)
    frames = rate_RHT.shape[-1]
    square = torch.ones(frames, frames, dtype=torch.bool, device=rate_RHT.device)
    # Sums over s < u <= t, not differences of sums from the start: those lose their digits after
    # frames of strong decay.
    exponent = (
        rate_RHT.unsqueeze(-1)
        .expand(*rate_RHT.shape, frames)
        .masked_fill(square.triu(), 0)
        .cumsum(-2)
    )
    between = exponent.masked_fill_(square.triu(1), -torch.inf).exp_()
    return rate_RHT.cumsum(-1).exp(), between, between[:, :, -1]


class _Block(NamedTuple):
    """The inputs of one block of rows, rows first, with their decays."""

    x_RHTP: torch.Tensor
    dt_RHT: torch.Tensor
    A_H: torch.Tensor
    B_RTK: torch.Tensor
    C_RTK: torch.Tensor
    state_RKE: torch.Tensor
    since_start_RHT: torch.Tensor
    between_RHTS: torch.Tensor
    to_end_RHS: torch.Tensor

    @classmethod
    def of(cls, inputs: tuple[torch.Tensor, ...], rows: slice) -> _Block:
        """`rows` of the inputs of `_StateSpaceDual`."""
        x_TRE, dt_TRH, A_H, B_TRK, C_TRK, state_RKE = inputs
        dt_TRH = dt_TRH[:, rows]
        return cls(
            _by_head(x_TRE[:, rows], len(A_H)),
            dt_TRH.permute(1, 2, 0),
            A_H,
            B_TRK[:, rows].transpose(0, 1),
            C_TRK[:, rows].transpose(0, 1),
            state_RKE[rows],
            *_decays(dt_TRH, A_H),
        )


def _write_outputs(block: _Block, y: torch.Tensor, last: torch.Tensor) -> None:
    """Writes the outputs of one block of rows into `y` and its state after into `last`."""
    x, dt, A, B, C, state, since_start, between, to_end = block
    heads = len(A)
    drive = x * dt.unsqueeze(-1)
    out = (C @ B.mT).unsqueeze(1) * between @ drive
    out += _by_head((C @ state).transpose(0, 1), heads) * since_start.unsqueeze(-1)
    y.copy_(_flat(out).transpose(0, 1))
    kept = state.unflatten(-1, (heads, -1)) * since_start[:, None, :, -1:]
    torch.baddbmm(kept.flatten(2), B.mT, _flat(drive * to_end.unsqueeze(-1)), out=last)


def _gradients(
    block: _Block, grad_y: torch.Tensor, grad_last: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Gradients of one block of rows, in the order x, dt, B, C, state, A."""
    x, dt, A, B, C, state, since_start, between, to_end = block
    heads = len(A)
    grad_y, start, end = _by_head(grad_y, heads), since_start.unsqueeze(-1), to_end.unsqueeze(-1)
    drive = x * dt.unsqueeze(-1)

    # Within the window.
    scores = (C @ B.mT).unsqueeze(1) * between
    grad_scores = grad_y @ drive.mT
    grad_products = (grad_scores * between).sum(1)
    grad_exponent = grad_scores.mul_(scores).tril_(-1)  # of cum_t - cum_s, s < t
    grad_cum = grad_exponent.sum(-1) - grad_exponent.sum(-2)
    grad_drive = scores.mT @ grad_y

    # From the state before the window, and to the state after it.
    asked = grad_y * start
    grad_cum += (asked * _by_head((C @ state).transpose(0, 1), heads)).sum(-1)
    grad_written = _by_head((B @ grad_last).transpose(0, 1), heads) * end
    grad_drive += grad_written
    leaving = (grad_written * drive).sum(-1)
    grad_cum -= leaving
    passed_back = grad_last.unflatten(-1, (heads, -1)) * since_start[:, None, :, -1:]
    grad_cum[..., -1] += leaving.sum(-1) + (passed_back * state.unflatten(-1, (heads, -1))).sum(
        (1, 3)
    )

    grad_C = grad_products @ B + _flat(asked) @ state.mT
    grad_B = grad_products.mT @ C + _flat(drive * end) @ grad_last.mT
    grad_state = torch.baddbmm(passed_back.flatten(2), C.mT, _flat(asked))
    grad_rate = grad_cum.flip(-1).cumsum(-1).flip(-1)  # of dt A
    grad_dt = grad_rate * A.unsqueeze(-1) + (grad_drive * x).sum(-1)
    grad_x = _flat(grad_drive * dt.unsqueeze(-1))
    grad_A = (grad_rate * dt).sum((0, 2))
    return (
        grad_x.transpose(0, 1),
        grad_dt.permute(2, 0, 1),
        grad_B.transpose(0, 1),
        grad_C.transpose(0, 1),
        grad_state,
        grad_A,
    )
