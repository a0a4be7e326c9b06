"""The Marchenko-Pastur and Tracy-Widom laws, against tables, quadrature and differential equations.

Numbers in tables were derived for this library (the RMT-SVD sheet, section 5).
"""

import math
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import integrate, special

from spectral_jax.laws import (
    marchenko_pastur_atom,
    marchenko_pastur_cdf,
    marchenko_pastur_edges,
    marchenko_pastur_median,
    marchenko_pastur_moment,
    marchenko_pastur_pdf,
    marchenko_pastur_quantile,
    tracy_widom_cdf,
    tracy_widom_quantile,
)

RATIOS = (1e-3, 0.1, 0.5, 0.99, 1, 1.01, 2, 10)
MEDIANS = {
    0.05: 0.98330830,
    0.10: 0.96656515,
    0.25: 0.91600407,
    0.50: 0.83046588,
    0.75: 0.74294849,
    0.784: 0.73086012,
    1: 0.65277594,
}


def quadrature(function, ratio):
    """Integral of ``function`` times the density, in ``x = a + (b - a) sin^2 t``."""
    low, high = marchenko_pastur_edges(ratio)

    def integrand(t):
        x = low + (high - low) * np.sin(t) ** 2
        return function(x) * marchenko_pastur_pdf(x, ratio) * (high - low) * np.sin(2 * t)

    return integrate.quad(integrand, 0, np.pi / 2, epsabs=1e-13, limit=200)[0]


def sheet_cdf(x, g):
    """The sheet's closed form, with arcsines, for ratios below 1."""
    a, b = (1 - g**0.5) ** 2, (1 + g**0.5) ** 2
    first = (1 + g) * math.asin((2 * x - a - b) / (b - a))
    second = (1 - g) * math.asin(((a + b) * x - 2 * a * b) / (x * (b - a)))
    return (math.sqrt((x - a) * (b - x)) + first - second + math.pi * g) / (2 * math.pi * g)


# Marchenko-Pastur


@pytest.mark.parametrize(
    "x, ratio, share",
    [(1, 1, 0.6089977810), (2, 1, 0.8183098862), (1, 0.5, 0.5760042151), (2, 0.25, 0.9656300220)],
)
def test_the_cdf_is_that_of_the_table(x, ratio, share):
    assert marchenko_pastur_cdf(x, ratio) == pytest.approx(share, abs=1e-10)


def test_quartiles_of_the_square_case_are_those_of_the_table():
    quartiles = marchenko_pastur_quantile([0.25, 0.5, 0.75], 1)
    assert quartiles == pytest.approx([0.15625253, 0.65277594, 1.61139969], abs=1e-8)


@pytest.mark.parametrize("ratio, median", MEDIANS.items())
def test_the_median_is_that_of_the_table(ratio, median):
    assert marchenko_pastur_median(ratio) == pytest.approx(median, abs=1e-8)


def test_the_median_of_square_noise_is_a_closed_form():
    dottie = 0.7390851332151607  # cos(x) = x
    root = math.sqrt(marchenko_pastur_quantile(0.5, 1))
    assert root == pytest.approx(2 * math.sin(math.pi / 4 - dottie / 2), abs=1e-9)


@given(ratio=st.floats(0.01, 0.99), place=st.floats(0.02, 0.98))
@settings(max_examples=30, deadline=None)
def test_the_cdf_is_the_closed_form_with_arcsines(ratio, place):
    low, high = marchenko_pastur_edges(ratio)
    x = low + (high - low) * place
    assert marchenko_pastur_cdf(x, ratio) == pytest.approx(sheet_cdf(x, ratio), abs=1e-10)


@pytest.mark.parametrize("ratio", RATIOS)
def test_density_and_atom_hold_all_the_mass_and_every_moment(ratio):
    assert quadrature(np.ones_like, ratio) + marchenko_pastur_atom(ratio) == pytest.approx(1)
    for order in range(1, 6):
        moment = quadrature(lambda x, order=order: x**order, ratio)
        assert marchenko_pastur_moment(order, ratio) == pytest.approx(moment)


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_quantile_inverts_the_cdf_above_the_atom_and_is_zero_within(ratio):
    atom = marchenko_pastur_atom(ratio)
    shares = atom + (1 - atom) * np.linspace(1e-6, 1, 101)
    quantiles = marchenko_pastur_quantile(shares, ratio)
    assert marchenko_pastur_cdf(quantiles, ratio) == pytest.approx(shares, abs=1e-11)
    assert quantiles[-1] == pytest.approx(marchenko_pastur_edges(ratio)[1])
    assert marchenko_pastur_quantile(atom / 2, ratio) == (
        0 if atom else pytest.approx(marchenko_pastur_edges(ratio)[0])
    )


@given(ratio=st.floats(0.05, 1), share=st.floats(0.01, 0.99))
@settings(max_examples=20, deadline=None)
def test_a_ratio_and_its_inverse_have_the_same_bulk(ratio, share):
    """X and its transpose have the same non-zero singular values; ``n`` is another."""
    inverse = 1 / ratio
    mirrored = marchenko_pastur_quantile(1 - ratio + ratio * share, inverse) * ratio
    assert mirrored == pytest.approx(marchenko_pastur_quantile(share, ratio), rel=1e-9, abs=1e-12)


