"""Which rates step evenly over the frames of a video, and how far the steps of others differ.

A video of 25 frames a second has frames 1/25 s apart, so that steps of 1/12 s are now 2 and now 3
of them. Steps are even where the video's rate is a whole multiple of theirs; a rate that is a 500th
off, as those of NTSC are, counts as the whole one beside it. A rate above the video's own takes
every frame, which is even as well.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from pipeline.video.sampling import DRIFT

NAMED = 5
"""Even rates that a sentence names."""
LEAST_FPS = 2.0
"""Lower rates are not named where none is asked for."""
FACTOR = 3
"""Rates that are so many times as high or as low as the one that is asked for are not named."""
LISTED_RATES = 3
"""Rates of videos that a sentence lists; the rest are counted."""


def steps_differ(native_fps: float, fps: float) -> float:
    """The most by which a step of the frames that are on screen every 1 / fps seconds differs from
    1 / fps, as a share of it, in a video of `native_fps` frames per second; 0 where all are
    even."""
    frames = native_fps / fps
    if frames <= 1 or abs(frames - round(frames)) <= DRIFT * frames:
        return 0.0
    return max(1 - math.floor(frames) / frames, math.ceil(frames) / frames - 1)


def rates_of(fps_of_videos: Iterable[float | None]) -> Counter[float]:
    """Frames per second -> number of videos, most frequent first; those whose headers do not say
    are left out."""
    found = Counter(round(fps, 2) for fps in fps_of_videos if fps)
    return Counter(dict(found.most_common()))


def even_rates(
    rates: Mapping[float, int], near_fps: float | None = None
) -> tuple[list[float], int]:
    """Rates in frames per second, ascending, that step evenly over as many of the videos as any
    does, at no more than their own rates; and how many videos that are. Those nearest to
    `near_fps`, or the highest."""
    least, highest = (near_fps / FACTOR, near_fps * FACTOR) if near_fps else (LEAST_FPS, math.inf)
    candidates = {
        _whole(native_fps) / divisor
        for native_fps in rates
        for divisor in range(1, math.ceil(native_fps / least) + 1)
    }
    served = {
        fps: sum(count for native_fps, count in rates.items() if _is_even(native_fps, fps))
        for fps in candidates
        if least <= fps <= highest
    }
    most = max(served.values(), default=0)

    def distance(fps: float) -> float:
        return -fps if near_fps is None else abs(math.log(fps / near_fps))

    best = sorted((fps for fps, count in served.items() if count == most), key=distance)
    return sorted(best[:NAMED]), most


def rates_text(rates: Mapping[float, int]) -> str:
    """Says which rates step evenly over videos of these rates; "" where no rate is known."""
    total, (even, served) = sum(rates.values()), even_rates(rates)
    if not even:
        return ""
    whom = "" if len(rates) == 1 else f" for {_share_text(served, total)}"
    return f"{_natives_text(rates)}: {_or_text(even)} {_verb(even)} even steps{whom}"


def uneven_text(rates: Mapping[float, int], fps: float) -> str:
    """Says how far steps of 1 / fps differ, and which rates would be even; "" where all are
    even."""
    differ = {native_fps: steps_differ(native_fps, fps) for native_fps in rates}
    uneven = {native_fps: rates[native_fps] for native_fps, share in differ.items() if share}
    if not uneven:
        return ""
    total, (even, served) = sum(rates.values()), even_rates(rates, fps)
    where = "" if len(rates) == 1 else f" in {sum(uneven.values())} of {total} videos"
    would = f"{_or_text(even)} would be even" if even else "no rate near it is even"
    would += "" if served == total else f" for {_share_text(served, total)}"
    return (
        f"{_natives_text(rates)}: {would}; "
        f"steps at {fps:g} differ by {100 * max(differ.values()):.0f} %{where}"
    )


def _is_even(native_fps: float, fps: float) -> bool:
    return fps <= native_fps * (1 + DRIFT) and not steps_differ(native_fps, fps)


def _whole(fps: float) -> float:
    """The whole rate that one of NTSC stands for; any other is itself."""
    return float(round(fps)) if abs(fps - round(fps)) <= DRIFT * fps else fps


def _natives_text(rates: Mapping[float, int]) -> str:
    if len(rates) == 1:
        return f"{next(iter(rates)):g} frames a second"
    listed = [f"{fps:g} ({count})" for fps, count in list(rates.items())[:LISTED_RATES]]
    more = len(rates) - len(listed)
    return f"frames a second {', '.join(listed)}{f' and {more} more' if more else ''}"


def _share_text(served: int, total: int) -> str:
    return f"all {total} videos" if served == total else f"{served} of {total} videos"


def _or_text(even: list[float]) -> str:
    *names, last = [_name(fps) for fps in even]
    return f"{', '.join(names)} or {last}" if names else last


def _name(fps: float) -> str:
    """As few digits as say a rate that is as even."""
    name = f"{fps:.3g}"
    return name if abs(float(name) - fps) < 0.75 * DRIFT * fps else f"{fps:.4g}"


def _verb(even: list[float]) -> str:
    return "gives" if len(even) == 1 else "give"
