"""Networks are pure functions of plain dicts, and say how their graph is laid out."""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from models import resnet
from spectral_jax.weights import BATCH_NORM_EPSILON, Block, edges, graph_weights

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = dict(input_shape=(8, 8, 3), classes=10)
EXAMPLES = {
    "mlp": dict(name="mlp", input_shape=(8, 8), classes=10, hidden=(12, 9), dropout=0.4),
    "lenet": dict(name="lenet", input_shape=(28, 28), classes=10, dropout=0.4),
    "resnet": dict(name="resnet", depth=8, **SMALL),
    "resnet-b": dict(name="resnet", depth=8, shortcut="B", **SMALL),
    "resnet-18": dict(name="resnet_imagenet", depth=18, stem="cifar", width=4, **SMALL),
    "vgg": dict(name="vgg", input_shape=(32, 32, 3), classes=10, depth=11, width=4),
    "wide-resnet": dict(name="wide_resnet", depth=10, widen=1, **SMALL),
    "gpt": dict(name="gpt", input_shape=(6,), classes=10, width=16, depth=1, heads=2),
}
every_model = pytest.mark.parametrize("name", EXAMPLES)
# What holds for these holds for the rest, which compile for longer.
shallow_model = pytest.mark.parametrize("name", ["mlp", "lenet", "resnet", "gpt"])
uniform_model = pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "gpt"])
graph_model = pytest.mark.parametrize(
    "name", [name for name in EXAMPLES if name not in ("gpt", "wide-resnet")]
)


@cache
def example(name):
    """A small network of each kind, its initial trees and a batch."""
    config = EXAMPLES[name]
    net = models.network(**config)
    params, state = net.init(jax.random.key(0))
    shape = (4, *config["input_shape"])
    if name == "gpt":
        return net, params, state, jax.random.randint(jax.random.key(9), shape, 0, 10)
    return net, params, state, jax.random.normal(jax.random.key(9), shape)


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def parameter_count(**config):
    init = models.network(**config).init
    params, _ = jax.eval_shape(init, jax.random.key(0))
    return count(params)


def train_step(net, params, state, x, key):
    return net.apply(params, state, x, train=True, key=key)


# The pure surface


@every_model
def test_trees_are_plain_dicts_of_arrays_with_string_keys(name):
    def check(tree):
        if type(tree) is dict:
            assert all(type(key) is str for key in tree)
            return all(check(value) for value in tree.values())
        return isinstance(tree, jax.Array) and tree.dtype == jnp.float32

    _, params, state, _ = example(name)
    assert check(params) and check(state)


@every_model
def test_logits_and_new_state_keep_shape_and_structure(name):
    net, params, state, x = example(name)
    logits, new = jax.eval_shape(partial(train_step, net), params, state, x, jax.random.key(1))
    assert logits.shape == ((4, 6, 10) if name == "gpt" else (4, 10))
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)


@every_model
def test_the_last_representation_is_what_the_head_reads(name):
    net, params, state, x = example(name)
    look = partial(net.features, points=(*net.representations, ""), pool="positions")
    found = jax.eval_shape(look, params, state, x)
    assert set(found) == {*net.representations, ""} and len(found) > 2
    rows, head = found[net.representations[-1]], net.head(params)
    assert found[""].shape == (len(rows), 10) and head.kernel.shape == (rows.shape[1], 10)
    assert (head.bias is None) == (name == "gpt")


@pytest.mark.parametrize("name", ["mlp", "gpt"])
def test_the_head_makes_the_outputs_of_the_last_representation(name):
    net, params, state, x = example(name)
    last = net.representations[-1]
    look = partial(net.features, points=(last, ""), pool="positions")
    found, head = jax.jit(look)(params, state, x), net.head(params)
    bias = 0 if head.bias is None else head.bias
    np.testing.assert_allclose(found[last] @ head.kernel + bias, found[""], atol=1e-5)
    assert (found[last].min() == 0) == (name == "mlp")  # behind the ReLU


