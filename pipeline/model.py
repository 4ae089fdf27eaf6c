"""The trained part of the video model: layer mixer -> projection -> temporal module -> readouts, over a window or as a stream.

The input is what the cache holds: special tokens of the last layer and the patches of every recorded layer, ascending.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from pipeline import plugins
from pipeline.errors import BadInput
from pipeline.records import TokenShape
from pipeline.spec import Recipe
from pipeline.targets import Arrays
from pipeline.tasks import STREAMING, WINDOW, Query, StreamingReadout, TaskPlugin
from pipeline.temporal import State, TemporalModule
from pipeline.windows import OnDevice


class Moments(NamedTuple):
    """Of the tokens of a layer."""

    mean_D: torch.Tensor
    variance_D: torch.Tensor
    """Biased."""
    number: int
    """Of tokens."""


class TokenNorm(nn.BatchNorm1d):
    """Batch norm of frozen tokens, whose moments are known before a step: then it works in parts as on the whole batch."""

    whole: Moments | None = None
    """Moments of the step's whole batch, over all parts and ranks; None: those of what comes in."""

    def observe(self, whole: Moments) -> None:
        """What the parts that follow belong to. The running moments take it in, once."""
        self.whole = whole
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(whole.mean_D, self.momentum)
            self.running_var.lerp_(whole.variance_D * (whole.number / max(1, whole.number - 1)), self.momentum)

    def forward(self, x_MD: torch.Tensor) -> torch.Tensor:
        if self.whole is None or not self.training:
            return super().forward(x_MD)
        return F.batch_norm(x_MD, self.whole.mean_D, self.whole.variance_D, self.weight, self.bias, eps=self.eps)


class MixerLayer(nn.Module):
    """F + W2 GELU(W1 BN(F)) for the patches of one layer; the norm runs over all B * T * P tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn = TokenNorm(width)
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
        if WINDOW in task.forms and recipe.windows.eval_frames not in (None, recipe.windows.frames):
            raise BadInput(
                f"recipe '{recipe.name}': the form '{WINDOW}' reads {recipe.windows.frames} frames at once, no other number; "
                f"windows.eval_frames is {recipe.windows.eval_frames}",
                'leave windows.eval_frames out, or set task.forms = ["streaming"]',
            )
        model = recipe.model
        self.specials = model.tokens == "all"
        self.tokens = shape.patch_tokens + (shape.special_tokens if self.specials else 0)
        """N, what the temporal module sees of one frame."""
        width = model.width or shape.width
        self.layers = layers_read(recipe, shape)
        """Whose patches it reads."""
        self.mixer = layer_mixer(model.mixer, shape.width, len(self.layers))
        self.projection = nn.Linear(shape.width, width) if model.width else nn.Identity()
        self.temporal = plugins.load("temporal", recipe.temporal.name)(width, recipe.temporal.settings)
        self.readouts = nn.ModuleDict({form: task.readout(form, width, recipe.windows.frames) for form in task.forms})

    def forward(
        self, special_BTSD: torch.Tensor, patches_BTPD: Sequence[torch.Tensor], query: Query | None = None
    ) -> dict[str, torch.Tensor]:
        """The prediction of every form: (B, T, ...) for streaming, (B, ...) for window. `query` is what the task's says."""
        y_BTND = self.features(special_BTSD, patches_BTPD)
        return {form: readout(y_BTND, query or {}) for form, readout in self.readouts.items()}

    def predict(self, given: OnDevice, task: TaskPlugin) -> dict[str, torch.Tensor]:
        """The same for windows as they come from a cache: only the layers it reads are looked at."""
        patches = [given.patches[layer] for layer in self.layers]
        predictions: dict[str, torch.Tensor] = self(given.special_BTSD, patches, task.query(given.targets))
        return predictions

    def answers(self, given: OnDevice, task: TaskPlugin) -> Arrays:
        """Its answers in every form, as the task scores them."""
        with torch.inference_mode():
            predictions = self.predict(given, task)
            return {form: task.answer(form, prediction).cpu().numpy() for form, prediction in predictions.items()}

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


def layer_mixer(name: str, width: int, layers: int) -> nn.Module:
    """The mixer that `model.mixer` names, of so many layers."""
    if name == "mlp":
        return LayerMixer(width, layers)
    return ConcatLayers(width, layers) if name == "concat" else LastLayer()


def layers_read(recipe: Recipe, shape: TokenShape) -> tuple[int, ...]:
    """Which of the cached layers the model looks at. Raises BadInput where one is not there."""
    wanted = recipe.model.layers
    if wanted is None:
        return shape.layers[-1:] if recipe.model.mixer == "last" else shape.layers
    if missing := sorted(set(wanted) - set(shape.layers)):
        wants, has = (", ".join(map(str, layers)) for layers in (missing, shape.layers))
        raise BadInput(
            f"recipe '{recipe.name}' reads layer {wants}, the cache has {has}",
            "change model.layers, or add the layer to the spec and extract again: what is there is kept",
        )
    return wanted


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for the optimiser. Decay is for what multiplies activations: parameters `...weight` of two or more dimensions.

    Biases, norms, learned queries and embeddings, and a state space model's A_log and D are left alone.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (decayed if parameter.ndim > 1 and name.endswith("weight") else free).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
