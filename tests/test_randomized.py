"""The randomised SVD keeps its promises on any spectrum, and its bases are orthonormal on any."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_jax.linalg import orthonormal
from spectral_jax.linalg.operators import LinearOperator
from spectral_jax.linalg.orthonormal import orthonormal_basis
from spectral_jax.linalg.randomized import randomized_svd

pytestmark = pytest.mark.usefixtures("quick_compilation")
M, N, RANK = 70, 50, 6
METHODS = ("krylov", "power")


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


def haar(rng, m, k):
    q, r = np.linalg.qr(rng.standard_normal((m, k)))
    return q * np.sign(np.diag(r))


def rotated(values, m=M, n=N, seed=0):
    """A dense matrix with these singular values and Haar-random singular vectors."""
    rng = np.random.default_rng(seed)
    return haar(rng, m, len(values)) * values @ haar(rng, n, len(values)).T


SPECTRA = {
    "decaying": np.exp(-np.arange(N) / 3),
    "polynomial": 1 / np.arange(1.0, N + 1),
    "flat": np.linspace(1, 0.7, N),
    "clustered": np.r_[1 + 1e-7 * np.arange(4)[::-1], 0.5 ** np.arange(1, N - 3)],
    "graded": np.logspace(0, -12, N),
    "rank-deficient": np.r_[np.linspace(3, 1, 4), np.zeros(N - 4)],
}


@cache
def solver(method, **options):
    return jax.jit(partial(randomized_svd, rank=RANK, method=method, **options))


def residual(a, result):
    return np.asarray(a, float) - np.asarray(result.u * result.s, float) @ np.asarray(result.vt)


def assert_orthonormal(q, *, atol):
    np.testing.assert_allclose(np.asarray(q.T @ q), np.eye(q.shape[1]), atol=atol)


# The approximation


@pytest.mark.parametrize(
    "method, options, dtype",
    [
        ("krylov", {}, "float32"),
        ("krylov", {}, "float64"),
        ("krylov", {"block": 2, "power_iterations": 4}, "float32"),
        ("krylov", {"block": 1, "power_iterations": RANK}, "float64"),
        ("power", {}, "float64"),
    ],
)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_is_a_projection_of_the_matrix_whatever_the_spectrum(method, options, spectrum, dtype):
    a = rotated(SPECTRA[spectrum])
    result = solver(method, **options)(jax.random.key(1), jnp.asarray(a, dtype))
    rounding = 100 * np.finfo(dtype).eps
    assert {x.dtype for x in (result.u, result.s, result.vt, result.error)} == {jnp.dtype(dtype)}
    assert_orthonormal(result.u, atol=rounding)
    assert_orthonormal(result.vt.T, atol=rounding)
    assert (np.diff(result.s) <= 0).all()
    # Values of Q Q^T A interlace with those of A: none is too large, the left vectors are its own.
    assert (np.asarray(result.s) <= SPECTRA[spectrum][:RANK] + rounding).all()
    np.testing.assert_allclose(result.u.T @ a, result.s[:, None] * result.vt, atol=rounding)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_mean_error_is_within_the_bound_of_halko_martinsson_and_tropp(spectrum):
    values, oversample, a = SPECTRA[spectrum], 4, jnp.asarray(rotated(SPECTRA[spectrum]))
    solve = solver("power", oversample=oversample, power_iterations=0)
    results = [solve(jax.random.key(seed), a) for seed in range(20)]
    squared = np.sum(values**2) - np.mean([np.sum(np.asarray(r.s) ** 2) for r in results])
    tail = np.sum(values[RANK:] ** 2)
    # Theorem 10.5 for Q Q^T A; truncation to rank k adds no more than the tail itself.
    assert squared <= (1 + RANK / (oversample - 1)) * tail + tail + 1e-12


@pytest.mark.parametrize("spectrum", ["decaying", "polynomial", "clustered", "graded"])
def test_converges_to_the_leading_triplets(spectrum):
    values = SPECTRA[spectrum]
    a = rotated(values)
    result = solver("krylov")(jax.random.key(0), jnp.asarray(a))
    np.testing.assert_allclose(result.s, values[:RANK], rtol=1e-8)
    u, _, vt = np.linalg.svd(a)
    projector = u[:, :RANK] @ u[:, :RANK].T
    np.testing.assert_allclose(result.u @ result.u.T, projector, atol=1e-4)
    np.testing.assert_allclose(result.vt.T @ result.vt, vt[:RANK].T @ vt[:RANK], atol=1e-4)


def test_krylov_beats_power_at_the_same_number_of_products():
    a = jnp.asarray(rotated(SPECTRA["flat"]))
    found = {m: solver(m)(jax.random.key(0), a).s for m in METHODS}
    assert (found["krylov"] > found["power"] + 1e-4).all()


@pytest.mark.parametrize("spectrum", ["decaying", "polynomial", "flat"])
def test_a_small_block_is_more_accurate_at_the_same_number_of_columns(spectrum):
    a = jnp.asarray(rotated(SPECTRA[spectrum]))
    columns = {1: 11, 2: 5, 6: 1}
    captured = [
        np.mean(
            [
                np.sum(solver("krylov", block=b, power_iterations=q)(jax.random.key(i), a).s ** 2)
                for i in range(8)
            ]
        )
        for b, q in columns.items()
    ]
    assert captured == sorted(captured, reverse=True)


def test_power_iterations_do_not_lose_what_is_small():
    # Twelve decades under q = 2: without the bases in between, sigma^5 would drown in rounding.
    values = np.r_[np.logspace(0, -9, RANK), 1e-12 * np.ones(N - RANK)]
    result = solver("power")(jax.random.key(0), jnp.asarray(rotated(values)))
    np.testing.assert_allclose(result.s, values[:RANK], rtol=1e-5)


@pytest.mark.parametrize(
    "method, m, n, k", [("krylov", 1, 9, 1), ("krylov", 9, 1, 1), ("power", 5, 5, 5)]
)
def test_small_matrices_are_exact(method, m, n, k):
    a = np.random.default_rng(0).standard_normal((m, n))
    result = randomized_svd(jax.random.key(0), jnp.asarray(a), k, method=method)
    np.testing.assert_allclose(result.s, np.linalg.svd(a)[1][:k], rtol=1e-12)
    assert_orthonormal(result.u, atol=1e-13)
    assert_orthonormal(result.vt.T, atol=1e-13)


def test_the_krylov_space_stops_growing_when_it_is_everything():
    a = np.random.default_rng(0).standard_normal((20, 33))
    result = randomized_svd(jax.random.key(0), jnp.asarray(a), 5, oversample=2, power_iterations=4)
    np.testing.assert_allclose(result.s, np.linalg.svd(a)[1][:5], rtol=1e-12)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([-150, -40, 0, 40, 150]), st.integers(0, 2**31))
def test_scales_carry_through(exponent, seed):
    a = rotated(SPECTRA["decaying"], seed=seed % 100)
    scale, solve, key = 10.0**exponent, solver("krylov"), jax.random.key(seed)
    plain, scaled = solve(key, jnp.asarray(a)), solve(key, jnp.asarray(a * scale))
    np.testing.assert_allclose(scaled.s, plain.s * scale, rtol=1e-10)
    np.testing.assert_allclose(scaled.error, plain.error * scale, rtol=1e-3)
    assert scaled.rank == plain.rank


def test_the_largest_entry_of_each_left_vector_is_positive():
    a = jnp.asarray(rotated(SPECTRA["decaying"]))
    results = [
        solver("krylov")(jax.random.key(seed), sign * a) for seed in (0, 1) for sign in (1, -1)
    ]
    for result in results:
        u = np.asarray(result.u)
        assert (u[np.argmax(np.abs(u), axis=0), np.arange(RANK)] > 0).all()
        np.testing.assert_allclose(u, results[0].u, atol=1e-4)


# The error, and the rank


@pytest.mark.parametrize("spectrum", ["decaying", "polynomial", "flat", "graded"])
def test_error_estimates_the_frobenius_norm_of_what_is_left(spectrum):
    a = rotated(SPECTRA[spectrum])
    results = [solver("krylov")(jax.random.key(seed), jnp.asarray(a)) for seed in range(40)]
    ratios = np.array([float(r.error) / np.linalg.norm(residual(a, r)) for r in results])
    # The mean of 40 times 10 probes, each of variance 2 at most.
    assert np.mean(ratios**2) == pytest.approx(1, abs=4 * np.sqrt(2 / 400))
    assert (ratios > 0.1).all()


def test_error_does_not_cancel_where_almost_nothing_is_left():
    # ||A||^2 - sum s^2 would be of the order of eps, its root of 1e-8.
    values = np.r_[np.ones(RANK), 1e-12 * np.ones(N - RANK)]
    result = solver("krylov")(jax.random.key(0), jnp.asarray(rotated(values)))
    assert float(result.error) == pytest.approx(1e-12 * np.sqrt(N - RANK), rel=0.3)


@pytest.mark.parametrize("tol, rank", [(0.4, 2), (0.2, 3), (0.1, 4)])
def test_tol_keeps_the_smallest_rank_that_reaches_it(tol, rank):
    values = 2.0 ** -np.arange(N)  # r of them leave 2^-r of the norm
    a, key = jnp.asarray(rotated(values)), jax.random.key(0)
    result = solver("krylov")(key, a, tol=tol)
    assert result.converged and result.rank == rank
    np.testing.assert_allclose(result.s[:rank], values[:rank], rtol=1e-9)
    assert not result.s[rank:].any() and not result.u[:, rank:].any() and not result.vt[rank:].any()
    assert float(result.error) == pytest.approx(np.linalg.norm(residual(a, result)), rel=0.05)


def test_an_unreached_tol_is_reported():
    result = solver("krylov")(jax.random.key(0), jnp.asarray(rotated(SPECTRA["flat"])), tol=0.1)
    assert not result.converged and result.rank == RANK and result.s.all()


@pytest.mark.parametrize("method", METHODS)
def test_rank_counts_what_stands_above_rounding(method):
    a = jnp.asarray(rotated(SPECTRA["rank-deficient"]))
    result = solver(method)(jax.random.key(0), a)
    assert result.rank == 4 and result.converged
    np.testing.assert_allclose(result.s, [*SPECTRA["rank-deficient"][:4], 0, 0], atol=1e-14)
    zero = solver(method)(jax.random.key(0), jnp.zeros((M, N)))
    assert zero.rank == 0 and zero.error == 0 and not zero.s.any()
    assert_orthonormal(zero.u, atol=1e-14)


@pytest.mark.parametrize("tol", [None, 0.1])
def test_nan_in_nan_out(tol):
    a = jnp.asarray(rotated(SPECTRA["flat"])).at[3, 4].set(jnp.nan)
    result = solver("krylov")(jax.random.key(0), a, tol=tol)
    assert jnp.isnan(result.s).all() and jnp.isnan(result.error) and jnp.isnan(result.u).all()
    assert not result.converged and result.rank == 0


# Operators, transforms, misuse


def low_rank_plus_diagonal():
    def matvec(data, x):
        left, right, diagonal = data
        return left @ (right @ x) + diagonal * x

    def rmatvec(data, y):
        left, right, diagonal = data
        return right.T @ (left.T @ y) + diagonal * y

    rng = np.random.default_rng(0)
    data = rng.standard_normal((N, 5)), rng.standard_normal((5, N)), rng.standard_normal(N)
    dense = data[0] @ data[1] + np.diag(data[2])
    return LinearOperator(matvec, rmatvec, jax.tree.map(jnp.asarray, data), (N, N)), dense


def test_an_operator_gives_what_its_matrix_gives():
    op, dense = low_rank_plus_diagonal()
    np.testing.assert_allclose(op.T @ jnp.eye(N), dense.T, atol=1e-13)
    ours = solver("krylov")(jax.random.key(0), op)
    theirs = solver("krylov")(jax.random.key(0), jnp.asarray(dense))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-10)


def test_products_with_the_transpose_of_a_tall_matrix_go_by_panels():
    a = np.random.default_rng(0).standard_normal((1024, 12))
    result = randomized_svd(jax.random.key(0), jnp.asarray(a), 3)
    np.testing.assert_allclose(result.s, np.linalg.svd(a)[1][:3], rtol=1e-12)


def test_a_batch_with_one_hard_matrix_is_a_loop():
    batch = [rotated(SPECTRA[name]) for name in ("flat", "graded", "rank-deficient")]
    keys = jax.random.split(jax.random.key(0), 3)
    mapped = jax.vmap(solver("krylov"))(keys, jnp.asarray(batch))
    for i, a in enumerate(batch):
        alone = solver("krylov")(keys[i], jnp.asarray(a))
        np.testing.assert_allclose(mapped.s[i], alone.s, atol=1e-12)
        np.testing.assert_allclose(mapped.u[i].T @ mapped.u[i], np.eye(RANK), atol=1e-13)


def test_values_have_the_gradient_of_converged_triplets():
    values = np.r_[np.arange(RANK, 0.0, -1), 0.01 * np.ones(N - RANK)]
    weights, a = np.linspace(1, 2, RANK), rotated(values)
    solve = solver("krylov")
    gradient = jax.grad(lambda a: weights @ solve(jax.random.key(0), a).s)(jnp.asarray(a))
    u, _, vt = np.linalg.svd(a)
    np.testing.assert_allclose(gradient, u[:, :RANK] * weights @ vt[:RANK], atol=1e-10)


@pytest.mark.parametrize("part", ["u", "vt", "error"])
def test_vectors_and_error_refuse_to_be_differentiated(part):
    def functional(a):
        return jnp.sum(getattr(solver("krylov")(jax.random.key(0), a), part))

    with pytest.raises(NotImplementedError, match="only that of s"):
        jax.eval_shape(jax.grad(functional), jnp.ones((M, N)))


@pytest.mark.parametrize(
    "shape, options, message",
    [
        ((5, 4), {"rank": 5}, "rank=5: choose 1 <= rank <= 4"),
        ((5, 4), {"rank": 0}, "rank=0"),
        ((0, 4), {"rank": 1}, "rank=1"),
        ((5, 4), {"rank": 1, "oversample": -1}, "oversample=-1"),
        ((5, 4), {"rank": 1, "power_iterations": -1}, "power_iterations=-1"),
        ((5, 4), {"rank": 1, "method": "lanczos"}, "method='lanczos'"),
        ((5, 4), {"rank": 4, "block": 1, "power_iterations": 1}, "choose block >= 2 or more iter"),
        ((5, 4), {"rank": 1, "block": 0}, "block=0"),
        ((5, 4), {"rank": 1, "block": 2, "method": "power"}, "use oversample"),
        ((2, 5, 4), {"rank": 1}, "vmap for a batch"),
    ],
)
def test_misuse_is_named(shape, options, message):
    with pytest.raises(ValueError, match=message):
        randomized_svd(jax.random.key(0), jnp.zeros(shape), **options)


# Orthonormal bases


def sketch(condition, m=60, k=8):
    return jnp.asarray(rotated(np.logspace(0, np.log10(condition), k), m, k))


@pytest.fixture
def householder_calls(monkeypatch):
    """Whether the fallback ran: told from inside the compiled branch."""
    calls, plain = [], orthonormal._householder

    def watched(basis, x):
        jax.debug.callback(lambda: calls.append(1))
        return plain(basis, x)

    monkeypatch.setattr(orthonormal, "_householder", watched)
    return calls


def basis_of(x, *against):
    # A new function each time: branches that were traced without the watch are not found again.
    q = jax.jit(lambda *blocks: orthonormal_basis(*blocks))(x, *against)
    jax.effects_barrier()
    return q


@pytest.mark.parametrize("condition, falls_back", [(1, False), (1e-4, False), (1e-12, True)])
def test_householder_takes_over_when_the_gram_matrix_cannot_see_the_block(
    condition, falls_back, householder_calls
):
    x = sketch(condition)
    q = basis_of(x)
    assert bool(householder_calls) == falls_back
    assert_orthonormal(q, atol=1e-14)
    np.testing.assert_allclose(q @ (q.T @ x), x, atol=1e-14)


@pytest.mark.parametrize("block", ["generic", "inside", "zero", "nearly inside"])
def test_a_basis_against_another_is_orthogonal_to_it(block):
    against = jnp.asarray(haar(np.random.default_rng(0), 60, 5))
    generic = sketch(1e-2)
    x = {
        "generic": generic,
        "inside": against @ (against.T @ generic),
        "zero": jnp.zeros((60, 8)),
        "nearly inside": against @ (against.T @ generic) + 1e-12 * generic,
    }[block]
    q = basis_of(x, against)
    assert_orthonormal(jnp.concatenate([against, q], axis=1), atol=1e-13)


def test_columns_of_any_length_need_no_fallback(householder_calls):
    x = sketch(1e-1) * jnp.logspace(-200, 200, 8)
    assert_orthonormal(basis_of(x), atol=1e-14)
    assert not householder_calls


def test_a_batch_repairs_only_what_needs_it():
    batch = jnp.stack([sketch(1), sketch(1e-12), jnp.zeros((60, 8))])
    mapped = jax.jit(jax.vmap(orthonormal_basis))(batch)
    for q, x in zip(mapped, batch, strict=True):
        assert_orthonormal(q, atol=1e-14)
        np.testing.assert_allclose(q, basis_of(x), atol=1e-12)


def test_a_good_batch_pays_for_no_householder(householder_calls):
    jax.jit(jax.vmap(lambda x: orthonormal_basis(x)))(jnp.stack([sketch(1), sketch(1e-2)]))
    jax.effects_barrier()
    assert not householder_calls


def test_more_columns_than_rows_are_refused():
    with pytest.raises(ValueError, match="no more than 3 columns"):
        orthonormal_basis(jnp.ones((3, 2)), jnp.eye(3)[:, :2])