@shallow_model
def test_a_step_compiles_once(name):
    net, params, state, x = example(name)
    step = jax.jit(partial(train_step, net))
    _, state = step(params, state, x, jax.random.key(1))
    step(
        jax.tree.map(lambda p: jax.device_put(-np.asarray(p)), params), state, x, jax.random.key(2)
    )
    assert step._cache_size() == 1


@shallow_model
def test_seeds_vmapped_equal_a_loop(name):
    net, _, _, x = example(name)
    keys, masks = jax.random.split(jax.random.key(0), 2), jax.random.split(jax.random.key(1), 2)
    step = jax.jit(partial(train_step, net))
    stacked = jax.vmap(net.init)(keys)
    batched = jax.jit(jax.vmap(step, in_axes=(0, 0, None, 0)))(*stacked, x, masks)
    for i in range(2):
        single = step(*net.init(keys[i]), x, masks[i])
        for ours, theirs in zip(jax.tree.leaves(batched), jax.tree.leaves(single), strict=True):
            np.testing.assert_allclose(ours[i], theirs, atol=1e-5)


def test_init_by_name_maps_over_keys():
    keys = jax.random.split(jax.random.key(0), 2)
    draw = partial(models.init, "mlp", input_shape=(5,), classes=3, hidden=(4,))
    params, state = jax.vmap(draw)(keys)
    assert params["layers"]["0"]["kernel"].shape == (2, 5, 4)
    assert state == {}
    np.testing.assert_array_equal(
        params["layers"]["1"]["kernel"][1], draw(keys[1])[0]["layers"]["1"]["kernel"]
    )


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in ("resnet", "resnet-18")])
def test_every_parameter_has_a_gradient(name):
    net, params, state, x = example(name)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(net.apply(p, state, x)[0] ** 2)))(params)
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(gradient))


@shallow_model
def test_graph_mode_and_tree_mode_trace_the_same_programs(name):
    _, params, state, x = example(name)

    def programs(graph):
        with nnx.set_graph_mode(graph):
            net = models.network(**EXAMPLES[name])
            step = jax.jit(partial(train_step, net))
            return (
                net.init.lower(jax.random.key(0)).as_text(),
                step.lower(params, state, x, jax.random.key(1)).as_text(),
            )

    assert programs(graph=True) == programs(graph=False)


@shallow_model
def test_a_built_model_and_its_functional_agree(name):
    model, x = models.build(rngs=nnx.Rngs(0), **EXAMPLES[name]), example(name)[3]
    apply, params, state, _ = models.functional(model)
    itself = nnx.jit(lambda model, x: model(x))(model, x)
    np.testing.assert_allclose(jax.jit(apply)(params, state, x)[0], itself, atol=1e-5)


def test_the_compiled_step_contains_no_more_than_the_arithmetic():
    """NNX is gone after tracing: the same program as layers written out by hand."""
    net = models.network("mlp", input_shape=(8,), classes=3, hidden=(5,))
    params, state = net.init(jax.random.key(0))

    def by_hand(params, state, x):
        first, second = params["layers"]["0"], params["layers"]["1"]
        hidden = jax.nn.relu(x @ first["kernel"] + first["bias"])
        return hidden @ second["kernel"] + second["bias"], state

    def operations(function):
        return jax.jit(function).lower(params, state, jnp.ones((2, 8))).cost_analysis()["flops"]

    assert operations(net.apply) == operations(by_hand)


# Initialisation


@uniform_model
def test_kernels_and_biases_are_uniform_within_the_torch_bound(name):
    def is_layer(node):
        return isinstance(node, dict) and "kernel" in node

    nodes = jax.tree.leaves(example(name)[1], is_leaf=is_layer)
    layers = [node for node in nodes if is_layer(node)]
    assert layers
    for layer in layers:
        bound = 1 / math.sqrt(math.prod(layer["kernel"].shape[:-1]))
        for leaf in layer.values():
            assert np.max(np.abs(leaf)) <= bound
            if leaf.size > 100:
                np.testing.assert_allclose(np.max(leaf), bound, rtol=0.1)
                np.testing.assert_allclose(np.std(leaf), bound / math.sqrt(3), rtol=0.15)


