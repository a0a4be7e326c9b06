"""The feature map and richness: closed forms, invariances, and what they make of bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_jax import features
from spectral_jax.features import Head, diagonalize, richness

pytestmark = pytest.mark.usefixtures("quick_compilation")
ORDERS = ("literal", "centre-first")
C = 10
LABELS = np.arange(5 * C) % C
ONE_HOT = np.eye(C)[LABELS]
ETF = (np.eye(C) - 1 / C)[LABELS]  # equiangular, of equal length


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def orthogonal(size, seed=0):
    return np.linalg.qr(normal(size, size, seed=seed))[0]


def whitened(n, p, seed=0):
    """Rows whose mean is 0 and whose second moments are the identity, exactly."""
    x = normal(n, p, seed=seed)
    return np.linalg.qr(x - x.mean(axis=0))[0] * np.sqrt(n)


def of_spectrum(values, n=90):
    return whitened(n, len(values)) * np.sqrt(values)


def dense_richness(x, outputs):
    """The definition, from ``n x n`` operators."""
    centre = np.eye(len(x)) - 1 / len(x)
    basis, sizes, _ = np.linalg.svd(outputs, full_matrices=False)
    basis = basis[:, sizes > 1e-12 * sizes[0]]
    a, b = (centre @ y @ y.T @ centre for y in (x, basis))
    return 1 - np.vdot(a, b) / np.sqrt(np.vdot(a, a) * np.vdot(b, b))


X, KERNEL, BIAS = normal(40, 6), normal(6, 3, seed=1), np.array([1.0, 0.0, -2.0])
OUTPUTS, THREE = X @ KERNEL + BIAS, np.arange(40) % 3


# Collapsed representations


FRAME = 2 * ONE_HOT @ orthogonal(12)[:C]
FLAT = ETF @ np.eye(C, 12)
OFFSET = 5 * orthogonal(12, seed=1)[C]
SHIFTED = ETF @ orthogonal(12, seed=1)[:C] + OFFSET


@pytest.mark.parametrize(
    "x, centred, values, quality",
    [
        (FRAME, False, [0.4] * 10, 1),
        (FRAME, True, [0.4] * 9, 1),
        (FLAT, False, [0.1] * 9, 0.9),
        (FLAT, True, [0.1] * 9, 1),
        (SHIFTED, False, [25] + [0.1] * 9, 1),
        (SHIFTED, True, [0.1] * 9, 1),
    ],
    ids=["frame", "frame, centred", "ETF", "ETF, centred", "shifted", "shifted, centred"],
)
def test_a_collapsed_representation_has_as_many_directions_as_classes(x, centred, values, quality):
    found = diagonalize(x, labels=LABELS, outputs=ONE_HOT, centred=centred)
    np.testing.assert_allclose(found.eigenvalues[: len(values)], values, rtol=1e-10)
    assert (found.eigenvalues[len(values) :] <= found.floor).all()
    assert np.isnan(found.quality[len(values) :]).all()
    assert found.cumulative_quality[-1] == pytest.approx(quality, abs=1e-10)
    assert found.cumulative_utilisation[-1] == pytest.approx(quality, abs=1e-10)
    assert found.target_rank == found.output_rank == (9 if centred else 10)


@pytest.mark.parametrize("x", [FRAME, FLAT, SHIFTED], ids=["frame", "ETF", "shifted"])
def test_a_collapsed_representation_is_as_rich_as_can_be(x):
    for order in ORDERS:
        assert richness(x, outputs=ONE_HOT, order=order).value == pytest.approx(0, abs=1e-10)


# Spectra with a closed form


@pytest.mark.parametrize(
    "values, rank, expected",
    [
        (np.ones(64), 5, 1 - np.sqrt(5 / 64)),
        (np.arange(1.0, 65) ** -1.5, 5, 0.281880),
    ],
    ids=["flat", "power law"],
)
def test_the_first_directions_of_a_known_spectrum(values, rank, expected):
    x = of_spectrum(values)
    assert richness(x, outputs=x[:, :rank]).value == pytest.approx(expected, abs=5e-7)


def test_directions_of_a_known_spectrum_that_the_head_uses():
    values = np.arange(1.0, 7) ** -1.5
    found = diagonalize(of_spectrum(values, n=40), labels=THREE, head=Head(np.eye(6)[:, :3]))
    np.testing.assert_allclose(found.eigenvalues, values, rtol=1e-10)
    np.testing.assert_allclose(found.utilisation, np.arange(6) < 3, atol=1e-9)
    assert found.cumulative_utilisation[-1] == pytest.approx(1, abs=1e-10)
    assert (found.reach(0.95), found.reach(0.5), found.reach(2.0)) == (3, 2, 0)


def test_labels_at_random_have_the_quality_of_chance():
    rng = np.random.default_rng(0)
    ends = []
    for _ in range(4):
        y = np.eye(C)[rng.integers(C, size=300)]
        found = diagonalize(normal(300, 64), targets=y)
        ends.append(found.cumulative_quality[-1])
    assert found.chance[-1] == pytest.approx(64 / 299)
    assert np.mean(ends) == pytest.approx(64 / 299, abs=0.02)
    assert found.utilisation is None and found.output_rank is None


def trained(strengths, balance, *, hidden=8):
    """Two linear layers on whitened inputs by gradient descent; their features and head.

    They begin with ``W1 W1^T - W2^T W2 = balance I``, which gradient flow keeps.
    """
    x = whitened(40, 12)
    target = np.zeros((12, 3))
    target[:3] = np.diag(strengths)
    first = np.sqrt(balance) * np.eye(12, hidden) @ orthogonal(hidden)
    second = np.zeros((hidden, 3))
    for _ in range(15_000):
        error = first @ second - target
        first, second = first - 5e-4 * error @ second.T, second - 5e-4 * first.T @ error
    return x @ first, Head(second)


def predicted(strengths, balance, *, hidden=8):
    """At convergence: each singular value of the target has a direction, the others keep theirs."""
    used = (balance + np.sqrt(balance**2 + 4 * np.square(strengths))) / 2
    rest = (hidden - len(used)) * balance**2
    return 1 - used.sum() / np.sqrt(len(used) * (np.sum(used**2) + rest))


def test_linear_networks_are_lazier_the_larger_they_begin():
    x, head = trained((1, 1, 1), 1.0)
    assert richness(x, head=head).value == pytest.approx(predicted((1, 1, 1), 1.0), abs=1e-4)
    for balance, value in {0.1: 0.0075, 1.0: 0.218, 10.0: 0.384}.items():
        assert predicted((1, 1, 1), balance) == pytest.approx(value, abs=5e-4)


def test_targets_of_unequal_size_are_not_rich_at_zero():
    """Where the measure ends: it expects that all directions of the outputs vary alike."""
    values = [1 - 4.3 / np.sqrt(3 * 10.09), predicted((3, 1, 0.3), 3.0)]
    x, head = trained((3, 1, 0.3), 3.0)
    assert richness(x, head=head).value == pytest.approx(values[1], abs=1e-4)
    spectrum = of_spectrum(np.array([3, 1, 0.3]))
    assert richness(spectrum, outputs=spectrum).value == pytest.approx(values[0], abs=1e-10)
    np.testing.assert_allclose(values, [0.218, 0.314], atol=5e-4)


# What changes the numbers, and what does not


def test_another_last_layer_changes_utilisation_alone():
    before, after = (
        diagonalize(X, labels=THREE, head=Head(kernel)) for kernel in (KERNEL, KERNEL**2)
    )
    for name in ("eigenvalues", "quality", "cumulative_quality"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    assert np.abs(before.utilisation - after.utilisation).max() > 0.1


@pytest.mark.parametrize(
    "x, outputs",
    [
        (X @ orthogonal(6), OUTPUTS),
        (1e-3 * X, OUTPUTS),
        (X + 7, OUTPUTS),
        (X, OUTPUTS @ normal(3, 3, seed=2)),
    ],
    ids=["rotated", "scaled", "shifted", "outputs mixed"],
)
def test_richness_does_not_see(x, outputs):
    assert richness(x, outputs=outputs).value == pytest.approx(
        dense_richness(X, OUTPUTS), abs=1e-10
    )


def test_a_constant_added_to_the_outputs_counts_unless_they_are_centred_first():
    def both(order):
        return [richness(X, outputs=y, order=order).value for y in (OUTPUTS, OUTPUTS + [3, 0, 0])]

    literal, shifted = both("literal")
    assert abs(literal - shifted) > 1e-3
    assert np.ptp(both("centre-first")) < 1e-10


def test_outputs_that_almost_sum_to_a_constant_have_one_direction_more():
    base = whitened(90, 13)
    x = base[:, :12] * np.sqrt(np.arange(12, 0, -1))
    nine = x[:, :9] @ normal(9, C)
    nine -= nine.mean(axis=1, keepdims=True)
    ten = nine + 1e-5 * base[:, 12:]  # along all outputs alike
    before, after = (richness(x, outputs=y, order="centre-first") for y in (nine, ten))
    assert (before.rank, after.rank) == (9, 10)
    assert before.gap < 1e-10 and after.gap == 0
    assert 1 - after.value == pytest.approx(float(1 - before.value) * np.sqrt(9 / 10), abs=1e-9)


# The vector of eight rows by hand

EIGHT = np.array(
    [[1, 0, 2], [2, 1, 0], [0, 1, 1], [3, 0, 1], [1, 2, 0], [0, 3, 2], [2, 2, 1], [1, 1, 3]], float
)
BY_HAND = Head(np.array([[1.0, 0], [0, 1], [1, -1]]), np.array([0.5, 0]))
CLASS = np.array([0, 0, 1, 0, 1, 1, 0, 1])


def test_eight_rows():
    m = features.of(EIGHT, labels=CLASS)
    literal = richness(m, head=BY_HAND)
    centred = richness(EIGHT, head=BY_HAND, order="centre-first")
    assert literal.value == pytest.approx(0.421516, abs=1e-6)
    assert literal.constant == pytest.approx(0.935825, abs=1e-6)
    assert centred.value == pytest.approx(0.401682, abs=1e-6)
    without = richness(EIGHT, head=BY_HAND._replace(bias=None))
    assert without.value == pytest.approx(0.415364, abs=1e-6)
    plain = diagonalize(m, head=BY_HAND, centred=False)
    np.testing.assert_allclose(
        features.eigenvalues(m).values, [1.446828, 0.996536, 0.369136], atol=1e-6
    )
    np.testing.assert_allclose(plain.eigenvalues, [5.089808, 1.423717, 0.986475], atol=1e-6)
    assert plain.cumulative_quality[-1] == pytest.approx(0.769809, abs=1e-6)
    assert plain.cumulative_utilisation[-1] == pytest.approx(0.999032, abs=1e-6)


# Few digits, few rows, weights


def test_a_head_shows_directions_that_the_gram_matrix_of_outputs_has_lost():
    kernel = orthogonal(6)[:, :3] * np.array([1, 1e-5, 1e-9])
    exact = dense_richness(X, X @ orthogonal(6)[:, :3])  # of the same span
    for method in ("gram64", "qr"):
        found = richness(features.of(X, method=method), head=Head(kernel, np.zeros(3)))
        assert found.value == pytest.approx(exact, abs=1e-12)
        assert found.rank == 3
    assert richness(features.of(X, outputs=X @ kernel)).rank == 2


def test_the_factor_shows_directions_whose_squares_are_lost():
    sizes = 10.0 ** -np.array([0, 2, 4, 6, 8, 10, 11, 12])  # variances down to 1e-24
    base = whitened(90, 8)
    targets = base[:, [5, 7]]
    found = diagonalize(features.of(base * sizes @ orthogonal(8), targets=targets, method="qr"))
    np.testing.assert_allclose(np.sqrt(found.eigenvalues), sizes, rtol=1e-3)
    np.testing.assert_allclose(found.quality, [0, 0, 0, 0, 0, 1, 0, 1], atol=1e-3)


@pytest.mark.parametrize("method", ["gram64", "qr", "gram"])
def test_features_of_any_size_have_the_same_map(method):
    def numbers(x, dtype):
        m = features.of(x.astype(dtype), labels=THREE, method=method, fourth=True)
        head = Head(KERNEL.astype(dtype))
        found = diagonalize(m, head=head)
        corrected = richness(m, head=head, corrected=True)
        return found, [found.cumulative_quality, found.cumulative_utilisation, corrected.value]

    _, expected = numbers(X, "float64")
    for size, dtype in ((1e100, "float64"), (1e-100, "float64"), (1e15, "float32")):
        np.testing.assert_allclose(
            np.hstack(numbers(size * X, dtype)[1]), np.hstack(expected), rtol=3e-5
        )
    with jax.enable_x64(False):
        for size in (1e-25, 1e25):  # whose squares float32 does not have
            found, shares = numbers(size * X, "float32")
            assert np.isnan(found.eigenvalues).all()
            np.testing.assert_allclose(np.hstack(shares), np.hstack(expected), rtol=3e-5)


def test_of_nan_no_cumulative_number_is_known():
    x = np.where(np.arange(40)[:, None] == 3, np.nan, X)
    found = diagonalize(x, labels=THREE, head=Head(KERNEL))
    assert np.isnan([found.cumulative_quality, found.cumulative_utilisation]).all()


def test_streamed_rows_give_what_the_whole_gives():
    m = features.zero(6)
    for part in np.split(X, 4):
        m = features.update(m, part)
    head = Head(KERNEL, BIAS)
    whole = dense_richness(X, OUTPUTS)
    assert richness(m, head=head).value == pytest.approx(whole, abs=1e-12)
    assert richness(X, head=head).value == pytest.approx(whole, abs=1e-12)


def test_the_corrected_number_is_right_on_average_where_the_plain_one_is_not():
    scale = np.arange(1.0, 33) ** -0.5
    kernel = normal(32, 4)
    covariance = np.diag(scale**2)
    inner = kernel.T @ covariance @ kernel
    overlap = np.trace(np.linalg.solve(inner, kernel.T @ covariance**2 @ kernel))
    truth = 1 - overlap / np.linalg.norm(covariance) / 2
    draws = normal(300, 24, 32) * scale
    options = dict(head=Head(kernel), order="centre-first")
    plain, corrected = (
        jax.vmap(lambda x, c=c: richness(x, corrected=c, **options))(draws) for c in (False, True)
    )
    error = corrected.value.std() / np.sqrt(len(draws))
    assert abs(corrected.value.mean() - truth) < 3 * error < 0.02
    assert abs(plain.value.mean() - truth) > 0.1
    assert plain.few_rows.all()


def test_the_correction_needs_no_rows():
    ours, theirs = (
        richness(rows, head=Head(KERNEL, BIAS), corrected=True).value
        for rows in (features.of(X + 3, fourth=True), X + 3)
    )
    assert ours == pytest.approx(float(theirs), abs=1e-12)


def test_a_weight_is_so_many_rows_and_one_of_none_is_not_read():
    weights = np.arange(40) % 3
    repeated = np.repeat(np.arange(40), weights)
    spoilt = np.where((weights == 0)[:, None], np.nan, X)
    expected = dense_richness(X[repeated], OUTPUTS[repeated])
    found = richness(spoilt, outputs=OUTPUTS, weights=weights)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.rows == pytest.approx(weights.sum() ** 2 / np.sum(weights**2))
    m = features.of(spoilt, weights=weights)
    assert richness(m, head=Head(KERNEL, BIAS)).value == pytest.approx(expected, abs=1e-12)


def test_moments_of_half_types_are_those_of_their_values():
    with jax.enable_x64(False):
        x = jnp.asarray(X, "bfloat16")
        exact = np.asarray(x, np.float64)
        found = richness(features.of(x), head=Head(jnp.asarray(KERNEL, "float32")))
        assert found.value == pytest.approx(dense_richness(exact, exact @ KERNEL), abs=1e-6)


def test_gradients_pass_through_spectra_that_are_degenerate():
    """All eigenvalues of the features are one, and so are the outputs' singular values."""
    x, kernel = whitened(20, 5), np.eye(5)[:, :2]

    def value(x, kernel):
        return richness(x, head=Head(kernel)).value

    slopes = jax.jit(jax.grad(value, argnums=(0, 1)))(x, kernel)
    ways, step = (normal(20, 5, seed=3), normal(5, 2, seed=4)), 1e-5
    rise = (
        dense_richness(x + s * ways[0], (x + s * ways[0]) @ (kernel + s * ways[1]))
        for s in (step, -step)
    )
    numeric = np.subtract(*rise) / (2 * step)
    assert sum(np.vdot(a, b) for a, b in zip(slopes, ways, strict=True)) == pytest.approx(
        numeric, rel=1e-6
    )


