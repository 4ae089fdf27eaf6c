"""No window repeats a frame, or leaves one out, where the rates allow even steps: at any start, with
exact times and with those that Matroska rounds to a millisecond."""

from __future__ import annotations

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.media import SHARED_CLIPS

from pipeline.records import Rate, Step, Stride
from pipeline.video.sampling import DRIFT, Sampler, clock_of, counting, frames_taken

NTSC = 1000 / 1001
RATES = (10, 12, 15, 24 * NTSC, 24, 25, 30 * NTSC, 30, 50, 60 * NTSC, 60, 120)
"""Frames per second of videos, caches and windows."""
FRAMES = 1300
"""So many that a rate a thousandth off the whole one has slipped by a frame."""
T = 32


def times_of(fps: float, first_s: float, is_rounded: bool) -> np.ndarray:
    """(FRAMES + 1,) when the frames of a video appear, and when the last one ends."""
    times_s = first_s + np.arange(FRAMES + 1) / fps
    return times_s.round(3) if is_rounded else times_s


def cached_of(times_s: np.ndarray, cached: Rate, fps: float) -> np.ndarray:
    """When the frames appear that a cache keeps, and when the video ends."""
    sampler = Sampler(cached, float(times_s[0]), float(times_s[0]), fps)
    kept = [sampler.keeps(*pair) for pair in zip(times_s[:-1], times_s[1:], strict=True)]
    return np.append(times_s[:-1][kept], times_s[-1])


def starts_of(times_s: np.ndarray, last: int) -> list[int]:
    """Some frames to begin a window with: spread over all, and before every uneven step."""
    steps_s = np.diff(times_s)
    uneven = np.flatnonzero(np.abs(steps_s - np.median(steps_s)) > 0.3 * np.median(steps_s))
    near = (uneven[:3, None] - np.arange(0, T, 5)).ravel()
    starts = np.concatenate([np.linspace(0, last, 6).astype(int), near])
    return sorted({int(start) for start in starts if 0 <= start <= last})


def whole(ratio: float, tolerance: float = DRIFT) -> int | None:
    """The whole number that a ratio is as good as; None if it is none."""
    number = round(ratio)
    return number if number and abs(ratio - number) <= tolerance * ratio else None


def lost_frames(times_s: np.ndarray, cached: Rate, fps: float) -> int:
    """The number of frames that a cache lost because their rounded times jitter about its instants,
    as they do for a while every minute where the two rates differ by a thousandth."""
    is_close = isinstance(cached, float) and abs(cached - fps) <= DRIFT * fps
    return int(is_close and (np.diff(times_s) > 1.5 / fps).sum())


def even_step(fps: float, cached: Rate, step: Step) -> int | None:
    """Cached frames in a step of a window, where the rates allow the same number in all."""
    if step.in_rows:
        return int(step.size)
    held = fps
    if isinstance(cached, Stride):
        held = fps / cached.every
    elif cached is not None:
        if fps >= cached * 0.595 and (of_cache := whole(cached * step.size)):
            return of_cache
        if cached < fps:
            of_video = whole(fps / cached, 1e-6)
            held = cached if of_video else 0.0
    return whole(held * step.size) if held else None


@pytest.mark.parametrize("is_rounded", [False, True])
@pytest.mark.parametrize("fps", RATES)
def test_no_window_repeats_or_skips_where_the_rates_allow_even_steps(fps, is_rounded):
    times_s, even = times_of(fps, 7.007, is_rounded), 0
    caches: list[Rate] = [None, Stride(every=2), Stride(every=3), *map(float, RATES)]
    steps = [Step(1 / rate) for rate in RATES] + [Step(2 / 7), Step(1 / 5), Step(3, in_rows=True)]
    for cached in caches:
        cached_s = cached_of(times_s, cached, fps)
        for step in steps:
            apart = even_step(fps, cached, step)
            if apart is None:
                continue
            even += 1
            clock_E = clock_of(cached_s, counting(cached, step))
            for start in starts_of(cached_s, len(cached_s) - 2 - (T - 1) * apart):
                frames = frames_taken(clock_E, start, step, T)
                if lost_frames(cached_s[frames[0] : frames[-1] + 1], cached, fps) > 1:
                    assert (np.diff(frames) >= 1).all()
                    continue
                assert np.diff(frames).tolist() == [apart] * (T - 1), (cached, step, start)
    assert even >= 30


