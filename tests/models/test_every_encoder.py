"""Laws of every encoder found on disk that can be made without weights of its own."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from support import rvm

from pipeline.config import plugins
from pipeline.config.cache_spec import load_spec
from pipeline.config.shipped import shipped
from pipeline.errors import BadInput
from pipeline.models.encoders.contract import EncoderPlugin
from pipeline.records import TokenShape

NAMES = plugins.names("encoder")
SIZE_PX = 112
"""A whole number of patches of 14 and of 16 px."""


def settings_of(name: str) -> Any:
    """Those of the spec `demo` where it names the encoder, else the defaults and layer 0."""
    demo = load_spec(shipped("spec")["demo"]).encoder
    if demo.name == name:
        return demo.settings
    fields = plugins.load("encoder", name).Settings.model_fields
    wanted = [key for key, field in fields.items() if field.is_required() and key != "layers"]
    if wanted not in ([], ["weights"]):
        pytest.skip(f"encoder '{name}' is not made without {', '.join(wanted)}")
    table = {"layers": [0]} if fields["layers"].is_required() else {}
    table |= {key: str(rvm.small_file(24)) for key in wanted}
    return plugins.settings("encoder", name, table, name)


def make(name: str) -> tuple[EncoderPlugin, TokenShape]:
    plugin, settings = plugins.load("encoder", name), settings_of(name)
    shape = plugin.shape(settings, SIZE_PX)
    try:
        return plugin(settings, SIZE_PX, torch.device("cpu")), shape
    except BadInput as error:
        pytest.skip(f"encoder '{name}' has no weights here: {error.message}")


def frames(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(
        0, 256, (count, 3, SIZE_PX, SIZE_PX), dtype=torch.uint8, generator=generator
    )


@pytest.mark.parametrize("name", NAMES)
def test_tokens_have_the_shape_that_was_told_beforehand(name: str) -> None:
    encoder, shape = make(name)
    tokens = encoder(frames(2))
    assert tokens.special_NSD.shape == (2, shape.special_tokens, shape.width)
    found = {layer: tuple(patches.shape) for layer, patches in tokens.patches_NPD.items()}
    assert found == dict.fromkeys(shape.layers, (2, shape.patch_tokens, shape.width))
    for part in (tokens.special_NSD, *tokens.patches_NPD.values()):
        assert part.is_floating_point() and part.isfinite().all() and not part.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_gives_the_same_tokens_at_any_place_in_a_batch(name: str) -> None:
    encoder, _ = make(name)
    pixels_NCHW, order = frames(3), [2, 0, 1]
    together = encoder(pixels_NCHW)
    for rows in (order, [1]):
        apart = encoder(pixels_NCHW[rows])
        assert apart.patches_NPD.keys() == together.patches_NPD.keys()
        parts = [(apart.special_NSD, together.special_NSD)]
        parts += [(apart.patches_NPD[key], whole) for key, whole in together.patches_NPD.items()]
        for ours, whole in parts:
            torch.testing.assert_close(ours, whole[rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_identity_is_plain_and_the_same_again(name: str) -> None:
    encoder, again = make(name)[0], make(name)[0]
    assert encoder.identity and json.loads(json.dumps(encoder.identity)) == encoder.identity
    assert again.identity == encoder.identity


@pytest.mark.parametrize("name", NAMES)
def test_what_the_configuration_does_not_allow_is_refused_before_weights(name: str) -> None:
    plugin, settings = plugins.load("encoder", name), settings_of(name)
    assert isinstance(plugin.flops(settings, SIZE_PX), int)
    for layers in ((10**6,), (), (1, 0), (0, 0)):
        with pytest.raises(BadInput):
            plugin.shape(settings.model_copy(update={"layers": layers}), SIZE_PX)
