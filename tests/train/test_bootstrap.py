"""Videos drawn with replacement: the numbers of one draw for all, in memory that does not grow with
videos or resamples."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from pipeline.train import bootstrap as module
from pipeline.train.bootstrap import (
    RESAMPLES,
    bootstrap,
    bootstrap_columns,
    interval,
    median_interval,
)

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


@pytest.mark.parametrize("block_numbers", [module.BLOCK_NUMBERS, 40])
@pytest.mark.parametrize("seed", range(2))
def test_a_median_is_that_of_the_values_as_often_as_they_weigh(seed, block_numbers, monkeypatch):
    """Whole weights, several values of a window, ties, and values that have no say; in one block
    and in many."""
    monkeypatch.setattr(module, "BLOCK_NUMBERS", block_numbers)
    monkeypatch.setattr(module, "RESAMPLES", 200)
    rng = np.random.default_rng(seed)
    videos = ["b", "a", "a", "c", "d", "b", "e"]
    scores = rng.integers(1, 6, (7, 2)).astype(np.float64)
    weights = rng.integers(0, 3, (7, 2)).astype(np.float64)
    weights[3], weights[0, 0] = 0, 2  # nothing of c has a say
    scores[weights == 0] = np.nan

    def values_of(names):
        """Every value of these videos, as often as it weighs."""
        return [
            score
            for name in names
            for video, row, weight in zip(videos, scores, weights, strict=True)
            if video == name
            for score, times in zip(row, weight.astype(int), strict=True)
            for score in [score] * times
        ]

    counted = sorted({v for v, w in zip(videos, weights, strict=True) if w.any()})
    found = median_interval(scores, videos, weights, seed=seed)
    assert found.score == np.median(values_of(counted))
    drawn_RV = np.random.default_rng(seed).integers(0, len(counted), (200, len(counted)))
    medians = [np.median(values_of([counted[number] for number in row])) for row in drawn_RV]
    assert [found.low, found.high] == pytest.approx(np.percentile(medians, [2.5, 97.5]).tolist())
    assert found.low < found.high


def test_a_median_of_one_video_has_no_interval():
    found = median_interval(np.array([3.0, 1, 2, 9]), ["a"] * 4, np.array([1.0, 1, 1, 0]))
    assert (found.score, found.low, found.high) == (2.0, None, None)
    even = median_interval(np.array([1.0, 4]), ["a", "a"], np.ones(2))
    assert even.score == 2.5
