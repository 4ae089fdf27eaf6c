"""How many windows repeat a frame, or step unevenly from one to the next, counted over the places
where they can begin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipeline.errors import BadInput
from pipeline.train.windows.index import WindowIndex
from pipeline.train.windows.windows import Windows
from pipeline.video.even_rates import rates_of, uneven_text
from pipeline.video.sampling import TOLERANCE_S

COUNTED = 20_000
"""Windows up to which every one is counted; of more, so many that are spread evenly."""
COUNTED_CLIPS = 2_000
"""Clips up to which all are looked at; of more, so many that are spread evenly."""
ALIKE = 0.1
"""Steps that differ by less than this share of the shortest are even: times are rounded, and those
of cameras are not quite regular."""


class Unevenness(NamedTuple):
    """Windows that are not even, among those that were counted."""

    windows: int
    repeating: int
    """Windows that hold a frame twice in a row."""
    uneven: int
    """Windows whose steps differ in length."""
    most: float
    """The longest step over the shortest in any of them, less 1; of a frame that is repeated, 1."""

    @property
    def text(self) -> str:
        """In words; "" where all windows are even."""
        if not self.uneven:
            return ""
        share, repeating = (
            f"{100 * count / self.windows:.0f} %" for count in (self.uneven, self.repeating)
        )
        repeat = f", and {repeating} repeat a frame" if self.repeating else ""
        return (
            f"{share} of windows have steps of different lengths, by up to {100 * self.most:.0f} %"
            f"{repeat}"
        )


def unevenness(index: WindowIndex) -> Unevenness:
    """Counts the windows at every frame that one can begin with. Clips with fewer frames per second
    than their windows are left out: they are said apart, see `WindowIndex.slower`."""
    windows = repeating = uneven = 0
    most = 0.0
    for steps_s in _steps_s(index):
        shortest, longest = float(steps_s.min()), float(steps_s.max())
        windows += 1
        repeating += shortest == 0
        if longest - shortest > ALIKE * shortest + 2 * TOLERANCE_S:
            uneven += 1
            most = max(most, longest / shortest - 1 if shortest else 1.0)
    return Unevenness(windows, repeating, uneven, most)


def _steps_s(index: WindowIndex) -> Iterator[np.ndarray]:
    """(T - 1,) seconds from frame to frame of each window that is counted."""
    chosen = np.unique(np.linspace(0, len(index) - 1, COUNTED_CLIPS).astype(int))
    starts = [
        (index.clip_rows[clip], start, index.frames_of(clip))
        for clip in chosen
        if not index.is_slower(clip)
        for start in range(index.last_start(clip) + 1)
    ]
    for rows, start, num_frames in starts[:: max(1, -(-len(starts) // COUNTED))]:
        frames = np.array(rows.taken(start, num_frames))
        inside = frames[frames < len(rows)]
        if len(inside) > 1:
            yield np.diff(rows.time_s[inside])


def uneven_windows_text(windows: Windows) -> str:
    """What is uneven about the windows of a split, and which rates would not be; "" where nothing
    is. Raises BadInput where their settings refuse it."""
    settings = windows.settings
    if settings.span == "clip" or not (found := unevenness(windows.index).text):
        return ""
    facts, videos = windows.manifest.facts, {clip.video_id for clip in windows.index.clips}
    rates = rates_of(probe.fps for video in videos if (probe := facts.get(video)) is not None)
    cached_fps = windows.cache.cache_spec.frames.rate
    asked = [fps for fps in (cached_fps, settings.fps) if fps is not None]
    why = next((text for fps in asked if (text := uneven_text(rates, fps))), "")
    hint = why or "their videos have a variable rate, or speeds that divide no rate"
    text = f"{found} (split '{windows.split}'): {hint}"
    if settings.uneven == "refuse":
        raise BadInput(text, 'choose such rates, or windows.uneven = "warn"')
    return text
