"""Second moments of a stream: what a method resolves, and that the way to them does not matter."""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from spectral_jax.linalg import moments

pytestmark = pytest.mark.usefixtures("quick_compilation")
P = 6
RNG = np.random.default_rng(0)
# Columns mixed from directions a tenth as long each, around a mean far larger: 10 decades.
GRADED = (
    RNG.standard_normal((40, P))
    @ np.diag(0.1 ** np.arange(P))
    @ np.linalg.qr(RNG.random((P, P)))[0]
    + 5
).astype(np.float32)


def spectrum(x, *, centred=False):
    x = np.asarray(x, np.float64)
    x = x - x.mean(axis=0) if centred else x
    return np.linalg.svd(x, compute_uv=False) ** 2 / len(x)


def of(*batches, method="gram64", **options):
    state = moments.zero(batches[0].shape[1], method=method)
    for batch in batches:
        state = moments.update(state, batch, **options)
    return state


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("method", moments.METHODS)
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_what_stands_above_the_floor_is_right_and_gram64_and_qr_see_all(kind, method, centred):
    values, floor = moments.eigenvalues(
        of(*map(kind, np.split(GRADED, 2)), method=method), centred=centred
    )
    exact = spectrum(GRADED, centred=centred)
    seen = exact > floor
    # The floor of `qr` is that of squared singular values: it is their roots that are off by it.
    error = floor + 2 * np.sqrt(floor * exact) * (method == "qr") + 1e-6 * exact
    assert np.all((abs(values - exact) <= error)[seen])
    assert seen.all() == (method != "gram")
    assert np.all(values[~seen] <= 2 * floor)


def test_a_program_without_float64_scans_to_float64_digits():
    def step(state, batch):
        return moments.update(state, batch), None

    @jax.jit
    def program(batches):
        return moments.eigenvalues(jax.lax.scan(step, moments.zero(P), batches)[0])

    values, _ = program(GRADED.reshape(8, 5, P))
    np.testing.assert_allclose(values, spectrum(GRADED), rtol=1e-4)


@pytest.mark.parametrize("method", moments.METHODS)
def test_order_and_batches_do_not_matter(method):
    x = jnp.asarray(GRADED)
    once = of(x, method=method)
    parts = [of(part, method=method) for part in (x[20:], x[:20])]
    merged = moments.merge(*parts)
    for centred in (False, True):
        got, expected = (moments.second(s, centred=centred) for s in (merged, once))
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-6)


def test_batches_of_any_size_sum_to_the_same():
    pieces = of(*np.split(GRADED, [1, 8, 31]))
    np.testing.assert_allclose(moments.second(pieces), moments.second(of(GRADED)), rtol=1e-6)


def test_moments_of_nothing_change_nothing():
    state = of(GRADED)
    for other in (moments.zero(P), of(np.zeros((0, P))), of(jnp.zeros((0, P)))):
        merged = moments.merge(other, state)
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), merged, state))


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_a_weight_is_a_number_of_repetitions_and_no_weight_is_no_row(kind):
    times = np.arange(40) % 3
    x = np.where(times[:, None] == 0, np.nan, GRADED)
    weighted = of(kind(x), weights=kind(times))
    repeated = of(np.repeat(GRADED, times, axis=0))
    np.testing.assert_allclose(moments.second(weighted), moments.second(repeated), rtol=1e-6)
    np.testing.assert_allclose(moments.mean(weighted), moments.mean(repeated), rtol=1e-6)


def test_weights_amount_to_fewer_rows_and_negative_ones_to_none():
    assert moments.effective_rows(of(GRADED)) == 40
    uneven = moments.effective_rows(of(GRADED[:2], weights=np.array([3.0, 1.0])))
    assert uneven == 1.6
    negative = of(GRADED[:2], weights=jnp.array([1.0, -1.0]))
    assert np.isnan(moments.eigenvalues(negative).floor)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_labels_of_a_small_type_name_one_of_many_groups(kind):
    labels = np.arange(40, dtype=np.int8)
    state = moments.zero(P, groups=300)
    state = moments.update(state, kind(GRADED), labels=kind(labels), weights=kind(np.ones(40)))
    np.testing.assert_array_equal(moments.groups(state).weight, np.arange(300) < 40)


