"""MMix: in every layer attention within the frame, then a residual Mamba over time (arXiv
2605.19137; names as published)."""

from __future__ import annotations

from typing import Any

from pipeline.models.temporal.layers.stacks import MambaMixSettings, MambaStack, spatial_blocks


class Settings(MambaMixSettings):
    """The defaults are the paper's."""


class Temporal(MambaStack):
    """Per layer z = spatial block of x, x <- z + Dropout(Mamba(LN z))."""

    Settings = Settings

    def __init__(self, width: int, settings: Any) -> None:
        """Raises BadInput if `settings.heads` does not divide `width`."""
        super().__init__(width, settings, spatial_blocks("[temporal] mamba_mix", width, settings))
