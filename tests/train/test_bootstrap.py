"""Videos drawn with replacement: the numbers of one draw for all, in memory that does not grow with
videos or resamples."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from pipeline.train.bootstrap import RESAMPLES, bootstrap, bootstrap_columns, interval

MEGABYTE = 2**20


def by_video(videos, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=videos), rng.uniform(0.5, 2, videos)


@pytest.mark.parametrize(("videos", "resamples"), [(1, 5), (7, 100), (3000, 2000)])
def test_blocks_draw_what_one_call_draws(videos, resamples):
    """3,000 x 2,000 numbers are two blocks; every mean is the same, bit for bit."""
    sums_V, weights_V = by_video(videos)
    drawn_RV = np.random.default_rng(3).integers(0, videos, (resamples, videos))
    expected = sums_V[drawn_RV].sum(1) / weights_V[drawn_RV].sum(1)
    means = bootstrap(sums_V, weights_V, resamples, np.random.default_rng(3))
    assert np.array_equal(means, expected)
    columns = bootstrap_columns(
        np.stack([sums_V, 2 * sums_V], 1),
        np.stack([weights_V, weights_V], 1),
        resamples,
        np.random.default_rng(3),
    )
    assert columns == pytest.approx(np.stack([expected, 2 * expected], 1), rel=1e-9, abs=1e-12)


def test_memory_is_bounded_at_25000_videos():
    """The validation split of Something-Something v2 has 24,777 videos."""
    videos = 25_000
    sums_V, weights_V = by_video(videos)
    names = [f"{number:06d}" for number in range(videos)]
    tracemalloc.start()
    try:
        found = interval(sums_V / weights_V, names, weights_V)
        _, peak_of_one = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        rng = np.random.default_rng(0)
        bootstrap_columns(np.stack([sums_V], 1), np.stack([weights_V], 1), RESAMPLES, rng)
        _, peak_of_columns = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.low < found.score < found.high
    assert peak_of_one < 160 * MEGABYTE and peak_of_columns < 160 * MEGABYTE
