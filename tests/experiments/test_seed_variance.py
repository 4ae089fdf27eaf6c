"""What other seeds would have scored, as all settings of a sweep know it together: closed forms, known priors, coverage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.experiments.seed_variance import (
    MIN_POINTS,
    SeedVariance,
    moderated,
    seed_variances,
    trigamma_inverse,
)

STUDENT_975 = {1: 12.706, 2: 4.303}
"""Degrees of freedom -> the 97.5 % point of Student's t."""


def scores_of(table_KS):
    return {
        f"setting {k}": dict(enumerate(row.tolist())) for k, row in enumerate(np.asarray(table_KS))
    }


def half_widths(spreads, count=1000):
    """Half the width of each 95 % interval."""
    return np.array([np.percentile(np.abs(spread.draws(count)), 95) for spread in spreads.values()])


@pytest.mark.parametrize("value", [1e-12, 1e-4, 0.1, 1.0, 4.9348, 60.0, 400.0])
def test_trigamma_is_inverted(value):
    y = trigamma_inverse(value)
    assert float(torch.polygamma(1, torch.tensor(y, dtype=torch.float64))) == pytest.approx(
        value, rel=1e-8
    )


def test_trigamma_by_closed_forms():
    """trigamma(1) = pi^2 / 6 and trigamma(1/2) = pi^2 / 2."""
    assert [trigamma_inverse(np.pi**2 / 6), trigamma_inverse(np.pi**2 / 2)] == pytest.approx(
        [1, 0.5], rel=1e-8
    )


@pytest.mark.parametrize(("prior_freedom", "freedom"), [(4.0, 2.0), (10.0, 1.0), (3.0, 5.0)])
def test_a_known_prior_is_found_and_its_posterior_is_the_better_guess(prior_freedom, freedom):
    """True variances drawn from the prior 0.7: their precisions near one sample variance have the posterior's as their mean."""
    rng = np.random.default_rng(0)
    true = 0.7 * prior_freedom / rng.chisquare(prior_freedom, 400_000)
    seen = true * rng.chisquare(freedom, len(true)) / freedom
    found, known = moderated(seen, np.full(len(true), freedom))
    np.testing.assert_allclose(known, prior_freedom + freedom, rtol=0.06)
    np.testing.assert_allclose(
        found, (prior_freedom * 0.7 + freedom * seen) / (prior_freedom + freedom), rtol=0.06
    )
    near = np.abs(seen - 0.7) < 0.02
    assert (1 / true[near]).mean() == pytest.approx((1 / found[near]).mean(), rel=0.06)


def test_variances_that_differ_by_chance_alone_are_pooled():
    variance_K, freedom_K = np.array([1.0, 1.1, 0.9, 1.2]), np.array([2.0, 2.0, 2.0, 4.0])
    found, known = moderated(variance_K, freedom_K)
    assert found.tolist() == pytest.approx([(2 + 2.2 + 1.8 + 4.8) / 10] * 4)
    assert known.tolist() == [10] * 4


def test_variances_of_0_are_moderated_and_tell_nothing_of_the_prior():
    rng = np.random.default_rng(1)
    variance_K = rng.chisquare(3, 40) / 3 * np.exp(rng.normal(size=40))
    alone, known = moderated(variance_K, np.full(40, 3.0))
    beside, known_beside = moderated(np.append(variance_K, 0.0), np.full(41, 3.0))
    assert beside[:40] == pytest.approx(alone) and known_beside[:40] == pytest.approx(known)
    assert 0 < beside[40] < beside[:40].min()
    nothing, _ = moderated(np.zeros(5), np.full(5, 2.0))
    assert nothing.tolist() == [0] * 5


@pytest.mark.parametrize("settings", [1, 2, MIN_POINTS - 1])
@pytest.mark.parametrize("seeds", [2, 3])
def test_few_settings_have_the_interval_of_student(settings, seeds):
    table_KS = np.random.default_rng(settings).normal(size=(settings, seeds))
    for spread, score_S in zip(seed_variances(scores_of(table_KS)).values(), table_KS, strict=True):
        error = score_S.std(ddof=1) / np.sqrt(seeds)
        assert spread == SeedVariance(pytest.approx(error), seeds - 1, 0, 1)
        assert np.percentile(spread.draws(100_000), 97.5) == pytest.approx(
            STUDENT_975[seeds - 1] * error, rel=0.05
        )


def test_one_seed_knows_nothing_of_others():
    spreads = seed_variances(scores_of(np.arange(6.0)[:, None]))
    assert all(np.all(spread.draws(100) == 0) for spread in spreads.values()) and len(spreads) == 6
    assert seed_variances({}) == {}


