"""Checks of operators, streams of batches, and modules as functions of their parameters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.sparse.linalg import eigsh

from spectral_jax.curvature import (
    SoftmaxCrossEntropy,
    SquaredError,
    check,
    fisher,
    ggn,
    hessian,
    objective,
    stream,
)
from spectral_jax.linalg import SymmetricOperator, dense_operator
from spectral_jax.nnx import from_nnx

KEY = jax.random.key(0)
X = np.float32(np.random.default_rng(0).standard_normal((7, 4)))
Y = np.arange(7) % 3
SOFTMAX = SoftmaxCrossEntropy()


@pytest.fixture(autouse=True)
def quick(quick_compilation):
    pass


class Network(nnx.Module):
    def __init__(self, rngs, *, norm=False, dropout=0.0):
        self.first = nnx.Linear(4, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs) if norm else lambda x: x
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.last = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(jnp.tanh(self.norm(self.first(x)))))


def curvature(mode, **options):
    model, params = from_nnx(Network(nnx.Rngs(0), **options), mode)
    return ggn(model, SOFTMAX, params, (X, Y))


def test_a_module_in_evaluation_mode_is_a_function_of_its_parameters():
    network = Network(nnx.Rngs(0), norm=True, dropout=0.5)
    model, params = from_nnx(network)
    assert not network.norm.use_running_average and not network.dropout.deterministic
    doubled = jax.tree.map(lambda x: 2 * x, params)
    network.eval()
    np.testing.assert_array_equal(model(params, X), network(X))
    assert not np.allclose(model(doubled, X), network(X))


@pytest.mark.parametrize(
    "options, fix",
    [({"norm": True}, "running statistics"), ({"dropout": 0.5}, "switch dropout off")],
    ids=["batch norm", "dropout"],
)
def test_modules_in_training_mode_are_refused_with_the_fix(options, fix):
    found = check(curvature("eval", **options), KEY)
    assert found.finite and max(found.symmetry, found.linearity) < 1e-5
    assert found.repeatability == 0
    with pytest.raises(ValueError, match=fix):
        check(curvature("train", **options), KEY)


def no_spread(params, x):
    hidden = x @ params["first"]
    return jnp.tanh(hidden - hidden.mean(0)) @ params["last"]


@pytest.mark.parametrize("last", [np.zeros((5, 3), np.float32), np.ones((5, 3), np.float32)])
def test_a_batch_norm_shows_through_a_last_layer_of_zeros_a_stream_and_a_multiple(last):
    build = partial(ggn, no_spread, SOFTMAX, {"first": np.ones((4, 5), np.float32), "last": last})
    whole = build((X, Y))
    for op in (whole, 2.0 * whole, whole + whole, stream(build, [(X[:6], Y[:6]), (X[6:], Y[6:])])):
        with pytest.raises(ValueError, match="running statistics"):
            check(op, KEY)


def test_a_check_is_made_outside_of_programs():
    def symmetry(w):
        return check(ggn(linear, SOFTMAX, w, (X, Y)), KEY).symmetry

    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(symmetry)(W)


def test_a_mean_loss_is_checked_by_halves():
    def normalised(w, batch):
        centred = batch - jnp.mean(batch, axis=0)
        return jnp.mean((centred @ w) ** 2)

    def plain(w, batch):
        return jnp.mean((batch @ w) ** 2)

    w = np.ones(4, np.float32)
    assert check(hessian(plain, w, X), KEY).finite
    with pytest.raises(ValueError, match="the others in its batch"):
        check(hessian(normalised, w, X), KEY)


def test_what_is_not_symmetric_random_or_infinite_shows():
    matrix = jnp.triu(jnp.ones((30, 30)))
    symmetry = check(dense_operator(matrix), KEY).symmetry
    assert symmetry > 1e-3
    for scale in (2.0**-100, 2.0**90):
        scaled = check(dense_operator(scale * matrix), KEY)
        np.testing.assert_allclose(scaled.symmetry, symmetry, rtol=1e-5)
    assert check(dense_operator(jnp.zeros((3, 3))), KEY)[:3] == (0, 0, 0)
    broken = check(dense_operator(jnp.full((3, 3), jnp.inf)), KEY)
    assert not broken.finite and np.isnan(broken.symmetry)
    rng = np.random.default_rng(0)

    def noisy(_, x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        noise = lambda x: x + np.float32(rng.standard_normal(x.shape))  # noqa: E731
        return jax.pure_callback(noise, shape, x, vmap_method="sequential")

    op = SymmetricOperator(noisy, jnp.zeros(0), 3)
    assert check(op, KEY).repeatability > 0.1


def test_the_error_of_differences_shows_as_a_lack_of_linearity():
    def loss(w, x):
        return jnp.sum(jnp.sin(3 * x @ w))[None]

    w, data = np.ones((4, 2), np.float32), X[:1]
    exact = check(hessian(loss, w, data), KEY)
    rough = check(hessian(loss, w, data, method="difference"), KEY)
    assert exact.linearity < 1e-6 < 1e-5 < rough.linearity < 0.1


# Streams


def linear(w, x):
    return x @ w


def batches(*lengths, seed=0):
    cuts = np.cumsum(lengths)[:-1]
    return list(zip(np.split(X, cuts), np.split(Y, cuts), strict=True))


W = np.float32(np.random.default_rng(1).standard_normal((4, 3)))
BUILD = partial(ggn, linear, SOFTMAX, W)


def test_a_stream_of_unequal_batches_is_the_mean_of_all_examples():
    whole = np.asarray(BUILD((X, Y)).dense())
    for lengths in ((3, 4), (1, 5, 1), (7,)):
        streamed = stream(BUILD, batches(*lengths)) @ np.eye(12, dtype=np.float32)
        np.testing.assert_allclose(streamed, whole, atol=1e-6)


def test_a_stream_weighs_batches_by_what_counts_in_them():
    """Masked items, once a whole batch, weights, and draws keyed by an example's index."""
    masked = np.where(Y == 1, -1, Y)
    v = np.ones(12, np.float32)

    def build(batch):
        x, y, index = batch
        options = dict(mode="mc", key=KEY, index=index, weight=1.0 + index)
        return fisher(linear, SOFTMAX, W, (x, y), **options)

    index = np.arange(7)
    cuts = slice(0, 1), slice(1, 2), slice(2, 7)
    parts = [(X[part], masked[part], index[part]) for part in cuts]
    whole = build((X, masked, index)) @ v
    np.testing.assert_allclose(stream(build, parts) @ v, whole, atol=1e-6)


