"""Operators do what the same expression of matrices does, wherever their numbers live."""

import functools
import re

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from hypothesis import given, settings
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from spectral_jax.linalg import (
    SymmetricOperator,
    dense_operator,
    diagonal,
    eigsh,
    lanczos,
    logdet,
    spectral_density,
    trace,
)
from spectral_jax.linalg.compose import deflate, fold, project, shift
from spectral_jax.linalg.convert import from_scipy, pytree_operator, to_scipy
from spectral_jax.linalg.operators import (
    LinearOperator,
    diagonal_operator,
    function_gram,
    gram,
    low_rank_operator,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")
N = 16
RNG = np.random.default_rng(0)
A, B = (x + x.T for x in RNG.standard_normal((2, N, N)))
D = RNG.standard_normal(N)
TALL = RNG.standard_normal((40, N))
V = np.linalg.qr(RNG.standard_normal((N, 3)))[0]
VALUES = np.array([3.0, -1.0, 0.5])
OUTSIDE = np.eye(N) - V @ V.T
BLOCK = RNG.standard_normal((N, 5))


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


def product(op, x):
    return op @ x


def transposed_matmul(t, y):
    return t.T @ y


def tall_product(a, x):
    return a @ x


# Each entry: an operator of jax arrays (A, B, D, TALL, V, VALUES), and its matrix.
COMPOSITIONS = {
    "sum": (lambda a, b, *_: dense_operator(a) + dense_operator(b), A + B),
    "difference": (lambda a, b, *_: dense_operator(a) - dense_operator(b), A - B),
    "scale": (lambda a, *_: 2.5 * dense_operator(a), 2.5 * A),
    "negative": (lambda a, *_: -dense_operator(a), -A),
    "shift": (lambda a, *_: shift(dense_operator(a), -0.7), A - 0.7 * np.eye(N)),
    "diagonal": (lambda a, b, d, *_: diagonal_operator(d), np.diag(D)),
    "low rank": (lambda a, b, d, t, v, w: low_rank_operator(v, w), V * VALUES @ V.T),
    "gram": (lambda a, b, d, t, *_: gram(t), TALL.T @ TALL),
    "operator's gram": (
        lambda a, b, d, t, *_: gram(LinearOperator(jnp.matmul, transposed_matmul, t, t.shape)),
        TALL.T @ TALL,
    ),
    "function's gram": (
        lambda a, b, d, t, *_: function_gram(tall_product, t, N),
        TALL.T @ TALL,
    ),
    "deflate": (
        lambda a, b, d, t, v, w: deflate(dense_operator(a), v, w),
        A - V * VALUES @ V.T,
    ),
    "project": (
        lambda a, b, d, t, v, w: project(dense_operator(a), v),
        OUTSIDE @ A @ OUTSIDE,
    ),
    "nested": (
        lambda a, b, d, t, v, w: project(shift(gram(t) - 2.0 * diagonal_operator(d), 0.3), v),
        OUTSIDE @ (TALL.T @ TALL - 2 * np.diag(D) + 0.3 * np.eye(N)) @ OUTSIDE,
    ),
}
each_composition = pytest.mark.parametrize("name", COMPOSITIONS)


def composed(name, dtype="float64"):
    return COMPOSITIONS[name][0](*(jnp.asarray(x, dtype) for x in (A, B, D, TALL, V, VALUES)))


@each_composition
def test_a_composition_is_the_same_expression_of_matrices(name):
    op, matrix = composed(name), COMPOSITIONS[name][1]
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-12)
    close(op.dense(), matrix)
    close(op @ jnp.asarray(BLOCK), matrix @ BLOCK)
    close(jax.jit(product)(op, BLOCK[:, 0]), matrix @ BLOCK[:, 0])


@each_composition
def test_a_composition_keeps_single_precision_when_double_is_enabled(name):
    op = composed(name, "float32")
    assert op.dtype == (op @ jnp.ones(N, "float32")).dtype == jnp.float32


