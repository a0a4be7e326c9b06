"""Cuts into singular values keep the rest, and a network in factors is the network."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_jax import optim, prune
from spectral_jax.prune import surgery
from spectral_jax.prune.surgery import shrink, split_refusal

# One program for each shape, where every operation would be one.
truncate, halve, random_subset, sparsify, sparsify_vectors, recombine = map(
    jax.jit,
    [
        surgery.truncate,
        surgery.halve,
        surgery.random_subset,
        surgery.sparsify,
        surgery.sparsify_vectors,
        surgery.recombine,
    ],
)
split = jax.jit(surgery.split, static_argnums=1)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def singular_values(w):
    return np.linalg.svd(np.asarray(w), compute_uv=False)


SHAPES = [(12, 7), (7, 12), (9, 9)]
shapes = pytest.mark.parametrize("shape", SHAPES)


# One matrix


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(0, 7), st.floats(1e-8, 1e8), st.integers(0, 99))
def test_truncation_loses_the_sum_of_the_dropped_squares_and_no_less_is_possible(
    shape, rank, scale, seed
):
    w = scale * noise(*shape, seed=seed)
    lost = np.sum((w - truncate(w, rank)) ** 2)
    dropped = singular_values(w)[rank:]
    assert lost == pytest.approx(np.sum(dropped**2), rel=1e-9, abs=1e-20 * scale**2)


@shapes
def test_truncation_keeps_the_largest_values_and_their_directions(shape):
    w = noise(*shape)
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    np.testing.assert_allclose(truncate(w, 3), (u[:, :3] * s[:3]) @ vt[:3], atol=1e-12)


def test_each_matrix_of_a_batch_has_its_own_rank():
    batch = noise(3, 8, 5)
    found = truncate(batch, jnp.array([0, 2, 5]))
    for w, rank, cut in zip(batch, (0, 2, 5), found, strict=True):
        np.testing.assert_allclose(cut, truncate(w, rank), atol=1e-12)
    np.testing.assert_array_equal(found[0], 0)


@shapes
def test_halving_halves_what_lies_up_to_the_edge(shape):
    w = noise(*shape)
    s = singular_values(w)
    edge = (s[2] + s[3]) / 2
    found = singular_values(halve(w, edge))
    expected = np.sort(np.where(s > edge, s, s / 2))[::-1]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_a_random_subset_keeps_the_signal_and_as_many_others_as_asked(seed, keep_below):
    w = noise(12, 9)
    s = singular_values(w)
    found = singular_values(random_subset(jax.random.key(seed), w, s[2] * 0.999, keep_below))
    kept = found[found > 1e-6]
    assert len(kept) == 3 + int(keep_below * 6 + 1e-5)
    np.testing.assert_allclose(kept[:3], s[:3], rtol=1e-9)
    for value in kept[3:]:
        assert np.min(np.abs(s - value)) < 1e-9


def test_a_random_subset_is_not_always_the_largest():
    w, edge = noise(30, 20), 100.0
    norms = [
        float(jnp.linalg.norm(random_subset(jax.random.key(seed), w, edge, 0.5)))
        for seed in range(3)
    ]
    assert len(set(norms)) == 3
    assert max(norms) < float(jnp.linalg.norm(truncate(w, 10)))


@pytest.mark.parametrize("y, b, expected", [(2.5, 1, 1.5), (3, 0.5, 2.4551533)])
def test_the_shrinker_has_the_published_values(y, b, expected):
    long = 8
    w = np.zeros((long, int(b * long)))
    w[0, 0] = y * np.sqrt(long) * 0.1
    found = singular_values(shrink(w, 0.1))[0] / (np.sqrt(long) * 0.1)
    assert found == pytest.approx(expected, abs=1e-7)


def test_shrinking_beats_truncating_at_the_edge_on_planted_spikes():
    rng = np.random.default_rng(3)
    u, v = (np.linalg.qr(rng.standard_normal((n, 6)))[0] for n in (60, 120))
    signal = (u * np.linspace(1.5, 4, 6) * np.sqrt(120)) @ v.T
    seen = signal + rng.standard_normal((60, 120))
    edge = np.sqrt(120) * (1 + np.sqrt(0.5))
    cut = truncate(seen, int(np.sum(singular_values(seen) > edge)))
    error, cut_error, raw = (np.sum((x - signal) ** 2) for x in (shrink(seen, 1.0), cut, seen))
    assert error < cut_error < raw


def test_much_noise_leaves_nothing_and_no_noise_is_refused():
    np.testing.assert_array_equal(shrink(noise(8, 5), 1e3), 0)
    with pytest.raises(ValueError, match="noise=0"):
        shrink(noise(8, 5), 0.0)


@shapes
def test_sparsifying_spares_the_signal(shape):
    w = noise(*shape)
    edge = singular_values(w)[2] * 0.999
    signal = np.asarray(truncate(w, 3))
    rest = w - signal
    expected = signal + np.where(np.abs(rest) > 0.4, rest, 0)
    np.testing.assert_allclose(sparsify(w, edge, 0.4), expected, atol=1e-12)
    np.testing.assert_allclose(sparsify(w, edge, 1e9), signal, atol=1e-12)


@shapes
def test_singular_vectors_lose_the_entries_below_their_limit(shape):
    w, edge, theta = noise(*shape), 3.0, 0.5
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    limits = theta * np.maximum(1 / 750, np.maximum(1 - s / edge, 0) ** 30)
    u, v = (np.where(np.abs(x) > limits, x, 0) for x in (u, vt.T))
    found = sparsify_vectors(w, edge, theta)
    np.testing.assert_allclose(found, (u * s) @ v.T, atol=1e-11)


@shapes
def test_zeros_stay_zero_and_nan_stays_in_its_matrix(shape):
    batch = np.stack([np.zeros(shape), np.full(shape, np.nan), noise(*shape)])
    edited = (
        truncate(batch, 2),
        halve(batch, 1.0),
        shrink(batch, 0.1),
        sparsify(batch, 1.0, 1e-3),
        sparsify_vectors(batch, 1.0, 1e-3),
    )
    for result in edited:
        np.testing.assert_array_equal(result[0], 0)
        assert np.isnan(result[1]).all()
        assert np.isfinite(result[2]).all()


@shapes
def test_without_an_edge_nothing_is_noise(shape):
    """A fit that failed has the edge NaN, and by its own account every value counts."""
    w, key = noise(*shape), jax.random.key(0)
    for result in (
        halve(w, np.nan),
        random_subset(key, w, np.nan, 0.0),
        sparsify(w, np.nan, 9.0),
        sparsify_vectors(w, np.nan, 1e-9),
        sparsify(w, 9.0, np.nan),
    ):
        np.testing.assert_allclose(result, w, atol=1e-6)


def test_lists_are_matrices_and_vectors_are_refused():
    rows = [[3.0, 0.0], [0.0, 1.0]]
    np.testing.assert_allclose(surgery.truncate(rows, 1), [[3, 0], [0, 0]], atol=1e-12)
    assert surgery.shrink(rows, 0.1).shape == (2, 2)
    with pytest.raises(ValueError, match=r"w has shape \(3,\): pass a matrix"):
        surgery.halve(np.ones(3), 1.0)


# Two factors for one kernel


@shapes
def test_two_factors_multiply_to_the_best_matrix_of_their_rank(shape):
    w = noise(*shape)
    factors = split(w, 2)
    assert factors["u"].shape == (shape[0], 2) and factors["v"].shape == (2, shape[1])
    np.testing.assert_allclose(recombine(factors), truncate(w, 2), atol=1e-12)
    for factor in factors.values():  # the values are shared out evenly
        np.testing.assert_allclose(singular_values(factor) ** 2, singular_values(w)[:2], rtol=1e-10)


def test_splitting_a_low_rank_matrix_and_recombining_gives_it_back():
    w = noise(20, 4) @ noise(4, 30, seed=1)
    np.testing.assert_allclose(recombine(split(w, 4)), w, atol=1e-12)


def test_factors_of_factors_recombine():
    w = noise(40, 3) @ noise(3, 50, seed=1)
    outer = split(w, 8)
    chain = {"u": split(outer["u"], 4), "v": split(outer["v"], 5)}
    np.testing.assert_allclose(recombine(chain), w, atol=1e-11)
    np.testing.assert_array_equal(recombine(w), w)


def test_a_convolution_becomes_its_window_and_a_1_x_1_one():
    kernel = noise(3, 3, 4, 10)
    factors = split(kernel, 4)
    assert factors["u"].shape == (3, 3, 4, 4) and factors["v"].shape == (1, 1, 4, 10)
    best = truncate(kernel.reshape(36, 10), 4).reshape(kernel.shape)
    np.testing.assert_allclose(recombine(factors), best, atol=1e-12)
    x = noise(2, 8, 8, 4)
    whole, first = (convolve(x, k) for k in (recombine(factors), factors["u"]))
    np.testing.assert_allclose(convolve(first, factors["v"]), whole, atol=1e-11)


def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def test_factors_that_save_nothing_are_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"rank=6: 6 x \(12 \+ 12\) .* no fewer than 12 x 12"):
        split(noise(12, 12), 6)
    assert split_refusal((12, 12), 5) == ""
    assert "rank 0" in split_refusal((12, 12), 0)
    assert split_refusal((1000, 10), 10) and not split_refusal((1000, 10), 9)


# How many to keep


def test_the_kept_rank_of_the_paper_and_that_of_its_code():
    s = jnp.linspace(0.9, 0.1, 784)
    assert int(surgery.kept_rank(s, 1.0, 0.45)) == 352
    assert int(surgery.kept_rank(s, 1.0, 0.45, keep_offset=1)) == 353
    assert int(surgery.kept_rank(s, 0.0, 0.45, keep_offset=1)) == 784


@pytest.mark.parametrize("fraction", [0.45, 0.1, 1 / 3, 0.7])
def test_a_share_of_a_count_is_python_s(fraction):
    exact = Fraction(fraction).limit_denominator(100)
    counts = np.arange(5001)
    with jax.enable_x64(False):
        found = surgery.share(fraction, jnp.asarray(counts))
    np.testing.assert_array_equal(found, [int(exact * int(n)) for n in counts])


def test_old_names_are_the_same_functions():
    """What the contract leaves out as ``prune.X`` by the name that it had before."""
    for name in ("Policy", "prune_spectra", "recombine", "split", "svd_prune", "truncate"):
        assert getattr(optim, name) is getattr(prune, name)


def test_what_is_no_key_is_named():
    with pytest.raises(ValueError, match="key=0 is no random key"):
        surgery.random_subset(0, np.eye(3), 1.0, 0.5)
