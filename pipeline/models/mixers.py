"""Layer mixers: the patch tokens of several recorded layers become one token per position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Moments:
    """Mean and variance of the tokens of one layer over a whole batch."""

    mean_D: torch.Tensor
    var_D: torch.Tensor
    """Biased: the sum of squared deviations over `count`."""
    count: int
    """Number of tokens that both are taken over."""


class TokenNorm(nn.BatchNorm1d):
    """Batch norm of frozen tokens. Their moments over a step's whole batch can be known before the
    step: then micro batches are normed as the whole batch would be."""

    batch_moments: Moments | None = None
    """Moments of the step's whole batch, over all micro batches and ranks; None: those of what
    comes in."""

    def set_batch_moments(self, moments: Moments) -> None:
        """Norms what follows by `moments`, which the running moments take in, once."""
        self.batch_moments = moments
        assert (
            self.running_mean is not None
            and self.running_var is not None
            and self.num_batches_tracked is not None
        )
        assert self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            unbiased = moments.count / max(
                1, moments.count - 1
            )  # as torch keeps its running variance
            self.running_mean.lerp_(moments.mean_D, self.momentum)
            self.running_var.lerp_(moments.var_D * unbiased, self.momentum)

    def forward(self, x_MD: torch.Tensor) -> torch.Tensor:
        moments = self.batch_moments
        if moments is None or not self.training:
            return super().forward(x_MD)
        return F.batch_norm(
            x_MD, moments.mean_D, moments.var_D, self.weight, self.bias, eps=self.eps
        )


class MixerLayer(nn.Module):
    """F + W2 GELU(W1 BN(F)) for the patches of one layer; the norm runs over all B * T * P
    tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn = TokenNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, patches_MD: torch.Tensor) -> torch.Tensor:
        """(M, D) tokens of one layer, M = B * T * P -> the same shape."""
        return patches_MD + self.mlp(self.bn(patches_MD))


class LayerMixer(nn.ModuleList):
    """Multi-depth feature mixing: the mean over layers of each one's MixerLayer (arXiv 2605.19137;
    names as published)."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__(MixerLayer(width) for _ in range(layers))

    def forward(self, patches: Sequence[torch.Tensor]) -> torch.Tensor:
        """L tensors (..., P, D) -> (..., P, D)."""
        mixed = [layer(x.flatten(0, -2)) for layer, x in zip(self, patches, strict=True)]
        return torch.stack(mixed).mean(0).view_as(patches[0])


class LastLayer(nn.Module):
    """The patches of the last recorded layer as they are."""

    def forward(self, patches: Sequence[torch.Tensor]) -> torch.Tensor:
        """L tensors (..., P, D) -> (..., P, D)."""
        return patches[-1]


class NormedLayer(nn.Module):
    """The patches of the last recorded layer, each channel with mean 0 and variance 1 over all
    B * T * P tokens. In a frozen encoder a few channels may be many times larger than the others,
    and what tells tokens apart is drowned until a readout has learned to leave them out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn = TokenNorm(width)

    def forward(self, patches: Sequence[torch.Tensor]) -> torch.Tensor:
        """L tensors (..., P, D) -> (..., P, D)."""
        normed: torch.Tensor = self.bn(patches[-1].flatten(0, -2))
        return normed.view_as(patches[-1])


class ConcatLayers(nn.Module):
    """The patches of all layers side by side, and one linear layer back to the width."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.linear = nn.Linear(layers * width, width)

    def forward(self, patches: Sequence[torch.Tensor]) -> torch.Tensor:
        """L tensors (..., P, D) -> (..., P, D)."""
        mixed: torch.Tensor = self.linear(torch.cat(list(patches), dim=-1))
        return mixed


def layer_mixer(name: str, width: int, layers: int) -> nn.Module:
    """The mixer that `model.mixer` names, for `layers` recorded layers of `width`."""
    if name == "mlp":
        return LayerMixer(width, layers)
    if name == "norm":
        return NormedLayer(width)
    return ConcatLayers(width, layers) if name == "concat" else LastLayer()
