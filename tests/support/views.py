"""Specs with views, and an independent resize to compare with."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec

FLIP = {"name": "flip", "flip": True}

PART = {"name": "part", "crop": [0.25, 0.0, 1.0, 0.75]}


def vit_spec(layers: list[int], **changes: object) -> CacheSpec:
    """A real encoder at another size, rate, codec and layout than `address_spec`."""
    config = {
        "model_type": "vit",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "patch_size": 16,
        "image_size": 32,
    }
    table = {
        "name": "vit",
        "encoder": {"name": "transformers", "layers": layers, "seed": 0, "config": config},
        "frames": {"size_px": 32, "fps": 4, "resample": "bilinear"},
        "codec": {"name": "int8"},
        "store": {"chunk_frames": 2, "shard_mb": 0.001, "store_mb": 0.0015, "batch_frames": 5},
    }
    return plugins.validate(CacheSpec, table | changes, "test")


def noise(height: int, width: int) -> torch.Tensor:
    """Of middling levels, so that the overshoot of bicubic resizing is not clamped between the axes."""
    return torch.randint(
        64,
        192,
        (2, height, width, 3),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )


def blurred(height: int, width: int) -> torch.Tensor:
    """Smooth in both directions, with all levels."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [x / width * 9, y / height * 7, x / width * 5 + y / height * 4]
    return (
        torch.stack([127.5 + 120 * torch.sin(wave) for wave in waves], dim=-1)
        .round()
        .to(torch.uint8)[None]
    )


def resize_then_crop(
    pixels_FHWC: torch.Tensor, size_hw: tuple[int, int], size_px: int, resample: str
) -> torch.Tensor:
    """The whole frame in float64, rounded at the end."""
    whole = F.interpolate(
        pixels_FHWC.permute(0, 3, 1, 2).double(), size_hw, mode=resample, antialias=True
    )
    top, left = ((side - size_px) // 2 for side in size_hw)
    return (
        whole[:, :, top : top + size_px, left : left + size_px]
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
    )


def most(a: torch.Tensor, b: torch.Tensor) -> int:
    return int((a.cpu().int() - b.int()).abs().max())


class Wants:
    dense_px = 8

    def __init__(self, *needs: str) -> None:
        self.needs = needs

    def prepare(self, targets, rng):
        return targets | ({} if rng is None else {"drawn": np.array(rng.random())})
