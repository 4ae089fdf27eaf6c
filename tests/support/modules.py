"""Small temporal modules and tokens for them, and how large a tensor gets."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.config import plugins
from pipeline.models.temporal.contract import TemporalModule

NAMES = plugins.names("temporal")
B, N, D = 2, 5, 16
SMALL = {"layers": 2, "heads": 2, "state": 3, "head_dim": 4}


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
    plugin = plugins.load("temporal", name)
    fields = plugin.Settings.model_fields
    torch.manual_seed(0)
    chosen = {key: value for key, value in (SMALL | keys).items() if key in fields}
    return plugin(width, plugin.Settings(**chosen)).eval()


def tokens(frames: int, batch: int = B, width: int = D, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, frames, N, width, generator=torch.Generator().manual_seed(seed))


def in_pieces(
    module: TemporalModule, x_BTND: torch.Tensor, cuts: list[int]
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Forward over [0, cut), [cut, cut) ... [cut, T) with the state carried over."""
    state, outputs = None, []
    for start, stop in pairwise([0, *cuts, x_BTND.shape[1]]):
        y, state = module(x_BTND[:, start:stop], state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state
