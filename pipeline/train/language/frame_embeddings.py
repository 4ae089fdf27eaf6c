"""Tokens of a cache become embeddings of frames, those of the image-text model that the cache was
made with: they are compared with embeddings of texts, and no pixel is decoded for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from pipeline.cache.cache import Cache
from pipeline.cache.codecs.contract import FittedCodec
from pipeline.cache.layout import SPECIAL, layer_name
from pipeline.errors import BadInput
from pipeline.models.encoders.contract import without_network
from pipeline.models.encoders.tower.files import JSON_FILES, WEIGHT_FILES, model_folder
from pipeline.models.text.parts.image_head import ImageHead

BATCH_FRAMES = 256
"""Frames whose tokens are in memory at a time."""
NO_TEXT_HALF = "extract with the encoder of an image-text model, as the spec siglip2_base does"


def text_model_of(cache: Cache, model: str | None) -> SimpleNamespace:
    """`model` and `revision` of the image-text model that a cache was made with; `model` says where
    it is now, if it was moved. Raises BadInput where the encoder has no text half."""
    table = cache.spec["encoder"]
    if not isinstance(table.get("model"), str):
        raise BadInput(
            f"cache {cache} was made with the encoder '{table['name']}' of no model that has a "
            "text half",
            NO_TEXT_HALF,
        )
    named = model or table["model"]
    return SimpleNamespace(model=named, revision=None if model else table.get("revision"))


@contextmanager
def looking_for(model: str | None) -> Iterator[None]:
    """Within it, the image-text model of a cache is looked for: only one that a user named is
    fetched, and where one is not found that none named, it is said how to name it."""
    try:
        with nullcontext() if model else without_network():
            yield
    except BadInput as error:
        if model:
            raise
        named = "--model FOLDER, where it was moved"
        raise BadInput(
            error.message, f"{error.hint}; or {named}" if error.hint else named
        ) from error


def require_same_model(cache: Cache, weights: str, model: str) -> None:
    """Refuses a model that a cache was not made with: `weights` is the sha256 of its weight files.
    Widths may agree where meanings do not. Raises BadInput."""
    own = str(cache.header.encoder.get("weights"))
    if own != weights:
        raise BadInput(
            f"model {model} is another than that of cache {cache}: sha256 of the weights "
            f"{weights[:12]}, wanted {own[:12]}",
            "--model says where the model is now that the cache was made with",
        )


def image_head_of(cache: Cache, model: str | None, device: torch.device) -> ImageHead:
    """The image head of the model that a cache was made with, on `device`. Only a model that a user
    named is fetched. Raises BadInput where the cache lacks the tokens that it reads."""
    named = text_model_of(cache, model)
    with looking_for(model):
        folder = model_folder(named, JSON_FILES + WEIGHT_FILES)
    assert isinstance(folder, Path)
    head = ImageHead(named.model, folder, device)
    require_same_model(cache, head.weights, named.model)
    _require_tokens(cache, head)
    return head


def _require_tokens(cache: Cache, head: ImageHead) -> None:
    """Raises BadInput where a cache lacks the tokens that a head reads."""
    shape, layer = cache.shape, head.last_layer
    if shape.layers[-1] != layer:
        have = ", ".join(map(str, shape.layers))
        raise BadInput(
            f"cache {cache} lacks layer {layer}, the encoder's last one, of which the embedding of "
            f"a frame is made; it has {have}",
            f"extract with encoder.layers=[{have},{layer}]",
        )
    if head.reads_cls:
        if not shape.special_tokens:
            raise BadInput(
                f"cache {cache} lacks the special token CLS, of which the embedding of a frame is "
                "made",
                "extract the videos again",
            )
        return
    side = cache.spec["frames"]["size_px"] // head.patch_px
    if shape.grid_hw != (side, side):
        raise BadInput(
            f"cache {cache} keeps {shape.grid_hw[0]} x {shape.grid_hw[1]} of the {side} x {side} "
            "patches of a frame, and its embedding is made of all of them",
            "extract the videos again",
        )


class FrameEmbeddings:
    """Embeddings of the frames of a cache, by `head`, which is that of its own model."""

    def __init__(self, cache: Cache, head: ImageHead, device: torch.device) -> None:
        self.cache, self._head, self._device = cache, head, device
        self._name = SPECIAL if head.reads_cls else layer_name(head.last_layer)
        self.is_exact = not isinstance(cache.codec, FittedCodec)
        """Whether the codec keeps whole tokens, but for their rounding."""

    def of_video(self, video_id: str) -> np.ndarray:
        """(F, D) float32, of unit length: the cached frames of a video, in their order. Raises
        BadInput where tokens are damaged."""
        return np.concatenate(list(self._batches(video_id)))

    def _batches(self, video_id: str) -> Iterator[np.ndarray]:
        location, codec = self.cache.locations[video_id], self.cache.codecs[self._name]
        for start in range(location.start, location.stop, BATCH_FRAMES):
            rows = np.arange(start, min(start + BATCH_FRAMES, location.stop))
            stored: dict[str, Any] = self.cache.stored_rows(location.store, self._name, rows)
            moved = {key: torch.from_numpy(array).to(self._device) for key, array in stored.items()}
            tokens_FND = codec.decode(moved)
            read = tokens_FND[:, 0] if self._head.reads_cls else tokens_FND
            yield self._head(read).cpu().numpy()
