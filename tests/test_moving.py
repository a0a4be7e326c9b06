"""The moments of training batches, kept by the network as it trains."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.moving import moving
from spectral_jax import features

pytestmark = pytest.mark.usefixtures("quick_compilation")
NET = models.network("mlp", input_shape=(4,), classes=3, hidden=(6, 5), dropout=0.2)
BATCHES = np.random.default_rng(0).standard_normal((3, 8, 4)).astype(np.float32)


def test_batches_count_less_the_longer_ago_they_were():
    net = moving(NET, decay=0.5)
    params, state = net.init(jax.random.key(0))
    step = jax.jit(partial(net.apply, train=True))
    look = jax.jit(partial(NET.tapped, points=("layers/2:input",), train=True))
    seen = []
    for number, batch in enumerate(BATCHES):
        key = jax.random.key(number)
        logits, state = step(params, state, batch, key=key)
        plain, _, found = look(params, {}, batch, key=key)
        np.testing.assert_allclose(logits, plain, atol=1e-6)
        seen.append(np.float64(found["layers/2:input"]))
    rows, weights = np.concatenate(seen), np.repeat([0.25, 0.5, 1], 8)
    expected = np.cov(rows.T, aweights=weights, ddof=0)
    np.testing.assert_allclose(features.covariance(state["moments"]), expected, atol=1e-6)


def test_evaluation_and_gradients_do_not_see_them():
    net = moving(NET, decay=0.9)
    params, state = jax.vmap(net.init)(jax.random.split(jax.random.key(0), 2))

    def loss(params, state, apply):
        logits, kept = apply(params, state, BATCHES[0], train=True, key=jax.random.key(0))
        return jnp.sum(logits**2), kept

    def slope(apply):
        return jax.jit(jax.vmap(jax.grad(partial(loss, apply=apply), has_aux=True)))

    ours, kept = slope(net.apply)(params, state)
    plain, _ = slope(NET.apply)(params, {})
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), ours, plain)
    one = jax.tree.map(lambda leaf: leaf[0], (params, kept))
    _, after, found = net.tapped(*one, BATCHES[1], points=("layers/1:input",))
    assert found.keys() == {"layers/1:input"}
    jax.tree.map(np.testing.assert_array_equal, after, one[1])
    assert features.effective_rows(after["moments"]) == 8


def test_what_has_no_layers_or_no_decay_is_refused():
    with pytest.raises(ValueError, match="decay=1"):
        moving(NET, decay=1)
    with pytest.raises(ValueError, match="no representations"):
        moving(NET._replace(representations=()), decay=0.5)
