"""Contract of a codec: how token values are laid down in bytes. A codec knows nothing of files.

`encode` gives named arrays: the key "" is the array itself and a key such as "scale" is a sibling
(`layer_11_scale` on disk). All have the leading axes (F, tokens). Same input, same bytes. Decoding
runs on the training device, after the transfer.

A `FittedCodec` learns from a sample of the tokens first: once for a cache, and separately for each
of its token arrays. What it learnt is kept in the cache, and each array has a codec of its own,
made from that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from pipeline.config import plugins
from pipeline.config.cache_spec import Choice
from pipeline.config.plugins import Settings


class CodecPlugin(ABC):
    """Base of every `Codec`."""

    Settings: ClassVar[type[Settings]]

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @abstractmethod
    def layout(self, width: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Array key -> (shape of one token's entry, dtype), for tokens of `width`. BadInput for one
        it cannot lay out."""

    @abstractmethod
    def encode(self, tokens_FND: torch.Tensor) -> dict[str, np.ndarray]:
        """Float tokens on any device -> arrays in host memory. Raises StillframeError, which names
        the codec, where a value is not finite or cannot be held; `_rounding.refuse_beyond`
        does so."""

    @abstractmethod
    def decode(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        """Arrays, on the training device and with any leading axes, -> float tokens."""

    def kept(self, tokens_FND: torch.Tensor) -> torch.Tensor:
        """What a codec keeps of float tokens before it rounds: all of it, unless it says otherwise.
        In operators of torch alone, so that a graph can hold them."""
        return tokens_FND

    @abstractmethod
    def max_error(self, tokens_FND: torch.Tensor) -> torch.Tensor:
        """Bound on |decode(encode(x)) - x|, elementwise, in the shape of the tokens."""

    def noise(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        """The mean square of the rounding that is in each stored token, as it is expected from what
        is stored: arrays as `decode` takes them -> (...), without the width.

        What a codec cuts off before it rounds is no part of it: no decoded token has that. By
        default every error up to `max_error` is as likely.
        """
        half_step = self.max_error(self.decode(arrays))
        return half_step.square().mean(-1) / 3

    def bytes_per_token(self, width: int) -> int:
        """Bytes of one token of `width` in all arrays together."""
        return sum(
            int(np.prod(shape, initial=1)) * dtype.itemsize
            for shape, dtype in self.layout(width).values()
        )


class FittedCodec(CodecPlugin):
    """A codec that can `encode`, `decode` and bound its error only after `load`."""

    @property
    @abstractmethod
    def sample_frames(self) -> int:
        """Frames that `fit` wants to see."""

    @abstractmethod
    def fit(self, tokens_MD: torch.Tensor) -> dict[str, np.ndarray]:
        """Arrays of what is learnt from M tokens of one array. Same input, same bytes."""

    @abstractmethod
    def load(self, learnt: Mapping[str, np.ndarray]) -> None:
        """Makes the codec ready with what `fit` returned."""


def make_codec(choice: Choice) -> CodecPlugin:
    """The codec that a spec chooses. A `FittedCodec` cannot encode before it has loaded what was
    learnt."""
    codec: CodecPlugin = plugins.load("codec", choice.name)(choice.settings)
    return codec


def fitted_to(codec: CodecPlugin, manifest: str) -> str | None:
    """The digest of the manifest whose frames a codec is fitted to, as a fingerprint has it; None
    where nothing is fitted."""
    return manifest if isinstance(codec, FittedCodec) else None
