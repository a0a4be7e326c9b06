"""Windows, exponents, their null and the metrics, against closed forms, draws and published code.

Draws are compared with the mean and deviation that the FARMS sheet measured, or with the closed
form, to four deviations.
"""

import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from spectral_jax.linalg import svdvals
from spectral_jax.tails import (
    FitStatus,
    debiased_alpha,
    farms_alphas,
    farms_eigenvalues,
    farms_windows,
    hill_alpha,
    hill_fit,
    host,
    layer_metrics,
    marchenko_pastur_alpha,
    null_alpha,
    null_zscore,
    power_law_fit,
    spectral_metrics,
)
from spectral_jax.weights import matrices

pytestmark = pytest.mark.usefixtures("quick_compilation")

ALPHA_OF_RATIO = {
    1: 2.12168,
    0.9: 2.20407,
    0.8: 2.29810,
    2 / 3: 2.44921,
    0.5: 2.70584,
    4096 / 11008: 2.99916,
    5120 / 13824: 3.00405,
    1 / 3: 3.11755,
    0.25: 3.45459,
    0.2: 3.74702,
    100 / 512: 3.77986,
    0.125: 4.46992,
    0.1: 4.87312,
    1 / 16: 5.87750,
    1 / 32: 7.84872,
    10 / 512: 9.62393,
    1 / 64: 10.62283,
    1 / 128: 14.53639,
}


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def eigenvalues(w):
    return svdvals(jnp.asarray(w), method="lapack") ** 2


def pareto(alpha, count, seed=0):
    return (1 - np.random.default_rng(seed).random(count)) ** (-1 / (alpha - 1))


# The null: closed forms


@pytest.mark.parametrize("q, alpha", ALPHA_OF_RATIO.items())
def test_alpha_of_noise_is_that_of_the_table(q, alpha):
    assert marchenko_pastur_alpha(q) == pytest.approx(alpha, abs=1e-5)


@pytest.mark.parametrize("q, alpha", [(1, 2.8344), (0.5, 3.6095), (0.25, 4.6325)])
def test_alpha_of_noise_above_the_upper_third(q, alpha):
    assert marchenko_pastur_alpha(q, fraction=1 / 3) == pytest.approx(alpha, abs=1e-4)


def test_alpha_of_noise_expands_at_small_ratios():
    for q in (1e-3, 1e-4, 1e-5):
        expansion = 1 + 3 * math.pi / 8 / q**0.5 + 3 * math.pi**2 / 128
        assert abs(marchenko_pastur_alpha(q) - expansion) < 0.3 * q**0.5


# The null: its size corrections, against draws


@pytest.mark.parametrize(
    "shape, fraction, draws",
    [
        ((64, 64), 0.5, 400),
        ((33, 33), 0.5, 400),
        ((64, 96), 0.5, 400),
        ((512, 64), 0.5, 200),
        ((64, 256), 1 / 3, 300),
        ((64, 128), 0.2, 300),
        ((9, 32, 64), 0.5, 100),
    ],
)
def test_null_mean_and_deviation_are_those_of_draws(shape, fraction, draws):
    null = null_alpha(shape, fraction=fraction)
    w = gaussian(draws, *shape, seed=1)
    lam = np.linalg.svd(w, compute_uv=False).reshape(draws, -1) ** 2
    z = (np.asarray(hill_alpha(jnp.asarray(lam), fraction=fraction)) - null.mean) / null.deviation
    assert abs(z.mean()) < 0.1 + 4 / math.sqrt(draws)
    assert abs(math.log(z.std())) < 0.1 + 4 / math.sqrt(2 * draws)


def test_the_ratio_form_has_the_same_spread_for_every_shape_but_the_difference_has_not():
    nulls = {q: null_alpha((128, round(128 / q))) for q in (1, 0.5, 0.25, 0.125)}
    of_ratio = [128 * null.deviation / (null.mean - 1) for null in nulls.values()]
    of_difference = [128 * null.deviation for null in nulls.values()]
    assert 2.7 < min(of_ratio) and max(of_ratio) < 3.5
    assert max(of_difference) > 2.5 * min(of_difference)


def test_zscore_and_debiasing_are_read_off_the_null():
    null = null_alpha((9, 64, 128))
    alpha = jnp.array([null.mean, null.mean + 2 * null.deviation])
    shrunk = 2 * (null.mean - 1) / (null.mean - 1 + 2 * null.deviation)  # of 1 / (alpha - 1)
    assert np.allclose(null_zscore(alpha, (9, 64, 128)), [0, shrunk], atol=1e-4)
    assert np.allclose(debiased_alpha(alpha, (9, 64, 128)), [0, 2 * null.deviation], atol=1e-6)
    ratio = debiased_alpha(alpha, (9, 64, 128), form="ratio")
    assert np.allclose(ratio, (alpha - 1) / (null.mean - 1))


