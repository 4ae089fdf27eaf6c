"""Bytes: the peak of a call, and what is alive."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Most memory that `call` holds beyond what is held before it, its result included.

    CUDA: bytes of tensors. CPU: resident memory of the process, which also sees what the allocator
    holds on to; Linux with glibc only, None elsewhere.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not serve this call unseen
        CLEAR.write_text("5")  # VmHWM, the highest VmRSS so far, starts anew
    except (AttributeError, OSError):
        return None
    before = _status_bytes("VmRSS")
    call()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(key: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024  # what the kernel calls kB


def live_bytes(device: torch.device) -> int:
    """Memory of all live tensors. CPU: those that Python can reach, shared memory counted once."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    # By type, not isinstance: asking some objects for their class runs code of theirs.
    storages = [
        part.untyped_storage()
        for part in gc.get_objects()
        if type(part) in (torch.Tensor, torch.nn.Parameter)
    ]
    bytes_at: dict[int, int] = {}
    for storage in storages:
        with suppress(
            RuntimeError
        ):  # a tensor that stands for one in a compiler, or one on its way out, has no memory
            bytes_at[storage.data_ptr()] = storage.nbytes()
    return sum(bytes_at.values())
