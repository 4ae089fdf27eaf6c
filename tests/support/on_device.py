"""The device that tests marked `cuda` compare with the CPU. Loaded by conftest.py.

STILLFRAME_TEST_DEVICE names another one: with `cpu` the tests run anywhere, and compare the CPU with itself.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import TypeVar

import pytest
import torch
from torch import nn

ASKED = os.environ.get("STILLFRAME_TEST_DEVICE")
CPU = torch.device("cpu")
BOTH = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
"""For tests that hold anywhere: on the CPU always, and on the other device."""
SeenBy = TypeVar("SeenBy", bound=nn.Module)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not ASKED and not torch.cuda.is_available():
        pytest.skip("no CUDA device; STILLFRAME_TEST_DEVICE=cpu tries the test itself")


def named(name: str) -> torch.device:
    """The device that a name in `BOTH` means."""
    return CPU if name == "cpu" else torch.device(ASKED or "cuda")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Raises where a device was promised that is not there."""
    found = named("cuda")
    torch.zeros(1, device=found)
    return found


def differ(ours: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, over the largest number that is wanted. NaN counts as infinite."""
    assert ours.shape == wanted.shape, (ours.shape, wanted.shape)
    if not wanted.numel():
        return 0.0
    ours, wanted = (part.detach().cpu().double() for part in (ours, wanted))
    largest = float(wanted.abs().max())
    found = float((ours - wanted).abs().max()) / (largest or 1.0)
    return found if found == found else float("inf")


def on(device: torch.device, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def copied(module: SeenBy, device: torch.device) -> SeenBy:
    """The same weights elsewhere."""
    return copy.deepcopy(module).to(device)
