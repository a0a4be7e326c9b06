"""Solvers know no scale: what holds of an operator holds of its multiples, diagnostics included."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_jax.linalg import (
    dense_operator,
    diagonal,
    eigsh,
    gram,
    logdet,
    randomized_svd,
    spectral_density,
    trace,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")
N = 24
KEY = jax.random.key(0)
DRAW = np.random.default_rng(0).standard_normal((N, N))
SYMMETRIC = DRAW + DRAW.T
# Half of the vectors are in the null space.
HALF = np.where((np.arange(N) < N // 2)[:, None], DRAW, 0) @ DRAW
HALF = HALF @ HALF.T
SCALES = {"float32": (1e-30, 1e-20, 1e19, 1e30), "float64": (1e-290, 1e-150, 1e155, 1e300)}


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def scaled(a, scale, dtype):
    """The multiple by a power of two, which rounds nothing."""
    return jnp.asarray(np.ldexp(a.astype(dtype), round(np.log2(scale))))


def assert_scales(solve, a, dtype, *, tolerance):
    """``solve(a)`` gives numbers that scale with ``a``, and what does not scale."""
    solve = jax.jit(solve)
    numbers, others = jax.device_get(solve(jnp.asarray(a.astype(dtype))))
    for scale in SCALES[dtype]:
        unit = 2.0 ** round(np.log2(scale))
        found, same = jax.device_get(solve(scaled(a, scale, dtype)))
        for ours, plain in zip(found, numbers, strict=True):
            # Errors are rounding of the operator, whatever the size of a number that it makes.
            bound = tolerance * np.abs(np.linalg.eigvalsh(a)).max()
            np.testing.assert_allclose(ours / unit, plain, rtol=tolerance, atol=bound)
        for ours, plain in zip(same, others, strict=True):
            np.testing.assert_array_equal(ours, plain)


TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


@pytest.mark.parametrize("method, k", [("lobpcg", 1), ("lanczos", 3)])
def test_eigenpairs_scale_and_converge_alike(method, k, dtype):
    def solve(a):
        found = eigsh(dense_operator(a), k, which="LA", method=method)
        return (found.values,), (found.converged,)

    assert_scales(solve, SYMMETRIC, dtype, tolerance=TOLERANCE[dtype])


def test_a_start_in_the_null_space_hides_no_operator(dtype):
    start = jnp.zeros(N, dtype).at[-1].set(1)

    def solve(a):
        found = eigsh(dense_operator(a), 1, which="LA", v0=start, method="lobpcg")
        return (found.values,), (found.converged,)

    null = np.where(np.arange(N) < N - 2, HALF, 0)
    assert_scales(solve, (null + null.T) / 2, dtype, tolerance=TOLERANCE[dtype])


def test_a_batch_with_a_start_in_the_null_space_is_right_too():
    starts = jnp.eye(N, dtype="float32")[jnp.array([0, N - 1])]
    null = jnp.asarray(np.where(np.arange(N) < N - 2, HALF, 0), "float32")

    @jax.vmap
    def solve(a, start):
        return eigsh(dense_operator(a), 1, which="LA", v0=start, method="lobpcg")

    for scale in (1e-20, 1.0):
        ops = jnp.float32(scale) * jnp.stack([(null + null.T) / 2] * 2)
        found = solve(ops, starts)
        largest = np.linalg.eigvalsh(np.asarray(ops[0], float) / scale)[-1]
        np.testing.assert_allclose(found.values[:, 0] / scale, [largest] * 2, rtol=1e-5)
        assert found.converged.all()


@pytest.mark.parametrize("reorthogonalise", [True, False])
def test_densities_scale(reorthogonalise, dtype):
    def solve(a):
        op = dense_operator(a)
        found = spectral_density(op, KEY, probes=2, steps=6, reorthogonalise=reorthogonalise)
        return (found.nodes,), (found.rank,)

    assert_scales(solve, SYMMETRIC, dtype, tolerance=10 * TOLERANCE[dtype])


ESTIMATORS = {
    **{method: partial(trace, method=method) for method in ("xtrace", "hutch++", "hutchinson")},
    **{f"{m}, diagonal": partial(diagonal, method=m) for m in ("xdiag", "hutchinson")},
}


@pytest.mark.parametrize("method", ESTIMATORS)
def test_estimates_scale_with_their_errors(method, dtype):
    def solve(a):
        found = ESTIMATORS[method](dense_operator(a), KEY, matvecs=12)
        return (found.value, found.standard_error), ()

    assert_scales(solve, SYMMETRIC, dtype, tolerance=10 * TOLERANCE[dtype])


def test_triplets_scale_with_their_error(dtype):
    def solve(a):
        found = randomized_svd(KEY, a, 4)
        return (found.s, found.error), (found.rank, found.converged)

    assert_scales(solve, DRAW, dtype, tolerance=TOLERANCE[dtype])


def test_a_log_determinant_is_shifted_by_that_of_the_scale(dtype):
    positive = SYMMETRIC @ SYMMETRIC + np.eye(N)
    plain, *others = (
        float(logdet(dense_operator(scaled(positive, scale, dtype)), KEY, probes=2).value)
        - N * round(np.log2(scale)) * np.log(2)
        for scale in (1.0, *SCALES[dtype])
    )
    # The logarithms of the scale add up to 70 N in float32, and 700 N in float64.
    np.testing.assert_allclose(others, plain, atol=700 * N * TOLERANCE[dtype])


def test_derivatives_of_eigenvectors_are_those_of_the_scale():
    weights = jnp.cos(jnp.arange(N))

    @jax.jit
    def slope(a):
        return jax.grad(lambda a: (weights @ eigsh(dense_operator(a)).vectors[:, 0]) ** 2)(a)

    plain = slope(scaled(SYMMETRIC, 1.0, "float32"))
    for scale in SCALES["float32"]:
        unit = 2.0 ** round(np.log2(scale))
        found = slope(scaled(SYMMETRIC, scale, "float32")) * unit
        np.testing.assert_allclose(found, plain, atol=1e-3 * float(jnp.abs(plain).max()))


@pytest.mark.parametrize("method", ["lobpcg", "lanczos"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_what_overflows_has_no_value_and_has_not_converged(method, bad):
    a = SYMMETRIC.astype("float32")
    a[2, 3] = a[3, 2] = bad
    # Squares of 3e38 are out of range for every multiple: A^T A has no float32 values.
    found = eigsh(gram(jnp.asarray(a)), 2, which="LA", method=method, max_matvecs=80)
    assert np.isnan(found.values).all() and not found.converged.any()


MISUSE = {
    "k": (eigsh, (True, 2.0, 0)),
    "max_matvecs": (partial(eigsh, method="lanczos"), (2, 0, -5, 10.5, True)),
    "probe_steps": (eigsh, (0, True)),
    "tol": (eigsh, (np.nan, np.inf, -1e-3, True)),
    "probes": (partial(spectral_density, key=KEY), (0, True, 1.5)),
    "steps": (partial(spectral_density, key=KEY), (0, True, 1.5)),
    "matvecs": (partial(trace, key=KEY), (3, True, 60.0)),
}


@pytest.mark.parametrize("method", ["lobpcg", "lanczos"])
@pytest.mark.parametrize(
    ("scale", "dtype"), [(1e-35, "float32"), (1e-37, "float32"), (1e-300, "float64")]
)
def test_what_products_take_for_zero_has_not_converged(method, scale, dtype):
    """XLA on a CPU has no subnormal numbers: the smooth vectors of a path multiply to exact 0."""
    path = 2 * np.eye(N) - np.eye(N, k=1) - np.eye(N, k=-1)
    path[0, 0] = path[-1, -1] = 1
    with jax.enable_x64(dtype == "float64"):
        op = dense_operator(jnp.asarray(path * scale, dtype))
        assert not eigsh(op, 2, method=method, max_matvecs=500).converged.any()


@pytest.mark.parametrize("name", MISUSE)
def test_counts_are_whole_and_tolerances_finite(name):
    solve, values = MISUSE[name]
    for value in values:
        with pytest.raises(ValueError, match=f"^{name}={value}.*: choose"):
            solve(dense_operator(jnp.eye(N)), **{name: value})


@pytest.mark.parametrize(
    "options",
    [{"rank": True}, {"rank": 2.0}, {"oversample": 1.5}, {"power_iterations": -1}, {"block": True}],
)
def test_options_of_the_randomised_svd_are_whole_numbers(options):
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=f"^{name}={value}.*: choose"):
        randomized_svd(KEY, jnp.eye(N), **{"rank": 2, **options})


def test_a_tolerance_of_the_randomised_svd_is_finite_and_a_block_is_not_oversampled():
    for tol in (np.nan, -1.0):
        with pytest.raises(ValueError, match="tol=.*: choose a finite number, 0 or above"):
            randomized_svd(KEY, jnp.eye(N), 2, tol=tol)
    tolerances = jnp.array([0.0, 10.0])
    met = jax.vmap(lambda tol: randomized_svd(KEY, jnp.eye(N), 2, tol=tol).converged)(tolerances)
    assert met.tolist() == [False, True]
    assert randomized_svd(KEY, jnp.eye(N), 2, tol=tolerances[1]).converged
    with pytest.raises(ValueError, match="oversample=3 beside block=4"):
        randomized_svd(KEY, jnp.eye(N), 2, oversample=3, block=4)


def test_the_fewest_products_that_are_allowed_do_return():
    for method, k, least in (("lanczos", 1, 3), ("lanczos", 2, 4), ("lobpcg", 2, 4)):
        op = dense_operator(jnp.asarray(SYMMETRIC, "float32"))
        with pytest.raises(ValueError, match=f"max_matvecs={least - 1}: choose at least {least}"):
            eigsh(op, k, method=method, max_matvecs=least - 1)
        found = eigsh(op, k, method=method, max_matvecs=least)
        assert found.matvecs <= least and not found.converged.any()
