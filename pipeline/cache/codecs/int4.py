"""Tokens as 4-bit integers after a random rotation, two to a byte, a bfloat16 scale for every 64:
27 % of float16.

A few channels of image models are tens of times larger than the rest and would set the scale for
all. So the channels are cut into blocks of 64 (of a width that 64 does not divide: of the largest
power of two that does), signs are flipped at random, always in the same way, and each block goes
through a Walsh-Hadamard transform, which spreads an outlier over its block. Each block has its own
scale, so an outlier costs its own block alone. The transform is sums and differences in a fixed
order: the bytes depend neither on the batch nor on the device.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from pipeline.cache.codecs._rounding import TINY, refuse_beyond
from pipeline.cache.codecs.contract import CodecPlugin
from pipeline.config import plugins
from pipeline.device import downloaded
from pipeline.errors import BadInput

BLOCK = 64
LEVELS = 7
LIMIT = 2.0**124
"""A block of values up to here rotates without overflow."""
SIGN_SEED = 0x5EED


class Codec(CodecPlugin):
    """No settings. Widths must be even."""

    class Settings(plugins.Settings):
        """Empty."""

    def layout(self, width: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        block = _block(width)
        return {
            "": ((width // 2,), np.dtype(np.uint8)),
            "scale": ((width // block,), np.dtype(np.uint16)),
        }

    def encode(self, tokens_FND: torch.Tensor) -> dict[str, np.ndarray]:
        """Byte j of a block holds its value j in the low four bits and value j + block / 2 in the
        high four, both plus 8."""
        refuse_beyond("int4", tokens_FND, LIMIT, ends_at=LIMIT)
        rotated_CFNG, scale_FNG = _rotated(tokens_FND)
        levels_CFNG = (rotated_CFNG / scale_FNG.float()).round_().clamp_(-LEVELS, LEVELS)
        low, high = levels_CFNG.add_(8).to(torch.uint8).chunk(2)
        packed = (low | high << 4).movedim(0, -1).flatten(-2)
        return {"": downloaded(packed), "scale": downloaded(scale_FNG.view(torch.uint16))}

    def decode(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        scale_G = arrays["scale"].view(torch.bfloat16).float()
        packed = arrays[""].unflatten(-1, (scale_G.shape[-1], -1))
        levels_GC = torch.cat([packed & 15, packed >> 4], dim=-1).float() - 8
        block = levels_GC.shape[-1]
        restored = levels_GC @ _hadamard(block, scale_G.device) * scale_G.unsqueeze(-1)
        tokens = restored.flatten(-2)
        return tokens * _signs(tokens.shape[-1], tokens.device)

    def max_error(self, tokens_FND: torch.Tensor) -> torch.Tensor:
        """Half a scale in each of a block's rotated values, all of which may add up in one; 1 %
        more for rounding."""
        rotated_CFNG, scale_FNG = _rotated(tokens_FND)
        block = len(rotated_CFNG)
        bound_FNG = scale_FNG.float() * (0.505 * block)
        return bound_FNG.repeat_interleave(block, dim=-1)

    def noise(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        """The mean square of the rounding in each token, as it is expected: a twelfth of the square
        of a step for each of a block's rotated values, all of which add up in one."""
        step_G = arrays["scale"].view(torch.bfloat16).float()
        block = 2 * arrays[""].shape[-1] // step_G.shape[-1]
        return step_G.square().mean(-1) * (block / 12)


def _block(width: int) -> int:
    """The largest power of two, up to 64, that divides `width`."""
    block = min(BLOCK, width & -width)
    if block < 2:
        raise BadInput(
            f"codec 'int4' packs two values into a byte and wants an even width, found {width}",
            "use 'int8'",
        )
    return block


def _rotated(tokens_FND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """H (signs * x) / block of every block, (C, F, N, G) with the C channels of a block, and the
    bfloat16 scale of each block.

    The channels come first, so that every sum runs over long rows.
    """
    width = tokens_FND.shape[-1]
    block = _block(width)
    signs = _signs(width, tokens_FND.device) / block
    x_CFNG = (
        (tokens_FND.detach().float() * signs).unflatten(-1, (-1, block)).movedim(-1, 0).contiguous()
    )
    half = 1
    while half < block:
        a, b = x_CFNG.unflatten(0, (-1, 2, half)).unbind(1)
        x_CFNG = torch.stack([a + b, a - b], dim=1).flatten(0, 2)
        half *= 2
    return x_CFNG, (x_CFNG.abs().amax(0) / LEVELS).clamp_(min=TINY).to(torch.bfloat16)


@lru_cache
def _signs(width: int, device: torch.device) -> torch.Tensor:
    """(D,) of +1 and -1, the same everywhere and for ever: bits of a multiplicative hash, no
    library's generator."""
    bits = [
        (channel * 0x9E3779B97F4A7C15 ^ SIGN_SEED) * 0xBF58476D1CE4E5B9 >> 43 & 1
        for channel in range(width)
    ]
    return torch.tensor([1.0 - 2.0 * bit for bit in bits], device=device)


@lru_cache
def _hadamard(block: int, device: torch.device) -> torch.Tensor:
    """(block, block) of +1 and -1: entry (i, j) is the parity of i & j. It is its own inverse times
    `block`."""
    return torch.tensor(
        [[1.0 - 2.0 * ((i & j).bit_count() & 1) for j in range(block)] for i in range(block)],
        device=device,
    )
