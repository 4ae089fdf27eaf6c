"""The Mamba block over time, each token position on its own. Parameter names are those of the published implementations.

Tokens come time first, (T, B, N, D). E = expand * D is the inner width and K the state size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.temporal import State
from pipeline.temporal._selective_scan import selective_scan

STEP_RANGE = (1e-3, 1e-1)
"""Range of the step size dt at initialisation."""


class Mamba(nn.Module):
    """Gated selective state space model with a short causal convolution (Mamba, arXiv 2312.00752)."""

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
        """dt starts log-uniform over STEP_RANGE: the bias is the inverse softplus of such a draw."""
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        low, high = (math.log(step) for step in STEP_RANGE)
        dt = torch.empty(self.inner).uniform_(low, high).exp()
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def state_shapes(self, tokens: int) -> tuple[tuple[int, ...], ...]:
        """The last inputs of the convolution, (N, conv - 1, E), and h, (N, K, E)."""
        return (tokens, self.conv1d.kernel_size[0] - 1, self.inner), (tokens, self.state, self.inner)

    def flops(self, tokens: int) -> int:
        """Of one frame. The scan counts 9 for each of E * K: decay, drive, update and read-out."""
        products = sum(part.weight.numel() for part in (self.in_proj, self.x_proj, self.dt_proj, self.out_proj, self.conv1d))
        return tokens * (2 * products + 9 * self.inner * self.state)

    def forward(self, x_TBND: torch.Tensor, state: State | None = None) -> tuple[torch.Tensor, State]:
        """`state` None: the start of a stream."""
        batch, tokens = x_TBND.shape[1:3]
        if state is None:
            state = tuple(self.D.new_zeros(batch, *shape) for shape in self.state_shapes(tokens))
        conv_RHE, h_RKE = (part.flatten(0, 1) for part in state)
        x_TRE, gate_TRE = self.in_proj(x_TBND.flatten(1, 2)).chunk(2, dim=-1)
        x_TRE, conv_RHE = self._convolve(x_TRE, conv_RHE)

        dt_TRr, B_TRK, C_TRK = self.x_proj(x_TRE).split([self.rank, self.state, self.state], dim=-1)
        # The bias is added apart: near -7 bfloat16 would round it, and with it dt, by some percent.
        dt_TRE = F.softplus(F.linear(dt_TRr, self.dt_proj.weight) + self.dt_proj.bias)
        y_TRE, h_RKE = selective_scan(x_TRE, dt_TRE, -self.A_log.exp().T, B_TRK, C_TRK, h_RKE)
        y_TRE = (y_TRE + self.D * x_TRE) * F.silu(gate_TRE)
        after = tuple(part.view_as(before).to(before.dtype) for part, before in zip((conv_RHE, h_RKE), state, strict=True))
        return self.out_proj(y_TRE).view_as(x_TBND), after

    def _convolve(self, x_TRE: torch.Tensor, history_RHE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Causal depthwise convolution over time, tap by tap: no axis is moved."""
        frames = len(x_TRE)
        padded = torch.cat([history_RHE.transpose(0, 1), x_TRE])
        assert self.conv1d.bias is not None
        taps = self.conv1d.weight.squeeze(1).T
        y_TRE = self.conv1d.bias
        for i, tap in enumerate(taps):
            y_TRE = torch.addcmul(y_TRE, tap, padded[i : i + frames])
        return F.silu(y_TRE), padded[frames:].transpose(0, 1).contiguous()


class MambaBlock(nn.Module):
    """Dropout(Mamba(LN(x))): the residual branch, without the residual."""

    def __init__(self, width: int, state: int, expand: int, conv: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mamba = Mamba(width, state, expand, conv)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_TBND: torch.Tensor, state: State | None = None) -> tuple[torch.Tensor, State]:
        y_TBND, state = self.mamba(self.norm(x_TBND), state)
        return self.dropout(y_TBND), state
