"""RVM_RNN: a gated recurrence whose candidate is made by a transformer (arXiv 2605.19137; names as
published).

Per frame x with the state s before it: u = sigmoid(W_ux x + W_us s), r = sigmoid(W_rx x + W_rs s),
h = transformer of x that reads r * LN(s), s <- (1 - u) s + u h; the output is LN(s). Frames go one
after the other, also in training.

With `weights` it is the core of RVM as it was released, pre-trained on video: the output is s
itself, LN(s) has a scale alone, GELU is approximated by a tanh.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self, cast

import torch
from pydantic import Field, model_validator
from torch import nn

from pipeline.config import plugins
from pipeline.errors import BadInput
from pipeline.models.rvm_weights import core_sizes, core_weights, weights_path, weights_sha256
from pipeline.models.temporal.contract import Gate, State, TemporalModule
from pipeline.models.temporal.layers.spatial_attention import (
    CrossAttention,
    Gelu,
    Mlp,
    SelfAttention,
    check_heads,
)

INNER_EPS = 1e-6
"""Epsilon of every LayerNorm but that of the output, which has torch's default."""
RELEASED_STATE_EPS = 1e-4
"""Epsilon of the LayerNorm of the state in the released core."""
PUBLISHED_HEADS = {384: 8, 768: 12, 1024: 16}
"""Width of ViT-S, B and L -> its attention heads."""


class ReleasedCore(plugins.Settings):
    """What a file of released weights says of its core."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Digest of the file."""
    width: int = Field(ge=1)
    """D, the channels of a token."""
    layers: int = Field(ge=1)
    """Blocks of the transformer."""
    heads: int = Field(ge=1)
    """Attention heads."""
    hidden: int = Field(ge=1)
    """Hidden width of the MLP."""

    @classmethod
    def of(cls, weights: str) -> Self:
        """Reads the headers and the digest of a file, and no numbers. Raises BadInput."""
        path = weights_path(weights)
        return cls(**core_sizes(path)._asdict(), sha256=weights_sha256(path))

    @property
    def settings(self) -> dict[str, Any]:
        """The sizes as the settings of a module say them."""
        return {"layers": self.layers, "heads": self.heads, "mlp_ratio": self.hidden / self.width}


class Settings(plugins.Settings):
    """The defaults are the paper's."""

    layers: int = Field(default=4, ge=1)
    """Blocks of the transformer."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads; must divide the width. None: 8, 12 or 16 for widths of 384, 768 or 1024,
    else heads as near to 64 channels wide as can be."""
    mlp_ratio: float = Field(default=4, gt=0)
    """Hidden width of the MLP over the width."""
    weights: str | None = None
    """Path of a released .npz file of RVM, with whose core a training begins; the file says layers,
    heads and mlp_ratio. None: weights are drawn."""
    tune: bool = False
    """Train the released weights on; false: they stay as they are."""
    released: ReleasedCore | None = None
    """Digest and sizes of `weights`, filled in when a recipe is read. A run keeps them, and needs
    the file no more."""

    @model_validator(mode="before")
    @classmethod
    def _read_weights(cls, table: Any) -> Any:
        if not isinstance(table, dict) or table.get("released") is not None:
            return table
        if not isinstance(weights := table.get("weights"), str):
            return table
        released = ReleasedCore.of(weights)
        return released.settings | table | {"released": released}

    @model_validator(mode="after")
    def _sizes_are_those_of_the_weights(self) -> Self:
        if (self.weights is None) != (self.released is None):
            raise ValueError("released goes with weights")
        if self.released is None:
            if self.tune:
                raise ValueError("tune goes with weights")
            return self
        for name, wanted in self.released.settings.items():
            if getattr(self, name) != wanted:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, and {wanted:g} in {self.weights}: leave it "
                    "out"
                )
        return self


