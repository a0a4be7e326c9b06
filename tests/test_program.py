"""A chunk of compiled steps is a plain training loop, for every seed on its own."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from experiments.loop import Data, Program, evaluate

import models

BATCH, EXAMPLES, EPOCH = 4, 19, 4  # an epoch is four batches; three examples are left over
RATE, MOMENTUM = 0.1, 0.9
NET = models.network("mlp", input_shape=(6,), classes=3, hidden=(5,), dropout=0.3)
PROGRAM = Program(NET.apply, optax.sgd(RATE, momentum=MOMENTUM), BATCH, EXAMPLES)
both_axes = pytest.mark.parametrize("seed_axis", ["map", "vmap"])

pytestmark = pytest.mark.usefixtures("quick_compilation")


def examples(count):
    """Bytes, as images are, that the network sees scaled."""
    rng = np.random.default_rng(count)
    x = jnp.asarray(rng.integers(0, 256, (count, 6)), jnp.uint8)
    y = jnp.asarray(rng.integers(0, 3, count), jnp.int32)
    return Data(x, y, jnp.float32(128), jnp.float32(1 / 64))


DATA = examples(EXAMPLES)


@cache
def initial(*seeds):
    return PROGRAM.init(NET.init, jax.vmap(jax.random.key)(jnp.array(seeds)))


def chunks(state, *steps, seed_axis="map", program=PROGRAM, data=DATA):
    """Train chunk after chunk, and the metrics of the last; `state` stays usable."""
    state = jax.tree.map(jnp.copy, state)  # a chunk takes its argument's memory
    for count in steps:
        state, metrics = program.chunk(state, data, count, seed_axis)
    return state, metrics


def seed(state, index):
    return jax.tree.map(lambda leaf: leaf[index], state)


def arrays(tree):
    """NumPy leaves, keys as what they are made of."""
    return [
        np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
                   else leaf)
        for leaf in jax.tree.leaves(tree)
    ]  # fmt: skip


def assert_same(ours, theirs, *, rtol=0.0, atol=0.0):
    """Bitwise unless a tolerance is given."""
    for one, other in zip(arrays(ours), arrays(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


# Steps


@jax.jit
@partial(jax.value_and_grad, has_aux=True)
def loss_by_hand(params, rows, dropout_key):
    x = (DATA.x[rows].astype(jnp.float32) - 128) / 64
    logits, _ = NET.apply(params, {}, x, train=True, key=dropout_key)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), DATA.y[rows][:, None], axis=1)
    return -chosen.mean(), (logits.argmax(1) == DATA.y[rows]).mean()


def loop_by_hand(state, steps):
    """Heavy ball as on paper, and each step's loss and accuracy."""
    params, (order_key, dropout_key) = state.params, jax.random.split(state.key)
    shuffle = jax.jit(jax.random.permutation, static_argnums=1)
    velocity = jax.tree.map(jnp.zeros_like, params)
    losses, hits = [], []
    for step in range(steps):
        order = shuffle(jax.random.fold_in(order_key, step // EPOCH), EXAMPLES)
        rows = order[step % EPOCH * BATCH :][:BATCH]
        (loss, hit), grads = loss_by_hand(params, rows, jax.random.fold_in(dropout_key, step))
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, grads)
        params = jax.tree.map(lambda p, v: p - RATE * v, params, velocity)
        losses.append(loss)
        hits.append(hit)
    return params, np.array(losses), np.array(hits)


def test_chunks_are_a_loop_of_steps():
    state, metrics = chunks(initial(0, 1), 4, 4)
    for index in range(2):
        params, losses, hits = loop_by_hand(seed(initial(0, 1), index), 8)
        assert_same(seed(state.params, index), params, atol=1e-6)
        np.testing.assert_allclose(metrics["train/loss"][index], losses[4:].mean(), rtol=1e-5)
        np.testing.assert_allclose(metrics["train/accuracy"][index], hits[4:].mean(), rtol=1e-5)
    assert state.step.tolist() == [8, 8]


def test_where_chunks_are_cut_changes_nothing():
    whole, _ = chunks(initial(0, 1), 4, 4)
    cut, _ = chunks(initial(0, 1), 4, 2, 2)
    assert_same(cut, whole)


def test_equal_programs_compile_once():
    traces = []

    def apply(params, state, x, *, train=False, key=None):
        traces.append(train)
        return x @ params["w"], state

    def program():
        return Program(apply, OPTIMIZER, BATCH, EXAMPLES)

    init = lambda key: ({"w": jnp.zeros((6, 3))}, {})  # noqa: E731
    state = program().init(init, initial(0, 1).key)
    chunks(state, 4, program=program())
    seen = len(traces)
    chunks(state, 4, 4, program=program())
    assert len(traces) == seen > 0


# Seeds


def test_side_by_side_and_one_after_the_other_agree_to_rounding():
    together = chunks(initial(0, 1), 4)
    assert_same(chunks(initial(0, 1), 4, seed_axis="vmap"), together, rtol=1e-5, atol=1e-6)
    assert_same(seed(chunks(initial(1), 4), 0), seed(together, 1), rtol=1e-5, atol=1e-6)


def test_seeds_differ():
    state, _ = chunks(initial(0, 1), 4)
    for tree in (initial(0, 1).params, state.params):
        for leaf in jax.tree.leaves(tree):
            assert np.abs(leaf[0] - leaf[1]).max() > 1e-3


@both_axes
def test_a_seed_that_is_lost_leaves_the_others_untouched(seed_axis):
    healthy = initial(0, 1)
    poisoned = healthy._replace(
        params=jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), healthy.params)
    )
    expected = chunks(healthy, 4, seed_axis=seed_axis)
    state, metrics = chunks(poisoned, 4, seed_axis=seed_axis)
    assert_same(seed((state, metrics), 0), seed(expected, 0))
    assert np.isnan(metrics["train/loss"][1]) and metrics["train/accuracy"][1] == 0
    assert all(np.isnan(leaf[1]).any() for leaf in jax.tree.leaves(state.params))


