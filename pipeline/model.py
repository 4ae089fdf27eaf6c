"""The trained part of the video model: layer mixer -> projection -> temporal module -> readouts, over a window or as a stream.

The input is what the cache holds: special tokens of the last layer and the patches of every recorded layer, ascending.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from pipeline import plugins
from pipeline.errors import BadInput
from pipeline.records import TokenShape
from pipeline.spec import Recipe
from pipeline.tasks import STREAMING, Query, StreamingReadout, TaskPlugin
from pipeline.temporal import State, TemporalModule


class MixerLayer(nn.Module):
    """F + W2 GELU(W1 BN(F)) for the patches of one layer; the norm runs over all B * T * P tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, patches_MD: torch.Tensor) -> torch.Tensor:
        return patches_MD + self.mlp(self.bn(patches_MD))


class LayerMixer(nn.ModuleList):
    """Multi-depth feature mixing: the mean over layers of each one's MixerLayer (arXiv 2605.19137; names as published)."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__(MixerLayer(width) for _ in range(layers))

    def forward(self, patches: Sequence[torch.Tensor]) -> torch.Tensor:
        """L tensors (..., P, D) -> (..., P, D)."""
        mixed = [layer(one.flatten(0, -2)) for layer, one in zip(self, patches, strict=True)]
        return torch.stack(mixed).mean(0).view_as(patches[0])


class LastLayer(nn.Module):
    """The patches of the last recorded layer as they are."""

    def forward(self, patches: Sequence[torch.Tensor]) -> torch.Tensor:
        return patches[-1]


class ConcatLayers(nn.Module):
    """The patches of all layers side by side, and one linear layer back to the width."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.linear = nn.Linear(layers * width, width)

    def forward(self, patches: Sequence[torch.Tensor]) -> torch.Tensor:
        """L tensors (..., P, D) -> (..., P, D)."""
        mixed: torch.Tensor = self.linear(torch.cat(list(patches), dim=-1))
        return mixed


class StreamState(NamedTuple):
    """What a stream remembers between two frames."""

    temporal: State
    readout: Query


class VideoModel(nn.Module):
    """What a recipe trains on a cache. Initial weights depend on the recipe and on torch's random state alone."""

    temporal: TemporalModule

    def __init__(self, recipe: Recipe, shape: TokenShape, task: TaskPlugin) -> None:
        """`shape` is what the cache holds of one frame. Raises BadInput where the width does not suit the temporal module."""
        super().__init__()
        model = recipe.model
        self.specials = model.tokens == "all"
        self.tokens = shape.patch_tokens + (shape.special_tokens if self.specials else 0)
        """N, what the temporal module sees of one frame."""
        width = model.width or shape.width
        self.mixer = layer_mixer(model.mixer, shape)
        self.projection = nn.Linear(shape.width, width) if model.width else nn.Identity()
        self.temporal = plugins.load("temporal", recipe.temporal.name)(width, recipe.temporal.settings)
        self.readouts = nn.ModuleDict({form: task.readout(form, width, recipe.windows.frames) for form in task.forms})

    def forward(
        self, special_BTSD: torch.Tensor, patches_BTPD: Sequence[torch.Tensor], query: Query | None = None
    ) -> dict[str, torch.Tensor]:
        """The prediction of every form: (B, T, ...) for streaming, (B, ...) for window. `query` is what the task's says."""
        y_BTND = self.features(special_BTSD, patches_BTPD)
        return {form: readout(y_BTND, query or {}) for form, readout in self.readouts.items()}

    def features(self, special_BTSD: torch.Tensor, patches_BTPD: Sequence[torch.Tensor]) -> torch.Tensor:
        """Outputs of the temporal module, (B, T, N, width)."""
        y_BTND, _ = self.temporal(self.tokens_of(special_BTSD, patches_BTPD))
        return y_BTND

    def start(self, batch: int, query: Query | None = None) -> StreamState:
        """The state of B streams before their first frame."""
        return StreamState(self.temporal.initial_state(batch, self.tokens), self.streaming.start(query or {}))

    def step(
        self, special_BSD: torch.Tensor, patches_BPD: Sequence[torch.Tensor], state: StreamState
    ) -> tuple[torch.Tensor, StreamState]:
        """One frame of a stream: the streaming form's prediction, (B, ...), and the state after.

        Frame by frame equals `forward` in eval mode.
        """
        y_BND, temporal = self.temporal.step(self.tokens_of(special_BSD, patches_BPD), state.temporal)
        prediction, readout = self.streaming.step(y_BND, state.readout)
        return prediction, StreamState(temporal, readout)

    @property
    def streaming(self) -> StreamingReadout:
        """The streaming form's readout. Raises BadInput if the recipe did not train it."""
        if STREAMING not in self.readouts:
            raise BadInput(
                f"this model answers only in the form {', '.join(self.readouts)} and cannot follow a stream",
                'add "streaming" to task.forms in the recipe and train again',
            )
        readout = self.readouts[STREAMING]
        assert isinstance(readout, StreamingReadout)
        return readout

    def parameter_counts(self) -> dict[str, int]:
        """Trained parameters of each part; the projection counts with the mixer."""
        parts = {"mixer": (self.mixer, self.projection), "temporal": (self.temporal,), "readout": (self.readouts,)}
        return {name: sum(p.numel() for part in modules for p in part.parameters()) for name, modules in parts.items()}

    def tokens_of(self, special: torch.Tensor, patches: Sequence[torch.Tensor]) -> torch.Tensor:
        """(..., S, D) and L times (..., P, D) -> (..., N, width): special tokens in front, then the mixed patches."""
        dtype = next(self.parameters()).dtype
        tokens = self.mixer([one.to(dtype) for one in patches])
        if self.specials:
            tokens = torch.cat([special.to(dtype), tokens], dim=-2)
        return self.projection(tokens)


def layer_mixer(name: str, shape: TokenShape) -> nn.Module:
    """The mixer that `model.mixer` names."""
    if name == "mlp":
        return LayerMixer(shape.width, len(shape.layers))
    return ConcatLayers(shape.width, len(shape.layers)) if name == "concat" else LastLayer()


def layers_read(recipe: Recipe, shape: TokenShape) -> tuple[int, ...]:
    """Which of the cached layers the model looks at."""
    return shape.layers[-1:] if recipe.model.mixer == "last" else shape.layers


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for the optimiser. Decay is for what multiplies activations: parameters `...weight` of two or more dimensions.

    Biases, norms, learned queries and embeddings, and a state space model's A_log and D are left alone.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (decayed if parameter.ndim > 1 and name.endswith("weight") else free).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
