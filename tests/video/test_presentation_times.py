"""Times that files give to frames: which are believed, and what stands in for the others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.media import encode, read
from support.paths import SHARED

from pipeline.video.decode import LOOK_BACK, decode_at
from pipeline.video.presentation_times import (
    REORDERED,
    Stamp,
    in_order_shown,
    presentation_times,
)

FOUND = SHARED / "found"
STEP_S = 0.04
EVEN = [k * STEP_S for k in range(120)]


def judged(
    shown_s: Sequence[float | None],
    decoded_s: Sequence[float | None] | None = None,
    interval_s: float = STEP_S,
) -> list[float]:
    """The times that frames get whose file gives them `shown_s`."""
    stamps = [
        Stamp(*pair) for pair in zip(shown_s, decoded_s or [None] * len(shown_s), strict=True)
    ]
    given_times = list(presentation_times(enumerate(stamps), interval_s))
    assert [frame for frame, _ in given_times] == list(range(len(stamps)))
    times_s = [time_s for _, time_s in given_times]
    assert all(after > before for before, after in zip(times_s, times_s[1:], strict=False))
    return times_s


def changed(times: Sequence[float | None], damage: dict[int, float | None]) -> list[float | None]:
    return [damage.get(place, time_s) for place, time_s in enumerate(times)]


# What is right is not touched

# Steps of whole ticks: constant, variable and with gaps.
ticks = st.lists(st.integers(1, 5) | st.integers(1, 100_000), min_size=1, max_size=80)


@given(ticks, st.integers(-(10**6), 10**6), st.sampled_from([1e-3, 1 / 90_000]))
def test_rising_times_pass_unchanged(steps, first, tick_s):
    times_s = [tick * tick_s for tick in np.cumsum([first, *steps]).tolist()]
    assert judged(times_s) == times_s


def test_without_any_times_frames_follow_at_the_interval():
    times_s = judged([None] * 50, interval_s=0.1)
    wanted_s = [0.0]
    for _ in range(49):
        wanted_s.append(wanted_s[-1] + 0.1)
    assert times_s == wanted_s
    assert judged([0.0] * 50, interval_s=0.1) == wanted_s


def test_frames_are_taken_one_ahead_while_nothing_is_doubtful():
    taken = []

    def frames() -> Iterator[tuple[int, Stamp]]:
        for k, time_s in enumerate(EVEN):
            taken.append(k)
            yield k, Stamp(time_s)

    for k, _ in presentation_times(frames(), STEP_S):
        assert len(taken) <= k + 3


# One bad time, or a few


@pytest.mark.parametrize("place", [0, 1, 2, 40, 117, 118])
@pytest.mark.parametrize("by_s", [37_600.04, 316.0, 0.29, -0.29, -37_600.04])
def test_one_stray_time_changes_its_frame_alone(place, by_s):
    if place == 0 and by_s == -0.29:
        pytest.skip("a first frame that is long on screen")
    times_s = judged(changed(EVEN, {place: EVEN[place] + by_s}))
    assert times_s[:place] == EVEN[:place]
    assert times_s[place + 1 :] == EVEN[place + 1 :]
    assert times_s[place] == pytest.approx(EVEN[place], abs=1e-9)


@pytest.mark.parametrize("place", range(1, 119, 13))
def test_a_doubled_time_changes_its_frame_alone(place):
    times_s = judged(changed(EVEN, {place: EVEN[place - 1]}))
    assert times_s[:place] + times_s[place + 1 :] == EVEN[:place] + EVEN[place + 1 :]
    assert times_s[place] == pytest.approx(EVEN[place], abs=1e-9)


@pytest.mark.parametrize("run", [2, 3, 5, 10, 15])
@pytest.mark.parametrize("by_s", [316.0, -316.0, None])
def test_stray_times_in_a_row(run, by_s):
    damage = {k: None if by_s is None else EVEN[k] + by_s for k in range(50, 50 + run)}
    times_s = judged(changed(EVEN, damage))
    assert times_s[:50] + times_s[50 + run :] == EVEN[:50] + EVEN[50 + run :]
    np.testing.assert_allclose(times_s, EVEN, atol=1e-9)


@pytest.mark.parametrize("constant_s", [0.0, 1.0, 5e4])
def test_a_constant_in_place_of_many_times(constant_s):
    times_s = judged(changed(EVEN, dict.fromkeys(range(40, 50), constant_s)))
    np.testing.assert_allclose(times_s, EVEN, atol=1e-9)


@given(
    st.sets(st.integers(0, 29), min_size=1, max_size=8),
    st.data(),
)
def test_stray_times_here_and_there(places, data):
    good_s = [k * STEP_S for k in range(160)]
    damage: dict[int, float | None] = {
        5 * place + 2: data.draw(
            st.none() | st.sampled_from([37_600.0, -37_600.0, 316.2]) | st.floats(-1e6, 1e6)
        )
        for place in places
    }
    times_s = judged(changed(good_s, damage))
    wrong = [k for k, (ours, good) in enumerate(zip(times_s, good_s, strict=True)) if ours != good]
    # A stray time that by chance comes after its neighbour and before the next may be any of two.
    assert all(any(abs(k - place) <= 1 for place in damage) for k in wrong)
    assert len(wrong) <= len(damage)
    np.testing.assert_allclose(times_s, good_s, atol=1.5 * STEP_S)


@pytest.mark.parametrize("interval_s", [0.0001, 1 / 30, 0.24, 300.0])
def test_a_substitute_goes_at_most_half_the_way_to_the_next_good_time(interval_s):
    good_s = [0.5 * k for k in range(10)] + [4.6 + 0.01 * k for k in range(30)]
    good_s += [5 + 0.5 * k for k in range(20)]
    times_s = judged(changed(good_s, {13: good_s[12]}), interval_s=interval_s)
    assert times_s[:13] + times_s[14:] == good_s[:13] + good_s[14:]
    assert good_s[12] < times_s[13] <= (good_s[12] + good_s[14]) / 2 + 1e-5


# At the ends, where only one neighbour is there


def test_the_last_time_is_judged_by_its_decode_time():
    decoded_s = [time_s - 0.005 for time_s in EVEN]
    for run in (1, 2, 5):
        damage = {k: EVEN[k] + 316 for k in range(120 - run, 120)}
        np.testing.assert_allclose(judged(changed(EVEN, damage), decoded_s), EVEN, atol=1e-9)
    # A frame that truly comes long after the others has a late packet as well.
    late_s = [*EVEN, EVEN[-1] + 316]
    assert judged(late_s, [*decoded_s, decoded_s[-1] + 316]) == late_s
    assert judged(late_s) == late_s
    assert judged([*EVEN, EVEN[-1] + 7200])[-1] == pytest.approx(120 * STEP_S)


def test_the_first_time_is_judged_by_its_decode_time():
    decoded_s = [time_s - 2 * STEP_S for time_s in EVEN]
    times_s = judged(changed(EVEN, {0: -316.0}), decoded_s)
    np.testing.assert_allclose(times_s, EVEN, atol=1e-9)
    # A gap after the first frame.
    gap_s = [0.0, *[time_s + 30 for time_s in EVEN]]
    assert judged(gap_s, [-0.04, -0.0, *gap_s[1:-1]]) == gap_s
    assert judged(changed(EVEN, {0: -7200.0}))[0] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.mkv"])
@pytest.mark.parametrize("late", [1, 2, 4, 39])
def test_a_gap_before_the_last_frames_where_frames_are_reordered(tmp_path, name, late):
    """The decode times of the last packets come before the gap."""
    good_s = [k * STEP_S + (30 if k >= 40 - late else 0) for k in range(40)]
    path = encode(tmp_path / name, numbered(40), times_s=good_s, rate=25, options={"bf": "2"})
    _, times_s, _ = read(path)
    np.testing.assert_allclose(times_s - times_s[0], good_s, atol=1e-3)


def test_first_frames_without_a_time_come_before_the_first_that_has_one():
    times_s = judged([None, None, *[1.48 + time_s for time_s in EVEN]])
    np.testing.assert_allclose(times_s[:3], [1.40, 1.44, 1.48])


# Gaps, and clocks that are set


@pytest.mark.parametrize("after", [2, 3, 60, 117])
def test_a_gap_that_stays_is_kept(after):
    good_s = EVEN[:after] + [time_s + 30 for time_s in EVEN[after:]]
    assert judged(good_s) == good_s
    # A stray time in the gap, or right before or after it, is not the end of it.
    for place in {after - 1, after, after + 1} - {1, 2, 118}:
        times_s = judged(changed(good_s, {place: good_s[place] - 10}))
        assert len([1 for ours, good in zip(times_s, good_s, strict=True) if ours != good]) <= 1


@pytest.mark.parametrize("back_s", [0.2, 0.7, 2.0, 60.0])
def test_times_go_on_where_the_clock_was_set_back(back_s):
    times_s = judged(EVEN[:60] + [time_s - back_s for time_s in EVEN[60:]])
    np.testing.assert_allclose(times_s, EVEN, atol=1e-9)
    assert times_s[:60] == EVEN[:60]


def test_a_clock_that_was_set_back_keeps_its_gaps_and_errors_apart():
    back_s = [time_s - 2.4 for time_s in EVEN[60:]]
    second = [*back_s[:40], *[time_s + 1 for time_s in back_s[40:]]]
    good_s = [*EVEN[:100], *[time_s + 1 for time_s in EVEN[100:]]]
    np.testing.assert_allclose(judged(EVEN[:60] + second), good_s, atol=1e-9)
    for stray in (20, 30):
        times_s = judged(EVEN[:60] + changed(second, {stray: second[stray - 1]}))
        np.testing.assert_allclose(times_s, good_s, atol=1e-9)


def test_a_clock_that_comes_back_to_itself_is_believed_again():
    times_s = judged(EVEN[:20] + [time_s - 0.7 for time_s in EVEN[20:80]] + EVEN[80:])
    np.testing.assert_allclose(times_s, EVEN, atol=1e-9)


@given(
    st.lists(st.none() | st.integers(-50, 50) | st.integers(-(10**9), 10**9), max_size=120),
    st.sampled_from([1 / 25, 1e-3, 1.0]),
)
def test_times_rise_whatever_the_file_says(ticks, interval_s):
    times_s = judged([None if tick is None else tick / 1000 for tick in ticks], None, interval_s)
    assert all(math.isfinite(time_s) for time_s in times_s)


# From the middle


@given(st.data())
def test_from_the_middle_no_frame_gets_the_time_of_another(data):
    """After a seek earlier times are not known. A frame may get another time then, and the way from
    the beginning is taken; never may it get the time that is another frame's."""
    steps = data.draw(st.lists(st.sampled_from([40, 40, 40, 40, 7, 900]), min_size=40, max_size=90))
    good = np.cumsum([0, *steps]).tolist()
    damage = data.draw(
        st.dictionaries(
            st.integers(0, len(good) - 1),
            st.none() | st.integers(-(10**6), 10**6) | st.sampled_from([37_600_000, 0]),
            max_size=8,
        )
    )
    doubled = data.draw(st.sets(st.integers(1, len(good) - 1), max_size=4))
    file_ms = changed(good, damage | {k: good[k - 1] for k in doubled})
    file_s = [None if ms is None else ms / 1000 for ms in file_ms]
    whole_s = judged(file_s)
    first = data.draw(st.integers(0, len(good) - 1))
    part_s = judged(file_s[first:])
    place_of = {time_s: place for place, time_s in enumerate(whole_s)}
    if file_s[first] is None:
        return  # `decode_at` does not begin at such a frame
    for place, time_s in enumerate(part_s, first):
        if time_s > file_s[first] + LOOK_BACK * STEP_S:  # as `decode_at` begins
            assert place_of.get(time_s, place) == place


