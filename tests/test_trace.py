"""Trace and diagonal estimates: exact where promised, unbiased, and honest about their error."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_jax.linalg import dense_operator
from spectral_jax.linalg.trace import diagonal, trace

pytestmark = pytest.mark.usefixtures("quick_compilation")
N = 60
KEY = jax.random.key(5)
TRACES, DIAGONALS = ("xtrace", "hutch++", "hutchinson"), ("xdiag", "hutchinson")
ESTIMATORS = [(trace, m) for m in TRACES] + [(diagonal, m) for m in DIAGONALS]
LEARNING = [(trace, "xtrace"), (trace, "hutch++"), (diagonal, "xdiag")]
TRUTH = {trace: np.trace, diagonal: np.diag}


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


def rotated(eigenvalues, dtype="float64"):
    """A matrix with Haar-random eigenvectors: signs would see a diagonal one without error."""
    vectors, r = np.linalg.qr(np.random.default_rng(0).standard_normal((len(eigenvalues),) * 2))
    vectors = vectors * np.sign(np.diag(r))
    a = vectors * eigenvalues @ vectors.T
    return ((a + a.T) / 2).astype(dtype)


def operator(a):
    return dense_operator(jnp.asarray(a))


def many(estimator, a, *, seeds, **options):
    """Independent estimates, in one program."""
    one = jax.vmap(lambda key: estimator(operator(a), key, **options))
    return jax.jit(one)(jax.random.split(KEY, seeds))


DECAYING = rotated(1.0 / (1 + np.arange(N)) ** 2)
FLAT = rotated(np.random.default_rng(1).uniform(-1, 2, N))


# Exactness


@pytest.mark.parametrize("dtype, tolerance", [("float32", 3e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("estimator, method", LEARNING)
@pytest.mark.parametrize("rank", [1, 5, 9])
def test_low_rank_is_exact_and_says_so(estimator, method, rank, dtype, tolerance):
    a = rotated(np.r_[np.linspace(-2, 5, rank), np.zeros(N - rank)], dtype)
    found = estimator(operator(a), KEY, matvecs=30, method=method)
    np.testing.assert_allclose(found.value, TRUTH[estimator](a), atol=5 * tolerance)
    assert (found.standard_error <= 5 * tolerance).all()
    assert found.value.dtype == found.standard_error.dtype == dtype


@pytest.mark.parametrize("estimator, method", LEARNING)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_scale_does_not_matter(estimator, method, scale):
    found = estimator(operator(scale * DECAYING), KEY, matvecs=20, method=method)
    plain = estimator(operator(DECAYING), KEY, matvecs=20, method=method)
    np.testing.assert_allclose(found.value, scale * plain.value, rtol=1e-9, atol=1e-12 * scale)


@pytest.mark.parametrize("estimator, method", ESTIMATORS)
def test_a_budget_of_n_products_is_exact(estimator, method):
    for a in (DECAYING, FLAT, jnp.ones((1, 1)), jnp.zeros((5, 5))):
        found = estimator(operator(a), KEY, matvecs=N, method=method)
        np.testing.assert_allclose(found.value, TRUTH[estimator](a), atol=1e-14)
        assert not found.standard_error.any() and found.matvecs == len(a)


def test_rotation_free_cases_have_no_error():
    """The sphere sees multiples of the identity, and signs see a diagonal, without variance."""
    assert trace(
        operator(3.0 * jnp.eye(N)), KEY, matvecs=4, method="hutchinson"
    ).value == pytest.approx(3 * N)
    entries = jnp.arange(float(N))
    found = diagonal(operator(jnp.diag(entries)), KEY, matvecs=2, method="hutchinson")
    np.testing.assert_array_equal(found.value, entries)


# Statistics


@pytest.mark.parametrize("estimator, method", ESTIMATORS)
@pytest.mark.parametrize("a", [DECAYING, FLAT], ids=["decaying", "flat"])
def test_estimates_are_unbiased_and_their_errors_calibrated(estimator, method, a):
    seeds, truth = 400, TRUTH[estimator](a)
    found = many(estimator, a, seeds=seeds, matvecs=30, method=method)
    values, errors = np.asarray(found.value), np.asarray(found.standard_error)
    spread = values.std(axis=0, ddof=1)
    assert (np.abs(values.mean(axis=0) - truth) <= 5 * spread / seeds**0.5).all()
    claimed = np.sqrt((errors**2).mean(axis=0))
    assert 0.75 <= np.median(claimed / spread) <= 1.35
    covered = np.abs(values - truth) <= 2.2 * errors
    # Leave-one-out samples are correlated: the error of one estimate is itself uncertain.
    assert 0.8 <= covered.mean() <= 0.995


def test_methods_that_learn_the_range_beat_those_that_do_not_where_the_spectrum_decays():
    spread = {
        (f, m): np.asarray(many(f, DECAYING, seeds=50, matvecs=30, method=m).value)
        .std(axis=0)
        .mean()
        for f, m in ESTIMATORS
    }
    assert spread[trace, "xtrace"] < spread[trace, "hutch++"] < spread[trace, "hutchinson"] / 5
    assert spread[diagonal, "xdiag"] < spread[diagonal, "hutchinson"] / 5


@pytest.mark.parametrize("estimator, method", ESTIMATORS)
def test_the_budget_is_kept(estimator, method):
    for budget in (7, 30):
        found = estimator(operator(FLAT), KEY, matvecs=budget, method=method)
        assert budget - 1 <= found.matvecs <= budget


def test_one_sample_knows_no_error():
    for estimator in (trace, diagonal):
        found = estimator(operator(FLAT), KEY, matvecs=1, method="hutchinson")
        assert jnp.isnan(found.standard_error).all() and jnp.isfinite(found.value).all()


# Failure


@pytest.mark.parametrize("estimator, method", ESTIMATORS)
def test_a_nan_is_not_swallowed(estimator, method):
    a = FLAT.copy()
    a[2, 3] = np.nan
    found = estimator(operator(a), KEY, matvecs=12, method=method)
    touched = found.value if estimator is trace else found.value[2]
    assert jnp.isnan(touched)


@pytest.mark.parametrize("estimator", [trace, diagonal])
def test_nonsense_is_refused(estimator):
    ask = partial(estimator, operator(FLAT), KEY)
    with pytest.raises(ValueError, match="method='qr': choose 'x"):
        ask(method="qr")
    with pytest.raises(ValueError, match="matvecs=3: choose at least 4 .for 'x"):
        ask(matvecs=3)
    with pytest.raises(ValueError, match="matvecs=0: choose at least 1 .for 'h"):
        ask(matvecs=0, method="hutchinson")