@given(
    st.floats(3, 200),
    st.integers(1, 8),
    st.integers(1, 6),
    st.booleans(),
    st.sampled_from(["all", "every", "time"]),
    st.integers(0, 200),
    st.floats(0, 5000),
)
def test_every_kth_frame_at_any_rate(fps, of_cache, of_window, is_rounded, way, start, first_s):
    """Of a cache of all frames, of every n-th and of the rate that every n-th frame makes, windows
    of a rate that divides that one take every k-th frame, as do windows of every k-th row."""
    times_s = times_of(fps, first_s, is_rounded)
    rates: dict[str, tuple[Rate, float]] = {
        "all": (None, fps),
        "every": (Stride(every=of_cache), fps / of_cache),
        "time": (fps / of_cache, fps / of_cache),
    }
    cached, held = rates[way]
    cached_s = cached_of(times_s, cached, fps)
    last = len(cached_s) - 2 - (T - 1) * of_window
    for step in (Step(of_window / held), Step(of_window, in_rows=True)):
        clock_E = clock_of(cached_s, counting(cached, step))
        frames = frames_taken(clock_E, min(start, max(last, 0)), step, T)
        inside = [frame for frame in frames if frame < len(cached_s) - 1]
        assert len(inside) > 1 and set(np.diff(inside)) == {of_window}


def test_a_frame_that_stays_on_screen_is_taken_again():
    """In a gap, and where a video is slower than three fifths of the rate, whatever the cache
    holds."""
    gap_s = np.concatenate([np.arange(6), np.arange(6, 12) + 3]) / 12
    for cached in (None, 12.0):
        clock_E = clock_of(gap_s, counting(cached, Step(1 / 12)))
        assert frames_taken(clock_E, 3, Step(1 / 12), 8) == [3, 4, 5, 5, 5, 5, 6, 7]
    slow_s = np.arange(8) / 6
    clock_E = clock_of(slow_s, counting(12.0, Step(1 / 12)))
    assert frames_taken(clock_E, 1, Step(1 / 12), 6) == [1, 1, 2, 2, 3, 3]
    assert frames_taken(clock_E, 1, Step(2 / 12), 6) == [1, 2, 3, 4, 5, 6]


CONSTANT = {
    "ucf101_v_ApplyEyeMakeup_g01_c01.avi": 25,
    "kinetics_arm_wrestling.mp4": 28,
    "sam2_cups.mp4": 30,
    "kinetics_flipping_pancake.mkv": 30,
    "corner/corner_314x273_odd.gif": 10,
}
"""Clip -> its frames per second as people write them, whole where the rate is one of NTSC."""
VARIABLE = "corner/corner_phone_rot180_vfr.mp4"


def times_of_packets(source: str) -> np.ndarray:
    """When the frames of a shared clip appear, by its packets."""
    with av.open(str(SHARED_CLIPS / source)) as container:
        stream = container.streams.video[0]
        packets = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
        assert stream.time_base is not None
        return np.sort(np.array(packets)) * float(stream.time_base)


@pytest.mark.skipif(not SHARED_CLIPS.is_dir(), reason="no real clips")
@pytest.mark.parametrize("source", CONSTANT)
def test_real_clips_of_a_constant_rate(source):
    fps, times_s = CONSTANT[source], times_of_packets(source)
    times_s = np.append(times_s, times_s[-1] + 1 / fps)
    for cached, step, apart in (
        (None, Step(1 / fps), 1),
        (None, Step(2 / fps), 2),
        (Stride(every=2), Step(2 / fps), 1),
        (float(fps), Step(2 / fps), 2),
        (12.0, Step(1 / 12), 1),
        (12.0, Step(1 / 6), 2),
        (6.0, Step(3, in_rows=True), 3),
    ):
        cached_s = cached_of(times_s, cached, fps)
        clock_E = clock_of(cached_s, counting(cached, step))
        frames = min(16, (len(cached_s) - 1) // apart)
        for start in range(len(cached_s) - 1 - (frames - 1) * apart):
            taken = np.diff(frames_taken(clock_E, start, step, frames))
            assert taken.tolist() == [apart] * (frames - 1), (cached, step, start)


@pytest.mark.skipif(not SHARED_CLIPS.is_dir(), reason="no real clips")
def test_a_real_clip_of_a_variable_rate_goes_by_time():
    """A phone's, whose frames stay on screen for 8 to 60 ms: windows at the cache's rate keep up
    with it to half a step, and take a frame again where it stays."""
    times_s = times_of_packets(VARIABLE)
    times_s = np.append(times_s, times_s[-1] + 1 / 30)
    assert np.ptp(np.diff(times_s)) > 0.02
    clock_E = clock_of(times_s, counting(None, Step(1 / 20)))
    for start in range(0, len(times_s) - 40, 5):
        frames = frames_taken(clock_E, start, Step(1 / 20), 20)
        wanted_s = times_s[start] + np.arange(20) / 20
        assert np.abs(times_s[frames] - wanted_s).max() < 0.07