def test_whole_numbers_that_float32_does_not_hold_keep_their_digits():
    x = 10**9 + RNG.integers(0, 256, (40, P))
    second = moments.second(of(x), centred=True)
    np.testing.assert_allclose(second, np.cov(x.T, bias=True), rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("low", [0, -128, 1000])
def test_whole_numbers_are_exact(low):
    """uint8, int8 and numbers whose products float32 would round."""
    x = RNG.integers(low, low + 256, (3000, P)).astype(np.int16)
    x[:, 0] = x[0, 0]
    wide = x.astype(np.int64)
    exact = wide.T @ wide / 3000
    for dtype in (np.int16, np.float32, np.float64):
        state = of(x[:1100].astype(dtype), x[1100:].astype(dtype))
        np.testing.assert_array_equal(moments.second(state), exact.astype(np.float32))
        assert not moments.second(state, centred=True)[0].any()


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
@pytest.mark.parametrize("kind", [np.ndarray.tolist, np.matrix, np.float32])
def test_lists_and_matrices_are_rows_like_others(kind):
    weights, labels = np.arange(1.0, 41.0), np.arange(40) % 2
    state = moments.zero(P, groups=2)
    expected = moments.update(state, GRADED, weights=weights, labels=labels)
    found = moments.update(state, kind(GRADED), weights=weights.tolist(), labels=labels.tolist())
    np.testing.assert_array_equal(moments.second(found), moments.second(expected))


def test_half_types_are_read_exactly():
    x = GRADED.astype(ml_dtypes.bfloat16)
    for kind in (np.asarray, jnp.asarray):
        second = moments.second(of(kind(x)))
        np.testing.assert_array_equal(second, moments.second(of(x.astype(np.float32))))


@pytest.mark.parametrize("method", ["gram64", "qr"])
@pytest.mark.parametrize("size", [1e-12, 1e15])
def test_any_scale_that_float32_can_square_keeps_the_spectrum(method, size):
    x = GRADED * np.float32(size)
    values, floor = moments.eigenvalues(of(x[:20], x[20:], method=method))
    exact = spectrum(x)
    np.testing.assert_allclose(values[:4], exact[:4], rtol=1e-4)
    assert floor < exact[-1]


def test_eigenvalues_that_underflow_are_below_the_floor():
    x = GRADED * np.float32(1e-17)
    values, floor = moments.eigenvalues(of(x))
    assert values[0] == pytest.approx(spectrum(x)[0]) and values[-1] == 0 < floor


@pytest.mark.parametrize("weight", [1e-30, 1e30])
def test_weights_whose_squares_float32_has_not_hide_no_floor(weight):
    state = of(GRADED, weights=np.full(40, weight))
    assert not moments.effective_rows(state) < np.inf
    assert not moments.eigenvalues(state).floor < np.inf


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_squares_outside_float32_are_nan_and_the_mean_is_not(size):
    state = of(GRADED * np.float32(size))
    assert np.isnan(moments.eigenvalues(state).values).all()
    np.testing.assert_allclose(moments.mean(state) / size, GRADED.mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("method", moments.METHODS)
def test_devices_of_a_mapped_axis_pool_their_rows(method):
    parts = jnp.asarray(GRADED).reshape(8, 5, P)

    def pooled(x):
        return moments.second(moments.psum(of(x, method=method), "i"), centred=True)

    found = jax.jit(jax.vmap(pooled, axis_name="i"))(parts)
    expected = np.cov(GRADED.T.astype(np.float64), bias=True)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["gram", "qr"])
def test_the_rounding_of_a_sum_of_many_rows_is_no_spread(method):
    spread_of = jax.jit(lambda x: moments.eigenvalues(of(x, method=method), centred=True))
    constant = spread_of(jnp.full((1000, P), 0.1))
    assert constant.values[0] <= constant.floor
    x = (1 + np.random.default_rng(0).normal(size=(8192, P)) / 1e4).astype(np.float32)
    expected = np.linalg.eigvalsh(np.cov(x.T.astype(np.float64), bias=True))[::-1]
    np.testing.assert_allclose(spread_of(jnp.asarray(x)).values, expected, rtol=1e-5)


def test_sharded_rows_are_reduced_once_as_a_matrix():
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
    x = jax.device_put(GRADED, NamedSharding(mesh, PartitionSpec("rows")))
    program = jax.jit(lambda x: of(x)).lower(x).compile()
    reduced = re.findall(r"= (.*?) all-reduce\(", program.as_text())
    assert sum(f"[{P},{P}]" in shapes for shapes in reduced) == 1
    assert not re.search("all-gather|all-to-all|collective-permute", program.as_text())
    np.testing.assert_allclose(moments.second(program(x)), moments.second(of(GRADED)), rtol=1e-6)


def test_a_jackknife_leaves_out_one_of_each():
    blocks = np.split(GRADED, [5, 11, 30])
    for kept, left in zip(moments.leave_one_out([of(b) for b in blocks]), range(4), strict=True):
        rest = np.concatenate(blocks[:left] + blocks[left + 1 :])
        np.testing.assert_allclose(moments.eigenvalues(kept).values, spectrum(rest), rtol=1e-4)
    with pytest.raises(ValueError, match="1 states: a jackknife"):
        moments.leave_one_out([of(GRADED)])


def test_what_does_not_fit_is_refused_by_name():
    state = moments.zero(P)
    refused = {
        r"x has shape \(3,\): pass rows \[b, 6\]": lambda: moments.update(state, np.zeros(3)),
        r"weights have shape \(2,\): pass one": lambda: moments.update(
            state, np.zeros((3, P)), weights=np.zeros(2)
        ),
        "x is a masked array": lambda: moments.update(state, np.ma.masked_all((3, P))),
        "weights is a masked array": lambda: moments.update(
            state, np.zeros((3, P)), weights=np.ma.masked_all(3)
        ),
        "weights has the complex dtype": lambda: moments.update(
            state, np.zeros((3, P)), weights=np.ones(3) + 1j
        ),
        "x is no array of numbers: its dtype is <U": lambda: moments.update(state, [["a"] * P]),
        "x has the complex dtype": lambda: moments.update(state, np.zeros((3, P), complex)),
        "method='svd': choose": lambda: moments.zero(P, method="svd"),
        "p=0: choose at least 1": lambda: moments.zero(0),
        "factor=2: choose between": lambda: moments.decay(state, 2),
        "merge what one zero": lambda: moments.merge(state, moments.zero(P, method="qr")),
        "no derivative of gram64": lambda: jax.grad(
            lambda x: moments.mean(moments.update(state, x))[0]
        )(jnp.asarray(GRADED)),
    }
    for message, call in refused.items():
        with pytest.raises(ValueError, match=message):
            call()
    with jax.enable_x64(True), pytest.raises(ValueError, match="begin with zero"):
        moments.update(moments.zero(P, method="gram", dtype="float32"), jnp.zeros((3, P)))
