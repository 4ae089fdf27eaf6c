"""Tokens as IEEE half precision: two bytes a value, and an error of at most half a unit in the last place."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline import plugins
from pipeline.codecs import CodecPlugin
from pipeline.errors import StillframeError

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
        _refuse_unholdable(tokens_FND)
        # Rounding comes before the transfer, so that half the bytes leave the device.
        return {"": tokens_FND.detach().to(torch.float16).contiguous().cpu().numpy()}

    def decode(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        return arrays[""].float()

    def max_error(self, tokens_FND: torch.Tensor) -> torch.Tensor:
        """Half the spacing of float16 around each value: 2^(e-11) in the binade [2^e, 2^(e+1)), 2^-25 among the subnormals."""
        _, exponent = torch.frexp(tokens_FND.detach().float())  # frexp's mantissa lies in [0.5, 1)
        return torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent.sub(1).clamp(min=-14) - 11)


def _refuse_unholdable(tokens_FND: torch.Tensor) -> None:
    """Raises for NaN, infinity and what float16 would turn into infinity. One pass and no copy: the extremes tell all."""
    if not tokens_FND.numel():
        return
    low, high = (value.item() for value in torch.aminmax(tokens_FND.detach()))
    if low > -LIMIT and high < LIMIT:  # false for NaN, which aminmax passes on
        return
    largest = high if high > -low else low
    found = "NaN" if low != low else f"{largest:g}"
    others = ", ".join(f"'{name}'" for name in plugins.names("codec") if name != "float16")
    raise StillframeError(
        f"codec 'float16' cannot hold these tokens: the largest value is {found}, the format ends at 65504",
        "set the encoder's precision to 'bfloat16' or 'float32' if it computes in float16"
        + (f"; for values that are truly this large there are the codecs {others}" if others else ""),
    )
