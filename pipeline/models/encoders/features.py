"""Features made elsewhere, imported as they are: there is no model that could encode a frame.

What a run over such a cache asks of videos, as a stream does, is refused in one line.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field

from pipeline.errors import BadInput
from pipeline.models.encoders.contract import EncoderPlugin, EncoderSettings
from pipeline.records import Tokens, TokenShape


class Encoder(EncoderPlugin):
    """Says how many features a frame has, and which files they are from."""

    class Settings(EncoderSettings):
        """`stillframe import-features` writes these settings: they describe its files."""

        width: int = Field(ge=1)
        """D, the numbers of a feature."""
        grid: tuple[int, int] = Field(default=(1, 1))
        """Rows and columns of the features of a frame; one where a frame is one vector."""
        sha256: str = Field(min_length=64, max_length=64)
        """Over the files of all videos, and how they are read."""

    @classmethod
    def shape(cls, settings: Any, size_px: int) -> TokenShape:
        return TokenShape(settings.width, settings.grid, 0, settings.layers)

    @classmethod
    def flops(cls, settings: Any, size_px: int) -> int:
        return 0

    @classmethod
    def identity_of(cls, settings: Any) -> dict[str, Any]:
        """The identity of features: that of their files."""
        return {"features": 1, **settings.model_dump(mode="json", exclude={"layers"})}

    def __init__(self, settings: Any, size_px: int, device: torch.device) -> None:
        """Raises BadInput."""
        raise BadInput(
            "these tokens are imported features: there is no model that could encode a frame",
            "what is missing comes from the same files, by: stillframe import-features",
        )

    def __call__(self, pixels_NCHW: torch.Tensor) -> Tokens:
        raise AssertionError("an encoder that cannot be made")
