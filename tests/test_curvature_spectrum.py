"""Complete spectra: inner products of rows against rows formed, closed forms, floors and limits."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_jax.curvature import (
    SoftmaxCrossEntropy,
    SquaredError,
    displacement,
    empirical_fisher_spectrum,
    ggn,
    ggn_blocks,
    ggn_spectrum,
    overlap,
)
from spectral_jax.curvature._matrix import grams_of
from spectral_jax.curvature.kernel import problem_of
from tests.test_curvature_taps import NETWORKS, normal

SOFTMAX, SQUARED = SoftmaxCrossEntropy(), SquaredError()


@pytest.fixture(autouse=True)
def double(quick_compilation):
    with jax.enable_x64(True):
        yield


def linear(w, x):
    return x @ w


def attention(params, tokens):
    """A block over tokens: tied embedding, positions, a norm with scale and shift, a projection."""
    x = params["table"][tokens] + params["places"][: tokens.shape[1]]
    centred = x - x.mean(-1, keepdims=True)
    x = centred / jnp.sqrt(1e-3 + jnp.mean(centred**2, -1, keepdims=True))
    x = x * params["scale"] + params["shift"]
    heads = jnp.einsum("btd,dshk->sbhtk", x, params["qkv"])
    weights = jax.nn.softmax(jnp.einsum("bhtk,bhsk->bhts", *heads[:2]))
    mixed = jnp.einsum("bhts,bhsk->bthk", weights, heads[2])
    x = x + jnp.einsum("bthk,hkd->btd", mixed, params["out"]) + params["bias"]
    return x @ params["table"].T


ATTENTION = {
    "table": normal(0, 3, 2),
    "places": normal(1, 4, 2),
    "scale": normal(2, 2),
    "shift": normal(3, 2),
    "qkv": normal(4, 2, 3, 2, 1),
    "out": normal(5, 2, 1, 2),
    "bias": normal(6, 2),
}
NETWORKS = NETWORKS | {"attention": (attention, ATTENTION, np.array([[0, 2, 1], [1, 1, 0]]))}


def data_of(model, params, inputs):
    """Classes, of which those of the last example are masked where there are positions."""
    *items, c = jax.eval_shape(model, params, inputs).shape
    targets = np.random.default_rng(0).integers(0, c, items)
    if len(items) > 1:
        targets[-1, 1:] = -1
    return inputs, targets


@cache
def rows_of(name):
    """The problem of a network, and its rows formed ``[n k, p]``."""
    model, params, inputs = NETWORKS[name]
    data = data_of(model, params, inputs)
    problem = problem_of(
        model, SOFTMAX, "hessian", params, data, weight=None, where=None, memory=2**30
    )
    rows = jax.jit(problem.rows.gradients)(problem.params, problem.data, problem.shares)
    return problem, np.asarray(rows).reshape(-1, rows.shape[-1])


@pytest.mark.parametrize("name", NETWORKS)
def test_inner_products_are_those_of_the_rows(name):
    problem, rows = rows_of(name)
    (kernel,) = grams_of(problem, (0,) * len(problem.rows.subset.chosen))
    np.testing.assert_allclose(kernel, rows @ rows.T, rtol=0, atol=1e-12 * np.trace(kernel))


def test_both_routes_pieces_and_subsets_have_the_eigenvalues_of_the_operator():
    model, params, inputs = NETWORKS["tied"]
    data = data_of(model, params, inputs)
    weight = np.array([1.0, 0.0, 3.0])

    def where(name):
        return name != "1"

    matrix = ggn(model, SOFTMAX, params, data, weight=weight, where=where).dense()
    expected = np.linalg.eigvalsh(matrix)[::-1]
    for options in ({"route": "kernel"}, {"route": "parameter"}, {"memory": 15_000}):
        found = ggn_spectrum(model, SOFTMAX, params, data, weight=weight, where=where, **options)
        assert found.rank_bound == 6 and found.exact
        assert found.route == options.get("route", "kernel")
        np.testing.assert_allclose(found.values, expected[:6], rtol=0, atol=1e-13 * expected[0])
        assert (np.abs(expected[6:]) <= found.floor).all()


def test_pieces_that_do_not_fit_are_computed_again():
    n, p = 17, 60
    x = normal(0, n, p)
    matrix_alone = 3 * 8 * n**2
    found = ggn_spectrum(
        linear, SQUARED, np.ones((p, 1)), (x, np.ones((n, 1))), memory=matrix_alone
    )
    expected = np.linalg.eigvalsh(2 / n * x @ x.T)[::-1]
    np.testing.assert_allclose(found.values, expected, rtol=1e-12)


def test_at_zero_weights_a_softmax_repeats_the_spectrum_of_the_inputs():
    x, classes = normal(0, 9, 4), 3
    found = ggn_spectrum(linear, SOFTMAX, np.zeros((4, classes)), (x, np.zeros(9, int)))
    inputs = np.linalg.eigvalsh(x.T @ x / 9)[::-1]
    expected = np.concatenate([np.repeat(inputs / classes, classes - 1), np.zeros(4)])
    assert found.route == "parameter"
    np.testing.assert_allclose(found.values, expected, rtol=1e-10, atol=float(found.floor))


def test_a_deep_linear_net_has_kronecker_blocks():
    """Of squared error, ``2 A (x) B``: what enters a layer, and what leads from it to outputs."""
    params, x = [normal(0, 2, 3), normal(1, 3, 2)], normal(2, 5, 2)

    def model(params, x):
        return x @ params[0] @ params[1]

    found = ggn_blocks(model, SQUARED, params, (x, np.zeros((5, 2))))
    for layer, entering, leading in ((0, x, params[1]), (1, x @ params[0], np.eye(2))):
        block = 2 * np.kron(entering.T @ entering / 5, leading @ leading.T)
        values = found.spectra[str(layer)].values
        expected = np.linalg.eigvalsh(block)[::-1][: len(values)]
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12 * expected[0])


def test_a_word_is_no_way_to_divide_parameters():
    with pytest.raises(ValueError, match="block='layer': pass a function"):
        ggn_blocks(lambda p, x: x @ p, SQUARED, np.eye(2), (np.eye(2), np.eye(2)), block="layer")


def test_blocks_say_what_they_leave_out():
    model, params, inputs = NETWORKS["attention"]
    data = data_of(model, params, inputs)
    found = ggn_blocks(model, SOFTMAX, params, data, block=lambda name: name[0])
    names = sorted(name[0] for name in params)
    assert list(found.spectra) == list(dict.fromkeys(names))
    _, rows = rows_of("attention")
    matrix = rows.T @ rows
    sizes = [params[name].size for name in sorted(params)]
    of_entry = np.repeat(names, sizes)
    energy = np.array(
        [
            [np.sum(matrix[of_entry == one][:, of_entry == other] ** 2) for other in found.spectra]
            for one in found.spectra
        ]
    )
    np.testing.assert_allclose(found.shares, energy / np.sum(matrix**2), rtol=1e-11)
    np.testing.assert_allclose(found.outside, 1 - np.trace(energy) / energy.sum(), rtol=1e-10)
    block = matrix[of_entry == "s"][:, of_entry == "s"]
    expected = np.linalg.eigvalsh(block)[::-1]
    np.testing.assert_allclose(found.spectra["s"].values, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("route", ["kernel", "parameter"])
def test_eigenvectors_are_those_of_the_matrix(route):
    model, params, inputs = NETWORKS["tied"]
    data = data_of(model, params, inputs)
    found = ggn_spectrum(model, SOFTMAX, params, data, route=route, vectors=4)
    _, rows = rows_of("tied")
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(4), atol=1e-10)
    images = found.values[:4] * found.vectors
    products = rows.T @ (rows @ found.vectors)
    np.testing.assert_allclose(products, images, atol=1e-11 * found.values[0])


def test_an_eigenvector_below_the_floor_is_nan():
    data = (np.array([[1.0, 0.0], [2.0, 0.0]]), np.zeros((2, 1)))
    found = ggn_spectrum(linear, SQUARED, np.ones((2, 1)), data, route="kernel", vectors=2)
    np.testing.assert_allclose(found.vectors[:, 0] ** 2, [1.0, 0.0], atol=1e-14)
    assert np.isnan(found.vectors[:, 1]).all()


def test_the_empirical_fisher_matrix_has_a_row_per_item():
    x, y, w = normal(0, 3, 4), normal(1, 3, 2), normal(2, 4, 2)
    rows = np.einsum("ni,nc->nic", x, 2 * (x @ w - y)).reshape(3, -1)
    expected = np.linalg.eigvalsh(rows @ rows.T / 3)[::-1]
    found = empirical_fisher_spectrum(linear, SQUARED, w, (x, y))
    assert found.rank_bound == 3
    np.testing.assert_allclose(found.values, expected, rtol=1e-12)


def test_float32_keeps_eigenvalues_that_float32_sums_would_lose():
    """Pairs of inputs that agree to four digits have eigenvalues eight decades down."""
    base = normal(0, 4, 6)
    x = np.float32(np.concatenate([base, base + 1e-4 * normal(1, 4, 6)]))
    params = [np.float32(normal(2, 6, 20)), np.float32(normal(3, 20, 2))]
    data = (x, np.zeros(8, int))

    def model(params, x):
        return jnp.tanh(x @ params[0]) @ params[1]

    wide = [leaf.astype(np.float64) for leaf in params]
    exact = ggn_spectrum(model, SOFTMAX, wide, (x.astype(np.float64), data[1]))
    with jax.enable_x64(False):
        found = ggn_spectrum(model, SOFTMAX, params, data)
        traced = jax.jit(lambda p, d: ggn_spectrum(model, SOFTMAX, p, d))(params, data)
    assert found.values.dtype == np.float32 and exact.values[-1] < 1e-8 * exact.values[0]
    moved = np.abs(np.sqrt(found.values) - np.sqrt(exact.values))
    assert (moved <= np.sqrt(found.floor)).all() and found.floor < 1e-13 * found.values.sum()
    assert exact.values[-1] < traced.floor < 1e-5 * traced.values[0]
    np.testing.assert_allclose(traced.values, exact.values, rtol=0, atol=float(traced.floor))


def normalised(w, x):
    y = x @ w
    return (y - y.mean(0)) / (1e-3 + y.std(0))


def test_a_model_that_mixes_examples_has_no_spectrum():
    found = ggn_spectrum(normalised, SOFTMAX, normal(0, 3, 2), (normal(1, 5, 3), np.zeros(5, int)))
    assert not found.exact and np.isnan(found.values).all() and np.isnan(found.floor)
    infinite = ggn_spectrum(
        linear, SQUARED, np.ones((2, 1)), (np.full((3, 2), np.inf), np.ones((3, 1)))
    )
    assert not infinite.exact and np.isnan(infinite.values).all()


def test_a_last_layer_of_zeros_does_not_hide_that_examples_mix():
    def headed(params, x):
        return normalised(params[0], x) @ params[1]

    params, data = (normal(0, 3, 2), np.zeros((2, 2))), (normal(1, 5, 3), np.zeros(5, int))
    assert not ggn_spectrum(headed, SOFTMAX, params, data).exact


def test_values_beyond_the_dtype_of_the_parameters_are_not_exact():
    w, x, y = np.float32(np.ones((2, 1))), np.float32([[1e20, 0.0]]), np.float32([[0.0]])
    found = ggn_spectrum(linear, SQUARED, w, (x, y))
    assert not found.exact and np.isnan(found.values).all()


def test_values_that_underflow_are_below_the_floor():
    w, y = np.float32(np.ones((2, 1))), np.float32([[0.0], [0.0]])
    for route in ("kernel", "parameter"):
        for small, above in ((1e-20, 0), (1e-10, 2)):  # squares of 1e-40, and of 1e-20
            x = np.float32(small * np.array([[1.0, 0.0], [0.0, 2.0]]))
            found = ggn_spectrum(linear, SQUARED, w, (x, y), route=route)
            assert int((found.values > found.floor).sum()) == above
            assert found.floor >= jnp.finfo("float32").tiny  # 0 would say that they are known


def test_parameters_that_outputs_do_not_depend_on_have_a_zero_matrix():
    def first(params, x):
        return x @ params["used"]

    params = {"used": np.ones((2, 1)), "unused": np.ones(3)}
    data = np.ones((2, 2)), np.ones((2, 1))
    for route in ("kernel", "parameter"):
        found = ggn_spectrum(
            first, SQUARED, params, data, where=lambda n: n == "unused", route=route
        )
        assert found.exact and not found.values.any()


def test_small_signals_of_a_half_model_do_not_vanish():
    """Inputs and signals of 1e-4 are numbers in float16, and their product is none."""

    def half(w, x):
        y = x.astype("float16") @ w.astype("float16")
        return 1e-4 * y.astype("float32")

    w = np.ones((2, 1), "float32")
    data = np.full((1, 2), 1e-4, "float32"), np.zeros((1, 1), "float32")
    (value,) = ggn_spectrum(half, SQUARED, w, data, route="kernel").values
    # 2 |x|^2 1e-8, where x and the signal are rounded by at most 2^-11 each
    np.testing.assert_allclose(value, 4e-16, rtol=2e-3)


def test_what_is_beyond_memory_names_the_size_and_what_fits():
    data = (np.ones((50, 3)), np.zeros((50, 2)))
    with pytest.raises(
        ValueError,
        match=r"memory=10000 bytes is too little for route='kernel', which needs 240000 for a "
        r"matrix of 100 rows: pass memory=240000 or route='parameter', which needs 864 or at most "
        "10 examples",
    ):
        ggn_spectrum(linear, SQUARED, np.ones((3, 2)), data, route="kernel", memory=10_000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"route": "dual"}, "route='dual': choose 'auto', 'kernel' or 'parameter'"),
        ({"vectors": 7}, "vectors=7: choose 0 <= vectors <= 6"),
        ({"loss": "softmax"}, "loss is 'softmax': pass SoftmaxCrossEntropy"),
        ({"data": (np.ones((5, 3)), np.ones((4, 2)))}, "same leading axis of examples"),
        ({"data": np.ones((5, 3))}, r"data is no pair: pass \(inputs, targets\)"),
        ({"loss": SOFTMAX, "params": np.ones((3, 1))}, "use SigmoidCrossEntropy"),
        ({"weight": np.ones(4)}, r"weight has shape \(4,\)"),
    ],
)
def test_misuse_is_refused_by_name(options, message):
    arguments = {
        "loss": SQUARED,
        "params": np.ones((3, 2)),
        "data": (np.ones((5, 3)), np.zeros((5, 2))),
    }
    if options.get("loss") == SOFTMAX:
        arguments["data"] = (np.ones((5, 3)), np.zeros(5, int))
    with pytest.raises(ValueError, match=message):
        ggn_spectrum(linear, **(arguments | options))


def test_random_subspaces_overlap_by_their_share_of_dimensions():
    p, k = 400, 40
    a, b = (np.linalg.qr(normal(seed, p, k))[0] for seed in (0, 1))
    np.testing.assert_allclose(overlap(a, b), k / p, rtol=0.1)
    np.testing.assert_allclose(displacement(a, normal(2, p), np.zeros(p))[-1], k / p, rtol=0.3)
    np.testing.assert_allclose(overlap(a, a @ np.linalg.qr(normal(3, k, k))[0]), 1, rtol=1e-12)


def test_a_displacement_within_the_subspace_is_found_whole():
    vectors = np.linalg.qr(normal(0, 5, 3))[0]
    start = {"a": np.zeros((2, 2)), "b": np.ones(1)}
    moved = vectors @ np.array([3e-200, 0.0, 4e-200])
    end = {"a": moved[:4].reshape(2, 2), "b": 1 + moved[4:]}
    fractions = displacement(vectors, moved, np.zeros(5))
    np.testing.assert_allclose(fractions, [0.36, 0.36, 1.0], rtol=1e-12)
    assert displacement(vectors, end, start).shape == (3,)
    assert np.isnan(displacement(vectors, start, start)).all()
    with pytest.raises(ValueError, match="trees of different structure"):
        displacement(vectors, end, {"b": start["a"], "a": start["b"]} | {"c": np.ones(0)})


def test_a_block_that_cancels_is_below_its_floor():
    """Scores of attention that are all shifted change nothing: the bias of keys is not curved."""
    key = jax.random.key(3)
    x = jax.random.normal(key, (6, 4, 3), jnp.float32)
    params = {name: jax.random.normal(jax.random.fold_in(key, i), (3, 3), jnp.float32)
              for i, name in enumerate(("query", "key", "out"))}  # fmt: skip
    params |= {"key bias": jnp.ones(3, jnp.float32)}

    def model(p, x):
        scores = (x @ p["query"]) @ jnp.swapaxes(x @ p["key"] + p["key bias"], 1, 2)
        return (jax.nn.softmax(scores / 9) @ x @ p["out"]).mean(1)

    found = ggn_blocks(model, SquaredError(), params, (x, jnp.zeros((6, 3), jnp.float32))).spectra
    assert (found["key bias"].values <= found["key bias"].floor).all()
    for name in ("query", "key", "out"):
        assert found[name].values[0] > 1e3 * found[name].floor