def test_moments_refuse_a_gradient_that_dead_features_would_spoil():
    def value(x, kernel):
        return richness(features.of(x), head=Head(kernel)).value

    with pytest.raises(ValueError, match="no derivative by moments: pass the features themselves"):
        jax.grad(value)(X, KERNEL)
    by_rows = jax.grad(lambda kernel: richness(X, head=Head(kernel)).value)(KERNEL)
    np.testing.assert_allclose(jax.grad(value, argnums=1)(X, KERNEL), by_rows, atol=1e-12)


def test_layers_and_seeds_side_by_side_in_float32():
    """Compiled around a batch, what computes in float64 must still do so."""
    with jax.enable_x64(False):
        stack = jnp.asarray(np.stack([X, X + 1e3]), "float32")
        moments = [features.of(x) for x in stack]
        both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *moments)
        head = Head(jnp.asarray(KERNEL, "float32"))
        together = jax.jit(jax.vmap(lambda m: richness(m, head=head).value))(both)
        mapped = jax.vmap(lambda m: diagonalize(m, head=head).eigenvalues)(both)
        alone = [richness(m, head=head).value for m in moments]
        np.testing.assert_allclose(together, alone, rtol=1e-6)
        np.testing.assert_allclose(mapped[0], mapped[1], rtol=1e-3)


