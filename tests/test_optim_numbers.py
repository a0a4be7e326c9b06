"""Strengths that move, and parameters of any dtype: what every transformation makes of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spectral_jax.optim import Penalty, fiedler_decay, spectral_penalty
from tests.test_optim import first_update, nothing

pytestmark = pytest.mark.usefixtures("quick_compilation")
RAMP = lambda step: 0.5 * step  # noqa: E731


def network(dtype="float32"):
    rng = np.random.default_rng(0)
    return {
        str(layer): {
            "kernel": jnp.asarray(rng.normal(size=shape), dtype),
            "bias": jnp.ones(shape[1], dtype),
        }
        for layer, shape in enumerate([(12, 10), (10, 8)])
    }


def pulls(transformation, steps=4):
    """The size of what each of several updates adds, in units of the first of strength 1."""
    params = network()
    step, state, found = jax.jit(transformation.update), transformation.init(params), []
    for _ in range(steps):
        updates, state = step(nothing(params), state, params)
        found.append(float(jnp.linalg.norm(updates["0"]["kernel"])))
    return np.asarray(found)


SPECTRAL_NORMS = Penalty(lambda w, _: sum(jnp.linalg.norm(block, 2) for block in w))
MADE = {
    "spectral_penalty": (partial(spectral_penalty, "l1"), "strength"),
    "spectral_penalty, on matrices": (partial(spectral_penalty, SPECTRAL_NORMS), "strength"),
    "fiedler_decay": (fiedler_decay, "delta"),
}


@pytest.mark.parametrize("made", MADE)
def test_a_strength_may_be_a_schedule_of_the_updates_done(made):
    make, _ = MADE[made]
    unit = pulls(make(1.0))[0]
    np.testing.assert_allclose(pulls(make(RAMP)) / unit, [0, 0.5, 1.0, 1.5], rtol=1e-5)


@pytest.mark.parametrize("made", MADE)
def test_optax_injects_a_scheduled_strength(made):
    make, name = MADE[made]
    unit = pulls(make(1.0))[0]
    injected = optax.inject_hyperparams(make)(**{name: RAMP})
    np.testing.assert_allclose(pulls(injected) / unit, [0, 0.5, 1.0, 1.5], rtol=1e-5)


def test_an_injected_strength_can_be_set_between_updates():
    params = network()
    tx = optax.inject_hyperparams(spectral_penalty)("l1", 1.0)
    state, step = tx.init(params), jax.jit(tx.update)
    for strength in (2.0, 5.0):
        state.hyperparams["strength"] = jnp.asarray(strength)
        updates, state = step(nothing(params), state, params)
        np.testing.assert_allclose(np.abs(updates["0"]["kernel"]), strength)
        assert state.inner_state.strength == strength


def test_what_is_no_number_survives_the_injection():
    """Optax would take a view for a schedule, and trace the integers."""
    params = network()
    view = lambda p: (p["1"]["kernel"],)  # noqa: E731
    tx = optax.inject_hyperparams(spectral_penalty)("fiedler", RAMP, view=view, k=2, tol=1e-3)
    updates, state = first_update(tx, params)
    assert set(state.hyperparams) == {"strength"}
    assert state.inner_state.penalty.values.shape == (2,)
    assert not updates["0"]["kernel"].any()


def test_a_sweep_over_strengths_compiles_once():
    params, strengths = network(), jnp.array([0.0, 0.5, 2.0])

    @jax.jit
    @jax.vmap
    def one_step(strength):
        tx = fiedler_decay(strength)
        return tx.update(nothing(params), tx.init(params), params)[0]["0"]["kernel"]

    swept, again = one_step(strengths), one_step(2 * strengths)
    assert one_step._cache_size() == 1
    np.testing.assert_allclose(again, 2 * swept, rtol=1e-6)
    alone, _ = first_update(fiedler_decay(0.5), params)
    np.testing.assert_allclose(swept[1], alone["0"]["kernel"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -1.0, jnp.asarray(-1.0)])
@pytest.mark.parametrize("made", MADE)
def test_a_strength_that_is_none_is_refused_by_name(made, strength):
    make, name = MADE[made]
    with pytest.raises(ValueError, match=f"{name}=.*choose a finite number >= 0, or a schedule"):
        make(strength)


HALF = ["bfloat16", "float16"]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("mode", ["penalty", "proximal"])
@pytest.mark.parametrize("made", MADE)
def test_half_precision_is_computed_in_float32_and_handed_back(made, mode, dtype):
    make, _ = MADE[made]
    prox = {"prox": lambda w, size, _: [x / (1 + size) for x in w]}
    if "matrices" in made:
        make = partial(spectral_penalty, SPECTRAL_NORMS._replace(**prox))
    penalty = make(0.7, mode=mode, learning_rate=0.1)
    params = network(dtype)
    updates, state = first_update(penalty, params)
    exact, _ = first_update(penalty, jax.tree.map(lambda p: p.astype("float32"), params))
    jax.tree.map(lambda u, e: np.testing.assert_array_equal(u, e.astype(u.dtype)), updates, exact)
    assert {str(u.dtype) for u in jax.tree.leaves(updates)} == {dtype}
    assert state.strength.dtype == "float32"


def mixed():
    """Half-precision kernels, float32 biases, a step count, a table of tokens, a None."""
    params = network("bfloat16")
    params["1"]["bias"] = params["1"]["bias"].astype("float32")
    return (
        params
        | {"steps": jnp.zeros((), jnp.int32), "tokens": jnp.ones((3, 4), jnp.int32)}
        | {"absent": None}
    )


@pytest.mark.parametrize("made", MADE)
def test_mixed_trees_keep_their_dtypes_in_a_scan(made):
    make, _ = MADE[made]
    params, penalty = mixed(), make(0.7)

    def step(carry, _):
        updates, state = penalty.update(nothing(params), carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    (after, _), _ = jax.lax.scan(step, (params, penalty.init(params)), length=3)
    assert jax.tree.map(lambda p: p.dtype, after) == jax.tree.map(lambda p: p.dtype, params)
    for name in ("steps", "tokens"):
        np.testing.assert_array_equal(after[name], params[name])
    assert (after["0"]["kernel"] != params["0"]["kernel"]).any()
