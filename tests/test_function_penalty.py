"""A penalty on the network as a function: the gradient of its derivatives, and what it asks for."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spectral_jax.optim import Penalty, check_penalty, every, metrics, spectral_penalty

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


def apply(params, x):
    return jnp.tanh(x @ params["first"]) @ params["second"]


def jacobian(apply, params, batch, key):
    """One projection of every example's Jacobian, squared (arXiv 1908.02729)."""
    outputs, pullback = jax.vjp(partial(apply, params), batch["x"])
    (g,) = pullback(jax.random.normal(key, outputs.shape, outputs.dtype))
    return jnp.sum(g**2) / len(g) / 2


JACOBIAN = Penalty(jacobian, sees="function")
KEY = jax.random.key(3)


def network(seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    shapes = {"first": (3, 4), "second": (4, 2)}
    drawn = {name: jnp.asarray(rng.normal(size=s), dtype) for name, s in shapes.items()}
    return {**drawn, "steps": jnp.zeros((), jnp.int32)}


def examples(dtype="float64"):
    return {"x": jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)), dtype)}


def by_hand(params):
    """With the Jacobian of a tanh layer written out, ``B^T diag(1 - tanh^2) A^T`` of each example.

    The projections are those of the key."""
    a, b, x = (np.asarray(part) for part in (params["first"], params["second"], examples()["x"]))
    v = np.asarray(jax.random.normal(KEY, (5, 2)))
    slopes = 1 - np.tanh(x @ a) ** 2
    return sum(np.sum((a @ (s * (b @ each))) ** 2) for s, each in zip(slopes, v, strict=True)) / 10


def pulled(params, batch=None, **extra):
    tx = spectral_penalty(JACOBIAN, 0.5, apply=apply)
    batch = examples() if batch is None else batch
    return tx.update(
        jax.tree.map(jnp.zeros_like, params), tx.init(params), params, batch=batch, key=KEY, **extra
    )


def test_it_adds_the_gradient_in_all_floating_leaves_and_only_in_these():
    params = network()
    updates, state = jax.jit(pulled)(params)
    assert state.value == pytest.approx(by_hand(params), rel=1e-12)
    rng, step = np.random.default_rng(2), 1e-5
    for _ in range(3):
        way = {name: rng.normal(size=params[name].shape) for name in ("first", "second")}
        ahead, behind = (
            by_hand({**params, **{name: params[name] + s * w for name, w in way.items()}})  # noqa: B023
            for s in (step, -step)
        )
        slope = sum(np.vdot(updates[name], w) for name, w in way.items())
        assert slope == pytest.approx(0.5 * (ahead - behind) / (2 * step), rel=1e-6)
    assert updates["steps"] == 0 and updates["steps"].dtype == jnp.int32


def test_a_network_that_changes_with_every_step_is_passed_with_the_step():
    params = network()
    doubled, _ = pulled(params, apply=lambda params, x: 2 * apply(params, x))
    plain, _ = pulled(params)
    np.testing.assert_allclose(doubled["first"], 4 * plain["first"], rtol=1e-12)