def test_variance_is_a_scale():
    x = np.linspace(0.1, 9, 30)
    assert np.allclose(marchenko_pastur_pdf(3 * x, 0.5, 3), marchenko_pastur_pdf(x, 0.5) / 3)
    assert np.allclose(marchenko_pastur_cdf(3 * x, 0.5, 3), marchenko_pastur_cdf(x, 0.5))
    assert marchenko_pastur_quantile(0.3, 0.5, 3) == 3 * marchenko_pastur_quantile(0.3, 0.5)
    assert marchenko_pastur_moment(3, 0.5, 3) == 27 * marchenko_pastur_moment(3, 0.5)


def test_outside_the_bulk_there_is_nothing():
    assert marchenko_pastur_pdf([-1, 0, 0.01, 5], 0.25).tolist() == [0, 0, 0, 0]
    assert marchenko_pastur_pdf(0, 1) == 0  # unbounded there, and 0/0 in the formula
    assert marchenko_pastur_cdf([-1, 0, 0.01, 5], 0.25) == pytest.approx([0, 0, 0, 1], abs=1e-12)
    assert marchenko_pastur_cdf([-1, 0, 0.01, 9], 2) == pytest.approx([0, 0.5, 0.5, 1], abs=1e-12)


def test_the_law_is_that_of_random_matrices():
    rng = np.random.default_rng(0)
    for n, p in ((400, 200), (200, 400)):
        x = rng.standard_normal((n, p))
        values = np.linalg.eigvalsh(x.T @ x / n)
        shares = marchenko_pastur_cdf(np.maximum(values, 1e-9), p / n)
        atom = marchenko_pastur_atom(p / n)
        expected = np.maximum((np.arange(p) + 0.5) / p, atom)
        assert np.abs(np.maximum(shares, atom) - expected).max() < 0.02


# Tracy-Widom


@pytest.mark.parametrize(
    "share, quantile",
    [(0.5, -1.2686), (0.7, -0.5923), (0.9, 0.4501), (0.95, 0.9793), (0.99, 2.0234)],
)
def test_tracy_widom_quantiles_are_those_of_the_table(share, quantile):
    assert tracy_widom_quantile(share) == pytest.approx(quantile, abs=1e-4)


# The sheet's lower tail is low by up to .0015; Painleve's equation, below, agrees with ours.
@pytest.mark.parametrize(
    "share, quantile", [(0.01, -3.8969), (0.05, -3.1808), (0.1, -2.7826), (0.3, -1.9105)]
)
def test_lower_tracy_widom_quantiles_are_near_those_of_the_table(share, quantile):
    assert 0 < tracy_widom_quantile(share) - quantile < 1.6e-3


def painleve(s, start=6.0):
    """``F_1 = exp(-(int (x - s) q^2 + int q) / 2)`` with ``q'' = s q + 2 q^3``, ``q ~ Ai``."""
    value, slope, _, _ = special.airy(start)

    def tail(function):
        return integrate.quad(lambda x: function(x, special.airy(x)[0]), start, 40, epsabs=0)[0]

    state = [
        value,
        slope,
        tail(lambda x, q: (x - start) * q**2),
        -tail(lambda x, q: q**2),
        tail(lambda x, q: q),
    ]

    def equation(x, y):
        return [y[1], x * y[0] + 2 * y[0] ** 3, y[3], y[0] ** 2, -y[0]]

    options = dict(rtol=1e-13, atol=1e-15, method="DOP853")
    end = integrate.solve_ivp(equation, [start, s], state, **options).y[:, -1]
    return math.exp(-(end[2] + end[4]) / 2)


@pytest.mark.parametrize("s", [-3.9, -2.78, -1, 0.45, 2])
def test_the_determinant_agrees_with_painleves_equation(s):
    assert tracy_widom_cdf(s) == pytest.approx(painleve(s), abs=1e-9)


def test_the_tails_of_tracy_widom_are_0_and_1():
    assert 0 <= tracy_widom_cdf(-12) < 1e-10 and 1 - 1e-10 < tracy_widom_cdf(14) <= 1
    assert tracy_widom_quantile(1e-6) < -6 and tracy_widom_quantile(1 - 1e-6) > 6


# Misuse, and what loading costs


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: marchenko_pastur_cdf(1, 0), "ratio=0"),
        (lambda: marchenko_pastur_pdf(1, math.inf), "ratio=inf"),
        (lambda: marchenko_pastur_edges(-1), "ratio=-1"),
        (lambda: marchenko_pastur_atom(math.nan), "ratio=nan"),
        (lambda: marchenko_pastur_moment(-1, 1), "order=-1"),
        (lambda: marchenko_pastur_quantile(1.5, 1), "probability=1.5"),
        (lambda: tracy_widom_quantile(1), "probability=1"),
    ],
)
def test_misuse_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_laws_and_the_null_load_without_jax():
    code = "import sys, spectral_jax.laws, spectral_jax.tails.null, spectral_jax.rmt as rmt;"
    code += "rmt.tracy_widom_quantile(0.9); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
