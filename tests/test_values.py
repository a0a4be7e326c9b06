"""Values are right on hard spectra and at any scale, and so are derivatives; Gram says its end."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_jax.linalg.decompositions import eigh, svd, to_unit_size
from spectral_jax.linalg.tridiagonal import tridiagonal_eigvals
from spectral_jax.linalg.values import eigvalsh, spectral_norm, svdvals

pytestmark = pytest.mark.usefixtures("quick_compilation")
N = 16
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


SPECTRA = {
    "clustered": np.r_[np.ones(N // 2) + 1e-6 * np.arange(N // 2), np.linspace(2, 3, N // 2)],
    "repeated": np.r_[np.ones(N // 2), np.full(N // 2, 3.0)],
    "graded over 12 decades": np.logspace(-12, 0, N),
    "rank-deficient": np.r_[np.zeros(N // 2), np.linspace(1, 2, N // 2)],
}


def orthogonal(rows, columns, rng):
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def with_eigenvalues(values, seed=0):
    q = orthogonal(N, N, np.random.default_rng(seed))
    return q * values @ q.T


def with_singular_values(values, rows, seed=0):
    rng = np.random.default_rng(seed)
    return orthogonal(rows, len(values), rng) * values @ orthogonal(len(values), len(values), rng).T


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("method", ["tridiagonal", "lapack"])
def test_eigenvalues_of_hard_spectra(dtype, method):
    """Signs alternate, so that both ends of the spectrum are there."""
    spectra = np.stack([values * (-1) ** np.arange(N) for values in SPECTRA.values()])
    a = np.stack([with_eigenvalues(values) for values in spectra])
    found = eigvalsh(jnp.asarray(a, dtype), method=method)
    expected = np.linalg.eigvalsh(a.astype(dtype).astype(float))
    assert np.abs(found - expected).max() <= 8 * EPS[dtype] * np.abs(expected).max()


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("rows", [N, 2 * N], ids=["square", "tall"])
def test_auto_keeps_the_smallest_singular_values(dtype, rows):
    """The Gram matrix alone would put an error of sqrt(eps) there."""
    a = np.stack([with_singular_values(values, rows) for values in SPECTRA.values()])
    found = svdvals(jnp.asarray(a, dtype))
    expected = np.linalg.svd(a.astype(dtype).astype(float), compute_uv=False)
    assert np.abs(found - expected).max() <= 10 * EPS[dtype] * expected.max()


def test_one_ill_conditioned_matrix_sends_the_batch_to_lapack():
    good, bad = np.linspace(1, 2, N), np.logspace(-5, 0, N)
    a = np.stack([with_singular_values(v, 2 * N) for v in (*[good] * 8, bad)])
    found = svdvals(jnp.asarray(a, jnp.float32))
    np.testing.assert_allclose(found[-1], bad[::-1], atol=2e-6, rtol=0)
    np.testing.assert_allclose(found[0], good[::-1], rtol=1e-6)


def test_gram_marks_what_it_cannot_see_and_nothing_else():
    values = np.logspace(-6, 0, N)
    a = jnp.asarray(with_singular_values(values, 2 * N)[None], jnp.float32)
    found = np.asarray(svdvals(a, method="gram"))[0]
    floor = (N * EPS["float32"]) ** 0.5
    marked = np.isnan(found)
    # Right at the floor either verdict is honest.
    assert not marked[values[::-1] > 2 * floor].any() and marked[values[::-1] < floor / 2].all()
    # The stated law: absolute error of about eps max(s)^2 / s.
    error = np.abs(found - values[::-1]) * values[::-1]
    assert np.nanmax(error) <= 8 * EPS["float32"]


def test_gram_is_refused_where_there_is_a_hard_edge():
    with pytest.raises(ValueError, match="6 x 8 matrices .* use 'auto' or 'lapack'"):
        svdvals(jnp.ones((6, 8)), method="gram")


@settings(max_examples=12, deadline=None)
@given(
    shape=st.sampled_from([(1, 1), (1, 5), (5, 1), (3, 7), (7, 3), (4, 4)]),
    exponent=st.integers(-30, 30),
    seed=st.integers(0, 2**31),
)
def test_any_scale_and_shape(shape, exponent, seed):
    a = np.random.default_rng(seed).standard_normal((8, *shape)) * 10.0**exponent
    a = a.astype("float32")
    expected = np.linalg.svd(a.astype(float), compute_uv=False)
    error = np.abs(svdvals(jnp.asarray(a)) - expected)
    assert (error <= 1e-6 * expected[:, :1]).all()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_eigenvalues_at_any_scale(scale):
    a = np.stack([with_eigenvalues(values * scale) for values in SPECTRA.values()] * 2)
    found = eigvalsh(jnp.asarray(a, jnp.float32))
    expected = np.linalg.eigvalsh(a)
    assert np.abs(found - expected).max() <= 1e-6 * expected.max()


@pytest.mark.parametrize("function, shape", [(eigvalsh, (3, 2)), (svdvals, (3,)), (eigvalsh, (3,))])
def test_what_is_no_matrix_is_refused(function, shape):
    with pytest.raises(ValueError, match="a has shape"):
        function(jnp.ones(shape))


def test_unknown_methods_and_complex_numbers_are_refused():
    with pytest.raises(ValueError, match="method='qr': choose 'auto', 'lapack' or 'tridiagonal'"):
        eigvalsh(jnp.eye(2), method="qr")
    for function in (eigvalsh, svdvals, eigh, svd, spectral_norm):
        with pytest.raises(ValueError, match="complex dtype complex64"):
            function(jnp.ones((2, 2), jnp.complex64))


def test_infinite_entries_give_nan_for_that_matrix_only():
    a = jnp.broadcast_to(jnp.eye(4), (8, 4, 4)).at[3, 0, 0].set(jnp.inf)
    for function in (eigvalsh, svdvals):
        np.testing.assert_array_equal(np.isnan(function(a)).any(-1), np.arange(8) == 3)


def test_second_derivatives_at_simple_eigenvalues():
    """``d2 lambda_0 = 2 sum_j (v_0^T e v_j)^2 / (lambda_0 - lambda_j)`` along ``e``."""
    values = np.linspace(1, 2, N)
    a, e = (
        jnp.asarray(with_eigenvalues(values)),
        jnp.asarray(with_eigenvalues(values[::-1], seed=1)),
    )
    found = jax.jvp(lambda a: jax.jvp(lambda a: eigvalsh(a)[0], (a,), (e,))[1], (a,), (e,))[1]
    w, v = np.linalg.eigh(a)
    coupling = v[:, 0] @ np.asarray(e) @ v[:, 1:]
    np.testing.assert_allclose(found, 2 * np.sum(coupling**2 / (w[0] - w[1:])), rtol=1e-8)


@pytest.mark.parametrize("values, largest", [(svdvals, 0.2070708), (eigvalsh, 0.2554486)])
def test_second_derivatives_know_no_scale(values, largest):
    """jax#40185; the numbers are those of central differences of NumPy's values in float64."""
    a = jnp.array([[4.0, 1, 0], [1, 3, 1], [0, 1, 2]], "float32")
    pick = jnp.sum if values is svdvals else jnp.max
    hessian = jax.jit(jax.hessian(lambda a: pick(values(a))))
    for scale in (1e-30, 1e-20, 1.0, 1e8, 1e19, 1e30):
        found = jnp.max(jnp.abs(hessian(a * jnp.float32(scale))))
        assert float(found) * scale == pytest.approx(largest, rel=1e-4)


