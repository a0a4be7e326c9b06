"""Layers are steered by their tails: the maps, whose scale is whose, and when it is measured."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from spectral_jax import tails
from spectral_jax.optim import (
    ASSIGNMENTS,
    METRICS,
    alpha_decay,
    linear_map,
    llr_sigmoid,
    log2_map,
    owners,
    sqrt_map,
    step_map,
    tb_sigmoid,
    temp_balance,
)
from spectral_jax.weights import Block

pytestmark = pytest.mark.usefixtures("quick_compilation")
ETA = 0.1
ALPHA = np.array([2.0, 3.0, 4.0, 6.0])


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


# Maps


@pytest.mark.parametrize(
    "scale, alpha, rates",
    [
        (linear_map, ALPHA, [0.05, 0.075, 0.1, 0.15]),
        (sqrt_map, ALPHA, [0.0744739, 0.0912115, 0.1053220, 0.1289926]),
        (step_map, [4.0, 2.0, 6.0, 3.0], [0.1, 0.05, 0.125, 0.075]),
        (
            partial(tb_sigmoid, tau=1.0, s_min=0.25, s_max=0.5),
            ALPHA,
            [0.0816605, 0.0901998, 0.1074208, 0.1593402],
        ),
    ],
)
def test_maps_give_the_published_learning_rates(scale, alpha, rates):
    np.testing.assert_allclose(ETA * scale(jnp.array(alpha)), rates, atol=1e-6)


def test_log2_and_the_layer_wise_sigmoid_are_their_formulas():
    logs = np.log2(ALPHA)
    np.testing.assert_allclose(log2_map(jnp.array(ALPHA)), 4 * logs / logs.sum(), rtol=1e-12)
    z = (ALPHA - ALPHA.mean()) / ALPHA.std()
    np.testing.assert_allclose(llr_sigmoid(jnp.array(ALPHA)), 2 / (1 + np.exp(-4 * z)), rtol=1e-12)


layers = st.lists(st.floats(1.1, 20), min_size=6, max_size=6).map(np.array)


@pytest.mark.parametrize("name", ASSIGNMENTS)
@settings(max_examples=10, deadline=None)
@given(layers)
def test_a_larger_alpha_never_gets_a_smaller_learning_rate(name, alpha):
    scale = np.asarray(jitted(name)(alpha))
    assert (np.diff(scale[np.argsort(alpha)]) >= -1e-12).all()
    assert (scale >= 0).all()


@cache
def jitted(name):
    return jax.jit(ASSIGNMENTS[name])


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_equal_and_unknown_alphas_keep_the_global_rate_and_move_no_other(name):
    scale = jitted(name)
    np.testing.assert_array_equal(scale(jnp.full(6, 3.3)), 1)
    np.testing.assert_array_equal(scale(jnp.full(6, jnp.nan)), 1)
    mixed = scale(jnp.array([2.0, jnp.nan, 3.0, 4.0, jnp.nan, 6.0]))
    known = np.array([0, 2, 3, 5])
    np.testing.assert_array_equal(np.delete(mixed, known), 1)
    np.testing.assert_allclose(mixed[known], ASSIGNMENTS[name](jnp.array(ALPHA)), rtol=1e-12)


@pytest.mark.parametrize("scale", [sqrt_map, log2_map])
def test_alphas_outside_the_domain_of_a_map_are_unknown_to_it(scale):
    mixed = scale(jnp.array([2.0, -0.5, 3.0, 4.0, 6.0]))
    np.testing.assert_allclose(np.delete(mixed, 1), scale(jnp.array(ALPHA)), rtol=1e-12)
    assert mixed[1] == 1


def test_ties_share_their_mean_rank():
    np.testing.assert_allclose(step_map(jnp.array([5.0, 2.0, 5.0, 7.0])), [0.875, 0.5, 0.875, 1.25])


# Whose scale


def test_biases_and_norms_go_with_their_kernel_and_the_rest_with_none():
    kernels = ["stem/kernel", "blocks/0/conv1/kernel", "blocks/1/conv1/kernel", "head/kernel"]
    own = {
        "blocks/0/conv1/bias": "blocks/0/conv1/kernel",
        "blocks/0/norm1/scale": "blocks/0/conv1/kernel",
        "blocks/1/bn1/bias": "blocks/1/conv1/kernel",
        "stem_norm/scale": "stem/kernel",
        "head/kernel": "head/kernel",
    }
    none = ["blocks/0/norm2/scale", "cls_token", "position/table", "blocks/0/gain"]
    assert owners([*own, *none], kernels) == own


@pytest.mark.parametrize(
    "leaf, kernel",
    [
        ("layer1.0.bn2.weight", "layer1.0.conv2.weight"),
        ("layer2.0.downsample.1.bias", "layer2.0.downsample.0.weight"),
        ("params/BatchNorm_3/scale", "params/Conv_3/kernel"),
        ("model/batch_normalization_2/gamma", "model/conv2d_2/kernel"),
        ("encoder.layers.0.norm1.weight", "encoder.layers.0.linear1.weight"),
        ("net/~/batch_norm/scale", "net/~/conv2_d/w"),
    ],
)
def test_norms_are_recognised_in_the_names_of_other_frameworks(leaf, kernel):
    others = ["layer1.0.conv1.weight", "params/Dense_3/kernel", "model/conv2d/kernel"]
    assert owners([leaf], [*others, kernel]) == {leaf: kernel}


def test_a_layout_says_better_than_names_whose_a_norm_is():
    layout = (Block("a/kernel", 0, 1, norm="first"), Block("b/kernel", 1, 2))
    assert owners(["first/scale", "b_norm/scale"], ["a/kernel", "b/kernel"], layout) == {
        "first/scale": "a/kernel",
        "b_norm/scale": "b/kernel",
    }


# The transformation. The toy metric reads an entry, so that expectations are exact.


def corner(matrix):
    return jnp.ravel(matrix)[0]


NAMES = ("a", "b", "c", "d")
LAYOUT = tuple(Block(f"{name}/kernel", i, i + 1) for i, name in enumerate("cabd"))


def network(alphas=ALPHA):
    """Four layers in three shapes, whose kernels' first entries are the alphas."""
    params = {"token": jnp.ones(3)}
    for name, shape, alpha in zip(
        NAMES, [(8, 8), (3, 3, 8, 8), (8, 8), (9, 8)], alphas, strict=True
    ):
        kernel = jnp.ones(shape).at[(0,) * len(shape)].set(alpha)
        params[name] = {"kernel": kernel, "bias": jnp.ones(shape[-1])}
        params[f"{name}_norm"] = {"scale": jnp.ones(shape[-1])}
    return params


