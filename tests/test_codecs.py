"""Laws of every codec on disk, and what is particular to each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline import plugins
from pipeline.errors import StillframeError

CODECS = plugins.names("codec")
EXTREME = 60000.0


def codec(name: str) -> Any:
    return plugins.load("codec", name)(plugins.settings("codec", name, {}, name))


def decode(made: Any, arrays: dict[str, np.ndarray]) -> torch.Tensor:
    tokens: torch.Tensor = made.decode({key: torch.from_numpy(array) for key, array in arrays.items()})
    return tokens


@st.composite
def token_arrays(draw: st.DrawFn) -> torch.Tensor:
    """(F, N, D): gaussians of any scale and offset, constants, and extremes thrown in."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 5), st.sampled_from([2, 8, 64])))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.0, 1e-8, 1e-5, 1e-3, 1.0, 30.0, 1e4]))
    offset = draw(st.floats(-2e4, 2e4, width=32))
    tokens = (torch.randn(shape, generator=generator) * scale + offset).clamp(-EXTREME, EXTREME)
    for value in draw(st.lists(st.floats(-EXTREME, EXTREME, width=32), max_size=3)):
        tokens.view(-1)[draw(st.integers(0, tokens.numel() - 1))] = value
    return tokens


@pytest.mark.parametrize("name", CODECS)
@hypothesis_settings(deadline=None, max_examples=60, derandomize=True)
@given(tokens_FND=token_arrays())
def test_round_trip_stays_within_max_error(name: str, tokens_FND: torch.Tensor) -> None:
    made = codec(name)
    bound = made.max_error(tokens_FND).double()
    decoded = decode(made, made.encode(tokens_FND))
    assert decoded.shape == tokens_FND.shape and decoded.is_floating_point()
    assert bound.shape == tokens_FND.shape and bound.isfinite().all()
    error = (decoded.double() - tokens_FND.double()).abs()
    assert (error <= bound).all(), f"error exceeds its bound by {(error - bound).max()}"


@pytest.mark.parametrize("name", CODECS)
def test_bytes_are_as_declared_and_repeat(name: str) -> None:
    made = codec(name)
    tokens_FND = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))
    arrays = made.encode(tokens_FND)
    layout = made.layout(64)
    assert arrays.keys() == layout.keys()
    for key, (shape, dtype) in layout.items():
        assert arrays[key].shape == (3, 5, *shape) and arrays[key].dtype == dtype
    assert sum(array.nbytes for array in arrays.values()) == 15 * made.bytes_per_token(64)

    again = made.encode(tokens_FND.clone())
    # A view into a wider tensor, and the same frames in another batch, are the same input.
    wider = made.encode(torch.cat([torch.full((3, 1, 64), 7.0), tokens_FND], dim=1)[:, 1:])
    single = made.encode(tokens_FND[1:2])
    for key, array in arrays.items():
        assert array.tobytes() == again[key].tobytes() == wider[key].tobytes()
        assert array[1:2].tobytes() == single[key].tobytes()


@pytest.mark.parametrize("name", CODECS)
def test_decode_takes_any_leading_axes(name: str) -> None:
    made = codec(name)
    arrays = made.encode(torch.randn(6, 5, 16, generator=torch.Generator().manual_seed(0)))
    flat = decode(made, arrays)
    windows = decode(made, {key: array.reshape(2, 3, *array.shape[1:]) for key, array in arrays.items()})
    assert torch.equal(windows, flat.view(2, 3, 5, 16))


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_a_number_is_refused(name: str, bad: float) -> None:
    tokens_FND = torch.zeros(2, 3, 8)
    tokens_FND[1, 2, 7] = bad
    with pytest.raises(StillframeError, match=name):
        codec(name).encode(tokens_FND)


def test_float16_rounds_to_nearest_with_an_attained_bound() -> None:
    """Between any two neighbours of the format the worst value is the midpoint, and there error and bound are one."""
    made = codec("float16")
    grid = torch.arange(0x7C00, dtype=torch.int16).view(torch.float16).double()  # every finite value >= 0
    middle = ((grid[1:] + grid[:-1]) / 2).float().view(1, 1, -1)
    for tokens in (middle, -middle):
        error = (decode(made, made.encode(tokens)) - tokens).abs()
        assert torch.equal(error, made.max_error(tokens))
    exact = grid.float().view(1, 1, -1)
    assert torch.equal(decode(made, made.encode(exact)), exact)


def test_float16_names_the_largest_value_and_a_way_out() -> None:
    made = codec("float16")
    held = torch.tensor([[[65519.0, -65519.0]]])
    assert decode(made, made.encode(held)).tolist() == [[[65504.0, -65504.0]]]
    with pytest.raises(StillframeError, match=r"largest value is -70000, the format ends at 65504") as caught:
        made.encode(torch.tensor([[[1.0, 65000.0, -70000.0]]]))
    assert "precision" in caught.value.hint
    with pytest.raises(StillframeError, match="largest value is 65520"):
        made.encode(torch.tensor([[[65520.0]]]))
    with pytest.raises(StillframeError, match="largest value is NaN"):
        made.encode(torch.tensor([[[float("nan"), 1e9]]]))


def test_float16_takes_what_encoders_give() -> None:
    made = codec("float16")
    assert made.bytes_per_token(384) == 768
    assert made.encode(torch.zeros(4, 0, 8))[""].shape == (4, 0, 8)  # an encoder without special tokens
    tokens = torch.linspace(-3, 3, 16).view(1, 2, 8)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        given_tokens = tokens.to(dtype)
        assert torch.equal(decode(made, made.encode(given_tokens)), given_tokens.half().float())
    with torch.inference_mode():
        inference = tokens * 2
    assert torch.equal(decode(made, made.encode(inference)), (tokens * 2).half().float())