def test_a_gain_scales_normal_kernels_to_the_inputs_and_leaves_biases_at_zero():
    wide = models.network("mlp", input_shape=(50,), classes=10, hidden=(400,), gain=3.0)
    layers = wide.init(jax.random.key(0))[0]["layers"]
    for name, inputs in (("0", 50), ("1", 400)):
        kernel = layers[name]["kernel"]
        np.testing.assert_allclose(np.std(kernel), 3 / math.sqrt(inputs), rtol=0.05)
        assert np.max(np.abs(kernel)) > 2 * np.std(kernel)
        assert not layers[name]["bias"].any()
    with pytest.raises(ValueError, match="gain=0"):
        models.network("mlp", input_shape=(4,), classes=2, gain=0.0)


# Architectures


@pytest.mark.parametrize("widths", [(784, 500, 500, 500, 10), (20531, 50, 50, 50, 5), (49, 10)])
def test_mlp_parameter_count(widths):
    first, *hidden, classes = widths
    expected = sum(m * n + n for m, n in zip(widths, widths[1:], strict=False))
    config = dict(name="mlp", input_shape=(first,), classes=classes, hidden=tuple(hidden))
    assert parameter_count(**config) == expected


@pytest.mark.parametrize(
    "input_shape, expected", [((28, 28), 61_706), ((32, 32), 61_706), ((32, 32, 3), 62_006)]
)
def test_lenet_parameter_count(input_shape, expected):
    assert parameter_count(name="lenet", input_shape=input_shape, classes=10) == expected


def test_lenet_of_tanh_has_the_published_parameters_and_no_padding():
    """44,426: arXiv 2110.14163's LeNet."""
    config = dict(name="lenet_tanh", input_shape=(28, 28), classes=10)
    assert parameter_count(**config) == 44_426
    with pytest.raises(ValueError, match="too small"):
        models.network("lenet_tanh", input_shape=(12, 12), classes=10)


@pytest.mark.parametrize("shape", [(2, 6, 4, 3), (1, 5, 7, 2), (1, 1, 1, 1)])
def test_pooling_by_slices_is_that_of_flax_and_so_is_its_derivative(shape):
    x, pooled = jax.random.normal(jax.random.key(0), shape), models.layers.max_pool
    peer = partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2))
    np.testing.assert_array_equal(pooled(x), peer(x))
    slopes = [jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x))))(x) for f in (pooled, peer)]
    np.testing.assert_array_equal(*slopes)


@pytest.mark.parametrize("depth, expected", [(8, 75_290), (20, 269_722), (32, 464_154)])
def test_resnet_with_option_a_shortcuts_parameter_count(depth, expected):
    n = (depth - 2) // 6
    stages = [(16, 16), (16, 32), (32, 64)]
    convolutions = sum(9 * i * o + (2 * n - 1) * 9 * o * o for i, o in stages)
    norms = 2 * 16 + sum(2 * n * 2 * o for _, o in stages)
    assert 9 * 3 * 16 + convolutions + norms + 64 * 10 + 10 == expected
    config = dict(name="resnet", input_shape=(32, 32, 3), classes=10, depth=depth)
    assert parameter_count(**config) == expected


# torchvision's ResNets and kuangliu's on CIFAR, VGG less its superfluous biases, arXiv 1605.07146.
PUBLISHED = [
    (dict(name="resnet", depth=20, shortcut="B"), 272_474),
    (dict(name="resnet_imagenet", depth=18, classes=1000), 11_689_512),
    (dict(name="resnet_imagenet", depth=34, classes=1000), 21_797_672),
    (dict(name="resnet_imagenet", depth=50, classes=1000), 25_557_032),
    (dict(name="resnet_imagenet", depth=18, stem="cifar"), 11_173_962),
    (dict(name="vgg", depth=11), 9_231_114 - 2_752),
    (dict(name="vgg", depth=13), 9_416_010 - 2_944),
    (dict(name="vgg", depth=16), 14_728_266 - 4_224),
    (dict(name="vgg", depth=19), 20_040_522 - 5_504),
    (dict(name="wide_resnet", depth=28, widen=10), 36_479_194),
    (dict(name="wide_resnet", depth=16, widen=8), 10_961_370),
]