# Files that have decode times alone


def test_reordered_frames_take_decode_times_in_order():
    decoded = [0, 2, 3, 1, 5, 6, 4, 7]
    stamps = [(k, Stamp(float(tick))) for k, tick in enumerate(decoded)]
    assert [stamp.shown_s for _, stamp in in_order_shown(iter(stamps))] == list(
        map(float, range(8))
    )


def test_packets_without_a_frame_leave_a_gap():
    decoded = [tick for tick in [20, 22, 23, 21, 25, 26, 24, *range(30, 90)] if tick != 40]
    stamps = [(k, Stamp(float(tick))) for k, tick in enumerate(decoded)]
    ordered = [stamp.shown_s for _, stamp in in_order_shown(iter(stamps))]
    assert ordered == sorted(map(float, decoded))
    assert len(ordered) > REORDERED


# Files


def numbered(count: int) -> list[np.ndarray]:
    """Frames that tell their number: bit b is the brightness of stripe b."""
    frames = np.full((count, 48, 64, 3), 20, np.uint8)
    for number in range(count):
        for bit in range(8):
            if number >> bit & 1:
                frames[number, :, 8 * bit : 8 * bit + 8] = 230
    return list(frames)


def number_of(pixels_HWC: np.ndarray) -> int:
    return sum((int(pixels_HWC[24, 8 * bit + 4].mean()) > 127) << bit for bit in range(8))


