"""Tokens as IEEE half precision: two bytes a value, and an error of at most half a unit in the last
place."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline.cache.codecs._rounding import half_step, refuse_beyond
from pipeline.cache.codecs.contract import CodecPlugin
from pipeline.config import plugins
from pipeline.device import downloaded

LIMIT = 65520.0
"""The smallest magnitude that rounds to infinity."""


class Codec(CodecPlugin):
    """No settings: a value is rounded to the nearest float16, ties to even."""

    class Settings(plugins.Settings):
        """Empty."""

    def layout(self, width: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        return {"": ((width,), np.dtype(np.float16))}

    def encode(self, tokens_FND: torch.Tensor) -> dict[str, np.ndarray]:
        """Tokens that already are float16 in host memory are handed over, not copied."""
        refuse_beyond("float16", tokens_FND, LIMIT, ends_at=65504)
        # Rounding comes before the transfer, so that half the bytes leave the device.
        return {"": downloaded(tokens_FND.detach().to(torch.float16))}

    def decode(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        return arrays[""].float()

    def max_error(self, tokens_FND: torch.Tensor) -> torch.Tensor:
        """Half the spacing of float16 around each value: 2^(e-11) in the binade [2^e, 2^(e+1)),
        2^-25 among the subnormals."""
        return half_step(tokens_FND.detach(), digits=11, least=-14)
