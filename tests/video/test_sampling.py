"""The frame that stands for an instant is the one on screen then, whoever asks: extraction, windows,
streams."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import Stride
from pipeline.video.sampling import (
    TOLERANCE_S,
    Sampler,
    StreamClock,
    are_sampled,
    clock_s,
    first_instant,
    frame_on_screen,
    frames_on_screen,
    sampled_for_s,
)

GAPS_MS = st.lists(st.integers(1, 400) | st.sampled_from([33, 34, 1500]), min_size=1, max_size=40)
RATES = st.floats(0.3, 130) | st.sampled_from([4, 5, 6, 12, 25, 30, 1000])


def times(gaps_ms: list[int], first_s: float) -> np.ndarray:
    return first_s + np.cumsum([0, *gaps_ms]) / 1000


def on_screen(times_s: list[float], instant_s: float) -> int:
    """The rule said slowly: the last frame whose time is not after the instant, give or take 1 ms
    or half the time since the frame before."""
    earlier = [times_s[0], *times_s[:-1]]
    tolerances_s = [
        min(TOLERANCE_S, (time_s - before_s) / 2)
        for time_s, before_s in zip(times_s, earlier, strict=True)
    ]
    shown = [i for i, time_s in enumerate(times_s) if time_s - tolerances_s[i] <= instant_s]
    return max(shown, default=0)


@given(GAPS_MS, RATES, st.floats(0, 1000), st.floats(-2, 20), st.integers(1, 40))
def test_a_frame_stands_for_the_instants_at_which_it_is_on_screen(
    gaps_ms, fps, first_s, start_s, count
):
    times_s = times(gaps_ms, first_s)
    instants_s = first_s + start_s + np.arange(count) / fps
    rows = frames_on_screen(times_s, first_s + start_s, fps, count)
    # A frame that is late by the tolerance to the last bit may be either side of it.
    near = [on_screen(times_s.tolist(), instant_s + 1e-9) for instant_s in instants_s]
    far = [on_screen(times_s.tolist(), instant_s - 1e-9) for instant_s in instants_s]
    assert ((rows == near) | (rows == far)).all()


@given(GAPS_MS, RATES, st.floats(0, 1000))
def test_extraction_keeps_what_is_on_screen_at_its_instants(gaps_ms, fps, first_s):
    *times_s, end_s = times(gaps_ms, first_s).tolist()
    before = first_instant(end_s, times_s[-1], times_s[0], fps)
    kept = np.flatnonzero(are_sampled(np.array(times_s), end_s, fps))
    assert (
        kept.tolist()
        == np.unique(frames_on_screen(np.array(times_s), times_s[0], fps, before)).tolist()
    )


@given(
    GAPS_MS,
    st.none() | RATES | RATES.map(Stride),
    RATES,
    st.floats(0, 1000),
    st.floats(0, 5),
    st.floats(0, 1),
)
def test_a_stream_answers_about_the_frames_that_a_window_reads(
    gaps_ms, cached, fps, first_s, end_ms, position
):
    """From any frame on, at any rates, on any grid of times."""
    times_s = times(gaps_ms, first_s)
    ends_s = [*times_s[1:].tolist(), times_s[-1] + end_ms / 1000 + 1e-3]
    begin_s = float(times_s[0])
    sampler = Sampler(cached, begin_s, begin_s, 25)
    times_s = times_s[[*map(sampler.keeps, times_s.tolist(), ends_s)]]
    first = int(position * (len(times_s) - 1))
    clock = StreamClock(fps, cached, float(times_s[first] - times_s[0]))
    counts = [*(clock.frame(time_s, begin_s) for time_s in times_s.tolist()), clock.end(ends_s[-1])]
    streamed = np.repeat(np.arange(-1, len(times_s)), counts)
    assert clock.has_begun and counts[0] == 0
    picked_by_s = clock_s(times_s, cached)
    start_s = float(sampled_for_s(picked_by_s, cached, float(times_s[0]))[first])
    read = first + frames_on_screen(picked_by_s[first:], start_s, fps, len(streamed))
    assert streamed.tolist() == read.tolist()


def test_windows_at_the_rate_of_the_cache_take_every_cached_frame_once():
    """Also where 29.97 frames a second have no frame at 5 of them, and wherever a window begins."""
    times_s = np.arange(600) / (30 / 1.001)
    cached_s = times_s[are_sampled(times_s, times_s[-1] + 1 / 30, 5)]
    assert np.ptp(np.diff(cached_s)) > 0.03
    for first, start_s in enumerate(sampled_for_s(cached_s, 5, 0.0)[:-8]):
        rows = frames_on_screen(cached_s, start_s, 5, 8)
        assert rows.tolist() == list(range(first, first + 8))


@pytest.mark.parametrize(("fps", "stride"), [(100, 10), (250, 4), (500, 2), (1000, 1)])
def test_a_thousand_frames_a_second(fps, stride):
    """The tolerance is no more than half the time between two frames."""
    times_s = 7 + np.arange(1000) / 1000
    kept = np.flatnonzero(are_sampled(times_s, 8.0, fps))
    assert kept.tolist() == list(range(0, 1000, stride))


def test_instants_of_a_cache_count_from_the_first_frame_though_it_was_left_out():
    """As a stream counts them, for which the frame that was left out came before."""
    kept_s = np.array([0.2005, 0.4003, 0.6])
    np.testing.assert_allclose(sampled_for_s(kept_s, 5, 0.0), [0.2, 0.4, 0.6])


def test_a_frame_stays_on_screen_until_the_next():
    times_s = np.array([2.0, 2.5, 4.0])
    assert [frame_on_screen(times_s, at_s) for at_s in (0, 2.4, 2.4995, 3.9, 9)] == [0, 0, 1, 1, 2]
    assert frames_on_screen(times_s, 2.25, 2, 5).tolist() == [0, 1, 1, 1, 2]


def test_a_stream_begins_where_it_is_told_to():
    clock = StreamClock(4, None, 1.2)
    assert [clock.frame(time_s, 5.0) for time_s in (5.0, 5.5, 6.0, 6.5)] == [0, 0, 0, 2]
    assert clock.end(7.0) == 2
    late = StreamClock(4, None, 3)
    assert late.frame(5.0, 5.0) == late.end(7.0) == 0 and not late.has_begun
