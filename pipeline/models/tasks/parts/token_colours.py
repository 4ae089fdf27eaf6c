"""Tokens as colours: their main components as red, green and blue."""

from __future__ import annotations

import numpy as np

CLIPPED = (2, 98)
"""Percentiles between which values are spread over the colours."""


def principal_colours(patches: list[np.ndarray]) -> list[np.ndarray]:
    """Tokens of several clips, (T, P, D) each -> uint8 (T, P, 3): their first three principal
    components, the same for all.

    A component points where its largest entry is positive, so that colours do not flip from one
    page to the next.
    """
    flat = np.concatenate([part.reshape(-1, part.shape[-1]) for part in patches]).astype(np.float64)
    mean = flat.mean(0)
    _, vectors = np.linalg.eigh((flat - mean).T @ (flat - mean))
    components = vectors[:, ::-1][:, :3].T
    largest = np.take_along_axis(components, np.abs(components).argmax(1)[:, None], axis=1)
    components = components * np.sign(largest)
    low, high = np.percentile((flat - mean) @ components.T, CLIPPED, axis=0)
    return [in_bytes((part - mean) @ components.T, low, high) for part in patches]


def in_bytes(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Numbers from `low` to `high` as 0 to 255, uint8; what lies beyond is cut."""
    share = (values - low) / np.maximum(high - low, 1e-12)
    return (share.clip(0, 1) * 255).round().astype(np.uint8)
