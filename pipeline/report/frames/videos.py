"""Answers drawn over videos, small enough for a page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.cache.cache import Cache
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import StillframeError
from pipeline.report.source import ReportData, cache_of
from pipeline.train.run import Run
from pipeline.train.setup import RunContext
from pipeline.train.visualize import drawings, file_name, write_video

CLIPS = 3
"""Clips that are drawn of each run."""
HEIGHT_PX = 320
CRF = 26


@dataclass(frozen=True)
class DrawnVideo:
    """An .mp4 with answer and truth drawn in."""

    clip: str
    label: str
    path: Path
    width_px: int
    height_px: int


def manifest_of(run: Run, cache: Cache) -> Manifest:
    """The clips and labels it was trained with."""
    folder = run.header.manifest_path
    return cache.manifest if folder is None else Manifest.load(Path(folder))


def videos(data: ReportData, out: Path) -> tuple[dict[str, list[DrawnVideo]], str]:
    """Point -> clips as the best point and its reference answer them, written into `out`; and why
    some are missing."""
    drawn: dict[str, list[DrawnVideo]] = {}
    failures: list[str] = []
    for point in data.compared():
        try:
            drawn[point.name] = _drawn(*data.shown(point), data.summary.split, out, failures.append)
        except StillframeError as error:
            return drawn, f"Not drawn for {point.name}: {error}."
    return drawn, f"Not drawn: {'; '.join(dict.fromkeys(failures))}." if failures else ""


def _drawn(
    run: Run, checkpoint: str, split: str, out: Path, say: Callable[[str], None]
) -> list[DrawnVideo]:
    drawn, cache, taken = [], cache_of(run), set[str]()
    manifest = manifest_of(run, cache)
    context = RunContext.of(cache, manifest, allow_missing=True)
    for drawing in drawings(run, context, CLIPS, split, checkpoint, say):
        clip = drawing.clip
        frames_THWC = np.stack([_small(pixels_HWC) for pixels_HWC in drawing.pixels_THWC])
        path = out / run.path.name / file_name(clip.clip_id, ".mp4", taken)
        try:
            write_video(path, frames_THWC, drawing.fps, CRF)
        except StillframeError as error:
            say(f"clip {clip.clip_id}: {error.with_hint}")
            continue
        height, width = frames_THWC.shape[1:3]
        drawn.append(DrawnVideo(clip.clip_id, clip.label or "", path, width, height))
    return drawn


def _small(pixels_HWC: np.ndarray) -> np.ndarray:
    height, width = pixels_HWC.shape[:2]
    if height <= HEIGHT_PX:
        return pixels_HWC
    size = round(width * HEIGHT_PX / height), HEIGHT_PX
    return np.array(Image.fromarray(pixels_HWC).resize(size, Image.Resampling.LANCZOS))
