"""A forward pass, and a forward and backward pass, of several modules are timed in turn."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pipeline.cli.bench.memory import peak_bytes
from pipeline.models.profile import timed

Tell = Callable[[float, float, str], None]
"""(done, total, what is being measured)"""
PASSES = {"forward": 1, "forward_backward": 3}
"""Pass -> its FLOPs over those of a forward pass: backward counts twice, whatever is made anew in
it."""


class Workload:
    """One module at one input. Gradients are those of the input and of all parameters, for a dense
    gradient of the output."""

    def __init__(
        self,
        module: nn.Module,
        run: Callable[[torch.Tensor], torch.Tensor],
        x: torch.Tensor,
        grad: torch.Tensor,
    ) -> None:
        """`run` maps an input like `x` to an output like `grad`."""
        self.module, self.run, self.x, self.grad = module, run, x, grad

    def forward(self) -> torch.Tensor:
        """As in use: eval mode, nothing kept for a backward pass."""
        self.module.eval()
        with torch.inference_mode():
            return self.run(self.x)

    def forward_backward(self) -> tuple[torch.Tensor, ...]:
        """As in training, dropout included. Gradients of the input and the parameters, in their
        order."""
        self.module.train()
        x = self.x.detach().requires_grad_()
        return torch.autograd.grad(self.run(x), [x, *self.module.parameters()], self.grad)

    def peaks(self) -> dict[str, int | None]:
        """Pass -> peak extra bytes. Call it warm."""
        return {name: peak_bytes(getattr(self, name), self.x.device) for name in PASSES}


def in_turn(
    works: Mapping[str, Workload], repeats: int, tell: Tell
) -> dict[str, dict[str, list[float]]]:
    """Name -> pass -> seconds of each repeat. All take turns in every repeat, so that what disturbs
    disturbs all."""
    seconds: dict[str, dict[str, list[float]]] = {
        name: {pass_name: [] for pass_name in PASSES} for name in works
    }
    for repeat in range(repeats):
        for i, (name, work) in enumerate(works.items()):
            tell(repeat * len(works) + i, repeats * len(works), f"time of {name}")
            for pass_name in PASSES:
                seconds[name][pass_name].append(seconds_of(getattr(work, pass_name), work.x.device))
    return seconds


@contextmanager
def frozen() -> Iterator[None]:
    """Objects that are here already are not searched for garbage before every measurement: with
    those of all libraries that takes long."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    gc.collect()
    return timed(call, device)[0]


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Raw times, and what is shown of them."""
    return {
        "s": list(seconds),
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
    }


def median_ratio(seconds: Sequence[float], of_reference: Sequence[float]) -> float:
    """The median of the ratios of every round, in which both took their turn."""
    pairs = zip(seconds, of_reference, strict=True)
    return statistics.median(own / reference for own, reference in pairs)