def mux(
    path: Path,
    shown: Sequence[int],
    tick: Fraction,
    decoded: Sequence[int] | None = None,
    skip: int = 0,
    every_key: int = 10,
) -> Path:
    """A file of numbered frames under the times that are given, without the first `skip` packets."""
    options = {"bf": "0", "g": str(every_key), "crf": "10", "x264-params": "scenecut=0"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        packets = []
        for pixels in numbered(len(shown)):
            packets += stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24"))
        packets += stream.encode(None)
        for number, packet in enumerate(packets[skip:], skip):
            packet.time_base, packet.stream, packet.duration = tick, stream, 0
            packet.pts, packet.dts = shown[number], (decoded or shown)[number]
            container.mux(packet)
    return path


MS, TS = Fraction(1, 1000), Fraction(1, 90_000)
MS_30 = [k * 1000 // 30 for k in range(60)]


def assert_file(path: Path, good_s: Sequence[float], stray: Sequence[int] = ()) -> None:
    """Every frame has its right time, but for those in `stray`, which lie between their neighbours;
    and is found by that time, as pixels."""
    frames, times_s, reason = read(path)
    assert [number_of(pixels) for pixels in frames] == list(range(len(good_s)))
    assert reason == ""
    sound = [k for k in range(len(good_s)) if k not in stray]
    np.testing.assert_allclose(times_s[sound], np.array(good_s)[sound], atol=4e-5)
    assert (np.diff(times_s) > 0).all()
    for first in range(0, len(times_s) - 3, 7):
        found = decode_at(path, times_s[first : first + 3])
        numbers = [number_of(pixels) for block in found for pixels in block.pixels_FHWC]
        assert numbers == list(range(first, first + 3))


@pytest.mark.parametrize("name", ["spike.mkv", "spike.ts", "last.ts", "last.mp4"])
def test_two_stray_times_of_a_file(tmp_path, name):
    stray = (58, 59) if name.startswith("last") else (30, 31)
    shown = [ms + 316_000 if k in stray else ms for k, ms in enumerate(MS_30)]
    scale, tick = (90, TS) if name.endswith(".ts") else (1, MS)
    path = mux(tmp_path / name, [scale * ms for ms in shown], tick, [scale * ms for ms in MS_30])
    assert_file(path, [ms / 1000 for ms in MS_30], stray)


def test_a_recorder_that_stamps_a_frame_hours_ahead_now_and_then(tmp_path):
    good = [k * 40 for k in range(120)]
    shown = [ms + 37_600_000 if k in (40, 80) else ms for k, ms in enumerate(good)]
    path = mux(tmp_path / "dvr.mkv", shown, MS, good)
    assert_file(path, [ms / 1000 for ms in good], (40, 80))


@pytest.mark.parametrize("name", ["dup.mkv", "dup.mp4"])
def test_a_doubled_time_in_a_fast_stretch(tmp_path, name):
    good = [500 * k for k in range(10)] + [4600 + 10 * k for k in range(30)]
    good += [5000 + 500 * k for k in range(20)]
    shown = [good[12] if k == 13 else ms for k, ms in enumerate(good)]
    decoded = None
    if name == "dup.mp4":
        decoded = [ms - 5 for ms in shown]
        decoded[13] = decoded[12] + 1
    path = mux(tmp_path / name, shown, MS, decoded)
    frames, times_s, _ = read(path)
    exact_s = np.array(good) / 1000
    first_s = times_s[0]
    assert len(frames) == 60
    right = [k for k in range(60) if k != 13]
    np.testing.assert_allclose((times_s - first_s)[right], exact_s[right], atol=1e-4)
    assert exact_s[12] < times_s[13] - first_s <= (exact_s[12] + exact_s[14]) / 2 + 1e-4


@pytest.mark.parametrize("name", ["cut.avi", "cut.mkv"])
def test_a_recording_that_begins_between_key_frames(tmp_path, name):
    scale = Fraction(1, 30)
    shown = [k - 10 for k in range(90)]
    path = mux(tmp_path / name, shown, scale, skip=10, every_key=30)
    frames, times_s, _ = read(path)
    assert [number_of(pixels) for pixels in frames] == list(range(30, 90))
    np.testing.assert_allclose(times_s, np.arange(20, 80) / 30, atol=1e-3)
    assert number_of(decode_at(path, times_s[30:31])[0].pixels_FHWC[0]) == 60


def test_joined_recordings_whose_clocks_both_begin_at_zero(tmp_path):
    parts = [
        encode(tmp_path / f"{part}.ts", numbered(200)[part::2], rate=25, options={"g": "25"})
        for part in (0, 1)
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    frames, times_s, _ = read(joined)
    numbers = [number_of(pixels) for pixels in frames]
    assert numbers == [*range(0, 200, 2), *range(1, 200, 2)]
    np.testing.assert_allclose(np.diff(times_s), 0.04, atol=1e-6)
    for first in range(30, 90, 6):
        found = decode_at(joined, times_s[first : first + 3])
        ours = [number_of(pixels) for block in found for pixels in block.pixels_FHWC]
        assert ours == numbers[first : first + 3]


SAID = {
    "inputs_public/dvr.mkv": {41: 1.640, 119: 4.760},
    "inputs_public/dup.mp4": {12: 4.620, 14: 4.640, 59: 14.500},
    "inputs_public/nokey.avi": {0: 0.6667, 59: 2.6333},
    "inputs_public/nokey.mkv": {0: 0.667, 59: 2.633},
    "inputs_public/sar_changes.ts": {0: 1.4, 24: 2.36, 25: 2.40, 49: 3.36},
    "inputs_reliability/halfneg.ts": {0: -3.017689, 99: 0.942311},
}


@pytest.mark.skipif(not FOUND.is_dir(), reason="no found inputs here")
@pytest.mark.parametrize("name", SAID)
def test_times_of_files_that_were_found(name):
    if not (FOUND / name).is_file():
        pytest.skip("not here")
    _, times_s, _ = read(FOUND / name)
    for place, time_s in SAID[name].items():
        assert times_s[place] == pytest.approx(time_s, abs=1e-3), place


def test_a_leap_of_more_than_a_day_is_another_clock():
    """Such as one that wraps: no gap in a recording is as long."""
    shown_s = [*(k / 25 for k in range(10)), *(2147483.648 + k / 25 for k in range(10, 30))]
    frames = ((k, Stamp(time_s)) for k, time_s in enumerate(shown_s))
    times_s = [time_s for _, time_s in presentation_times(frames, 1 / 25)]
    assert times_s == pytest.approx([k / 25 for k in range(30)], abs=1e-6)
    gap = [*(k / 25 for k in range(10)), *(3600 + k / 25 for k in range(10, 30))]
    frames = ((k, Stamp(time_s)) for k, time_s in enumerate(gap))
    assert [time_s for _, time_s in presentation_times(frames, 1 / 25)] == gap