def test_members_of_a_vmap_are_as_alone_and_halves_stay_halves():
    members = [network(seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    together, _ = jax.jit(jax.vmap(pulled))(stacked)
    for k, member in enumerate(members):
        alone, _ = jax.jit(pulled)(member)
        np.testing.assert_allclose(together["first"][k], alone["first"], rtol=1e-12)
    updates, state = jax.eval_shape(pulled, network(dtype="bfloat16"), examples("bfloat16"))
    assert updates["first"].dtype == "bfloat16" and state.value.dtype == "float32"


def along(apply, params, batch, way):
    """How the outputs change along a way of the parameters."""
    return jax.jvp(lambda p: apply(p, batch["x"]), (params,), (way,))[1]


def sharpness(apply, params, batch, key, way):
    """The largest curvature of the squared error's Gauss-Newton matrix, at the kept vector."""
    return jnp.sum(along(apply, params, batch, way) ** 2) / 2


def power_iteration(apply, params, batch, key, way):
    _, pullback = jax.vjp(lambda p: apply(p, batch["x"]), params)

    def product(_, way):
        (further,) = pullback(along(apply, params, batch, way))
        size = optax.tree.norm(further)
        return jax.tree.map(lambda leaf: (leaf / size).astype(leaf.dtype), further)

    return jax.lax.fori_loop(0, 200, product, way)


SHARPNESS = Penalty(
    sharpness,
    init=lambda params: jax.tree.map(jnp.ones_like, params),
    refresh=power_iteration,
    sees="function",
)


def test_it_may_keep_a_state_that_a_refresh_solves_for():
    params = {name: leaf for name, leaf in network().items() if name != "steps"}
    tx = spectral_penalty(SHARPNESS, 1.0, apply=apply, refresh=every(2))
    step = jax.jit(partial(tx.update, batch=examples(), key=KEY))
    still = jax.tree.map(jnp.zeros_like, params)
    updates, state = step(still, tx.init(params), params)

    def exact(params):
        jacobian = jax.jacobian(lambda p: apply(p, examples()["x"]))(params)
        flat = np.concatenate([jacobian[name].reshape(10, -1) for name in params], axis=1)
        return np.linalg.norm(flat, 2) ** 2 / 2

    assert state.value == pytest.approx(exact(params), rel=1e-6)
    way = {name: np.random.default_rng(2).normal(size=leaf.shape) for name, leaf in params.items()}
    ahead, behind = (
        exact({name: leaf + s * way[name] for name, leaf in params.items()}) for s in (1e-5, -1e-5)
    )
    slope = sum(np.vdot(updates[name], way[name]) for name in way)
    assert slope == pytest.approx((ahead - behind) / 2e-5, rel=1e-4)
    moved = jax.tree.map(lambda leaf: 2 * leaf, params)
    _, kept = step(still, state, moved)  # not due: the vector is the one that was kept
    jax.tree.map(np.testing.assert_array_equal, kept.penalty, state.penalty)
    _, solved = step(still, kept, moved)
    assert solved.value == pytest.approx(exact(moved), rel=1e-6)


def test_one_with_a_state_holds_the_contract():
    with jax.enable_x64(False):
        held = {each.clause for each in check_penalty(SHARPNESS)}
    assert held == {*"shape finite gradient jit vmap halves scale zeros".split()}


def test_it_stands_in_a_chain():
    tx = optax.chain(spectral_penalty(JACOBIAN, 0.5, apply=apply), optax.sgd(1.0))
    params = network()
    still = jax.tree.map(jnp.zeros_like, params)
    updates, state = tx.update(still, tx.init(params), params, batch=examples(), key=KEY)
    np.testing.assert_allclose(updates["first"], -pulled(params)[0]["first"], rtol=1e-12)
    assert metrics(state)["penalty/strength"] == 0.5


def test_what_it_needs_is_asked_for_and_what_it_would_ignore_is_refused():
    params = network()
    tx = spectral_penalty(JACOBIAN, 0.5)
    with pytest.raises(ValueError, match=r"params, apply=apply, key=key\); apply may be an option"):
        tx.update(params, tx.init(params), params, batch=examples())
    with pytest.raises(ValueError, match=r"no random key .*pass key=jax.random.key\(seed\)"):
        tx.update(params, tx.init(params), params, batch=examples(), key=jnp.ones(2), apply=apply)
    with pytest.raises(ValueError, match="of penalties on weights: choose mode='penalty'"):
        spectral_penalty(JACOBIAN, 0.5, mode="proximal", learning_rate=0.1)
    for lone, says in (("staleness", "be ignored; pass both"), ("init", "only with refresh=")):
        with pytest.raises(ValueError, match=says):
            spectral_penalty(JACOBIAN._replace(**{lone: lambda *given: ()}), 0.5, apply=apply)
    with pytest.raises(ValueError, match=r"has none; pass apply=\(params, x\) -> y"):
        spectral_penalty(JACOBIAN, 0.5, view=lambda params: ())
    with pytest.raises(ValueError, match="a penalty on magnitudes does not call it"):
        spectral_penalty("l1", 0.5, apply=apply)
