"""Small temporal modules by name, and how large a tensor gets."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.config import plugins
from pipeline.models.temporal._laws import D, SmallModules
from pipeline.models.temporal.contract import TemporalModule

NAMES = plugins.names("temporal")
PRODUCTS_ALONE = (
    "causal_attention",
    "gated_mamba_mix",
    "gated_transformer",
    "gru",
    "identity",
    "mamba",
    "mamba2",
    "mamba_mix",
    "min_gru",
    "rg_lru",
)
"""Modules of which at width 256 all but 3 % of the operations are matrix products."""


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple | list) else (out,):
            if isinstance(part, torch.Tensor):
                self.elements = max(self.elements, part.numel())
        return out


def make(name: str, width: int = D, **keys: object) -> TemporalModule:
    """The plug-in with small settings and `keys`, where it has such, in eval mode; the same weights at every call."""
    return SmallModules(plugins.load("temporal", name)).make(width, **keys)
