"""A network's connectivity equals that of its dense Laplacian, and its result says how it got it.

Compiling is what these tests cost, so most networks are padded with absent units to one shape,
which also shows that absent units do not matter.
"""

import inspect
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from spectral_jax import graphs, optim
from spectral_jax.graphs.laplacian import column
from spectral_jax.weights import edges as edges_of
from spectral_jax.weights import graph_weights
from tests.cases.graphs import connectivity, dense_laplacian

pytestmark = pytest.mark.usefixtures("quick_compilation")
WIDTHS = (7, 6, 6, 5)
EXACT = 1e-11


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


def padded(weights):
    """The network with absent units added, so that its groups have the sizes ``WIDTHS``."""
    blocks = [np.zeros(shape) for shape in zip(WIDTHS, WIDTHS[1:], strict=False)]
    for block, w in zip(blocks, weights, strict=False):
        block[: w.shape[0], : w.shape[1]] = w
    return tuple(jnp.asarray(block) for block in blocks)


def trimmed(blocks, widths):
    """The part of padded blocks that belongs to a network of these widths."""
    shapes = zip(widths, widths[1:], strict=False)
    return [block[:m, :n] for block, (m, n) in zip(blocks, shapes, strict=False)]


@partial(jax.jit, static_argnames=("normalised", "edges"))
def laplacian(blocks, *, normalised, edges=None):
    """The dense matrix of the operator, made in one program."""
    return graphs.laplacian(blocks, normalised=normalised, edges=edges).dense()


@cache
def solver(normalised):
    return jax.jit(partial(graphs.fiedler, normalised=normalised, tol=EXACT))


@cache
def value_and_gradient(normalised):
    value = partial(graphs.fiedler_value, normalised=normalised, tol=EXACT)
    return jax.jit(jax.value_and_grad(value))


def lambda_2(weights):
    return solver(False)(padded(weights)).value


def nu_2(weights):
    return solver(True)(padded(weights)).value


def network(*widths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in zip(widths, widths[1:], strict=False)]


def all_ones(*widths):
    return [np.ones(shape) for shape in zip(widths, widths[1:], strict=False)]


def rescaled(weights):
    """The same function of the input, for ReLU units."""
    return [3 * weights[0], weights[1] / 3, *weights[2:]]


REFERENCE = network(7, 6, 5, 4)


# Known spectra


@pytest.mark.parametrize("m, n", [(2, 2), (3, 5), (7, 6)])
def test_complete_bipartite_graph(m, n):
    assert float(lambda_2([np.ones((m, n))])) == pytest.approx(min(m, n), abs=1e-12)
    assert float(nu_2([np.ones((m, n))])) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("n", [3, 4])
def test_complete_graph(n):
    pairs = tuple((i, j) for i in range(n) for j in range(i + 1, n))
    ones = [jnp.ones((1, 1))] * len(pairs)
    spectrum = np.linalg.eigvalsh(laplacian(ones, normalised=False, edges=pairs))
    np.testing.assert_allclose(spectrum, [0, *[n] * (n - 1)], atol=1e-12)