# Where the numbers say nothing


def test_a_head_as_wide_as_the_features_tells_of_their_spectrum_alone():
    values = np.array([4.0, 2.0, 1.0])
    x = of_spectrum(values)
    participation = values.sum() ** 2 / np.sum(values**2)
    for kernel in (normal(3, 3), normal(3, 7)):
        found = richness(x, head=Head(kernel))
        assert found.degenerate and found.rank == 3
        assert found.value == pytest.approx(1 - np.sqrt(participation / 3), abs=1e-10)


ONES = np.ones(40)


@pytest.mark.parametrize(
    "x, outputs, weights",
    [
        (X, np.ones((40, 3)), ONES),
        (X, np.zeros((40, 3)), ONES),
        (np.full((40, 6), 0.1), OUTPUTS, ONES),
        (np.full((40, 6), np.nan), OUTPUTS, ONES),
        (X, np.full((40, 3), np.nan), ONES),
        (X, OUTPUTS, 1.0 * (np.arange(40) == 3)),
        (X, OUTPUTS, 0 * ONES),
        (X, OUTPUTS, -ONES),
    ],
    ids="constant outputs,zeros,constant,NaN,NaN outputs,one row,no row,negative".split(","),
)
def test_there_is_no_richness_and_a_flag_for(x, outputs, weights):
    for found in (
        *(richness(x, outputs=outputs, weights=weights, order=order) for order in ORDERS),
        richness(features.of(x, outputs=outputs, weights=weights)),
    ):
        assert np.isnan(found.value) and found.degenerate