@pytest.mark.parametrize(
    "config, expected",
    PUBLISHED,
    ids=["-".join(map(str, config.values())) for config, _ in PUBLISHED],
)
def test_published_parameter_counts(config, expected):
    assert parameter_count(**{"input_shape": (32, 32, 3), "classes": 10, **config}) == expected


@pytest.mark.parametrize(
    "stem, side, expected",
    [
        ("imagenet", 224, [56, 56, 28, 28, 14, 14, 7, 7]),
        ("cifar", 32, [32, 32, 16, 16, 8, 8, 4, 4]),
    ],
)
def test_each_stage_halves_what_the_stem_leaves(stem, side, expected, monkeypatch):
    sides = []
    whole = resnet.ResidualBlock.__call__

    def watched(self, x, *, train):
        y = whole(self, x, train=train)
        sides.append(y.shape[1])
        return y

    config = dict(input_shape=(side, side, 3), classes=10, depth=18, width=1, stem=stem)
    net = models.network("resnet_imagenet", **config)
    monkeypatch.setattr(resnet.ResidualBlock, "__call__", watched)
    trees = jax.eval_shape(net.init, jax.random.key(0))
    jax.eval_shape(net.apply, *trees, jnp.ones((1, side, side, 3)))
    assert sides == expected


def test_a_bottleneck_narrows_strides_and_widens():
    block = resnet.ResidualBlock((8, 2, 2, 8), (1, 3, 1), stride=2, projects=True, rngs=nnx.Rngs(0))
    kernels = [getattr(block, name) for name in ("conv1", "conv2", "conv3", "shortcut")]
    assert [kernel.kernel.shape for kernel in kernels] == [
        (1, 1, 8, 2),
        (3, 3, 2, 2),
        (1, 1, 2, 8),
        (1, 1, 8, 8),
    ]
    assert [kernel.strides for kernel in kernels] == [1, 2, 1, 2]
    assert block.layout("b", 4) == (
        Block("b/conv1/kernel", 4, 5, norm="b/norm1"),
        Block("b/conv2/kernel", 5, 6, norm="b/norm2"),
        Block("b/conv3/kernel", 6, 7, norm="b/norm3"),
        Block("b/shortcut/kernel", 4, 7, norm="b/shortcut_norm"),
    )


def test_a_wide_block_is_norm_relu_convolution_twice():
    net, params, state, x = trained("wide-resnet")

    def norm(x, path):
        scale, stats = at(params, path), at(state, path)
        return (x - stats["mean"]) / np.sqrt(stats["var"] + BATCH_NORM_EPSILON) * scale[
            "scale"
        ] + scale["bias"]

    def convolve(x, path, stride=1):
        kernel = at(params, path)["kernel"]
        side = kernel.shape[0] // 2
        return jax.lax.conv_general_dilated(
            *(x, kernel, (stride, stride), [(side, side)] * 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    y = convolve(x, "stem")
    for k, stride in enumerate((1, 2, 2)):
        block = f"blocks/{k}"
        active = jax.nn.relu(norm(y, f"{block}/norm1"))
        inner = jax.nn.relu(norm(convolve(active, f"{block}/conv1", stride), f"{block}/norm2"))
        skip = convolve(active, f"{block}/shortcut", stride) if k else y
        y = convolve(inner, f"{block}/conv2") + skip
    y = jax.nn.relu(norm(y, "norm")).mean(axis=(1, 2))
    expected = y @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(jax.jit(net.apply)(params, state, x)[0], expected, rtol=1e-4)


def test_same_padding_reads_the_pixels_that_keras_reads():
    """Of an even side, a strided 3 x 3 window starts on the pixel itself, not one before it."""
    same = resnet.ResidualBlock(
        (1, 1, 1), (3, 3), stride=2, projects=False, padding="same", rngs=nnx.Rngs(0)
    )
    symmetric = resnet.ResidualBlock((1, 1, 1), (3, 3), stride=2, projects=False, rngs=nnx.Rngs(0))
    corner = np.zeros((3, 3, 1, 1), np.float32)
    corner[0, 0] = 1
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    for block, expected in ((same, [[0, 2], [8, 10]]), (symmetric, [[0, 0], [0, 5]])):
        block.conv1.kernel.set_value(jnp.asarray(corner))
        np.testing.assert_array_equal(block.conv1(image)[0, ..., 0], expected)


def test_lenet_pads_small_digits_to_the_original_input():
    small = models.network("lenet", input_shape=(28, 28), classes=10)
    large = models.network("lenet", input_shape=(32, 32), classes=10)
    params, state = small.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 28, 28))
    padded = jnp.pad(x, ((0, 0), (2, 2), (2, 2)))
    np.testing.assert_array_equal(
        small.apply(params, state, x)[0], large.apply(params, state, padded)[0]
    )


