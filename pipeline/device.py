"""Where tensors live unless somebody says otherwise, and how many cores there are to compute on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def chosen(device: torch.device | None) -> torch.device:
    """`device`, or else CUDA where there is one, or else the CPU."""
    import torch

    return device or torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_of_worker(name: str | None, index: int) -> torch.device:
    """The device called `name`; where it is None, that of worker `index`: workers share what CUDA
    devices there are."""
    import torch

    if name is None and torch.cuda.is_available():
        return torch.device("cuda", index % torch.cuda.device_count())
    return chosen(None if name is None else torch.device(name))
