"""What a fitted codec learns, from a sample of frames that follows from the spec and the videos
alone.

The sample is taken once, when a cache is laid out, before its first store: who writes the stores,
and what stops in between, has no part in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from pipeline.cache.codec_parameters import pack_learnt
from pipeline.cache.codecs.contract import FittedCodec
from pipeline.config.cache_spec import CacheSpec
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import StillframeError
from pipeline.extract.encode import named_tokens
from pipeline.models.encoders.contract import EncoderPlugin
from pipeline.records import Frames, Video
from pipeline.video import decode
from pipeline.video.transforms import resize_and_crop

Plan = Mapping[int, Mapping[str, int]]
"""store -> video_id -> expected frames."""
HEAD_FRAMES = 1000
"""A sampled video is looked at up to here: what follows would have to be decoded for a few
frames."""


def evenly_spaced(count: int, wanted: int) -> np.ndarray:
    """Up to `wanted` ascending numbers below `count`: the middles of as many equal parts."""
    wanted = min(count, wanted)
    return (2 * np.arange(wanted) + 1) * count // max(1, 2 * wanted)


def fit_codecs(codec: FittedCodec, tokens: Mapping[str, torch.Tensor]) -> bytes:
    """Token array -> its sampled tokens (F, N, D), to the bytes of codec.safetensors."""
    return pack_learnt(
        {name: codec.fit(sampled_FND.flatten(0, 1)) for name, sampled_FND in tokens.items()}
    )


def calibration_tokens(
    spec: CacheSpec,
    encoder: EncoderPlugin,
    device: torch.device,
    manifest: Manifest,
    plan: Plan,
    wanted: int,
) -> dict[str, torch.Tensor]:
    """Token array -> float32 tokens (F, N, D) in host memory, of about `wanted` frames of evenly
    spread videos.

    A video that cannot be decoded gives what can be had of it. Raises StillframeError if no frame
    can be had at all.
    """
    expected = {video_id: count for videos in plan.values() for video_id, count in videos.items()}
    chosen = [manifest.videos[place] for place in evenly_spaced(len(manifest.videos), wanted)]
    of_each = -(-wanted // len(chosen))
    squares = [
        square_CHW
        for video in chosen
        for square_CHW in _squares(
            video,
            manifest,
            spec,
            device,
            evenly_spaced(min(expected[video.video_id], HEAD_FRAMES), of_each),
        )
    ]
    if not squares:
        raise StillframeError(
            f"none of {len(chosen)} sampled videos could be decoded: codec '{spec.codec.name}' has nothing to be fitted to",
            "see the reasons: stillframe extract with --set codec.name=float16",
        )
    tokens: dict[str, list[torch.Tensor]] = {}
    for batch in torch.stack(squares).split(spec.store.batch_frames):
        with torch.inference_mode():
            encoded = encoder(batch)
        for name, part in named_tokens(encoded).items():
            tokens.setdefault(name, []).append(part.float().cpu())
    return {name: torch.cat(parts) for name, parts in tokens.items()}


def _squares(
    video: Video, manifest: Manifest, spec: CacheSpec, device: torch.device, places: np.ndarray
) -> Iterator[torch.Tensor]:
    """The cached frames of a video at `places`, counted from its first, as model squares (3,
    size_px, size_px)."""
    settings, at = spec.frames, 0
    for block in _decoded(video, manifest, settings.rate):
        inside = places[(places >= at) & (places < at + len(block))] - at
        if len(inside):
            pixels = torch.from_numpy(block.pixels_FHWC[inside]).to(device)
            yield from resize_and_crop(
                pixels, settings.size_px, settings.fit, settings.resample, block.pixel_aspect
            )[0]
        at += len(block)
        if at > places[-1]:
            return


def _decoded(video: Video, manifest: Manifest, rate: float | None) -> Iterator[Frames]:
    """Blocks of a video, up to where it fails: extraction will list it with the reason."""
    path = manifest.root / video.source
    blocks = decode.decode(path, rate, video.image_fps)
    while True:
        try:
            block = next(blocks, None)
        except (OSError, MemoryError) as error:  # the machine's fault and not the video's
            raise StillframeError(
                f"cannot read {path}: {error}", "mend it and run extract again"
            ) from error
        except Exception:  # a decoder may raise anything on a broken file
            return
        if block is None:
            return
        yield block
