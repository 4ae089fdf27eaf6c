"""Calibration of a fitted codec, on a sample of frames that follows from the spec and the videos
alone.

The sample is taken once, when a cache is laid out, before its first store: who writes the stores,
and what stops in between, has no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from pipeline.cache.codec_parameters import pack_learnt
from pipeline.cache.codecs.contract import FittedCodec
from pipeline.config.cache_spec import BASE, CacheSpec
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import BadVideo, StillframeError
from pipeline.extract.encode import named_tokens
from pipeline.extract.execution import Execution
from pipeline.models.encoders.contract import EncoderPlugin
from pipeline.video.reader import FrameReader

Plan = Mapping[int, Mapping[str, int]]
"""store -> video_id -> expected frames."""
HEAD_FRAMES = 1000
"""A sampled video is looked at up to here: what follows would have to be decoded for a few
frames."""


def middles_of_parts(count: int, parts: int) -> np.ndarray:
    """The middles of `parts` equal parts of range(count), ascending; at most `count` of them."""
    parts = min(count, parts)
    return (2 * np.arange(parts) + 1) * count // max(1, 2 * parts)


def fit_codecs(codec: FittedCodec, tokens: Mapping[str, torch.Tensor]) -> bytes:
    """Token array -> its sampled tokens (F, N, D), to the bytes of codec.safetensors."""
    return pack_learnt(
        {name: codec.fit(sampled_FND.flatten(0, 1)) for name, sampled_FND in tokens.items()}
    )


def calibration_tokens(
    spec: CacheSpec,
    encoder: EncoderPlugin,
    manifest: Manifest,
    plan: Plan,
    num_frames: int,
    how: Execution,
) -> dict[str, torch.Tensor]:
    """Token array -> float32 tokens (F, N, D) in host memory, of about `num_frames` frames of
    evenly spread videos.

    A video that cannot be decoded gives what can be had of it, and `how.say` is told the reason.
    Raises StillframeError if no frame can be had at all, or if the machine is at fault.
    """
    expected = {video_id: count for videos in plan.values() for video_id, count in videos.items()}
    chosen = [
        manifest.videos[index] for index in middles_of_parts(len(manifest.videos), num_frames)
    ]
    of_each = -(-num_frames // len(chosen))
    squares: list[torch.Tensor] = []
    failure = ""
    with FrameReader(manifest.root, how.here, how.limits) as reader:
        for video in chosen:
            numbers = middles_of_parts(min(expected[video.video_id], HEAD_FRAMES), of_each)
            try:
                for block in reader.numbered(video, spec.frames, numbers, {BASE: None}):
                    squares += block.views[BASE]
            except BadVideo as error:
                failure = error.with_hint
                how.say(f"codec '{spec.codec.name}' is fitted without what is left of {failure}")
            except OSError as error:  # the machine's fault and not the video's
                raise StillframeError(
                    f"cannot read {manifest.root / video.source}: {error}",
                    "mend it and run extract again",
                ) from error
    if not squares:
        raise StillframeError(
            f"none of {len(chosen)} sampled videos could be decoded, so codec "
            f"'{spec.codec.name}' has nothing to be fitted to: {failure}",
            "see the reasons: stillframe extract with --set codec.name=float16",
        )
    tokens: dict[str, list[torch.Tensor]] = {}
    for batch in torch.stack(squares).split(spec.store.batch_frames):
        with torch.inference_mode():
            encoded = encoder(batch)
        for name, part in named_tokens(encoded).items():
            tokens.setdefault(name, []).append(part.float().cpu())
    return {name: torch.cat(parts) for name, parts in tokens.items()}
