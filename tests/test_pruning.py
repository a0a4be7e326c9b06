"""Sparsity is shared out as the formula says, and pruned layers do what they did."""

from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_jax.optim import alpha_pruning, block_means, layer_sparsities
from spectral_jax.prune import (
    magnitude_mask,
    prune_weights,
    reconstruction_error,
    sparsegpt,
    wanda_mask,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


# Allocation

B, N = np.array([2.0, 3.0, 5.0]), np.array([1.0, 1.0, 2.0])
# Block means of alpha for LLaMA-7B, FARMS with 10 windows a side (AlphaPruning).
LLAMA_7B = """2.7110 2.9730 3.1361 3.3717 3.4407 3.1842 3.2480 3.2418 3.1282 2.9487 3.0588 2.9800
2.9582 3.1312 3.2705 3.2832 3.6961 3.7878 3.9470 3.7765 3.7392 4.0945 4.0432 4.1338 3.8568 4.3575
4.3146 4.4912 4.2850 4.4868 4.1064 3.8798"""


def test_alpha_pruning_below_the_ceiling_is_the_published_formula():
    ratios = alpha_pruning(B, N, 0.5, epsilon=0.2).ratios
    np.testing.assert_allclose(ratios, [0.3870968, 0.4516129, 0.5806452], atol=1e-7)


def test_a_full_block_passes_its_excess_on_to_the_others():
    result = alpha_pruning(B, N, 0.8, epsilon=0.4)
    np.testing.assert_allclose(result.ratios, np.array([27 / 55, 39 / 55, 1]), atol=1e-12)
    np.testing.assert_array_equal(result.full, [False, False, True])
    np.testing.assert_allclose(result.achieved, 0.8, atol=1e-12)


def test_the_released_clipping_loses_what_it_clips():
    result = alpha_pruning(B, N, 0.8, epsilon=0.4, paper_compat="clip_no_renorm")
    np.testing.assert_allclose(result.ratios, [0.45, 0.65, 0.998], atol=1e-12)
    np.testing.assert_allclose(result.achieved, 0.774, atol=1e-12)
    result = alpha_pruning(B, N, 0.7, epsilon=0.6, paper_compat="clip_no_renorm")
    assert float(result.ratios[2]) == pytest.approx(0.99999, abs=1e-12)


def test_llama_7b_gets_the_published_ratios():
    means = jnp.array([float(x) for x in LLAMA_7B.split()])
    result = alpha_pruning(means, jnp.full(32, 4.0 * 4096**2 + 3 * 4096 * 11008), 0.8, epsilon=0.2)
    found = [result.scale, result.ratios.min(), result.ratios.max()]
    np.testing.assert_allclose(found, [0.80097, 0.6408, 0.9612], atol=1e-4)


alphas_and_sizes = st.lists(
    st.tuples(st.floats(1.1, 12), st.integers(1, 9)), min_size=5, max_size=5
).map(lambda pairs: tuple(map(np.array, zip(*pairs, strict=True))))


@settings(max_examples=25, deadline=None)
@given(alphas_and_sizes, st.floats(0, 1), st.floats(0, 0.95))
def test_every_allocation_meets_its_target_within_0_and_1_and_in_the_order_of_alpha(
    pairs, sparsity, epsilon
):
    alpha, sizes = pairs
    result = alpha_pruning(alpha, sizes.astype(float), sparsity, epsilon=epsilon)
    ratios = np.asarray(result.ratios)
    assert ratios.min() >= 0 and ratios.max() <= 1
    assert np.sum(sizes * ratios) == pytest.approx(sparsity * sizes.sum(), abs=1e-10)
    assert (np.diff(ratios[np.argsort(alpha)]) >= -1e-12).all()


def test_equal_alphas_share_alike_and_an_unknown_one_gets_the_middle():
    np.testing.assert_allclose(alpha_pruning(jnp.full(3, 2.0), N, 0.6).ratios, 0.6, atol=1e-12)
    np.testing.assert_allclose(alpha_pruning(jnp.full(3, jnp.nan), N, 0.6).ratios, 0.6, atol=1e-12)
    known_and_not = alpha_pruning(jnp.array([2.0, jnp.nan, 4.0]), jnp.ones(3), 0.5, epsilon=0.2)
    np.testing.assert_allclose(known_and_not.ratios, [0.4, 0.5, 0.6], atol=1e-12)


def test_blocks_are_the_names_up_to_their_number_and_average_what_is_known():
    alphas = {
        "model.layers.0.q.weight": 2.0,
        "model.layers.10.q.weight": 7.0,
        "model.layers.0.k.weight": 4.0,
        "model.layers.10.k.weight": float("nan"),
        "head.weight": float("nan"),
    }
    means = block_means(alphas)
    assert list(means) == ["model.layers.0", "model.layers.10", "head.weight"]
    np.testing.assert_array_equal(list(means.values()), [3, 7, np.nan])
    kinds = block_means(alphas, block_of=lambda name: name.split(".")[-2])
    np.testing.assert_array_equal(list(kinds.values()), [4.5, 4, np.nan])


def test_layers_get_the_sparsity_of_their_block_by_name():
    alphas = {"a/0/k": 3.0, "b/1": 5.0, "a/0/q": 1.0, "c/2": 3.0}
    sizes = {"b/1": 2, "c/2": 1, "a/0/q": 1, "a/0/k": 0, "unused": 7}
    found = layer_sparsities(alphas, sizes, 0.5, epsilon=0.2)
    assert list(found) == list(alphas)
    ratios = np.asarray(alpha_pruning(B, N, 0.5, epsilon=0.2).ratios)  # for means 2, 3, 5
    np.testing.assert_allclose(list(found.values()), ratios[[0, 2, 0, 1]], atol=1e-6)


# Masks


def layer(seed, samples=64, inputs=12, outputs=5):
    """Weights, and inputs that are correlated and of unequal size, as in trained networks."""
    rng = np.random.default_rng(seed)
    mixing = (np.eye(inputs) + 0.2 * rng.normal(size=(inputs, inputs))) * np.exp(
        0.7 * rng.normal(size=inputs)
    )
    x = rng.normal(size=(samples, inputs)) @ mixing
    return jnp.asarray(rng.normal(size=(inputs, outputs))), jnp.asarray(x)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 1.0])
