"""Shared by codecs: refusing what a format cannot hold, rounding tokens to integers under one scale
each, and how far rounding goes."""

from __future__ import annotations

import torch

from pipeline.config import plugins
from pipeline.errors import StillframeError

TINY = 2.0**-126
"""Smallest scale: a token of zeros has one, too, and no scale is below float32's normal range."""
LEVELS = 127


def refuse_beyond(name: str, tokens_FND: torch.Tensor, limit: float, ends_at: float) -> None:
    """Raises for NaN, infinity and magnitudes from `limit` on. One pass and no copy: the extremes
    tell all."""
    if not tokens_FND.numel():
        return
    low, high = (value.item() for value in torch.aminmax(tokens_FND.detach()))
    if low > -limit and high < limit:  # false for NaN, which aminmax passes on
        return
    largest = high if high > -low else low
    largest_text = "NaN" if low != low else f"{largest:g}"
    alternatives = ", ".join(f"'{codec}'" for codec in plugins.names("codec") if codec != name)
    raise StillframeError(
        f"codec '{name}' cannot hold these tokens: the largest value is "
        f"{largest_text}, the format ends at {ends_at:g}",
        "set the encoder's precision to 'bfloat16' or 'float32' if it computes in float16"
        + (
            f"; for values that are truly this large there are the codecs {alternatives}"
            if alternatives
            else ""
        ),
    )


def half_step(values: torch.Tensor, digits: int, least: int) -> torch.Tensor:
    """float32: half the spacing, around each value, of a binary format that holds so many
    significant digits, and fewer of values below 2^`least`: 2^(e - digits) in the binade
    [2^e, 2^(e+1))."""
    _, exponent = torch.frexp(values.float())  # frexp's mantissa lies in [0.5, 1)
    ones = torch.ones_like(exponent, dtype=torch.float32)
    return torch.ldexp(ones, exponent.sub(1).clamp(min=least) - digits)


def to_int8(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 (..., D) -> int8 (..., D) and the float32 scale (...) that brings each row's largest
    magnitude to 127."""
    scale = (values.abs().amax(-1) / LEVELS).clamp_(min=TINY)
    return (values / scale.unsqueeze(-1)).round_().clamp_(-LEVELS, LEVELS).to(torch.int8), scale


def from_int8(levels: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """int8 (..., D) and scales (...) -> float32 (..., D), undoing `to_int8`."""
    return levels.float() * scale.unsqueeze(-1)


def int8_error(values: torch.Tensor) -> torch.Tensor:
    """Bound on |from_int8(to_int8(x)) - x|: half a scale, and the roundings of dividing by it and
    multiplying again."""
    _, scale = to_int8(values.float())
    return (0.5 * scale).unsqueeze(-1) + values.abs().float() * 2.0**-21
