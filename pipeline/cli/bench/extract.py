"""Measurements that can be trusted: medians over repeats, and ratios against a reference measured
in turn in the same run."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.config.cache_spec import CacheSpec
from pipeline.datasets.manifest import manifest
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.device import chosen
from pipeline.extract import extract
from pipeline.extract.execution import Execution
from pipeline.extract.worker import fill
from pipeline.models.encoders.contract import EncoderPlugin, make_encoder, token_shape
from pipeline.models.profile import timed

# The demo's encoder, scaled up until it and not the decoder sets the pace.
SPEC = {
    "name": "bench",
    "encoder": {
        "name": "transformers",
        "layers": [5, 11],
        "config": {
            "model_type": "dinov3_vit",
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_hidden_layers": 12,
            "num_attention_heads": 6,
            "num_register_tokens": 4,
            "patch_size": 16,
        },
        "seed": 0,
    },
    "frames": {"size_px": 224},
}


RENDERED_FRAMES = 256
"""No more are rendered, which takes longer than anything that is measured: more frames are those of
the same videos under other names."""


@dataclass
class _Case:
    """One spec: its encoder, and the speeds of both ways in every round."""

    spec: CacheSpec
    encoder: EncoderPlugin
    bare: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        ratios = [whole / bare for bare, whole in zip(self.bare, self.whole, strict=True)]
        return {
            "rows": [
                _row("encoder alone, frames in memory", self.bare),
                _row("extraction, video files to stores", self.whole),
            ],
            "ratio": statistics.median(ratios),
            "ratios": ratios,
        }


def extract_speed(
    spec: CacheSpec,
    frames: int,
    repeats: int,
    decoders: int,
    device: torch.device | None,
    against: CacheSpec | None = None,
) -> dict[str, Any]:
    """Frames per second of extraction (decode, resize, encode, write, commit), of the encoder
    alone, and their paired ratio. The same of `against`, in turn with it, and how many times as
    fast its extraction is."""
    device = chosen(device)
    how = Execution(device, decoders)
    cases = [
        _Case(each, make_encoder(each, device)) for each in (spec, against) if each is not None
    ]
    shape = token_shape(spec)
    with tempfile.TemporaryDirectory() as folder:
        videos = short_videos(frames, Path(folder))
        for repeat in range(repeats + 1):
            for number, case in enumerate(cases):
                bare = _bare(case.encoder, case.spec, frames, device)
                cache = extract.create_or_open(
                    case.spec,
                    videos,
                    Path(folder) / f"bench-{repeat}-{number}",
                    case.encoder,
                    how,
                )
                progress = fill([(cache, case.encoder, [])], videos.videos, videos.root, how)
                if repeat:  # the first round warms caches and allocators up
                    case.bare.append(bare)
                    case.whole.append(progress.frames_per_s)
    found = {
        "title": f"{frames} frames, {spec.frames.size_px} px, "
        f"{shape.tokens_per_frame} tokens of {shape.width}, {device}",
        **cases[0].figures(),
    }
    if against is not None:
        times = [other / one for one, other in zip(cases[0].whole, cases[1].whole, strict=True)]
        found["against"] = cases[1].figures() | {"times": statistics.median(times)}
    return found


def short_videos(frames: int, folder: Path) -> Manifest:
    """Short videos of 256 px with about so many frames together."""
    rendered = min(frames, RENDERED_FRAMES)
    clips = max(1, rendered // (8 * 24))
    dials = {"clips_per_class": clips, "frames": rendered // (8 * clips), "size_px": 256}
    world = manifest.build("world", None, folder / "world", dials)
    if frames == rendered:
        return world
    for copy in range(frames // rendered):
        for video in world.videos:
            link = folder / "videos" / f"{copy}" / Path(video.source).name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.hardlink_to(world.root / video.source)
    return manifest.build("folder", folder / "videos", folder / "copies", {})


def _bare(encoder: EncoderPlugin, spec: CacheSpec, frames: int, device: torch.device) -> float:
    size, batch = spec.frames.size_px, spec.store.batch_frames
    pixels = torch.randint(0, 256, (frames, 3, size, size), dtype=torch.uint8, device=device)

    def encode() -> None:
        for first in range(0, frames, batch):
            encoder(pixels[first : first + batch])

    with torch.inference_mode():
        return frames / timed(encode, device)[0]


def _row(name: str, values: list[float]) -> tuple[str, float, float, float]:
    return name, round(statistics.median(values), 1), round(min(values), 1), round(max(values), 1)
