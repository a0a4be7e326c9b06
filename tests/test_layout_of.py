"""A forward pass tells how the layers of a network connect, whatever they are called."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from models.functional import network
from models.traced import layout_of as layout_of_module
from spectral_jax import optim
from spectral_jax.weights import Block, graph_weights, layout, layout_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

HOUSE_MODELS = {
    "mlp": ("mlp", (8, 8), {"hidden": (6, 5)}),
    "lenet": ("lenet", (28, 28), {}),
    "resnet, padded skips": ("resnet", (8, 8, 3), {"depth": 8}),
    "resnet, projected skips": ("resnet", (8, 8, 3), {"depth": 8, "shortcut": "B"}),
}


@pytest.mark.parametrize("name, shape, options", HOUSE_MODELS.values(), ids=HOUSE_MODELS)
def test_the_models_of_the_house_have_the_layout_that_they_say(name, shape, options):
    net = network(name, input_shape=shape, classes=10, **options)
    params, state = jax.eval_shape(net.init, jax.random.key(0))
    x = jnp.ones((2, *shape))
    found = layout_of(lambda p, s, x: net.apply(p, s, x)[0], params, x, batch_stats=state)
    assert found == net.layout


def traced(model, x, **options):
    """The layout of a Linen model, and its parameters by shape."""
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    params, stats = variables.get("params", {}), variables.get("batch_stats", {})

    def function(params, stats, x):
        return model.apply({"params": params, "batch_stats": stats}, x)

    return layout_of(function, params, x, batch_stats=stats, **options)


def linen_model(function):
    """A Linen model of one method, for the length of a test."""

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            return function(x)

    return Model()


IMAGES, TOKENS, FEATURES = jnp.ones((2, 8, 8, 3)), jnp.ones((2, 6), int), jnp.ones((2, 6, 8))


def dense(width, name):
    return linen.Dense(width, name=name)


def conv(width, name, **options):
    return linen.Conv(width, (3, 3), name=name, **options)


def norm(name):
    return linen.BatchNorm(use_running_average=True, name=name)


def widening(x):
    return dense(2, "b")(linen.relu(dense(8, "a")(linen.relu(dense(8, "z")(x)))))


def sounds(x):
    x = linen.max_pool(linen.relu(linen.Conv(4, (5,), name="second")(x)), (2,), (2,))
    x = linen.gelu(norm("norm")(linen.Conv(8, (3,), name="first")(x)))
    return dense(2, "head")(x.reshape(2, -1))


def squeezed(x):
    x = linen.GroupNorm(2)(linen.relu(conv(8, "conv")(x)))
    scale = dense(8, "up")(linen.relu(dense(2, "down")(x.mean((1, 2)))))
    return dense(2, "head")((x * linen.sigmoid(scale)[:, None, None]).mean((1, 2)))


def gated(x):
    h = linen.RMSNorm()(x)
    h = linen.silu(dense(16, "gate")(h)) * dense(16, "up")(h)
    return dense(2, "head")(x + dense(8, "down")(h))


def attending(x):
    x = linen.Embed(11, 8, name="embed")(x)
    h = linen.LayerNorm()(x)
    x = x + linen.MultiHeadDotProductAttention(2, name="attn")(
        h, mask=linen.make_causal_mask(h[..., 0])
    )
    return dense(11, "head")(x)


def pooled(x):
    x = linen.relu(dense(5, "a")(x))
    return dense(2, "head")((jax.nn.softmax(dense(1, "score")(x), axis=1) * x).sum(1))


def upsampled(x):
    x = linen.avg_pool(x, (2, 2), (1, 1), "SAME")
    x = linen.ConvTranspose(4, (2, 2), (2, 2), name="up")(conv(4, "conv", strides=2)(x))
    return conv(2, "head")(jax.image.resize(x, (2, 4, 4, 4), "linear"))


def before_the_kernel(x):
    x = conv(4, "stem")(x)
    return dense(2, "head")((x + conv(4, "conv")(linen.relu(norm("norm")(x)))).mean((1, 2)))


NETWORKS = {
    "names out of order": (widening, FEATURES, [("z", 0, 1), ("a", 1, 2), ("b", 2, 3)]),
    "one dimension": (sounds, FEATURES, [("second", 0, 1), ("first", 1, 2), ("head", 2, 3)]),
    "squeeze and excitation": (
        squeezed,
        IMAGES,
        [("conv", 0, 1), ("down", 1, 2), ("up", 2, 3), (None, 1, 3), ("head", 3, 4)],
    ),
    "a gate and a skip": (
        gated,
        FEATURES,
        [("gate", 0, 1), ("up", 0, 1), ("down", 1, 2), (None, 0, 2), ("head", 2, 3)],
    ),
    "attention": (
        attending,
        TOKENS,
        [
            *[("embed", 0, 1), ("attn/query", 1, 2), ("attn/key", 1, 3), ("attn/value", 1, 4)],
            *[("attn/out", 4, 5), (None, 1, 5), ("head", 5, 6)],
        ],
    ),
    "positions weighed by a unit": (
        pooled,
        FEATURES,
        [("a", 0, 1), ("score", 1, 2), ("head", 1, 3)],
    ),
    "upsampling": (upsampled, IMAGES, [("conv", 0, 1), ("up", 1, 2), ("head", 2, 3)]),
}


@pytest.mark.parametrize("function, x, expected", NETWORKS.values(), ids=NETWORKS)
def test_data_flow_makes_the_blocks(function, x, expected):
    found = traced(linen_model(function), x)
    ends = [(b.path and b.path.rpartition("/")[0], b.source, b.target) for b in found]
    assert ends == expected


def through_the_graph(blocks, weights, x):
    """What arrives at the last group, if every block passes on what its source has."""
    groups = {0: x}
    for block, weight in zip(blocks, weights, strict=True):
        source = groups[block.source]
        passed = source @ weight if weight.ndim == 2 else source * weight
        groups[block.target] = groups.get(block.target, 0) + passed
    return groups[max(groups)]


def skips(p, x):
    first = x @ p["f"]
    second = first + first @ p["e"]
    third = second + (second @ p["d"]) @ p["c"] + first @ p["b"]
    return third @ p["a"] + x @ p["g"]


def all_of_two(p, x):
    left, right = x @ p["f"], x @ p["b"]
    both = left + right
    return (both + left + right + both @ p["e"]) @ p["a"] + left @ p["h"] + right @ p["i"]


def repeated(p, x):
    hidden = x @ p["f"]
    hidden, _ = jax.lax.scan(lambda h, w: (h + h @ w, None), hidden, p["l"]["kernel"])
    return hidden @ p["a"]


@pytest.mark.parametrize("function", [skips, all_of_two, repeated])
def test_a_linear_network_computes_what_its_graph_passes_on(function):
    sizes = {"f": (3, 4), "e": (4, 4), "d": (4, 5), "c": (5, 4), "b": (4, 4), "a": (4, 2)}
    sizes |= {"g": (3, 2), "h": (4, 2), "i": (4, 2)}
    sizes["b"] = (3, 4) if function is all_of_two else (4, 4)
    draw = np.random.default_rng(0).normal
    params = {name: jnp.asarray(draw(size=shape)) for name, shape in sizes.items()}
    params["l"] = {"kernel": jnp.asarray(draw(size=(3, 4, 4))), "bias": jnp.zeros((3, 4))}
    x = jnp.asarray(draw(size=(6, 3)))
    blocks = layout_of(function, params, x)
    passed = through_the_graph(blocks, graph_weights(params, blocks), x)
    np.testing.assert_allclose(passed, function(params, x), rtol=1e-4)


def test_blocks_say_what_the_axes_of_a_kernel_are():
    found = {block.path: block for block in traced(linen_model(attending), TOKENS)}
    assert found["attn/query/kernel"].axes == (0, 1, 2)
    assert found["attn/out/kernel"].axes == (0, 2, 1)
    assert found["head/kernel"].axes is None
    first, second, head = traced(linen_model(sounds), FEATURES)
    assert (first.axes, second.norm, head.positions) == ((1, 1, 1), "norm", 3)


def test_the_kernels_of_attention_are_matrices_of_the_graph():
    model = linen_model(attending)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    draw = np.random.default_rng(0).normal
    params = jax.tree.map(lambda leaf: jnp.asarray(draw(size=leaf.shape)), shapes)
    weights = dict(zip(blocks := traced(model, TOKENS), graph_weights(params, blocks), strict=True))
    by_path = {block.path: weight for block, weight in weights.items() if block.path}
    query, out = (params["attn"][name]["kernel"] for name in ("query", "out"))
    np.testing.assert_array_equal(by_path["attn/query/kernel"], query.reshape(8, 8))
    np.testing.assert_array_equal(by_path["attn/out/kernel"], out.reshape(8, 8))


@pytest.mark.parametrize("axis", [0, 1])
def test_scanned_layers_come_one_after_the_other(axis):
    class Layer(linen.Module):
        @linen.compact
        def __call__(self, x, _):
            return x + dense(8, "a")(linen.relu(dense(16, "b")(linen.LayerNorm()(x)))), None

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            scanned = linen.scan(
                linen.remat(Layer),
                variable_axes={"params": axis},
                split_rngs={"params": True},
                length=2,
            )
            return dense(2, "head")(scanned(name="layers")(x, None)[0])

    found = traced(Model(), FEATURES)
    assert [(b.path, b.source, b.target) for b in found] == [
        *[("layers/b/kernel:0", 0, 1), ("layers/a/kernel:0", 1, 2), (None, 0, 2)],
        *[("layers/b/kernel:1", 2, 3), ("layers/a/kernel:1", 3, 4), (None, 2, 4)],
        ("head/kernel", 4, 5),
    ]


def test_a_norm_before_the_kernel_is_refused_or_left_out():
    model = linen_model(before_the_kernel)
    with pytest.raises(ValueError, match="'norm' scales what a kernel reads.*fold_norms=False"):
        traced(model, IMAGES)
    assert [block.norm for block in traced(model, IMAGES, fold_norms=False)] == [None] * 4


def joined(x):
    return dense(2, "head")(jnp.concatenate([x, dense(4, "a")(x)], -1))


def fused(x):
    q, k, v = jnp.split(dense(12, "qkv")(x), 3, -1)
    return dense(2, "head")(jax.nn.softmax(q @ k.swapaxes(1, 2)) @ v)


def mixed(x):
    return dense(2, "head")(dense(5, "mix")(dense(4, "a")(x).swapaxes(1, 2)).swapaxes(1, 2))


def both_sides_of_a_norm(x):
    x = dense(4, "a")(x)
    return dense(2, "head")(x + norm("norm")(x))


def recurrent(x):
    return linen.RNN(linen.SimpleCell(4))(x)


def tied(x):
    embed = linen.Embed(11, 4, name="embed")
    return embed.attend(embed(x))


NOT_UNDERSTOOD = {
    "concatenation": (joined, FEATURES, "'head/kernel' reads .* 'concatenate' has taken apart"),
    "fused projections": (fused, FEATURES, "'head/kernel' reads .* 'split' has taken apart"),
    "mixed positions": (
        mixed,
        FEATURES,
        "'mix/kernel' sums over other axes than those of the units",
    ),
    "a norm and what it norms": (both_sides_of_a_norm, FEATURES, "'head/kernel' reads .* 'add'"),
    "recurrence": (recurrent, FEATURES, "'SimpleCell_0/.*' is used 6 times in a pass"),
    "tied table": (tied, TOKENS, r"'embed/embedding' is not read \[inputs, outputs\]"),
    "depthwise": (
        lambda x: conv(3, "c", feature_group_count=3)(x),
        IMAGES,
        "'c/kernel' is a convolution in 3 groups",
    ),
    "transform": (
        lambda x: dense(2, "b")(jnp.fft.fft(dense(4, "a")(x)).real),
        FEATURES,
        "'fft' is not understood",
    ),
    "no parameters": (lambda x: x + 1, FEATURES, "no kernel of params is applied"),
    "a constant": (lambda x: dense(2, "a")(x @ np.ones((8, 4), "f4")), FEATURES, "a constant"),
    "integers": (lambda x: conv(2, "c")(x), IMAGES.astype(int), "'an integer dtype'"),
    "a statistic": (
        lambda x: dense(2, "b")(dense(4, "a")(x).mean(-1)),
        FEATURES,
        "'b/kernel' reads .*'a sum over them'",
    ),
}


@pytest.mark.parametrize("function, x, message", NOT_UNDERSTOOD.values(), ids=NOT_UNDERSTOOD)
def test_what_edges_do_not_describe_is_refused_by_name(function, x, message):
    with pytest.raises(ValueError, match=message):
        traced(linen_model(function), x)


def test_a_kernel_that_is_computed_is_refused_with_what_it_is_made_of():
    params = {"g": jnp.ones(()), "v": jnp.ones((8, 4))}
    with pytest.raises(ValueError, match="no leaf of params but made of g, v"):
        layout_of(lambda p, x: x @ (p["v"] * p["g"]), params, FEATURES)


class Net(nnx.Module):
    """Layers whose names are in no order, with a dropout that evaluation must not draw."""

    def __init__(self, rngs):
        self.out = nnx.Linear(4, 2, rngs=rngs)
        self.inner = nnx.Linear(4, 4, rngs=rngs)
        self.entry = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(nnx.relu(self.norm(self.entry(x)))).mean((1, 2))
        return self.out(x + self.inner(x))


def test_a_module_is_traced_as_it_evaluates_and_steers_a_penalty():
    model = Net(nnx.Rngs(0))
    blocks = layout_of_module(model, IMAGES)
    assert blocks == (
        Block("entry/kernel", 0, 1, norm="norm"),
        Block("inner/kernel", 1, 2),
        Block(None, 1, 2),
        Block("out/kernel", 2, 3),
    )
    assert not model.dropout.deterministic
    plain = layout_of_module(model, IMAGES, fold_norms=False)
    params = nnx.state(model, nnx.Param)
    decay = optim.spectral_penalty("l2", 1.0, view=lambda p: graph_weights(p, plain))
    updates, _ = jax.jit(lambda p: decay.update(jax.tree.map(jnp.zeros_like, p), decay.init(p), p))(
        params
    )
    np.testing.assert_allclose(
        updates["out"]["kernel"][...], params["out"]["kernel"][...], rtol=1e-6
    )


# Where there is no forward pass, the names are all there is.


@pytest.mark.parametrize(
    "shapes",
    [
        {"decoder": (3, 8), "encoder": (8, 3)},
        {"hidden": (4, 4), "input": (4, 4), "output": (4, 2)},
        {"first": (2, 3), "other": (3, 2), "second": (2, 3), "third": (3, 5)},
    ],
)
def test_an_order_by_names_that_may_be_another_is_called_a_guess(shapes):
    with pytest.warns(UserWarning, match="layout_of"):
        layout({name: jnp.ones(shape) for name, shape in shapes.items()})


@pytest.mark.parametrize(
    "shapes",
    [
        {"layers": [(4, 4), (4, 4), (4, 4)]},
        {"fc1": (8, 4), "fc2": (4, 4), "fc10": (4, 4), "head": (4, 2)},
        {"down": (8, 4), "up": (4, 9)},
    ],
)
def test_an_order_that_is_counted_or_the_only_one_is_no_guess(shapes):
    params = jax.tree.map(jnp.ones, shapes, is_leaf=lambda x: isinstance(x, tuple))
    assert len(layout(params)) == len(jax.tree.leaves(params))
