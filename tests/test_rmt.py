"""Bulks, edges, spikes, thresholds and shrinkers: exact oracles, null behaviour, bad input.

Numbers were derived or measured for this library (the RMT-SVD sheet, sections 5 and 6), to four
standard errors where they come from draws; 2,000 draws are a benchmark: `benchmarks/rmt/null.py`.
"""

import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from spectral_jax import laws
from spectral_jax.rmt import (
    MPStatus,
    fit_marchenko_pastur,
    follows_marchenko_pastur,
    hard_threshold,
    host,
    marchenko_pastur_cdf,
    marchenko_pastur_pdf,
    noise_edge,
    optimal_shrinkage,
    spike_interval,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

METHODS = ("bema", "trace", "clip", "median", "density")
OMEGAS = {  # ratio: lambda*, omega
    0.05: (1.506607, 1.519341),
    0.10: (1.581648, 1.608772),
    0.25: (1.758029, 1.836866),
    0.50: (1.978599, 2.171185),
    0.75: (2.156094, 2.501430),
    0.784: (2.178123, 2.547800),
    1: (2.309401, 2.858362),
}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def eigenvalues(w, dtype="float32"):
    s = np.linalg.svd(w, compute_uv=False)
    return jnp.asarray(s**2 / max(w.shape[-2:]), dtype)


def exact_bulk(p, n, variance=1.0):
    """The spectrum whose order statistics are the quantiles at (k - 1/2)/p."""
    return variance * laws.marchenko_pastur_quantile((np.arange(1, p + 1) - 0.5) / p, p / n)


# BEMA: the exact oracle


@pytest.mark.parametrize(
    "plotting, variance", [("(k-1/2)/p", 2.0), ("k/p", 1.9894091), ("(k-1)/p", 2.0106571)]
)
def test_bema_recovers_the_variance_of_exact_quantiles(float64, plotting, variance):
    fit = fit_marchenko_pastur(jnp.asarray(exact_bulk(200, 500, 2)), (200, 500), plotting=plotting)
    assert float(fit.variance) == pytest.approx(variance, abs=1e-6)
    assert fit.status == MPStatus.OK and fit.spikes == 0 and fit.rank == 200


def test_the_edge_is_that_of_the_sheet(float64):
    fit = fit_marchenko_pastur(jnp.asarray(exact_bulk(200, 500, 2)), (200, 500))
    # The sheet's quantile is rounded to .4501, which is 3e-6 of the edge.
    assert float(fit.edge) == pytest.approx(5.3618212, abs=5e-6)
    assert float(fit.threshold) == pytest.approx(51.777511, abs=2e-5)
    assert float(fit.bulk_edge) == pytest.approx(2 * (1 + 0.4**0.5) ** 2)
    assert float(fit.ks) == pytest.approx(0, abs=1e-9)


def test_the_published_codes_width_is_an_option(float64):
    spectrum = jnp.asarray(exact_bulk(200, 500, 2))
    fit = fit_marchenko_pastur(spectrum, (200, 500), paper_compat=("tw_quartic_over_3",))
    assert float(fit.edge) == pytest.approx(5.3692309, abs=1e-5)
    square, coded = (noise_edge((9, 9), paper_compat=c) - 4 for c in ((), ("tw_quartic_over_3",)))
    assert coded / square == pytest.approx(2.117, abs=1e-3)
    narrow, coded = (
        noise_edge((100, 400), paper_compat=c) - 2.25 for c in ((), ("tw_quartic_over_3",))
    )
    assert coded / narrow == pytest.approx(0.983, abs=1e-3)


@given(p=st.integers(1, 400), long=st.integers(0, 400))
@settings(max_examples=20, deadline=None)
def test_the_width_is_the_symmetric_form(p, long):
    n = p + long
    width = (n**0.5 + p**0.5) / n * (n**-0.5 + p**-0.5) ** (1 / 3)
    expected = (1 + (p / n) ** 0.5) ** 2 + laws.tracy_widom_quantile(0.9) * width
    assert noise_edge((p, n)) == pytest.approx(expected) == noise_edge((n, p))


def test_the_square_edge_is_the_papers():
    t, n = laws.tracy_widom_quantile(0.9), 50
    assert noise_edge((n, n), variance=3) == pytest.approx(
        3 * (4 + 2 ** (4 / 3) * t * n ** (-2 / 3))
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(80, 80), (200, 60)])
def test_every_method_finds_the_variance_of_exact_quantiles(method, shape):
    spectrum = exact_bulk(min(shape), max(shape), 3)
    shuffled = np.random.default_rng(0).permutation(spectrum)
    fit = fit_marchenko_pastur(jnp.asarray(shuffled, jnp.float32), shape, method=method)
    assert fit.status == MPStatus.OK
    assert float(fit.variance) == pytest.approx(3, rel=0.005)
    assert float(fit.ks) < 0.01


