"""A gated recurrent unit over time at every token position, all positions sharing weights (GRU,
arXiv 1406.1078).

Per layer x <- x + W_o GRU(LN x), then an output LayerNorm: the residual carries what the frame
itself says, the recurrence adds what came before. Tokens do not see each other: whatever mixes
positions must be done by the encoder or the readout.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import nn

from pipeline.config import plugins
from pipeline.models.temporal.contract import Gate, State, TemporalModule


class Settings(plugins.Settings):
    layers: int = Field(default=1, ge=1)
    """Recurrent layers, each with its own residual."""


class GruLayer(nn.Module):
    """The residual branch W_o GRU(LN x). Gates in the order reset, update, candidate, as in
    torch.nn.GRU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.norm = nn.LayerNorm(width)
        self.input_gates = nn.Linear(width, 3 * width)
        self.hidden_gates = nn.Linear(width, 3 * width)
        self.update = Gate("keeps the state")
        self.out_proj = nn.Linear(width, width)
        for gate in self.hidden_gates.weight.detach().split(width):
            nn.init.orthogonal_(gate)
        # An update gate that starts near sigmoid(1) = 0.73 remembers a few frames, so that
        # gradients reach back from the start.
        nn.init.constant_(self.input_gates.bias.detach()[width : 2 * width], 1.0)
        nn.init.zeros_(self.hidden_gates.bias)

    def forward(
        self, x_TBND: torch.Tensor, h_BND: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        gates, outputs = [2 * self.width, self.width], []
        for frame in self.input_gates(self.norm(x_TBND)).unbind():
            gates_x, candidate_x = frame.split(gates, dim=-1)
            gates_h, candidate_h = self.hidden_gates(h_BND).split(gates, dim=-1)
            reset, update = torch.sigmoid(gates_x + gates_h).chunk(2, dim=-1)
            candidate = torch.tanh(candidate_x + reset * candidate_h)
            h_BND = candidate + self.update(update) * (h_BND - candidate)
            outputs.append(h_BND)
        return self.out_proj(torch.stack(outputs)), h_BND


class Temporal(TemporalModule):
    """State: one (B, N, D) per layer."""

    Settings = Settings

    def __init__(self, width: int, settings: Any) -> None:
        super().__init__(width, settings)
        self.layers = nn.ModuleList(GruLayer(width) for _ in range(settings.layers))
        self.output_norm = nn.LayerNorm(width)

    def _run(self, x_BTND: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        batch, _, tokens, _ = x_BTND.shape
        before = self.initial_state(batch, tokens) if state is None else state
        after: State = ()
        x = x_BTND.transpose(0, 1)  # time first: one frame is one contiguous slab
        for layer, h_BND in zip(self.layers, before, strict=True):
            y, h_BND = layer(x, h_BND)
            x = x + y
            after += (h_BND,)
        return self.output_norm(x.transpose(0, 1)), after

    def state_shapes(self, tokens: int) -> tuple[tuple[int, ...], ...]:
        return ((tokens, self.width),) * self.settings.layers

    def flops(self, frames: int, tokens: int) -> int:
        return self.settings.layers * frames * tokens * 14 * self.width**2