@given(st.lists(st.sampled_from(["sum", "minus", "scale", "shift", "project"]), max_size=5))
@settings(max_examples=15, deadline=None)
def test_any_chain_of_compositions_is_the_chain_of_matrices(steps):
    rules = {
        "sum": lambda op, m: (op + diagonal_operator(jnp.asarray(D)), m + np.diag(D)),
        "minus": lambda op, m: (dense_operator(jnp.asarray(B)) - op, B - m),
        "scale": lambda op, m: (op * 0.5, m * 0.5),
        "shift": lambda op, m: (shift(op, 2), m + 2 * np.eye(N)),
        "project": lambda op, m: (project(op, jnp.asarray(V)), OUTSIDE @ m @ OUTSIDE),
    }
    op, matrix = dense_operator(jnp.asarray(A)), A
    for step in steps:
        op, matrix = rules[step](op, matrix)
    np.testing.assert_allclose(op @ jnp.asarray(BLOCK), matrix @ BLOCK, atol=1e-11)


def test_the_numbers_in_a_composition_compile_nothing():
    traced = []

    @jax.jit
    def counted(op, x):
        traced.append(1)
        return op @ x

    for mu in (1, 2.0, np.float32(3), jnp.float64(4)):
        op = shift(mu * dense_operator(mu * jnp.asarray(A)), mu)
        expected = mu**2 * A @ D + mu * D
        np.testing.assert_allclose(counted(op, D), expected, rtol=1e-12)
    assert len(traced) == 1


def test_operators_map_over_their_numbers():
    shifts = jnp.arange(4.0)
    several = jax.vmap(shift, in_axes=(None, 0))(dense_operator(jnp.asarray(A)), shifts)
    images = jax.vmap(lambda op: op @ jnp.asarray(D))(several)
    np.testing.assert_allclose(images, A @ D + shifts[:, None] * D, rtol=1e-12)


def test_eigenvalues_have_their_derivatives_through_a_composition():
    def smallest(factor, mu, a):
        op = shift(factor * project(dense_operator(a), jnp.asarray(V)), mu)
        return eigsh(op, 1, tol=1e-12).values[0]

    values, vectors = np.linalg.eigh(OUTSIDE @ A @ OUTSIDE)
    by_factor, by_mu, by_matrix = jax.grad(smallest, argnums=(0, 1, 2))(2.0, 5.0, jnp.asarray(A))
    np.testing.assert_allclose([by_factor, by_mu], [values[0], 1], rtol=1e-10)
    expected = 2 * np.outer(vectors[:, 0], vectors[:, 0])
    np.testing.assert_allclose(by_matrix, expected, atol=1e-9)


