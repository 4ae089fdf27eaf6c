"""The figures of a plan are compared with what then happens: extraction, bytes on disk, and an
epoch with and without the cache.

This is done on the built-in world in several sizes, which take turns in every round; a plan and
what it foretells follow each other at once.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.cache.cache import Cache
from pipeline.cli.bench.timing import Tell
from pipeline.cli.bench.training.epoch import epoch
from pipeline.config.cache_spec import CacheSpec
from pipeline.config.recipe import Recipe
from pipeline.datasets.manifest import manifest
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.device import chosen
from pipeline.experiments.planning.measure import measure_stages
from pipeline.experiments.planning.plan import plan
from pipeline.extract import extract
from pipeline.train.windows.index import clips_of

LEAST_STEPS = 40
"""Least number of steps that are measured: so many epochs are trained as that takes."""
FORETOLD = ("extract_s", "disk_bytes", "cached_epoch_s", "uncached_epoch_s")


def foretold(
    spec: CacheSpec,
    recipe: Recipe,
    sizes: Sequence[int],
    repeats: int,
    measure_s: float,
    decoders: int,
    device: torch.device | None,
    tell: Tell,
) -> dict[str, Any]:
    """Clips per class -> what -> planned and measured in every round, and the median of their
    ratios."""
    device, done = chosen(device), 0
    with tempfile.TemporaryDirectory() as scratch:
        worlds = {}
        for size in sizes:
            tell(0, 1, f"rendering {size} clips of each class")
            worlds[size] = manifest.build(
                "world", None, Path(scratch) / f"world{size}", {"clips_per_class": size}
            )
        rounds: dict[int, list[tuple[dict[str, float], dict[str, float]]]] = {
            size: [] for size in sizes
        }
        for repeat in range(-1, repeats):  # the first round warms up, on the smallest size
            for size in sizes if repeat >= 0 else sizes[:1]:
                tell(done, repeats * len(sizes), f"{size} clips of each class")
                folder = Path(scratch) / f"{size}-{repeat}"
                planned = _planned(
                    spec, recipe, worlds[size], str(folder / "caches"), measure_s, decoders, device
                )
                measured = _measured(spec, recipe, worlds[size], folder, decoders, device)
                if repeat >= 0:
                    rounds[size].append((planned, measured))
                    done += 1
        frames = {
            size: sum(fact.frames_from_header or 0 for fact in world.facts.values() if fact)
            for size, world in worlds.items()
        }
    return {
        "device": str(device),
        "processors": os.cpu_count(),
        "probe_s": measure_s,
        "repeats": repeats,
        "sizes": {
            str(size): {
                "frames": frames[size],
                **{what: _figures([(a[what], b[what]) for a, b in pairs]) for what in FORETOLD},
            }
            for size, pairs in rounds.items()
        },
    }


def _planned(
    spec: CacheSpec,
    recipe: Recipe,
    videos: Manifest,
    out: str,
    measure_s: float,
    decoders: int,
    device: torch.device,
) -> dict[str, float]:
    throughput = measure_stages(
        spec, videos, recipe, out, device, decoders, measure_s, lambda _: None
    )
    prediction = plan(spec, videos, None, recipe, 1, throughput, decoders)
    codec, times = prediction.scale.codecs[spec.codec.name], prediction.times
    assert codec and times and times.cached_epoch_s and times.uncached_epoch_s
    return {
        "extract_s": times.extract_s,
        "disk_bytes": codec.disk_bytes,
        "cached_epoch_s": times.cached_epoch_s,
        "uncached_epoch_s": times.uncached_epoch_s,
    }


def _measured(
    spec: CacheSpec,
    recipe: Recipe,
    videos: Manifest,
    folder: Path,
    decoders: int,
    device: torch.device,
) -> dict[str, float]:
    begin = time.perf_counter()
    cache: Cache = extract.extract(spec, videos, folder / "caches", device, decoders)
    extract_s = time.perf_counter() - begin
    steps_per_epoch = len(clips_of(videos, "train", recipe.windows)) / recipe.training.batch_size
    epochs = math.ceil(LEAST_STEPS / steps_per_epoch)

    def epoch_s(way: str) -> float:
        return epoch(way, [recipe], cache, folder / way, decoders, device, epochs).seconds / epochs

    return {
        "extract_s": extract_s,
        "disk_bytes": sum(receipt.store_bytes for receipt in cache.receipts.values()),
        "cached_epoch_s": epoch_s("cached"),
        "uncached_epoch_s": epoch_s("uncached"),
    }


def _figures(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    ratios = [planned / measured for planned, measured in pairs]
    return {
        "planned": [planned for planned, _ in pairs],
        "measured": [measured for _, measured in pairs],
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }
