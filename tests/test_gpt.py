"""The small GPT is causal, reads as named matrices, and computes what the formulas say."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
from spectral_jax.weights import matrices

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONTEXT, VOCABULARY, WIDTH, DEPTH, HEADS = 7, 11, 8, 2, 2


@cache
def gpt(tied=True):
    """A small GPT whose biases and norms have left their initial values, and some tokens."""
    options = dict(width=WIDTH, depth=DEPTH, heads=HEADS, tied=tied)
    net = models.network("gpt", input_shape=(CONTEXT,), classes=VOCABULARY, **options)
    params, state = net.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape).astype("f4"), params)
    return net, params, state, rng.integers(0, VOCABULARY, (3, CONTEXT))


def logits(net, params, state, tokens):
    return np.asarray(jax.jit(net.apply)(params, state, tokens)[0])


# The formulas, in float64


def dense(layer, x):
    return x @ layer["kernel"] + layer.get("bias", 0)


def layer_norm(layer, x):
    centred = x - x.mean(-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return centred / spread * layer["scale"] + layer["bias"]


def gelu(x):
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attention(layer, x):
    """One head and one position after the other: the softmax runs over what came before."""
    q, k, v = (dense(layer[name], x) for name in ("query", "key", "value"))
    mixed, size = np.zeros_like(x), x.shape[-1] // HEADS
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        for t in range(len(x)):
            scores = np.exp(k[: t + 1, part] @ q[t, part] / math.sqrt(size))
            mixed[t, part] = scores / scores.sum() @ v[: t + 1, part]
    return dense(layer["out"], mixed)


def reference(params, tokens):
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    table = params["token_embedding"]["embedding"]
    x = table[tokens] + params["position_embedding"]["embedding"][: len(tokens)]
    for block in params["blocks"].values():
        x = x + attention(block["attention"], layer_norm(block["norm1"], x))
        hidden = gelu(dense(block["mlp"]["up"], layer_norm(block["norm2"], x)))
        x = x + dense(block["mlp"]["down"], hidden)
    x = layer_norm(params["norm"], x)
    return x @ table.T if "head" not in params else dense(params["head"], x)


@pytest.mark.parametrize("tied", [True, False])
def test_it_computes_what_the_formulas_say(tied):
    net, params, state, tokens = gpt(tied)
    expected = [reference(params, sequence) for sequence in tokens]
    np.testing.assert_allclose(logits(net, params, state, tokens), expected, rtol=1e-4, atol=1e-4)


# Sequences


@pytest.mark.parametrize("changed", [1, 4, CONTEXT - 1])
def test_no_position_sees_what_comes_after_it(changed):
    net, params, state, tokens = gpt()
    other = tokens.copy()
    other[:, changed] = (other[:, changed] + 1) % VOCABULARY
    before, after = (logits(net, params, state, x) for x in (tokens, other))
    np.testing.assert_array_equal(before[:, :changed], after[:, :changed])
    assert np.abs(before - after)[:, changed:].max(axis=(0, 2)).min() > 1e-3


def test_a_shorter_input_has_the_same_beginning():
    net, params, state, tokens = gpt()
    whole, short = (logits(net, params, state, x) for x in (tokens, tokens[:, :3]))
    np.testing.assert_allclose(whole[:, :3], short, atol=1e-5)


def test_whole_numbers_in_a_float_array_are_tokens():
    """The training loop normalises every input, text included, in float32."""
    net, params, state, tokens = gpt()
    as_floats = logits(net, params, state, tokens.astype(np.float32))
    np.testing.assert_array_equal(as_floats, logits(net, params, state, tokens))


def test_an_input_beyond_the_context_is_refused():
    net, params, state, _ = gpt()
    with pytest.raises(ValueError, match="x has 8 tokens but the context is 7"):
        net.apply(params, state, jnp.zeros((1, CONTEXT + 1), jnp.int32))


# Parameters


def test_its_kernels_are_named_matrices():
    _, params, _, _ = gpt(tied=False)
    kernels = {name: view for name, view in matrices(params).items() if name.endswith("kernel")}
    assert {name: view.matrix.shape for name, view in kernels.items()} == {
        **{
            f"blocks/{i}/{layer}/kernel": shape
            for i in range(DEPTH)
            for layer, shape in {
                "attention/query": (WIDTH, WIDTH),
                "attention/key": (WIDTH, WIDTH),
                "attention/value": (WIDTH, WIDTH),
                "attention/out": (WIDTH, WIDTH),
                "mlp/up": (WIDTH, 4 * WIDTH),
                "mlp/down": (4 * WIDTH, WIDTH),
            }.items()
        },
        "head/kernel": (WIDTH, VOCABULARY),
    }
    assert {view.kind for view in kernels.values()} == {"dense"}
    tables = {name: view.kind for name, view in matrices(params).items() if name not in kernels}
    assert tables == {
        "position_embedding/embedding": "embedding",
        "token_embedding/embedding": "embedding",
    }


def shapes(**options):
    net = models.network("gpt", **options)
    return jax.eval_shape(net.init, jax.random.key(0))[0]


def test_gpt2_small_has_its_published_number_of_parameters():
    config = dict(input_shape=(1024,), classes=50_257, width=768, depth=12, heads=12)
    tied = sum(leaf.size for leaf in jax.tree.leaves(shapes(**config)))
    assert tied == 124_439_808
    untied = sum(leaf.size for leaf in jax.tree.leaves(shapes(**config, tied=False)))
    assert untied == tied + 50_257 * 768


def test_initial_weights_are_those_of_gpt2():
    net = models.network("gpt", input_shape=(64,), classes=50, width=64, depth=2, heads=4)
    params, _ = net.init(jax.random.key(0))
    block = params["blocks"]["1"]
    residual = 0.02 / math.sqrt(2 * 2)
    for layer, std in (
        (block["attention"]["query"]["kernel"], 0.02),
        (block["attention"]["out"]["kernel"], residual),
        (block["mlp"]["up"]["kernel"], 0.02),
        (block["mlp"]["down"]["kernel"], residual),
        (params["token_embedding"]["embedding"], 0.02),
        (params["position_embedding"]["embedding"], 0.02),
    ):
        np.testing.assert_allclose(np.std(layer), std, rtol=0.05)
        assert abs(np.mean(layer)) < 4 * std / math.sqrt(layer.size)
    assert not any(np.any(layer["bias"]) for layer in block["attention"].values())
    query, key = (np.ravel(block["attention"][name]["kernel"]) for name in ("query", "key"))
    assert abs(np.corrcoef(query, key)[0, 1]) < 0.1


def test_it_learns_to_repeat_a_phrase():
    net = models.network("gpt", input_shape=(12,), classes=5, width=16, depth=1, heads=2)
    params, state = net.init(jax.random.key(0))
    phrase = jnp.tile(jnp.array([0, 3, 1, 4, 1, 2]), 3)
    x, y = phrase[None, :12], phrase[None, 1:13]
    optimizer = optax.adam(1e-2)

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(
            net.apply(params, state, x, train=True)[0], y
        ).mean()

    @jax.jit
    def train(params):
        def step(carry, _):
            params, moments = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, moments = optimizer.update(grads, moments, params)
            return (optax.apply_updates(params, updates), moments), value

        return jax.lax.scan(step, (params, optimizer.init(params)), None, 80)[1]

    losses = train(params)
    np.testing.assert_allclose(losses[0], math.log(5), rtol=0.05)
    assert losses[-1] < 0.1  # 1 stands before 4 and before 2: only the context tells which