def weighted(u, s, vt):
    """Determined by a matrix, though the signs of its vectors are not."""
    product = (u * jnp.sin(s)[:, None]) @ vt
    return jnp.sum(product * jnp.cos(jnp.arange(product.size)).reshape(product.shape))


def symmetric_parts(decompose, a):
    values, vectors = decompose(a + jnp.swapaxes(a, 1, 2))
    return vectors, values, jnp.swapaxes(vectors, 1, 2)


def thin(a):
    return jnp.linalg.svd(a, full_matrices=False)


@pytest.mark.parametrize(
    "ours, theirs, shape",
    [
        (svd, thin, (3, 9, 6)),
        (svd, thin, (3, 6, 9)),
        (svd, thin, (3, 6, 6)),
        (partial(symmetric_parts, eigh), partial(symmetric_parts, jnp.linalg.eigh), (3, 6, 6)),
    ],
    ids=["tall", "wide", "square", "symmetric"],
)
def test_derivatives_of_vectors_are_those_of_jax_where_it_has_some(ours, theirs, shape):
    a, direction = jnp.asarray(np.random.default_rng(0).standard_normal((2, *shape)))

    @partial(jax.jit, static_argnums=0)
    def slopes(decompose):
        slope = jax.grad(lambda a: weighted(*decompose(a)))
        return jax.jvp(slope, (a,), (direction,))

    for found, expected in zip(slopes(ours), slopes(theirs), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_the_projector_on_a_whole_eigenspace_has_its_derivative_though_vectors_have_none():
    values = np.r_[np.ones(3), np.linspace(2, 3, N - 3)]
    a, c = with_eigenvalues(values), np.cos(np.arange(N * N)).reshape(N, N)

    def objective(a):
        inside = eigh(a).vectors[:, :3]
        return jnp.vdot(c, inside @ inside.T)

    gradient = jax.grad(objective)(jnp.asarray(a))
    # d P = sum over the eigenvalues outside of P dA Q / (inside - outside), and its transpose.
    vectors = np.linalg.eigh(a)[1]
    weights = 1 / (values[:3, None] - values[None, 3:])
    mixed = vectors[:, :3].T @ (c + c.T) / 2 @ vectors[:, 3:]
    expected = vectors[:, :3] @ (weights * mixed) @ vectors[:, 3:].T
    np.testing.assert_allclose(gradient, expected + expected.T, atol=1e-9)


def test_the_spectral_norm_is_that_of_numpy():
    a = np.random.default_rng(0).standard_normal((2, 5, 8))
    np.testing.assert_allclose(spectral_norm(jnp.asarray(a)), np.linalg.norm(a, 2, axis=(1, 2)))


def test_gradient_at_repeated_singular_values_is_a_rotation_free_sum():
    """The sum over a repeated group has a gradient, ``U V^T``, whatever basis is chosen."""
    a = jnp.asarray(with_singular_values(np.ones(N), 2 * N))
    gradient = jax.grad(lambda a: svdvals(a).sum())(a)
    np.testing.assert_allclose(gradient, a, atol=1e-12)


def wilkinson(m):
    """Eigenvalue pairs at the top agree to machine precision."""
    return np.abs(np.arange(-m, m + 1.0)), np.ones(2 * m)


def second_difference(n):
    return np.full(n, 2.0), np.full(n - 1, -1.0)


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize(
    "diagonal, off_diagonal",
    [
        wilkinson(10),
        second_difference(21),
        (np.zeros(21), np.ones(20)),  # eigenvalue 0, met exactly by the first midpoint
        (-np.zeros(21), np.zeros(20)),
        (np.arange(21.0), np.zeros(20)),
        (np.logspace(-12, 0, 21), np.logspace(-12, 0, 20)),
    ],
    ids=["Wilkinson", "second difference", "zero diagonal", "negative zero", "diagonal", "graded"],
)
def test_tridiagonal_matrices(diagonal, off_diagonal, dtype):
    dense = np.diag(diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1)
    expected = np.linalg.eigvalsh(dense)
    found = jax.jit(tridiagonal_eigvals)(diagonal.astype(dtype), off_diagonal.astype(dtype))
    assert found.dtype == dtype and (np.diff(found) >= 0).all()
    assert np.abs(np.asarray(found) - expected).max() <= 4 * EPS[dtype] * np.abs(expected).max()


def test_scaling_for_lapack_rounds_nothing():
    a = np.random.default_rng(0).standard_normal((3, 5, 5)).astype(np.float32)
    a *= np.float32([1e-30, 1, 1e30])[:, None, None]
    unit, scale = to_unit_size(jnp.asarray(a))
    assert jnp.all((0.5 <= jnp.abs(unit).max((1, 2))) & (jnp.abs(unit).max((1, 2)) < 1))
    np.testing.assert_array_equal(unit * scale[..., None], a)
