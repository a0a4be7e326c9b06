"""A spectral penalty pulls on the weights as its formula says and solves when its schedule does."""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spectral_jax import graphs
from spectral_jax import weights as weights_of
from spectral_jax.optim import (
    PENALTIES,
    Penalty,
    Refresh,
    epoch_start_and_every_100,
    every,
    fiedler_decay,
    on_residual,
    spectral_penalty,
)
from tests.cases.graphs import connectivity, dense_laplacian

pytestmark = pytest.mark.usefixtures("quick_compilation")
RATE = 0.1


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


def network(seed=0):
    """Parameters of a 5-4-3 network with biases."""
    rng = np.random.default_rng(seed)
    return {
        str(layer): {"kernel": jnp.asarray(rng.normal(size=shape)), "bias": jnp.ones(shape[1])}
        for layer, shape in enumerate([(5, 4), (4, 3)])
    }


def kernels(params):
    return [params[name]["kernel"] for name in sorted(params)]


def nothing(params):
    return jax.tree.map(jnp.zeros_like, params)


def first_update(transformation, params, updates=None):
    updates = nothing(params) if updates is None else updates
    step = jax.jit(transformation.update)
    return step(updates, transformation.init(params), params)


@cache
def fiedler_step():
    """A Fiedler penalty that solves every other step; its compiled update."""
    penalty = fiedler_decay(0.7, refresh=every(2), tol=1e-10)
    return penalty.init, jax.jit(penalty.update)


def slopes(params):
    """``d lambda_2 / d|W_ij| = (v_i - v_j)^2`` from a dense eigendecomposition."""
    laplacian = dense_laplacian([np.asarray(w) for w in kernels(params)], normalised=False)
    parts = np.split(np.linalg.eigh(laplacian)[1][:, 1], (5, 9))
    return [(x[:, None] - y) ** 2 for x, y in zip(parts, parts[1:], strict=False)]


def soft_threshold(w, threshold):
    return np.sign(w) * np.maximum(np.abs(w) - threshold, 0)


# What is added to the gradient


def test_a_fresh_fiedler_penalty_is_strength_times_the_gradient_of_lambda_2():
    params = network()
    init, step = fiedler_step()
    updates, state = step(nothing(params), init(params), params)
    for name, c in zip(params, slopes(params), strict=True):
        w = np.asarray(params[name]["kernel"])
        np.testing.assert_allclose(updates[name]["kernel"], 0.7 * np.sign(w) * c, atol=1e-9)
    lambda_2 = connectivity([np.asarray(w) for w in kernels(params)], normalised=False)[0]
    assert float(state.penalty.values[0]) == pytest.approx(lambda_2, rel=1e-9)
    assert state.penalty.converged and state.penalty.refreshes == 1


def test_a_fresh_normalised_penalty_is_the_gradient_of_the_mean_of_its_values():
    params = network()
    penalty = spectral_penalty("fiedler", 0.7, normalised=True, k=3, sign=-1.0, tol=1e-10)
    updates, _ = first_update(penalty, params)

    def value(weights):
        return jnp.linalg.eigvalsh(dense_laplacian(weights, normalised=True, np=jnp))[1:4].mean()

    gradient = jax.jit(jax.grad(value))(kernels(params))
    for name, g in zip(params, gradient, strict=True):
        np.testing.assert_allclose(updates[name]["kernel"], -0.7 * g, atol=1e-8)


def test_the_layer_quotient_penalty_is_the_gradient_of_the_quotient():
    params = network()
    updates, _ = first_update(spectral_penalty("layer_quotient", 0.7), params)
    quotient = lambda w: graphs.layer_quotient(w, normalised=False).value  # noqa: E731
    gradient = jax.jit(jax.grad(quotient))(kernels(params))
    for name, g in zip(params, gradient, strict=True):
        np.testing.assert_allclose(updates[name]["kernel"], 0.7 * g, atol=1e-12)
        # L1 with one constant per layer.
        np.testing.assert_allclose(np.abs(g), np.abs(g).max(), rtol=1e-9)


@pytest.mark.parametrize("name, slope", [("l1", np.sign), ("l2", lambda w: w)])
def test_l1_and_l2_add_their_gradients_to_what_is_there(name, slope):
    params, there = network(), network(seed=1)
    updates, _ = first_update(spectral_penalty(name, 0.3), params, there)
    for layer in params:
        w, u = np.asarray(params[layer]["kernel"]), np.asarray(there[layer]["kernel"])
        np.testing.assert_allclose(updates[layer]["kernel"], u + 0.3 * slope(w), atol=1e-12)


