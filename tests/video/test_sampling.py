"""The frame that stands for an instant is the one on screen then, whoever asks: extraction, windows,
streams."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import Step, Stride
from pipeline.video.sampling import (
    TOLERANCE_S,
    Sampler,
    StreamClock,
    are_sampled,
    clock_of,
    counting,
    first_instant,
    frame_on_screen,
    frames_taken,
)

GAPS_MS = st.lists(st.integers(1, 400) | st.sampled_from([33, 34, 1500]), min_size=1, max_size=40)
RATES = st.floats(0.3, 130) | st.sampled_from([4, 5, 6, 12, 25, 30])


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


@given(GAPS_MS, st.floats(0, 1000), st.floats(-2, 20))
def test_the_frame_on_screen_is_the_last_that_is_not_after_an_instant(gaps_ms, first_s, start_s):
    times_s = times(gaps_ms, first_s)
    found = frame_on_screen(times_s, first_s + start_s)
    # A frame that is late by the tolerance to the last bit may be either side of it.
    near, far = (
        on_screen(times_s.tolist(), first_s + start_s + late_s) for late_s in (1e-9, -1e-9)
    )
    assert found in (near, far)


@given(GAPS_MS, st.integers(0, 39), RATES, st.integers(1, 40))
def test_a_window_takes_the_frames_that_are_on_screen_at_its_instants(gaps_ms, first, fps, count):
    """Each a step after the one before, or where that lies a millisecond or a 500th of a step off
    the moment at which a frame appears, from that moment on."""
    times_s = times(gaps_ms, 3.0)
    first, step_s = min(first, len(times_s) - 2), 1 / fps
    near_s = TOLERANCE_S + step_s / 500
    frames = frames_taken(times_s, first, Step(step_s), count)
    assert frames[0] == first and (np.diff(frames) >= 0).all()
    instant_s = times_s[first]
    for frame in frames:
        gone_s = times_s[frame + 1] if frame < len(times_s) - 1 else np.inf
        half_s = (gone_s - times_s[frame]) / 2
        assert times_s[frame] - near_s <= instant_s < gone_s - min(near_s, half_s) + 1e-9
        is_near = instant_s - times_s[frame] <= near_s
        instant_s = (times_s[frame] if is_near else instant_s) + step_s


@given(GAPS_MS, RATES, st.floats(0, 1000))
def test_extraction_keeps_what_is_on_screen_at_its_instants(gaps_ms, fps, first_s):
    *times_s, end_s = times(gaps_ms, first_s).tolist()
    before = first_instant(end_s, times_s[-1], times_s[0], fps)
    kept = set(np.flatnonzero(are_sampled(np.array(times_s), end_s, fps)).tolist())
    instants_s = times_s[0] + np.arange(before) / fps
    near, far = (
        {on_screen(times_s, instant_s + late_s) for instant_s in instants_s}
        for late_s in (1e-9, -1e-9)
    )
    assert near & far <= kept <= near | far


@given(
    GAPS_MS,
    st.none() | RATES | RATES.map(Stride) | st.integers(2, 5).map(lambda n: Stride(every=n)),
    RATES | st.none(),
    st.integers(1, 4),
    st.floats(0, 1000),
    st.floats(0, 5),
    st.floats(0, 1),
)
def test_a_stream_answers_about_the_frames_that_a_window_reads(
    gaps_ms, cached, fps, times_as_slow, first_s, end_ms, position
):
    """From any frame on, at any rates, those among them that divide the cache's, on any grid of
    times; and where windows count cached frames."""
    step = Step(1 / fps) if fps else Step(times_as_slow, in_rows=True)
    if fps is None and isinstance(cached, float | int) and times_as_slow > 1:
        step = Step(times_as_slow / cached)
    times_s = times(gaps_ms, first_s)
    ends_s = [*times_s[1:].tolist(), times_s[-1] + end_ms / 1000 + 1e-3]
    begin_s = float(times_s[0])
    sampler = Sampler(cached, begin_s, begin_s, 25)
    times_s = times_s[[*map(sampler.keeps, times_s.tolist(), ends_s)]]
    first = int(position * (len(times_s) - 1))
    clock = StreamClock(step, cached, float(times_s[first] - times_s[0]))
    counts = [*(clock.frame(time_s, begin_s) for time_s in times_s.tolist()), clock.end(ends_s[-1])]
    streamed = np.repeat(np.arange(-1, len(times_s)), counts)
    assert clock.has_begun and counts[0] == 0
    clock_E = clock_of(np.append(times_s, ends_s[-1]), counting(cached, step))
    assert streamed.tolist() == frames_taken(clock_E, first, step, len(streamed))


@pytest.mark.parametrize(("fps", "stride"), [(100, 10), (250, 4), (500, 2), (1000, 1)])
def test_a_thousand_frames_a_second(fps, stride):
    """The tolerance is no more than half the time between two frames."""
    times_s = 7 + np.arange(1000) / 1000
    kept = np.flatnonzero(are_sampled(times_s, 8.0, fps))
    assert kept.tolist() == list(range(0, 1000, stride))


def test_a_frame_stays_on_screen_until_the_next():
    times_s = np.array([2.0, 2.5, 4.0])
    assert [frame_on_screen(times_s, at_s) for at_s in (0, 2.4, 2.4995, 3.9, 9)] == [0, 0, 1, 1, 2]
    assert frames_taken(times_s, 0, Step(0.5), 6) == [0, 1, 1, 1, 2, 2]


def test_a_stream_begins_where_it_is_told_to():
    clock = StreamClock(Step(1 / 4), None, 1.2)
    assert [clock.frame(time_s, 5.0) for time_s in (5.0, 5.5, 6.0, 6.5)] == [0, 0, 0, 2]
    assert clock.end(7.0) == 2
    late = StreamClock(Step(1 / 4), None, 3)
    assert late.frame(5.0, 5.0) == late.end(7.0) == 0 and not late.has_begun