@given(scale=st.floats(1e-30, 1e30), method=st.sampled_from(METHODS))
@settings(max_examples=10, deadline=None)
def test_the_variance_is_a_scale(scale, method):
    spectrum = eigenvalues(noise(30, 50))
    fits = [fit_marchenko_pastur(spectrum * s, (30, 50), method=method) for s in (1, scale)]
    assert float(fits[1].variance) == pytest.approx(scale * float(fits[0].variance), rel=1e-4)
    assert float(fits[1].ks) == pytest.approx(float(fits[0].ks), abs=1e-4)
    assert fits[1].spikes == fits[0].spikes


def test_what_ascends_need_not_be_sorted_again():
    spectrum = np.sort(np.asarray(eigenvalues(noise(30, 50))))
    spectrum[:5] = 0
    shuffled = np.random.default_rng(0).permutation(spectrum)
    fit = fit_marchenko_pastur(jnp.asarray(spectrum), (30, 50), assume_sorted=True)
    for found, expected in zip(fit, fit_marchenko_pastur(shuffled, (30, 50)), strict=True):
        np.testing.assert_array_equal(found, expected)


# Null behaviour: bias, spread, false positives


SIZES = {(50, 50): 300, (100, 100): 150}
POSITIONS = {  # bias in %, false positives at 50 x 50 and 100 x 100
    "k/p": ((-3.9, 0.227), (-2.0, 0.188)),
    "(k-1/2)/p": ((0, 0.114), (0, 0.100)),
    "(k-1)/p": ((3.4, 0.045), (1.7, 0.045)),
}


@pytest.fixture(scope="module")
def null():
    return {size: eigenvalues(noise(draws, *size, seed=1)) for size, draws in SIZES.items()}


@pytest.mark.parametrize("plotting", POSITIONS)
def test_bema_of_noise_has_the_bias_and_false_positives_of_its_positions(null, plotting):
    for (size, spectra), (bias, rate) in zip(null.items(), POSITIONS[plotting], strict=True):
        fit = fit_marchenko_pastur(spectra, size, plotting=plotting)
        error = 100 * float(jnp.std(fit.variance)) / len(spectra) ** 0.5
        assert abs(100 * (float(jnp.mean(fit.variance)) - 1) - bias) < 0.5 + 4 * error
        spread = (rate * (1 - rate) / len(spectra)) ** 0.5
        assert abs(float(jnp.mean(fit.spikes > 0)) - rate) < 0.03 + 4 * spread


def test_the_median_spreads_more_and_the_density_fit_less_than_bema(null):
    spectra = null[100, 100]
    spread = {
        method: float(jnp.std(fit_marchenko_pastur(spectra, (100, 100), method=method).variance))
        for method in METHODS
    }
    assert 1.4 < spread["median"] / spread["bema"] < 2.1
    assert spread["density"] < spread["bema"]


