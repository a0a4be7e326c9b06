"""Intervals and tests against SciPy, closed forms, and coverage in simulations."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.report.statistics import (
    against,
    crossed,
    estimate,
    holm,
    interval,
    p_above,
    seeds_needed,
    within,
)
from spectral_jax.plots import t_interval

SAMPLES = np.array([0.4, 1.9, -0.3, 0.8, 1.1, 0.2])


@pytest.mark.parametrize("level", [0.90, 0.95])
def test_the_interval_is_scipys(level):
    expected = stats.ttest_1samp(SAMPLES, 0.0).confidence_interval(level)
    np.testing.assert_allclose(interval(estimate(SAMPLES), level), expected, rtol=1e-12)


def test_it_is_the_interval_of_the_figures():
    mean, half, _ = t_interval(SAMPLES)
    np.testing.assert_allclose(interval(estimate(SAMPLES), 0.95), [mean - half, mean + half])


def test_lost_samples_are_left_out_and_counted():
    found = estimate(np.array([np.nan, *SAMPLES, np.inf]))
    assert found == estimate(SAMPLES)._replace(lost=2)


def test_one_sample_has_a_mean_and_no_error():
    found = estimate(np.array([2.0]))
    assert found.mean == 2.0 and math.isnan(found.error)
    assert all(map(math.isnan, interval(found, 0.95)))
    assert p_above(found) == 1.0 and not within(found, 100.0)


def test_no_sample_has_nothing():
    found = estimate(np.array([np.nan]))
    assert math.isnan(found.mean) and (found.n, found.lost) == (0, 1)


def test_equal_samples_are_known_exactly():
    found = estimate(np.full(3, 0.5))
    assert interval(found, 0.95) == (0.5, 0.5)
    assert estimate(np.full(3, 0.003)).error == 0  # though their mean is not .003 to the last bit
    assert (p_above(found), p_above(found, 0.5), p_above(found, 1.0)) == (0.0, 1.0, 1.0)
    assert within(found, 0.6) and not within(found, 0.5)


@pytest.mark.parametrize("bound", [-1.0, 0.0, 0.7])
def test_the_one_sided_p_value_is_scipys(bound):
    expected = stats.ttest_1samp(SAMPLES, bound, alternative="greater").pvalue
    assert p_above(estimate(SAMPLES), bound) == pytest.approx(expected, rel=1e-12)


def test_two_one_sided_tests_at_5_percent_are_the_90_percent_interval():
    edge = max(map(abs, interval(estimate(SAMPLES), 0.90)))
    for bound, inside in ((1.001 * edge, True), (0.999 * edge, False)):
        above = stats.ttest_1samp(SAMPLES, -bound, alternative="greater").pvalue
        below = stats.ttest_1samp(SAMPLES, bound, alternative="less").pvalue
        assert (max(above, below) < 0.05) == within(estimate(SAMPLES), bound) == inside


def test_a_reference_with_a_spread_is_compared_as_by_welch():
    other = np.array([0.9, 1.4, 0.1, 2.2])
    off = against(estimate(SAMPLES), other.mean(), other.std(ddof=1), len(other))
    expected = stats.ttest_ind(SAMPLES, other, equal_var=False)
    np.testing.assert_allclose(interval(off, 0.95), expected.confidence_interval(0.95), rtol=1e-12)
    assert off.freedom == pytest.approx(expected.df, rel=1e-12)


def test_an_exact_reference_is_a_shift():
    ours = estimate(SAMPLES)
    assert against(ours, 0.5, 0.0, 0) == ours._replace(mean=ours.mean - 0.5)


def test_the_references_error_remains_where_ours_agree():
    off = against(estimate(np.full(4, 1.0)), 1.0, 0.6, 9)
    assert (off.error, off.freedom) == (pytest.approx(0.2), pytest.approx(8))


def test_one_seed_against_a_reference_has_no_interval():
    assert all(map(math.isnan, interval(against(estimate([1.0]), 1.0, 0.6, 9), 0.95)))


def test_holm_on_a_worked_example():
    # Holm 1979: .01 x 4, .02 x 3, then never falling: .03 x 2 = .06 is held at .06, .04 -> .06.
    assert holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02}) == pytest.approx(
        {"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.06}
    )


def test_holm_never_exceeds_one_and_keeps_a_single_value():
    assert holm({"a": 0.3}) == {"a": 0.3}
    assert holm({"a": 0.7, "b": 0.9}) == {"a": 1.0, "b": 1.0}


def test_holm_bounds_the_chance_of_any_wrong_direction():
    samples = np.random.default_rng(0).normal(size=(6, 2000, 5))  # no effect in any of 5 claims
    two_sided = stats.ttest_1samp(samples, 0.0).pvalue
    wrong = [min(holm(dict(enumerate(row))).values()) < 0.025 for row in two_sided / 2]
    assert 0.035 < np.mean(wrong) < 0.065


def test_that_many_seeds_have_a_power_of_nine_in_ten():
    # With the sd known: the standard normal power of a two-sided test at 5 %.
    n = seeds_needed(deviation=1.0, smallest_effect=0.25)
    assert n == math.ceil((3.24 / 0.25) ** 2) == 168
    power = stats.norm.sf(stats.norm.ppf(0.975) - 0.25 * math.sqrt(n))
    assert power == pytest.approx(0.9, abs=2e-3)
    assert seeds_needed(deviation=0.0, smallest_effect=0.25) == 2


def draws(rng, seeds, items, *, of_seeds, of_items, noise):
    """Two crossed random effects around a mean of 0."""
    return (
        of_seeds * rng.normal(size=(seeds, 1))
        + of_items * rng.normal(size=(1, items))
        + noise * rng.normal(size=(seeds, items))
    )


def test_seeds_crossed_with_items_cover_what_they_say():
    rng = np.random.default_rng(0)
    hits = alone = 0
    for _ in range(1000):
        samples = draws(rng, 5, 40, of_seeds=0.1, of_items=1.0, noise=1.0)
        low, high = interval(crossed(samples), 0.95)
        hits += low < 0 < high
        low, high = interval(estimate(samples.mean(axis=1)), 0.95)
        alone += low < 0 < high
    assert 0.93 < hits / 1000 < 0.98
    assert alone / 1000 < 0.85  # an interval over seeds takes the test set for the world


def test_where_items_do_not_matter_it_is_the_interval_over_seeds():
    seeds = np.random.default_rng(0).normal(size=(6, 1))
    found = crossed(np.tile(seeds, 50))
    np.testing.assert_allclose(interval(found, 0.95), interval(estimate(seeds[:, 0]), 0.95))


def test_it_is_never_less_than_the_error_over_seeds():
    rng = np.random.default_rng(0)
    for _ in range(50):
        samples = draws(rng, 4, 6, of_seeds=0.0, of_items=0.0, noise=1.0)
        assert crossed(samples).error >= estimate(samples.mean(axis=1)).error


def test_a_seed_that_lost_an_item_is_left_out_of_it():
    samples = draws(np.random.default_rng(0), 4, 6, of_seeds=1, of_items=1, noise=1)
    broken = np.vstack([samples, np.full(6, np.nan)])
    assert crossed(broken) == crossed(samples)._replace(lost=1)
    assert crossed(broken[4:]).n == 0