def balance(assignment="linear", **options):
    options = {"metric": corner, "refresh_every": 3, "min_eigenvalues": 8} | options
    return temp_balance(assignment, **options)


def scales_of(updates):
    """The scale of each layer, after checking that all its leaves have the same."""
    found = []
    for name in NAMES:
        leaves = [updates[name]["kernel"], updates[name]["bias"], updates[f"{name}_norm"]["scale"]]
        values = np.unique(np.concatenate([np.ravel(leaf) for leaf in leaves]))
        assert len(values) == 1
        found.append(values[0])
    np.testing.assert_array_equal(updates["token"], 1)
    return found


def first(transformation, params):
    ones = jax.tree.map(jnp.ones_like, params)
    return jax.jit(transformation.update)(ones, transformation.init(params), params)


def test_every_leaf_is_scaled_as_its_layer_is():
    updates, state = first(balance("linear", low=0.2, high=1.8), network())
    np.testing.assert_allclose(scales_of(updates), [0.2, 0.6, 1, 1.8])
    assert {name: float(alpha) for name, alpha in state.alphas.items()} == {
        "a/kernel": 2, "b/kernel": 3, "c/kernel": 4, "d/kernel": 6,
    }  # fmt: skip


@pytest.mark.parametrize(
    "tuned, expected",
    [
        ("all", [0.5, 0.75, 1, 1.5]),
        ("inner", [0.5, 1.5, 1, 1]),  # in the network, c is first and d last
        ("not_last", [0.5, 1, 1.5, 1]),
    ],
)
def test_the_first_and_last_layers_of_the_network_may_be_left_alone(tuned, expected):
    updates, state = first(balance(tuned=tuned, layout=LAYOUT), network())
    np.testing.assert_allclose(scales_of(updates), expected)
    assert len(state.scales) == {"all": 4, "inner": 2, "not_last": 3}[tuned]


