"""Richness as a penalty: the gradient of the whole network, and what it does to training."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spectral_jax.optim import metrics, spectral_penalty

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


def network(seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    return {
        "hidden": jnp.asarray(rng.normal(size=(5, 8)), dtype),
        "head": {
            "kernel": jnp.asarray(rng.normal(size=(8, 3)), dtype),
            "bias": jnp.ones(3, dtype),
        },
        "steps": jnp.zeros((), jnp.int32),
    }


def view(params, batch):
    features = jnp.tanh(batch["x"] @ params["hidden"])
    outputs = features @ params["head"]["kernel"] + params["head"]["bias"]
    return features, outputs, batch["mask"]


def examples(n=20, seed=1):
    x = jnp.asarray(np.random.default_rng(seed).normal(size=(n, 5)))
    return {"x": x, "mask": jnp.ones(n)}


def dense_richness(params, batch):
    """With NumPy, from the n x n operators."""
    features, outputs, _ = (np.asarray(x) for x in view(params, batch))
    centre = np.eye(len(features)) - 1 / len(features)
    basis, _ = np.linalg.qr(outputs)
    a, b = (centre @ x @ x.T @ centre for x in (features, basis))
    return 1 - np.vdot(a, b) / np.sqrt(np.vdot(a, a) * np.vdot(b, b))


@cache
def made(sign=1.0):
    tx = spectral_penalty("richness", 0.5, view=view, sign=sign)
    return tx.init, jax.jit(tx.update)


def pulled(params, batch, sign=1.0):
    init, update = made(sign)
    return update(jax.tree.map(jnp.zeros_like, params), init(params), params, batch=batch)


def test_it_adds_the_gradient_of_the_whole_network():
    params, batch = network(), examples()
    updates, state = pulled(params, batch)
    assert state.value == pytest.approx(dense_richness(params, batch), abs=1e-12)
    rng, step = np.random.default_rng(2), 1e-5
    for _ in range(3):
        way = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), params)
        way["steps"] = jnp.zeros((), jnp.int32)
        ahead, behind = (
            dense_richness(jax.tree.map(lambda p, w: p + s * w, params, way), batch)  # noqa: B023
            for s in (step, -step)
        )
        assert optax.tree.vdot(updates, way) == pytest.approx(
            0.5 * (ahead - behind) / (2 * step), rel=1e-6
        )


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_descending_it_makes_the_features_richer_or_lazier(sign):
    params, batch = network(), examples()
    begin = dense_richness(params, batch)
    for _ in range(30):
        updates, _ = pulled(params, batch, sign)
        params = jax.tree.map(lambda p, u: p - 2 * u.astype(p.dtype), params, updates)
    assert sign * (begin - dense_richness(params, batch)) > 0.1


def test_masked_examples_pull_nothing():
    params, batch = network(), examples()
    batch["mask"] = batch["mask"].at[12:].set(0)
    ours, _ = pulled(params, batch)
    alone, _ = pulled(params, {name: x[:12] for name, x in batch.items()})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), ours, alone)


def test_behind_a_head_of_zeros_there_is_no_richness_and_no_pull():
    params = network()
    params["head"] = jax.tree.map(jnp.zeros_like, params["head"])
    updates, state = pulled(params, examples())
    assert np.isnan(metrics(state)["penalty/value"])
    assert not any(np.any(u) for u in jax.tree.leaves(updates))


def test_members_of_a_vmap_do_not_see_each_other():
    members, batch = [network(seed) for seed in range(2)], examples()
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    together, _ = jax.vmap(lambda p: pulled(p, batch))(stacked)
    for k, member in enumerate(members):
        alone, _ = pulled(member, batch)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[k], b, atol=1e-14), together, alone)  # noqa: B023


def test_half_precision_networks_are_given_as_they_are():
    params = network(dtype="bfloat16")
    seen = []

    def noting(params, batch):
        seen.append(params["hidden"].dtype)
        return view(params, jax.tree.map(lambda x: x.astype("bfloat16"), batch))

    tx = spectral_penalty("richness", 0.5, view=noting)
    updates, state = jax.eval_shape(lambda p: tx.update(p, tx.init(p), p, batch=examples()), params)
    assert set(seen) == {jnp.dtype("bfloat16")}
    assert jax.tree.map(lambda u: u.dtype, updates) == jax.tree.map(lambda p: p.dtype, params)
    assert state.value.dtype == "float32"


def test_it_stands_in_a_chain_with_an_injected_strength():
    tx = optax.chain(
        optax.inject_hyperparams(spectral_penalty)("richness", lambda step: 0.25 * step, view=view),
        optax.sgd(1.0),
    )
    params, batch = network(), examples()
    still = jax.tree.map(jnp.zeros_like, params)
    updates, state = jax.jit(tx.update)(still, tx.init(params), params, batch=batch)
    assert not np.any(updates["hidden"])
    _, state = jax.jit(tx.update)(still, state, params, batch=batch)
    assert metrics(state)["penalty/strength"] == 0.25


def test_what_it_needs_is_asked_for():
    params = network()
    with pytest.raises(ValueError, match=r"needs view=lambda params, batch: \(arrays it sees\)"):
        spectral_penalty("richness", 0.5)
    with pytest.raises(ValueError, match="of penalties on weights: choose mode='penalty'"):
        spectral_penalty("richness", 0.5, view=view, mode="proximal", learning_rate=0.1)
    tx = spectral_penalty("richness", 0.5, view=view)
    with pytest.raises(ValueError, match=r"call update\(updates, state, params, batch=batch\)"):
        tx.update(params, tx.init(params), params)
