"""Stage one without a cache: frames become the very tokens that a cache of the same spec holds of
them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.cache.cache import Cache
from pipeline.cache.codec_parameters import codecs_of, read_learnt
from pipeline.cache.codecs.contract import CodecPlugin
from pipeline.cache.layout import SPECIAL, layer_name, tokens_by_array
from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec, fingerprint
from pipeline.device import Uploads, chosen
from pipeline.errors import BadInput
from pipeline.models.encoders.contract import make_encoder, token_shape, without_network
from pipeline.records import Frames, Tokens, Video
from pipeline.video.frame_counts import FrameCounts
from pipeline.video.reader import FrameReader
from pipeline.video.transforms import FrameTransforms


class FrameTokens(NamedTuple):
    """Tokens of F frames as a cache gives them back, after the trip through its codec."""

    special_FSD: torch.Tensor
    """CLS, then registers, of the last layer; S may be 0."""
    patches: dict[int, torch.Tensor]
    """layer -> (F, P, D), patch tokens row by row."""
    time_s_F: torch.Tensor
    """float64, seconds after the first frame of the video; of frames of one's own their number."""
    affine_F23: torch.Tensor
    """float64: (x, y, 1) in the source frame, from 0 to 1, to (x, y) in the square that the encoder
    sees, from 0 to 1."""


class FrameEncoder:
    """Frames to tokens as extraction does it: squares, encoder, codec. The tokens are those of the
    cache, bit for bit on the same device, as far as the encoder's arithmetic does not depend on how
    many frames it is given at once: a frame alone may differ from one in a full batch by
    rounding."""

    def __init__(
        self,
        spec: CacheSpec,
        device: torch.device | str | None = None,
        learnt: bytes | None = None,
    ) -> None:
        """`device`: None is CUDA where there is one. `learnt`: what a fitted codec has learnt, see
        `of_cache`. Raises BadInput: an encoder that is not there, a fitted codec without that."""
        self.spec = spec
        self.device = chosen(None if device is None else torch.device(device))
        self.encoder = make_encoder(spec, self.device)
        self.shape = token_shape(spec)
        names = tokens_by_array(
            self.shape.layers, self.shape.special_tokens, self.shape.patch_tokens
        )
        self.codecs = codecs_of(spec.codec, names, learnt, self.shape.width)

    @classmethod
    def of_cache(
        cls,
        cache: Cache,
        device: torch.device | str | None = None,
        encoder: Mapping[str, Any] | None = None,
    ) -> FrameEncoder:
        """The frame encoder that made a cache. `encoder`: keys of the spec's [encoder] table to use
        instead, such as where its weights are now; without it nothing is fetched over a network
        because a cache says so.

        Raises BadInput where the encoder is not the one that the cache was made with.
        """
        spec = with_encoder(cache.spec, encoder or {}, f"cache {cache}")
        learnt = read_learnt(cache.storage, cache.header.codec_sha256)
        with nullcontext() if encoder else without_network():
            made = cls(spec, device, learnt)
        if fingerprint(spec, made.encoder.identity, "") != fingerprint(
            cache.cache_spec, cache.header.encoder, ""
        ):
            raise BadInput(
                f"cache {cache} holds other tokens: encoder '{spec.encoder.name}' has other "
                "weights, layers or another configuration than the one that made it",
                'name that one: encoder={"model": "FOLDER"}',
            )
        return made

    def __repr__(self) -> str:
        size, layers = self.spec.frames.size_px, ", ".join(map(str, self.shape.layers))
        return (
            f"FrameEncoder({self.spec.encoder.name}, {size} x {size} px, layers {layers}, "
            f"codec {self.spec.codec.name}, {self.device})"
        )

    def __call__(self, pixels_FHWC: np.ndarray, pixel_aspect: float = 1.0) -> FrameTokens:
        """Tokens of frames of one's own: uint8 RGB, upright, of one size. `pixel_aspect`: width of
        a pixel over its height. Raises BadInput for an array of another kind."""
        frames = checked_frames(pixels_FHWC, pixel_aspect)
        transforms = FrameTransforms(frames, Uploads(self.device))
        whole = np.ones(len(frames), bool)
        squares_FCHW, affine_23 = transforms.squares(self.spec.frames, whole, None)
        return self._encoded(squares_FCHW, frames.time_s, affine_23)

    def video(self, path: Path | str, image_fps: float | None = None) -> Iterator[FrameTokens]:
        """Tokens of the frames of a video that a cache keeps of it, in batches as extraction makes
        them (`store.batch_frames`). `path`: a file, or a folder of images, which have `image_fps`
        frames a second unless they have times of their own.

        Raises BadVideo, after the frames before that, where the video ends badly.
        """
        path, settings, counted = Path(path), self.spec.frames, FrameCounts()
        video, size = Video(path.name, path.name, image_fps), self.spec.store.batch_frames
        held: list[tuple[torch.Tensor, float, np.ndarray]] = []
        with FrameReader(path.parent, self.device) as reader:
            for block in reader.blocks(video, [settings.kept], counted, settings.decoder):
                mask_F = block.wanted(settings)
                if not mask_F.any():
                    continue
                squares_FCHW, affine_23 = block.transforms.squares(settings, mask_F, None)
                assert counted.first_s is not None
                time_s_F = block.time_s[mask_F] - counted.first_s
                held += [
                    (square_CHW, time_s, affine_23)
                    for square_CHW, time_s in zip(squares_FCHW, time_s_F, strict=True)
                ]
                while len(held) >= size:
                    yield self._encoded(*_stacked(held[:size]))
                    held = held[size:]
        if held:
            yield self._encoded(*_stacked(held))

    def _encoded(
        self, squares_FCHW: torch.Tensor, time_s_F: np.ndarray, affine_F23: np.ndarray
    ) -> FrameTokens:
        """One affine may stand for those of all frames."""
        with torch.no_grad():
            parts = [
                through_codec(self.encoder(part), self.codecs, self.shape.layers)
                for part in squares_FCHW.split(self.spec.store.batch_frames)
            ]
        layers = self.shape.layers
        return FrameTokens(
            torch.cat([part.special_NSD for part in parts]),
            {layer: torch.cat([part.patches_NPD[layer] for part in parts]) for layer in layers},
            torch.from_numpy(time_s_F),
            torch.from_numpy(np.broadcast_to(affine_F23, (len(time_s_F), 2, 3)).copy()),
        )