def test_kernels_with_few_singular_values_are_left_alone():
    updates, state = first(balance(min_eigenvalues=9), network())  # 8, 72, 8, 8 of them
    assert list(state.scales) == ["b/kernel"]
    np.testing.assert_array_equal(scales_of(updates), 1)


def test_embeddings_are_left_alone_and_a_fused_kernel_gets_the_mean_of_its_parts():
    kernel = jnp.ones((8, 24)).at[0, jnp.array([0, 8, 16])].set(jnp.array([2.0, 3.0, 4.0]))
    params = {
        "embed": {"embedding": jnp.full((50, 8), 9.0)},
        "attn": {"c_attn": {"kernel": kernel, "bias": jnp.ones(24)}},
        "mlp": {"kernel": jnp.full((8, 8), 6.0)},
    }
    updates, state = first(balance(), params)
    parts = ["attn/c_attn/kernel:k", "attn/c_attn/kernel:q", "attn/c_attn/kernel:v", "mlp/kernel"]
    assert sorted(state.alphas) == parts
    np.testing.assert_allclose(updates["attn"]["c_attn"]["bias"], (0.5 + 0.75 + 1) / 3)
    np.testing.assert_allclose(updates["mlp"]["kernel"], 1.5)
    np.testing.assert_array_equal(updates["embed"]["embedding"], 1)


def test_an_undecided_layer_is_flagged_and_keeps_the_global_rate():
    updates, state = first(balance(), network([2.0, jnp.nan, 4.0, 6.0]))
    np.testing.assert_allclose(scales_of(updates), [0.5, 1, 1, 1.5])
    assert jnp.isnan(state.alphas["b/kernel"])


def test_a_shuffle_keeps_the_rates_and_not_their_owners():
    shuffled = balance(shuffle_key=jax.random.key(1))
    step = jax.jit(shuffled.update)

    def scales(params):
        ones = jax.tree.map(jnp.ones_like, params)
        return scales_of(step(ones, shuffled.init(params), params)[0])

    found = scales(network())
    assert sorted(found) == [0.5, 0.75, 1, 1.5] != found
    np.testing.assert_allclose(scales(network(2 * ALPHA)), found)  # the same order every time


def test_an_assignment_of_one_s_own():
    updates, _ = first(balance(lambda alpha: 1 / alpha), network())
    np.testing.assert_allclose(scales_of(updates), 1 / ALPHA)


def test_it_multiplies_the_learning_rate_behind_momentum():
    params, gradients = network(), jax.tree.map(lambda p: 0 * p + 0.3, network())
    plain, balanced = (optax.sgd(ETA, momentum=0.9), balance())
    chain = optax.chain(plain, balanced)
    chained, plainly = jax.jit(chain.update), jax.jit(plain.update)
    state, steps = chain.init(params), plain.init(params)
    for _ in range(3):
        updates, state = chained(gradients, state, params)
        expected, steps = plainly(gradients, steps)
    for name, scale in zip(NAMES, [0.5, 0.75, 1, 1.5], strict=True):
        np.testing.assert_allclose(
            updates[name]["kernel"], scale * expected[name]["kernel"], rtol=1e-12
        )


def test_alpha_decay_decays_weakly_where_the_tail_is_heavy():
    params = network()
    options = {"metric": corner, "refresh_every": 3, "min_eigenvalues": 8}
    decay = alpha_decay(0.1, "linear", low=0.5, high=3.0, **options)
    updates, _ = first(decay, params)
    for name, scale in zip(NAMES, [0.5, 1.125, 1.75, 3], strict=True):
        expected = 1 + 0.1 * scale * np.asarray(params[name]["kernel"])
        np.testing.assert_allclose(updates[name]["kernel"], expected)
    np.testing.assert_allclose(updates["token"], 1.1)