def test_spikes_move_the_trace_and_not_the_others():
    w = noise(150, 300, seed=2)
    u, v = np.linalg.qr(noise(150, 10))[0], np.linalg.qr(noise(300, 10, seed=1))[0]
    spectrum = eigenvalues(w + 60 * u @ v.T)
    fits = {m: fit_marchenko_pastur(spectrum, w.shape, method=m) for m in METHODS}
    assert float(fits["trace"].variance) > 1.5
    for method in ("bema", "clip", "median", "density"):
        assert float(fits[method].variance) == pytest.approx(1, abs=0.12), method
        assert fits[method].spikes == 10, method


def test_the_demo_of_the_bema_authors_has_five_spikes():
    """Covariance ``I + 5 B B^T``, ``B`` 100 x 5 orthonormal; trim = beta = .1."""
    rng, spectra = np.random.default_rng(3), []
    for _ in range(20):
        b = np.linalg.qr(rng.standard_normal((100, 5)))[0]
        x = rng.standard_normal((500, 100))
        spectra.append(eigenvalues(x + (6**0.5 - 1) * (x @ b) @ b.T))
    fit = fit_marchenko_pastur(jnp.stack(spectra), (500, 100), trim=0.1, beta=0.1)
    assert fit.spikes.tolist() == [5] * 20
    interval = spike_interval(jnp.stack(spectra), (500, 100), fit.variance)
    assert (interval.low <= 5).all() and (interval.high >= 5).all()


def test_the_interval_holds_the_number_of_spikes_as_often_as_it_says(null):
    spectra = null[50, 50]
    variance = fit_marchenko_pastur(spectra, (50, 50)).variance
    interval = spike_interval(spectra, (50, 50), variance, confidence=0.9)
    assert float(jnp.mean(interval.low == 0)) > 0.85
    wide = spike_interval(spectra, (50, 50), variance, confidence=0.99)
    assert (wide.low <= interval.low).all() and (wide.high >= interval.high).all()


def test_bema_gamma_finds_unequal_variances_and_no_false_spikes():
    rng, shape, theta = np.random.default_rng(4), (30, 90), 3.0
    x = rng.standard_normal((5, 90, 30)) * np.sqrt(rng.gamma(theta, 1 / theta, (5, 1, 30)))
    x[-1] = noise(90, 30)  # all variances equal
    spectra = 2 * eigenvalues(x)
    fit = fit_marchenko_pastur(spectra, shape, method="bema_gamma", key=jax.random.key(0))
    equal = fit_marchenko_pastur(spectra, shape)
    assert np.allclose(fit.variance, 2, rtol=0.3) and (fit.status <= MPStatus.BOUNDARY).all()
    assert 1.5 < float(jnp.median(fit.theta[:-1])) < 7 < float(fit.theta[-1])
    assert int(fit.spikes.sum()) <= 1 < 4 < int(equal.spikes[:-1].sum())
    scales = jnp.array([1e-30, 1e-20, 1, 1e20, 1e30])
    scaled = fit_marchenko_pastur(
        spectra * scales[:, None], shape, method="bema_gamma", key=jax.random.key(0)
    )
    assert np.allclose(scaled.variance / scales, fit.variance, rtol=1e-5)
    assert np.allclose(scaled.edge / scales, fit.edge, rtol=1e-5)
    assert np.allclose(scaled.theta, fit.theta) and (scaled.spikes == fit.spikes).all()
    assert float(jnp.mean(fit.ks[:-1])) < float(jnp.mean(equal.ks[:-1]))
    assert float(fit.variance[-1]) == pytest.approx(float(equal.variance[-1]), rel=0.08)


# Goodness of fit, before and after truncation


def test_ks_is_small_for_noise_and_large_for_what_is_not():
    flat = jnp.linspace(0.1, 1, 100)
    ks = [
        float(fit_marchenko_pastur(s, (100, 100)).ks) for s in (eigenvalues(noise(100, 100)), flat)
    ]
    assert ks[0] < 0.05 < 0.1 < ks[1]