def test_the_smallest_pairs_of_the_folded_operator_are_those_in_the_interior():
    values, vectors = np.linalg.eigh(A)
    sigma = 0.6 * values[len(values) // 2] + 0.4 * values[len(values) // 2 + 1]
    op = dense_operator(jnp.asarray(A))
    found = eigsh(fold(op, sigma), 2, tol=1e-9).vectors
    nearest = np.argsort(abs(values - sigma))[:2]
    np.testing.assert_allclose(
        jnp.sum(found * (op @ found), axis=0), values[nearest], rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(abs(found.T @ vectors[:, nearest]), np.eye(2), atol=1e-4)


def test_deflation_and_projection_take_known_pairs_out_of_the_spectrum():
    values, vectors = np.linalg.eigh(A)
    known = jnp.asarray(vectors[:, :2])
    for op in (
        deflate(dense_operator(jnp.asarray(A)), known, jnp.asarray(values[:2])),
        project(dense_operator(jnp.asarray(A)), known),
    ):
        np.testing.assert_allclose(eigsh(op, 1).values, values[2:3], rtol=1e-8)


def test_the_gram_of_a_jacobian_is_the_gauss_newton_matrix():
    def residuals(w):
        return {"a": jnp.sin(w[:3]) * w[1], "b": jnp.cumsum(w)}

    def jacobian_vector(w, v):
        return jax.jvp(residuals, (w,), (v,))[1]

    w = jnp.asarray(D)
    blocks = jax.tree.leaves(jax.jit(jax.jacobian(residuals))(w))
    expected = sum(np.asarray(block).T @ block for block in blocks)
    found = jax.jit(SymmetricOperator.dense)(function_gram(jacobian_vector, w, N))
    np.testing.assert_allclose(found, expected, atol=1e-12)


WRONG = {
    "sum of sizes": (
        lambda: diagonal_operator(jnp.ones(3)) + diagonal_operator(jnp.ones(4)),
        "3 a",
    ),
    "sum of dtypes": (
        lambda: diagonal_operator(jnp.ones(3)) - diagonal_operator(jnp.ones(3, "float32")),
        "float64 and float32: build both",
    ),
    "vector too short": (
        lambda: diagonal_operator(jnp.ones(3)) @ jnp.ones(1),
        r"\[n, k\] with n = 3",
    ),
    "stack of blocks": (
        lambda: diagonal_operator(jnp.ones(3)) @ jnp.ones((3, 2, 2)),
        r"\[n, k\] with n = 3",
    ),
    "factor": (lambda: jnp.ones(3) * diagonal_operator(jnp.ones(3)), "pass one number"),
    "shift": (lambda: shift(diagonal_operator(jnp.ones(3)), np.ones(3)), "pass one number"),
    "diagonal": (lambda: diagonal_operator(jnp.ones((3, 3))), r"one vector \[n\]"),
    "gram": (lambda: gram(jnp.ones(3)), r"one matrix \[m, n\]"),
    "low rank": (lambda: low_rank_operator(jnp.ones((3, 2)), jnp.ones(3)), r"\[n, r\] and \[r\]"),
    "low rank dtypes": (
        lambda: low_rank_operator(jnp.ones((3, 2)), jnp.ones(2, "float32")),
        "one dtype",
    ),
    "project": (lambda: project(diagonal_operator(jnp.ones(3)), jnp.ones(3)), r"columns \[3, d\]"),
    "deflate": (
        lambda: deflate(diagonal_operator(jnp.ones(3, "float32")), jnp.ones((3, 1)), jnp.ones(1)),
        r"astype\(float32\)",
    ),
    "SciPy, rectangular": (lambda: from_scipy(np.ones((3, 2))), r"square \[n, n\]"),
    "SciPy, complex": (lambda: from_scipy(np.eye(3) * 1j), "real symmetric"),
    "tree, empty": (lambda: pytree_operator(tall_product, (), {}), "no entries"),
    "tree, dtype": (
        lambda: pytree_operator(tall_product, jnp.ones(3), jnp.ones(3, "float32")),
        "cast one",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_misuse_is_refused_with_its_fix(name):
    attempt, fix = WRONG[name]
    with pytest.raises(ValueError, match=fix):
        attempt()


SOLVERS = {
    "eigsh": eigsh,
    "lanczos": lambda op: lanczos(op, jnp.ones(3), 2),
    "spectral_density": lambda op: spectral_density(op, jax.random.key(0)),
    "logdet": lambda op: logdet(op, jax.random.key(0)),
    "trace": lambda op: trace(op, jax.random.key(0)),
    "diagonal": lambda op: diagonal(op, jax.random.key(0)),
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_given_a_matrix_says_how_it_becomes_an_operator(solver):
    with pytest.raises(ValueError, match=r"an array of shape \(3, 3\): .* dense_operator\(a\)"):
        SOLVERS[solver](jnp.eye(3))
    with pytest.raises(ValueError, match=r"op is a LinearOperator: .* or gram\(a\)"):
        SOLVERS[solver](LinearOperator(tall_product, tall_product, jnp.eye(3), (3, 3)))


@pytest.mark.parametrize("other", [3.0, jnp.ones(3), "text"])
def test_an_operator_adds_to_operators_only(other):
    op = diagonal_operator(jnp.ones(3))
    for attempt in (lambda: op + other, lambda: op - other, lambda: other - op):
        with pytest.raises(TypeError):
            attempt()
    with pytest.raises(TypeError):
        op * op


# SciPy


class Counting(scipy.sparse.linalg.LinearOperator):
    """Notes how it was called."""

    def __init__(self, matrix):
        super().__init__(matrix.dtype, matrix.shape)
        self.matrix, self.calls = matrix, []

    def _matmat(self, x):
        self.calls.append(x.shape)
        return self.matrix @ x


def test_a_scipy_operator_is_applied_to_a_block_at_once():
    counting = Counting(A)
    op = from_scipy(counting)
    np.testing.assert_allclose(jax.jit(product)(op, BLOCK), A @ BLOCK, rtol=1e-12)
    assert counting.calls == [BLOCK.shape]


@pytest.fixture
def double_precision_in_every_thread():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def test_solvers_and_compositions_take_scipy_operators(double_precision_in_every_thread):
    op = shift(from_scipy(scipy.sparse.csr_array(A)) + diagonal_operator(jnp.asarray(D)), 1.0)
    expected = np.linalg.eigvalsh(A + np.diag(D) + np.eye(N))
    np.testing.assert_allclose(eigsh(op, 2).values, expected[:2], rtol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_a_scipy_operator_keeps_a_floating_dtype(dtype):
    op = from_scipy(scipy.sparse.eye_array(4, dtype=dtype))
    expected = "float64" if dtype == "int32" else dtype
    assert op.dtype == op.dense().dtype == (2.0 * op).dtype == expected


def test_a_scipy_operator_never_rounds_double_precision_in_silence():
    """A callback may run in a thread that ``with jax.enable_x64`` does not reach (JAX 0.10)."""
    try:
        found = jax.block_until_ready(eigsh(from_scipy(A), 1, tol=1e-12).values)
    except jax.errors.JaxRuntimeError as error:
        assert "jax_enable_x64" in str(error)
    else:
        np.testing.assert_allclose(found, np.linalg.eigvalsh(A)[:1], rtol=1e-12)


def test_a_scipy_operator_has_no_derivative():
    op = from_scipy(A)
    with pytest.raises(ValueError, match="JVP"):
        jax.grad(lambda x: jnp.sum(op @ x))(jnp.asarray(D))


@pytest.mark.parametrize("name", ["shift", "nested"])
def test_scipy_solvers_take_our_operators(name):
    op, matrix = to_scipy(composed(name)), COMPOSITIONS[name][1]
    expected = np.linalg.eigvalsh(matrix)[-2:]
    found = scipy.sparse.linalg.eigsh(op, 2, which="LA", return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(found), expected, rtol=1e-10)
    found = scipy.sparse.linalg.lobpcg(op, BLOCK[:, :2], tol=1e-9, maxiter=200)[0]
    np.testing.assert_allclose(np.sort(found), expected, rtol=1e-8)


def test_there_and_back_is_the_operator():
    op = composed("nested")
    back = from_scipy(to_scipy(op))
    assert (back.size, back.dtype) == (op.size, op.dtype)
    np.testing.assert_allclose(back.dense(), op.dense(), atol=1e-12)
    assert to_scipy(op).matmat(np.ones((N, 1))).shape == (N, 1)


# Pytrees


def loss(params, inputs):
    return jnp.sum(jnp.tanh(inputs @ params["w"] + params["b"]) ** 2)


def hessian_vector(data, v):
    params, inputs = data
    return jax.jvp(jax.grad(loss), (params, inputs), (v, jnp.zeros_like(inputs)))[1]


def parameters(seed, dtype="float64"):
    rng = np.random.default_rng(seed)
    tree = {"w": rng.standard_normal((4, 3)), "b": rng.standard_normal(3)}
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def test_a_hessian_on_a_pytree_is_the_hessian_of_the_ravelled_loss():
    params, inputs = parameters(0), jnp.asarray(TALL[:, :4])
    op, unravel = pytree_operator(hessian_vector, (params, inputs), params)
    flat, theirs = jax.flatten_util.ravel_pytree(params)
    expected = jax.jit(jax.hessian(lambda p: loss(theirs(p), inputs)))(flat)
    np.testing.assert_allclose(jax.jit(SymmetricOperator.dense)(op), expected, atol=1e-10)
    back = unravel(flat)
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, back, params)))


def test_new_parameters_compile_nothing():
    traced = []

    def counted(data, v):
        traced.append(1)
        return hessian_vector(data, v)

    for seed in range(3):
        params = parameters(seed)
        op, _ = pytree_operator(counted, (params, jnp.asarray(TALL[:, :4])), params)
        jax.jit(product)(op, jnp.ones(15))
        first = len(traced) if seed == 0 else first
    assert len(traced) == first


def test_a_pytree_operator_keeps_the_dtype_of_its_example():
    scale = jax.tree.map(lambda x: x**2, parameters(0, "float32"))
    op, unravel = pytree_operator(lambda d, v: jax.tree.map(jnp.multiply, d, v), scale, scale)
    closed, _ = pytree_operator(lambda _, v: v, (), scale)
    assert op.dtype == closed.dtype == (op @ jnp.ones(15, "float32")).dtype == jnp.float32
    assert unravel(jnp.ones(15, "float32"))["b"].dtype == jnp.float32


# Devices

CROSSING = re.compile(r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\(")


def on_devices(tree, spec):
    """Eight fake devices; leaves the specification does not divide are replicated."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices("cpu")[:8])

    def put(leaf):
        parts = [n % 8 == 0 for n in leaf.shape[: len(spec)]]
        fits = len(parts) == len(spec) and all(parts)
        return jax.device_put(leaf, NamedSharding(mesh, spec if fits else PartitionSpec()))

    return jax.tree.map(put, tree)


ROWS, REPLICATED = PartitionSpec("d"), PartitionSpec()


@each_composition
def test_sharding_the_rows_of_the_data_changes_nothing(name):
    op, matrix = on_devices(composed(name), ROWS), COMPOSITIONS[name][1]
    image = jax.jit(product)(op, on_devices(jnp.asarray(BLOCK), REPLICATED))
    np.testing.assert_allclose(image, matrix @ BLOCK, rtol=0, atol=1e-12)


def test_a_solver_finds_the_same_on_sharded_rows():
    found = eigsh(on_devices(composed("nested"), ROWS), 2, which="LA")
    expected = np.linalg.eigvalsh(COMPOSITIONS["nested"][1])[::-1][:2]
    np.testing.assert_allclose(found.values, expected, rtol=1e-8)


def crossings(op, x):
    """The collectives of one product, in the compiled program."""
    return CROSSING.findall(jax.jit(product).lower(op, x).compile().as_text())


@each_composition
def test_nothing_crosses_devices_for_a_block_sharded_by_columns(name):
    probes = jax.device_put(
        jnp.ones((N, 8)), on_devices(jnp.ones((8, 8)), PartitionSpec(None, "d")).sharding
    )
    assert crossings(on_devices(composed(name), REPLICATED), probes) == []


DIAGONALS = shift(2.0 * diagonal_operator(jnp.asarray(D, "float32")), 1.0)


def test_nothing_crosses_devices_in_sums_scalings_shifts_and_diagonals():
    x = on_devices(jnp.ones(N, "float32"), ROWS)
    assert crossings(on_devices(DIAGONALS - DIAGONALS, ROWS), x) == []


def test_rows_meet_a_replicated_vector_without_crossing():
    op = on_devices(composed("sum"), ROWS)
    assert crossings(op, on_devices(jnp.ones(N), REPLICATED)) == []


@pytest.mark.parametrize("name", ["gram", "low rank"])
def test_products_of_two_factors_cross_once(name):
    x = on_devices(jnp.ones(N), REPLICATED if name == "gram" else ROWS)
    assert crossings(on_devices(composed(name), ROWS), x) == ["all-reduce"]