# Batches, seen by a network that writes down which examples it is shown

NUMBERED = Data(
    jnp.arange(EXAMPLES, dtype=jnp.float32)[:, None],
    jnp.zeros(EXAMPLES, jnp.int32),
    jnp.float32(0),
    jnp.float32(1),
)
OPTIMIZER = optax.sgd(RATE)


def witness(params, shown, x, *, train=False, key=None):
    shown = jnp.roll(shown, -1, axis=0).at[-1].set(x[:, 0].astype(jnp.int32))
    return x @ params["w"], shown


def batches(*seeds, optimizer=OPTIMIZER, steps=(4, 4)):
    """Which examples each step of two epochs saw: `[seeds, steps, batch]`."""

    def init(key):
        return {"w": jnp.zeros((1, 3))}, jnp.full((2 * EPOCH, BATCH), -1)

    program = Program(witness, optimizer, BATCH, EXAMPLES)
    state = program.init(init, jax.vmap(jax.random.key)(jnp.array(seeds)))
    state, _ = chunks(state, *steps, program=program, data=NUMBERED)
    return np.asarray(state.model_state)


def test_an_epoch_shows_no_example_twice_and_the_next_is_shuffled_anew():
    for seen in batches(0, 1):
        first, second = seen[:EPOCH].ravel(), seen[EPOCH:].ravel()
        for epoch in (first, second):
            assert len(set(epoch)) == EPOCH * BATCH
            assert set(epoch) < set(range(EXAMPLES))
        assert (first != second).any() and (first != np.sort(first)).any()


def test_a_seed_sees_the_same_batches_in_every_arm_and_in_any_company():
    ours, theirs = batches(0, 1), batches(1, 2)
    np.testing.assert_array_equal(ours[1], theirs[0])
    assert (ours[0] != ours[1]).any()
    np.testing.assert_array_equal(batches(0, 1, optimizer=optax.adam(RATE)), ours)


def test_a_seed_starts_from_the_same_weights_in_every_arm():
    arm = Program(NET.apply, optax.adam(RATE), BATCH, EXAMPLES)
    keys = jax.vmap(jax.random.key)(jnp.array([0, 1]))
    assert_same(arm.init(NET.init, keys).params, initial(0, 1).params)


# Evaluation


def evaluated(state, data, *, seed_axis="map", dropout=False):
    return evaluate(
        state._replace(opt_state=None), data, apply=NET.apply, seed_axis=seed_axis, dropout=dropout
    )


def logits_by_hand(params, data):
    x = (np.asarray(data.x, np.float64) - 128) / 64
    first, last = params["layers"]["0"], params["layers"]["1"]
    hidden = np.maximum(x @ np.asarray(first["kernel"]) + np.asarray(first["bias"]), 0)
    return hidden @ np.asarray(last["kernel"]) + np.asarray(last["bias"])


@pytest.mark.parametrize(("count", "seed_axis"), [(7, "map"), (1000, "vmap"), (2001, "map")])
def test_evaluation_is_the_mean_over_all_examples(count, seed_axis):
    data = examples(count)
    result = evaluated(initial(0, 1), data, seed_axis=seed_axis)
    for index in range(2):
        logits = logits_by_hand(seed(initial(0, 1), index).params, data)
        y = np.asarray(data.y)
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(count), y]
        np.testing.assert_allclose(result["loss"][index], losses.mean(), rtol=1e-5)
        np.testing.assert_allclose(result["accuracy"][index], (logits.argmax(1) == y).mean())


def test_a_network_of_nans_gets_nothing_right():
    lost = initial(0, 1)._replace(
        params=jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), initial(0, 1).params)
    )
    everything_first = examples(7)._replace(y=jnp.zeros(7, jnp.int32))  # what argmax of NaN says
    result = evaluated(lost, everything_first)
    assert np.isnan(result["loss"][1]) and result["accuracy"][1] == 0
    assert np.isfinite(result["loss"][0])


def test_dropout_stays_on_only_when_asked():
    data = examples(7)
    off, on = evaluated(initial(0, 1), data), evaluated(initial(0, 1), data, dropout=True)
    assert (np.abs(on["loss"] - off["loss"]) > 1e-3).all()
    assert_same(evaluated(initial(0, 1), data, dropout=True), on)  # the masks follow from the state
    other_keys = initial(0, 1)._replace(key=initial(0, 1).key[::-1])
    again = evaluated(other_keys, data, dropout=True)
    assert (np.abs(again["loss"] - on["loss"]) > 1e-3).all()
    assert_same(evaluated(other_keys, data), off)


def blackened(key, x):
    assert x.dtype == jnp.uint8  # what the network sees scaled later
    return jnp.zeros_like(x)


def test_augmentation_changes_raw_examples_and_nothing_else():
    augmented = dataclasses.replace(PROGRAM, augment=blackened)
    black = DATA._replace(x=jnp.zeros_like(DATA.x))
    ours, _ = chunks(initial(0), 2, program=augmented)
    theirs, _ = chunks(initial(0), 2, data=black)
    assert_same(ours, theirs, rtol=1e-6, atol=1e-7)
