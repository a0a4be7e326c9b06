"""A factored tree runs in any NNX or Linen network, and a compressed file leads back to one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from spectral_jax.checkpoints import save_safetensors
from spectral_jax.compress import compress
from spectral_jax.factored import factored_apply, factored_module, load_factored
from spectral_jax.prune import factorize, recombine_all

pytestmark = pytest.mark.usefixtures("quick_compilation")

X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8, 8, 4)), "float32")
RANKS = {"conv/kernel": 3, "hidden/kernel": 5}


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(4, 12, (3, 3), strides=2, padding="SAME", rngs=rngs)
        self.norm = nnx.BatchNorm(12, use_running_average=True, rngs=rngs)
        self.hidden = nnx.Linear(192, 30, rngs=rngs)
        self.heads = nnx.List([nnx.Linear(30, 7, use_bias=False, rngs=rngs)])

    def __call__(self, x):
        x = self.norm(self.conv(x)).reshape(len(x), -1)
        return self.heads[0](nnx.relu(self.hidden(nnx.relu(x))))


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(12, (3, 3), strides=2, name="conv")(x).reshape(len(x), -1)
        x = linen.relu(linen.Dense(30, name="hidden")(linen.relu(x)))
        return linen.Dense(7, use_bias=False, name="head")(x)


def parameters(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def test_an_nnx_model_runs_factors_as_it_would_the_truncated_kernels():
    model = Net(nnx.Rngs(0))
    smaller = factorize(parameters(model), RANKS)
    whole = factored_module(model, recombine_all(smaller))
    thin = factored_module(model, smaller)
    np.testing.assert_allclose(thin(X), whole(X), atol=1e-4)
    assert np.abs(whole(X) - model(X)).max() > 1e-2, "the ranks should cost something"
    count = lambda model: sum(p.size for p in jax.tree.leaves(parameters(model)))  # noqa: E731
    assert count(thin) == sum(leaf.size for leaf in jax.tree.leaves(smaller)) < count(model)


def test_what_was_split_again_runs_too():
    model = Net(nnx.Rngs(0))
    once = factorize(parameters(model), {"hidden/kernel": 20})
    twice = factorize(once, {"hidden/kernel/u": 6, "hidden/kernel/v": 8})
    whole = factored_module(model, recombine_all(twice))
    np.testing.assert_allclose(factored_module(model, twice)(X), whole(X), atol=1e-4)


def test_the_factors_train():
    model = Net(nnx.Rngs(0))
    thin = factored_module(model, factorize(parameters(model), RANKS))
    optimizer = nnx.Optimizer(thin, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, gradient = nnx.value_and_grad(lambda model: jnp.square(model(X) - 1).mean())(model)
        optimizer.update(model, gradient)
        return loss

    losses = [float(step(thin, optimizer)) for _ in range(5)]
    assert losses[-1] < losses[0]


def test_a_linen_model_runs_factors_under_jit_and_grad():
    net = LinenNet()
    params = net.init(jax.random.key(0), X)["params"]
    smaller = factorize(params, RANKS)
    apply = jax.jit(factored_apply(net))
    expected = net.apply({"params": recombine_all(smaller)}, X)
    np.testing.assert_allclose(apply({"params": smaller}, X), expected, atol=1e-4)
    np.testing.assert_allclose(apply({"params": params}, X), net.apply({"params": params}, X))
    slopes = jax.grad(lambda p: apply({"params": p}, X).sum())(smaller)
    assert jax.tree.map(jnp.shape, slopes) == jax.tree.map(jnp.shape, smaller)
    assert all(jnp.any(slope != 0) for slope in jax.tree.leaves(slopes))


def test_a_compressed_file_leads_back_to_a_model(tmp_path):
    model = Net(nnx.Rngs(0))
    flat, _ = jax.tree_util.tree_flatten_with_path(parameters(model))
    named = {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in flat}
    result = compress(named, rank="energy=0.8")
    assert "factored" in {row["outcome"] for row in result.rows}
    save_safetensors(tmp_path / "small.safetensors", result.tensors)
    smaller = load_factored(tmp_path / "small.safetensors")
    whole = factored_module(model, recombine_all(smaller))
    np.testing.assert_allclose(factored_module(model, smaller)(X), whole(X), atol=1e-4)


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    model = Net(nnx.Rngs(0))
    params = parameters(model)
    with pytest.raises(ValueError, match="params/hiden: the model has no such part"):
        factored_module(model, {"hiden": params["hidden"]})
    with pytest.raises(ValueError, match=r"params/norm/scale: shape \(3,\) for one of \(12,\)"):
        factored_module(model, {"norm": {"scale": jnp.ones(3)}})
    with pytest.raises(ValueError, match="params/norm: no parameter of the model"):
        factored_module(model, {"norm": jnp.ones(12)})
    with pytest.raises(ValueError, match=r"params/norm/scale: a mapping for an array of shape"):
        factored_module(model, {"norm": {"scale": {"u": jnp.ones(12)}}})
    attention = nnx.MultiHeadAttention(2, 8, rngs=nnx.Rngs(0), decode=False)
    factors = {"query": {"kernel": {"u": jnp.ones((8, 2)), "v": jnp.ones((2, 8))}}}
    with pytest.raises(ValueError, match="params/query: factors are for .* is LinearGeneral"):
        factored_module(attention, factors)
    with pytest.raises(ValueError, match=r"a Linen module, .*: use factored_apply\(model\)"):
        factored_module(LinenNet(), params)
    with pytest.raises(ValueError, match="model is a Net: pass a Linen module .*factored_module"):
        factored_apply(model)
    general = linen.DenseGeneral(6)
    factors = {"kernel": {"u": jnp.ones((4, 2)), "v": jnp.ones((2, 6))}}
    with pytest.raises(ValueError, match="factors are for Dense .* is DenseGeneral"):
        factored_apply(general)({"params": factors}, X)
    save_safetensors(tmp_path / "odd.safetensors", {"a": np.ones(2), "a/b": np.ones(2)})
    with pytest.raises(ValueError, match="'a/b' leads through a tensor|'a' is a tensor and a grou"):
        load_factored(tmp_path / "odd.safetensors")
