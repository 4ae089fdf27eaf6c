"""The Mamba block over time, each token position on its own. Parameter names are those of the
published implementations.

Tokens come time first, (T, B, N, D). E = expand * D is the inner width and K the state size.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from pipeline.models.temporal.contract import State
from pipeline.models.temporal.layers.mamba_rows import Weights, mamba_rows

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
        """Of one frame. The scan counts 9 for each of E * K: decay, drive, update and read-out; 2 E
        are for the skip D."""
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

    def _weights(self) -> Weights:
        assert self.conv1d.bias is not None
        return Weights(
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
