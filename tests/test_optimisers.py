"""From a configuration to an optimiser: every penalty, in both modes, and what each quirk does."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
from experiments.config import ExperimentConfig, ModelConfig, OptimizerConfig, PenaltyConfig
from experiments.errors import USAGE, UserError
from experiments.training.optimisers import (
    CATALOGUE,
    head_of,
    hyper_of,
    optimizer_of,
    penalty_of,
    penalty_state,
    rescale_units,
    structure_of,
)
from experiments.training.program import over_trials
from spectral_jax import graphs
from spectral_jax.linalg import EigResult

NET = models.network("mlp", input_shape=(4,), classes=3, hidden=(5,))
RATE, MOMENTUM, STRENGTH = 0.1, 0.9, 0.01
EFFECTIVE_RATE = RATE / (1 - MOMENTUM)  # what a steady pull moves a weight by, per step

pytestmark = pytest.mark.usefixtures("quick_compilation")


def configured(name="none", strength=STRENGTH, *, mode="penalty", compat=(), momentum=MOMENTUM,
               **penalty):  # fmt: skip
    return ExperimentConfig(
        "toy",
        optimizer=OptimizerConfig("sgd", RATE, momentum),
        penalty=PenaltyConfig(name, strength, mode, **penalty),
        paper_compat=compat,
    )


def optimizer(*arguments, steps_per_epoch=600, **options):
    config = configured(*arguments, **options)
    return optimizer_of(structure_of(config), NET, steps_per_epoch)(hyper_of(config))


@cache
def weights(*seeds):
    """Initial parameters; with a leading axis when there are several seeds."""
    keys = jax.vmap(jax.random.key)(jnp.array(seeds or (0,)))
    params, _ = jax.vmap(NET.init)(keys)
    return params if len(seeds) > 1 else jax.tree.map(lambda leaf: leaf[0], params)


def gradients(steps, *, scale=1.0):
    """A gradient for each of `steps` steps; `scale=0` leaves the penalty alone to pull."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(size=(steps, *leaf.shape)), leaf.dtype),
        weights(),
    )


def descend(transformation, gradients, params=None):
    """Parameters and state after a step along each of the gradients."""

    @jax.jit
    def run(params):
        def step(carry, gradient):
            params, state = carry
            updates, state = transformation.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, transformation.init(params)), gradients)[0]

    return run(weights() if params is None else params)


def kernels(params):
    return [layer["kernel"] for layer in params["layers"].values()]


def biases(params):
    return [layer["bias"] for layer in params["layers"].values()]


def assert_close(ours, theirs, **tolerance):
    tolerance = {"rtol": 1e-5, "atol": 1e-7, **tolerance}
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, **tolerance)


# The catalogue


@pytest.fixture
def dense_solver(monkeypatch):
    """Eigenpairs from LAPACK: quick to compile, where it does not matter how they are found."""

    def pairs(w, k, *, normalised, edges, **options):
        asked.append(options)
        operator = graphs.laplacian(w, normalised=normalised, edges=edges)
        values, vectors = jnp.linalg.eigh(operator @ jnp.eye(operator.size))
        nothing = jnp.zeros(k)
        chosen = slice(1, k + 1)
        return EigResult(values[chosen], vectors[:, chosen], nothing, nothing == 0, jnp.int32(0))

    asked = []
    monkeypatch.setattr(graphs, "fiedler_pairs", pairs)
    return asked


@pytest.mark.usefixtures("dense_solver")
@pytest.mark.parametrize("name", sorted(CATALOGUE.keys() - {"richness"}))  # that one needs a batch
@pytest.mark.parametrize(("mode", "axis"), [("penalty", "map"), ("proximal", "vmap")])
def test_every_penalty_pulls_in_both_modes_under_both_axes(name, mode, axis):
    transformation = optimizer(name, mode=mode)

    @jax.jit
    @partial(over_trials, axis=axis)
    def step(params):
        gradient = jax.tree.map(jnp.zeros_like, params)
        updates, state = transformation.update(gradient, transformation.init(params), params)
        return optax.apply_updates(params, updates), state

    params = weights(0, 1)
    moved, state = step(params)
    for leaf in jax.tree.leaves((moved, state)):
        assert np.isfinite(leaf).all()
    for before, after in zip(kernels(params), kernels(moved), strict=True):
        assert (np.abs(after - before).max(axis=(1, 2)) > 0).all()
    assert_close(biases(moved), biases(params), rtol=0)


def test_an_unknown_penalty_is_one_line_with_a_suggestion():
    with pytest.raises(UserError, match="'fidler' is no penalty; did you mean 'fiedler'?") as error:
        penalty_of(configured("fidler"), NET)
    assert error.value.exit_code == USAGE
    with pytest.raises(UserError, match="there are: none, l1, l2, fiedler"):
        penalty_of(configured("zzz"), NET)