def test_with_no_more_rows_than_features_every_target_is_linear():
    found = diagonalize(normal(7, 8), targets=normal(7, 2, seed=1))
    assert found.few_rows
    assert found.cumulative_quality[-1] == pytest.approx(1, abs=1e-9)
    assert found.chance[-1] == 1


@pytest.mark.parametrize(
    "call, message",
    [
        (partial(richness, X), "head, outputs: pass one of them"),
        (partial(richness, X, head=Head(KERNEL), outputs=OUTPUTS), "pass one of them"),
        (partial(richness, X, head=KERNEL), r"head is a ndarray: pass features.Head\(kernel"),
        (partial(richness, X, head=Head(KERNEL.T)), r"head.kernel has shape \(3, 6\): pass \[6, c"),
        (partial(richness, X, head=Head(KERNEL, BIAS[:2])), r"head.bias has shape \(2,\): pass 3"),
        (partial(richness, X, outputs=OUTPUTS[:3]), r"outputs have shape \(3, 3\): pass \[40, c"),
        (partial(richness, X[0], outputs=OUTPUTS), r"m has shape \(6,\): pass features \[n, p\]"),
        (partial(richness, X, outputs=OUTPUTS, weights=[1]), r"weights have shape \(1,\)"),
        (partial(richness, X, outputs=OUTPUTS, order="centred"), "order='centred': choose 'lite"),
        (partial(richness, X, outputs=OUTPUTS, tolerance=1.0), "tolerance=1.0: choose in"),
        (partial(diagonalize, X, head=Head(KERNEL[:2])), r"head.kernel has shape \(2, 3\)"),
    ],
)
def test_misuse_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_moments_are_asked_for_what_they_hold():
    m = features.of(X)
    with pytest.raises(ValueError, match="no outputs in the moments: pass the last layer"):
        richness(m)
    with pytest.raises(ValueError, match=r"needs fourth moments: begin with zero\(p, fourth=True"):
        richness(m, head=Head(KERNEL), corrected=True)
    with pytest.raises(ValueError, match="outputs, weights: moments hold what update"):
        richness(m, outputs=OUTPUTS)
    with pytest.raises(ValueError, match="beside moments"):
        diagonalize(m, outputs=OUTPUTS)
    with pytest.raises(ValueError, match="the map has no outputs: pass head to diagonalize"):
        diagonalize(m).reach()
