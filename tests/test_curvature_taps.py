"""Taps: the gradients that activations and backward signals make are those of autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.functional import network
from spectral_jax.curvature._taps import taps

pytestmark = pytest.mark.usefixtures("quick_compilation")


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def convolutions(params, x):
    """Stride, uneven padding, dilation, channels first; then groups and a scale by channel."""
    numbers = ("NCHW", "OIHW", "NCHW")
    y = jax.lax.conv_general_dilated(
        x,
        params["kernel"],
        (2, 1),
        [(1, 0), (2, 1)],
        rhs_dilation=(1, 2),
        dimension_numbers=numbers,
    )
    y = jnp.tanh(y + params["bias"][None, :, None, None])
    y = jax.lax.conv_general_dilated(
        y, params["groups"], (1, 1), "SAME", feature_group_count=3, dimension_numbers=numbers
    )
    return jnp.mean(y * params["scale"][:, None, None], axis=(2, 3)) @ params["head"]


CONVOLUTIONS = {
    "kernel": normal(0, 3, 2, 3, 2),
    "bias": normal(1, 3),
    "groups": normal(2, 6, 1, 3, 3),
    "scale": normal(3, 6),
    "head": normal(4, 6, 2),
}


@jax.jit
def layer(kernel, bias, x):
    return x @ kernel + bias


def uses(params, x):
    """Kernels in a scan, in a loop over a stack, under remat, on the left, per head, low-rank."""
    h, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["scanned"])
    for kernel in params["stack"]:
        h = jnp.tanh(h @ kernel)
    h = jax.checkpoint(layer)(params["shared"], params["offset"], h)
    h = h + jnp.einsum("bd,dhk->bhk", h, params["heads"]).sum(2) @ params["out"] + params["row"]
    h = layer(params["shared"], params["offset"], jnp.einsum("oi,bi->bo", params["left"], h))
    y = h @ params["read_twice"]
    base = params["base"] + params["down"] @ params["up"]
    also = params["result"][None] * jnp.ones((len(x), 1))
    return jnp.concatenate([jnp.tanh(y + params["bias"]) + y, h @ base, also], axis=-1)


USES = {
    "scanned": normal(0, 2, 3, 3),
    "stack": normal(1, 2, 3, 3),
    "shared": normal(2, 3, 3),
    "offset": normal(3, 3),
    "heads": normal(4, 3, 2, 3),
    "out": normal(5, 2, 3),
    "row": normal(6, 1, 3),
    "left": normal(7, 3, 3),
    "read_twice": normal(8, 3, 2),
    "bias": normal(9, 2),
    "base": normal(10, 3, 3),
    "down": normal(11, 3, 1),
    "up": normal(12, 1, 3),
    "result": normal(13, 2),
    "unused": normal(14, 2),
}


def tied(params, x):
    """A kernel and its transpose, and a table that tokens from the end read too."""
    kernel, bias, table = params
    looked_up = jnp.take(table, x["tokens"], axis=0) + table[x["tokens"]]
    return jnp.tanh(x["features"] @ kernel.T + bias) @ kernel + looked_up


def padded(table, tokens):
    """A token beyond the table, such as one of padding, is 0 whatever the table."""
    return jnp.take(table, tokens, axis=0, mode="fill", fill_value=0.0)


TIED = (normal(0, 4, 3), normal(1, 4), normal(2, 5, 3))
NETWORKS = {
    "convolutions": (convolutions, CONVOLUTIONS, normal(5, 2, 2, 6, 6)),
    "uses": (uses, USES, normal(15, 3, 3)),
    "tied": (tied, TIED, {"features": normal(3, 3, 3), "tokens": np.array([0, 4, -1])}),
    "padded": (padded, normal(4, 3, 2), np.array([[0, 3], [2, 2]])),
}


def gradients(model, params, inputs, cotangents):
    """Of each example, ``[n, P]``, by autodiff."""

    def single(example, cotangent):
        one = jax.tree.map(lambda x: x[None], example)
        _, pull_back = jax.vjp(lambda params: model(params, one)[0], params)
        return jax.flatten_util.ravel_pytree(pull_back(cotangent)[0])[0]

    return jax.vmap(single)(inputs, cotangents)


def tapped_gradients(found, params, cotangents):
    """The same from what flows in and back: the sum over the uses of each leaf."""
    back = found.backward(cotangents)
    rows = [jnp.zeros((len(cotangents), leaf.size)) for leaf in jax.tree.leaves(params)]
    for use, a, b in zip(found.uses, found.activations, back.signals, strict=True):
        a = jax.nn.one_hot(a, use.shape[0]) if use.kind == "embedding" else a
        rows[use.leaf] += jax.vmap(lambda a, b, use=use: use.place(a.T @ b))(a, b)
        if use.bias is not None:
            rows[use.bias] += b.sum(1)
    for leaf, rows_of_leaf in zip(found.explicit, back.explicit, strict=True):
        rows[leaf] += rows_of_leaf
    return jnp.concatenate(rows, axis=1)


def test_taps_make_the_gradients_of_every_kind_of_use():
    """Convolutions and tied weights: tests/test_curvature_spectrum.py, by inner products."""
    model, params, inputs = NETWORKS["uses"]

    @jax.jit
    def both(params, inputs):
        found = taps(model, params, inputs)
        cotangents = jax.random.normal(jax.random.key(0), found.outputs.shape, jnp.float64)
        tapped = tapped_gradients(found, params, cotangents)
        return tapped, gradients(model, params, inputs, cotangents), found.outputs

    with jax.enable_x64(True):
        params, inputs = jax.tree.map(jnp.asarray, (params, inputs))
        found, expected, outputs = both(params, inputs)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * jnp.abs(expected).max())
        np.testing.assert_allclose(outputs, model(params, inputs), rtol=1e-12, atol=1e-14)


def found_in(model, params, inputs):
    """Taps by shapes alone."""
    found = []
    jax.eval_shape(lambda *given: found.append(taps(model, *given)), params, inputs)
    return found[0]


def test_a_transformer_has_kernels_with_their_biases_and_explicit_scales():
    net = network("gpt", input_shape=(4,), classes=5, width=4, depth=1, heads=2, tied=True)
    params, state = jax.eval_shape(net.init, jax.random.key(0))
    found = found_in(lambda p, x: net.apply(p, state, x)[0], params, jnp.zeros((3, 4), jnp.int32))
    joined = {
        found.paths[use.leaf]: found.paths[use.bias] for use in found.uses if use.bias is not None
    }
    assert joined == {
        name: name.replace("kernel", "bias") for name in found.paths if "kernel" in name
    }
    assert all(found.paths[leaf].endswith("scale") for leaf in found.explicit)
    read = [(use.kind, use.shape) for use in found.uses if "token" in found.paths[use.leaf]]
    assert read == [("embedding", (5, 4)), ("dense", (4, 5))]


def test_a_bias_is_joined_to_a_product_that_nothing_else_reads():
    params = {"bias": np.ones(2), "kernel": np.ones((3, 2))}
    x = np.ones((4, 3))
    alone = found_in(lambda p, x: x @ p["kernel"] + p["bias"], params, x)
    assert [use.bias for use in alone.uses] == [0]

    def read_twice(p, x):
        y = x @ p["kernel"]
        return y * (y + p["bias"])

    assert [use.bias for use in found_in(read_twice, params, x).uses] == [None, None]


def test_what_is_no_batch_of_outputs_is_refused():
    x = np.ones((4, 3))
    with pytest.raises(
        ValueError, match=r"model returns .* return one array \[n, \*positions, c\]"
    ):
        taps(lambda w, x: (x @ w, {}), np.ones((3, 2)), x)
    with pytest.raises(ValueError, match="pass arrays with one leading axis"):
        taps(lambda w, x: x["a"] @ w, np.ones((3, 2)), {"a": x, "b": x[:2]})