@given(kept=st.floats(0.3, 1), method=st.sampled_from(["bema", "trace", "median"]))
@settings(max_examples=15, deadline=None)
def test_a_truncated_bulk_is_fitted_at_its_old_places(kept, method):
    spectrum, rank = exact_bulk(100, 150, 2), round(kept * 100)
    spectrum[: 100 - rank] = 0
    fit = fit_marchenko_pastur(jnp.asarray(spectrum, jnp.float32), (100, 150), method=method)
    assert fit.rank == rank and fit.status == MPStatus.OK
    assert float(fit.variance) == pytest.approx(2, rel=2e-3)
    assert float(fit.ks) < 2e-3


def test_a_truncated_noisy_layer_still_passes_the_gate():
    """Fitted with its zeros, the bulk of a layer of which 45 % is kept has a KS of one half."""
    spectrum = np.sort(np.asarray(eigenvalues(noise(200, 300, seed=5))))
    spectrum[:110] = 0
    fit = fit_marchenko_pastur(jnp.asarray(spectrum), (200, 300))
    assert float(fit.ks) < 0.02 and float(fit.variance) == pytest.approx(1, rel=0.05)
    assert bool(follows_marchenko_pastur(fit, gof_cutoff=0.05))
    naive = np.abs(
        (np.arange(200) + 0.5) / 200 - marchenko_pastur_cdf(jnp.asarray(spectrum), 2 / 3)
    )
    assert naive[40:160].max() > 0.5


def test_rounding_counts_as_zero_and_the_floor_says_how_much():
    w = noise(20, 40, seed=6).astype(np.float32)
    w[10:] = w[:10]
    gram = jnp.asarray(np.linalg.eigvalsh(w @ w.T) / 40)
    fit = fit_marchenko_pastur(gram, (20, 40), floor=16 * float(jnp.finfo("float32").eps))
    assert fit.rank == 10


def test_the_published_codes_cdf_above_the_edge_is_an_option():
    """Alpha small enough that the window of 10 values reaches past the bulk."""
    spectrum = jnp.asarray(exact_bulk(10, 20)).at[-2:].set(5).astype("float32")
    correct, coded = (
        fit_marchenko_pastur(spectrum, (10, 20), method="median", trim=0.1, paper_compat=compat)
        for compat in ((), ("cdf_zero_above_edge",))
    )
    assert float(correct.ks) < 0.2 and float(coded.ks) == pytest.approx(0.85)


def test_a_gate_of_one_lets_every_fit_pass_and_no_gate_a_failed_one():
    fit = fit_marchenko_pastur(jnp.stack([jnp.linspace(0.1, 1, 9), jnp.zeros(9)]), (9, 9))
    assert follows_marchenko_pastur(fit, gof_cutoff=1).tolist() == [True, False]
    assert follows_marchenko_pastur(fit, gof_cutoff=0).tolist() == [False, False]


# Thresholds and shrinkers


@pytest.mark.parametrize("ratio, expected", OMEGAS.items())
def test_hard_thresholds_are_those_of_gavish_and_donoho(float64, ratio, expected):
    shape = (round(1000 * ratio), 1000)
    assert hard_threshold(shape, noise=1000**-0.5) == pytest.approx(expected[0], abs=1e-6)
    ones = jnp.ones(min(shape))
    assert float(hard_threshold(shape, singular_values=ones)) == pytest.approx(
        expected[1], abs=1e-6
    )
    cubic = 0.56 * ratio**3 - 0.95 * ratio**2 + 1.82 * ratio + 1.43
    assert cubic == pytest.approx(expected[1], abs=0.006)


def test_the_square_thresholds_are_the_published_ones():
    assert hard_threshold((1, 1), noise=1.0) == pytest.approx(4 / 3**0.5)
    assert float(hard_threshold((64, 64), singular_values=jnp.ones(64))) == pytest.approx(
        2.858, abs=1e-3
    )


