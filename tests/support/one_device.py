"""Tensors that lie elsewhere without a GPU: on torch's `meta` device, which has shapes and no numbers. What makes a tensor
on the CPU in the middle of its work, and mixes it with those, would stop on CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.models.step_memory import MASKED, _all_chosen

META = torch.device("meta")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
"""What goes between devices on purpose."""

ASKED = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
"""What tells a number: the second where no gradient is wanted."""


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of two devices, numbers of no dimension apart: CUDA takes those of the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in ASKED and args[0].device == META:
            return True  # what a model asks of its numbers is whether they are finite
        if func in MASKED and args[0].device == META:
            args = (args[0], _all_chosen(args[1]), *args[2:])
        found = {
            part.device
            for part in tree_leaves((args, kwargs or {}))
            if isinstance(part, torch.Tensor) and part.ndim
        }
        assert len(found) <= 1 or func in COPIES, f"{func} of tensors on {found}"
        return func(*args, **(kwargs or {}))


class _Autocast(torch.autocast):
    """There is none for `meta`: whoever turns it off there gets that of the CPU."""

    def __init__(self, device_type: str, *rest: Any, **more: Any) -> None:
        super().__init__("cpu" if device_type == "meta" else device_type, *rest, **more)


@contextmanager
def elsewhere() -> Iterator[None]:
    """Within it, tensors on `meta` stay apart from those on the CPU."""
    with pytest.MonkeyPatch.context() as patch, OneDevice():
        patch.setattr(torch, "autocast", _Autocast)
        yield