@pytest.mark.parametrize("mode", ["penalty", "proximal"])
@pytest.mark.parametrize("name", ["l1", "l2"])
def test_biases_are_left_alone(name, mode):
    params, there = network(), network(seed=1)
    penalty = spectral_penalty(name, 5.0, mode=mode, learning_rate=RATE)
    updates, _ = first_update(penalty, params, there)
    for layer in params:
        np.testing.assert_allclose(updates[layer]["bias"], there[layer]["bias"], rtol=1e-15)
        assert (updates[layer]["kernel"] != there[layer]["kernel"]).all()


def test_a_stale_vector_overstates_the_penalty():
    penalty = PENALTIES["fiedler"]()
    value, staleness = jax.jit(penalty.value), jax.jit(penalty.staleness)
    init, step = fiedler_step()
    old = [jnp.abs(w) for w in kernels(network())]
    new = [w + 0.3 * jnp.abs(x) for w, x in zip(old, kernels(network(seed=1)), strict=True)]
    params = network()
    state = step(nothing(params), init(params), params)[1].penalty
    for weights, overstated in ((old, False), (new, True)):
        lambda_2 = connectivity([np.asarray(w) for w in weights], normalised=False)[0]
        held = float(value(weights, state))
        assert held >= lambda_2 * (1 - 1e-12)
        assert (held > 1.001 * lambda_2) == overstated
        assert (float(staleness(weights, state)) > 0.01) == overstated


def test_a_view_says_which_weights_are_in_the_graph():
    params = network()
    second = lambda p: (p["1"]["kernel"],)  # noqa: E731
    updates, _ = first_update(spectral_penalty("l1", 1.0, view=second), params)
    assert not updates["0"]["kernel"].any()
    np.testing.assert_array_equal(updates["1"]["kernel"], np.sign(params["1"]["kernel"]))


# The proximal step


@cache
def shrunk():
    """Weights before the proximal step, after the gradient's, and after both."""
    params, gradient = network(), network(seed=1)
    params["0"]["kernel"] = params["0"]["kernel"].at[2, 1].set(0.0)
    updates = jax.tree.map(lambda g: -RATE * g, gradient)
    penalty = fiedler_decay(20.0, mode="proximal", learning_rate=RATE, tol=1e-10)
    total, _ = first_update(penalty, params, updates)
    return params, optax.apply_updates(params, updates), optax.apply_updates(params, total)


def test_the_proximal_step_is_the_soft_threshold_of_each_edge():
    params, moved, after = shrunk()
    for name, c in zip(params, slopes(params), strict=True):
        expected = soft_threshold(np.asarray(moved[name]["kernel"]), RATE * 20 * c)
        np.testing.assert_allclose(after[name]["kernel"], expected, atol=1e-9)


def test_the_proximal_step_never_crosses_zero():
    _, moved, after = shrunk()
    for before, w in zip(kernels(moved), kernels(after), strict=True):
        assert (w * before >= 0).all()
        assert (jnp.abs(w) <= jnp.abs(before)).all()
    stopped, passed = (jnp.concatenate([jnp.ravel(w == 0) for w in kernels(after)]) for _ in "ab")
    assert stopped.any() and not passed.all()


def test_weights_at_zero_stay_there_under_a_large_proximal_strength():
    _, moved, after = shrunk()
    assert moved["0"]["kernel"][2, 1] != 0
    assert after["0"]["kernel"][2, 1] == 0


def test_l1_proximal_is_the_soft_threshold_with_the_learning_rate_of_the_step():
    params = network()
    schedule = lambda step: 0.1 / (1 + step)  # noqa: E731
    penalty = spectral_penalty("l1", 2.0, mode="proximal", learning_rate=schedule)
    step = jax.jit(penalty.update)
    state, expected = penalty.init(params), [np.asarray(w) for w in kernels(params)]
    for rate in (0.1, 0.05):
        updates, state = step(nothing(params), state, params)
        params = optax.apply_updates(params, updates)
        expected = [soft_threshold(w, rate * 2.0) for w in expected]
        for w, e in zip(kernels(params), expected, strict=True):
            np.testing.assert_allclose(w, e, atol=1e-15)
    assert state.step == 2