def test_known_noise_scales_with_the_larger_dimension():
    """By the smaller one, pure noise of 100 x 1000 would have rank 100."""
    s = np.linalg.svd(noise(100, 1000), compute_uv=False)
    assert (s > hard_threshold((100, 1000), noise=1.0)).sum() == 0
    assert hard_threshold((100, 1000), noise=1.0) == hard_threshold((1000, 100), noise=1.0)


def test_unknown_noise_of_a_truncated_matrix_is_that_of_the_whole():
    s = np.linalg.svd(noise(100, 200, seed=7), compute_uv=False)
    whole = float(hard_threshold((100, 200), singular_values=jnp.asarray(s, jnp.float32)))
    s[40:] = 0
    truncated = float(hard_threshold((100, 200), singular_values=jnp.asarray(s, jnp.float32)))
    assert truncated == pytest.approx(whole, rel=0.03)
    assert np.isnan(hard_threshold((100, 200), singular_values=jnp.zeros(100)))


@pytest.mark.parametrize("y, ratio, expected", [(2.5, 1, 1.5), (3, 0.5, 2.4551533)])
def test_the_frobenius_shrinker_is_that_of_the_sheet(float64, y, ratio, expected):
    shape = (round(10 * ratio), 10)
    s = jnp.full(min(shape), y * 10**0.5)
    assert float(optimal_shrinkage(s, shape, noise=1.0)[0] / 10**0.5) == pytest.approx(
        expected, abs=1e-7
    )


def test_the_operator_shrinker_of_a_square_matrix_finds_the_signal_itself(float64):
    signal = jnp.linspace(1.1, 5, 10)
    observed = jnp.sqrt((signal + 1 / signal) ** 2) * 10**0.5
    assert np.allclose(
        optimal_shrinkage(observed, (10, 10), noise=1.0, loss="operator"), signal * 10**0.5
    )


@pytest.mark.parametrize("loss", ["frobenius", "operator", "nuclear"])
def test_shrinkers_drop_noise_and_grow_with_the_value(loss):
    s = jnp.linspace(0, 10, 40) * 60**0.5
    shrunk = optimal_shrinkage(s, (40, 60), noise=1.0, loss=loss)
    assert (shrunk[s <= (40**0.5 + 60**0.5)] == 0).all()
    assert (jnp.diff(shrunk) >= 0).all() and (shrunk <= s).all()
    assert float(shrunk[-1] / s[-1]) > 0.95


def test_denoising_has_the_errors_of_the_sheet():
    """300 x 600, 12 spikes: raw 300, hard edge 20.9, hard threshold 19.3, shrinker 15.3."""
    shape, sums = (300, 600), dict(raw=0.0, edge=0.0, hard=0.0, shrunk=0.0)
    for seed in range(3):
        u = np.linalg.qr(noise(300, 12, seed=3 * seed))[0]
        v = np.linalg.qr(noise(600, 12, seed=3 * seed + 1))[0]
        signal = u * np.linspace(1.2, 4, 12) @ v.T
        noisy = signal + noise(*shape, seed=3 * seed + 2) / 600**0.5
        left, s, right = np.linalg.svd(noisy, full_matrices=False)
        fit = fit_marchenko_pastur(jnp.asarray(s**2 / 600, jnp.float32), shape)
        sd = float(fit.variance) ** 0.5
        kept = {
            "raw": s,
            "edge": s * (s > float(fit.threshold)),
            "hard": s * (s > hard_threshold(shape, noise=sd)),
            "shrunk": np.asarray(optimal_shrinkage(jnp.asarray(s, jnp.float32), shape, noise=sd)),
        }
        for name, values in kept.items():
            sums[name] += ((left * values @ right - signal) ** 2).sum() / 3
    assert sums["raw"] == pytest.approx(300, rel=0.03)
    assert sums["shrunk"] < 0.9 * sums["hard"] and sums["hard"] < 1.05 * sums["edge"] < 30