def _stacked(
    frames: Sequence[tuple[torch.Tensor, float, np.ndarray]],
) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    squares, times_s, affines = zip(*frames, strict=True)
    return torch.stack(squares), np.array(times_s, np.float64), np.stack(affines)


def through_codec(
    tokens: Tokens, codecs: Mapping[str, CodecPlugin], layers: Sequence[int]
) -> Tokens:
    """Tokens of an encoder as a cache gives them back: special ones, and patches of `layers`."""
    device = tokens.special_NSD.device

    def stored(name: str, part: torch.Tensor) -> torch.Tensor:
        arrays = codecs[name].encode(part)
        return codecs[name].decode(
            {key: torch.from_numpy(array).to(device) for key, array in arrays.items()}
        )

    special_NSD = tokens.special_NSD
    if special_NSD.shape[1]:
        special_NSD = stored(SPECIAL, special_NSD)
    return Tokens(
        special_NSD,
        {layer: stored(layer_name(layer), tokens.patches_NPD[layer]) for layer in layers},
    )


def with_encoder(spec: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> CacheSpec:
    """The spec of a cache or a run, as plain JSON, with other keys of its [encoder] table. Raises
    BadInput."""
    table = plugins.as_recorded(spec)
    table["encoder"] = table["encoder"] | dict(changes)
    return plugins.validate(CacheSpec, table, where)


def checked_frames(
    pixels_FHWC: np.ndarray, pixel_aspect: float = 1.0, time_s_F: np.ndarray | None = None
) -> Frames:
    """Frames of one's own, which are numbered where they have no times. Raises BadInput where they
    are none."""
    pixels = np.asarray(pixels_FHWC)
    if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise BadInput(
            f"frames are uint8 (F, H, W, 3), found {pixels.dtype} {pixels.shape}",
            "RGB, upright; a tensor (F, 3, H, W): frames.permute(0, 2, 3, 1).numpy()",
        )
    if not 0 < pixel_aspect < float("inf"):
        raise BadInput(f"the aspect of pixels is above 0, found {pixel_aspect}")
    times = np.arange(len(pixels), dtype=np.float64) if time_s_F is None else time_s_F
    return Frames(np.ascontiguousarray(pixels), times, pixel_aspect)