def test_magnitude_removes_the_smallest_of_the_matrix(sparsity):
    w = layer(0)[0]
    kept = np.asarray(magnitude_mask(w, sparsity))
    count = round(sparsity * w.size)
    smallest = np.sort(np.abs(w).ravel())[:count]
    np.testing.assert_array_equal(np.sort(np.abs(w[~kept])), smallest)


def test_the_least_integer_is_the_largest_magnitude():
    least = np.array([[-128, 1], [2, 127]], np.int8)  # int8 has no 128
    np.testing.assert_array_equal(magnitude_mask(least, 0.5), [[True, False], [False, True]])
    np.testing.assert_array_equal(
        magnitude_mask(least.tolist(), 0.75), [[True, False], [False, False]]
    )


def test_ties_are_removed_in_number_not_in_bulk():
    assert magnitude_mask(jnp.ones((4, 5)), 0.25).sum() == 15


@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_wanda_compares_the_weights_of_one_output_by_what_they_pass_on(sparsity):
    w, x = layer(1)
    kept = np.asarray(wanda_mask(w, x, sparsity))
    scores = np.abs(w) * np.sqrt((np.asarray(x) ** 2).sum(0))[:, None]
    count = round(sparsity * len(w))
    np.testing.assert_array_equal((~kept).sum(0), count)
    for j in range(w.shape[1]):
        assert scores[~kept[:, j], j].max() <= scores[kept[:, j], j].min()


def test_wanda_with_equal_inputs_is_magnitude_by_output():
    w = layer(2)[0]
    kept = wanda_mask(w, jnp.eye(len(w)), 0.5)
    for j in range(w.shape[1]):
        np.testing.assert_array_equal(kept[:, j], magnitude_mask(w[:, j], 0.5))


