"""The laws of encoders that hold without a reference: see `contract`, and docs/extending.md."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from pipeline.config.laws import Laws, demand, require_plain_json, require_refused
from pipeline.models.encoders.contract import EncoderPlugin
from pipeline.records import Tokens

SIZE_PX = 112
"""A whole number of patches of 14 and of 16 px."""
WITHIN = 1e-4


class OneEncoder:
    """An encoder with settings of the user's, made when it is first asked for."""

    def __init__(self, plugin: type[EncoderPlugin], settings: Any, size_px: int = SIZE_PX) -> None:
        self.plugin, self.settings, self.size_px = plugin, settings, size_px

    def make(self) -> EncoderPlugin:
        """Another one. Raises BadInput where its weights are not here."""
        return self.plugin(self.settings, self.size_px, torch.device("cpu"))

    @cached_property
    def encoder(self) -> EncoderPlugin:
        """One that all laws may look at."""
        return self.make()

    def frames(self, count: int) -> torch.Tensor:
        """(count, 3, size_px, size_px) uint8, noise."""
        size = (count, 3, self.size_px, self.size_px)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


ENCODER_LAWS: Laws[OneEncoder] = Laws()


@ENCODER_LAWS.add("what the configuration does not allow is refused before weights are read")
def _configuration(one: OneEncoder) -> None:
    flops = one.plugin.flops(one.settings, one.size_px)
    demand(isinstance(flops, int) and flops >= 0, f"flops is {flops!r}, wanted a whole number")
    for layers in ((10**6,), (), (1, 0), (0, 0)):
        wrong = one.settings.model_copy(update={"layers": layers})

        def ask(wrong: Any = wrong) -> object:
            return one.plugin.shape(wrong, one.size_px)

        require_refused(ask, f"layers = {list(layers)}")


@ENCODER_LAWS.add(
    "tokens have the shape that was told beforehand, are finite, and need no gradient"
)
def _shape(one: OneEncoder) -> None:
    shape, tokens = one.plugin.shape(one.settings, one.size_px), one.encoder(one.frames(2))
    special, wanted = tuple(tokens.special_NSD.shape), (2, shape.special_tokens, shape.width)
    demand(special == wanted, f"special tokens are {special}, wanted {wanted}")
    found = {layer: tuple(patches.shape) for layer, patches in tokens.patches_NPD.items()}
    patches = dict.fromkeys(shape.layers, (2, shape.patch_tokens, shape.width))
    demand(found == patches, f"patches are {found}, wanted {patches}")
    for part in (tokens.special_NSD, *tokens.patches_NPD.values()):
        finite = part.is_floating_point() and bool(part.isfinite().all())
        demand(finite, f"tokens are {part.dtype}, or not finite")
        demand(not part.requires_grad, "tokens need a gradient: an encoder is frozen")


@ENCODER_LAWS.add("a frame gives the same tokens at any place in a batch")
def _place(one: OneEncoder) -> None:
    pixels_NCHW, together = one.frames(3), one.encoder(one.frames(3))
    for rows in ([2, 0, 1], [1]):
        apart = one.encoder(pixels_NCHW[rows])
        for name, ours, whole in _parts(apart, together):
            error = float((ours - whole[rows]).abs().max()) if ours.numel() else 0.0
            scale = float(whole.abs().max()) if whole.numel() else 0.0
            near = error <= WITHIN * max(1.0, scale)
            demand(near, f"{name} of frames {rows} differ by {error:.3g} from those among 3")


@ENCODER_LAWS.add("pixels as float32 give what the same levels give as uint8")
def _float_pixels(one: OneEncoder) -> None:
    pixels_NCHW = one.frames(1)
    for name, ours, wanted in _parts(one.encoder(pixels_NCHW.float()), one.encoder(pixels_NCHW)):
        error = float((ours - wanted).abs().max()) if ours.numel() else 0.0
        demand(error <= WITHIN * max(1.0, float(wanted.abs().max())), f"{name}: {error:.3g} off")


@ENCODER_LAWS.add("the identity is plain JSON, and the same again")
def _identity(one: OneEncoder) -> None:
    require_plain_json(one.encoder.identity, "identity")
    again = one.make().identity
    demand(again == one.encoder.identity, f"it is {one.encoder.identity}, and then {again}")


def _parts(ours: Tokens, theirs: Tokens) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    layers = [
        (f"layer {layer}", patches, theirs.patches_NPD[layer])
        for layer, patches in ours.patches_NPD.items()
    ]
    return [("special tokens", ours.special_NSD, theirs.special_NSD), *layers]