def test_copies_of_one_setting_are_one_witness():
    """Settings that a seed moves alike, as nearly lossless codecs: Student's t, however many; and their gains are certain."""
    seed_effect_S = np.array([0.3, -0.1, 0.4])
    spreads = seed_variances(scores_of(np.arange(8.0)[:, None] + seed_effect_S))
    for spread in spreads.values():
        assert (spread.common, spread.common_freedom) == (
            pytest.approx(seed_effect_S.std(ddof=1) / np.sqrt(3)),
            2,
        )
        assert spread.own == pytest.approx(0, abs=1e-9)


def test_a_restless_setting_is_not_talked_down():
    table_KS = 0.01 * np.random.default_rng(0).normal(size=(10, 3))
    table_KS[4] = [-3, 0, 3]
    spreads = list(seed_variances(scores_of(table_KS)).values())
    left = table_KS[4] - table_KS.mean(0)
    assert spreads[4].own >= left.std(ddof=1) / np.sqrt(3)
    assert spreads[4].own > 1.5 * max(
        spread.own for place, spread in enumerate(spreads) if place != 4
    )


def test_a_setting_that_lost_its_seeds_borrows():
    rng = np.random.default_rng(0)
    scores = scores_of(rng.normal(size=(8, 3)))
    whole = seed_variances(scores)
    lost = scores | {"one left": {1: 0.5}, "two left": {0: 0.5, 2: 1.0}}
    found = seed_variances(lost)
    assert {name: found[name].common for name in whole} == pytest.approx(
        {name: one.common for name, one in whole.items()}
    )
    assert found["one left"].common == pytest.approx(np.sqrt(3) * whole["setting 0"].common)
    assert found["one left"].own > found["two left"].own > 0
    assert found["one left"].own == pytest.approx(
        np.sqrt(3) * np.median([one.own for one in whole.values()]), rel=0.5
    )


def test_the_order_of_settings_and_seeds_and_the_sign_change_nothing():
    scores = scores_of(np.random.default_rng(0).normal(size=(9, 3)))
    turned = {name: dict(reversed(of.items())) for name, of in reversed(scores.items())}
    minus = {name: {seed: -score for seed, score in of.items()} for name, of in scores.items()}
    assert seed_variances(turned) == seed_variances(scores) == seed_variances(minus)


def test_draws_of_another_stream_are_independent():
    spread = SeedVariance(1.0, 5, 1.0, 5)
    first, same, other = spread.draws(20_000), spread.draws(20_000), spread.draws(20_000, stream=1)
    assert np.array_equal(first, same)
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.05


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize(
    "spread_K",
    [
        [1.0] * 10,
        [1.0] * 5 + [3.0] * 5,
        np.linspace(1, 3, 10),
        [3.0] + [1.0] * 9,
        [0.1] + [1.0] * 9,
    ],
    ids=["equal", "half", "ladder", "reference restless", "reference quiet"],
)
@pytest.mark.parametrize("shared", [0.0, 2.0])
def test_coverage(seeds, spread_K, shared):
    """Ten settings, the seed alone decides: scores and gains over the first hold the truth at least 93 times in 100, and with
    intervals that are narrower than Student's of each. `shared`: what a seed does to all alike."""
    rng = np.random.default_rng(seeds)
    held, gained, widths, trials = [], [], [], 60
    for _ in range(trials):
        table_KS = np.asarray(spread_K)[:, None] * rng.normal(
            size=(10, seeds)
        ) + shared * rng.normal(size=seeds)
        gain_KS = table_KS[1:] - table_KS[0]
        of_scores, of_gains = (
            half_widths(seed_variances(scores_of(each))) for each in (table_KS, gain_KS)
        )
        held.append(np.abs(table_KS.mean(1)) <= of_scores)
        gained.append(np.abs(gain_KS.mean(1)) <= of_gains)
        student = [
            STUDENT_975[seeds - 1] * each.std(1, ddof=1) / np.sqrt(seeds)
            for each in (table_KS, gain_KS)
        ]
        widths.append([of_scores.mean(), student[0].mean(), of_gains.mean(), student[1].mean()])
    assert 0.93 <= np.mean(held) <= 1 and 0.93 <= np.mean(gained) <= 1
    score, plain_score, gain, plain_gain = np.mean(widths, axis=0)
    assert gain < plain_gain * 1.02 and score < plain_score * 1.02
    if not shared:
        assert score < {2: 0.6, 3: 0.87}[seeds] * plain_score
