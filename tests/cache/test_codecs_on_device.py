"""Every codec on another device: what it stores and what it gives back are those of the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.on_device import CPU, differ

from pipeline.cache.codecs._laws import ReadyCodecs, decoded_tokens
from pipeline.cache.codecs.contract import FittedCodec
from pipeline.config import plugins
from pipeline.errors import StillframeError

pytestmark = pytest.mark.cuda
NAMES = plugins.names("codec")
WIDTH = 64


def tokens_of_every_scale() -> torch.Tensor:
    """(F, N, D) from 1e-6 to 1e3, with a channel that is larger than the rest."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(-6, 3, 24)[:, None, None]
    tokens_FND = scales * torch.randn(24, 5, WIDTH, generator=generator)
    tokens_FND[..., 7] *= 20
    return tokens_FND


@pytest.mark.parametrize("name", NAMES)
def test_stored_bytes_are_those_of_the_cpu(name, device, record_property):
    codec, tokens_FND = (
        ReadyCodecs(plugins.load("codec", name), name).make(WIDTH),
        (tokens_of_every_scale()),
    )
    ours, wanted = codec.encode(tokens_FND.to(device)), codec.encode(tokens_FND)
    assert ours.keys() == wanted.keys()
    if isinstance(codec, FittedCodec):  # sums over the width, each device in its own order
        bound = codec.max_error(tokens_FND)
        error = (decoded_tokens(codec, ours) - decoded_tokens(codec, wanted)).abs()
        record_property("difference", float((error / bound).max()))
        assert (error <= bound).all()
        return
    for key, array in wanted.items():
        assert ours[key].dtype == array.dtype
        np.testing.assert_array_equal(ours[key], array)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_decoded_there_is_what_is_decoded_here(name, device, record_property):
    codec = ReadyCodecs(plugins.load("codec", name), name).make(WIDTH)
    arrays = codec.encode(tokens_of_every_scale())
    ours, wanted = (
        codec.decode({key: torch.from_numpy(array).to(at) for key, array in arrays.items()})
        for at in (device, CPU)
    )
    assert ours.device.type == device.type and ours.dtype == wanted.dtype
    largest = max(
        differ(one, other) for one, other in zip(ours.unbind(), wanted.unbind(), strict=True)
    )
    record_property("difference", largest)
    assert largest <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_held_is_refused_there_too(name, device):
    codec = ReadyCodecs(plugins.load("codec", name), name).make(WIDTH)
    for bad in (float("nan"), float("inf")):
        tokens_FND = torch.zeros(2, 3, WIDTH, device=device)
        tokens_FND[1, 2, 5] = bad
        with pytest.raises(StillframeError, match=f"codec '{name}'"):
            codec.encode(tokens_FND)
