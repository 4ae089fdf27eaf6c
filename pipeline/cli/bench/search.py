"""A search of an index that is warm, against one product of matrices of all frames as float32 in
memory, which takes twice the bytes and knows no moments."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.cli.bench.temporal import surroundings
from pipeline.cli.bench.timing import Tell, median_ratio, seconds_of, summary
from pipeline.search.moments import best_moments, frame_scores, windows_of
from pipeline.search.queries import Query
from pipeline.train.language.frame_index import FLOAT16, FrameIndex

REFERENCE = "product, float32 in memory"
VIDEO_FRAMES, FRAMES_PER_S, SECONDS, TOP = 1000, 2.0, 4.0, 10
"""Frames of a video and in a second of it; length and number of the moments."""
PART = 65536
"""Frames that are drawn at a time."""


def search_speed(
    frames: int, width: int, queries: int, repeats: int, folder: Path | None, tell: Tell
) -> dict[str, Any]:
    """Way -> seconds of every round, and the median of the ratios to the reference. `folder`: for
    the index; a temporary one if None."""
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        tell(0, repeats, "writing an index")
        index = _drawn_index(Path(scratch) / "index.f16", frames, width)
        asked = _drawn_queries(queries, width)
        vectors_DQ = torch.stack([query.vector_D for query in asked], 1)
        whole_FD = index.embeddings_FD.float()
        ways: dict[str, Callable[[], Any]] = {
            "search": lambda: best_moments(index, asked, SECONDS, TOP),
            "of it scores": lambda: frame_scores(index, asked),
            "of it moments": lambda: windows_of(index, SECONDS),
            REFERENCE: lambda: whole_FD @ vectors_DQ,
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for repeat in range(-1, repeats):  # the first round warms up
            for way, call in ways.items():
                tell(max(0, repeat), repeats, way)
                taken = seconds_of(call, cpu)
                if repeat >= 0:
                    seconds[way].append(taken)
    return {
        "frames": frames,
        "width": width,
        "queries": queries,
        "index_bytes": index.embeddings_FD.nbytes + index.after_s_F.nbytes,
        "reference": REFERENCE,
        "machine": f"{surroundings(cpu)['device']}, {os.cpu_count()} processors",
        "threads": torch.get_num_threads(),
        "ways": {
            way: summary(taken) | {"ratio": median_ratio(taken, seconds[REFERENCE])}
            for way, taken in seconds.items()
        },
    }


def _drawn_index(path: Path, frames: int, width: int) -> FrameIndex:
    """Embeddings from a normal distribution, mapped into memory as those of a cache are."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for first in range(0, frames, PART):
            part_FD = rng.standard_normal((min(PART, frames - first), width), np.float32)
            part_FD /= np.linalg.norm(part_FD, axis=1, keepdims=True)
            file.write(part_FD.astype(FLOAT16).tobytes())
    starts_V = np.append(np.arange(0, frames, VIDEO_FRAMES), frames)
    return FrameIndex(
        torch.from_numpy(np.memmap(path, FLOAT16, "c", shape=(frames, width))),
        np.arange(frames) % VIDEO_FRAMES / FRAMES_PER_S,
        tuple(f"{number}.mp4" for number in range(len(starts_V) - 1)),
        starts_V,
    )


def _drawn_queries(count: int, width: int) -> list[Query]:
    vectors_QD = torch.randn(count, width, generator=torch.Generator().manual_seed(1))
    return [
        Query(str(number), torch.nn.functional.normalize(vector_D, dim=0))
        for number, vector_D in enumerate(vectors_QD)
    ]
