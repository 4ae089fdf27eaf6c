"""Laws of every codec on disk, and what is particular to each."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support import laws, media

from pipeline.cache.codecs._laws import CODEC_LAWS, EXTREME, ReadyCodecs, require_within_bound
from pipeline.cache.codecs._laws import decoded_tokens as decode
from pipeline.cache.codecs.contract import FittedCodec
from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec
from pipeline.config.laws import Law
from pipeline.errors import BadInput, StillframeError
from pipeline.video.transforms import resize_and_crop

CODECS = plugins.names("codec")


def codec(name: str, width: int = 64, **settings: object) -> Any:
    """Ready for tokens of `width`: a codec that fits has seen gaussians with a mean and an outlier
    channel."""
    return ReadyCodecs(plugins.load("codec", name), name, settings).make(width)


@pytest.mark.parametrize("law", laws.each(CODEC_LAWS))
@pytest.mark.parametrize("name", CODECS)
def test_law(name: str, law: Law[ReadyCodecs]) -> None:
    laws.holds(law, ReadyCodecs(plugins.load("codec", name), name))


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
    if name == "pca":  # its float16 holds sums over the width
        tokens_FND = tokens_FND / 64
    require_within_bound(codec(name, tokens_FND.shape[-1]), tokens_FND)


@hypothesis_settings(deadline=None, max_examples=60, derandomize=True)
@given(tokens_FND=token_arrays())
def test_pca_with_few_components_in_int8_stays_within_max_error(tokens_FND: torch.Tensor) -> None:
    require_within_bound(
        codec("pca", tokens_FND.shape[-1], components=5, coefficients="int8"), tokens_FND
    )


def held(made: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The tokens without what the codec cuts off before it rounds."""
    if not isinstance(made, FittedCodec):
        return tokens
    learnt = made.fit(tokens.flatten(0, 1))
    made.load(learnt)
    mean_D, basis_DK = (torch.from_numpy(learnt[key]).double() for key in ("mean", "basis"))
    return ((tokens.double() - mean_D) @ basis_DK @ basis_DK.T + mean_D).float()


ROUNDED = [
    *((name, {}) for name in CODECS),
    ("pca", {"components": 32}),
    ("pca", {"components": 64, "coefficients": "int8"}),
]


def assert_noise_is_the_error(made: Any, tokens_FND: torch.Tensor) -> None:
    """Within 4 % over all tokens, and within a half for most of them."""
    exact = held(made, tokens_FND)
    arrays = {key: torch.from_numpy(array) for key, array in made.encode(exact).items()}
    noise_FN = made.noise(arrays)
    windows = {key: array.unflatten(0, (1, -1)) for key, array in arrays.items()}
    assert torch.equal(made.noise(windows), noise_FN.unsqueeze(0))
    error_FN = (made.decode(arrays).double() - exact.double()).square().mean(-1)
    assert float(error_FN.mean() / noise_FN.mean()) == pytest.approx(1, abs=0.04)
    near = (error_FN / noise_FN - 1).abs() < 0.5
    assert near.double().mean() > 0.8


@pytest.mark.parametrize(("name", "settings"), ROUNDED)
@pytest.mark.parametrize("scale", [0.01, 1, 300])
def test_the_noise_that_is_told_from_what_is_stored_is_the_error(name, settings, scale):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(16, 40, 128, generator=generator) * torch.linspace(0.5, 2, 128)
    tokens[..., 7] += 4  # a channel that is larger than the rest, as image models have
    made = codec(name, 128, **settings)
    assert_noise_is_the_error(made, scale * tokens)


def test_float16_rounds_to_nearest_with_an_attained_bound() -> None:
    """Between any two neighbours of the format the worst value is the midpoint, and there error and
    bound are one."""
    made = codec("float16")
    grid = (
        torch.arange(0x7C00, dtype=torch.int16).view(torch.float16).double()
    )  # every finite value >= 0
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
    with pytest.raises(
        StillframeError, match=r"largest value is -70000, the format ends at 65504"
    ) as caught:
        made.encode(torch.tensor([[[1.0, 65000.0, -70000.0]]]))
    assert "precision" in caught.value.hint
    with pytest.raises(StillframeError, match="largest value is 65520"):
        made.encode(torch.tensor([[[65520.0]]]))
    with pytest.raises(StillframeError, match="largest value is NaN"):
        made.encode(torch.tensor([[[float("nan"), 1e9]]]))


