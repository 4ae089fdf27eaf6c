"""Arrays on their way to a device and back: what is sent is what arrives, however much is under way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.device import Uploads, downloaded


@pytest.mark.cuda
def test_what_is_under_way_is_not_overwritten(device):
    """Neither by its sender, who fills the array anew, nor by what is sent or fetched after it."""
    uploads, array = Uploads(device), np.empty(1 << 22, np.uint8)
    busy = torch.ones(2048, 2048, device=device)
    sums = []
    for number in range(64):
        if device.type == "cpu":
            array = np.empty_like(array)
        array[:] = number
        sent = uploads.start(array)
        for _ in range(4):  # the computing stream lags behind the one that copies
            busy = (busy @ busy).clamp(0, 1)
        sums.append(sent.on_device().sum(dtype=torch.int64))
    fetched = [downloaded(torch.full((1 << 20,), number, device=device)) for number in range(64)]
    assert [int(total) for total in sums] == [number << 22 for number in range(64)]
    assert all((numbers == number).all() for number, numbers in enumerate(fetched))


def test_on_the_cpu_nothing_is_copied():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    sent = Uploads(torch.device("cpu")).start(array).on_device()
    assert np.shares_memory(array, sent.numpy()) and np.shares_memory(array, downloaded(sent))
    turned = downloaded(sent.T)
    assert turned.flags.c_contiguous and (turned == array.T).all()