def test_a_traced_noise_of_zero_shrinks_nothing_and_nan_is_passed_on():
    s = jnp.arange(4.0)
    assert optimal_shrinkage(s, (4, 6), noise=jnp.array(0.0)).tolist() == s.tolist()
    assert jnp.isnan(optimal_shrinkage(s, (4, 6), noise=jnp.array(jnp.nan))).all()


# Laws of traced arrays


@pytest.mark.parametrize("ratio", [1e-2, 0.5, 1, 2])
def test_the_traced_laws_are_those_of_the_host_also_at_the_edges(ratio):
    low, high = laws.marchenko_pastur_edges(ratio)
    x = jnp.asarray(np.r_[-1, 0, np.linspace(low, high, 21), high + 1], jnp.float32)
    host = np.asarray(x, float)
    cdf, expected = marchenko_pastur_cdf(x, ratio), laws.marchenko_pastur_cdf(host, ratio)
    assert np.allclose(cdf, expected, atol=2e-5)
    inside = (host > low + 1e-3) & (host < high - 1e-3)
    density = marchenko_pastur_pdf(x, ratio)
    assert np.allclose(density[inside], laws.marchenko_pastur_pdf(host, ratio)[inside], rtol=2e-3)
    assert jnp.isfinite(jax.vmap(jax.grad(lambda x: marchenko_pastur_cdf(x, ratio)))(x)).all()


# Bad input


@pytest.mark.parametrize(
    "shape, method",
    [((1, 1), "bema"), ((1, 50), "clip"), ((2, 2), "median"), ((2, 300), "density")],
)
def test_layers_smaller_than_the_window_have_no_fit_and_keep_everything(shape, method):
    spectrum = eigenvalues(noise(*shape))
    fit = fit_marchenko_pastur(spectrum, shape, method=method)
    assert fit.status == MPStatus.TOO_FEW and fit.spikes == fit.rank == min(shape)
    assert jnp.isnan(fit.variance) and jnp.isnan(fit.edge) and jnp.isnan(fit.ks)
    interval = spike_interval(spectrum, shape, fit.variance)
    assert (int(interval.low), int(interval.high)) == (0, min(shape))


def test_the_smallest_layer_with_a_fit_has_three_values():
    fit = fit_marchenko_pastur(jnp.asarray(exact_bulk(3, 4), jnp.float32), (3, 4))
    assert fit.status == MPStatus.OK and float(fit.variance) == pytest.approx(1, rel=1e-5)


def test_the_window_is_counted_exactly():
    """.07 * 100 is above 7 in binary: a window from 8 on would not see the seventh value."""
    spectrum = jnp.asarray(exact_bulk(100, 100), jnp.float32)
    fits = [
        fit_marchenko_pastur(s, (100, 100), trim=0.07) for s in (spectrum, spectrum.at[6].set(0.02))
    ]
    assert fits[0].ks < 1e-3 < fits[1].ks