def test_float16_takes_what_encoders_give() -> None:
    made = codec("float16")
    assert made.bytes_per_token(384) == 768
    assert made.encode(torch.zeros(4, 0, 8))[""].shape == (
        4,
        0,
        8,
    )  # an encoder without special tokens
    tokens = torch.linspace(-3, 3, 16).view(1, 2, 8)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        given_tokens = tokens.to(dtype)
        assert torch.equal(decode(made, made.encode(given_tokens)), given_tokens.half().float())
    with torch.inference_mode():
        inference = tokens * 2
    assert torch.equal(decode(made, made.encode(inference)), (tokens * 2).half().float())


@pytest.mark.parametrize("name", [name for name in CODECS if name != "pca"])
def test_what_a_store_was_never_given_is_not_a_number(name):
    """Fill values: NaN of float arrays, all bits of unsigned ones, zero of signed ones."""
    made = codec(name)
    filled = {
        key: torch.full((1, 1, *shape), float("nan") if dtype.kind == "f" else 0)
        .numpy()
        .astype(dtype)
        if dtype.kind != "u"
        else np.full((1, 1, *shape), np.iinfo(dtype).max, dtype)
        for key, (shape, dtype) in made.layout(64).items()
    }
    assert decode(made, filled).isnan().all()


def test_bytes_of_every_codec():
    """Per token of width 384, in parts of float16's 768."""
    found = {name: codec(name, 384).bytes_per_token(384) for name in CODECS}
    assert found == {"bfloat16": 768, "float16": 768, "int4": 192 + 12, "int8": 384 + 4, "pca": 256}
    assert codec("pca", 384, components=64, coefficients="int8").bytes_per_token(384) == 68
    assert codec("pca", 384, components=500).bytes_per_token(384) == 768


def test_bfloat16_rounds_to_nearest_with_an_attained_bound():
    made = codec("bfloat16")
    grid = (
        torch.arange(0x7F80, dtype=torch.int16).view(torch.bfloat16).double()
    )  # every finite value >= 0
    middle = ((grid[1:] + grid[:-1]) / 2).float().view(1, 1, -1)
    normal = middle >= 2.0**-126
    for tokens in (middle, -middle):
        error = (decode(made, made.encode(tokens)) - tokens).abs()
        assert torch.equal(error[normal], made.max_error(tokens)[normal])
    exact = grid.float().view(1, 1, -1)
    assert torch.equal(decode(made, made.encode(exact)), exact)
    with pytest.raises(StillframeError, match=r"the format ends at 3.38953e\+38"):
        made.encode(torch.tensor([[[3.4e38]]]))


def test_int8_keeps_the_largest_value_of_every_token():
    made = codec("int8")
    tokens = torch.tensor(
        [[[127.0, -63.4, 0.4, 0.0], [-1e30, 1e28, 0.0, 0.0], [1e-30, 0.0, 0.0, 0.0]]]
    )
    arrays = made.encode(tokens)
    assert arrays[""].tolist() == [[[127, -63, 0, 0], [-127, 1, 0, 0], [127, 0, 0, 0]]]
    np.testing.assert_allclose(arrays["scale"], [[1, 1e30 / 127, 1e-30 / 127]], rtol=1e-6)


def test_int4_packs_two_rotated_values_into_a_byte():
    """Width 2: signs s, then sum and difference; the larger is 7 and sets the scale."""
    made = codec("int4")
    arrays = made.encode(torch.tensor([[[4.0, 0.0], [0.0, 0.0]]]))
    assert arrays[""].shape == (1, 2, 1) and arrays["scale"].shape == (1, 2, 1)
    low, high = arrays[""] & 15, arrays[""] >> 4
    assert abs(int(low[0, 0, 0]) - 8) == abs(int(high[0, 0, 0]) - 8) == 7
    assert (low[0, 1, 0], high[0, 1, 0]) == (8, 8)
    assert decode(made, arrays)[0, 0].tolist() == pytest.approx([4.0, 0.0], abs=4 * 2.0**-8)
    with pytest.raises(BadInput, match="wants an even width, found 9"):
        made.layout(9)


def test_int4_holds_outliers_to_their_block():
    """A channel a hundred times larger than the rest costs the 64 channels around it, and no
    others."""
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(4, 50, 192, generator=generator)
    outlier = plain.clone()
    outlier[..., 70] = 100.0
    made = codec("int4", 192)
    errors = [(decode(made, made.encode(tokens)) - tokens).abs() for tokens in (plain, outlier)]
    assert torch.equal(errors[0][..., :64], errors[1][..., :64]) and torch.equal(
        errors[0][..., 128:], errors[1][..., 128:]
    )
    # Rounded as it is, at the outlier's scale of 100 / 7, every other channel would be lost: an
    # error of 0.8 on average.
    assert errors[1][..., 64:128].mean() < 0.5
    assert errors[0].mean() < 0.11


