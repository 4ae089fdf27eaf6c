"""Small temporal modules and tokens for them, how large a tensor gets, and what runs element by element."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.config import plugins
from pipeline.models.temporal.contract import TemporalModule

NAMES = plugins.names("temporal")
B, N, D = 2, 5, 16
PER_ELEMENT = {
    "mul": 1,
    "add": 1,
    "sub": 1,
    "sum": 1,
    "cumsum": 1,
    "cumprod": 1,
    "addcmul": 3,
    "lerp": 3,
}
"""Operator of torch -> operations for each element."""
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


class PerElement(TorchDispatchMode):
    """Additions and multiplications that run element by element: what recurrences are made of, and
    what torch's own counter does not see. Norms and residual sums are among them."""

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        if name in PER_ELEMENT:
            # A sum adds what goes in; a complex product is four products and two sums.
            tensor = args[0] if name in ("sum", "cumsum", "cumprod") else out
            self.flops += PER_ELEMENT[name] * (6 if tensor.is_complex() else 1) * tensor.numel()
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