# When it is measured


def drive(transformation, params, steps):
    """Add 1 to the first alpha each step; the alphas in force at every step."""

    def step(carry, _):
        params, state = carry
        _, state = transformation.update(params, state, params)
        moved = {**params, "a": {**params["a"], "kernel": params["a"]["kernel"] + 1}}
        return (moved, state), state

    return jax.lax.scan(step, (params, transformation.init(params)), length=steps)[1]


@cache
def driven():
    alone = jax.jit(partial(drive, balance(), steps=8))
    return alone, jax.jit(jax.vmap(partial(drive, balance(), steps=8)))


def test_alphas_are_those_of_the_last_refresh():
    states = driven()[0](network())
    np.testing.assert_array_equal(states.alphas["a/kernel"], [2, 2, 2, 5, 5, 5, 8, 8])
    np.testing.assert_array_equal(states.alphas["b/kernel"], 3)
    np.testing.assert_array_equal(states.step, np.arange(1, 9))
    np.testing.assert_allclose(states.scales["d/kernel"][:4], [1.5, 1.5, 1.5, 1.5])


def test_under_vmap_every_seed_runs_as_it_would_alone():
    alone, together = driven()
    seeds = [network(ALPHA), network(ALPHA[::-1]), network([2.0, jnp.nan, 4.0, 6.0])]
    states = together(jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds))
    for i, params in enumerate(seeds):
        ours = jax.tree.map(lambda leaf: leaf[i], states)  # noqa: B023
        jax.tree.map(np.testing.assert_array_equal, ours, alone(params))


def test_between_refreshes_nothing_is_measured_under_vmap_either():
    seen = []

    def counted(matrix):
        jax.debug.callback(lambda: seen.append(matrix.shape))
        return corner(matrix)

    transformation = balance(metric=counted)
    params = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), network())
    state, step = jax.vmap(transformation.init)(params), jax.jit(jax.vmap(transformation.update))
    measured = []
    for _ in range(4):
        _, state = jax.block_until_ready(step(params, state, params))
        jax.effects_barrier()
        measured.append(len(seen))
    first = measured[0]
    assert first > 0
    assert measured == [first, first, first, 2 * first]


def test_a_resumed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    import orbax.checkpoint as ocp

    step = jax.jit(balance().update)
    params = network()
    _, state = step(params, balance().init(params), params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", state)
    later = network(ALPHA[::-1])
    jax.tree.map(
        np.testing.assert_array_equal, step(later, restored, later), step(later, state, later)
    )
    assert restored.alphas["a/kernel"] == 2


def test_sharded_parameters_get_the_same_scales():
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    params = {
        name: {"kernel": jnp.asarray(rng.normal(size=(8, 8)) ** power)}
        for name, power in [("a", 1), ("b", 3), ("c", 5)]
    }
    on_columns = NamedSharding(mesh, PartitionSpec(None, "model"))
    transformation = temp_balance(metric="hill", refresh_every=1, min_eigenvalues=8)
    expected = first(transformation, params)[0]
    sharded = first(transformation, jax.device_put(params, on_columns))[0]
    for name in params:
        np.testing.assert_allclose(sharded[name]["kernel"], expected[name]["kernel"], atol=1e-12)


def test_half_precision_networks_keep_their_dtype():
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), network())
    updates, state = first(balance(), half)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    assert state.alphas["a/kernel"].dtype == jnp.float32


# Metrics


