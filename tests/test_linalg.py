"""Eigensolvers find the right pairs of any spectrum, and say so when they did not."""

from functools import cache, partial

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg

from spectral_jax.linalg import (
    SymmetricOperator,
    dense_operator,
    eigsh,
    generic_vectors,
    lanczos,
    unit,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")
N = 60


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


def rotated(eigenvalues, seed=0):
    """A dense symmetric matrix with these eigenvalues and Haar-random eigenvectors (columns)."""
    eigenvalues = np.sort(np.asarray(eigenvalues, float))
    draw = np.random.default_rng(seed).standard_normal((len(eigenvalues), len(eigenvalues)))
    vectors, r = np.linalg.qr(draw)
    vectors = vectors * np.sign(np.diag(r))
    a = vectors * eigenvalues @ vectors.T
    return (a + a.T) / 2, vectors


def best(a, k, which):
    values = np.linalg.eigvalsh(a)
    if which == "BE":
        return np.r_[values[: k // 2], values[::-1][: k - k // 2]]
    return values[:k] if which == "SA" else values[::-1][:k]


SPECTRA = {
    "random": np.random.default_rng(7).standard_normal(N),
    "clustered": np.r_[1 + 1e-6 * np.arange(4), np.linspace(2, 3, N - 8), 4 + 1e-6 * np.arange(4)],
    "repeated": np.r_[[1.0] * 5, np.linspace(1.05, 3, N - 8), [4.0] * 3],
    "graded, large end": -np.logspace(-8, 0, N),
    "rank-deficient": np.r_[[0.0] * 10, np.linspace(1, 3, N - 10)],
    "indefinite": np.r_[-np.logspace(-6, 0, N // 2), np.logspace(-6, 0, N // 2)],
}
SEARCHES = (
    ("lobpcg", "SA", 1),
    ("lobpcg", "LA", 2),
    ("lobpcg", "SA", 6),
    ("lanczos", "LA", 3),
    ("lanczos", "SA", 4),
    ("lanczos", "SA", 5),
    ("lanczos", "BE", 7),
)


def assert_honest(a, result, *, atol):
    """What a result says of itself is so: orthonormal vectors, Rayleigh quotients, residuals."""
    a, values, vectors = np.asarray(a), np.asarray(result.values), np.asarray(result.vectors)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(len(values)), atol=atol)
    images = a @ vectors
    scale = np.linalg.norm(a, 2)
    np.testing.assert_allclose(values, np.sum(vectors * images, axis=0), atol=atol * scale)
    residuals = np.linalg.norm(images - vectors * values, axis=0)
    np.testing.assert_allclose(result.residuals, residuals, rtol=1e-4, atol=atol * scale)


# eigsh: the pairs


@pytest.mark.parametrize("method, which, k", SEARCHES)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_finds_the_extreme_pairs_of_any_spectrum(method, which, k, spectrum):
    a, _ = rotated(SPECTRA[spectrum])
    if which == "LA" and spectrum == "graded, large end":
        a = -a
    result = eigsh(dense_operator(jnp.asarray(a)), k, which=which, method=method)
    assert result.converged.all()
    np.testing.assert_allclose(result.values, best(a, k, which), atol=1e-7)
    assert_honest(a, result, atol=1e-13)


@pytest.mark.parametrize("method, which, k", [("lobpcg", "SA", 1), ("lanczos", "SA", 4)])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_finds_them_in_single_precision(method, which, k, spectrum):
    a, _ = rotated(SPECTRA[spectrum])
    result = eigsh(dense_operator(jnp.asarray(a, "float32")), k, which=which, method=method)
    assert result.values.dtype == result.vectors.dtype == jnp.float32
    assert result.converged.all()
    np.testing.assert_allclose(result.values, best(a, k, which), atol=2e-5)
    assert_honest(np.asarray(a, "float32"), result, atol=3e-6)


@pytest.mark.parametrize("method", ["lobpcg", "lanczos"])
@pytest.mark.parametrize("n, k", [(1, 1), (2, 1), (5, 5)])
def test_finds_them_in_the_smallest_problems(method, n, k):
    a, _ = rotated([3.0, -2.0, 1.0, 0.5, -2.0][:n])
    result = eigsh(dense_operator(jnp.asarray(a)), k, method=method)
    assert result.converged.all()
    np.testing.assert_allclose(result.values, best(a, k, "SA"), atol=1e-8)
    assert_honest(a, result, atol=1e-13)


def test_finds_every_copy_of_a_repeated_value_in_a_small_problem():
    a, _ = rotated(np.array([-2.0, -2, -2, 0, 1, 2, 3, 4]))
    for n_pairs in (2, 3, 4):
        found = eigsh(dense_operator(jnp.asarray(a)), n_pairs, tol=1e-12)
        np.testing.assert_allclose(found.values, [-2, -2, -2, 0][:n_pairs], atol=1e-12)


@pytest.mark.parametrize("n, k", [(2, 2), (5, 5), (5, 2)])
def test_both_ends_of_the_smallest_problems(n, k):
    a, _ = rotated([3.0, -2.0, 1.0, 0.5, -2.0][:n])
    result = eigsh(dense_operator(jnp.asarray(a)), k, which="BE")
    assert result.converged.all()
    np.testing.assert_allclose(result.values, best(a, k, "BE"), atol=1e-8)
    assert_honest(a, result, atol=1e-13)


def test_one_krylov_space_serves_both_ends_and_finds_copies_at_both():
    both = partial(eigsh, k=8, which="BE", max_matvecs=5000)
    a, _ = rotated(np.r_[-np.logspace(-6, -1, 100), np.logspace(-5, 0, 300)])
    bottom, top = (eigsh(dense_operator(jnp.asarray(b)), 4, which="LA") for b in (-a, a))
    found = both(dense_operator(jnp.asarray(a)))
    assert found.converged.all()
    np.testing.assert_allclose(found.values, np.r_[-bottom.values, top.values], atol=1e-7)
    assert found.matvecs < 0.8 * (top.matvecs + bottom.matvecs)
    a, _ = rotated(np.r_[[-1.0] * 3, np.linspace(-0.9, 0.9, 394), [1.0] * 2, [1.1]])
    found = both(dense_operator(jnp.asarray(a)))
    assert found.converged.all()
    np.testing.assert_allclose(found.values, best(a, 8, "BE"), atol=1e-8)
    assert_honest(a, found, atol=1e-12)


CLOSE = {"even": np.linspace(1, 2, 400), "geometric": np.geomspace(1, 10, 400)}


@pytest.mark.parametrize("spectrum", CLOSE)
@pytest.mark.parametrize("copies", [2, 4])
def test_finds_the_copies_of_a_value_close_to_others(spectrum, copies):
    values = CLOSE[spectrum].copy()
    values[-copies + 1 :] = values[2]
    a, _ = rotated(values)
    found = eigsh(dense_operator(jnp.asarray(a)), 5, max_matvecs=5000)
    assert found.converged.all()
    np.testing.assert_allclose(found.values, best(a, 5, "SA"), atol=1e-8)
    assert_honest(a, found, atol=1e-12)


@pytest.mark.parametrize("memory", [None, 10 * 400 * 8])
def test_without_a_look_for_copies_a_simple_spectrum_takes_fewer_products(memory):
    """And of a value that repeats one copy is found, as by ARPACK: that is what the look is for."""
    find = partial(eigsh, k=5, max_matvecs=5000, memory=memory)
    op = dense_operator(jnp.asarray(rotated(CLOSE["geometric"])[0]))
    looked, found = find(op), find(op, copies=False)
    assert found.converged.all() and found.matvecs < looked.matvecs
    np.testing.assert_array_equal(found.values, looked.values)
    repeated = CLOSE["geometric"].copy()
    repeated[1] = repeated[0]
    found = find(dense_operator(jnp.asarray(rotated(repeated)[0])), copies=False)
    assert found.converged.all()
    np.testing.assert_allclose(found.values, repeated[1:6], atol=1e-8)


@pytest.mark.parametrize("spectrum", CLOSE)
def test_a_simple_spectrum_takes_no_more_products_than_arpack(spectrum):
    a, _ = rotated(CLOSE[spectrum])
    counted = []
    operator = scipy.sparse.linalg.LinearOperator(
        a.shape, matvec=lambda x: counted.append(1) or a @ x, dtype=a.dtype
    )
    scipy.sparse.linalg.eigsh(operator, 5, which="SA", tol=1e-8, v0=np.ones(len(a)))
    found = eigsh(dense_operator(jnp.asarray(a)), 5, tol=1e-8, max_matvecs=5000)
    assert found.converged.all() and found.matvecs <= len(counted)


def test_auto_is_lobpcg_for_one_pair_from_a_start_and_lanczos_for_more():
    a, _ = rotated(SPECTRA["random"])
    op, diagonal = dense_operator(jnp.asarray(a)), jnp.ones(N)
    programs = {
        (k, name, method): str(jax.make_jaxpr(partial(eigsh, k=k, method=method))(op, **informed))
        for k, name, informed in ((1, "start", {"v0": diagonal}), (3, "start", {"v0": diagonal}))
        for method in ("auto", "lobpcg", "lanczos")
    }
    assert programs[1, "start", "auto"] == programs[1, "start", "lobpcg"]
    assert programs[3, "start", "auto"] == programs[3, "start", "lanczos"]


def test_a_preconditioner_brings_the_small_end_of_a_graded_spectrum_within_reach():
    eigenvalues = np.logspace(-6, 0, N)
    a, vectors = rotated(eigenvalues)
    near = vectors * (1 + 0.3 * np.sin(np.arange(N))) / eigenvalues @ vectors.T
    op = dense_operator(jnp.asarray(a))
    plain = eigsh(op, 1, method="lobpcg")
    assert not plain.converged[0]
    helped = eigsh(op, 1, preconditioner=dense_operator(jnp.asarray(near)))
    assert helped.converged[0] and helped.matvecs < 100
    assert float(helped.values[0]) == pytest.approx(1e-6, rel=1e-6)


# eigsh: starts and deflation


@pytest.mark.parametrize("method", ["lobpcg", "lanczos"])
def test_deflated_directions_stay_out_of_the_search(method):
    a, vectors = rotated(SPECTRA["random"])
    known = jnp.asarray(vectors[:, :2])
    result = eigsh(dense_operator(jnp.asarray(a)), 3, deflate=known, method=method)
    np.testing.assert_allclose(result.values, np.linalg.eigvalsh(a)[2:5], atol=1e-10)
    np.testing.assert_allclose(known.T @ result.vectors, 0, atol=1e-12)


@pytest.mark.parametrize("method", ["lobpcg", "lanczos"])
@pytest.mark.parametrize("held", [[4], [5, 6, 7], [N - 1, N - 2]])
def test_a_start_in_the_wrong_invariant_subspace_still_leads_to_the_right_pair(method, held):
    a, vectors = rotated(SPECTRA["random"])
    start = np.zeros((N, 3))
    start[:, : len(held)] = vectors[:, held]
    result = eigsh(dense_operator(jnp.asarray(a)), 1, v0=jnp.asarray(start), method=method)
    assert result.converged[0]
    np.testing.assert_allclose(result.values, np.linalg.eigvalsh(a)[:1], atol=1e-8)


@pytest.mark.parametrize("k", [1, 2])
def test_a_warm_start_costs_fewer_products_than_a_cold_one(k):
    a, vectors = rotated(SPECTRA["random"])
    drift, _ = rotated(SPECTRA["random"], seed=1)
    near = vectors[:, 0] if k == 1 else vectors[:, : -k - 1 : -1]
    op = dense_operator(jnp.asarray(a + 1e-3 * drift))
    solve = partial(eigsh, op, k, which="SA" if k == 1 else "LA", method="lobpcg")
    cold, warm = solve(), solve(v0=jnp.asarray(near))
    assert warm.converged.all()
    np.testing.assert_allclose(warm.values, cold.values, atol=1e-8)
    assert warm.matvecs < cold.matvecs


@pytest.mark.parametrize("known", [[0, 30], [30, 31, 32]])
def test_known_images_of_the_start_save_their_products(known):
    a, vectors = rotated(SPECTRA["random"])
    start = jnp.asarray(vectors[:, known] + 0.1 * np.random.default_rng(0).normal(size=(N, 1)))
    op = dense_operator(jnp.asarray(a))
    deflate = jnp.asarray(vectors[:, -1:])
    plain = eigsh(op, 1, v0=start, deflate=deflate)
    helped = eigsh(op, 1, v0=start, v0_images=op @ start, deflate=deflate)
    assert plain.matvecs - helped.matvecs == len(known)
    np.testing.assert_allclose(helped.values, plain.values, atol=1e-12)


# eigsh: honesty


BUDGETED = (("lobpcg", None), ("lobpcg", "given"), ("lanczos", None))


@pytest.mark.parametrize("method, start", BUDGETED)
def test_at_the_cap_the_answer_is_unconverged_and_its_residuals_are_true(method, start):
    a, _ = rotated(np.logspace(-6, 0, N))
    v0 = None if start is None else generic_vectors(N, 1, a.dtype)
    result = eigsh(dense_operator(jnp.asarray(a)), 1, v0=v0, method=method, max_matvecs=60)
    assert not result.converged.any()
    assert result.matvecs <= 60
    assert_honest(a, result, atol=1e-12)


@pytest.mark.parametrize("method, start", BUDGETED)
def test_nan_gives_nan_unconverged_within_the_cap(method, start):
    a, _ = rotated(SPECTRA["random"])
    a[3, 5] = a[5, 3] = np.nan
    v0 = None if start is None else generic_vectors(N, 1, a.dtype)
    result = eigsh(dense_operator(jnp.asarray(a)), 1, v0=v0, method=method, max_matvecs=60)
    assert np.isnan(result.values).all()
    assert not result.converged.any()
    assert result.matvecs <= 60


@pytest.mark.parametrize("method, k, start", [("lobpcg", 2, "given"), ("lanczos", 2, None)])
def test_matvecs_counts_every_product_with_the_operator(method, k, start):
    seen = []

    def product(a, x):
        jax.debug.callback(lambda _: seen.append(1), x[0])
        return a @ x

    a, _ = rotated(SPECTRA["random"])
    v0 = None if start is None else generic_vectors(N, 2, a.dtype)
    result = eigsh(SymmetricOperator(product, jnp.asarray(a), N), k, v0=v0, method=method)
    jax.block_until_ready(result)
    jax.effects_barrier()
    assert result.matvecs == len(seen)


def test_a_tighter_tolerance_gives_a_smaller_residual():
    solve = partial(eigsh, dense_operator(jnp.asarray(rotated(SPECTRA["random"])[0])), 1)
    loose, default = solve(method="lobpcg", tol=1e-2), solve(method="lobpcg")
    assert loose.matvecs < default.matvecs
    assert default.residuals[0] <= 1.5e-8 * abs(default.values[0])
    assert default.residuals[0] < loose.residuals[0] <= 1e-2 * abs(loose.values[0])


# eigsh: derivatives, against autodiff through a dense eigendecomposition


def symmetric(gradient):
    return (gradient + gradient.T) / 2


@cache
def gradient_of_values(method, k):
    """Of ``1 theta_1 + 2 theta_2 + ..``, so that each value counts."""

    def total(a):
        return jnp.arange(1.0, k + 1) @ eigsh(dense_operator(a), k, method=method, tol=1e-12).values

    return jax.jit(jax.grad(total))


@pytest.mark.parametrize("method, k", [("lobpcg", 1), ("lanczos", 3)])
def test_gradient_of_values(method, k):
    a, _ = rotated(SPECTRA["random"])
    ours = symmetric(gradient_of_values(method, k)(jnp.asarray(a)))
    theirs = jax.grad(lambda a: jnp.arange(1.0, k + 1) @ jnp.linalg.eigvalsh(a)[:k])(jnp.asarray(a))
    np.testing.assert_allclose(ours, symmetric(theirs), atol=1e-10)


@pytest.mark.parametrize("which, deflated", [("SA", 0), ("LA", 2)])
def test_gradient_of_one_vector(which, deflated):
    a, vectors = rotated(np.linspace(-1, 2, 12) ** 3)
    position = deflated if which == "SA" else 11 - deflated
    held = vectors[:, :deflated] if which == "SA" else vectors[:, 12 - deflated :]
    c = jnp.sin(jnp.arange(12.0))

    def ours(a, start, held):
        deflate = held if deflated else None
        found = eigsh(dense_operator(a), 1, which=which, v0=start, deflate=deflate, tol=1e-13)
        return jnp.vdot(c, found.vectors[:, 0]) ** 2 + 3 * found.values[0]

    def theirs(a):
        values, vectors = jnp.linalg.eigh(a)
        return jnp.vdot(c, vectors[:, position]) ** 2 + 3 * values[position]

    arguments = jnp.asarray(a), jnp.ones(12), jnp.asarray(held)
    gradient, *others = jax.jit(jax.grad(ours, argnums=(0, 1, 2)))(*arguments)
    expected = jax.grad(theirs)(jnp.asarray(a))
    np.testing.assert_allclose(symmetric(gradient), symmetric(expected), atol=1e-9)
    # No derivative flows to the start or to the deflated directions.
    assert not any(other.any() for other in others)


def test_second_derivative_of_a_value():
    a, _ = rotated(np.linspace(-1, 2, 12) ** 3)
    b, _ = rotated(np.linspace(0, 1, 12), seed=1)

    def second(f):
        path = lambda t: f(jnp.asarray(a) + t * jnp.asarray(b))  # noqa: E731
        return jax.jit(jax.grad(jax.grad(path)))(0.0)

    ours = second(lambda a: eigsh(dense_operator(a), 1, tol=1e-13).values[0])
    theirs = second(lambda a: jnp.linalg.eigvalsh(a)[0])
    assert abs(theirs) > 0.01
    assert float(ours) == pytest.approx(float(theirs), rel=1e-8)


def test_gradient_of_a_repeated_value_is_an_element_of_the_generalised_gradient():
    a, vectors = rotated(SPECTRA["repeated"])
    gradient = symmetric(gradient_of_values("lobpcg", 1)(jnp.asarray(a)))
    # v v^T with v a unit vector of the eigenspace.
    assert float(jnp.trace(gradient)) == pytest.approx(1)
    eigenspace = vectors[:, :5] @ vectors[:, :5].T
    np.testing.assert_allclose(eigenspace @ gradient @ eigenspace, gradient, atol=1e-7)


@pytest.mark.parametrize(
    "which, picked", [("SA", [0, 1, 2]), ("LA", [-1, -2, -3]), ("BE", [0, -1, -2])]
)
def test_gradient_of_several_vectors(which, picked):
    a, _ = rotated(np.linspace(-1, 2, 12) ** 3)
    picked = jnp.array(picked)
    c = jnp.sin(jnp.arange(36.0)).reshape(12, 3)

    def objective(vectors):  # blind to signs, but not to which vector is which
        return jnp.sum(jnp.arange(1.0, 4) * jnp.sum(c * vectors, axis=0) ** 2)

    ours = jax.grad(lambda a: objective(eigsh(dense_operator(a), 3, which=which, tol=1e-13)[1]))
    theirs = jax.grad(lambda a: objective(jnp.linalg.eigh(a)[1][:, picked]))
    a = jnp.asarray(a)
    np.testing.assert_allclose(symmetric(jax.jit(ours)(a)), symmetric(theirs(a)), atol=1e-9)


def test_gradient_of_a_function_of_an_eigenspace_is_right_though_its_vectors_are_arbitrary():
    values = np.array([-2.0, -2, -2, 0, 1, 2, 3, 4])
    a, vectors = rotated(values)
    c = jnp.cos(jnp.arange(64.0)).reshape(8, 8)

    def ours(a):
        vectors = eigsh(dense_operator(a), 3, tol=1e-12).vectors
        return jnp.vdot(c, vectors @ vectors.T)

    gradient = symmetric(jax.grad(ours)(jnp.asarray(a)))
    # d P = sum over the eigenvalues outside of P dA Q / (inside - outside), and its transpose.
    inside, outside = vectors[:, :3], vectors[:, 3:]
    weights = 1 / (values[:3, None] - values[None, 3:])
    expected = inside @ (weights * (inside.T @ symmetric(c) @ outside)) @ outside.T
    np.testing.assert_allclose(gradient, symmetric(2 * expected), atol=1e-9)


# eigsh: misuse


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(k=0), r"k=0: choose 1 <= k <= 60"),
        (dict(k=61), r"k=61: choose 1 <= k <= 60"),
        (dict(k=60, deflate=np.eye(N, 2)), r"k=60: choose 1 <= k <= 58"),
        (dict(which="SM"), r"which='SM': choose 'SA' .* 'LA' \(largest\) or 'BE' \(both ends\)"),
        (dict(which="BE", k=1), "k=1: choose 2 <= k <= 60"),
        (dict(which="BE", k=2, method="lobpcg"), "which='BE' but method='lobpcg' knows one end"),
        (dict(method="qr"), r"method='qr': choose 'auto', 'lobpcg' or 'lanczos'"),
        (dict(v0=np.ones(N - 1)), r"v0 has shape \(59,\): pass \[n\] or \[n, s\] with n = 60"),
        (dict(deflate=np.eye(N - 1, 2)), r"deflate has shape \(59, 2\): pass orthonormal columns"),
        (dict(preconditioner=np.ones(N), method="lanczos"), "preconditioner .* use 'lobpcg'"),
        (dict(v0_images=np.ones(N)), r"v0_images has shape \(60,\), v0 None: pass op @ v0"),
        (
            dict(v0=np.ones(N), v0_images=np.ones(N), method="lanczos"),
            "v0_images .* use 'lobpcg'",
        ),
    ],
)
def test_misuse_names_the_argument_and_the_fix(options, message):
    with pytest.raises(ValueError, match=message):
        eigsh(dense_operator(jnp.eye(N)), **options)


# Two passes, without a basis


def dense(values, dtype="float64"):
    return dense_operator(jnp.asarray(rotated(values)[0], dtype))


def outlying(n=300):
    """Both tails stand out of a bulk, as in a Hessian."""
    return np.r_[[-3.0, -2.0], np.linspace(0, 1, n - 6), [5.0, 8.0, 13.0, 21.0]]


@pytest.mark.parametrize("dtype, atol", [("float32", 1e-4), ("float64", 1e-9)])
def test_without_a_basis_the_same_pairs_are_found(dtype, atol):
    op = dense(outlying(), dtype)
    result = eigsh(op, 6, which="BE", tol=1e-4, memory=11 * 300 * op.dtype.itemsize)
    assert result.converged.all() and result.values.dtype == dtype
    np.testing.assert_allclose(result.values, [-3, -2, 0, 21, 13, 8], atol=10 * atol)


def test_copies_that_the_bare_recurrence_makes_count_once():
    """With a tolerance at rounding it goes on long after the first pairs have converged."""
    values = outlying()
    values[:2] = [0.0, 1.0]
    op = dense(values, "float32")
    result = eigsh(op, 4, which="LA", tol=1e-7, memory=9 * 300 * 4)
    assert result.matvecs > 60
    np.testing.assert_allclose(result.values, [21, 13, 8, 5], rtol=1e-5)
    gram = np.asarray(result.vectors).T @ result.vectors
    np.testing.assert_allclose(gram, np.eye(4), atol=1e-4)


@pytest.mark.parametrize("memory", [9, 60])
def test_memory_limits_the_basis_and_residuals_stay_honest(memory):
    a = jnp.asarray(rotated(outlying())[0])
    result = eigsh(dense_operator(a), 4, which="LA", memory=memory * 300 * 8)
    assert result.converged.all()
    np.testing.assert_allclose(result.values, [21, 13, 8, 5], atol=1e-9)
    residuals = np.linalg.norm(a @ result.vectors - result.vectors * result.values, axis=0)
    np.testing.assert_allclose(result.residuals, residuals, rtol=1e-3, atol=1e-11)
    wide = jax.make_jaxpr(lambda a: eigsh(dense_operator(a), 4, memory=memory * 300 * 8))(a)
    shapes = {v.aval.shape for e in equations(wide.jaxpr) for v in e.outvars if v.aval.ndim == 2}
    held = max(min(shape) for shape in shapes if 300 in shape and shape != (300, 300))
    assert held <= memory


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize("top", [[2, 2, 2], [2, 2, 3]])
def test_without_a_basis_a_missed_copy_leaves_only_the_best_pair_converged(top):
    op = dense(np.r_[np.linspace(0, 1, 297), top])
    result = eigsh(op, 3, which="LA", memory=8 * 300 * 8)
    assert result.values[-1] < 1.01 and result.converged.tolist() == [True, False, False]
    rest = eigsh(op, 1, which="LA", memory=6 * 300 * 8, deflate=result.vectors[:, :1])
    assert rest.converged and float(rest.values[0]) == pytest.approx(2)


def test_without_a_basis_too_few_products_are_told():
    result = eigsh(dense(np.linspace(0, 1, 300)), 2, memory=7 * 300 * 8, max_matvecs=40)
    assert not result.converged.any() and result.matvecs <= 40
    assert jnp.isfinite(result.values).all()


def test_memory_too_small_names_what_it_takes():
    with pytest.raises(ValueError, match="memory=100: 3 pairs of 60 numbers take 3840 bytes"):
        eigsh(dense_operator(jnp.eye(60)), 3, memory=100)
    with pytest.raises(ValueError, match="memory is set, but lobpcg"):
        eigsh(dense_operator(jnp.eye(60)), 1, method="lobpcg", memory=10**6)


# lanczos


@pytest.mark.parametrize("steps", [1, 8, N])
def test_lanczos_recurrence_and_orthogonality(steps):
    a, _ = rotated(SPECTRA["clustered"])
    tri = lanczos(dense_operator(jnp.asarray(a)), jnp.arange(1.0, N + 1), steps)
    t = np.diag(tri.alpha) + np.diag(tri.beta, 1) + np.diag(tri.beta, -1)
    q, last = np.asarray(tri.basis), np.eye(steps)[-1]
    assert tri.rank == steps
    np.testing.assert_allclose(q.T @ q, np.eye(steps), atol=1e-13)
    np.testing.assert_allclose(a @ q - q @ t, np.outer(tri.residual, last), atol=1e-9)
    np.testing.assert_allclose(q.T @ np.asarray(tri.residual), 0, atol=1e-12)


def test_lanczos_stops_growing_in_an_invariant_subspace():
    a, vectors = rotated(SPECTRA["random"])
    start = vectors[:, [3, 30, 50]] @ np.ones(3)
    tri = lanczos(dense_operator(jnp.asarray(a)), jnp.asarray(start), 8)
    assert tri.rank == 3
    assert not tri.basis[:, 3:].any() and not tri.alpha[3:].any() and not tri.beta[2:].any()
    t = np.diag(tri.alpha[:3]) + np.diag(tri.beta[:2], 1) + np.diag(tri.beta[:2], -1)
    expected = np.linalg.eigvalsh(a)[[3, 30, 50]]
    np.testing.assert_allclose(np.linalg.eigvalsh(t), expected, atol=1e-12)


def test_lanczos_keeps_off_deflated_directions():
    a, vectors = rotated(SPECTRA["random"])
    known = jnp.asarray(vectors[:, :2])
    tri = lanczos(dense_operator(jnp.asarray(a)), jnp.ones(N), N - 2, deflate=known)
    np.testing.assert_allclose(known.T @ tri.basis, 0, atol=1e-12)
    t = np.diag(tri.alpha) + np.diag(tri.beta, 1) + np.diag(tri.beta, -1)
    np.testing.assert_allclose(np.linalg.eigvalsh(t), np.linalg.eigvalsh(a)[2:], atol=1e-10)


def test_lanczos_from_nothing_finds_nothing():
    tri = lanczos(dense_operator(jnp.eye(4)), jnp.zeros(4), 3)
    assert tri.rank == 0
    assert all(not leaf.any() for leaf in tri)


@pytest.mark.parametrize("steps", [0, 5])
def test_lanczos_refuses_impossible_steps(steps):
    with pytest.raises(ValueError, match=rf"steps={steps}: choose 1 <= steps <= 4"):
        lanczos(dense_operator(jnp.eye(4)), jnp.ones(4), steps)


# Operators and vectors


def test_an_operator_multiplies_vectors_and_blocks_and_knows_its_matrix():
    a, _ = rotated(SPECTRA["random"])
    op, x = dense_operator(jnp.asarray(a)), np.arange(3.0 * N).reshape(N, 3)
    np.testing.assert_allclose(op @ jnp.asarray(x), a @ x, rtol=1e-12)
    np.testing.assert_allclose(op @ jnp.asarray(x[:, 0]), a @ x[:, 0], rtol=1e-12)
    np.testing.assert_array_equal(op.dense(), a)


def test_an_operator_has_the_dtype_of_its_floating_data():
    def product(data, x):
        return data["scale"] * x[data["order"]]

    data = {"scale": jnp.ones(3, "float32"), "order": jnp.arange(3)}
    assert SymmetricOperator(product, data, 3).dtype == jnp.float32
    assert SymmetricOperator(lambda _, x: x, (), 3).dtype == jnp.float64


def test_a_solver_is_compiled_once_for_all_operators_of_a_kind():
    traced = []

    def product(d, x):
        traced.append(1)
        return d * x

    for seed in range(3):
        diagonal = jax.random.uniform(jax.random.key(seed), (9,))
        found = eigsh(SymmetricOperator(product, diagonal, 9), 1)
        np.testing.assert_allclose(found.values[0], diagonal.min(), rtol=1e-6)
        first = len(traced) if seed == 0 else first
    assert len(traced) == first


@pytest.mark.parametrize("shape", [(3,), (3, 4), (2, 3, 3)])
def test_dense_operator_refuses_what_is_not_one_square_matrix(shape):
    with pytest.raises(ValueError, match=r"a has shape .*: pass one square matrix"):
        dense_operator(jnp.ones(shape))


def test_unit_scales_columns_to_length_one_and_leaves_zero_alone():
    x = jnp.array([[3.0, 0.0], [4.0, 0.0]])
    np.testing.assert_allclose(unit(x), [[0.6, 0.0], [0.8, 0.0]])


def test_generic_vectors_are_fixed_scattered_and_different_in_each_stream():
    x = np.asarray(generic_vectors(1000, 2, jnp.float32))
    np.testing.assert_array_equal(x, generic_vectors(1000, 2, jnp.float32))
    assert x.dtype == np.float32 and x.shape == (1000, 2)
    assert x.min() >= -1 and x.max() < 1
    # Four standard errors of 1000 uniform draws.
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=0.075)
    np.testing.assert_allclose(x.var(axis=0), 1 / 3, atol=0.04)
    other = np.asarray(generic_vectors(1000, 2, jnp.float32, stream=1))
    assert abs(np.corrcoef(x.T, other.T) - np.eye(4)).max() < 4 / 1000**0.5
