"""Tokens as 8-bit integers under one float32 scale per token, which brings its largest magnitude to
127: half of float16."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline.cache.codecs._rounding import from_int8, int8_error, refuse_beyond, to_int8
from pipeline.cache.codecs.contract import CodecPlugin
from pipeline.config import plugins
from pipeline.device import downloaded

LARGEST = torch.finfo(torch.float32).max


class Codec(CodecPlugin):
    """No settings. The scale is float32, so that every finite token can be held; it is 1 % of a
    token of width 384."""

    class Settings(plugins.Settings):
        """Empty."""

    def layout(self, width: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        return {"": ((width,), np.dtype(np.int8)), "scale": ((), np.dtype(np.float32))}

    def encode(self, tokens_FND: torch.Tensor) -> dict[str, np.ndarray]:
        refuse_beyond("int8", tokens_FND, float("inf"), ends_at=LARGEST)
        levels, scale = to_int8(tokens_FND.detach().float())
        return {"": downloaded(levels), "scale": downloaded(scale)}

    def decode(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        return from_int8(arrays[""], arrays["scale"])

    def max_error(self, tokens_FND: torch.Tensor) -> torch.Tensor:
        """Half a scale: 1/254 of the token's largest magnitude."""
        return int8_error(tokens_FND.detach())
