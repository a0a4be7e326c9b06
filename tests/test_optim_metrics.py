"""What the transformations know about themselves is read from any state they are in."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spectral_jax.optim import (
    Penalty,
    alpha_decay,
    every,
    fiedler_decay,
    metrics,
    spectral_penalty,
    temp_balance,
)
from spectral_jax.prune import Policy, svd_prune
from tests.cases.graphs import connectivity
from tests.test_optim_numbers import STEERED, corner, kernels, network

pytestmark = pytest.mark.usefixtures("quick_compilation")


def after(transformation, params, steps=1):
    """The state after some updates with a gradient of zero."""
    update, state = jax.jit(transformation.update), transformation.init(params)
    for _ in range(steps):
        updates, state = update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
    return state


def test_a_fiedler_penalty_tells_what_it_solved():
    params = network()
    state = after(fiedler_decay(1e-6, refresh=every(1), k=2, tol=1e-5), params, steps=2)
    weights = [np.asarray(params[name]["kernel"]) for name in params]
    lambda_2 = connectivity(weights, normalised=False)[0]
    found = metrics(state)
    assert float(found["penalty/lambda_2"]) == pytest.approx(lambda_2, rel=1e-3)
    assert found["penalty/lambda_3"] >= found["penalty/lambda_2"]
    mean = (found["penalty/lambda_2"] + found["penalty/lambda_3"]) / 2
    assert float(found["penalty/value"]) == pytest.approx(float(mean), rel=1e-3)
    assert found["penalty/converged"] and found["penalty/refreshes"] == 2
    assert found["penalty/residual"] < 1e-3 and found["penalty/staleness"] < 1e-2
    assert float(found["penalty/strength"]) == pytest.approx(1e-6)


def labelled(params):
    return jax.tree.map(lambda _: "all", params)


WRAPPED = {
    "alone": lambda tx: tx,
    "chained": lambda tx: optax.chain(optax.clip(1.0), tx, optax.sgd(0.1)),
    "masked": lambda tx: optax.masked(tx, lambda params: jax.tree.map(lambda p: True, params)),
    "partition": lambda tx: optax.partition(
        {"all": tx}, lambda p: jax.tree.map(lambda _: "all", p)
    ),
    "accumulated": lambda tx: optax.MultiSteps(optax.chain(tx, optax.sgd(0.1)), 1),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_a_state_is_found_wherever_it_is(wrapped):
    state = after(WRAPPED[wrapped](spectral_penalty("l1", 2.0)), network())
    found = jax.jit(metrics)(state)
    expected = sum(float(jnp.abs(layer["kernel"]).sum()) for layer in network().values())
    assert float(found["penalty/value"]) == pytest.approx(expected, rel=1e-5)
    assert found["penalty/strength"] == 2


def test_it_is_found_where_optax_injects_and_where_flax_wraps():
    injected = optax.inject_hyperparams(spectral_penalty)("l1", lambda step: 1.0 + step)
    assert metrics(after(injected, network(), steps=3))["penalty/strength"] == 3
    model = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.chain(spectral_penalty("l1", 2.0)), wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda model: model(jnp.ones((1, 6))).sum())(model))
    assert metrics(optimizer.opt_state)["penalty/strength"] == 2
    with pytest.raises(ValueError, match="pass optimizer.opt_state"):
        metrics(nnx.state(optimizer))


def test_layers_are_told_by_name_and_two_of_a_kind_apart():
    params = kernels()
    chain = optax.chain(
        spectral_penalty("l1", 0.1),
        spectral_penalty("l2", 0.2),
        alpha_decay(0.0, "linear", **STEERED),
        temp_balance("linear", **(STEERED | {"metric": lambda matrix: -corner(matrix)})),
        svd_prune({"0/*": Policy(keep_below=1.0)}, steps_per_epoch=1, every=1),
    )
    found = metrics(after(chain, params))
    np.testing.assert_allclose(found["penalty/strength"], 0.1)
    np.testing.assert_allclose(found["penalty_2/strength"], 0.2)
    assert [float(found[f"balance/alpha/{n}/kernel"]) for n in "01"] == [2, 4]
    assert [float(found[f"balance/scale/{n}/kernel"]) for n in "01"] == [0.5, 1.5]
    assert [float(found[f"balance_2/alpha/{n}/kernel"]) for n in "01"] == [-2, -4]
    assert found["prune/rank/0/kernel"] == 10 and "prune/rank/1/kernel" not in found
    assert {"prune/ks/0/kernel", "prune/spikes/0/kernel", "prune/status/0/kernel"} <= set(found)
    assert metrics(optax.adam(0.1).init(params)) == {}


def test_the_numbers_of_a_penalty_of_one_s_own_go_by_their_names():
    from typing import NamedTuple

    class Seen(NamedTuple):
        largest: jax.Array
        vector: jax.Array

    own = Penalty(
        lambda w, state: state.largest * w[0].sum(),
        init=lambda w: Seen(jnp.zeros(()), jnp.zeros(3)),
        refresh=lambda w, state: state._replace(largest=w[0].max()),
    )
    found = metrics(after(spectral_penalty(own, 1.0), network()))
    assert found["penalty/largest"] == network()["0"]["kernel"].max()
    assert "penalty/vector" not in found


@pytest.mark.parametrize("strength, chatters", [(0.0, False), (0.01, False), (10.0, True)])
def test_a_strength_that_throws_weights_across_zero_and_back_is_flagged(strength, chatters):
    chain = optax.chain(spectral_penalty("l1", strength), optax.sgd(0.5))
    found = metrics(after(chain, network(), steps=8))
    assert bool(found["penalty/chatters"]) == chatters
    assert (found["penalty/chatter"] > 0.9) == chatters


def test_a_proximal_step_of_that_strength_does_not_chatter():
    penalty = spectral_penalty("l1", 10.0, mode="proximal", learning_rate=0.5)
    assert metrics(after(penalty, network(), steps=8))["penalty/chatter"] == 0


def test_vmapped_states_give_one_number_for_each_member():
    params = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), network())
    tx = fiedler_decay(0.5)

    def one(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return metrics(tx.update(zeros, tx.init(params), params)[1])

    found = jax.jit(jax.vmap(one))(params)
    np.testing.assert_allclose(found["penalty/value"][1], 2 * found["penalty/value"][0], rtol=1e-3)
    state = jax.vmap(tx.init)(params)
    assert (
        metrics(state)["penalty/lambda_2"].shape == metrics(state)["penalty/residual"].shape == (2,)
    )
