"""Comparing representations: the way the rows come does not matter, nor where their mean lies."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_jax.features import cca, cka, kernel_distance, layers, procrustes
from spectral_jax.linalg import moments
from tests.cases.similarity import biased, moved, rotated, unbiased

pytestmark = pytest.mark.usefixtures("quick_compilation")
RNG = np.random.default_rng(0)
X = RNG.standard_normal((30, 4))
Y = X[:, :3] ** 2 + RNG.standard_normal((30, 3))
Z = RNG.standard_normal((30, 2))
LAYERS = {"first": X, "second": Y, "third": Z}


def streamed(given, *, size):
    state = layers.zero({name: x.shape[1] for name, x in given.items()})
    n = len(next(iter(given.values())))
    for start in range(0, n, size):
        state = layers.update(state, {k: x[start : start + size] for k, x in given.items()})
    return state


def test_layers_that_are_one_name_as_text_are_refused():
    with pytest.raises(ValueError, match="two of these are one name"):
        layers.zero({1: 2, "1": 3})


def test_of_independent_features_only_the_unbiased_value_is_none():
    x, y = RNG.standard_normal((200, 512)), RNG.standard_normal((200, 256))
    state = layers.of([x, y])
    assert 0.6 < cka(state, unbiased=False).value[0, 1] < 0.67
    assert abs(cka(state).value[0, 1]) < 0.02
    np.testing.assert_allclose(cka(state).value[0, 1], unbiased(x, y), atol=1e-6)


def test_a_map_holds_every_pair_in_the_order_of_the_layers():
    state = streamed(LAYERS, size=30)
    assert state.names == ("first", "second", "third")
    pairs = [[(a, b) for b in LAYERS.values()] for a in LAYERS.values()]
    for found, oracle in [
        (cka(state).value, unbiased),
        (cka(state, unbiased=False).value, biased),
        (kernel_distance(state), moved),
    ]:
        expected = [[oracle(*pair) for pair in row] for row in pairs]
        np.testing.assert_allclose(found, expected, atol=2e-6)
    assert procrustes(state)[0, 1] == pytest.approx(rotated(X, Y), abs=2e-6)
    assert (jnp.diagonal(procrustes(state)) == 0).all()


# Batch means are rounded to 2e-16 of the mean: their differences lose six digits of 16,
# where a difference of uncentred fourth powers would have lost 24.
@pytest.mark.parametrize("shift, error", [(0.0, 1e-12), (1e6, 1e-10)])
def test_batches_merges_devices_and_the_mean_change_nothing(shift, error):
    with jax.enable_x64(True):
        given = {"x": X + shift, "y": Y}
        expected = unbiased(given["x"] - shift, Y)
        parts = [
            streamed({k: v[rows] for k, v in given.items()}, size=5)
            for rows in (slice(10), slice(10, 10), slice(10, 30))
        ]
        merged = layers.merge(layers.merge(parts[2], parts[1]), parts[0])
        pooled = jax.vmap(
            lambda x, y: cka(layers.psum(layers.of([x, y]), "i")).value[0, 1], axis_name="i"
        )(*(v.reshape(3, 10, -1) for v in given.values()))
        for found in (cka(streamed(given, size=5)), cka(merged)):
            np.testing.assert_allclose(found.value[0, 1], expected, rtol=0, atol=error)
        np.testing.assert_allclose(pooled, expected, rtol=0, atol=error)


def test_a_program_without_float64_scans():
    def step(state, batch):
        return layers.update(state, batch), None

    @jax.jit
    def program(batches):
        return cka(jax.lax.scan(step, layers.zero([4, 3]), batches)[0]).value[0, 1]

    x, y = (a.astype(np.float32) for a in (X + 100, Y))
    found = program([x.reshape(5, 6, 4), y.reshape(5, 6, 3)])
    np.testing.assert_allclose(found, unbiased(*map(np.float64, (x - 100, y))), atol=1e-5)


def test_rows_of_no_weight_are_not_read_and_the_scale_of_weights_is_nothing():
    mask = np.arange(30) % 3 > 0
    x = np.where(mask[:, None], X, np.nan)
    for weights in (mask, 1e-3 * mask):
        found = cka(x, Y, weights=weights)
        np.testing.assert_allclose(found.value, unbiased(X[mask], Y[mask]), atol=1e-6)
        assert found.rows == pytest.approx(20)


def test_of_decayed_batches_the_last_ones_count():
    other = Z[:, [0, 1, 1]]
    state = layers.merge(layers.decay(layers.of([X, Y]), 1e-9), layers.of([X, other]))
    np.testing.assert_allclose(cka(state).value[0, 1], unbiased(X, other), atol=1e-6)


def test_an_interval_of_blocks_holds_the_value_of_the_population():
    """Kernels of four independent columns and of three of them align as 3 / sqrt(12)."""
    x = RNG.standard_normal((16, 40, 4))
    blocks = [layers.of([part, part[:, :3]]) for part in x]
    found = layers.jackknife(blocks, lambda m: cka(m).value[0, 1])
    assert found.low < 3 / np.sqrt(12) < found.high and found.high - found.low < 0.1
    rows = x.reshape(-1, 4)
    np.testing.assert_allclose(found.value, unbiased(rows, rows[:, :3]), atol=1e-6)
    with pytest.raises(ValueError, match="at least two"):
        layers.jackknife(blocks[:1], cka)


def test_layers_of_any_size_are_compared():
    for size in (1e25, 3.4e38 / abs(Y).max()):  # the unit above the last is no float32
        found = cka(1e-25 * X, (size * Y).astype(np.float32))
        np.testing.assert_allclose(found.value, unbiased(X, Y), atol=1e-6)


def test_rows_that_are_orthogonal_or_three_leave_no_signal_but_rounding():
    rows = np.eye(30)
    assert np.isnan(cka(rows, Y).value) and cka(rows, Y).signal[0] == 0
    three = np.where(np.arange(30) < 3, 0.1, 0)  # whose (sum w)^2 / sum w^2 is rounded above 3
    assert np.isnan(cka(rows[:, :4], Y, weights=three).value)


def test_nan_is_not_even_like_itself():
    assert jnp.isnan(jnp.diagonal(procrustes({"first": X, "lost": np.full((30, 3), np.nan)}))).any()


def test_a_first_batch_that_is_constant_says_nothing_about_the_unit():
    x = np.concatenate([np.zeros((2, 4)), 1e-20 * X])
    y = np.concatenate([np.zeros((2, 3)), Y])
    state = streamed({"x": x, "y": y}, size=2)
    np.testing.assert_allclose(cka(state).value[0, 1], unbiased(1e20 * x, y), atol=1e-6)


def test_numbers_of_float64_are_read_where_jax_has_none():
    x = X + 1e6  # its digits after the point are lost in float32
    np.testing.assert_allclose(cka(x, Y).value, unbiased(X, Y), atol=1e-6)


def test_correlations_are_of_spans_and_weighted_by_what_directions_hold():
    """Of x = (a, 10 b) and y, which spans b and c: b is shared, 10 of 11 of the lengths in x."""
    a, b, c = np.linalg.qr(np.column_stack([np.ones(30), RNG.standard_normal((30, 3))]))[0].T[1:]
    x, y = np.column_stack([a, 10 * b]), np.column_stack([b + 1e-4 * c, b])
    found = cca(x, y)
    np.testing.assert_allclose(found.correlations, [1, 0], atol=1e-3)
    assert found.weighted == pytest.approx(10 / 11, abs=1e-3)
    assert found.mean == pytest.approx(0.5, abs=1e-3)
    assert found.ranks.tolist() == [2, 2] and found.forced == 0
    only_b = cca(layers.of([x, y]), keep=0.9)
    assert only_b.ranks.tolist() == [1, 1] and only_b.mean == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: cka(X), "pass what x is to be compared with"),
        (lambda: cka(X, Y[:9]), "layers['1'] has shape (9, 3): pass rows [30, 3]"),
        (lambda: cka(X[0], Y[0]), "pass rows [n, p]"),
        (lambda: cka(X, Y, weights=np.ones(9)), "pass one for each of 30 rows"),
        (lambda: cka(layers.of([X, Y]), Y), "x holds moments"),
        (lambda: cka({}), "sizes is empty"),
        (lambda: cca(X), "pass the moments of two layers, or an array y"),
        (lambda: cca(layers.of([X, Y]), Y), "y beside moments"),
        (lambda: cca(X, Y, keep=0), "keep=0: choose above 0 and at most 1"),
        (lambda: layers.update(layers.zero({"a": 4}), {"b": X}), "the moments are of ['a']"),
        (lambda: layers.merge(layers.of([X]), layers.of([Y])), "merge what one zero(...) began"),
        (lambda: layers.zero({"a": 0}), "sizes['a']=0"),
    ],
)
def test_what_cannot_be_compared_is_refused(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        wrong()


def test_float64_is_refused_by_sums_that_would_round_it():
    with jax.enable_x64(True):
        state = layers.zero([4], method="gram", dtype="float32")
        with pytest.raises(ValueError, match="is float64, the state float32"):
            layers.update(state, [X])
    assert moments.effective_rows(state.state) == 0
