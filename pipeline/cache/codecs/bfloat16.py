"""Tokens as bfloat16: two bytes a value with float32's range and 8 significant bits; for values
that float16 cannot hold.

Numpy has no such type, so the array holds the bits as uint16; 0xFFFF, with which stores fill what
was never written, is NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline.cache.codecs._rounding import half_step, refuse_beyond
from pipeline.cache.codecs.contract import CodecPlugin
from pipeline.config import plugins
from pipeline.device import downloaded

LARGEST = torch.finfo(torch.bfloat16).max
LIMIT = LARGEST + 2.0**119
"""The smallest magnitude that rounds to infinity."""


class Codec(CodecPlugin):
    """No settings: a value is rounded to the nearest bfloat16, ties to even."""

    class Settings(plugins.Settings):
        """Empty."""

    def layout(self, width: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        return {"": ((width,), np.dtype(np.uint16))}

    def encode(self, tokens_FND: torch.Tensor) -> dict[str, np.ndarray]:
        refuse_beyond("bfloat16", tokens_FND, LIMIT, ends_at=LARGEST)
        return {"": downloaded(tokens_FND.detach().to(torch.bfloat16).view(torch.uint16))}

    def decode(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        return arrays[""].view(torch.bfloat16).float()

    def max_error(self, tokens_FND: torch.Tensor) -> torch.Tensor:
        """Half the spacing of bfloat16 around each value: 2^(e-8) in the binade [2^e, 2^(e+1)),
        2^-134 among the subnormals."""
        return half_step(tokens_FND.detach(), digits=8, least=-126)