def test_l2_proximal_is_decoupled_weight_decay():
    params, gradient = network(), network(seed=1)
    updates = jax.tree.map(lambda g: -RATE * g, gradient)
    penalty = spectral_penalty("l2", 0.5, mode="proximal", learning_rate=RATE)
    total, _ = first_update(penalty, params, updates)
    for layer in params:
        w, u = np.asarray(params[layer]["kernel"]), np.asarray(updates[layer]["kernel"])
        # Decay as in AdamW: by the weight before the step. It stops at zero, where decay would not.
        decayed = w + u - RATE * 0.5 * np.abs(w) * np.sign(w + u)
        expected = np.where(np.abs(w + u) > RATE * 0.5 * np.abs(w), decayed, 0)
        np.testing.assert_allclose(w + total[layer]["kernel"], expected, atol=1e-15)


# When it solves


class Seen(NamedTuple):
    """The state of a toy penalty: how often it was refreshed, and what the weights summed to."""

    refreshes: jax.Array
    total: jax.Array


def counting(on_refresh=lambda total: None):
    def refresh(w, state):
        total = w[0].sum()
        jax.debug.callback(on_refresh, total)
        return Seen(state.refreshes + 1, total)

    return Penalty(
        value=lambda w, _: w[0].sum(),
        init=lambda w: Seen(jnp.zeros((), jnp.int32), jnp.zeros((), w[0].dtype)),
        refresh=refresh,
        staleness=lambda w, state: jnp.abs(w[0].sum() - state.total) / state.total,
        sees="magnitudes",
    )


def drive(penalty, params, steps, growth=1.0):
    """Multiply the weights by ``growth`` each step; the states after every step."""

    def step(carry, _):
        params, state = carry
        _, state = penalty.update(nothing(params), state, params)
        return (jax.tree.map(lambda p: growth * p, params), state), state

    return jax.lax.scan(step, (params, penalty.init(params)), length=steps)[1]


def solved_at(refresh, steps, growth=1.0):
    penalty = spectral_penalty(counting(), 1.0, refresh=refresh)
    counts = jax.jit(partial(drive, penalty, steps=steps))(network(), growth=growth)
    refreshes = np.asarray(counts.penalty.refreshes)
    return np.flatnonzero(np.diff(refreshes, prepend=0)).tolist()


def test_every_k_steps_solves_at_step_0_and_every_k_steps():
    assert solved_at(every(3), 10) == [0, 3, 6, 9]
    assert solved_at(every(1), 4) == [0, 1, 2, 3]


def test_the_released_schedule_solves_at_an_epoch_s_start_and_after_its_steps_0_100_200():
    solves = solved_at(epoch_start_and_every_100(250), 600)
    assert solves == [0, 1, 101, 201, 250, 251, 351, 451, 500, 501]


def test_on_residual_solves_when_a_check_finds_the_vectors_stale():
    # 3 % a step: at the checks after 4 and 8 steps the drift is 13 % and 27 %.
    assert solved_at(on_residual(0.2, check_every=4), 20, growth=1.03) == [0, 8, 16]
    assert solved_at(on_residual(0.1, check_every=4), 20, growth=1.03) == [0, 4, 8, 12, 16]
    assert solved_at(on_residual(0.2, check_every=4), 20, growth=1.0) == [0]


def test_the_first_step_solves_whatever_the_schedule():
    assert solved_at(Refresh(lambda step: step == 5), 8) == [0, 5]


def test_fiedler_vectors_are_kept_between_solves_and_reused_as_a_start():
    init, step = fiedler_step()
    rng, params, states = np.random.default_rng(3), network(), []
    state = init(params)
    for _ in range(4):
        _, state = step(nothing(params), state, params)
        states.append(state)
        drift = lambda p: p * (1 + 1e-3 * rng.normal(size=p.shape))  # noqa: E731
        params = jax.tree.map(drift, params)
    vectors = [np.asarray(state.penalty.vectors) for state in states]
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert (vectors[1] != vectors[2]).any()
    np.testing.assert_array_equal(vectors[2], vectors[3])
    assert [int(state.penalty.refreshes) for state in states] == [1, 1, 2, 2]


def test_a_solve_starts_from_the_vectors_of_the_one_before():
    # Six products are too few from a cold start, which one solve after another makes up for.
    penalty = fiedler_decay(0.7, refresh=every(1), max_matvecs=6)
    params, step = network(3), jax.jit(penalty.update)
    residuals, state = [], penalty.init(params)
    for _ in range(8):
        _, state = step(nothing(params), state, params)
        residuals.append(float(state.penalty.residuals[0]))
    assert residuals[-1] < 0.1 * residuals[0]


