"""What one setting costs beside its score: trained parameters, operations, streaming latency and state."""

from __future__ import annotations

from pipeline.plugins import Settings


class Cost(Settings):
    """Of the trained part of the model: mixer, temporal module, readouts."""

    parameters: int
    """Trained."""
    flops: float
    """Of the forward pass over one window."""
    latency_ms: float
    """Median time of one streaming step, B = 1, after the encoder."""
    state_bytes: int
    """Of one stream."""
