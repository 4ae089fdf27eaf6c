"""Tokens that spell their own address, so that an index gone wrong anywhere between video and batch
changes a number.

The pixels carry the first half of the address: `paint` draws video and frame number as a bar code,
8 x 8 black and white blocks that survive H.264 and resizing. `Encoder` reads it back and adds
layer, token and kind; `read` turns token values into numbers again.

    bar code  64 bits, row by row, most significant first: 12 video, 20 frame, 32 CRC-32 of those
              four bytes
    token     channels 0-5: video, frame // 1024, frame % 1024, layer, token, kind; then the same
              again up to the width

Every channel is an integer of at most 2048 in magnitude and therefore exact in float16. Kind is 1
for a patch and 2 for a special token. A frame whose bar code does not check has video -1.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field

from pipeline.errors import BadInput
from pipeline.models.encoders.contract import EncoderPlugin, EncoderSettings
from pipeline.records import Tokens, TokenShape

BLOCKS = 8
MIN_SIZE_PX = 2 * BLOCKS
MAX_VIDEO, MAX_FRAME, MAX_LAYER = 2047, 2**20 - 1, 2047
BASE = 1024
CHANNELS = 6
PATCH, SPECIAL = 1, 2
UNREADABLE = -1
"""The video number of a frame whose bar code does not check; its frame number is then 0."""


class Address(NamedTuple):
    """Integer arrays with the leading axes of the tokens they were read from."""

    video: np.ndarray
    frame: np.ndarray
    layer: np.ndarray
    token: np.ndarray
    special: np.ndarray
    """bool."""


def paint(video: int, frame: int, size_px: int) -> np.ndarray:
    """The bar code of one address: uint8 (size_px, size_px, 3)."""
    assert 0 <= video <= MAX_VIDEO and 0 <= frame <= MAX_FRAME and size_px >= MIN_SIZE_PX
    word = (video << 20 | frame).to_bytes(4, "big")
    bits = np.unpackbits(
        np.frombuffer(word + zlib.crc32(word).to_bytes(4, "big"), np.uint8)
    ).reshape(BLOCKS, BLOCKS)
    block, _ = _blocks(size_px)
    return np.repeat(255 * bits[block][:, block, None], 3, axis=2)


def read(tokens: torch.Tensor | np.ndarray) -> Address:
    """The address that each token (..., D) spells; arrays of shape (...)."""
    values = tokens.detach().float().cpu().numpy() if isinstance(tokens, torch.Tensor) else tokens
    video, frame_high, frame_low, layer, token, kind = np.moveaxis(
        values[..., :CHANNELS].astype(np.int64), -1, 0
    )
    return Address(video, frame_high * BASE + frame_low, layer, token, kind == SPECIAL)


class Encoder(EncoderPlugin):
    """Reads the bar code of each frame. Special tokens carry the number of the last recorded
    layer."""

    class Settings(EncoderSettings):
        """These settings say how many tokens there are, and how wide they are."""

        width: int = Field(default=8, ge=CHANNELS)
        """D, the channels of a token."""
        grid: int = Field(default=4, ge=1, le=45)
        """Side of the patch grid, whatever the frame's size."""
        special_tokens: int = Field(default=1, ge=0, le=2048)
        """S, the special tokens of a frame."""

    @classmethod
    def shape(cls, settings: Any, size_px: int) -> TokenShape:
        layers = settings.layers
        if (
            not layers
            or list(layers) != sorted({*layers})
            or layers[0] < 0
            or layers[-1] > MAX_LAYER
        ):
            raise BadInput(
                f"layers must be ascending numbers from 0 to {MAX_LAYER}, found {list(layers)}"
            )
        if size_px < MIN_SIZE_PX:
            raise BadInput(
                f"bar codes are read from {MIN_SIZE_PX} px up, found size_px = {size_px}"
            )
        return TokenShape(
            settings.width, (settings.grid, settings.grid), settings.special_tokens, layers
        )

    @classmethod
    def flops(cls, settings: Any, size_px: int) -> int:
        return 0

    def __init__(self, settings: Any, size_px: int, device: torch.device) -> None:
        self._shape = self.shape(settings, size_px)
        self._device = device
        self.identity = {"address": 1, **settings.model_dump(mode="json", exclude={"layers"})}

    def __call__(self, pixels_NCHW: torch.Tensor) -> Tokens:
        video_N, frame_N = _scan(pixels_NCHW)
        shape = self._shape
        patches = {
            layer: self._spell(video_N, frame_N, layer, shape.patch_tokens, PATCH)
            for layer in shape.layers
        }
        return Tokens(
            self._spell(video_N, frame_N, shape.layers[-1], shape.special_tokens, SPECIAL), patches
        )

    def _spell(
        self, video_N: torch.Tensor, frame_N: torch.Tensor, layer: int, count: int, kind: int
    ) -> torch.Tensor:
        """(N, count, D): the address of each token, repeated along the width."""
        address = torch.empty(len(video_N), count, CHANNELS)
        for channel, value in enumerate((video_N, frame_N // BASE, frame_N % BASE)):
            address[..., channel] = value[:, None]
        address[..., 3] = layer
        address[..., 4] = torch.arange(count)
        address[..., 5] = kind
        return address[..., torch.arange(self._shape.width) % CHANNELS].to(self._device)


def _blocks(size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """The block that each row or column of pixels lies in, and whether it lies well inside."""
    position = (np.arange(size_px) + 0.5) * BLOCKS / size_px
    return position.astype(np.int64), np.abs(position % 1 - 0.5) < 0.3


def _scan(pixels_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Video and frame numbers (N,) of a batch of bar codes, on the host."""
    block, inside = _blocks(pixels_NCHW.shape[-1])
    # Rows average the pixels well inside each block: compression and resizing smear the edges.
    weights = torch.from_numpy((np.arange(BLOCKS)[:, None] == block) & inside).to(
        pixels_NCHW.device, torch.float32
    )
    weights /= weights.sum(dim=1, keepdim=True)
    brightness = (weights @ pixels_NCHW.float().mean(dim=1) @ weights.T).flatten(1).cpu().numpy()
    codes = [row.tobytes() for row in np.packbits(brightness > 127.5, axis=1)]
    words = [int.from_bytes(code[:4], "big") for code in codes]
    good = [
        zlib.crc32(code[:4]) == int.from_bytes(code[4:], "big") and word >> 20 <= MAX_VIDEO
        for code, word in zip(codes, words, strict=True)
    ]
    videos = [word >> 20 if ok else UNREADABLE for word, ok in zip(words, good, strict=True)]
    frames = [word & MAX_FRAME if ok else 0 for word, ok in zip(words, good, strict=True)]
    return torch.tensor(videos), torch.tensor(frames)