# Several seeds at once


def stacked(*networks):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)


@cache
def seeds_program(refresh_tolerance=0.2):
    """Eight steps of a Fiedler penalty, for one seed and for three under vmap."""
    refresh = on_residual(refresh_tolerance, check_every=2)

    def run(params, growth):
        penalty = fiedler_decay(1.0, refresh=refresh, tol=1e-8)

        def step(carry, _):
            params, state = carry
            updates, state = penalty.update(nothing(params), state, params)
            params["0"]["kernel"] = params["0"]["kernel"] ** growth
            return (params, state), (updates, state.penalty)

        return jax.lax.scan(step, (params, penalty.init(params)), length=8)[1]

    return jax.jit(run), jax.jit(jax.vmap(run))


def positive(seed):
    return jax.tree.map(jnp.abs, network(seed))


GROWTH = (1.0, 1.1, 1.3)


def test_under_vmap_every_seed_runs_as_it_would_alone():
    alone, together = seeds_program()
    params = stacked(*(positive(seed) for seed in range(3)))
    updates, states = together(params, jnp.asarray(GROWTH))
    counts = set()
    for seed, growth in enumerate(GROWTH):
        expected, expected_states = alone(positive(seed), growth)
        np.testing.assert_array_equal(states.refreshes[seed], expected_states.refreshes)
        counts.add(int(states.refreshes[seed, -1]))
        jax.tree.map(
            lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-9),
            jax.tree.map(lambda leaf: leaf[seed], updates),  # noqa: B023
            expected,
        )
    assert len(counts) > 1, "the seeds should differ in how often they need a solve"


def test_a_seed_whose_weights_are_nan_does_not_disturb_the_others():
    _, together = seeds_program()
    networks = [positive(seed) for seed in range(3)]
    sound = together(stacked(*networks), jnp.asarray(GROWTH))
    networks[1]["0"]["kernel"] = networks[1]["0"]["kernel"].at[0, 0].set(jnp.nan)
    updates, states = together(stacked(*networks), jnp.asarray(GROWTH))
    assert not states.converged[1].any()
    for seed in (0, 2):
        jax.tree.map(
            lambda ours, theirs: np.testing.assert_array_equal(ours[seed], theirs[seed]),  # noqa: B023
            (updates, states._replace(matvecs=states.refreshes)),
            (sound[0], sound[1]._replace(matvecs=sound[1].refreshes)),
        )


def test_under_vmap_the_solver_runs_only_when_some_seed_needs_it():
    ran = []
    penalty = spectral_penalty(
        counting(lambda _: ran.append(1)),
        1.0,
        refresh=on_residual(0.2, check_every=2),
    )
    run = jax.vmap(partial(drive, penalty, steps=9))
    states = jax.jit(run)(
        stacked(*(positive(seed) for seed in range(2))), growth=jnp.array([1, 1.06])
    )
    jax.block_until_ready(states)
    jax.effects_barrier()
    np.testing.assert_array_equal(states.penalty.refreshes[:, -1], [1, 3])
    # Both seeds compute at the three steps where the second one needs it, and at no other.
    assert len(ran) == 2 * 3


def test_a_seed_that_diverges_makes_no_other_solve():
    ran = []
    penalty = spectral_penalty(counting(lambda _: ran.append(1)), 1.0, refresh=on_residual(0.2))
    run = jax.jit(jax.vmap(partial(drive, penalty, steps=41)))
    states = run(stacked(positive(0), positive(1)), growth=jnp.array([1, jnp.nan]))
    jax.block_until_ready(states)
    jax.effects_barrier()
    assert len(ran) == 2, "both at the first step, when both were sound, and no more"
    np.testing.assert_array_equal(states.penalty.refreshes, 1)
    assert jnp.isfinite(states.value[0]).all() and jnp.isfinite(states.staleness[0]).all()
    assert jnp.isnan(states.value[1, 10:]).all() and jnp.isnan(states.staleness[1, 10:]).all()


# Carrying the state


