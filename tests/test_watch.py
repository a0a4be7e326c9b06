"""Watched curvature is that of the loss, costs nothing between measurements and steers nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spectral_jax.optim import metrics, watch

pytestmark = pytest.mark.usefixtures("quick_compilation")
ALL = ("lambda_max", "critical_sharpness", "trace")
N = 30
EIGENVALUES = np.r_[[50.0, 20.0], np.linspace(-1, 2, N - 2)]
ROTATION = np.linalg.qr(np.random.default_rng(0).standard_normal((N, N)))[0]
MATRIX = jnp.asarray(ROTATION * EIGENVALUES @ ROTATION.T, jnp.float32)
RATE = 0.02


def quadratic(params, batch):
    """One number per example; the mean over ``batch`` has the Hessian ``mean(batch) MATRIX``."""
    w = jnp.concatenate([params["a"].ravel(), params["b"]])
    return batch * (w @ MATRIX @ w) / 2


def start(seed=1):
    draw = np.random.default_rng(seed).standard_normal(N)
    return {
        "a": jnp.asarray(draw[:20].reshape(4, 5), jnp.float32),
        "b": jnp.asarray(draw[20:], "f"),
    }


BATCH = jnp.array([0.5, 1.0, 1.5])
GRADIENT = jax.grad(lambda params, batch: quadratic(params, batch).mean())


def trained(tx, steps, params=None, batch=BATCH):
    """The parameters and the state after so many updates, in one compiled loop."""
    params = start() if params is None else params

    def step(carry, _):
        params, state = carry
        grads = GRADIENT(params, batch)
        updates, state = tx.update(grads, state, params, batch=batch)
        return (optax.apply_updates(params, updates), state), metrics(state)

    return jax.lax.scan(step, (params, tx.init(params)), length=steps)


def descent(**options):
    options = dict(every=1, what=ALL, learning_rate=RATE, matvecs=N + 1) | options
    return optax.chain(optax.sgd(RATE), watch(quadratic, **options))


def test_readings_of_a_quadratic_are_in_closed_form():
    _, seen = jax.jit(partial(trained, descent(), 2))()
    np.testing.assert_allclose(seen["watch/lambda_max"], 50, rtol=1e-5)
    np.testing.assert_allclose(seen["watch/trace"], EIGENVALUES.sum(), rtol=1e-5)
    assert (seen["watch/lambda_max/residual"] < 1e-2).all()
    w = np.r_[start()["a"].ravel(), start()["b"]].astype(float)
    g = ROTATION * EIGENVALUES @ ROTATION.T @ w
    expected = (ROTATION.T @ g) ** 2 @ EIGENVALUES / (g @ g)
    assert float(seen["watch/critical_sharpness"][0]) == pytest.approx(expected, rel=1e-3)
    for name in ALL:
        assert seen[f"watch/{name}/converged"].all()
    assert seen["watch/measured"].tolist() == [0, 1]


@pytest.mark.parametrize("scale", [1e-22, 1e-12, 1e20])
def test_a_residual_is_measured_at_any_scale_of_the_loss(scale):
    """Else four products with a small Hessian count as converged, and with a large one as none."""
    first, other = (
        trained(descent(matvecs=4, what=("lambda_max",)), 1, batch=BATCH * factor)[1]
        for factor in (1.0, scale)
    )
    for name in ("watch/lambda_max", "watch/lambda_max/residual"):
        np.testing.assert_allclose(other[name] / scale, first[name], rtol=1e-3)
    assert other["watch/lambda_max/converged"] == first["watch/lambda_max/converged"]


def test_updates_pass_unchanged_and_a_watch_looks_when_it_is_due():
    (watched, state), seen = jax.jit(partial(trained, descent(every=3), 7))()
    (alone, _), _ = jax.jit(partial(trained, optax.with_extra_args_support(optax.sgd(RATE)), 7))()
    # Two programs: what XLA fuses with what decides on the last digit.
    near = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(near, watched, alone)
    tx, updates = watch(quadratic, every=1, what=ALL, learning_rate=RATE), GRADIENT(start(), BATCH)
    passed, _ = tx.update(updates, tx.init(start()), start(), batch=BATCH)
    jax.tree.map(np.testing.assert_array_equal, passed, updates)
    assert seen["watch/measured"].tolist() == [0, 0, 0, 3, 3, 3, 6]
    assert len(np.unique(seen["watch/critical_sharpness"])) == 3
    assert int(state[1].step) == 7


def test_a_warm_start_goes_on_from_the_last_eigenvector():
    """Four products are too few from a generic vector, and enough after some measurements."""
    close = np.r_[[2.0], np.linspace(-1, 1.8, 99)]
    matrix = jnp.asarray(close, jnp.float32)

    def loss(params, batch):
        return batch * jnp.sum(matrix * params**2) / 2

    tx = watch(loss, every=1, matvecs=4)
    params = jnp.ones(100)

    def step(state, _):
        state = tx.update(params, state, params, batch=jnp.ones(1))[1]
        return state, state.seen["lambda_max"]

    _, reading = jax.lax.scan(step, tx.init(params), length=12)
    assert reading.value[0] < 1.9 and reading.value[-1] == pytest.approx(2, abs=2e-3)
    assert not (reading.value > 2 + 1e-5).any()
    # The error of the value is within its residual from the first measurement on.
    distance = np.abs(np.asarray(reading.value)[:, None] - close).min(axis=1)
    assert (distance <= reading.residual + 1e-6).all()


def critical(loss, update, guesses=1, params=1.0):
    """The reading for one number that moves by ``update``, after so many measurements."""
    tx = watch(loss, every=1, what=("critical_sharpness",))
    params, state = jnp.float32(params), tx.init(jnp.float32(params))
    look = jax.jit(tx.update)
    for _ in range(guesses):
        state = look(jnp.float32(update), state, params, batch=0)[1]
    return state.seen["critical_sharpness"]


@pytest.mark.parametrize(
    "loss, crossing",
    [
        (lambda w, _: w**2, 20.0),  # 1 - s / 10 is as high as 1 where s = 20
        (lambda w, _: w**4, 20.0),
        (lambda w, _: jnp.cosh(w), 20.0),
        (lambda w, _: jnp.abs(w) + jnp.where(w < -0.5, jnp.inf, 0), 15.0),
        (lambda w, _: jnp.exp(-w) + 0.1 * w, None),
    ],
    ids=["quadratic", "quartic", "cosh", "overflowing", "rising"],
)
def test_the_critical_step_is_where_the_loss_is_back_at_its_height(loss, crossing):
    reading = critical(loss, -0.1, guesses=3)
    if crossing is None:
        assert jnp.isnan(reading.value) and not reading.converged
        return
    assert reading.converged
    assert float(reading.value) == pytest.approx(2 / crossing, rel=0.06)
    assert 0 < reading.residual <= 0.1 * reading.value


def test_no_number_is_claimed_where_no_rise_was_found():
    falling = critical(lambda w, _: jnp.exp(-w), 0.1)
    assert not falling.converged and 0 < falling.value < 0.05
    flat = critical(lambda w, _: 1 + 1e-9 * w**2, -0.1)
    assert not flat.converged
    lost = critical(lambda w, _: w * jnp.nan, -0.1)
    assert jnp.isnan(lost.value) and not lost.converged


def test_a_spoilt_measurement_does_not_spoil_the_next():
    tx = watch(quadratic, every=1, what=ALL, matvecs=N + 1)
    params = start()
    update = jax.jit(tx.update)
    bad = jax.tree.map(lambda p: p * jnp.nan, params)
    state = update(params, tx.init(params), bad, batch=BATCH * jnp.nan)[1]
    assert not any(reading.converged for reading in state.seen.values())
    assert all(jnp.isnan(reading.value) for reading in state.seen.values())
    descended = jax.tree.map(lambda g: -RATE * g, GRADIENT(params, BATCH))
    state = update(descended, state, params, batch=BATCH)[1]
    assert all(reading.converged for reading in state.seen.values())


def test_members_of_a_vmap_see_what_they_would_see_alone():
    """Scales differ, so that one of them diverges."""
    tx = descent(every=2, matvecs=6)
    scales = jnp.array([0.3, 1.0, 100.0])
    _, together = jax.jit(jax.vmap(lambda s: trained(tx, 3, batch=s * BATCH)))(scales)
    alone = jax.jit(lambda s: trained(tx, 3, batch=s * BATCH)[1])
    for member, scale in enumerate(scales):
        for name, expected in alone(scale).items():
            # The bracket of a quadratic is as narrow as rounding will have it.
            if name == "watch/critical_sharpness/residual":
                continue
            np.testing.assert_allclose(together[name][member], expected, rtol=2e-3, err_msg=name)


WRAPPED = {
    "accumulated": optax.MultiSteps(descent(), 2),
    "injected": optax.chain(
        optax.sgd(RATE),
        optax.inject_hyperparams(watch)(
            quadratic, every=1, what=ALL, learning_rate=lambda step: RATE, matvecs=N + 1
        ),
    ),
    "after a mask": optax.chain(
        optax.masked(optax.scale(1.0), {"a": True, "b": False}), *(descent(),)
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_it_is_at_home_in_the_wrappers_of_optax(wrapper):
    _, seen = jax.jit(partial(trained, WRAPPED[wrapper], 2))()
    assert float(seen["watch/lambda_max"][-1]) == pytest.approx(50, rel=1e-4)
    assert seen["watch/critical_sharpness/converged"][-1]


def test_other_leaves_and_half_precision_are_no_obstacle():
    def loss(params, batch):
        return batch * jnp.sum(params["w"] ** 2) * params["count"]

    params = {"w": jnp.ones(3, jnp.bfloat16), "count": jnp.int32(2), "key": jax.random.key(0)}
    tx = watch(loss, every=1, what=("lambda_max", "critical_sharpness"))
    updates = {"w": -jnp.ones(3, jnp.bfloat16), "count": jnp.int32(0), "key": params["key"]}
    passed, state = jax.jit(tx.update)(updates, tx.init(params), params, batch=jnp.full(2, 3.0))
    assert passed["w"].dtype == jnp.bfloat16
    assert float(state.seen["lambda_max"].value) == pytest.approx(12)
    assert float(state.seen["critical_sharpness"].value) == pytest.approx(1, rel=1e-3)


def test_the_steps_to_measure_at_may_be_listed():
    _, seen = jax.jit(partial(trained, descent(every=(1, 4), what=("lambda_max",)), 6))()
    assert seen["watch/measured"].tolist() == [-1, 1, 1, 1, 4, 4]
    np.testing.assert_array_equal(np.isnan(seen["watch/lambda_max"]), [True] + 5 * [False])


def test_few_samples_of_a_trace_have_a_wide_error():
    """Of 60 estimates from three samples each, with t = 2.2 standard errors for 95 %."""
    tx, params = watch(quadratic, every=1, what=("trace",), matvecs=6), start()

    @jax.jit
    def reading(step):
        state = tx.init(params)._replace(step=step)
        return tx.update(params, state, params, batch=BATCH)[1].seen["trace"]

    found = jax.vmap(reading)(jnp.arange(60))
    within = np.abs(found.value - EIGENVALUES.sum()) <= 1.96 * found.residual
    assert within.mean() > 0.8


def test_misuse_names_the_argument_and_the_fix():
    for steps in ((0, -1), (0.5,), (True, 2.0)):
        with pytest.raises(ValueError, match="steps listed must be whole numbers"):
            watch(quadratic, every=steps)
    with pytest.raises(ValueError, match=r"every=\(\)"):
        watch(quadratic, every=())
    with pytest.raises(ValueError, match="what='trace': pass a tuple"):
        watch(quadratic, every=1, what="trace")
    with pytest.raises(ValueError, match="what='lambda': choose 'lambda_max'"):
        watch(quadratic, every=1, what=("lambda",))
    with pytest.raises(ValueError, match="every=0: choose at least 1"):
        watch(quadratic, every=0)
    with pytest.raises(ValueError, match="matvecs=3: choose at least 4"):
        watch(quadratic, every=1, matvecs=3)
    params, tx = start(), watch(quadratic, every=1)
    with pytest.raises(ValueError, match="needs params and batch"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match=r"chain watch after optax.masked"):
        optax.masked(tx, {"a": True, "b": False}).init(params)
    wrong = watch(lambda params, batch: params["a"], every=1)
    with pytest.raises(ValueError, match=r"loss returns .* for 3 examples"):
        wrong.update(params, wrong.init(params), params, batch=BATCH)
