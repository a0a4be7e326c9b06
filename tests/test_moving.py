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
    seen = []
    for number, batch in enumerate(BATCHES):
        key = jax.random.key(number)
        logits, state = step(params, state, batch, key=key)
        plain, _, found = NET.tapped(
            params, {}, batch, points=("layers/2:input",), train=True, key=key
        )
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

    ours, kept = jax.vmap(jax.grad(partial(loss, apply=net.apply), has_aux=True))(params, state)
    plain, _ = jax.vmap(jax.grad(partial(loss, apply=NET.apply), has_aux=True))(params, {})
    jax.tree.map(np.testing.assert_allclose, ours, plain)
    one = jax.tree.map(lambda leaf: leaf[0], (params, kept))
    after = net.apply(*one, BATCHES[1])[1]
    jax.tree.map(np.testing.assert_array_equal, after, one[1])
    assert features.effective_rows(after["moments"]) == 8


def test_what_has_no_layers_or_no_decay_is_refused():
    with pytest.raises(ValueError, match="decay=1"):
        moving(NET, decay=1)
    with pytest.raises(ValueError, match="no representations"):
        moving(NET._replace(representations=()), decay=0.5)