def test_rank_zero_and_rank_one_have_no_bulk():
    one = jnp.zeros(8).at[3].set(2.0)
    fit = fit_marchenko_pastur(jnp.stack([jnp.zeros(8), one]), (8, 8))
    assert fit.status.tolist() == [MPStatus.TOO_FEW] * 2
    assert fit.rank.tolist() == fit.spikes.tolist() == [0, 1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_flagged_alone_in_its_batch(value):
    spectra = jnp.asarray(np.stack([exact_bulk(20, 30)] * 2), jnp.float32).at[0, 3].set(value)
    fit = fit_marchenko_pastur(spectra, (20, 30))
    assert fit.status.tolist() == [MPStatus.NOT_FINITE, MPStatus.OK]
    assert jnp.isnan(fit.edge[0]) and float(fit.variance[1]) == pytest.approx(1, rel=1e-5)


def test_values_whose_sum_overflows_are_flagged():
    fit = fit_marchenko_pastur(jnp.full(20, 3e38), (20, 30))
    assert fit.status == MPStatus.NOT_FINITE and jnp.isnan(fit.variance)


def test_tall_and_wide_are_the_same_layer():
    w = noise(30, 70)
    tall, wide = (fit_marchenko_pastur(eigenvalues(m), m.shape) for m in (w, w.T))
    assert float(tall.variance) == pytest.approx(float(wide.variance), rel=1e-5)
    assert float(tall.ks) == pytest.approx(float(wide.ks), abs=1e-5)


def test_an_edge_within_the_noise_is_allowed_with_a_warning_and_stands_below_the_bulks():
    spectrum = eigenvalues(noise(100, 100))
    with pytest.warns(UserWarning, match="beta=0.8 puts the edge"):
        fit = fit_marchenko_pastur(spectrum, (100, 100), beta=0.8)
    assert fit.edge < fit.bulk_edge


SPECTRUM = jnp.linspace(0.1, 1, 10)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: fit_marchenko_pastur(SPECTRUM, (9, 10)), r"pass \[..., 9\]"),
        (lambda: fit_marchenko_pastur(SPECTRUM, (10,)), r"shape=\(10,\)"),
        (lambda: fit_marchenko_pastur(jnp.ones(0), (0, 4)), r"shape=\(0, 4\)"),
        (lambda: fit_marchenko_pastur(SPECTRUM, (10, 10), method="mode"), "method='mode'"),
        (lambda: fit_marchenko_pastur(SPECTRUM, (10, 10), method="bema_gamma"), "pass key="),
        (lambda: fit_marchenko_pastur(SPECTRUM, (10, 10), plotting="k"), "plotting='k'"),
        (lambda: fit_marchenko_pastur(SPECTRUM, (10, 10), trim=0.5), "trim=0.5"),
        (lambda: fit_marchenko_pastur(SPECTRUM, (10, 10), trim=False), "trim=False"),
        (lambda: fit_marchenko_pastur(SPECTRUM, (10, 10), floor=math.nan), "floor=nan"),
        (lambda: fit_marchenko_pastur(SPECTRUM, (10, 10), floor=-1.0), "floor=-1.0"),
        (lambda: fit_marchenko_pastur(SPECTRUM + 0j, (10, 10)), "eigenvalues.*complex"),
        (lambda: fit_marchenko_pastur(SPECTRUM, (10, 10.0)), r"shape=\(10, 10.0\)"),
        (lambda: fit_marchenko_pastur(SPECTRUM, (10, 10), beta=0), "beta=0"),
        (
            lambda: fit_marchenko_pastur(SPECTRUM, (10, 10), paper_compat="gof"),
            "paper_compat='gof'",
        ),
        (lambda: noise_edge((4, 4), beta=1), "beta=1"),
        (lambda: noise_edge((4, True)), r"shape=\(4, True\)"),
        (lambda: noise_edge((4, 4), variance=-1.0), "variance=-1.0"),
        (lambda: noise_edge((4, 4), variance=math.nan), "variance=nan"),
        (lambda: noise_edge((4, 4), variance=True), "variance=True"),
        (lambda: noise_edge((4, 4), variance=jnp.ones(2, complex)), "variance.*complex"),
        (lambda: noise_edge((4, 4), paper_compat=("tw",)), "paper_compat"),
        (lambda: spike_interval(SPECTRUM, (10, 10), 1.0, confidence=1), "confidence=1"),
        (lambda: spike_interval(SPECTRUM, (4, 10), 1.0), r"pass \[..., 4\]"),
        (lambda: spike_interval(SPECTRUM, (10, 10), -1.0), "variance=-1.0"),
        (lambda: hard_threshold((4, 4)), "exactly one"),
        (lambda: hard_threshold((4, 4), noise=0.0), "noise=0.0"),
        (lambda: hard_threshold((4, 4), singular_values=SPECTRUM), r"pass \[..., 4\]"),
        (
            lambda: optimal_shrinkage(SPECTRUM, (10, 10), noise=1.0, loss="schatten"),
            "loss='schatten'",
        ),
        (lambda: optimal_shrinkage(SPECTRUM, (10, 10), noise=-1.0), "noise=-1.0"),
        (lambda: optimal_shrinkage(SPECTRUM, (10, 10), noise=math.inf), "noise=inf"),
        (
            lambda: optimal_shrinkage(SPECTRUM, (4, 10), noise=1.0),
            r"singular_values .* pass \[..., 4\]",
        ),
        (lambda: marchenko_pastur_cdf(SPECTRUM, 0), "ratio=0"),
        (lambda: marchenko_pastur_cdf(SPECTRUM, 1, 0.0), "variance=0.0"),
    ],
)
def test_misuse_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("cutoff", [-0.1, 1.1, float("nan")])
def test_a_gate_outside_zero_to_one_is_refused(cutoff):
    with pytest.raises(ValueError, match="gof_cutoff"):
        follows_marchenko_pastur(fit_marchenko_pastur(SPECTRUM, (10, 10)), gof_cutoff=cutoff)


