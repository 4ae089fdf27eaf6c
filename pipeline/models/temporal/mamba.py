"""M: a residual Mamba over time in every layer, each token position on its own (arXiv 2605.19137;
names as published).

Tokens do not see each other: whatever mixes positions must be done by the encoder or the readout.
"""

from __future__ import annotations

from pipeline.models.temporal.layers.stacks import MambaSettings, MambaStack


class Settings(MambaSettings):
    """The defaults are the paper's."""


class Temporal(MambaStack):
    """Per layer x <- x + Dropout(Mamba(LN x))."""

    Settings = Settings