def test_an_exponent_is_found_again_from_its_zscore():
    null = null_alpha((64, 10))
    for z in (-3.0, 0.0, 1.5):
        assert null.zscore(null.at(z)) == pytest.approx(z, abs=1e-9)
    assert null.at(-3.0) < null.mean < null.at(3.0)
    assert null_alpha((128, 8)).at(9.0) == math.inf


@pytest.mark.parametrize("shape, most", [((24, 10), 0.03), ((20, 24), 0.02), ((64, 64), 0.008)])
def test_noise_is_seldom_beyond_three_deviations_on_either_side(shape, most):
    w = gaussian(2000, *shape, seed=3)
    lam = np.linalg.svd(w, compute_uv=False) ** 2
    z = np.asarray(null_zscore(hill_alpha(jnp.asarray(lam)), shape))
    assert np.mean(z > 3) < most and np.mean(z < -3) < most


def test_a_null_that_has_no_tail_to_cut_is_nan():
    assert math.isnan(null_alpha((1, 8)).deviation) and null_alpha((1, 8)).limit > 1


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: marchenko_pastur_alpha(0), "ratio=0"),
        (lambda: marchenko_pastur_alpha(1.5), "ratio=1.5"),
        (lambda: marchenko_pastur_alpha(1, fraction=1), "fraction=1"),
        (lambda: null_alpha((3,)), r"shape=\(3,\)"),
        (lambda: marchenko_pastur_alpha(True), "ratio=True"),
        (lambda: null_alpha((3, 0)), r"shape=\(3, 0\)"),
        (lambda: null_alpha((3, 2.5)), r"shape=\(3, 2.5\)"),
        (lambda: null_alpha((3, True)), r"shape=\(3, True\)"),
        (lambda: debiased_alpha(jnp.ones(2), (4, 4), form="log"), "form='log'"),
        (lambda: hill_alpha(jnp.ones(3), fraction=0), "fraction=0"),
        (lambda: hill_alpha(jnp.ones(3), fraction=True), "fraction=True"),
        (lambda: hill_fit(jnp.ones(3), fraction=math.nan), "fraction=nan"),
        (lambda: hill_fit(jnp.ones(3), floor=-1e-3), "floor=-0.001"),
        (lambda: hill_fit(jnp.ones(3), floor=math.nan), "floor=nan"),
        (lambda: hill_fit(jnp.ones(3), floor=False), "floor=False"),
        (lambda: hill_fit(jnp.float32(3)), r"shape \(\): pass spectra"),
        (lambda: farms_alphas([jnp.ones((4, 4), complex)], window=2), r"matrices\[0\].*complex"),
        (lambda: spectral_metrics(jnp.ones(3), (3,)), r"shape=\(3,\)"),
        (lambda: layer_metrics({}), "pass the parameters of a network"),
    ],
)
def test_misuse_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# The Hill estimator


def test_hill_of_powers_of_two_is_exact():
    lam = 2.0 ** jnp.arange(8)
    assert float(hill_alpha(lam)) == pytest.approx(1 + 4 / (6 * math.log(2)), abs=1e-6)
    fit = hill_fit(lam, fraction=5 / 8)
    textbook = 1 + (fit.alpha - 1) * 4 / 5
    assert float(textbook) == pytest.approx(1 + 4 / (10 * math.log(2)), abs=1e-6)
    assert (int(fit.tail), float(fit.xmin)) == (5, 8.0)


@given(count=st.integers(2, 300), divisor=st.sampled_from([1.25, 1.5, 2.0, 3.0, 10.0]))
@settings(max_examples=30, deadline=None)
def test_the_tail_has_as_many_eigenvalues_as_in_the_released_code(count, divisor):
    tail = hill_fit(
        jnp.arange(1.0, 512.0) * (jnp.arange(511) < count), fraction=1 - 1 / divisor
    ).tail
    assert int(tail) == count - math.floor(count / divisor + 1e-9)


@pytest.mark.parametrize("alpha", [1.5, 2, 3, 5])
def test_hill_finds_the_exponent_of_a_pareto_law(alpha):
    fit = hill_fit(jnp.asarray(pareto(alpha, 4000), jnp.float32))
    assert float(fit.alpha) == pytest.approx(alpha, rel=0.05)
    assert abs(fit.alpha - alpha) < 4 * fit.standard_error