def default_heads(width: int) -> int:
    """The published choice for widths 384, 768 and 1024 (8, 12, 16); else the divisor of `width`
    that makes heads as near to 64 wide as can be, and of two such the larger."""
    divisors = (heads for heads in range(width, 0, -1) if width % heads == 0)
    return PUBLISHED_HEADS.get(width) or min(divisors, key=lambda heads: abs(width // heads - 64))


class GatedBlock(nn.Module):
    """x + CA(LN x, kv), then x + MLP(LN x), then x + MHSA(LN x)."""

    def __init__(self, width: int, heads: int, hidden: int, gelu: Gelu) -> None:
        super().__init__()
        self.ca_norm = nn.LayerNorm(width, eps=INNER_EPS)
        self.ca_attn = CrossAttention(width, heads, dropout=0)
        self.mlp_norm = nn.LayerNorm(width, eps=INNER_EPS)
        self.mlp = Mlp(width, hidden, dropout=0, gelu=gelu)
        self.sa_norm = nn.LayerNorm(width, eps=INNER_EPS)
        self.sa_attn = SelfAttention(width, heads, dropout=0)

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        return self.ca_attn.queries(self.ca_norm(x))

    def forward(
        self, x_BND: torch.Tensor, q_BND: torch.Tensor, kv_BND: torch.Tensor
    ) -> torch.Tensor:
        """`q_BND` is `queries(x_BND)`."""
        x_BND = x_BND + self.ca_attn(q_BND, kv_BND)
        x_BND = x_BND + self.mlp(self.mlp_norm(x_BND))
        return x_BND + self.sa_attn(self.sa_norm(x_BND))

    def flops(self, tokens: int) -> int:
        """Operations of one frame of N = `tokens`."""
        return self.ca_attn.flops(tokens) + self.mlp.flops(tokens) + self.sa_attn.flops(tokens)


class Transformer(nn.Module):
    """Blocks and a LayerNorm. All blocks read the same keys and values."""

    def __init__(self, width: int, layers: int, heads: int, hidden: int, gelu: Gelu) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GatedBlock(width, heads, hidden, gelu) for _ in range(layers))
        self.output_norm = nn.LayerNorm(width, eps=INNER_EPS)

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        """Queries (..., D) of the first block, for any number of frames."""
        return self._blocks()[0].queries(x)

    def forward(
        self, x_BND: torch.Tensor, q_BND: torch.Tensor, kv_BND: torch.Tensor
    ) -> torch.Tensor:
        """`q_BND` is `queries(x_BND)`."""
        first, *later_blocks = self._blocks()
        x_BND = first(x_BND, q_BND, kv_BND)
        for block in later_blocks:
            x_BND = block(x_BND, block.queries(x_BND), kv_BND)
        return self.output_norm(x_BND)

    def flops(self, tokens: int) -> int:
        """Operations of one frame of N = `tokens`."""
        return sum(block.flops(tokens) for block in self._blocks())

    def _blocks(self) -> list[GatedBlock]:
        return list(cast(Iterable[GatedBlock], self.layers))


class Temporal(TemporalModule):
    """State: one (B, N, D), before the output norm."""

    Settings = Settings

    def __init__(self, width: int, settings: Any) -> None:
        """Raises BadInput if `settings.heads` does not divide `width`, or if released weights are
        of another one."""
        super().__init__(width, settings)
        released: ReleasedCore | None = settings.released
        if released and released.width != width:
            raise BadInput(
                f"[temporal] gated_transformer: the weights {settings.weights} are for tokens of "
                f"width {released.width}, found {width}",
                "take a cache of the encoder in the same file, and leave model.width out",
            )
        heads = settings.heads or default_heads(width)
        check_heads("[temporal] gated_transformer", heads, width)
        hidden = released.hidden if released else int(width * settings.mlp_ratio)
        self.input_update, self.input_reset, self.state_update, self.state_reset = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        self.update = Gate("lets the frame in")
        self.state_layer_norm = (
            nn.LayerNorm(width, RELEASED_STATE_EPS, bias=False)
            if released
            else nn.LayerNorm(width, INNER_EPS)
        )
        gelu: Gelu = "tanh" if released else "none"
        self.transformer = Transformer(width, settings.layers, heads, hidden, gelu)
        self.output_norm = nn.Identity() if released else nn.LayerNorm(width)
        if released and not settings.tune:
            self.requires_grad_(False)

    def load_released(self) -> None:
        released: ReleasedCore | None = self.settings.released
        if released is None:
            return
        path = weights_path(self.settings.weights)
        if weights_sha256(path) != released.sha256:
            raise BadInput(
                f"weights of RVM {path} are not those that the recipe was written for: their "
                f"sha256 is {weights_sha256(path)}, wanted {released.sha256}",
                "give temporal.weights the file of that digest, or leave temporal.released out of "
                "the recipe",
            )
        self.load_state_dict(core_weights(path))

    def _run(self, x_BTND: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        batch, _, tokens, _ = x_BTND.shape
        (s_BND,) = self.initial_state(batch, tokens) if state is None else state
        x_TBND = x_BTND.transpose(0, 1)  # time first: the loop takes one frame after the other
        # What does not wait for the state is made for all frames at once.
        ahead = (
            x_TBND,
            self.transformer.queries(x_TBND),
            self.input_update(x_TBND),
            self.input_reset(x_TBND),
        )
        states = []
        for x_BND, q_BND, update_BND, reset_BND in zip(*ahead, strict=True):
            update_BND = torch.sigmoid(update_BND + self.state_update(s_BND))
            reset_BND = torch.sigmoid(reset_BND + self.state_reset(s_BND))
            h_BND = self.transformer(x_BND, q_BND, reset_BND * self.state_layer_norm(s_BND))
            s_BND = s_BND + self.update(update_BND) * (h_BND - s_BND)
            states.append(s_BND)
        return self.output_norm(torch.stack(states, dim=1)), (s_BND,)

    def state_shapes(self, tokens: int) -> tuple[tuple[int, ...], ...]:
        return ((tokens, self.width),)

    def flops(self, frames: int, tokens: int) -> int:
        return frames * (8 * tokens * self.width**2 + self.transformer.flops(tokens))