def test_the_state_keeps_its_structure_under_jit_and_scan():
    params, penalty = network(), spectral_penalty(counting(), 1.0)
    state = penalty.init(params)
    _, after = first_update(penalty, params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for before, now in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (before.shape, before.dtype) == (now.shape, now.dtype)
    history = jax.jit(partial(drive, penalty, steps=5))(params)
    assert history.step.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", [name for name in PENALTIES if name != "richness"])
def test_updates_and_state_keep_the_dtype_of_the_parameters(name):
    params = jax.tree.map(lambda p: p.astype("float32"), network())
    penalty = spectral_penalty(name, 0.1, mode="proximal", learning_rate=0.1)
    updates, state = jax.eval_shape(penalty.update, params, penalty.init(params), params)
    floating = [x.dtype for x in jax.tree.leaves((updates, state)) if x.dtype.kind == "f"]
    assert set(floating) == {np.dtype("float32")}


# Misuse


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("fiedlr", 1.0), "name='fiedlr' is no penalty: did you mean 'fiedler'"),
        (
            ("dropout", 1.0),
            r"choose one of \['fiedler', 'l1', 'l2', 'layer_quotient', .* 'spectral_norm'\]",
        ),
    ],
)
def test_an_unknown_name_gets_a_suggestion(arguments, message):
    with pytest.raises(ValueError, match=message):
        spectral_penalty(*arguments)


@pytest.mark.parametrize(
    "penalty, option, message",
    [
        ("fiedler", "normalized", "with 'fiedler': did you mean 'normalised'"),
        ("fiedler", "refesh", "did you mean 'refresh'"),
        (Penalty(lambda w, _: w[0].sum()), "moed", "with a Penalty: did you mean 'mode'"),
        (Penalty(lambda w, _: w[0].sum()), "edges", "there is mode, learning_rate, view"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(penalty, option, message):
    with pytest.raises(TypeError, match=f"'{option}' is no option .*{message}"):
        spectral_penalty(penalty, 1.0, **{option: 1})


def test_misuse_names_the_argument_and_the_fix():
    with pytest.raises(ValueError, match=r"name=<function.*: pass .* or Penalty\(value\)"):
        spectral_penalty(lambda w, _: w[0].sum(), 1.0)
    with pytest.raises(ValueError, match="mode='prox': choose 'penalty' or 'proximal'"):
        spectral_penalty("l1", 1.0, mode="prox")
    with pytest.raises(ValueError, match="steps=0: choose at least 1"):
        every(0)
    with pytest.raises(ValueError, match="check_every=0.5 is not an integer: choose at least 1"):
        on_residual(check_every=0.5)
    with pytest.raises(ValueError, match="mode='proximal' needs learning_rate: pass"):
        spectral_penalty("l1", 1.0, mode="proximal")
    penalty = spectral_penalty("l1", 1.0)
    with pytest.raises(ValueError, match=r"needs params: call update\(updates, state, params\)"):
        penalty.update(nothing(network()), penalty.init(network()))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: spectral_penalty("fiedler", 1.0, k=0), "k=0: choose at least 1"),
        (lambda: spectral_penalty("fiedler", 1.0, k=1.5), "k=1.5 is not an integer"),
        (lambda: spectral_penalty("fiedler", 1.0, max_matvecs=0), "max_matvecs=0: choose"),
        (lambda: spectral_penalty("fiedler", 1.0, tol=np.nan), "tol=nan: choose a finite"),
        (lambda: spectral_penalty("fiedler", 1.0, component="big"), "component='big': choose"),
        (lambda: spectral_penalty("fiedler", 1.0, sign=np.nan), "sign=nan: choose a finite"),
        (lambda: spectral_penalty("richness", 1.0, order="last"), "order='last': choose"),
        (lambda: on_residual(np.nan), "tolerance=nan: choose a finite"),
        (lambda: spectral_penalty("l1", 1.0, refresh=10), r"refresh=10: pass every\(steps\)"),
        (
            lambda: spectral_penalty("l1", jnp.ones(1)),
            r"strength has shape \(1,\): pass one number",
        ),
        (
            lambda: jax.jit(lambda s: spectral_penalty("l1", s).init(network()))(jnp.ones(2)),
            "shape",
        ),
    ],
)
def test_options_are_refused_when_the_penalty_is_made_not_at_its_first_update(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_layers_whose_names_do_not_sort_in_their_order_take_a_view():
    params = {"head": {"kernel": jnp.ones((6, 3))}, "hidden": {"kernel": jnp.ones((8, 6))}}
    with pytest.raises(ValueError, match="view=lambda params: weights.graph_weights"):
        spectral_penalty("l1", 0.5).init(params)
    layout = (weights_of.Block("hidden/kernel", 0, 1), weights_of.Block("head/kernel", 1, 2))
    tx = spectral_penalty("l1", 0.5, view=lambda params: weights_of.graph_weights(params, layout))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert jnp.allclose(updates["head"]["kernel"], 0.5)