def test_scipy_finds_eigenvalues_over_a_stream():
    streamed = stream(BUILD, lambda: iter(batches(3, 4)))
    largest = eigsh(streamed.to_scipy(), 1, return_eigenvectors=False, tol=1e-4)
    exact = np.linalg.eigvalsh(BUILD((X, Y)).dense())[-1]
    np.testing.assert_allclose(largest, exact, rtol=1e-3)
    assert check(streamed, KEY).repeatability == 0


def test_a_loader_that_shuffles_between_products_is_refused():
    rng = np.random.default_rng(0)

    def shuffled():
        order = rng.permutation(7)
        yield X[order[:3]], Y[order[:3]]
        yield X[order[3:]], Y[order[3:]]

    streamed, v = stream(BUILD, shuffled), np.ones(12, np.float32)
    streamed @ v
    with pytest.raises(ValueError, match="shuffle=False"):
        streamed @ v


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: stream(BUILD, iter(batches(3, 4))), "is an iterator"),
        (lambda: stream(BUILD, []), "no batch"),
        (lambda: stream(lambda batch: dense_operator(jnp.eye(2)), [X]), "what hessian, ggn"),
        (lambda: jax.jit(lambda v: stream(BUILD, batches(7)) @ v)(jnp.ones(12)), "outside jit"),
    ],
    ids=["iterator", "empty", "other operators", "jit"],
)
def test_streams_refuse_what_they_cannot_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_hessian_streams_as_well():
    build = partial(hessian, objective(linear, SquaredError()), W)
    data = X, np.zeros((7, 3), np.float32)
    parts = [tuple(x[part] for x in data) for part in (slice(0, 3), slice(3, 7))]
    v = np.ones(12, np.float32)
    np.testing.assert_allclose(stream(build, parts) @ v, build(data) @ v, rtol=1e-6)