# Dropout and batch-norm


@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_dropout_is_off_in_evaluation_and_random_in_training(name):
    net, params, state, x = example(name)
    without = models.network(**{**EXAMPLES[name], "dropout": 0.0})
    evaluated = net.apply(params, state, x, key=jax.random.key(1))[0]
    np.testing.assert_array_equal(evaluated, without.apply(params, state, x)[0])
    first, again, other = (
        train_step(net, params, state, x, jax.random.key(seed))[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other) and not np.allclose(first, evaluated)


def test_dropout_zeroes_at_its_rate_and_keeps_the_mean():
    net = models.network("mlp", input_shape=(1,), classes=1, hidden=(20_000,), dropout=0.4)
    params = {
        "layers": {
            "0": {"kernel": jnp.ones((1, 20_000)), "bias": jnp.zeros(20_000)},
            "1": {"kernel": jnp.full((20_000, 1), 1 / 20_000), "bias": jnp.zeros(1)},
        }
    }
    logits, _ = train_step(net, params, {}, jnp.ones((1, 1)), jax.random.key(0))
    np.testing.assert_allclose(logits, 1.0, atol=0.03)
    assert abs(float(logits[0, 0]) - 1) > 1e-4


@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_a_rate_that_a_call_is_given_drops_what_one_that_was_built_in_does(name):
    _, params, state, x = example(name)
    net = models.network(**{**EXAMPLES[name], "dropout": None})

    @jax.jit
    def given(numbers):
        key = jax.random.key(1)
        return net.apply(params, state, x, train=True, key=key, dropout=numbers)[0]

    for rate in (0.1, 0.4):  # one program: the numbers are traced
        built_in = models.network(**{**EXAMPLES[name], "dropout": rate})
        wanted = jax.jit(lambda: train_step(built_in, params, state, x, jax.random.key(1))[0])()  # noqa: B023
        np.testing.assert_array_equal(given(models.dropout(rate)), wanted)
    with pytest.raises(ValueError, match=r"dropout=None needs the rate: pass dropout=models.drop"):
        train_step(net, params, state, x, jax.random.key(1))


@pytest.mark.parametrize("rate", [1, 1.0, -0.1, math.nan])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match=f"rate={rate} is out of range"):
        models.dropout(rate)


@pytest.mark.parametrize("built_in", [0.0, 0.5])
def test_a_rate_that_would_be_ignored_is_refused_in_training_and_zero_drops_nothing(built_in):
    _, params, state, x = example("mlp")
    choices = {**EXAMPLES["mlp"], "dropout": built_in}
    options = {"train": True, "key": jax.random.key(1), "dropout": models.dropout(0)}
    with pytest.raises(ValueError, match=f"built with dropout={built_in}, which it would ignore"):
        models.network(**choices).apply(params, state, x, **options)
    net = models.network(**{**choices, "dropout": None})
    np.testing.assert_array_equal(
        net.apply(params, state, x, **options)[0], net.apply(params, state, x)[0]
    )


def test_training_with_dropout_asks_for_a_key():
    net, params, state, x = example("mlp")
    with pytest.raises(ValueError, match="dropout needs a random key: pass key="):
        net.apply(params, state, x, train=True)


