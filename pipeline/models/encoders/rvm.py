"""The image encoder of RVM, recurrent video masked autoencoders, from a released .npz file: a ViT
that sees one frame at a time.

Nothing is unpickled, and every size is taken from the shapes of the arrays. Pixels are scaled to 0
to 1 and not normalised further; patches, and not CLS, are told their position by sines and cosines
of their number in a grid of 16 x 16. For another grid the table is resized as the release resizes
it, with an antialiased bicubic kernel. Every recorded block output passes through the model's final
norm. Blocks above the last recorded layer are dropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models.encoders.contract import EncoderPlugin, EncoderSettings, grid_of_patches
from pipeline.models.rvm_weights import (
    Sizes,
    encoder_sizes,
    encoder_weights,
    weights_path,
    weights_sha256,
)
from pipeline.models.temporal.layers.spatial_attention import SpatialBlock
from pipeline.records import Tokens, TokenShape

GRID = 16
"""Side of the grid that the position table is made for: 256 px."""
EPS = 1e-6
"""Epsilon of every LayerNorm."""


class Encoder(EncoderPlugin):
    """The encoder in evaluation mode on one device. Special token: CLS of the last recorded
    layer."""

    class Settings(EncoderSettings):
        """These settings say which file is read; the model was trained at 256 px."""

        weights: str
        """Path of a released .npz file."""
        precision: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
        """Number format in which the encoder computes. "auto" becomes "bfloat16" where the device
        that encodes multiplies it in hardware, and else "float32"; the cache says which."""

    @classmethod
    def shape(cls, settings: Any, size_px: int) -> TokenShape:
        return _shape(*encoder_sizes(weights_path(settings.weights)), settings.layers, size_px)

    @classmethod
    def flops(cls, settings: Any, size_px: int) -> int:
        sizes, patch_px = encoder_sizes(weights_path(settings.weights))
        shape = _shape(sizes, patch_px, settings.layers, size_px)
        with torch.device("meta"):
            return _VisionTransformer(sizes, patch_px, shape).flops()

    def __init__(self, settings: Any, size_px: int, device: torch.device) -> None:
        path = weights_path(settings.weights)
        sizes, patch_px = encoder_sizes(path)
        self._shape = _shape(sizes, patch_px, settings.layers, size_px)
        self._dtype = getattr(torch, settings.precision)
        with torch.device("meta"):
            tower = _VisionTransformer(sizes, patch_px, self._shape)
        tower.load_state_dict(encoder_weights(path, tower.state_dict().keys()), assign=True)
        self._tower = tower.eval().requires_grad_(False).to(device, self._dtype)
        self._positions_PD = _positions(self._shape.grid_hw[0], sizes.width).to(device, self._dtype)
        self.identity = {
            "rvm": 1,
            "weights": weights_sha256(path),
            "precision": settings.precision,
        }

    @torch.inference_mode()
    def __call__(self, pixels_NCHW: torch.Tensor) -> Tokens:
        """Tokens are in the chosen precision."""
        x_NCHW = (pixels_NCHW.float() / 255).to(self._dtype)
        normed = self._tower(x_NCHW, self._positions_PD)
        patches = {layer: tokens_NND[:, 1:] for layer, tokens_NND in normed.items()}
        return Tokens(normed[self._shape.layers[-1]][:, :1], patches)


class _VisionTransformer(nn.Module):
    """Patch embedding, the blocks up to the last recorded layer, and the final norm."""

    def __init__(self, sizes: Sizes, patch_px: int, shape: TokenShape) -> None:
        super().__init__()
        self.shape = shape
        self.patch_embedding = nn.Conv2d(3, sizes.width, patch_px, patch_px)
        self.cls_token = nn.Parameter(torch.empty(sizes.width))
        self.blocks = nn.ModuleList(
            SpatialBlock(sizes.width, sizes.heads, sizes.hidden, eps=EPS, gelu="tanh")
            for _ in range(shape.layers[-1] + 1)
        )
        self.norm = nn.LayerNorm(sizes.width, eps=EPS)

    def forward(self, x_NCHW: torch.Tensor, positions_PD: torch.Tensor) -> dict[int, torch.Tensor]:
        """Pixels from 0 to 1 -> the normed tokens (N, 1 + P, D) of every recorded layer."""
        patches_NPD = self.patch_embedding(x_NCHW).flatten(2).transpose(1, 2) + positions_PD
        x_NND = torch.cat([self.cls_token.expand(len(x_NCHW), 1, -1), patches_NPD], dim=1)
        normed = {}
        for layer, block in enumerate(self.blocks):
            x_NND = block(x_NND)
            if layer in self.shape.layers:
                normed[layer] = self.norm(x_NND)
        return normed

    def flops(self) -> int:
        """Operations for one frame."""
        patches = self.shape.patch_tokens
        blocks = cast(Iterable[SpatialBlock], self.blocks)
        embedding = 2 * patches * self.patch_embedding.weight.numel()
        return embedding + sum(block.flops(1 + patches) for block in blocks)


def _shape(sizes: Sizes, patch_px: int, layers: tuple[int, ...], size_px: int) -> TokenShape:
    grid_hw = grid_of_patches(layers, sizes.layers, patch_px, size_px)
    return TokenShape(sizes.width, grid_hw, 1, tuple(layers))


def _positions(side: int, width: int) -> torch.Tensor:
    """(side^2, width): what is added to the patches of a square grid, row by row. Channels 2i and
    2i + 1 are sine and cosine of the patch's number, counted through all rows, at the i-th
    frequency."""
    channels = torch.arange(width, dtype=torch.float64)
    frequency = 10_000 ** (-2 * (channels // 2) / width)
    angles_PD = torch.arange(GRID**2, dtype=torch.float64)[:, None] * frequency
    table_PD = torch.where(channels % 2 == 0, angles_PD.sin(), angles_PD.cos())
    if side == GRID:
        return table_PD
    grid_1DHW = table_PD.T.reshape(1, width, GRID, GRID)
    # Antialiased, the kernel is that of the release for larger grids, too: Keys' with a = -0.5.
    resized_1DHW = F.interpolate(
        grid_1DHW, (side, side), mode="bicubic", align_corners=False, antialias=True
    )
    return resized_1DHW[0].flatten(1).T
