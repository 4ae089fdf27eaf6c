"""Rates that step evenly over a video are named, and how far the steps of others differ."""

from __future__ import annotations

import pytest

from pipeline.video.even_rates import even_rates, rates_of, rates_text, steps_differ, uneven_text


@pytest.mark.parametrize(
    ("native_fps", "fps", "differ"),
    [
        (25, 12, 0.44),
        (30, 12, 0.2),
        (29.97, 12, 0.2),
        (10, 6, 0.4),
        (24, 12, 0),
        (29.97, 15, 0),
        (25, 8.33, 0),
        (10, 12, 0),
        (25, 24, 0.92),
    ],
)
def test_how_far_steps_differ(native_fps, fps, differ):
    assert steps_differ(native_fps, fps) == pytest.approx(differ, abs=0.005)


def test_even_rates_near_one_are_named():
    assert uneven_text(rates_of([25.0, 25.0]), 12) == (
        "25 frames a second: 5, 6.25, 8.33, 12.5 or 25 would be even; steps at 12 differ by 44 %"
    )
    assert uneven_text(rates_of([30 / 1.001]), 15) == uneven_text(rates_of([None]), 12) == ""
    mixed = rates_of([25.0] * 120 + [30 / 1.001] * 5 + [24.0] * 2)
    assert uneven_text(mixed, 12) == (
        "frames a second 25 (120), 29.97 (5), 24 (2): 5 would be even for 125 of 127 videos; "
        "steps at 12 differ by 44 % in 125 of 127 videos"
    )


def test_every_rate_that_is_named_is_even_as_it_is_written():
    for native_fps in (10, 12, 15, 23.98, 24, 25, 29.97, 30, 50, 59.94, 60, 120):
        named, served = even_rates({native_fps: 1}, native_fps / 2.6)
        assert served == 1 and named == sorted(named)
        text = uneven_text({native_fps: 1}, native_fps / 2.6)
        names = text.partition(": ")[2].partition(" would")[0].replace(" or", ",").split(", ")
        assert len(names) == len(named)
        assert all(steps_differ(native_fps, float(name)) == 0 for name in names), names


def test_a_manifest_says_which_rates_fit_its_videos():
    assert rates_text(rates_of([25.0])) == (
        "25 frames a second: 5, 6.25, 8.33, 12.5 or 25 give even steps"
    )
    assert rates_text(rates_of([25.0, 30.0, 30.0])) == (
        "frames a second 30 (2), 25 (1): 2.5 or 5 give even steps for all 3 videos"
    )
    assert rates_text(rates_of([])) == ""
