"""Where tensors live unless somebody says otherwise."""

from __future__ import annotations

import torch


def chosen(device: torch.device | None) -> torch.device:
    """`device`, or else CUDA where there is one, or else the CPU."""
    return device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