@pytest.mark.parametrize(
    "shape, mean, deviation",
    [
        ((64, 64), 2.150, 0.054),
        ((128, 128), 2.140, 0.026),
        ((256, 256), 2.128, 0.0135),
        ((128, 512), 3.479, 0.057),
        ((256, 2048), 4.481, 0.044),
    ],
)
def test_hill_of_a_gaussian_matrix_is_that_of_the_sheet(shape, mean, deviation):
    alpha = hill_alpha(eigenvalues(gaussian(*shape)))
    assert abs(alpha - mean) < 4 * deviation
    assert abs(null_zscore(alpha, shape)) < 4


@given(padding=st.integers(0, 64), log_scale=st.floats(-30, 30), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_hill_ignores_padding_order_and_scale(padding, log_scale, seed):
    rng = np.random.default_rng(seed)
    lam = pareto(2.5, 50, seed).astype(np.float32)
    padded = np.zeros(114, np.float32)
    padded[: 50 + padding] = rng.permutation(np.append(lam, np.zeros(padding)))
    alpha = hill_alpha(jnp.asarray(padded * np.float32(10**log_scale)))
    ascending = np.sort(lam)[25:].astype(float)
    assert float(alpha) == pytest.approx(1 + 25 / np.log(ascending / ascending[0]).sum(), rel=1e-5)


def test_undecidable_fits_are_nan_and_say_why():
    inf = jnp.inf
    spectra = {
        "TOO_FEW": [[0, 0, 0], [0, 0, 1], [-1, -2, -4], [1e-40, 2e-40, 4e-40]],
        "DEGENERATE": [[1, 1, 1]],
        "NOT_FINITE": [[1, 2, jnp.nan], [1, 2, inf], [1, 2, -inf], [-inf, inf, 1]],
        "OK": [[1, 2, 4]],
    }
    fit = hill_fit(jnp.array(sum(spectra.values(), [])))
    names = [FitStatus(int(code)).name for code in fit.status]
    assert names == [name for name, rows in spectra.items() for _ in rows]
    assert (np.isnan(fit.alpha) == [name != "OK" for name in names]).all()
    assert (np.isnan(fit.standard_error) == np.isnan(fit.alpha)).all()


def with_dead_directions(dead):
    """A Gaussian matrix without its smallest singular directions, to rounding."""
    u, s, vt = np.linalg.svd(gaussian(512, 512).astype(float))
    s[512 - dead :] = 0
    return eigenvalues((u * s @ vt).astype(np.float32))


@pytest.mark.parametrize("dead, alpha", [(100, 2.494), (250, 3.412), (300, 3.99)])
def test_dead_directions_are_left_out_and_flagged(dead, alpha):
    fit = hill_fit(with_dead_directions(dead))
    assert fit.status == FitStatus.RANK_DEFICIENT
    assert float(fit.alpha) == pytest.approx(alpha, abs=0.15)
    top = (512 - dead) / 2 / 512
    assert float(fit.alpha) == pytest.approx(marchenko_pastur_alpha(1, fraction=top), rel=0.03)


@pytest.mark.parametrize("dead, alpha, within", [(250, 2.132, 0.06), (260, 1.031, 0.005)])
def test_without_the_floor_a_fit_may_be_of_rounding(dead, alpha, within):
    lam = with_dead_directions(dead)
    assert float(hill_alpha(lam, floor=0.0)) == pytest.approx(alpha, abs=within)


# Windows


def starts(side, window, **options):
    """Where windows start along one axis, read off a column that holds its own row numbers."""
    column = jnp.arange(float(side))[:, None]
    windows = farms_windows(column, window=window, cols_per_row=1 / window, **options)
    assert windows.shape[1:] == (window, 1)
    return np.asarray(windows[:, 0, 0]).astype(int)


@pytest.mark.parametrize(
    "side, window, count, step, reach",
    [
        (512, 100, 9, 51, 508),
        (784, 100, 9, 85, 780),
        (4096, 2000, 15, 149, 4086),
        (11008, 2000, 15, 643, 11002),
    ],
)
def test_the_grid_reaches_the_edge_and_the_released_one_stops_short(
    side, window, count, step, reach
):
    released = starts(side, window, samples=count, paper_compat=("floor_step",))
    ours = starts(side, window, samples=count)
    assert (np.diff(released) == step).all() and released[-1] + window == reach
    assert len(ours) == len(released) == count
    assert ours[0] == 0 and ours[-1] + window == side and np.ptp(np.diff(ours)) <= 1


def test_windows_of_the_sheet_are_counted():
    one = farms_windows(jnp.ones((512, 784)), window=100, samples=9)
    assert one.shape == (81, 100, 100)
    llama = jax.eval_shape(
        lambda w: farms_eigenvalues(w, window=2000, samples=15),
        jax.ShapeDtypeStruct((4096, 11008), jnp.float32),
    )
    assert llama.shape == (450_000,)


@given(
    m=st.integers(1, 30),
    n=st.integers(1, 30),
    window=st.integers(1, 35),
    samples=st.none() | st.integers(1, 6),
)
@settings(max_examples=25, deadline=None)
def test_a_default_grid_covers_and_every_window_has_one_shape(m, n, window, samples):
    w = np.arange(float(m * n)).reshape(m, n)
    windows = np.asarray(farms_windows(jnp.asarray(w), window=window, samples=samples))
    side = min(window, m, n)
    assert windows.shape[1:] == (side, side)
    if samples is None:
        assert set(windows.ravel()) == set(w.ravel())
    for corner in windows[:, 0, 0].astype(int):
        i, j = divmod(corner, n)
        assert (windows[windows[:, 0, 0] == corner][0] == w[i : i + side, j : j + side]).all()


def test_stride_places_windows_every_so_often_and_one_at_the_edge():
    assert starts(35, 10, scheme="stride", stride=10).tolist() == [0, 10, 20, 25]
    released = starts(35, 10, scheme="stride", stride=10, paper_compat=("floor_step",))
    assert released.tolist() == [0, 10, 20]


def test_one_sample_is_one_window():
    assert farms_windows(jnp.ones((30, 40)), window=10, samples=1).shape == (1, 10, 10)


def test_random_windows_lie_anywhere_and_follow_their_key():
    w = jnp.arange(20.0 * 30).reshape(20, 30)

    def corners(key):
        return farms_windows(w, window=8, samples=400, key=key, scheme="random")[:, 0, 0]

    keys = jax.random.split(jax.random.key(0), 2)
    both = jax.vmap(corners)(keys)
    assert (both[0] == corners(keys[0])).all() and (both[0] != both[1]).any()
    rows, columns = np.divmod(np.asarray(both[0]).astype(int), 30)
    assert set(rows) == set(range(13)) and set(columns) == set(range(23))


def test_released_windows_are_not_clamped_and_lose_their_aspect_ratio():
    short = jnp.ones((10, 512))
    unclamped = farms_windows(short, window=100, samples=9, paper_compat=("ic_unclamped",))
    assert unclamped.shape[1:] == (10, 100)
    assert farms_windows(short, window=100, samples=9).shape[1:] == (10, 10)
    square = jnp.broadcast_to(jnp.arange(256.0), (256, 256))
    options = dict(window=200, cols_per_row=2.0, samples=9)
    cut = farms_windows(square, **options, paper_compat=("ic_unclamped",))
    assert cut.shape[1:] == (200, 144) and (cut[0, 0] == square[0, -144:]).all()
    assert farms_windows(square, **options).shape[1:] == (128, 256)


@pytest.mark.parametrize("ratio, shape", [(0.5, (20, 10)), (1.0, (20, 20)), (1.5, (20, 30))])
def test_columns_per_row_are_what_the_name_says(ratio, shape):
    windows = farms_windows(jnp.ones((60, 60)), window=20, cols_per_row=ratio)
    assert windows.shape[1:] == shape


def test_pooled_eigenvalues_are_those_of_the_windows_in_chunks_too(monkeypatch):
    w = jnp.asarray(gaussian(3, 40, 50))
    options = dict(window=16, samples=3)
    windows = np.asarray(farms_windows(w, **options))
    expected = np.linalg.svd(windows.astype(float), compute_uv=False) ** 2
    together = farms_eigenvalues(w, **options)
    separate = farms_eigenvalues(w, **options, pooled=False)
    monkeypatch.setattr("spectral_jax.tails.windows.CHUNK", 5 * 16 * 16)
    jax.clear_caches()
    chunked = farms_eigenvalues(w, **options)
    assert np.allclose(together, np.sort(expected.ravel()), atol=1e-4)
    assert np.allclose(chunked, together, atol=1e-4)
    assert np.allclose(separate, np.sort(expected.reshape(27, 16)), atol=1e-4)


def test_gram_matrices_are_enough_for_the_upper_half():
    w = gaussian(200, 300)
    options = dict(window=64, samples=4)
    windows = np.asarray(farms_windows(jnp.asarray(w), **options), np.float64)
    exact = np.sort(np.linalg.svd(windows, compute_uv=False) ** 2, axis=-1)
    fast = farms_eigenvalues(jnp.asarray(w), **options, pooled=False, method="gram")
    assert np.abs(fast - exact).max() / exact.max() < 5e-7
    alphas = hill_alpha(jnp.stack([jnp.asarray(exact, jnp.float32).ravel(), fast.ravel()]))
    assert float(alphas[0]) == pytest.approx(float(alphas[1]), abs=5e-3)
    assert ((fast == 0) | (fast > 4e-7 * fast[:, -1:])).all()
    with pytest.raises(ValueError, match="method='qr'"):
        farms_eigenvalues(w, window=64, method="qr")


@pytest.mark.parametrize("rule", ["median", "peak"])
def test_layers_of_many_shapes_have_the_exponents_of_each_alone(rule, monkeypatch):
    shapes = [(9, 16, 16), (40, 50), (3, 16, 24), (16, 60), (9, 16, 16)]
    layers = [gaussian(*shape, seed=i) for i, shape in enumerate(shapes)]
    # The first two fill a batch, the second alone is more than one.
    monkeypatch.setattr("spectral_jax.tails.layers.CHUNK", 9 * 16 * 16)
    found = farms_alphas(layers, window=16, samples=3, xmin=rule)
    for w, alpha in zip(layers, found, strict=True):
        stack = w.reshape(-1, *w.shape[-2:])
        corners = [np.unique(np.arange(3) * (n - 16) // 2) for n in stack.shape[1:]]
        cut = [s[i : i + 16, j : j + 16] for s in stack for i in corners[0] for j in corners[1]]
        values = np.linalg.svd(np.array(cut), compute_uv=False).ravel() ** 2
        spectrum = jnp.asarray(np.pad(values, (512 - len(values), 0)))
        alone = power_law_fit(spectrum, xmin=rule).alpha
        assert alpha == pytest.approx(float(alone), abs=5e-3)


@pytest.mark.parametrize("rule", ["median", "ks", "peak"])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_exponents_of_layers_do_not_see_their_scale(rule, scale):
    w = gaussian(40, 60)
    plain, scaled = farms_alphas([w, w * np.float32(scale)], window=16, samples=2, xmin=rule)
    assert scaled == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("rule", ["median", "ks", "peak"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_layer_that_is_not_finite_has_no_exponent(rule, value):
    w, broken = gaussian(40, 60), gaussian(40, 60)
    broken[7, 9] = value
    alphas = farms_alphas([w, broken], window=16, samples=2, xmin=rule)
    assert np.isnan(alphas).tolist() == [False, True]


@pytest.mark.parametrize("method", ["svd", "gram"])
@pytest.mark.parametrize("scale", [1e-18, 1e-25, 1e20])
def test_squares_that_leave_float32_make_no_exponent_of_the_rest(method, scale):
    lam = farms_eigenvalues(jnp.asarray(gaussian(40, 60)) * scale, window=16, method=method)
    assert hill_fit(lam).status >= FitStatus.TOO_FEW


@pytest.mark.parametrize("shape", [(1, 30), (30, 1), (1, 1), (2, 3)])
@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_thin_zero_and_constant_layers_have_a_status(shape, fill):
    w = jnp.full(shape, fill)
    assert np.isnan(farms_alphas([w], window=4)).all()
    assert hill_fit(farms_eigenvalues(w, window=4)).status >= FitStatus.TOO_FEW
    (status,) = layer_metrics({"w": w})["status"]
    assert status in ("TOO_FEW", "DEGENERATE")


def test_layers_without_windows_are_named():
    with pytest.raises(ValueError, match="matrices is empty"):
        farms_alphas([], window=16)


def test_a_stack_is_a_sequence_of_matrices():
    stack = jnp.asarray(gaussian(2, 32, 48))
    found = farms_alphas(stack, window=16)
    np.testing.assert_array_equal(found, farms_alphas(list(stack), window=16))


@pytest.mark.parametrize("n", [512, 768, 1024])
def test_farms_takes_the_aspect_ratio_out_of_the_exponent(n):
    w = jnp.asarray(gaussian(512, n, seed=n))
    plain, farms = (
        hill_alpha(eigenvalues(w)),
        hill_alpha(farms_eigenvalues(w, window=128, samples=4)),
    )
    assert abs(null_zscore(plain, (512, n))) < 4
    assert abs(farms - null_alpha((128, 128)).limit) < 0.03


@pytest.mark.parametrize(
    "shape, plain, blocks",
    [
        ((9, 64, 3), (6.44, 1.08), (2.071, 0.055)),
        ((9, 128, 64), (2.697, 0.028), (2.117, 0.015)),
        ((9, 96, 64), (2.444, 0.023), (2.117, 0.021)),
        ((9, 64, 1), (11.8, 5.9), (2.32, 0.11)),
        ((1, 256, 512), (2.721, 0.022), (2.130, 0.009)),
    ],
)
def test_convolutions_at_initialisation_are_those_of_the_released_code(shape, plain, blocks):
    w = jnp.asarray(gaussian(*shape))
    assert abs(hill_alpha(eigenvalues(w).ravel()) - plain[0]) < 4 * plain[1]
    of_blocks = hill_alpha(farms_eigenvalues(w, window=1, paper_compat=("conv_blocks",)))
    assert abs(of_blocks.mean() - blocks[0]) < 4 * blocks[1]


def test_released_convolution_blocks_drop_rows_and_use_half_of_them_at_ratio_two():
    w = jnp.asarray(gaussian(9, 24, 70))
    compat = dict(window=1, paper_compat=("conv_blocks",))
    tall = np.swapaxes(np.asarray(w), -2, -1)
    assert np.allclose(farms_windows(w, **compat)[1], tall[:, 24:48] / 2**0.5)
    assert farms_windows(w, **compat).shape == (2, 9, 24, 24)
    assert farms_windows(w, cols_per_row=2.0, **compat).shape == (2, 9, 12, 24)
    assert farms_windows(w, cols_per_row=0.5, **compat).shape == (2, 9, 24, 12)
    # The default slides over the slices and leaves nothing out.
    assert farms_eigenvalues(w, window=24).shape == (9 * 3 * 24,)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(window=0), "window=0"),
        (dict(window=True), "window=True"),
        (dict(window=4.0), "window=4.0"),
        (dict(window=4, samples=2.5), "samples=2.5"),
        (dict(window=4, scheme="stride", stride=-1), "stride=-1"),
        (dict(window=4, cols_per_row=math.nan), "cols_per_row=nan"),
        (dict(window=4, cols_per_row=math.inf), "cols_per_row=inf"),
        (dict(window=4, samples=0), "samples=0"),
        (dict(window=4, cols_per_row=0.0), "cols_per_row=0.0"),
        (dict(window=4, cols_per_row=0.1), "leaves windows of 4 x 0"),
        (dict(window=4, cols_per_row=100.0), "leaves windows of 0 x 0"),
        (dict(window=4, scheme="spiral"), "scheme='spiral'"),
        (dict(window=4, scheme="stride"), r"needs \['stride'\]"),
        (dict(window=4, scheme="random", samples=3), r"needs \['key', 'samples'\]"),
        (dict(window=4, scheme="random", samples=3, key=0), "key=0 is no random key"),
        (dict(window=4, stride=3), r"takes \['samples'\]"),
        (dict(window=4, paper_compat=("fix-finger",)), "fix-finger"),
        (dict(window=4, paper_compat=("conv_blocks",)), r"stack \[positions, m, n\]"),
        (
            dict(window=4, scheme="random", samples=3, key=0, paper_compat=("floor_step",)),
            "no windows at random",
        ),
    ],
)
def test_windows_that_cannot_be_cut_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        farms_windows(jnp.ones((8, 12)), **options)


# Metrics


def test_metrics_follow_the_formulas_of_weightwatcher():
    w = gaussian(40, 60) * np.geomspace(1, 10, 40, dtype=np.float32)[:, None]
    s = np.linalg.svd(w.astype(float), compute_uv=False)
    lam, alpha = s**2, 2.7
    p = lam / lam.sum() + 1e-10
    metrics = spectral_metrics(jnp.asarray(lam, jnp.float32), (40, 60), alpha=jnp.float32(alpha))
    expected = dict(
        norm=lam.sum(),
        log_norm=np.log10(lam.sum()),
        spectral_norm=lam.max(),
        log_spectral_norm=np.log10(lam.max()),
        stable_rank=lam.sum() / lam.max(),
        entropy=-(p * np.log(p)).sum() / np.log(40),
        matrix_rank=np.sum(s > s.max() * 60 * np.finfo(np.float32).eps),
        alpha_weighted=alpha * np.log10(lam.max()),
        log_alpha_norm=np.log10((lam**alpha).sum()),
    )
    for name, value in expected.items():
        assert float(getattr(metrics, name)) == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("q, limit", [(1, 0.25), (0.5, 0.3431), (0.25, 0.4444)])
def test_stable_and_soft_rank_of_noise_have_a_limit(q, limit):
    shape = (512, round(512 / q))
    metrics = spectral_metrics(eigenvalues(gaussian(*shape)), shape)
    # lam_max fluctuates by N^(-2/3) around the edge.
    assert float(metrics.stable_rank) / 512 == pytest.approx(limit, rel=4 * 512 ** (-2 / 3))
    assert float(metrics.mp_softrank) == pytest.approx(1, abs=4 * 512 ** (-2 / 3))


def test_the_soft_rank_sees_a_spike_and_the_median_does_not_move():
    spike = 10 * np.outer(gaussian(256, seed=1), gaussian(256, seed=2))
    metrics = spectral_metrics(eigenvalues(gaussian(256, 256) + spike), (256, 256))
    edge = float(metrics.mp_softrank) * float(metrics.spectral_norm)
    assert edge == pytest.approx(4 * 256, rel=0.1)
    assert float(metrics.mp_softrank) < 1e-3


def test_large_exponents_do_not_overflow():
    lam = jnp.array([1e6, 1e7, 1e8])
    metrics = spectral_metrics(lam, (3, 3), alpha=jnp.float32(20))
    assert float(metrics.log_alpha_norm) == pytest.approx(160, abs=1e-4)


SHIFT = {"log_norm": 1, "log_spectral_norm": 1, "alpha_weighted": None, "log_alpha_norm": None}


@pytest.mark.parametrize("exponent", [-30, 30])
def test_metrics_follow_the_scale(exponent):
    lam = eigenvalues(gaussian(20, 30))
    plain = spectral_metrics(lam, (20, 30))
    scaled = spectral_metrics(lam * jnp.float32(10.0**exponent), (20, 30))
    for name, value in plain._asdict().items():
        factor = 10.0**exponent if name in ("norm", "spectral_norm") else 1
        shift = exponent * (SHIFT[name] or float(plain.alpha)) if name in SHIFT else 0
        expected = factor * float(value) + shift
        assert float(getattr(scaled, name)) == pytest.approx(expected, rel=2e-5), name


def test_padding_changes_no_metric_and_lost_rank_is_flagged():
    lam = eigenvalues(gaussian(20, 30))
    plain = spectral_metrics(lam, (20, 30))
    padded = spectral_metrics(jnp.pad(lam, (3, 41)), (20, 30))
    for ours, theirs in zip(padded, plain, strict=True):
        assert np.allclose(ours, theirs, rtol=1e-6)
    assert plain.status == FitStatus.OK
    assert spectral_metrics(lam.at[-1].set(0), (20, 30)).status == FitStatus.RANK_DEFICIENT


def test_rank_one_has_no_entropy():
    metrics = spectral_metrics(jnp.array([0.0, 0.0, 3.0]), (3, 3))
    assert (float(metrics.entropy), float(metrics.entropy_rank)) == (0.0, 1.0)
    assert np.isnan(metrics.alpha) and metrics.status == FitStatus.TOO_FEW


def test_pooled_window_norms_grow_with_their_number_and_means_do_not():
    w = jnp.asarray(gaussian(128, 128))
    windows = [farms_eigenvalues(w, window=32, samples=k, pooled=False) for k in (4, 8)]
    few, many = (spectral_metrics(lam, (32, 32)).stable_rank.mean() for lam in windows)
    assert float(many) == pytest.approx(float(few), rel=0.05)
    few, many = (spectral_metrics(lam.ravel(), (32, 32)).stable_rank for lam in windows)
    assert many > 3 * few


# The table


@pytest.fixture(scope="module")
def table():
    params = {
        "conv": {"kernel": gaussian(3, 3, 16, 32)},
        "a": {"kernel": gaussian(64, 96), "bias": np.zeros(96)},
        "b": {"kernel": gaussian(64, 96, seed=1).astype(np.float16)},
        "graded": {"kernel": gaussian(64, 96) * np.geomspace(1, 1e3, 96, dtype=np.float32)},
        "low": {"kernel": gaussian(64, 20) @ gaussian(20, 96)},
    }
    return params, layer_metrics(params, window=16, samples=2)


def test_the_table_has_a_row_for_each_layer(table):
    params, columns = table
    assert columns["name"] == list(matrices(params))
    assert len({len(column) for column in columns.values()}) == 1
    by_name = dict(zip(columns["name"], columns["shape"], strict=True))
    assert by_name["conv/kernel"] == (9, 16, 32)


def test_rows_are_what_each_layer_gives_alone(table):
    params, columns = table
    for row, (name, layer) in enumerate(matrices(params).items()):
        w = jnp.asarray(layer.matrix, jnp.float32)
        lam = np.linalg.svd(np.asarray(w, float), compute_uv=False).ravel() ** 2
        assert columns["norm"][row] == pytest.approx(lam.sum(), rel=1e-5), name
        assert columns["stable_rank"][row] == pytest.approx(lam.sum() / lam.max(), rel=1e-5)
        alpha = hill_alpha(jnp.asarray(lam, jnp.float32))
        assert columns["alpha_hill"][row] == pytest.approx(float(alpha), rel=1e-4)
        farms = hill_alpha(farms_eigenvalues(w, window=16, samples=2))
        assert columns["alpha_farms"][row] == pytest.approx(float(farms), rel=1e-5)


def test_noise_is_within_its_null_and_structure_is_not(table):
    _, columns = table
    z = dict(zip(columns["name"], columns["alpha_z"], strict=True))
    status = dict(zip(columns["name"], columns["status"], strict=True))
    assert max(abs(z[f"{name}/kernel"]) for name in ("conv", "a", "b")) < 4
    assert z["graded/kernel"] < -4
    assert status["low/kernel"] == "RANK_DEFICIENT" and status["a/kernel"] == "OK"


def test_of_a_product_of_factors_the_exponents_are_those_of_its_inner_size_and_no_noise_is_known():
    a, b = gaussian(48, 12), gaussian(12, 40)
    params = {"lora": {"lora_a": a, "lora_b": b}, "full": {"kernel": gaussian(48, 40)}}
    params["wide"] = {"lora_a": gaussian(48, 48), "lora_b": gaussian(48, 40)}
    table = layer_metrics(params, window=16)
    row = {name: i for i, name in enumerate(table["name"])}
    lam = np.linalg.svd(a.astype(float) @ b.astype(float), compute_uv=False)[:12] ** 2
    lora, wide = row["lora/lora_a*lora_b"], row["wide/lora_a*lora_b"]
    expected = float(hill_alpha(jnp.asarray(lam, jnp.float32)))
    assert table["alpha_hill"][lora] == pytest.approx(expected, rel=1e-4)
    assert table["status"][lora] == "RANK_DEFICIENT" and table["matrix_rank"][lora] == 12
    for column in ("alpha_null", "alpha_deviation", "alpha_z", "alpha_debiased", "mp_softrank"):
        assert np.isnan(table[column][lora])
        assert np.isfinite(table[column][wide]) and np.isfinite(table[column][row["full/kernel"]])


@pytest.mark.parametrize("exponent", [-30, 30])
def test_the_table_follows_the_scale_of_the_weights(exponent):
    """Their squares, of 1e60 or 1e-60, are in no float32: the table holds Python numbers."""
    w = gaussian(24, 40)
    scaled = {"plain": w, "scaled": w * np.float32(10.0**exponent)}
    for name, (plain, found) in layer_metrics(scaled, window=16).items():
        if name in ("name", "kind", "shape", "status"):
            assert plain == found or name == "name"
            continue
        factor = 10.0 ** (2 * exponent) if name in ("norm", "spectral_norm") else 1
        alpha = layer_metrics({"w": w})["alpha_hill"][0]
        shift = 2 * exponent * (SHIFT[name] or alpha) if name in SHIFT else 0
        assert found == pytest.approx(factor * plain + shift, rel=2e-5), name


def test_the_table_takes_matrices_too(table):
    params, columns = table
    assert layer_metrics(matrices(params))["alpha_hill"] == columns["alpha_hill"]


# The host's numbers are those of its twins


@given(st.integers(0, 2**32 - 1), st.integers(12, 200), st.floats(1.2, 6))
@settings(max_examples=8, deadline=None)
def test_host_and_library_fit_the_same_power_law(seed, size, alpha):
    values = np.sort(np.random.default_rng(seed).pareto(alpha - 1, size) + 1)
    padded = np.pad(values, (256 - size, 0)).astype(np.float32)
    ours, theirs = host.power_law_fit(values), power_law_fit(padded)
    # float32 may call a tie differently, but not find a better distance.
    assert abs(ours.ks - float(theirs.ks)) < 1e-5
    if ours.tail == int(theirs.tail):
        assert ours.alpha == pytest.approx(float(theirs.alpha), rel=1e-4)
        assert ours.xmin == pytest.approx(float(theirs.xmin), rel=1e-5)
        assert ours.standard_error == pytest.approx(float(theirs.standard_error), rel=1e-4)
    assert host.hill_alpha(values) == pytest.approx(float(hill_alpha(padded)), rel=1e-4)


def test_host_norms_are_those_of_the_library():
    values = np.linalg.svd(np.random.default_rng(0).standard_normal((60, 40)))[1][::-1] ** 2
    ours = host.norms(values, (60, 40)) | host.alpha_norms(values, 2.5)
    ours["matrix_rank"] = host.matrix_rank(values, (60, 40))
    single = values.astype(np.float32)
    theirs = spectral_metrics(single, (60, 40), alpha=np.float32(2.5))._asdict()
    assert set(ours) <= set(theirs)
    for name in ours:
        assert ours[name] == pytest.approx(float(theirs[name]), rel=1e-4), name


def test_a_textbook_spectrum_gives_its_closed_form_on_the_host():
    fit = host.power_law_fit(2.0 ** np.arange(8))
    assert (fit.alpha, fit.ks) == pytest.approx((1.4121986, 0.2006271), rel=1e-6)


@pytest.mark.parametrize(
    "values, reason",
    [(np.ones(3), "too few"), (np.ones(20), "degenerate"), (np.zeros(20), "too few")],
)
def test_a_fit_that_does_not_exist_says_why_on_the_host(values, reason):
    fit = host.power_law_fit(values)
    assert fit.status == reason and math.isnan(fit.alpha)
