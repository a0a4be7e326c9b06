"""Parameters become named matrices and the blocks of a graph."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spectral_jax.weights import (
    Block,
    edges,
    graph_weights,
    layout,
    map_by_shape,
    matrices,
    named_leaves,
    places,
)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def chain(*widths):
    pairs = zip(widths, widths[1:], strict=False)
    return {
        "layers": {
            str(i): {"kernel": normal(i, m, n), "bias": normal(i, n)}
            for i, (m, n) in enumerate(pairs)
        }
    }


CONV_NET = {
    "conv": {"kernel": normal(0, 3, 3, 2, 4), "bias": normal(1, 4)},
    "norm": {"scale": normal(2, 4), "bias": normal(3, 4)},
    "head": {"kernel": normal(4, 6 * 4, 5), "bias": normal(5, 5)},
}
CONV_STATS = {"norm": {"mean": normal(6, 4), "var": jnp.square(normal(7, 4))}}
CONV_LAYOUT = (
    Block("conv/kernel", 0, 1, norm="norm"),
    Block("head/kernel", 1, 2, positions=6),
)


def test_layers_come_in_natural_order():
    params = chain(*[3] * 13)
    assert list(matrices(params)) == [f"layers/{i}/kernel" for i in range(12)]


def test_a_variable_and_what_is_in_it_have_one_name():
    model = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(0)))
    variables = nnx.state(model, nnx.Param)
    names = ["layers/0/bias", "layers/0/kernel", "layers/1/bias", "layers/1/kernel"]
    assert list(named_leaves(variables)) == list(named_leaves(nnx.as_pure(variables))) == names
    assert list(named_leaves({"value": normal(0, 2, 2)})) == ["value"]


def test_a_list_of_arrays_is_a_network_too():
    weights = [normal(0, 3, 4), normal(1, 4, 2)]
    assert layout(weights) == (Block("0", 0, 1), Block("1", 1, 2))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_product_of_narrow_factors_keeps_their_rank(dtype):
    factors = {"lora_a": normal(0, 30, 3).astype(dtype), "lora_b": normal(1, 3, 20).astype(dtype)}
    (found,) = matrices(factors).values()
    values = np.linalg.svd(np.asarray(found.matrix, float), compute_uv=False)
    assert values[3] < 1e-5 * values[0]


def test_a_matrix_by_itself_is_a_network_too():
    found = matrices(normal(0, 4, 3))
    assert [(name, weight.kind, weight.matrix.shape) for name, weight in found.items()] == [
        ("", "dense", (4, 3))
    ]


def test_numbers_of_python_among_the_parameters_are_no_kernels():
    params = {"fc": {"kernel": np.ones((2, 3))}, "temperature": 1.0, "steps": 3}
    assert list(matrices(params)) == ["fc/kernel"] == list(places(named_leaves(params)))
    assert [block.path for block in layout(params)] == ["fc/kernel"]


def test_biases_and_norms_are_no_matrices():
    assert list(matrices(CONV_NET)) == ["conv/kernel", "head/kernel"]


@pytest.mark.parametrize(
    "conv, shape", [("positions", (9, 2, 4)), ("flattened", (18, 4)), ("channels", (2, 4))]
)
def test_a_convolution_has_three_views(conv, shape):
    kernel = CONV_NET["conv"]["kernel"]
    view = matrices(CONV_NET, conv=conv)["conv/kernel"]
    assert (view.kind, view.matrix.shape) == ("conv", shape)
    weighed = np.abs(view.matrix) if conv == "channels" else np.square(view.matrix)
    expected = np.abs(kernel) if conv == "channels" else np.square(kernel)
    np.testing.assert_allclose(weighed.sum(), expected.sum(), rtol=1e-6)


def test_views_agree_on_which_entry_is_which():
    kernel = CONV_NET["conv"]["kernel"]
    positions = matrices(CONV_NET)["conv/kernel"].matrix
    flattened = matrices(CONV_NET, conv="flattened")["conv/kernel"].matrix
    assert positions[3 * 1 + 2, 0, 3] == flattened[2 * (3 * 1 + 2), 3] == kernel[1, 2, 0, 3]


def test_dense_kernels_keep_their_sign_and_chain():
    params = chain(4, 6, 3)
    weights = graph_weights(params, layout(params))
    assert edges(layout(params)) == ((0, 1), (1, 2))
    for i, weight in enumerate(weights):
        np.testing.assert_array_equal(weight, params["layers"][str(i)]["kernel"])


@pytest.mark.parametrize("conv_norm, order", [("l1", 1), ("l2", 2)])
def test_channels_are_joined_by_the_norm_of_their_kernel(conv_norm, order):
    conv, head = graph_weights(CONV_NET, CONV_LAYOUT, conv_norm=conv_norm, batch_stats=CONV_STATS)
    scale = np.abs(CONV_NET["norm"]["scale"]) / np.sqrt(CONV_STATS["norm"]["var"] + 1e-5)
    for i, o in np.ndindex(2, 4):
        kernel = np.ravel(CONV_NET["conv"]["kernel"][:, :, i, o])
        np.testing.assert_allclose(conv[i, o], np.linalg.norm(kernel, order) * scale[o], rtol=1e-5)
    for channel, unit in np.ndindex(4, 5):
        rows = [position * 4 + channel for position in range(6)]
        joined = CONV_NET["head"]["kernel"][np.array(rows), unit]
        np.testing.assert_allclose(head[channel, unit], np.linalg.norm(joined, order), rtol=1e-5)


@pytest.mark.parametrize(
    "conv_norm, scale, dtype",
    [
        ("l1", 1e-30, "float32"),
        ("l2", 1e-25, "float32"),
        ("l2", 1e25, "float32"),
        ("l2", 1e-3, "float16"),
    ],
)
def test_channels_are_joined_at_any_scale(conv_norm, scale, dtype):
    kernel = CONV_NET["conv"]["kernel"]
    params = {"conv": {"kernel": (scale * kernel).astype(dtype)}}
    (found,) = graph_weights(params, (Block("conv/kernel", 0, 1),), conv_norm=conv_norm)
    order = {"l1": 1, "l2": 2}[conv_norm]
    expected = scale * np.linalg.norm(np.asarray(kernel, float).reshape(9, 2, 4), order, axis=0)
    np.testing.assert_allclose(np.asarray(found, float), expected, rtol=2e-3)


@pytest.mark.parametrize("conv_norm", ["l1", "l2"])
def test_the_gradient_at_a_zero_kernel_is_zero(conv_norm):
    params = {**CONV_NET, "conv": {"kernel": CONV_NET["conv"]["kernel"].at[:, :, 1, 2].set(0)}}

    def total(params):
        blocks = graph_weights(params, CONV_LAYOUT, conv_norm=conv_norm, batch_stats=CONV_STATS)
        return sum(jnp.sum(block) for block in blocks)

    gradient = jax.grad(total)(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert not gradient["conv"]["kernel"][:, :, 1, 2].any()
    assert gradient["conv"]["kernel"][:, :, 0, 2].all()


def test_an_identity_skip_joins_equal_channels_and_pads_new_ones():
    params = {"a": {"kernel": normal(0, 2, 3)}, "b": {"kernel": normal(1, 3, 3)}}
    same = (Block("a/kernel", 0, 1), Block("b/kernel", 1, 2), Block(None, 1, 2))
    np.testing.assert_array_equal(graph_weights(params, same)[2], np.ones(3))
    wider = (Block("a/kernel", 0, 1), Block("b/kernel", 1, 2), Block(None, 0, 2))
    np.testing.assert_array_equal(graph_weights(params, wider)[2], np.eye(2, 3))


def test_stacked_networks_are_vmapped():
    seeds = [jax.tree.map(lambda leaf, s=s: leaf * s, CONV_NET) for s in (1.0, 2.0)]

    def weigh(params):
        return graph_weights(params, CONV_LAYOUT, conv_norm="l2", batch_stats=CONV_STATS)

    stacked = jax.vmap(weigh)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds))
    for i, params in enumerate(seeds):
        for batched, single in zip(stacked, weigh(params), strict=True):
            np.testing.assert_allclose(batched[i], single, rtol=1e-6)


def test_a_layout_is_a_static_argument():
    weigh = jax.jit(graph_weights, static_argnums=1)
    jitted = weigh(CONV_NET, CONV_LAYOUT, batch_stats=CONV_STATS)
    for ours, eager in zip(
        jitted, graph_weights(CONV_NET, CONV_LAYOUT, batch_stats=CONV_STATS), strict=True
    ):
        np.testing.assert_allclose(ours, eager, rtol=1e-6)


MISUSES = {
    "no kernel": (lambda: matrices({"bias": normal(0, 3)}), "params: no leaf with two or more"),
    "unknown view": (lambda: matrices(CONV_NET, conv="rows"), "conv='rows': choose"),
    "stacked": (
        lambda: matrices({"w": normal(0, 2, 3, 4)}),
        r"'w' has shape \(2, 3, 4\).*'stacked'",
    ),
    "chain of convolutions": (lambda: layout(CONV_NET), "'conv/kernel' is a convolution"),
    "widths do not chain": (
        lambda: layout({"a": normal(0, 3, 4), "b": normal(1, 5, 2)}),
        "'a' has 4 outputs but 'b' has 5 inputs",
    ),
    "complex, in a chain": (
        lambda: layout({"a": normal(0, 3, 4), "b": normal(1, 4, 2).astype(complex)}),
        "'b' has dtype complex",
    ),
    "integers, in a graph": (
        lambda: graph_weights([jnp.ones((3, 4), jnp.int8)], (Block("0", 0, 1),)),
        "'0' has dtype int8",
    ),
    "axes that are not there": (
        lambda: graph_weights([normal(0, 3, 4)], (Block("0", 0, 1, axes=(0, 1, 2)),)),
        r"'0' has shape \(3, 4\), not the 3 axes",
    ),
    "groups disagree": (
        lambda: graph_weights(
            [normal(0, 3, 4), normal(1, 5, 2)], (Block("0", 0, 1), Block("1", 1, 2))
        ),
        "group 1 has 4 nodes in '0' but 5 in '1'",
    ),
    "missing kernel": (
        lambda: graph_weights(CONV_NET, (Block("convs/kernel", 0, 1),)),
        "no leaf at 'convs/kernel'; did you mean 'conv/kernel'",
    ),
    "missing statistics": (
        lambda: graph_weights(CONV_NET, CONV_LAYOUT),
        "batch_stats is needed to fold 'norm'",
    ),
    "rows are not positions times channels": (
        lambda: graph_weights(CONV_NET, (Block("head/kernel", 0, 1, positions=7),)),
        "'head/kernel' has 24 rows, not a multiple of positions=7",
    ),
    "unknown norm": (
        lambda: graph_weights(CONV_NET, CONV_LAYOUT, conv_norm="max"),
        "conv_norm='max': choose",
    ),
    "a skip from nowhere": (
        lambda: graph_weights([normal(0, 3, 4)], (Block("0", 0, 1), Block(None, 1, 2))),
        "skip 1 -> 2 touches group 2",
    ),
    "only skips": (
        lambda: graph_weights([normal(0, 3, 4)], (Block(None, 0, 1),)),
        "no block has a kernel",
    ),
}


@pytest.mark.parametrize("misuse, message", MISUSES.values(), ids=MISUSES)
def test_misuse_is_named(misuse, message):
    with pytest.raises(ValueError, match=message):
        misuse()


def counted(function):
    """The function, and a list of what it was called with: under ``vmap`` once a batch."""
    calls = []

    def called(x):
        calls.append(x)
        return function(x)

    return called, calls


def test_a_function_of_all_matrices_is_traced_once_a_shape_and_dtype():
    found = {"a": np.ones((2, 3)), "b": np.ones((3, 2)), "c": 2 * np.ones((2, 3))}
    found["d"] = np.ones((2, 3), np.int32)
    total, calls = counted(jnp.sum)
    assert map_by_shape(found, total) == {"a": 6, "b": 6, "c": 12, "d": 6}
    assert [call.shape for call in calls] == [(2, 3), (3, 2), (2, 3)]
    assert list(map_by_shape(found, jnp.sum)) == ["a", "b", "c", "d"]
    assert map_by_shape({}, jnp.sum) == {}


def test_a_function_that_gives_no_array_is_told_so():
    with pytest.raises(ValueError, match="function gives None, in which there is no array"):
        map_by_shape({"a": jnp.ones((2, 3))}, lambda matrix: None)


def test_a_mask_beside_a_matrix_stays_a_mask():
    pairs = {n: (jnp.ones((n, n)), jnp.eye(n, dtype=bool)) for n in (2, 3)}
    found = map_by_shape(pairs, lambda pair: jnp.sum(pair[0], where=~pair[1]))
    assert found == {2: 2, 3: 6}


def test_a_batch_of_equal_shapes_has_an_end(monkeypatch):
    monkeypatch.setattr("spectral_jax.weights._by_shape.ENTRIES", 12)
    total, calls = counted(jnp.sum)
    found = {i: i * np.ones((2, 3)) for i in range(5)} | {"large": np.ones((4, 4))}
    assert map_by_shape(found, total) == {0: 0, 1: 6, 2: 12, 3: 18, 4: 24, "large": 16}
    assert len(calls) == 4  # twice two of 2 x 3, the fifth, and one that is more than a batch


def test_a_matrix_may_bring_a_key_and_come_back_in_parts():
    keys = jax.random.split(jax.random.key(0), 3)
    found = {i: (normal(i, 2, 2), key) for i, key in enumerate(keys)}

    def draw(pair):
        matrix, key = pair
        return {"flipped": matrix * jax.random.rademacher(key, (2, 2)), "corner": matrix[0, 0]}

    for i, parts in jax.jit(lambda: map_by_shape(found, draw))().items():
        jax.tree.map(np.testing.assert_array_equal, parts, draw(found[i]))


def test_matrices_without_names_are_refused():
    with pytest.raises(ValueError, match=r"matrices is a list: pass a dict, as weights.matrices"):
        map_by_shape([np.ones((2, 2))], jnp.sum)
