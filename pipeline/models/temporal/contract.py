"""Contract of a temporal module: mixes tokens over time, causally, and can stop and go on at any
frame.

A module tells places apart by their tokens alone: it has no weights for one, and training may leave
places out, all through a window (`windows.keep_tokens`, `windows.crop`).

Three ways to run agree within 1e-5 in float32 (eval mode): a whole window, a window in pieces with
the state carried over, and frame by frame. State is a tuple of tensors whose first axis is B; its
size does not grow with time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn

from pipeline.config import plugins
from pipeline.config.plugins import Settings
from pipeline.config.recipe import Recipe
from pipeline.errors import BadInput

State = tuple[torch.Tensor, ...]


class NotFinite(BadInput):
    """Tokens are NaN or infinite: a training has diverged, or a cache is damaged. Every other
    BadInput of a module is a mistake of its caller."""


class Gate(nn.Identity):
    """Passes the openings of a gate on, numbers from 0 to 1: the place where a forward hook can
    watch them.

    For one frame of one stream they can be viewed as (N, channels), whatever else their shape says.
    """

    def __init__(self, opens: str) -> None:
        """`opens`: what an open gate (1) does, for a reader."""
        super().__init__()
        self.opens = opens


class TemporalModule(nn.Module, ABC):
    """Base of every `Temporal`. A plug-in writes `_run`, `state_shapes` and `flops`; input is
    checked here."""

    Settings: ClassVar[type[Settings]]

    def __init__(self, width: int, settings: Any) -> None:
        """`width` is D, in and out."""
        super().__init__()
        self.width = width
        self.settings = settings

    def forward(
        self, x_BTND: torch.Tensor, state: State | None = None
    ) -> tuple[torch.Tensor, State]:
        """Tokens of T >= 1 frames and the state before them (None: the start) -> outputs of that
        shape, and the state after.

        Raises BadInput: another width, no frames, a state of another batch size or token count;
        NotFinite: tokens that are NaN or infinite (left out under torch.compile, where it would
        split the graph, and in training on CUDA, where it would wait for the device).
        """
        self._check(x_BTND, state)
        return self._run(x_BTND, state)

    @abstractmethod
    def _run(self, x_BTND: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        """`forward` on checked input."""

    @abstractmethod
    def state_shapes(self, tokens: int) -> tuple[tuple[int, ...], ...]:
        """Shape of each part of one stream's state for frames of N = `tokens`, without the batch
        axis."""

    @abstractmethod
    def flops(self, frames: int, tokens: int) -> int:
        """Floating-point operations of one window's forward pass: 2 for a multiply and add, matrix
        products, convolutions and recurrences; norms and element-wise activations are left out."""

    def load_released(self) -> None:
        """Takes in the released weights that the settings name, if they name any; called once,
        before the first step of a training, after which checkpoints hold them. Raises BadInput."""

    def initial_state(self, batch: int, tokens: int) -> State:
        """The state before the first frame: zeros, on the module's device, in its dtype."""
        like = next(self.parameters())
        return tuple(like.new_zeros(batch, *shape) for shape in self.state_shapes(tokens))

    def step(self, x_BND: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """One frame."""
        y_BTND, state = self(x_BND.unsqueeze(1), state)
        return y_BTND.squeeze(1), state

    def state_bytes(self, tokens: int) -> int:
        """Memory of one stream's state for frames of N = `tokens`."""
        return sum(part.numel() * part.element_size() for part in self.initial_state(1, tokens))

    def _check(self, x_BTND: torch.Tensor, state: State | None) -> None:
        name = type(self).__module__.rsplit(".", 1)[-1]
        if x_BTND.ndim != 4 or x_BTND.shape[-1] != self.width:
            shape = ", ".join(map(str, x_BTND.shape))
            raise BadInput(
                f"temporal module '{name}': wanted tokens (B, T, N, D) with D = {self.width}, "
                f"found ({shape})"
            )
        batch, frames, tokens, _ = x_BTND.shape
        if frames == 0:
            raise BadInput(f"temporal module '{name}': wanted at least 1 frame, found T = 0")
        if state is not None:
            shapes = [tuple(part.shape) for part in state]
            expected = [(batch, *shape) for shape in self.state_shapes(tokens)]
            if shapes != expected:
                raise BadInput(
                    f"temporal module '{name}': the state does not belong to B = {batch} streams "
                    f"of N = {tokens} tokens: "
                    f"{_misfit(shapes, expected)}",
                    "start a new stream with initial_state, or pass the state that the frame "
                    "before gave back",
                )
        if torch.compiler.is_compiling():
            return
        # A sum is not finite if one of its terms is not: one pass and no mask in memory.
        total = x_BTND.detach().sum(dtype=torch.float32)
        if self.training and total.is_cuda:
            # Whoever trains waits for the device once in a step, and sees then that the loss is not
            # finite.
            return
        if not torch.isfinite(total):
            bad = int((~torch.isfinite(x_BTND)).sum())
            if bad:
                raise NotFinite(
                    f"temporal module '{name}': {bad} of {x_BTND.numel()} numbers in the tokens "
                    "are not finite",
                    "look for damage with stillframe verify CACHE, or lower training.learning_rate",
                )


def _misfit(shapes: list[tuple[int, ...]], expected: list[tuple[int, ...]]) -> str:
    """The first difference, in one phrase."""
    if len(shapes) != len(expected):
        return f"found {len(shapes)} parts, wanted {len(expected)}"
    part = next(i for i, (a, b) in enumerate(zip(shapes, expected, strict=True)) if a != b)
    return f"part {part} is {shapes[part]}, wanted {expected[part]}"


def make_temporal(recipe: Recipe, width: int) -> TemporalModule:
    """The temporal module that a recipe names, for tokens of `width`. Its weights are drawn from
    torch's random state. Raises BadInput where the width does not suit it."""
    module: TemporalModule = plugins.load("temporal", recipe.temporal.name)(
        width, recipe.temporal.settings
    )
    return module
