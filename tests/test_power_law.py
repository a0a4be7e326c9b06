"""Power-law tails: exact searches, statuses, alternatives and the bootstrap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from spectral_jax.tails.alternatives import tail_alternatives
from spectral_jax.tails.goodness import goodness_of_fit
from spectral_jax.tails.power_law import POINTS, power_law_fit
from spectral_jax.tails.support import FitStatus

pytestmark = pytest.mark.usefixtures("quick_compilation")
POWERS = 2.0 ** np.arange(8)


def mixture(rng, n):
    return np.append(rng.lognormal(0, 1, n // 2), 1 + rng.pareto(1, n - n // 2))


FAMILIES = {
    "Pareto": lambda rng, n: 1 + rng.pareto(1.5, n),
    "lognormal": lambda rng, n: rng.lognormal(0, 2, n),
    "Marchenko-Pastur": lambda rng, n: np.linalg.svd(rng.normal(size=(n, n + 99)))[1] ** 2,
    "mixture": mixture,
    "duplicates": lambda rng, n: np.round(1 + rng.pareto(1, n), 1),
}


def tails(spectrum, *, bias=0):
    """Every candidate, by the formulas: distance, index and alpha."""
    x = np.sort(np.asarray(spectrum, np.float64))
    for i in np.unique(x, return_index=True)[1][:-1]:
        tail = x[i:]
        n = len(tail)
        alpha = 1 + (n - bias) / np.log(tail / tail[0]).sum()
        ks = np.abs(1 - (tail / tail[0]) ** (1 - alpha) - np.arange(n) / n).max()
        yield ks, i, alpha


def start(fit, spectrum):
    return len(spectrum) - int(fit.tail)


def padded(spectrum, length=30):
    """With zeros, which are no eigenvalues: one length, one compilation."""
    return jnp.asarray(np.append(spectrum, np.zeros(length - len(spectrum))))


# The search


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [30, 700])
def test_search_finds_what_a_loop_over_all_candidates_finds(family, n):
    spectrum = FAMILIES[family](np.random.default_rng(n), n)
    assert n < POINTS or n > POINTS + 100  # with and without pruning
    ks, i, alpha = min(tails(spectrum))
    with jax.enable_x64(True):
        fit = power_law_fit(jnp.asarray(spectrum))
    assert start(fit, spectrum) == i
    np.testing.assert_allclose([fit.alpha, fit.ks, fit.xmin], [alpha, ks, np.sort(spectrum)[i]])


@pytest.mark.parametrize("family", FAMILIES)
def test_search_in_float32_is_as_good_to_rounding(family):
    spectrum = np.float32(FAMILIES[family](np.random.default_rng(1), 700))
    distances = {i: (alpha, ks) for ks, i, alpha in tails(spectrum)}
    fit = power_law_fit(jnp.asarray(spectrum))
    alpha, ks = distances[start(fit, spectrum)]
    assert ks <= min(ks for _, ks in distances.values()) + 1e-6 * alpha
    np.testing.assert_allclose([fit.alpha, fit.ks], [alpha, ks], rtol=2e-6, atol=1e-6 * alpha)


def test_equal_distances_choose_the_longest_tail():
    """Exact powers: each tail looks like the one before, but for its length."""
    spectrum = 2.0 ** np.arange(20)
    assert start(power_law_fit(padded(spectrum)), spectrum) == min(tails(spectrum))[1]


def test_powers_of_two():
    median = power_law_fit(padded(POWERS), xmin="median")
    assert float(median.alpha) == pytest.approx(1 + 4 / (6 * np.log(2)), rel=1e-6)
    assert float(median.ks) == pytest.approx(0.2365829, rel=1e-6)
    full = power_law_fit(padded(POWERS))
    assert (int(full.tail), float(full.xmin), float(full.xmax)) == (8, 1, 128)
    assert float(full.alpha) == pytest.approx(1.4121986, rel=1e-6)
    assert float(full.ks) == pytest.approx(0.2006271, abs=1e-6)
    assert float(full.standard_error) == pytest.approx(0.4121986 / 8**0.5, rel=1e-6)


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0, 5.0])
def test_pareto_samples_give_their_exponent(alpha):
    spectrum = 1 + np.random.default_rng(0).pareto(alpha - 1, 4000)
    fit = power_law_fit(jnp.asarray(spectrum), xmin=1.0)
    assert float(fit.alpha) == pytest.approx(alpha, rel=0.05)
    assert abs(float(fit.alpha) - alpha) < 4 * float(fit.standard_error)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.floats(2**-7, 128, width=32), min_size=8, max_size=25, unique=True),
    st.integers(-8, 8),
    st.randoms(use_true_random=False),
)
def test_order_padding_and_scale_do_not_matter(values, exponent, random):
    plain = np.asarray(padded(values))
    other = list(plain * 2.0**exponent)
    random.shuffle(other)
    first, second = (power_law_fit(jnp.asarray(x, jnp.float32)) for x in (plain, other))
    assert int(first.status) == int(second.status)
    assert float(first.ks) == pytest.approx(float(second.ks), abs=2e-6, nan_ok=True)
    if int(first.tail) == int(second.tail):
        assert float(first.alpha) == pytest.approx(float(second.alpha), rel=1e-4, nan_ok=True)


def test_memory_is_bounded():
    """No array of candidates by values: some vectors and a few blocks."""
    n = 50_000
    fit = jax.jit(power_law_fit).lower(jax.ShapeDtypeStruct((n,), jnp.float32))
    held = fit.compile().memory_analysis().temp_size_in_bytes
    assert held < 4 * (64 * n + 8 * POINTS**2)


# The other rules


@pytest.mark.parametrize("compat", [None, "peak_log10"])
def test_peak_tries_the_candidates_around_the_mode(compat):
    spectrum = np.random.default_rng(0).lognormal(1, 1.5, 300)
    counts, edges = np.histogram(np.log10(spectrum), bins=100)
    mode = 10 ** edges[counts.argmax()]
    low = np.log10(0.95 * mode) if compat else 0.95 * mode
    x = np.sort(spectrum)
    near = [t for t in tails(spectrum) if low <= x[t[1]] <= 1.5 * mode]
    ks, i, alpha = min(near)
    fit = power_law_fit(jnp.asarray(spectrum), xmin="peak", paper_compat=compat)
    assert start(fit, spectrum) == i
    np.testing.assert_allclose([fit.alpha, fit.ks], [alpha, ks], rtol=1e-5)
    edge = i in (near[0][1], near[-1][1])
    assert int(fit.status) == (FitStatus.BOUNDARY if edge else FitStatus.OK)


@pytest.mark.parametrize("n", [6, 12, 19, 25])
def test_weightwatcher_fits_few_values_its_own_way(n):
    spectrum = np.random.default_rng(n).lognormal(0, 1, n)
    few = [t for t in tails(spectrum, bias=1) if n - t[1] >= 8 or t[1] == 0]
    ks, i, alpha = min(few) if n < 20 else min(tails(spectrum))
    fit = power_law_fit(padded(spectrum), paper_compat="weightwatcher")
    assert start(fit, spectrum) == i
    np.testing.assert_allclose([fit.alpha, fit.ks], [alpha, ks], rtol=1e-5)


def test_gradient_at_a_given_xmin():
    x, xmin = np.array([1.0, 2.5, 3.0, 4.5, 7.0, 9.0]), 2.0
    total, n = np.log(x[1:] / xmin).sum(), 5
    with jax.enable_x64(True):
        gradient = jax.grad(lambda x, xmin: power_law_fit(x, xmin=xmin).alpha, argnums=(0, 1))(
            jnp.asarray(x), jnp.asarray(xmin)
        )
    np.testing.assert_allclose(gradient[0], np.append(0, -n / total**2 / x[1:]), atol=1e-12)
    np.testing.assert_allclose(gradient[1], n**2 / total**2 / xmin, rtol=1e-12)


@pytest.mark.parametrize(
    "status, spectrum, options",
    [
        (FitStatus.OK, POWERS, {}),
        (FitStatus.RANK_DEFICIENT, np.append(POWERS, 1e-12), {}),
        (FitStatus.BOUNDARY, POWERS, dict(xmin=20.0)),
        (FitStatus.TOO_FEW, np.append(POWERS[:4], np.zeros(4)), {}),
        (FitStatus.NO_TAIL, POWERS, dict(xmin=1000.0)),
        # A bin so wide that all its values are above 1.5 times its left edge.
        (FitStatus.NO_TAIL, np.array([1e-18, 2, 2.1, 2.2, 1e18]), dict(xmin="peak", floor=0.0)),
        (FitStatus.DEGENERATE, np.full(8, 3.0), {}),
        (FitStatus.DEGENERATE, np.append(POWERS, np.full(16, 200.0)), dict(xmin="median")),
        (FitStatus.NOT_FINITE, np.append(POWERS, np.nan), {}),
        (FitStatus.NOT_FINITE, np.append(POWERS, np.inf), dict(xmin=2.0)),
        (FitStatus.NOT_FINITE, np.append(POWERS, -np.inf), {}),
        (FitStatus.NOT_FINITE, POWERS, dict(xmin=jnp.asarray(-1.0))),
        (FitStatus.TOO_FEW, np.zeros(8), {}),
    ],
)
def test_statuses(status, spectrum, options):
    fit = power_law_fit(padded(spectrum), **options)
    assert FitStatus(int(fit.status)) == status
    exists = status <= FitStatus.BOUNDARY
    assert (int(fit.tail) > 0) == exists
    for number in (fit.alpha, fit.xmin, fit.xmax, fit.ks, fit.standard_error):
        assert bool(jnp.isfinite(number)) == exists


@pytest.mark.parametrize(
    "options, hint",
    [
        (dict(xmin="best"), "xmin='best': choose 'ks'"),
        (dict(xmin=0.0), "xmin=0.0: choose a finite number above 0"),
        (dict(xmin=True), "xmin=True"),
        (dict(xmin=np.nan), "xmin=nan"),
        (dict(xmin=np.inf), "xmin=inf"),
        (dict(xmin=jnp.ones(2)), r"xmin has shape \(2,\)"),
        (dict(floor=-1.0), "floor=-1.0"),
        (dict(floor=np.nan), "floor=nan"),
        (dict(paper_compat="farms"), "paper_compat='farms': choose"),
        (dict(paper_compat="peak_log10"), "it is about xmin='peak'"),
    ],
)
def test_misuse_is_named(options, hint):
    with pytest.raises(ValueError, match=hint):
        power_law_fit(jnp.asarray(POWERS), **options)


SCALES = (1e-30, 1e-20, 1e20, 1e30, 1e36)


@pytest.mark.parametrize("rule", ["ks", "peak", "median", "given"])
def test_a_batch_of_any_scale_has_one_exponent_and_its_slope(rule):
    x = jnp.asarray(1 + np.random.default_rng(0).pareto(1.5, 30), jnp.float32)

    def alpha(x, scale):
        fit = power_law_fit(x, xmin=2.0 * scale if rule == "given" else rule)
        return fit.alpha, fit

    scales = jnp.asarray((1.0, *SCALES), jnp.float32)
    measured = jax.vmap(jax.grad(alpha, has_aux=True))(x * scales[:, None], scales)
    slopes, fits = measured[0] * scales[:, None], measured[1]
    assert (fits.status == FitStatus.OK).all()
    assert np.allclose(fits.alpha, fits.alpha[0], rtol=1e-5)
    assert np.allclose(fits.xmin / scales, fits.xmin[0], rtol=1e-5)
    assert np.allclose(fits.ks, fits.ks[0], atol=1e-5)
    # At 1e36 they are below the smallest number.
    assert np.allclose(slopes[:-1], slopes[0], rtol=1e-4, atol=1e-6)


# Alternatives


def alternatives(spectrum, xmin):
    with jax.enable_x64(True):
        return tail_alternatives(padded(spectrum, 4000), jnp.asarray(xmin))


def test_truncated_power_law_has_the_textbook_likelihood():
    """``lambda^(1-alpha) / Gamma(1-alpha, lambda xmin)``, by the recurrence to positive orders."""
    x = 1.5 * (1 + np.random.default_rng(0).pareto(1.2, 3000))
    x = x[np.random.default_rng(1).random(3000) < np.exp(-0.05 * (x - 1.5))]
    law = alternatives(x, 1.5).truncated_power_law
    alpha, rate = map(float, law.parameters)
    order, z = 1 - alpha, rate * 1.5
    lifted = special.gamma(order + 2) * special.gammaincc(order + 2, z)
    for a in (order + 1, order):  # Gamma(a, z) = (Gamma(a + 1, z) - z^a e^-z) / a
        lifted = (lifted - z**a * np.exp(-z)) / a
    density = order * np.log(rate) - np.log(lifted)
    likelihood = (density - alpha * np.log(x) - rate * x).sum()
    assert 1 < alpha < 3 and int(law.status) == FitStatus.OK
    assert float(law.log_likelihood) == pytest.approx(likelihood, rel=1e-9)
    # 4 standard errors or so.
    assert (alpha, rate) == (pytest.approx(2.2, abs=0.2), pytest.approx(0.05, abs=0.03))
    assert float(law.ratio) < 0 and float(law.p_value) < 1e-3


def test_exponential_and_vuong():
    x = 2 + np.random.default_rng(0).exponential(3, 400)
    found = alternatives(np.append(x, [0.0, 1.0]), 2.0)
    rate, alpha = 1 / (x - 2).mean(), 1 + 1 / np.log(x / 2).mean()
    theirs = np.log(rate) - rate * (x - 2)
    ours = np.log((alpha - 1) / 2) - alpha * np.log(x / 2)
    law, difference = found.exponential, ours - theirs
    np.testing.assert_allclose(law.parameters, [rate])
    np.testing.assert_allclose(found.log_likelihood, ours.sum())
    np.testing.assert_allclose(law.log_likelihood, theirs.sum())
    np.testing.assert_allclose(law.ratio, difference.sum())
    normalised = difference.sum() / (difference.std() * len(x) ** 0.5)
    np.testing.assert_allclose(law.normalised, normalised)
    np.testing.assert_allclose(law.p_value, special.erfc(abs(normalised) / 2**0.5))
    assert float(law.ratio) < 0 and float(law.p_value) < 1e-6
    # The exponential is the truncated power law with alpha 0, outside of alpha > 1: its edge.
    assert int(found.truncated_power_law.status) == FitStatus.BOUNDARY


def test_lognormal_is_recognised_from_its_tail():
    x = np.random.default_rng(0).lognormal(0.5, 1.0, 4000)
    law = alternatives(x, 1.0).lognormal
    mu, sigma = map(float, law.parameters)
    assert (mu, sigma) == (pytest.approx(0.5, abs=0.2), pytest.approx(1, abs=0.1))
    tail = x[x >= 1]
    density = -np.log(tail) - (np.log(tail) - mu) ** 2 / (2 * sigma**2)
    mass = sigma * np.sqrt(np.pi / 2) * special.erfc(-mu / (sigma * 2**0.5))
    likelihood = density.sum() - len(tail) * np.log(mass)
    assert float(law.log_likelihood) == pytest.approx(likelihood, rel=1e-9)
    assert float(law.ratio) < 0 and float(law.p_value) < 1e-6


def test_a_perfect_power_law_is_its_own_best_alternative():
    """Quantiles with a tail heavier than any cut-off: the likelihood grows towards the limit."""
    x = (1 - (np.arange(400) + 0.5) / 400) ** -0.4
    x[-1] *= 50
    found = alternatives(x, 1.0)
    for law in (found.truncated_power_law, found.lognormal):
        assert int(law.status) == FitStatus.BOUNDARY
        assert (float(law.ratio), float(law.p_value)) == (0, 1)
    alpha = 1 + 1 / np.log(x).mean()
    np.testing.assert_allclose(found.truncated_power_law.parameters, [alpha, 0])
    assert float(found.exponential.ratio) > 0


@pytest.mark.parametrize(
    "status, spectrum, xmin",
    [
        (FitStatus.NO_TAIL, POWERS, 100.0),
        (FitStatus.NO_TAIL, np.zeros(8), 1.0),
        (FitStatus.DEGENERATE, np.full(8, 2.0), 2.0),
        (FitStatus.NOT_FINITE, POWERS, -1.0),
        (FitStatus.NOT_FINITE, np.append(POWERS, np.nan), 1.0),
    ],
)
def test_alternatives_that_do_not_exist_are_flagged(status, spectrum, xmin):
    found = alternatives(spectrum, xmin)
    assert bool(jnp.isnan(found.log_likelihood))
    for law in found[1:]:
        assert FitStatus(int(law.status)) == status
        assert all(bool(jnp.isnan(number).all()) for number in law[:-1])


@pytest.mark.parametrize("scale", SCALES[:-1])  # where a rate is a number yet
def test_alternatives_have_no_unit(scale):
    x = jnp.asarray(1 + np.random.default_rng(0).pareto(1.5, 60), jnp.float32)
    plain, scaled = (tail_alternatives(x * s, s) for s in (1.0, scale))
    shift = -60 * np.log(scale)
    assert float(scaled.log_likelihood) == pytest.approx(
        float(plain.log_likelihood) + shift, rel=1e-5
    )
    for ours, theirs in zip(scaled[1:], plain[1:], strict=True):
        assert int(ours.status) == int(theirs.status)
        assert float(ours.ratio) == pytest.approx(float(theirs.ratio), rel=1e-3, abs=1e-3)
    rates = scaled.exponential.parameters, scaled.truncated_power_law.parameters[1:]
    expected = plain.exponential.parameters, plain.truncated_power_law.parameters[1:]
    assert np.allclose(np.multiply(rates, scale), expected, rtol=1e-3)
    moved = float(plain.lognormal.parameters[0]) + np.log(scale)
    assert float(scaled.lognormal.parameters[0]) == pytest.approx(moved, rel=1e-3)


# Goodness of fit


@pytest.mark.parametrize("scale", SCALES)
def test_a_p_value_has_no_unit(scale):
    x = jnp.asarray(np.random.default_rng(0).lognormal(0, 1, 60), jnp.float32)
    key = jax.random.key(0)
    plain, scaled = (
        goodness_of_fit(key, y, power_law_fit(y, xmin=s), draws=20, xmin=s)
        for y, s in ((x, 1.0), (x * scale, scale))
    )
    assert np.allclose(scaled.distances, plain.distances, atol=1e-5)
    assert float(scaled.p_value) == float(plain.p_value)


def test_a_tail_beyond_all_numbers_is_drawn_up_to_the_largest():
    """At alpha 1.1 one value in a thousand is above 1e30: no draw may drop out for it."""
    x = jnp.asarray((1 - (np.arange(200) + 0.5) / 200) ** -5.0, jnp.float32)
    fit = power_law_fit(x, xmin=1.0, floor=0.0)
    found = goodness_of_fit(jax.random.key(0), x, fit._replace(alpha=1.1), draws=20, xmin=1.0)
    assert jnp.isfinite(found.distances).all()


def test_p_values_are_uniform_under_the_null():
    """At a given xmin the distance of a fitted power law has one distribution for all alpha."""
    spectra = jnp.asarray(1 + np.random.default_rng(0).pareto(1.5, (80, 50)), jnp.float32)

    def p_value(key, spectrum):
        fit = power_law_fit(spectrum, xmin=1.0)
        return goodness_of_fit(key, spectrum, fit, draws=100, xmin=1.0).p_value

    p = np.sort(jax.jit(jax.vmap(p_value))(jax.random.split(jax.random.key(0), 80), spectra))
    # Kolmogorov: exceeded once in ten thousand.
    assert np.abs(p - (np.arange(80) + 0.5) / 80).max() < 2.23 / 80**0.5


def test_bootstrap_refits_xmin_and_keeps_the_body():
    """A lognormal is no power law from its median on; its far tail might be."""
    x = jnp.asarray(np.random.default_rng(0).lognormal(0, 1, 400), jnp.float32)
    free, forced = power_law_fit(x), power_law_fit(x, xmin="median")
    key = jax.random.key(0)
    accepted = goodness_of_fit(key, x, free, draws=60)
    rejected = goodness_of_fit(key, x, forced, draws=60, xmin="median")
    assert float(rejected.p_value) <= 0.02 < float(accepted.p_value)
    cautious = (60 * float(accepted.p_value) + 1) / 62
    error = (cautious * (1 - cautious) / 60) ** 0.5
    assert float(accepted.standard_error) == pytest.approx(error, rel=1e-5)
    assert float(rejected.standard_error) > 0
    assert float(accepted.p_value) == np.mean(np.asarray(accepted.distances) >= float(free.ks))


def test_bootstrap_of_no_fit_says_so():
    x = jnp.ones(400)
    found = goodness_of_fit(jax.random.key(0), x, power_law_fit(x), draws=60)
    assert bool(jnp.isnan(found.p_value)) and int(found.status) == FitStatus.DEGENERATE
    with pytest.raises(ValueError, match="draws=0: choose at least 1"):
        goodness_of_fit(jax.random.key(0), x, power_law_fit(x), draws=0)
    with pytest.raises(ValueError, match="key=0 is no random key"):
        goodness_of_fit(0, x, power_law_fit(x))
    with pytest.raises(ValueError, match=r"eigenvalues has shape \(2, 400\), fit \(\): pass one"):
        goodness_of_fit(jax.random.key(0), jnp.stack([x, x]), power_law_fit(x))
