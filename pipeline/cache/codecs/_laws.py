"""The laws of codecs: see `contract`, and docs/extending.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import torch

from pipeline.cache.codecs.contract import CodecPlugin, FittedCodec
from pipeline.config.laws import BrokenLaw, Laws, NotChecked, demand
from pipeline.config.plugins import validate
from pipeline.errors import BadInput, StillframeError

EXTREME = 60000.0
"""Largest magnitude of a token."""
WIDTHS = (2, 8, 64)
SCALES = (0.0, 1e-8, 1e-5, 1e-3, 1.0, 30.0, 1e4)
OFFSETS = (0.0, 2e4, -7.3)
NOISE_WIDTH = 128


class ReadyCodecs:
    """Makes one codec, ready for tokens of a width: one that learns has seen gaussians with a mean
    and an outlier channel."""

    def __init__(
        self, plugin: type[CodecPlugin], name: str, settings: Mapping[str, Any] | None = None
    ) -> None:
        self.plugin, self.name, self.settings = plugin, name, dict(settings or {})

    def bare(self) -> CodecPlugin:
        """The codec as it is made, which has learnt nothing."""
        return self.plugin(validate(self.plugin.Settings, self.settings, "settings"))

    def make(self, width: int = 64) -> CodecPlugin:
        """The codec that can encode. Raises NotChecked where it lays out no tokens of `width`."""
        codec = self.bare()
        try:
            codec.layout(width)
        except BadInput as error:
            raise NotChecked(error.message) from error
        if isinstance(codec, FittedCodec):
            seen_MD = torch.randn(
                300, width, generator=torch.Generator().manual_seed(1)
            ) + torch.linspace(-3, 3, width)
            seen_MD[:, -1] *= 30
            codec.load(codec.fit(seen_MD))
        return codec

    @property
    def largest(self) -> float:
        """Magnitude of tokens: coefficients of a codec that learns are sums over the width."""
        return EXTREME / 64 if isinstance(self.bare(), FittedCodec) else EXTREME


def decoded_tokens(codec: CodecPlugin, arrays: Mapping[str, np.ndarray]) -> torch.Tensor:
    """Tokens of what `encode` gave."""
    return codec.decode({key: torch.from_numpy(array) for key, array in arrays.items()})


def require_within_bound(codec: CodecPlugin, tokens_FND: torch.Tensor) -> None:
    """Raises BrokenLaw where a round trip errs by more than `max_error` says."""
    bound = codec.max_error(tokens_FND).double()
    back = decoded_tokens(codec, codec.encode(tokens_FND))
    shape = tuple(tokens_FND.shape)
    found = f"{tuple(back.shape)} {back.dtype}"
    demand(
        back.shape == tokens_FND.shape and back.is_floating_point(),
        f"tokens {shape} come back as {found}",
    )
    good = bound.shape == tokens_FND.shape and bool(bound.isfinite().all())
    demand(good, f"max_error of tokens {shape} is {tuple(bound.shape)}, or not finite")
    error = (back.double() - tokens_FND.double()).abs()
    worst = float((error - bound).max()) if error.numel() else 0.0
    largest = float(tokens_FND.abs().max()) if error.numel() else 0.0
    demand(
        bool((error <= bound).all()),
        f"of tokens up to {largest:.3g} an error exceeds its bound by {worst:.3g}",
    )


def _material(width: int, largest: float) -> Iterator[torch.Tensor]:
    """(F, N, D): gaussians of any scale and offset, constants, and extremes thrown in."""
    for number, (scale, offset) in enumerate(product(SCALES, OFFSETS)):
        generator = torch.Generator().manual_seed(number)
        tokens_FND = torch.randn((3, 4, width), generator=generator) * scale + offset
        tokens_FND = tokens_FND.clamp(-EXTREME, EXTREME)
        if number % 2:
            tokens_FND.view(-1)[torch.tensor([1, -2])] = torch.tensor([EXTREME, -EXTREME])
        yield tokens_FND * (largest / EXTREME)


def _gaussian(frames: int, tokens: int, width: int = 64) -> torch.Tensor:
    return torch.randn(frames, tokens, width, generator=torch.Generator().manual_seed(0))


CODEC_LAWS: Laws[ReadyCodecs] = Laws()


@CODEC_LAWS.add("a round trip stays within max_error")
def _bound(ready: ReadyCodecs) -> None:
    for width in WIDTHS:
        codec = ready.make(width)
        for tokens_FND in _material(width, ready.largest):
            require_within_bound(codec, tokens_FND)


@CODEC_LAWS.add("the bytes are those that were declared, and the same for the same input")
def _bytes(ready: ReadyCodecs) -> None:
    codec, tokens_FND = ready.make(), _gaussian(3, 5)
    arrays, layout = codec.encode(tokens_FND), codec.layout(64)
    demand(arrays.keys() == layout.keys(), f"arrays {[*arrays]}, layout says {[*layout]}")
    for key, (shape, dtype) in layout.items():
        array = arrays[key]
        found = f"array '{key}' of 3 frames of 5 tokens is {array.shape} {array.dtype}"
        wanted = f"layout says {(3, 5, *shape)} {dtype}"
        demand(array.shape == (3, 5, *shape) and array.dtype == dtype, f"{found}, {wanted}")
    again = codec.encode(tokens_FND.clone())
    # A view into a wider tensor, and the same frames in another batch, are the same input.
    wider = codec.encode(torch.cat([torch.full((3, 1, 64), 7.0), tokens_FND], dim=1)[:, 1:])
    single = codec.encode(tokens_FND[1:2])
    for key, array in arrays.items():
        same = array.tobytes() == again[key].tobytes() == wider[key].tobytes()
        demand(same, f"array '{key}' of the same tokens has other bytes the second time")
        alone = array[1:2].tobytes() == single[key].tobytes()
        demand(alone, f"array '{key}' of a frame has other bytes alone than among others")


@CODEC_LAWS.add("zeros come back as zeros")
def _zeros(ready: ReadyCodecs) -> None:
    codec = ready.make()
    if isinstance(codec, FittedCodec):
        codec.load(codec.fit(torch.eye(64) - torch.eye(64).mean(0)))
    worst = float(decoded_tokens(codec, codec.encode(torch.zeros(1, 2, 64))).abs().max())
    demand(worst <= 1e-7, f"they come back as {worst:.3g}")


@CODEC_LAWS.add("any leading axes are decoded alike, and tokens that are kept as among all")
def _axes(ready: ReadyCodecs) -> None:
    codec = ready.make(16)
    arrays = codec.encode(_gaussian(6, 5, 16))
    flat = decoded_tokens(codec, arrays)
    cut = {key: array.reshape(2, 3, *array.shape[1:]) for key, array in arrays.items()}
    same = torch.equal(decoded_tokens(codec, cut), flat.view(2, 3, 5, 16))
    demand(same, "frames as 2 windows of 3 decode to other tokens")
    kept = np.array([False, True, False, False, True])
    some = decoded_tokens(codec, {key: array[:, kept] for key, array in arrays.items()})
    # A matrix product may round by how many rows it has; one of the values is around 30.
    near = torch.allclose(some, flat[:, torch.from_numpy(kept)], rtol=1e-6, atol=1e-4)
    exact = torch.equal(some, flat[:, torch.from_numpy(kept)])
    is_same = near if isinstance(codec, FittedCodec) else exact
    demand(is_same, "2 of 5 tokens decode to others alone than among all")


@CODEC_LAWS.add("values that are not finite are refused with an error that names the codec")
def _refused(ready: ReadyCodecs) -> None:
    codec = ready.make(8)
    for bad in (float("nan"), float("inf"), float("-inf")):
        tokens_FND = torch.zeros(2, 3, 8)
        tokens_FND[1, 2, 7] = bad
        try:
            codec.encode(tokens_FND)
        except StillframeError as error:
            # One that is below another codec may say that one's name.
            above = [cls.__module__.rpartition(".")[2] for cls in ready.plugin.__mro__]
            named = any(name in error.message for name in (ready.name, *above))
            demand(named, f"the error for {bad} is: {error.message}")
        else:
            raise BrokenLaw(f"a token with {bad} is taken")


@CODEC_LAWS.add("noise is, in the mean, the error of what is stored")
def _noise(ready: ReadyCodecs) -> None:
    codec = ready.make(NOISE_WIDTH)
    if isinstance(codec, FittedCodec):
        raise NotChecked("what a codec that learns cuts off is no part of its noise")
    tokens_FND = _gaussian(16, 40, NOISE_WIDTH) * torch.linspace(0.5, 2, NOISE_WIDTH)
    tokens_FND[..., 7] += 4  # a channel that is larger than the rest, as image models have
    for scale in (0.01, 1, 300):
        scaled = scale * tokens_FND
        arrays = {key: torch.from_numpy(array) for key, array in codec.encode(scaled).items()}
        noise_FN = codec.noise(arrays)
        error_FN = (codec.decode(arrays).double() - scaled.double()).square().mean(-1)
        demand(noise_FN.shape == error_FN.shape, f"noise is {tuple(noise_FN.shape)}")
        if not noise_FN.any() and not error_FN.any():
            continue  # nothing is rounded
        ratio = float(error_FN.mean() / noise_FN.mean())
        demand(abs(ratio - 1) <= 0.04, f"at scale {scale:g} the error is {ratio:.3g} of it")


@CODEC_LAWS.add("what a codec learns is the same for the same tokens, and enough to go on")
def _learns(ready: ReadyCodecs) -> None:
    codec, again = ready.bare(), ready.bare()
    if not isinstance(codec, FittedCodec) or not isinstance(again, FittedCodec):
        raise NotChecked("it learns nothing")
    demand(codec.sample_frames > 0, f"sample_frames is {codec.sample_frames}")
    seen_MD = _gaussian(10, 30).flatten(0, 1)
    learnt, twice = codec.fit(seen_MD), codec.fit(seen_MD.clone())
    for key, array in learnt.items():
        demand(array.tobytes() == twice[key].tobytes(), f"'{key}' has other bytes again")
    codec.load(learnt)
    again.load(twice)
    tokens_FND = _gaussian(3, 5)
    for key, array in codec.encode(tokens_FND).items():
        demand(
            array.tobytes() == again.encode(tokens_FND)[key].tobytes(),
            f"another codec that has loaded the same gives other bytes of '{key}'",
        )
