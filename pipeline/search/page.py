"""Found moments as a page: one HTML file, with a picture of the best frame of each where its video
is still there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from PIL import Image

from pipeline.cache.cache import Cache
from pipeline.cache.storage.local import write_atomically
from pipeline.errors import BadVideo
from pipeline.report.page import page_template
from pipeline.search.moments import Moment
from pipeline.train.visualize import drawing_reader, squares

TEMPLATE = Path(__file__).parent / "assets" / "search.html"
THUMBNAIL_PX = 320

Pictures = Mapping[tuple[str, float], np.ndarray]
"""Video and second after its first frame -> uint8 (H, W, 3)."""


class Shown(NamedTuple):
    """A moment in the page."""

    moment: Moment
    pixels_HWC: np.ndarray | None
    link: str
    """Where its video is, and from when to when; "" where it is not there."""


def write_page(
    path: Path,
    cache: Cache,
    found: Mapping[str, Sequence[Moment]],
    root: Path | None,
    facts: str,
    say: Callable[[str], None],
) -> None:
    """Writes the moments of every query. `root` is where the videos are, if they were moved;
    `facts` is a sentence on what was searched. `say` is told why pictures are missing. Raises
    StillframeError where the page cannot be written."""
    base = root or cache.manifest.root
    moments = [moment for of_query in found.values() for moment in of_query]
    pictures = _pictures(cache, base, moments, say)
    source_of = {clip.video_id: clip.source for clip in cache.manifest.clips}
    shown = {
        query: [
            Shown(
                moment,
                pictures.get((moment.video, moment.best_s)),
                _link(base / source_of[moment.video], moment, path),
            )
            for moment in of_query
        ]
        for query, of_query in found.items()
    }
    html = page_template(TEMPLATE).render(title=cache.name, facts=facts, found=shown)
    write_atomically(path, html.encode("utf-8", errors="backslashreplace"))


def _pictures(
    cache: Cache, root: Path, moments: Sequence[Moment], say: Callable[[str], None]
) -> Pictures:
    """The best frame of each moment, as the encoder saw it, of the videos that can be read."""
    clip_of = {clip.video_id: clip for clip in reversed(cache.manifest.clips)}
    pictures: dict[tuple[str, float], np.ndarray] = {}
    missing: dict[str, BadVideo] = {}
    with drawing_reader(root) as reader:
        for video in dict.fromkeys(moment.video for moment in moments):
            after_s = sorted({moment.best_s for moment in moments if moment.video == video})
            time_s = np.array(after_s) + cache.first_s(video)
            try:
                frames_THWC = squares(reader, cache, clip_of[video], time_s)
            except BadVideo as error:
                missing[video] = error
                continue
            pictures |= {
                (video, second): _small(pixels)
                for second, pixels in zip(after_s, frames_THWC, strict=True)
            }
    if missing:
        first = next(iter(missing.values()))
        say(f"pictures of {len(missing)} videos are missing, the first: {first.with_hint}")
    return pictures


def _small(pixels_HWC: np.ndarray) -> np.ndarray:
    side = (THUMBNAIL_PX, THUMBNAIL_PX)
    return np.array(Image.fromarray(pixels_HWC).resize(side, Image.Resampling.LANCZOS))


def _link(video: Path, moment: Moment, page: Path) -> str:
    """The video as the page's reader opens it, at the moment: a path relative to the page."""
    if not video.is_file():
        return ""
    relative = os.path.relpath(video.absolute(), page.absolute().parent)
    return f"{quote(relative)}#t={moment.start_s:.2f},{moment.stop_s:.2f}"