def gaussian(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def test_hill_pools_the_positions_of_a_convolution():
    kernel = gaussian((9, 16, 24))
    values = np.linalg.svd(kernel, compute_uv=False).ravel() ** 2
    expected = float(tails.hill_alpha(jnp.asarray(values)))
    assert float(METRICS["hill"]()(kernel)) == pytest.approx(expected, rel=1e-10)


def test_on_noise_the_debiased_metrics_see_no_shape_and_the_plain_one_does():
    square, wide = gaussian((128, 128)), gaussian((64, 256))
    shape = lambda matrix: tails.null_alpha(matrix.shape).mean  # noqa: E731
    measured = {name: [float(METRICS[name]()(w)) for w in (square, wide)] for name in METRICS}
    assert measured["hill"][1] - measured["hill"][0] > 1
    assert abs(measured["farms"][1] - measured["farms"][0]) < 0.15
    assert abs(measured["debiased"][1] - measured["debiased"][0]) < 0.4
    assert measured["shape_only"] == [pytest.approx(shape(w)) for w in (square, wide)]
    assert all(0.8 < METRICS["debiased"](form="ratio")(w) < 1.2 for w in (square, wide))


@pytest.mark.parametrize("name", METRICS)
def test_metrics_take_weights_of_any_real_dtype(name):
    metric = METRICS[name](**{"window": 8} if name == "farms" else {})
    whole = np.random.default_rng(0).integers(-3, 4, (24, 16))
    expected = metric(jnp.asarray(whole, jnp.float32))
    for dtype in ("int8", "bfloat16", "float16", "float64"):
        np.testing.assert_allclose(metric(jnp.asarray(whole, dtype)), expected, atol=1e-5)
    with pytest.raises(ValueError, match="^matrix has the complex dtype"):
        metric(whole.astype("complex64"))


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_steers_a_small_network(name):
    params = {
        "a": {"kernel": gaussian((3, 3, 8, 8))},
        "b": {"kernel": gaussian((3, 3, 8, 16)) ** 3},
    }
    transformation = temp_balance("tb_sigmoid", metric=name, refresh_every=1)
    updates, state = first(transformation, params)
    metric = METRICS[name]()
    for layer in params:
        expected = metric(params[layer]["kernel"].reshape(9, 8, -1))
        np.testing.assert_allclose(state.alphas[f"{layer}/kernel"], expected, rtol=1e-9)
        np.testing.assert_allclose(
            np.unique(updates[layer]["kernel"]), state.scales[f"{layer}/kernel"]
        )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: balance("linaer"), "assignment='linaer' is unknown: did you mean 'linear'"),
        (lambda: temp_balance(metric="ww", refresh_every=1), "metric='ww' is unknown: choose"),
        (lambda: balance(low=2.0, high=1.0), r"low=2.0, high=1.0: choose 0 <= low <= high"),
        (lambda: balance(tuned="middle"), "tuned='middle': choose"),
        (lambda: balance(tuned="inner"), "needs layout"),
        (lambda: balance(lambda a: a, low=0.1), "go to a named assignment"),
        (lambda: balance(None), "assignment=None: choose one of .* or a function"),
        (lambda: first(balance(jnp.max), network()), r"shape \(\) for alphas of shape \(4,\)"),
        (lambda: temp_balance(metric=3, refresh_every=1), "metric=3: choose one of .* a function"),
        (lambda: first(balance(metric=jnp.abs), network()), "metric gives shape .* one number"),
        (lambda: balance(min_eigenvalues="50"), "min_eigenvalues='50' is not an integer"),
        (lambda: balance(layout=3), "layout=3: pass a sequence of blocks"),
        (lambda: balance(layout=(), tuned="inner"), "layout has no block with a kernel"),
        (lambda: balance(layout="ab"), "layout has no block with a kernel"),
        (lambda: balance(layout=LAYOUT).init({"x": network()}), "no kernel at 'c/kernel'.*x/a"),
        (lambda: temp_balance(refresh_every=0), "refresh_every=0: choose"),
        (lambda: temp_balance(refresh_every=1.5), "refresh_every=1.5 is not an integer: choose"),
        (lambda: balance(shuffle_key=0), "key=0 is no random key"),
        (lambda: balance(min_eigenvalues=99).init(network()), "min_eigenvalues=99"),
        (lambda: balance().update(network(), balance().init(network())), "params are measured"),
    ],
)
def test_misuse_names_the_argument_and_the_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call()