# SparseGPT

DAMPING = 1e-12


def least_squares(w, x, mask):
    """The best weights on the kept inputs of one output, and their error."""
    w, x = np.asarray(w), np.asarray(x)
    target, kept = x @ w, np.flatnonzero(mask)
    solution = np.linalg.lstsq(x[:, kept], target, rcond=None)[0]
    full = np.zeros(len(w))
    full[kept] = solution
    return full, np.sum((x @ full - target) ** 2) / np.sum(target**2)


def greedy(w, x, kept):
    """Each loss in turn made up for by the best change of the inputs after it, by least squares."""
    w, x = np.array(w), np.asarray(x)
    for i in np.flatnonzero(~kept):
        w[i + 1 :] += np.linalg.lstsq(x[:, i + 1 :], x[:, i] * w[i], rcond=None)[0]
        w[i] = 0
    return w


@pytest.mark.parametrize("block_size", [5, 12])
@pytest.mark.parametrize("sparsity", [0.25, 0.75])
def test_every_loss_is_made_up_for_by_the_later_inputs_as_least_squares_would(sparsity, block_size):
    w, x = layer(3)
    result = sparsegpt(w, x, sparsity, block_size=block_size, damping=DAMPING)
    kept = np.asarray(result.kept)
    assert result.sound and not result.weights[~kept].any()
    for j in range(w.shape[1]):
        np.testing.assert_allclose(result.weights[:, j], greedy(w[:, j], x, kept[:, j]), atol=1e-6)


def test_a_layer_whose_first_inputs_are_lost_is_refitted_by_least_squares():
    w, x = layer(0)
    w = w.at[:5].multiply(1e-3)
    result = sparsegpt(w, x, 5 / 12, damping=DAMPING)
    for j, kept in enumerate(np.asarray(result.kept).T):
        np.testing.assert_array_equal(kept, np.arange(12) >= 5)
        best, _ = least_squares(w[:, j], x, kept)
        np.testing.assert_allclose(np.asarray(result.weights)[:, j], best, atol=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_no_pruning_of_one_output_beats_the_best_of_all_masks(seed):
    w, x = layer(seed, inputs=8, outputs=1)
    error = float(reconstruction_error(w, sparsegpt(w, x, 0.5, damping=DAMPING).weights, x))
    masks = [np.isin(np.arange(8), keep) for keep in combinations(range(8), 4)]
    best = min(least_squares(w[:, 0], x, mask)[1] for mask in masks)
    assert best * (1 - 1e-9) <= error <= 10 * best


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7, 0.85])
def test_sparsegpt_loses_less_than_wanda_and_wanda_less_than_magnitude(sparsity):
    """The mean over layers: greedy choices may be beaten on one, but not by magnitude."""
    errors = []
    for seed in range(3):
        w, x = layer(seed, samples=256, inputs=32, outputs=16)
        pruned = [
            prune_weights({"w": w}, {"w": sparsity}, method=method, inputs={"w": x})["w"]
            for method in ("sparsegpt", "wanda", "magnitude")
        ]
        errors.append([float(reconstruction_error(w, p, x)) for p in pruned])
        assert errors[-1][0] < errors[-1][2]
    assert (np.diff(np.sum(errors, axis=0)) > 0).all()


def test_nothing_is_lost_at_sparsity_0_nor_left_at_1():
    w, x = layer(4)
    np.testing.assert_array_equal(sparsegpt(w, x, 0.0).weights, w)
    assert not sparsegpt(w, x, 1.0).weights.any()


def test_inputs_that_are_always_zero_lose_their_weights_for_nothing():
    w, x = layer(5)
    x = x.at[:, jnp.array([2, 7, 11])].set(0.0)
    result = sparsegpt(w, x, 0.25, damping=DAMPING)
    np.testing.assert_array_equal(~result.kept.any(1), np.isin(np.arange(12), [2, 7, 11]))
    assert reconstruction_error(w, result.weights, x) < 1e-12


