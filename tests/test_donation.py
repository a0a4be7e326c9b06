"""A training step may donate its weights and its state: no buffer is in them twice."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spectral_jax.linalg import moments
from spectral_jax.optim import (
    PENALTIES,
    alpha_decay,
    probe,
    spectral_penalty,
    temp_balance,
    watch,
)
from spectral_jax.prune import Policy, svd_prune

pytestmark = pytest.mark.usefixtures("quick_compilation")


def loss(params, batch):
    return batch * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


ON_WEIGHTS = [name for name in PENALTIES if PENALTIES[name]().sees in ("matrices", "magnitudes")]
MAKERS = {name: partial(spectral_penalty, name, 0.1) for name in ON_WEIGHTS} | {
    "balance": partial(temp_balance, refresh_every=2, metric="hill", min_eigenvalues=2),
    "decay": partial(alpha_decay, 0.1, refresh_every=2, metric="hill", min_eigenvalues=2),
    "prune": partial(svd_prune, Policy(), steps_per_epoch=2, every=1),
    "watch": partial(watch, loss, every=2, what=("lambda_max", "trace", "critical_sharpness")),
}


def network():
    keys = jax.random.split(jax.random.key(0))
    return {
        str(i): {"kernel": jax.random.normal(key, (12, 12)), "bias": jnp.ones(12)}
        for i, key in enumerate(keys)
    }


@pytest.mark.parametrize("name", MAKERS)
def test_weights_and_state_may_be_donated_from_the_first_step_on(name):
    transformation = optax.chain(optax.sgd(0.01), MAKERS[name]())

    def step(params, state):
        updates = jax.tree.map(lambda leaf: 0.1 * leaf, params)
        updates, state = transformation.update(updates, state, params, batch=jnp.ones(2))
        return optax.apply_updates(params, updates), state

    def trained(run):
        params = network()
        state = transformation.init(params)
        for _ in range(2):
            params, state = run(params, state)
        return params

    found, expected = trained(jax.jit(step, donate_argnums=(0, 1))), trained(jax.jit(step))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)


def test_moments_and_logs_may_be_donated_from_the_first_batch_on():
    rows = jnp.arange(12.0).reshape(4, 3)
    sums = moments.zero(3, groups=2, fourth=True)
    update = jax.jit(moments.update, donate_argnums=0)
    found = update(sums, rows, labels=jnp.array([0, 1, 0, 1]))
    np.testing.assert_allclose(moments.mean(found), rows.mean(axis=0))
    watched = probe(lambda params, x: x @ params, rows, at=(0, 2), measure=("participation",))
    log = watched.start(jnp.eye(3))
    log = jax.jit(watched.update, donate_argnums=0)(log, 0, jnp.eye(3))
    assert int(log.done) == 1