def test_no_penalty_and_no_strength_are_the_plain_optimiser():
    plain, _ = descend(optax.sgd(RATE, momentum=MOMENTUM), gradients(2))
    for name, strength in (("none", 1.0), ("l1", 0.0)):
        ours, state = descend(optimizer(name, strength), gradients(2))
        assert_close(ours, plain)
        assert penalty_state(state) is None


def test_decay_by_adamw_is_added_to_the_step_and_not_to_the_gradient():
    config = ExperimentConfig("toy", optimizer=OptimizerConfig("adamw", RATE, weight_decay=0.3))
    ours, _ = descend(optimizer_of(structure_of(config), NET, 1)(hyper_of(config)), gradients(1))
    adam, _ = descend(optax.adam(RATE), gradients(1))
    decayed = jax.tree.map(lambda after, before: after - RATE * 0.3 * before, adam, weights())
    assert_close(ours, decayed, rtol=1e-5)


def test_training_the_head_leaves_what_lies_before_it():
    config = ExperimentConfig("toy", optimizer=OptimizerConfig("sgd", RATE, trained="head"))
    ours, _ = descend(optimizer_of(structure_of(config), NET, 1)(hyper_of(config)), gradients(2))
    every, _ = descend(optimizer(), gradients(2))
    assert_close(ours["layers"]["0"], weights()["layers"]["0"], rtol=0)
    assert_close(ours["layers"]["1"], every["layers"]["1"])
    assert head_of(NET._replace(blocks=None)) == "layers/1"  # of networks without a graph too
    text = models.network("gpt", input_shape=(6,), classes=10, width=16, depth=1, heads=2)
    with pytest.raises(UserError, match="optimizer.trained = 'head': .* set optimizer.trained=all"):
        optimizer_of(structure_of(config), text, 1)


# Strength, momentum and mode


def test_the_penalty_is_added_to_the_gradient():
    ours, _ = descend(optimizer("l1"), gradients(1))
    for before, after, gradient in zip(
        kernels(weights()), kernels(ours), kernels(gradients(1)), strict=True
    ):
        expected = before - RATE * (gradient[0] + STRENGTH * jnp.sign(before))
        np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-7)


def test_the_proximal_step_shrinks_after_the_step_and_stops_at_zero():
    strength = 0.2
    plain, _ = descend(optimizer(), gradients(1))
    ours, _ = descend(optimizer("l1", strength, mode="proximal"), gradients(1))
    for free, shrunk in zip(kernels(plain), kernels(ours), strict=True):
        threshold = EFFECTIVE_RATE * strength
        expected = jnp.sign(free) * jnp.maximum(jnp.abs(free) - threshold, 0)
        np.testing.assert_allclose(shrunk, expected, rtol=1e-5, atol=1e-7)
        assert (shrunk == 0).any()
    assert_close(biases(ours), biases(plain))


def test_both_modes_come_to_the_same_under_momentum_when_the_strength_is_small():
    """Heavy ball adds a pull up to 1 / (1 - m) of it; the proximal step takes that at once."""
    strength, steps = 1e-4, 200
    pulled, shrunk = (
        descend(optimizer("l2", strength, mode=mode), gradients(steps, scale=0))[0]
        for mode in ("penalty", "proximal")
    )
    getting_going = MOMENTUM / (1 - MOMENTUM) / steps  # the ball's steps lost to inertia
    for start, slow, full in zip(*map(kernels, (weights(), pulled, shrunk)), strict=True):
        np.testing.assert_allclose(start - slow, (start - full) * (1 - getting_going), rtol=0.01)


# What the published code did


def test_l1_biases_shrinks_biases_too():
    without, _ = descend(optimizer("l1"), gradients(1, scale=0))
    ours, _ = descend(optimizer("l1", compat=("l1_biases",)), gradients(1, scale=0))
    assert_close(kernels(ours), kernels(without))
    for before, after in zip(biases(weights()), biases(ours), strict=True):
        np.testing.assert_allclose(after, before - RATE * STRENGTH * jnp.sign(before), rtol=1e-5)
    assert_close(biases(without), biases(weights()), rtol=0)


def test_coupled_l2_is_the_weight_decay_of_torch():
    """`torch.optim.SGD`: g += decay * p; v = momentum * v + g; p -= lr * v, for all parameters."""
    decay, steps = 0.5, 3
    ours, _ = descend(optimizer("l2", decay, compat=("coupled_l2",)), gradients(steps))
    p, v = weights(), jax.tree.map(jnp.zeros_like, weights())
    for step in range(steps):
        g = jax.tree.map(lambda g, p: g[step] + decay * p, gradients(steps), p)  # noqa: B023
        v = jax.tree.map(lambda v, g: MOMENTUM * v + g, v, g)
        p = jax.tree.map(lambda p, v: p - RATE * v, p, v)
    assert_close(ours, p)
    without, _ = descend(optimizer("l2", decay), gradients(steps))
    plain, _ = descend(optimizer(), gradients(steps))
    assert_close(biases(without), biases(plain))
    assert np.abs(biases(ours)[0] - biases(plain)[0]).max() > 1e-3