def test_fewer_samples_than_inputs_and_copied_inputs_are_damped_and_nan_is_flagged():
    w, x = layer(6, samples=4)
    copied = x.at[:, 3].set(x[:, 8])
    for dtype in ("float32", "float64"):
        result = sparsegpt(w.astype(dtype), copied.astype(dtype), 0.5)
        assert result.sound and result.weights.dtype == dtype
    assert not sparsegpt(w, x.at[0, 0].set(jnp.nan), 0.5).sound


def test_sparsity_is_traced_and_layers_are_mapped():
    layers = [layer(seed) for seed in range(3)]
    w, x = (jnp.stack(parts) for parts in zip(*layers, strict=True))
    ratios = jnp.array([0.2, 0.5, 0.8])
    together = jax.jit(jax.vmap(partial(sparsegpt, block_size=5)))(w, x, ratios)
    for i, (one, inputs) in enumerate(layers):
        alone = sparsegpt(one, inputs, float(ratios[i]), block_size=5)
        np.testing.assert_allclose(together.weights[i], alone.weights, atol=1e-10)


# Trees


def test_prune_touches_the_named_kernels_only_and_reads_a_convolution_by_its_last_axis():
    rng = np.random.default_rng(0)
    params = {
        "conv": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 2, 4))), "bias": jnp.ones(4)},
        "head": {"kernel": jnp.asarray(rng.normal(size=(4, 3)))},
    }
    patches = jnp.asarray(rng.normal(size=(50, 18)))
    pruned = prune_weights(
        params, {"conv/kernel": 0.5}, method="wanda", inputs={"conv/kernel": patches}
    )
    np.testing.assert_array_equal((pruned["conv"]["kernel"] == 0).sum((0, 1, 2)), 9)
    np.testing.assert_array_equal(pruned["conv"]["bias"], 1)
    np.testing.assert_array_equal(pruned["head"]["kernel"], params["head"]["kernel"])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: alpha_pruning(B, N, 0.5, epsilon=1.0), "epsilon=1.0: choose"),
        (lambda: alpha_pruning(B, N, 50), "sparsity=50 is a share"),
        (lambda: alpha_pruning(B, N, 0.5, paper_compat="clip"), "paper_compat='clip': choose"),
        (lambda: layer_sparsities({"a": 2.0}, {}, 0.5), "sizes: no entry for 'a'"),
        (lambda: layer_sparsities({}, {}, 0.5), "alphas is empty"),
        (lambda: alpha_pruning(B, N[:1], 0.5), "pass one number per block"),
        (lambda: alpha_pruning(B[:0], N[:0], 0.5), "pass one number per block"),
        (lambda: alpha_pruning(B, -N, 0.5), "sizes=.*: pass the number of weights"),
        (lambda: alpha_pruning(B, 0 * N, 0.5), "sizes=.*: pass the number of weights"),
        (lambda: wanda_mask(jnp.ones((3, 2)), jnp.ones((5, 2)), 0.5), r"pass \[in, out\]"),
        (lambda: sparsegpt(jnp.ones((2, 2)), jnp.ones((2, 2)), 0.5, damping=0), "damping=0"),
        (lambda: sparsegpt(jnp.ones((2, 2)), jnp.ones((2, 2)), 0.5, block_size=0), "block_size=0"),
        (lambda: prune_weights({"a": jnp.ones((2, 2))}, {"b": 0.5}), "sparsities: no leaf at 'b'"),
        (
            lambda: prune_weights({"a": jnp.ones((2, 2))}, {"a": 0.5}, method="wanda"),
            "inputs: none for",
        ),
        (lambda: prune_weights({}, {}, method="random"), "method='random': choose"),
        (
            lambda: reconstruction_error(jnp.ones((3, 2)), jnp.ones((3, 1)), jnp.ones((5, 3))),
            r"pruned has shape \(3, 1\)",
        ),
    ],
)
def test_misuse_names_the_argument_and_the_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call()