def test_hidden_layers_drop_out_independently():
    net = models.network("mlp", input_shape=(64,), classes=64, hidden=(64, 64), dropout=0.5)
    identity = {"kernel": jnp.eye(64), "bias": jnp.zeros(64)}
    params = {"layers": {str(i): identity for i in range(3)}}
    logits, _ = train_step(net, params, {}, jnp.ones((100, 64)), jax.random.key(0))
    assert set(np.unique(logits)) == {0.0, 4.0}
    np.testing.assert_allclose(np.mean(logits > 0), 0.25, atol=0.03)


def test_batch_statistics_move_in_training_only():
    net, params, state, x = example("resnet")
    _, same = jax.jit(net.apply)(params, state, x)
    _, moved = jax.jit(partial(train_step, net))(params, state, x, None)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, same, state))
    stem = jax.lax.conv_general_dilated(
        x, params["stem"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(
        moved["stem_norm"]["mean"], 0.1 * stem.mean(axis=(0, 1, 2)), atol=1e-6
    )
    np.testing.assert_allclose(
        moved["stem_norm"]["var"], 0.9 + 0.1 * stem.var(axis=(0, 1, 2)), rtol=1e-5
    )


def trained(name):
    """Parameters with every batch-norm away from its initial identity."""
    net, params, state, x = example(name)
    rng = np.random.default_rng(0)

    def perturb(leaf):
        return np.asarray(leaf) + rng.uniform(0.1, 0.5, leaf.shape).astype(np.float32)

    return net, jax.tree.map(perturb, params), jax.tree.map(perturb, state), x


@pytest.mark.parametrize("name", ["resnet", "resnet-b", "resnet-18", "vgg"])
def test_a_network_with_folded_batch_norms_computes_the_same(name):
    """conv(x, K) normalised = conv(x, K gamma / sqrt(var + eps)) up to a bias per channel."""
    net, params, state, x = trained(name)
    apply = jax.jit(net.apply)
    folded = apply(*fold_norms(net.layout, params, state), x)[0]
    np.testing.assert_allclose(folded, apply(params, state, x)[0], rtol=1e-4)


def fold_norms(layout, params, state):
    """Move each scale into its kernel; the norm keeps the shift alone."""
    params, state = jax.tree.map(np.copy, (params, state))
    for block in layout:
        if block.norm is None:
            continue
        layer, norm = at(params, block.path.removesuffix("/kernel")), at(params, block.norm)
        stats = at(state, block.norm)
        scale = norm["scale"] / np.sqrt(stats["var"] + BATCH_NORM_EPSILON)
        layer["kernel"] *= scale
        norm["bias"] -= stats["mean"] * scale
        norm["scale"][:], stats["mean"][:], stats["var"][:] = 1, 0, 1 - BATCH_NORM_EPSILON
    return params, state


def at(tree, path):
    for key in path.split("/"):
        tree = tree[key]
    return tree


def test_graph_weights_fold_the_norms_as_the_network_does():
    net, params, state, _ = trained("resnet-b")
    folded, plain = fold_norms(net.layout, params, state)
    for ours, theirs in zip(
        graph_weights(params, net.layout, batch_stats=state),
        graph_weights(folded, net.layout, batch_stats=plain),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


# Layouts


@graph_model
def test_the_layout_covers_every_kernel_once_and_reaches_the_classes(name):
    net, params, state, _ = example(name)
    weights = jax.eval_shape(
        lambda *trees: graph_weights(trees[0], net.layout, batch_stats=trees[1]), params, state
    )
    found, _ = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in found]
    paths = [block.path for block in net.layout if block.path is not None]
    assert sorted(paths) == sorted(name for name in names if name.endswith("kernel"))
    widths = {}
    for (source, target), weight in zip(edges(net.layout), weights, strict=True):
        assert source < target
        assert widths.setdefault(source, weight.shape[0]) == weight.shape[0]
        assert widths.setdefault(target, weight.shape[-1]) == weight.shape[-1]
    assert sorted(widths) == list(range(len(widths)))
    assert widths[len(widths) - 1] == 10


def test_resnet_skips_carry_the_channels_that_the_block_adds():
    """With every residual branch silent, the body is the skips alone: groups pass through."""
    net, params, state, x = example("resnet")
    params = jax.tree.map(np.array, params)
    for block in params["blocks"].values():
        block["norm2"]["scale"][:] = 0
    stem = jax.lax.conv_general_dilated(
        x, params["stem"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    carried = jax.nn.relu(stem / math.sqrt(1 + BATCH_NORM_EPSILON))[:, ::4, ::4].mean(axis=(1, 2))
    weights = graph_weights(params, net.layout, batch_stats=state)
    for block, weight in zip(net.layout, weights, strict=True):
        if block.path is None:
            carried = carried * weight if weight.ndim == 1 else carried @ weight
    expected = carried @ params["head"]["kernel"] + params["head"]["bias"]
    logits, _ = jax.jit(net.apply)(params, state, x)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "name, reason",
    [("gpt", "attention multiplies"), ("wide-resnet", "a norm before a convolution")],
)
def test_a_network_without_a_graph_says_so_when_its_layout_is_asked_for(name, reason):
    with pytest.raises(ValueError, match=f"has no graph: {reason}"):
        _ = example(name)[0].layout


# Misuse


MISUSES = {
    "unknown model": (dict(name="lanet"), "unknown model name 'lanet': did you mean 'lenet'"),
    "unknown option": (dict(name="resnet", dropout=0.5), "'resnet' has no option 'dropout'"),
    "dropout of one": (dict(name="mlp", dropout=1.0), "dropout=1.0 is out of range"),
    "empty layer": (dict(name="mlp", hidden=(5, 0)), "must be positive"),
    "depth": (dict(name="resnet", depth=18), r"depth=18 is not 6n \+ 2"),
    "activation": (dict(name="mlp", input_shape=(4,), activation="rleu"), "use relu or sigmoid"),
    "large image": (dict(name="lenet", input_shape=(64, 64, 3)), "larger than 32 x 32"),
    "shortcut": (dict(name="resnet", shortcut="C"), "shortcut='C' is unknown: use 'A' or 'B'"),
    "padding": (dict(name="resnet", padding="SAME"), "padding='SAME' is unknown"),
    "imagenet depth": (dict(name="resnet_imagenet", depth=20), "depth=20 is not one of 18, 34, 50"),
    "stem": (dict(name="resnet_imagenet", stem="mnist"), "stem='mnist' is unknown"),
    "no channels": (dict(name="resnet_imagenet", width=0), "width=0 must be positive"),
    "vgg depth": (dict(name="vgg", depth=18), "depth=18 is not one of 11, 13, 16, 19"),
    "vgg width": (dict(name="vgg", width=0, input_shape=(32, 32)), "width=0 must be positive"),
    "small image": (dict(name="vgg"), r"\(28, 28\) is smaller than 32 x 32"),
    "wide depth": (dict(name="wide_resnet", depth=20), r"depth=20 is not 6n \+ 4"),
    "widen": (dict(name="wide_resnet", widen=0), "widen=0 must be positive"),
    "heads": (dict(name="gpt", input_shape=(8,), heads=3), "heads must divide width"),
    "image": (dict(name="gpt"), r"input_shape=\(28, 28\) is not a sequence"),
    "features": (dict(name="resnet", input_shape=(30,)), r"input_shape=\(30,\) is not an image"),
}


@pytest.mark.parametrize("config, message", MISUSES.values(), ids=MISUSES)
def test_misuse_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        models.network(**{"input_shape": (28, 28), "classes": 10, **config})


def test_a_linear_model_ignores_dropout():
    net = models.network("mlp", input_shape=(3,), classes=2, hidden=(), dropout=0.5)
    params, state = net.init(jax.random.key(0))
    expected = params["layers"]["0"]["kernel"][0] + params["layers"]["0"]["bias"]
    logits, _ = train_step(net, params, state, jnp.array([[1.0, 0, 0]]), jax.random.key(0))
    np.testing.assert_allclose(logits[0], expected, rtol=1e-6)


def test_options_are_what_a_model_takes():
    assert models.options("mlp") == ("hidden", "dropout", "activation", "gain")
    assert models.options("resnet") == ("depth", "shortcut", "padding")