def test_int4_bytes_do_not_change_between_versions():
    """The signs and the order of the sums are part of the format."""
    tokens = torch.arange(-64, 64, dtype=torch.float32).square().view(1, 1, 128)
    arrays = codec("int4").encode(tokens)
    assert arrays[""].tobytes().hex()[:32] == "97fe9add5688cda986988887dc777888"
    assert arrays["scale"].tolist() == [[[17058, 17064]]]


def test_pca_finds_the_subspace_its_sample_lies_in():
    generator = torch.Generator().manual_seed(0)
    plane_KD = torch.randn(3, 32, generator=generator)
    tokens = (
        torch.randn(4, 25, 3, generator=generator) * torch.tensor([9.0, 3.0, 1.0]) @ plane_KD + 5
    )
    made = plugins.load("codec", "pca")(plugins.settings("codec", "pca", {"components": 3}, "pca"))
    learnt = made.fit(tokens.flatten(0, 1))
    np.testing.assert_allclose(learnt["basis"].T @ learnt["basis"], np.eye(3), atol=1e-6)
    made.load(learnt)
    torch.testing.assert_close(decode(made, made.encode(tokens)), tokens, atol=0.02, rtol=1e-3)
    variance = np.var(made.encode(tokens)[""].astype(float).reshape(-1, 3), axis=0)
    assert variance[0] > variance[1] > variance[2]
    again = made.fit(tokens.flatten(0, 1).clone())
    assert all(again[key].tobytes() == learnt[key].tobytes() for key in learnt)


@pytest.fixture(scope="module")
def real_tokens() -> dict[str, torch.Tensor]:
    """Tokens of a real ViT-Ti/16 on six frames of each of eight real clips, by array."""
    weights, clips = (os.environ.get(name) for name in ("STILLFRAME_WEIGHTS", "STILLFRAME_CLIPS"))
    if not weights or not clips:
        pytest.skip(
            "STILLFRAME_WEIGHTS and STILLFRAME_CLIPS do not say where a real ViT and real clips are"
        )
    table = {
        "name": "real",
        "encoder": {
            "name": "transformers",
            "model": f"{weights}/vit_tiny_patch16_224",
            "layers": [5, 11],
        },
        "frames": {"size_px": 224},
    }
    spec = plugins.validate(CacheSpec, table, "test")
    encoder = plugins.load("encoder", "transformers")(
        spec.encoder.settings, 224, torch.device("cpu")
    )
    squares = []
    for path in sorted(Path(clips).glob("*.mp4"))[:8]:
        for block in islice(media.decode(path, 1.0, block_frames=1), 6):
            square, _ = resize_and_crop(
                torch.from_numpy(block.pixels_FHWC), 224, "crop", "bicubic", block.pixel_aspect
            )
            squares.append(square)
    tokens = encoder(torch.cat(squares))
    return {"special": tokens.special_NSD} | {
        f"layer_{layer}": part for layer, part in tokens.patches_NPD.items()
    }


@pytest.mark.parametrize(("name", "settings"), ROUNDED)
def test_the_noise_is_the_error_on_a_real_vit(real_tokens, name, settings):
    """On patches; the few special tokens are alike, and do not round evenly."""
    for layer in (5, 11):
        made = plugins.load("codec", name)(plugins.settings("codec", name, settings, name))
        assert_noise_is_the_error(made, real_tokens[f"layer_{layer}"])


@pytest.mark.parametrize(
    ("name", "cosine"),
    [("float16", 0.999999), ("bfloat16", 0.99999), ("int8", 0.999), ("int4", 0.98), ("pca", 0.9)],
)
def test_cosine_on_a_real_vit(real_tokens, name, cosine):
    for array, tokens in real_tokens.items():
        made = plugins.load("codec", name)(plugins.settings("codec", name, {}, name))
        if isinstance(made, FittedCodec):
            made.load(made.fit(tokens[::2].flatten(0, 1)))
        decoded = decode(made, made.encode(tokens))
        found = torch.nn.functional.cosine_similarity(decoded, tokens, dim=-1).mean()
        assert found > cosine, f"{array}: {found}"
