"""What flows inside a module, as a function of its parameters."""

import jax
import numpy as np
import pytest
from flax import nnx

from spectral_jax.nnx import from_nnx, tap

X = np.float32(np.random.default_rng(0).standard_normal((5, 4, 4, 2)))


@pytest.fixture(autouse=True)
def quick(quick_compilation):
    pass


class Network(nnx.Module):
    """Two convolutions and a head, all activations plain functions."""

    def __init__(self, rngs):
        self.blocks = nnx.List(
            [nnx.Conv(2, 3, (3, 3), rngs=rngs), nnx.Conv(3, 6, (1, 1), rngs=rngs)]
        )
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)
        self.unused = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = nnx.relu(block(x))
        return self.head(self.dropout(nnx.relu(self.norm(x)).mean((1, 2))))


NETWORK = Network(nnx.Rngs(0))
MODEL, PARAMS = from_nnx(NETWORK)


def test_the_input_of_the_head_is_what_the_head_maps_to_the_outputs():
    features = jax.jit(tap(NETWORK, {"penultimate": "head:input", "outputs": ""}))
    found = features(PARAMS, X)
    head = PARAMS["head"]
    np.testing.assert_allclose(
        found["penultimate"] @ head["kernel"] + head["bias"], found["outputs"], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(found["outputs"], MODEL(PARAMS, X), rtol=1e-6)
    assert found["penultimate"].min() >= 0  # behind the ReLU, which is no submodule


def test_positions_are_averaged_or_rows_or_left():
    whole = tap(NETWORK, "blocks.1", pool=None)(PARAMS, X)
    assert whole.shape == (5, 4, 4, 6) and whole.min() < 0
    np.testing.assert_allclose(tap(NETWORK, "blocks/1")(PARAMS, X), whole.mean((1, 2)), atol=1e-6)
    rows = tap(NETWORK, "blocks.1", pool="positions")(PARAMS, X)
    np.testing.assert_array_equal(rows, whole.reshape(80, 6))


def test_a_module_that_has_moved_on_is_read_as_it_is():
    network = nnx.clone(NETWORK)
    features = tap(network, "norm")
    before = features(network, X)
    network.norm.mean[...] = network.norm.mean[...] + 1
    assert np.abs(features(network, X) - before).min() > 0.1
    np.testing.assert_array_equal(features(PARAMS, X), before)  # statistics as when tapped
    assert type(network.norm) is nnx.BatchNorm


def test_seeds_are_mapped_and_gradients_pass():
    linear, rows = nnx.Linear(2, 3, rngs=nnx.Rngs(0)), X[:, 0, 0]
    features = tap(nnx.Sequential(linear, nnx.Linear(3, 1, rngs=nnx.Rngs(1))), "layers.0")
    kernels = np.stack([linear.kernel[...], 0 * linear.kernel[...]])
    params = {"layers": {0: {"kernel": kernels}}}
    both = jax.jit(jax.vmap(features, in_axes=(0, None)))(params, rows)
    np.testing.assert_allclose(both, rows @ kernels, atol=1e-6)
    slope = jax.jit(jax.vmap(jax.grad(lambda p: features(p, rows).sum())))(params)
    expected = np.tile(rows.sum(0)[:, None], (2, 1, 3))
    np.testing.assert_allclose(slope["layers"][0]["kernel"], expected, rtol=1e-5)


class Tied(nnx.Module):
    """An embedding that is the head too, behind blocks that are transformed."""

    def __init__(self, rngs, how):
        self.embed, self.how = nnx.Embed(7, 3, rngs=rngs), how
        if how == "scan":
            make = nnx.vmap(lambda rngs: nnx.Linear(3, 3, rngs=rngs))
            self.block = nnx.split_rngs(splits=4)(make)(rngs)
        else:
            self.block = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        if self.how == "scan":
            layer = lambda x, block: block(x)  # noqa: E731
            x = nnx.scan(layer, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.block)
        elif self.how == "remat":
            x = nnx.remat(lambda block, x: block(x))(self.block, x)
        elif self.how == "checkpoint":
            x = jax.checkpoint(self.block)(x)
        else:
            x = self.block(self.block(x))
        return self.embed.attend(x)


TOKENS = np.arange(10).reshape(2, 5) % 7


def test_methods_and_transformed_parts_are_tapped():
    network = Tied(nnx.Rngs(0), "remat")
    points = {"last": "embed.attend:input", "block": "block", "first": "embed"}
    found = jax.jit(tap(network, points))(from_nnx(network)[1], TOKENS)
    np.testing.assert_array_equal(found["last"], found["block"])
    network = Tied(nnx.Rngs(0), "scan")
    scanned = jax.jit(tap(network, {"in": "block:input", "out": "block:output"}))
    stack = scanned(from_nnx(network)[1], TOKENS)
    assert stack["in"].shape == (4, 2, 3)
    np.testing.assert_allclose(stack["in"][1:], stack["out"][:-1], atol=1e-6)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: tap(NETWORK, "block.0"), r"no part 'block.0': did you mean 'blocks.0'\? It has"),
        (lambda: tap(NETWORK, "blocks.2"), "It has blocks"),
        (lambda: tap(NETWORK, "blocks"), r"no part 'blocks': did you mean 'blocks.0'\? It has"),
        (lambda: tap(NETWORK, ["head"]), r"points=\['head'\]: pass a point, or points by names"),
        (lambda: tap(MODEL, "head"), "module is a PureModule: pass an nnx.Module"),
        (lambda: tap(NETWORK, "head:inputs"), "choose 'input' or 'output'"),
        (lambda: tap(NETWORK, "head.kernel"), "no part 'head.kernel'"),
        (lambda: tap(NETWORK, "head", pool="max"), "pool='max'"),
        (lambda: tap(NETWORK, "unused")(PARAMS, X), "'unused:output': .* called 0 times"),
        (lambda: tap(Tied(nnx.Rngs(0), ""), "block")(Tied(nnx.Rngs(0), ""), TOKENS), "2 times"),
        (
            lambda: tap(Tied(nnx.Rngs(0), ""), "embed:input")(Tied(nnx.Rngs(0), ""), TOKENS[0]),
            r"'embed:input' is \(5,\)",
        ),
        (
            lambda: tap(Tied(nnx.Rngs(0), "checkpoint"), "block")(
                Tied(nnx.Rngs(0), "checkpoint"), TOKENS
            ),
            "nnx.remat",
        ),
    ],
)
def test_what_cannot_be_tapped_is_refused_with_the_fix(make, says):
    with pytest.raises(ValueError, match=says):
        make()
