"""Where tensors live unless somebody says otherwise."""

from __future__ import annotations

import torch


def chosen(device: torch.device | None) -> torch.device:
    """`device`, or else CUDA where there is one, or else the CPU."""
    return device or torch.device("cuda" if torch.cuda.is_available() else "cpu")


def numbered(name: str | None, index: int) -> torch.device:
    """The device called `name`; where it is None, that of worker `index`: workers share what CUDA devices there are."""
    if name is None and torch.cuda.is_available():
        return torch.device("cuda", index % torch.cuda.device_count())
    return chosen(None if name is None else torch.device(name))