# The host's numbers are those of its twins


@pytest.mark.parametrize("shape", [(100, 20), (50, 50), (30, 300)])
def test_host_and_library_fit_the_same_bulk(shape):
    n, w = max(shape), noise(*shape)
    w[:3] *= 9
    s = np.linalg.svd(w, compute_uv=False)
    for values in (s, np.where(np.arange(len(s)) < 0.7 * len(s), s, 0)):
        single = values.astype(np.float32)
        ours = host.fit_marchenko_pastur(values**2 / n, shape)
        theirs = fit_marchenko_pastur(single**2 / n, shape)
        assert ours.variance == pytest.approx(float(theirs.variance), rel=1e-5)
        assert ours.threshold == pytest.approx(float(theirs.threshold), rel=1e-5)
        assert ours.ks == pytest.approx(float(theirs.ks), abs=1e-5)
        assert ours.spikes == int(theirs.spikes) == 3
        cut = float(hard_threshold(shape, singular_values=single))
        assert host.hard_threshold(shape, singular_values=values) == pytest.approx(cut, rel=1e-5)


def test_the_host_fit_of_exact_quantiles_is_exact():
    bulk = host.fit_marchenko_pastur(exact_bulk(200, 500, variance=2.0), (200, 500))
    assert bulk.variance == pytest.approx(2.0, abs=1e-9)
    # The source of the edge has the Tracy-Widom quantile to 4 digits.
    assert bulk.threshold == pytest.approx(51.777511, abs=2e-5)
    assert (bulk.spikes, bulk.status) == (0, "ok")
    assert bulk.ks == pytest.approx(0, abs=1e-9)


def test_truncated_values_are_not_fitted_on_the_host():
    values = np.asarray(eigenvalues(noise(100, 200)), float)
    kept = np.where(np.arange(100) < 60, values, 0)
    whole, cut = (host.fit_marchenko_pastur(each, (100, 200)) for each in (values, kept))
    assert cut.variance == pytest.approx(whole.variance, rel=0.04)
    assert cut.ks < 0.05
    most_gone = np.where(np.arange(100) < 40, values, 0)
    assert math.isnan(host.fit_marchenko_pastur(most_gone, (100, 200)).variance)
    assert math.isnan(host.hard_threshold((100, 200), singular_values=most_gone**0.5))


@pytest.mark.parametrize("values", [np.empty(0), np.zeros(5)], ids=["empty", "zeros"])
def test_a_spectrum_without_noise_has_no_fit_on_the_host(values):
    shape = (len(values), 9)
    assert np.isnan(host.fit_marchenko_pastur(values, shape).variance)
    assert np.isnan(host.hard_threshold(shape, singular_values=values))