@pytest.mark.parametrize("mode", ["penalty", "proximal"])
def test_half_gradient_halves_the_pull(mode):
    whole, _ = descend(optimizer("l2", mode=mode), gradients(1, scale=0))
    half, _ = descend(optimizer("l2", mode=mode, compat=("half_gradient",)), gradients(1, scale=0))
    for start, one, other in zip(*map(kernels, (weights(), whole, half)), strict=True):
        np.testing.assert_allclose(2 * (start - other), start - one, rtol=1e-4, atol=1e-8)


def test_whole_graph_means_every_component_not_the_largest(dense_solver):
    for compat in ((), ("whole_graph",)):
        penalty = penalty_of(configured("fiedler", compat=compat), NET)
        w = tuple(kernels(weights()))
        jax.eval_shape(lambda: penalty.refresh(w, penalty.init(w)))  # noqa: B023
    assert [options["component"] for options in dense_solver] == ["largest", "whole"]


@pytest.mark.usefixtures("dense_solver")
@pytest.mark.parametrize(
    ("options", "steps", "solves"),
    [
        # An epoch of 600 steps: its start, and after steps 0, 100, ..., 500.
        ({"compat": ("epoch_start_and_every_100",)}, 1200, 14),
        ({"refresh": "schedule", "refresh_every": 7}, 15, 3),
        ({"residual_tolerance": 1e9}, 15, 1),
        ({"residual_tolerance": 1e-9}, 15, 2),  # it is looked at every tenth step
    ],
)
def test_the_vector_is_solved_for_when_it_was_said(options, steps, solves):
    _, state = descend(optimizer("fiedler", **options), gradients(steps, scale=0.1))
    assert penalty_state(state).penalty.refreshes == solves


@pytest.fixture(scope="module")
def rescaled():
    compat = ("rescale_units",)
    params, _ = descend(optimizer("none", compat=compat), gradients(1))
    return params, descend(optimizer(), gradients(1))[0]


def test_rescale_units_balances_every_hidden_unit_and_keeps_the_function(rescaled):
    balanced, plain = rescaled
    x = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
    np.testing.assert_allclose(
        NET.apply(balanced, {}, x)[0], NET.apply(plain, {}, x)[0], rtol=1e-4, atol=1e-5
    )
    for kernel, bias in list(zip(kernels(balanced), biases(balanced), strict=True))[:-1]:
        np.testing.assert_allclose(np.sqrt((kernel**2).sum(0) + bias**2), np.sqrt(2), rtol=1e-5)
    assert np.abs(kernels(balanced)[0] - kernels(plain)[0]).max() > 0.1


def test_rescale_units_leaves_a_unit_without_weights_alone():
    dead = jax.tree.map(jnp.zeros_like, weights())
    balanced, _ = descend(rescale_units(), gradients(1, scale=0), dead)
    assert_close(balanced, dead, rtol=0, atol=0)


def test_rescale_units_is_refused_for_a_network_that_is_no_mlp():
    config = dataclasses.replace(configured(compat=("rescale_units",)), model=ModelConfig("lenet"))
    with pytest.raises(UserError, match="for model.name = mlp: .* model.name = lenet") as error:
        optimizer_of(structure_of(config), NET, 1)
    assert error.value.exit_code == USAGE


# Seeds


@pytest.fixture(scope="module")
def side_by_side():
    """Twelve steps of the Fiedler penalty for two seeds under `vmap`, given their weights."""
    transformation = optimizer("fiedler", 1.0, residual_tolerance=0.02)

    @jax.jit
    @partial(over_trials, axis="vmap")
    def run(params):
        def step(carry, gradient):
            params, state = carry
            updates, state = transformation.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, transformation.init(params)), gradients(12))[0]

    return run


def in_company(one, other):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), one, other)


def steady():
    """Weights so large that the gradients do not turn their Fiedler vector."""
    return jax.tree.map(lambda leaf: 1e3 * leaf, weights())


def test_a_seed_refreshes_when_it_needs_to_whatever_its_company_needs(side_by_side):
    restless = jax.tree.map(lambda leaf: 1e-3 * leaf, weights())
    _, states = side_by_side(in_company(steady(), restless))
    assert penalty_state(states).penalty.refreshes.tolist() == [1, 2]


def test_a_seed_that_is_lost_does_not_touch_the_penalty_of_the_others(side_by_side):
    lost = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), weights())
    expected = side_by_side(in_company(steady(), steady()))
    ours = side_by_side(in_company(steady(), lost))
    first = partial(jax.tree.map, lambda leaf: leaf[0])
    assert_close(first(ours), first(expected), rtol=0, atol=0)
    assert np.isnan(kernels(ours[0])[0][1]).all()