@pytest.mark.parametrize("n", [2, 5, 12])
def test_path(n):
    """Its nodes alternate between the two sides of one layer."""
    layer = np.eye((n + 1) // 2, n // 2) + np.eye((n + 1) // 2, n // 2, -1)
    assert float(lambda_2([layer])) == pytest.approx(2 - 2 * np.cos(np.pi / n), abs=1e-12)


@pytest.mark.parametrize("n", [4, 8, 12])
def test_cycle(n):
    layer = np.eye(n // 2) + np.roll(np.eye(n // 2), 1, axis=0)
    assert float(lambda_2([layer])) == pytest.approx(2 - 2 * np.cos(2 * np.pi / n), abs=1e-12)


def test_star():
    assert float(lambda_2([np.ones((1, 6))])) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("a, b", [(1.0, 2.0), (-1.0, 2.0), (5.0, 0.1)])
def test_three_units_in_a_row(a, b):
    value, gradient = value_and_gradient(False)(padded([np.array([[a]]), np.array([[b]])]))
    p, q = abs(a), abs(b)
    root = np.sqrt(p * p - p * q + q * q)
    assert float(value) == pytest.approx(p + q - root, abs=1e-10)
    slopes = np.array([1 - (2 * p - q) / (2 * root), 1 - (2 * q - p) / (2 * root)])
    ours = [float(g[0, 0]) for g in gradient[:2]]
    np.testing.assert_allclose(ours, np.sign([a, b]) * slopes, atol=1e-10)
    if (a, b) == (1, 2):
        assert float(value) == pytest.approx(1.2679491924, abs=1e-10)
        np.testing.assert_allclose(ours, [1, 0.1339745962], atol=1e-10)


def test_all_ones_network():
    widths = (4, 6, 6, 3)
    ones = [jnp.asarray(block) for block in all_ones(*widths)]
    spectrum = np.linalg.eigvalsh(laplacian(ones, normalised=False))
    neighbours = [6, 4 + 6, 6 + 3, 6]
    known = np.concatenate([[d] * (n - 1) for d, n in zip(neighbours, widths, strict=True)])
    s, size = np.array([24.0, 36.0, 18.0]), np.array(widths) ** -0.5
    q = np.diag(np.r_[s, 0] + np.r_[0, s]) - np.diag(s, 1) - np.diag(s, -1)
    quotient = np.linalg.eigvalsh(size[:, None] * q * size[None, :])
    np.testing.assert_allclose(spectrum, np.sort(np.r_[known, quotient]), atol=1e-8)
    assert float(lambda_2(ones)) == pytest.approx(4.16461018, abs=1e-8)
    assert float(nu_2(ones)) == pytest.approx(0.63485163, abs=1e-8)


@pytest.mark.parametrize(
    "weights, expected",
    [
        (REFERENCE, (1.8267354982, 0.4627053840, 2.7656077708, 1.9909185792)),
        (rescaled(REFERENCE), (1.3242679197, 0.2022832674, 1.4757307600, None)),
    ],
    ids=["as drawn", "rescaled"],
)
def test_reference_network(weights, expected):
    combinatorial, normalised = (solver(n)(padded(weights)) for n in (False, True))
    connectivity_, normalised_, quotient, degree = expected
    assert float(combinatorial.value) == pytest.approx(connectivity_, abs=1e-9)
    assert float(normalised.value) == pytest.approx(normalised_, abs=1e-9)
    assert float(combinatorial.quotient_bound) == pytest.approx(quotient, abs=1e-9)
    if degree:
        assert float(combinatorial.degree_bound) == pytest.approx(degree, abs=1e-9)


# Against dense matrices

layered = st.tuples(st.tuples(*(st.integers(2, width) for width in WIDTHS)), st.integers(2, 4))
scales, seeds = st.floats(-3, 3), st.integers(0, 2**32 - 1)
quick = settings(deadline=None, max_examples=40, derandomize=True, database=None)


def drawn(layers, scale, seed):
    widths, depth = layers
    return [10**scale * w for w in network(*widths[:depth], seed=seed)]


@quick
@given(layered, scales, seeds)
def test_any_layered_network_has_the_fiedler_pair_of_its_dense_laplacian(layers, scale, seed):
    weights = drawn(layers, scale, seed)
    nodes = sum(layers[0][: layers[1]])
    for normalised in (False, True):
        found = solver(normalised)(padded(weights))
        expected = connectivity(weights, normalised=normalised)[0]
        assert found.converged
        assert float(found.value) == pytest.approx(expected, rel=1e-9)
        assert found.component_size == nodes
        # Above lambda_2: the layer quotient, and the smallest degree (or N / (N - 1)).
        assert found.quotient_bound >= expected * (1 - 1e-12)
        assert found.degree_bound >= expected * (1 - 1e-12)


@quick
@given(layered, scales, seeds)
def test_the_normalised_spectrum_of_a_layered_network_is_symmetric_about_one(layers, scale, seed):
    weights = drawn(layers, scale, seed)
    spectrum = np.linalg.eigvalsh(laplacian(padded(weights), normalised=True))
    absent = len(spectrum) - sum(layers[0][: layers[1]])
    # Absent units are set apart at 2, where the spectrum ends anyway.
    spectrum = spectrum[: len(spectrum) - absent]
    assert spectrum[-1] == pytest.approx(2, abs=1e-10)
    np.testing.assert_allclose(spectrum, 2 - spectrum[::-1], atol=1e-10)


EDGES = ((0, 1), (1, 2), (1, 2), (2, 3), (0, 3))


def branching(seed=0):
    """A chain with a unit-by-unit skip from group 1 to 2 and an edge from the input to the end."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in ((5, 4), (4, 4), (4,), (4, 3), (5, 3))]


@pytest.mark.parametrize("normalised", [False, True])
def test_skips_and_branches(normalised):
    weights = branching()
    expected = dense_laplacian(weights, EDGES, normalised=normalised)
    blocks = [jnp.asarray(w) for w in weights]
    found = laplacian(blocks, normalised=normalised, edges=EDGES)
    np.testing.assert_allclose(found, expected, atol=1e-12)

    @jax.jit
    def columns(blocks):
        operator = graphs.laplacian(blocks, normalised=normalised, edges=EDGES)
        return jax.lax.map(partial(column, operator), jnp.arange(operator.size))

    np.testing.assert_allclose(columns(blocks), expected, atol=1e-12)
    degree = np.diag(dense_laplacian(weights, EDGES, normalised=False))
    np.testing.assert_allclose(graphs.degrees(blocks, edges=EDGES), degree, atol=1e-12)
    assert graphs.widths(blocks, EDGES) == (5, 4, 4, 3)
    if normalised:
        found = graphs.fiedler_pairs(blocks, 3, normalised=True, edges=EDGES)
        np.testing.assert_allclose(found.values, np.linalg.eigvalsh(expected)[1:4], atol=1e-9)


def test_the_vector_is_a_unit_eigenvector_orthogonal_to_the_null_vector():
    for normalised in (False, True):
        found = solver(normalised)(padded(network(*WIDTHS)))
        a = dense_laplacian(network(*WIDTHS), normalised=normalised)
        v = np.asarray(found.vector)
        degree = np.diag(dense_laplacian(network(*WIDTHS), normalised=False))
        null = np.sqrt(degree) if normalised else np.ones(len(v))
        assert np.linalg.norm(v) == pytest.approx(1, abs=1e-12)
        assert v @ null == pytest.approx(0, abs=1e-11)
        residual = np.linalg.norm(a @ v - float(found.value) * v)
        assert residual == pytest.approx(float(found.residual), abs=1e-12)
        assert found.residual <= 1e-10
        np.testing.assert_array_equal(found.state, found.vector)


# Properties in |W|


@cache
def batched_values():
    """``lambda_2`` of a stack of networks."""
    value = partial(graphs.fiedler_value, normalised=False, tol=1e-8, max_matvecs=300)
    return jax.jit(jax.vmap(value))


def test_lambda_2_is_concave_monotone_and_homogeneous_in_the_magnitudes():
    rng = np.random.default_rng(0)
    a, b = ([rng.exponential(size=(500, *w.shape)) for w in REFERENCE] for _ in range(2))
    stacks = (a, b, [(x + y) / 2 for x, y in zip(a, b, strict=True)], [3 * x for x in a])
    joined = [jnp.concatenate(parts) for parts in zip(*stacks, strict=True)]
    at_a, at_b, between, tripled = np.split(np.asarray(batched_values()(joined)), 4)
    assert (between >= (at_a + at_b) / 2 - 1e-12).all()
    # a + b has more of every edge than a.
    assert (2 * between >= at_a - 1e-12).all()
    np.testing.assert_allclose(tripled, 3 * at_a, rtol=1e-12)


def test_neither_sign_nor_direction_of_an_edge_matters():
    weights = network(5, 6, 5, 5)
    flipped = [-w for w in weights]
    backwards = [w.T for w in weights[::-1]]
    for connectivity_ in (lambda_2, nu_2):
        value = float(connectivity_(weights))
        assert float(connectivity_(flipped)) == value
        assert float(connectivity_(backwards)) == pytest.approx(value, rel=1e-12)


def test_nu_2_does_not_see_the_scale_of_the_weights():
    assert float(nu_2([1e3 * w for w in REFERENCE])) == pytest.approx(float(nu_2(REFERENCE)))


# Gradients, against autodiff of a dense eigendecomposition


def dense_value(weights, normalised):
    laplacian = dense_laplacian(weights, normalised=normalised, np=jnp)
    return jnp.linalg.eigvalsh(laplacian)[1]


@pytest.mark.parametrize("normalised", [False, True])
def test_gradient_of_the_value(normalised):
    widths = (7, 6, 5, 4)
    value, gradient = value_and_gradient(normalised)(padded(REFERENCE))
    weights = [jnp.asarray(w) for w in REFERENCE]
    theirs = jax.jit(jax.grad(partial(dense_value, normalised=normalised)))(weights)
    for ours, expected in zip(trimmed(gradient, widths), theirs, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-12)
    # Euler: homogeneous of degree 1, or 0 if normalised.
    euler = sum(np.vdot(w, g) for w, g in zip(padded(REFERENCE), gradient, strict=True))
    assert euler == pytest.approx(0 if normalised else float(value), abs=1e-12)


@pytest.mark.parametrize("normalised", [False, True])
def test_the_gradient_of_the_value_is_itself_differentiable(normalised):
    weights = [jnp.asarray(w) for w in network(4, 3, 3)]
    direction = [jnp.asarray(w) for w in network(4, 3, 3, seed=1)]

    def curvature(value):
        along = lambda w: sum(map(jnp.vdot, direction, jax.grad(value)(w)))  # noqa: E731
        return jax.jit(jax.grad(along))(weights)

    ours = partial(graphs.fiedler_value, normalised=normalised, tol=1e-13)
    theirs = partial(dense_value, normalised=normalised)
    for found, expected in zip(curvature(ours), curvature(theirs), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_gradient_of_the_vector():
    weights = [jnp.asarray(w) for w in REFERENCE]
    c = jnp.sin(jnp.arange(22.0))

    def ours(weights):
        pair = graphs.fiedler_pairs(weights, 1, normalised=False, tol=1e-13)
        return jnp.vdot(c, pair.vectors[:, 0]) ** 2

    def theirs(weights):
        laplacian = dense_laplacian(weights, normalised=False, np=jnp)
        return jnp.vdot(c, jnp.linalg.eigh(laplacian)[1][:, 1]) ** 2

    expected = jax.jit(jax.grad(theirs))(weights)
    for g, e in zip(jax.jit(jax.grad(ours))(weights), expected, strict=True):
        np.testing.assert_allclose(g, e, atol=1e-10)


def test_gradient_of_the_rayleigh_quotient_is_hellmann_feynman():
    """With the converged vector held constant, its gradient is that of the value."""
    for normalised in (False, True):
        blocks = padded(network(*WIDTHS))
        _, gradient = value_and_gradient(normalised)(blocks)
        vector = solver(normalised)(blocks).vector
        nodal = vector / jnp.sqrt(graphs.degrees(blocks)) if normalised else vector
        quotient = partial(graphs.rayleigh_quotient, v=nodal, normalised=normalised)
        for g, expected in zip(jax.jit(jax.grad(quotient))(blocks), gradient, strict=True):
            np.testing.assert_allclose(g, expected, atol=1e-9)


@pytest.mark.parametrize("reduce", ["mean", "softmin"])
def test_several_values_in_one(reduce):
    values = connectivity(REFERENCE, normalised=True, k=3)
    expected = values.mean()
    if reduce == "softmin":
        expected = -np.log(np.mean(np.exp(-5 * values))) / 5
    value = partial(graphs.fiedler_value, normalised=True, k=3, reduce=reduce, sharpness=5.0)
    ours = jax.jit(value)([jnp.asarray(w) for w in REFERENCE])
    assert float(ours) == pytest.approx(expected, rel=1e-12)


# Disconnected networks


def two_parts(large=1.0, small=1.0):
    """Units 0-3 of every layer form one component, units 4 and 5 another."""
    first, second = network(4, 4, 4, 4, seed=1), network(2, 2, 2, 1, seed=2)
    blocks = [np.array(block) for block in padded([large * w for w in first])]
    for block, w in zip(blocks, second, strict=True):
        block[4 : 4 + w.shape[0], 4 : 4 + w.shape[1]] = small * w
    return first, tuple(jnp.asarray(block) for block in blocks)


def test_the_largest_component_is_analysed_by_default():
    first, blocks = two_parts()
    found = solver(False)(blocks)
    assert found.component_size == 16
    assert float(found.value) == pytest.approx(connectivity(first, normalised=False)[0], rel=1e-9)
    outside = ~np.asarray(graphs.largest_component(blocks))
    assert not found.vector[outside].any()


def test_the_whole_graph_has_the_zero_if_asked():
    _, blocks = two_parts()
    solve = partial(graphs.fiedler, normalised=False, component="whole")
    found = jax.jit(solve)(blocks)
    assert float(found.value) == pytest.approx(0, abs=1e-10)
    assert found.converged and found.component_size == sum(WIDTHS)


def test_the_gradient_of_a_disconnected_network_is_finite_and_stays_inside():
    _, blocks = two_parts()
    for normalised in (False, True):
        _, gradient = value_and_gradient(normalised)(blocks)
        for g in gradient:
            assert np.isfinite(g).all()
            assert not g[4:].any() and not g[:, 4:].any()
        assert gradient[0][:4, :4].all()


def test_without_edges_the_value_is_zero_and_so_are_vector_and_gradient():
    for normalised in (False, True):
        blocks = padded([])
        found = solver(normalised)(blocks)
        assert found.value == 0 and not found.vector.any()
        assert found.component_size == 1 and found.participation_ratio == 0
        value, gradient = value_and_gradient(normalised)(blocks)
        assert value == 0
        assert not any(g.any() for g in gradient)


def test_nan_weights_give_nan_unconverged():
    for normalised in (False, True):
        blocks = list(padded(REFERENCE))
        blocks[1] = blocks[1].at[2, 3].set(jnp.nan)
        found = solver(normalised)(tuple(blocks))
        assert np.isnan(found.value) and not found.converged
        assert found.matvecs < 400


def test_components_agree_with_scipy():
    component = jax.jit(jax.vmap(graphs.largest_component))
    rng = np.random.default_rng(0)
    shapes = list(zip(WIDTHS, WIDTHS[1:], strict=False))
    density = rng.uniform(0, 0.6, size=(60, 1, 1))
    stacks = [rng.normal(size=(60, *s)) * (rng.random((60, *s)) < density) for s in shapes]
    masks = np.asarray(component([jnp.asarray(stack) for stack in stacks]))
    sizes = set()
    for mask, *blocks in zip(masks, *stacks, strict=True):
        adjacency = dense_laplacian(blocks, normalised=False) < 0
        _, labels = scipy.sparse.csgraph.connected_components(adjacency)
        largest = np.bincount(labels)
        # Labels are numbered by their first node, so argmax is the first of equal components.
        np.testing.assert_array_equal(mask, labels == largest.argmax())
        sizes.add(int(mask.sum()))
    assert len(sizes) > 10


# Diagnostics


def test_participation_ratio_and_peak_tell_a_layer_mode_from_a_single_weak_unit():
    spread = solver(False)(padded(all_ones(7, 6, 6, 5)))
    vector = np.asarray(spread.vector)
    assert float(spread.participation_ratio) == pytest.approx(1 / np.sum(vector**4))
    assert spread.participation_ratio > 15
    weights = all_ones(7, 6, 6, 5)
    weights[1][:, 2] *= 1e-3
    weights[2][2] *= 1e-3
    weak = solver(False)(padded(weights))
    assert weak.participation_ratio == pytest.approx(1, abs=0.1)
    assert weak.peak_group == 2
    assert int(np.argmax(np.abs(weak.vector))) == 7 + 6 + 2
    assert float(weak.degree_bound) == pytest.approx(24 / 23 * 11e-3)


def test_staleness_is_what_the_old_vector_overstates():
    old, new = network(*WIDTHS, seed=3), network(*WIDTHS, seed=4)
    new = [x + 0.2 * y for x, y in zip(old, new, strict=True)]
    solve = solver(False)
    state = solve(padded(old)).state
    again = solve(padded(old), state=state)
    assert float(again.staleness) == pytest.approx(1, abs=1e-9)
    found = solve(padded(new), state=state)
    a, v = dense_laplacian(new, normalised=False), np.asarray(state)
    assert float(found.staleness) == pytest.approx(v @ a @ v / float(found.value), rel=1e-9)
    assert found.staleness > 1.01
    assert again.matvecs < solve(padded(old)).matvecs


def test_layer_quotient_vector_is_constant_in_each_layer_and_attains_the_bound():
    blocks = [jnp.asarray(w) for w in network(*WIDTHS)]
    for normalised in (False, True):
        value, vector, image = graphs.layer_quotient(blocks, normalised=normalised)
        a = dense_laplacian(blocks, normalised=normalised)
        assert float(vector @ a @ vector) == pytest.approx(float(value), rel=1e-12)
        assert float(vector @ vector) == pytest.approx(1, rel=1e-12)
        np.testing.assert_allclose(image, a @ vector, rtol=1e-10, atol=1e-12)
        nodal = vector / jnp.sqrt(graphs.degrees(blocks)) if normalised else vector
        for part in graphs.by_group(nodal, WIDTHS):
            np.testing.assert_allclose(part, part[0], rtol=1e-10)


# Small values and extreme scales, in single precision


@cache
def single(function, normalised, tol=1e-3):
    return jax.jit(partial(function, normalised=normalised, tol=tol))


def weakened(layer, factor, seed=0):
    """A network in float32, one of whose layers is weak."""
    weights = [w.astype("float32") for w in network(*WIDTHS, seed=seed)]
    weights[layer] *= np.float32(factor)
    return weights


def incidence(weights, normalised):
    """``B`` with ``L = B^T B``, whose singular values hold twice as many digits of a small
    eigenvalue as the Laplacian itself."""
    weights = [np.abs(w).astype(float) for w in weights]
    starts = np.cumsum([0, *WIDTHS])
    rows = []
    for layer, w in enumerate(weights):
        for (i, j), weight in np.ndenumerate(w):
            row = np.zeros(sum(WIDTHS))
            row[starts[layer] + i], row[starts[layer + 1] + j] = 1, -1
            rows.append(np.sqrt(weight) * row)
    b = np.array(rows)
    return b / np.linalg.norm(b, axis=0) if normalised else b


def precise(weights, normalised):
    return np.sort(np.linalg.svd(incidence(weights, normalised), compute_uv=False))[1] ** 2


@pytest.mark.parametrize("normalised", [False, True])
def test_a_value_below_the_rounding_of_products_is_right_from_edges(normalised):
    weights = weakened(1, 1e-9)
    found = single(graphs.fiedler, normalised)(weights)
    assert float(found.value) == pytest.approx(precise(weights, normalised), rel=1e-4)
    # No vector in float32 has a residual near a value of 1e-9, and the result says so.
    b, v = incidence(weights, normalised), np.asarray(found.vector, float)
    residual = np.linalg.norm(b.T @ (b @ v) - float(found.value) * v)
    assert float(found.residual) == pytest.approx(residual, abs=2.0**-25)
    assert not found.converged and residual > 0.03 * float(found.value)
    assert float(found.quotient_bound) >= float(found.value) * (1 - 1e-4)
    kept = graphs.pair_residuals(weights, found.vector[:, None], normalised=normalised)
    assert float(kept.values[0]) == pytest.approx(float(found.value), rel=1e-5)
    assert float(kept.residuals[0]) == pytest.approx(float(found.residual), rel=1e-3)


@pytest.mark.parametrize("normalised", [False, True])
def test_one_weak_layer_gives_a_right_value_or_a_flag(normalised):
    factors = [(layer, 10.0**-power) for layer in range(3) for power in range(0, 24, 2)]
    nets = [weakened(*factor, seed=seed) for seed, factor in enumerate(factors)]
    stacks = [jnp.asarray(np.stack(layers)) for layers in zip(*nets, strict=True)]
    found = jax.jit(jax.vmap(partial(graphs.fiedler, normalised=normalised)))(stacks)
    right = np.array([precise(net, normalised) for net in nets])
    values, converged = np.asarray(found.value, float), np.asarray(found.converged)
    np.testing.assert_allclose(values[converged], right[converged], rtol=2e-3)
    assert (values > 0).all()
    # Upper bounds all, to the digits that float32 and the reference have.
    assert (values >= right * (1 - 1e-4)).all()
    assert (np.asarray(found.quotient_bound) >= right * (1 - 1e-4)).all()
    assert converged[right > 1e-4].all()


@pytest.mark.parametrize("normalised", [False, True])
def test_value_and_gradient_follow_the_scale_of_the_weights(normalised):
    """To 1e-30 and 1e30 in float32; ``nu_2`` does not move, and its slope is over the weights."""
    solve = single(graphs.fiedler, normalised)
    slope = jax.jit(jax.grad(partial(graphs.fiedler_value, normalised=normalised, tol=1e-3)))
    weights = [w.astype("float32") for w in network(*WIDTHS)]
    value, gradient, degree = float(solve(weights).value), slope(weights), 1 - normalised
    for exponent in (-100, -60, 60, 100):
        s = 2.0**exponent
        scaled = [np.float32(s) * w for w in weights]
        found = solve(scaled)
        assert found.converged
        assert float(found.value) == pytest.approx(value * s**degree, rel=1e-6)
        assert float(found.degree_bound) >= float(found.value)
        for ours, plain in zip(slope(scaled), gradient, strict=True):
            np.testing.assert_allclose(ours / s ** (degree - 1), plain, rtol=1e-4, atol=1e-6)


def test_what_the_dtype_cannot_tell_is_not_converged():
    """Infinite weights, degrees that overflow, and weights that count as 0 below the smallest
    normal number."""
    weights = [w.astype("float32") for w in network(*WIDTHS)]
    infinite = [*weights[:2], weights[2] * np.float32(np.inf)]
    for normalised in (False, True):
        solve = single(graphs.fiedler, normalised)
        for broken in (infinite, [np.float32(1e38) * w for w in weights]):
            found = solve(broken)
            assert jnp.isnan(found.value) and not found.converged
        assert not solve([np.float32(1e-37) * w for w in weights]).converged


# The sizes of the paper, in single precision


def torch_init(*widths, seed=0):
    rng = np.random.default_rng(seed)
    shapes = zip(widths, widths[1:], strict=False)
    return [rng.uniform(-1, 1, s).astype("float32") / np.float32(s[0] ** 0.5) for s in shapes]


def double_product(weights):
    """``x -> L x`` in float64, in NumPy."""
    magnitudes = [np.abs(w).astype(float) for w in weights]
    sizes = [magnitudes[0].shape[0], *(m.shape[1] for m in magnitudes)]
    cuts = np.cumsum(sizes)[:-1]
    degree = np.zeros(sum(sizes))

    def adjacent(x):
        parts = np.split(x, cuts)
        out = [np.zeros(size) for size in sizes]
        for layer, m in enumerate(magnitudes):
            out[layer] += m @ parts[layer + 1]
            out[layer + 1] += m.T @ parts[layer]
        return np.concatenate(out)

    degree = adjacent(np.ones(sum(sizes)))
    return degree, lambda x: degree * x.ravel() - adjacent(x.ravel())


def test_mnist_network_in_single_precision():
    weights = torch_init(784, 500, 500, 500, 10)
    degree, product = double_product(weights)
    shift, nodes = 2 * degree.max(), len(degree)
    lifted = scipy.sparse.linalg.LinearOperator(
        (nodes, nodes), lambda x: product(x) + shift * x.mean(), dtype=float
    )
    reference = scipy.sparse.linalg.eigsh(lifted, 1, which="SA", return_eigenvectors=False)[0]
    assert reference == pytest.approx(5.63, abs=0.01)
    solve = jax.jit(partial(graphs.fiedler, normalised=False))
    cold = solve(weights)
    assert cold.value.dtype == jnp.float32 and cold.converged
    assert float(cold.value) == pytest.approx(reference, rel=1e-5)
    assert cold.matvecs <= 45
    assert 1300 < cold.participation_ratio < 1450
    noise = torch_init(784, 500, 500, 500, 10, seed=1)
    drifted = [w + 0.02 * x for w, x in zip(weights, noise, strict=True)]
    warm = solve(drifted, state=cold.state)
    assert warm.converged
    assert warm.matvecs <= 20


def test_tcga_network_whose_vector_sits_on_one_gene():
    weights = torch_init(20531, 50, 50, 50, 5)
    degree, product = double_product(weights)
    found = jax.jit(partial(graphs.fiedler, normalised=False))(weights)
    assert found.converged
    assert found.matvecs <= 40
    assert found.participation_ratio == pytest.approx(1, abs=0.05)
    assert int(jnp.argmax(jnp.abs(found.vector))) == degree.argmin() < 20531
    # An eigenvalue lies within the residual of the Rayleigh quotient, here in double precision.
    v = np.asarray(found.vector, float)
    value = v @ product(v) / (v @ v)
    assert float(found.value) == pytest.approx(value, rel=1e-5)
    assert np.linalg.norm(product(v) - value * v) <= 2e-3 * value
    assert value <= float(found.degree_bound)


@pytest.mark.parametrize(
    "name, shape, options",
    [("lenet", (28, 28), {}), ("resnet", (8, 8, 3), {"depth": 8})],
)
def test_the_graph_of_a_convolutional_network_is_connected_and_has_a_fiedler_pair(
    name, shape, options
):
    net = models.network(name, input_shape=shape, classes=10, **options)
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.uniform(0.5, 1.5, leaf.shape)  # noqa: E731
    params, state = jax.tree.map(draw, jax.eval_shape(net.init, jax.random.key(0)))
    edges = edges_of(net.layout)

    @jax.jit
    def solve(params, state):
        blocks = graph_weights(params, net.layout, batch_stats=state)
        return blocks, graphs.fiedler(blocks, normalised=True, edges=edges, tol=1e-6)

    blocks, found = solve(params, state)
    assert found.converged
    assert found.component_size == sum(graphs.widths(blocks, edges))
    expected = connectivity([np.asarray(block) for block in blocks], edges, normalised=True)[0]
    assert float(found.value) == pytest.approx(expected, rel=1e-9)


# Misuse


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: graphs.widths([]), "weights has 0 blocks and edges 0: pass one edge per block"),
        (lambda: graphs.widths([jnp.ones((2, 3))], ((0, 1), (1, 2))), "1 blocks and edges 2"),
        (
            lambda: graphs.widths([jnp.ones((2, 3)), jnp.ones((4, 2))]),
            "group 1 4 units, .* 3: check",
        ),
        (lambda: graphs.widths([jnp.ones((2, 3, 4))]), r"weights\[0\] has shape \(2, 3, 4\)"),
        (lambda: graphs.widths([jnp.ones((2, 2))], ((1, 1),)), "between two different groups"),
        (lambda: graphs.widths([jnp.ones((2, 2))], ((0, 2),)), r"every group 0\.\.2 needs a block"),
        (
            lambda: graphs.fiedler([jnp.ones((2, 2))], component="all"),
            "choose 'largest' or 'whole'",
        ),
        (
            lambda: graphs.fiedler_value([jnp.ones((2, 2))], reduce="max"),
            "choose 'mean' or 'softmin'",
        ),
        (lambda: graphs.fiedler_pairs([jnp.ones((2, 2))], 4), r"k=4: choose 1 <= k <= 3"),
        (lambda: graphs.widths([jnp.ones((0, 3))]), r"\(0, 3\), a group without units"),
        (lambda: graphs.widths([[[1.0, 2.0], [3.0]]]), r"weights\[0\] is no array"),
        (
            lambda: graphs.fiedler([{"kernel": jnp.ones((2, 2))}]),
            r"weights\[0\] is no array \(a dict",
        ),
        (lambda: graphs.fiedler([1j * jnp.ones((2, 2))]), r"weights\[0\] has the complex dtype"),
        (
            lambda: graphs.rayleigh_quotient([jnp.ones((2, 2))], jnp.ones(3)),
            r"\(3,\): pass .* \(4,\)",
        ),
        *(
            (partial(of_mask, [jnp.ones((2, 2))], mask=jnp.ones(3, bool)), r"mask has shape \(3,\)")
            for of_mask in (graphs.laplacian, graphs.layer_quotient)
        ),
    ],
)
def test_misuse_names_the_argument_and_the_fix(call, message):
    with pytest.raises(ValueError, match=message):
        jax.make_jaxpr(call)()


NETWORKED = {
    "chain": graphs.chain,
    "widths": graphs.widths,
    "laplacian": graphs.laplacian,
    "degrees": graphs.degrees,
    "largest_component": graphs.largest_component,
    "layer_quotient": graphs.layer_quotient,
    "fiedler": graphs.fiedler,
    "fiedler_value": graphs.fiedler_value,
    "fiedler_pairs": partial(graphs.fiedler_pairs, k=1),
    "rayleigh_quotient": partial(graphs.rayleigh_quotient, v=jnp.ones(4)),
    "pair_residuals": partial(graphs.pair_residuals, vectors=jnp.ones((4, 1))),
}


@pytest.mark.parametrize("name", NETWORKED)
def test_parameters_or_a_lone_array_for_blocks_are_told_what_to_pass(name):
    for lone in ({"kernel": jnp.ones((2, 2))}, jnp.ones((2, 2)), "kernel", None, 3.0):
        with pytest.raises(ValueError, match=r"weights is one .*graph_weights\(params, "):
            NETWORKED[name](lone)


def test_nested_lists_integers_and_negative_weights_are_read_as_magnitudes():
    for block in ([[1, 2], [3, 1]], np.array([[-1, 2], [3, -1]]), jnp.array([[1, 2], [3, 1]])):
        assert graphs.degrees([block]).tolist() == [3, 4, 4, 3]


def test_a_mask_may_be_a_list():
    blocks, mask = [jnp.ones((2, 2)), jnp.ones((2, 1))], [True] * 4 + [False]
    as_list, as_array = (graphs.layer_quotient(blocks, mask=m) for m in (mask, jnp.array(mask)))
    assert float(as_list.value) == float(as_array.value)


def test_every_function_means_the_combinatorial_laplacian_unless_told_otherwise():
    exported = [getattr(graphs, name) for name in graphs.__all__]
    functions = [*filter(inspect.isfunction, exported), optim.fiedler_decay]
    options = [inspect.signature(function).parameters for function in functions]
    defaults = {option["normalised"].default for option in options if "normalised" in option}
    assert defaults == {False}


def test_a_chain_is_the_default_and_splits_into_its_groups():
    blocks = padded(REFERENCE)
    assert graphs.chain(blocks) == ((0, 1), (1, 2), (2, 3))
    assert graphs.widths(blocks) == WIDTHS
    parts = graphs.by_group(jnp.arange(24), WIDTHS)
    assert [part[0] for part in parts] == [0, 7, 13, 19]
    assert [part.size for part in parts] == list(WIDTHS)
