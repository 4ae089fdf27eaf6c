"""Contract of an encoder: a frozen image model that turns uint8 frames into tokens.

Pixel normalisation is inside. Tokens of every recorded layer have passed the model's own final
norm. Special tokens (CLS, then registers) come apart from the patches, which are ordered row by
row. The same frame gives the same tokens at any place in a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

import torch

from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec
from pipeline.config.plugins import Settings
from pipeline.device import native_precision
from pipeline.errors import BadInput
from pipeline.records import Tokens, TokenShape

AUTO = "auto"
"""The precision that is left to the device."""
MAY_FETCH = ContextVar("may_fetch", default=True)
"""Whether files of a model may be fetched from the hub."""


@contextmanager
def without_network() -> Iterator[None]:
    """Within it, a model of the hub is looked for on this machine alone: what a cache or a run
    names, and no user on the command line, sends no request."""
    token = MAY_FETCH.set(False)
    try:
        yield
    finally:
        MAY_FETCH.reset(token)


class EncoderSettings(Settings):
    """The table of every encoder holds these settings."""

    layers: tuple[int, ...]
    """0-based block outputs to record, ascending."""


class EncoderPlugin(ABC):
    """Base of every `Encoder`."""

    Settings: ClassVar[type[EncoderSettings]]
    identity: dict[str, Any]
    """Plain JSON that changes exactly when the tokens would: configuration, preprocessing and
    sha256 of the weights."""

    @classmethod
    @abstractmethod
    def shape(cls, settings: Any, size_px: int) -> TokenShape:
        """Token counts for square frames of `size_px`, from the configuration alone: no weights are
        read.

        Raises BadInput for layers the model lacks and for sizes its patches do not fit.
        """

    @classmethod
    @abstractmethod
    def flops(cls, settings: Any, size_px: int) -> int:
        """Floating-point operations for one frame up to the last recorded layer: 2 for a multiply
        and add, matrix products and convolutions. From the configuration alone."""

    @classmethod
    def settled(cls, settings: Any, device: torch.device) -> Any:
        """`settings` with what is left to the device said outright, as a cache writes it down:
        `precision = "auto"` becomes what the device is made for."""
        if getattr(settings, "precision", None) != AUTO:
            return settings
        return settings.model_copy(update={"precision": native_precision(device)})

    @abstractmethod
    def __init__(self, settings: Any, size_px: int, device: torch.device) -> None: ...

    def prepare(self, frames: int) -> None:  # noqa: B027
        """Many batches of `frames` frames will come, and some of fewer: what can be made for them
        once, such as compiled code, is made now. Raises BadInput where it cannot."""

    @abstractmethod
    def __call__(self, pixels_NCHW: torch.Tensor) -> Tokens:
        """RGB levels from 0 to 255 (N, 3, size_px, size_px), uint8, or float32 where frames are not
        antialiased, on the encoder's device -> float tokens on the same device."""


def settle(spec: CacheSpec, device: torch.device) -> CacheSpec:
    """A spec whose encoder leaves nothing to the device, see `EncoderPlugin.settled`."""
    plugin: type[EncoderPlugin] = plugins.load("encoder", spec.encoder.name)
    settings = plugin.settled(spec.encoder.settings, device)
    encoder = spec.encoder.model_copy(update={"settings": settings})
    return spec.model_copy(update={"encoder": encoder})


def make_encoder(spec: CacheSpec, device: torch.device) -> EncoderPlugin:
    """The encoder that a spec names, on `device`; its weights are read. Raises BadInput."""
    plugin: type[EncoderPlugin] = plugins.load("encoder", spec.encoder.name)
    return plugin(settle(spec, device).encoder.settings, spec.frames.size_px, device)


def token_shape(spec: CacheSpec) -> TokenShape:
    """Shape of the tokens of one frame that the encoder of a spec gives. Reads the encoder's
    configuration, not its weights. Raises BadInput that names the encoder."""
    plugin: type[EncoderPlugin] = plugins.load("encoder", spec.encoder.name)
    try:
        return plugin.shape(spec.encoder.settings, spec.frames.size_px)
    except BadInput as error:
        raise BadInput(f"encoder '{spec.encoder.name}': {error.message}", error.hint) from error


def grid_of_patches(
    layers: tuple[int, ...], depth: int, patch_px: int, size_px: int
) -> tuple[int, int]:
    """Rows and columns of the patches of a square frame, for a tower of `depth` blocks. Raises
    BadInput for layers that it lacks or that do not ascend, and for a size that its patches do not
    fit."""
    if not layers or list(layers) != sorted({*layers}):
        raise BadInput(f"layers must be ascending and different, found {list(layers)}")
    for layer in layers:
        if not 0 <= layer < depth:
            raise BadInput(
                f"layer {layer} is not there: this encoder has {depth} blocks, 0..{depth - 1}"
            )
    side, rest = divmod(size_px, patch_px)
    if rest or not side:
        legal = [str(count * patch_px) for count in (side, side + 1) if count]
        raise BadInput(
            f"size_px = {size_px} is not a whole number of this encoder's patches of {patch_px} px",
            f"near: {', '.join(legal)}",
        )
    return side, side
