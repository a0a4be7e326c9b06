"""A chunk of compiled steps is a plain training loop, for every trial on its own."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
from experiments.errors import USAGE, UserError
from experiments.training.blocks import Trial, padded, width
from experiments.training.orders import permutation
from experiments.training.program import evaluate
from experiments.training.task import OBJECTIVES, Data, Objective, Task, relu_switch, windows
from experiments.training.trainer import Trainer

BATCH, EXAMPLES, EPOCH = 4, 19, 4  # an epoch is four batches; three examples are left over
RATE, MOMENTUM = 0.1, 0.9
NET = models.network("mlp", input_shape=(6,), classes=3, hidden=(5,), dropout=0.3)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def examples(count):
    """Bytes, as images are, that the network sees scaled."""
    rng = np.random.default_rng(count)
    x = jnp.asarray(rng.integers(0, 256, (count, 6)), jnp.uint8)
    y = jnp.asarray(rng.integers(0, 3, count), jnp.int32)
    return Data({"x": x, "y": y}, {"shift": jnp.float32(128), "scale": jnp.float32(1 / 64)})


def momentum(hyper):
    return optax.sgd(RATE, momentum=MOMENTUM)


def plain(hyper):
    return optax.sgd(RATE)


def adam(hyper):
    return optax.adam(RATE)


def toy(net=NET, *, axis="map", optimizer=momentum, data=None, **options):
    splits = {"train": data or DATA, **{f"{n}": examples(n) for n in (7, 1000, 2001)}}
    options = {"objective": OBJECTIVES["cross_entropy"], "batch_size": BATCH, **options}
    return Trainer(Task("toy", net, data=splits, sha256="", **options), optimizer, axis)


DATA = examples(EXAMPLES)


@cache
def initial(*seeds):
    return toy().start([Trial(seed) for seed in seeds])


def chunks(state, *steps, **options):
    """Train chunk after chunk, and the metrics of the last; `state` stays usable."""
    trainer, metrics = toy(**options), []
    for count in steps:
        state = trainer.train(state, steps=count, on_chunk=lambda _, found: metrics.append(found))
    return state, metrics[-1]


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
    x, y = (DATA.examples["x"][rows].astype(jnp.float32) - 128) / 64, DATA.examples["y"][rows]
    logits, _ = NET.apply(params, {}, x, train=True, key=dropout_key)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)
    return -chosen.mean(), (logits.argmax(1) == y).mean()


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


def test_equal_structures_compile_once_whatever_the_chunk():
    traces = []

    def apply(params, state, x, *, train=False, key=None):
        traces.append(train)
        return x @ params["w"], state

    net = models.Network(lambda key: ({"w": jnp.zeros((6, 3))}, {}), apply, tuple)
    state = toy(net).start([Trial(0), Trial(1)])
    chunks(state, 4, net=net)
    seen = len(traces)
    chunks(state, 4, 1, 3, 4, net=net)
    assert len(traces) == seen > 0


# Trials


def test_side_by_side_and_one_after_the_other_agree_to_rounding():
    together = chunks(initial(0, 1), 4)
    assert_same(chunks(initial(0, 1), 4, axis="vmap"), together, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis", ["map", "vmap"])
def test_a_trial_ends_the_same_to_the_bit_in_any_company(axis):
    alone, _ = chunks(initial(1), 4, axis=axis)
    among, _ = chunks(initial(0, 1, 2), 4, axis=axis)
    assert_same(seed(among, 1), seed(alone, 0))
    assert len(among.key) == 3  # what fills a width up is not seen


def test_seeds_differ():
    state, _ = chunks(initial(0, 1), 4)
    for tree in (initial(0, 1).params, state.params):
        for leaf in jax.tree.leaves(tree):
            assert np.abs(leaf[0] - leaf[1]).max() > 1e-3


@pytest.mark.parametrize("axis", ["map", "vmap"])
def test_a_trial_that_has_diverged_is_over_and_leaves_the_others_untouched(axis):
    healthy = initial(0, 1)
    poisoned = healthy._replace(
        params=jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), healthy.params)
    )
    expected = chunks(healthy, 4, axis=axis)
    state, metrics = chunks(poisoned, 4, axis=axis)
    assert_same(seed((state, metrics), 0), seed(expected, 0))
    assert all(np.isnan(values[1]) for values in metrics.values())
    assert state.step.tolist() == [4, 4]
    if axis == "map":  # there it takes no further step
        assert_same(seed(state.opt_state, 1), seed(poisoned.opt_state, 1))
    assert all(np.isnan(leaf[1]).any() for leaf in jax.tree.leaves(state.params))


# Batches, seen by a network that writes down which examples it is shown

NUMBERED = Data(
    {"x": jnp.arange(EXAMPLES, dtype=jnp.float32)[:, None], "y": jnp.zeros(EXAMPLES, jnp.int32)},
    {"shift": jnp.float32(0), "scale": jnp.float32(1)},
)


def witness(params, shown, x, *, train=False, key=None):
    shown = jnp.roll(shown, -1, axis=0).at[-1].set(x[:, 0].astype(jnp.int32))
    return x @ params["w"], shown


WITNESS = models.Network(
    lambda key: ({"w": jnp.zeros((1, 3))}, jnp.full((2 * EPOCH, BATCH), -1)), witness, tuple
)


def batches(*seeds, steps=(4, 4), hyper=None, **options):
    """Which examples each step of two epochs saw: `[seeds, steps, batch]`."""
    options = {"net": WITNESS, "data": NUMBERED, "optimizer": plain, **options}
    state = toy(**options).start([Trial(seed, hyper or {}) for seed in seeds])
    return np.asarray(chunks(state, *steps, **options)[0].model_state)


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
    np.testing.assert_array_equal(batches(0, 1, optimizer=adam), ours)
    np.testing.assert_array_equal(batches(1, 1), ours[[1, 1]])


@pytest.mark.parametrize("size", [1, 2, 19, 3001])
def test_the_order_of_an_epoch_is_the_permutation_of_jax(size):
    key = jax.random.key(size)
    np.testing.assert_array_equal(permutation(key, size), jax.random.permutation(key, size))


def test_replacement_draws_every_batch_anew_from_the_first_examples():
    seen = batches(0, order="replacement", hyper={"examples": 5.0})[0]
    for step, rows in enumerate(seen):
        key = jax.random.fold_in(jax.random.key(0), step)
        np.testing.assert_array_equal(rows, jax.random.randint(key, (BATCH,), 0, 5))
    assert batches(0, order="replacement").max() > 5


def test_a_seed_starts_from_the_same_weights_in_every_arm():
    arm = toy(optimizer=adam).start([Trial(0), Trial(1)])
    assert_same(arm.params, initial(0, 1).params)


# Numbers


def numbered(hyper):
    return optax.chain(
        optax.add_decayed_weights(hyper["decay"]),
        optax.sgd(hyper["rate"], momentum=hyper["momentum"]),
    )


NINE = [
    {"rate": rate, "momentum": 0.9, "decay": decay, "label_scale": scale, "relu_logits": relu}
    for rate in (0.1, 0.2, 0.4)
    for decay, scale, relu in ((0.0, 1.0, 0.0), (0.1, 3.0, 0.0), (0.1, 1.0, 1.0))
]


def test_nine_arms_that_differ_in_numbers_are_one_compilation(compilations):
    trainer = toy(optimizer=numbered, objective=OBJECTIVES["mse"], head=relu_switch)
    known = None
    for arm in NINE:
        state = trainer.train(trainer.start([Trial(0, arm)]), steps=3)
        known = known or len(compilations)
        assert np.isfinite(trainer.evaluate(state, "7")["loss"]).all()
    assert len(compilations) - known <= 1  # the evaluation of the first arm


def test_numbers_do_in_company_what_they_would_do_as_constants():
    options = {"optimizer": numbered, "objective": OBJECTIVES["mse"], "head": relu_switch}
    state, _ = chunks(toy(**options).start([Trial(0, arm) for arm in NINE]), 4, **options)
    for index in (0, 4, 8):
        arm = NINE[index]

        def loss(outputs, batch):
            outputs = jax.nn.relu(outputs) if arm["relu_logits"] else outputs  # noqa: B023
            targets = arm["label_scale"] * jax.nn.one_hot(batch["y"], 3)  # noqa: B023
            return jnp.mean((outputs - targets) ** 2, axis=-1)

        constant = {"optimizer": lambda _: numbered(arm), "objective": Objective(loss)}  # noqa: B023
        alone, _ = chunks(toy(**constant).start([Trial(0)]), 4, **constant)
        assert_same(seed(state.params, index), seed(alone.params, 0), rtol=1e-5, atol=1e-7)


def test_trials_with_different_names_of_numbers_are_refused():
    with pytest.raises(ValueError, match="hyper has .*'rate'.* give every trial the same names"):
        toy().start([Trial(0), Trial(0, {"rate": 1.0})])


def test_a_loss_that_is_not_per_example_is_one_clear_line():
    def mean(outputs, batch):
        return outputs.mean()

    trainer = toy(objective=Objective(mean))
    message = (
        r"the loss of toy \(.*mean\) has shape \(\) for 4 examples: return one number for each"
    )
    with pytest.raises(UserError, match=message) as failure:
        trainer.train(trainer.start([Trial(0)]), steps=1)
    assert failure.value.exit_code == USAGE


# Evaluation


def logits_by_hand(params, x):
    x = (np.asarray(x, np.float64) - 128) / 64
    first, last = params["layers"]["0"], params["layers"]["1"]
    hidden = np.maximum(x @ np.asarray(first["kernel"]) + np.asarray(first["bias"]), 0)
    return hidden @ np.asarray(last["kernel"]) + np.asarray(last["bias"])


@pytest.mark.parametrize(("count", "axis"), [(7, "map"), (1000, "vmap"), (2001, "map")])
def test_evaluation_is_the_mean_over_all_examples(count, axis):
    trainer, (x, y) = toy(axis=axis), examples(count).examples.values()
    result = trainer.evaluate(initial(0, 1), str(count))
    outputs = trainer.outputs(initial(0, 1), str(count))
    for index in range(2):
        logits = logits_by_hand(seed(initial(0, 1), index).params, x)
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(count), np.asarray(y)]
        np.testing.assert_allclose(result["loss"][index], losses.mean(), rtol=1e-5)
        np.testing.assert_allclose(result["accuracy"][index], (logits.argmax(1) == y).mean())
        np.testing.assert_allclose(outputs[index], logits, rtol=1e-4, atol=1e-5)


def test_of_many_examples_nothing_but_means_is_kept(monkeypatch):
    """And where the number of each is asked for, or kept anyway, the means are the same."""
    state, few = initial(0, 1), toy().evaluate(initial(0, 1), "7")
    monkeypatch.setattr("experiments.training.trainer.FEW", 6)
    assert_same(toy().evaluate(state, "7"), few, rtol=1e-6)
    for name, values in toy().items(state, "7").items():
        np.testing.assert_allclose(values.mean(axis=1), few[name], rtol=1e-6)
    shown = partial(evaluate, task=toy().task.structure, axis="map")
    means, items = jax.eval_shape(shown, state, examples(7))
    assert not items and {leaf.shape for leaf in means.values()} == {(2,)}


def test_a_network_of_nans_gets_nothing_right():
    lost = initial(0, 1)._replace(
        params=jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), initial(0, 1).params)
    )
    found = examples(7)
    all_zero = replace(found, examples={**found.examples, "y": jnp.zeros(7, jnp.int32)})
    result = toy(data=all_zero).evaluate(lost, "train")  # 0 is what argmax of NaN says
    assert np.isnan(result["loss"][1]) and result["accuracy"][1] == 0
    assert np.isfinite(result["loss"][0])


def test_dropout_stays_on_only_when_asked():
    def evaluated(state, **options):
        return toy().evaluate(state, "7", **options)

    off, on = evaluated(initial(0, 1)), evaluated(initial(0, 1), dropout=True)
    assert (np.abs(on["loss"] - off["loss"]) > 1e-3).all()
    assert_same(evaluated(initial(0, 1), dropout=True), on)  # the masks follow from the state
    other_keys = initial(0, 1)._replace(key=initial(0, 1).key[::-1])
    again = evaluated(other_keys, dropout=True)
    assert (np.abs(again["loss"] - on["loss"]) > 1e-3).all()
    assert_same(evaluated(other_keys), off)


def blackened(key, raw):
    assert raw["x"].dtype == jnp.uint8  # what the network sees scaled later
    return {**raw, "x": jnp.zeros_like(raw["x"])}


def test_augmentation_changes_raw_examples_and_nothing_else():
    black = replace(DATA, examples=blackened(None, DATA.examples))
    ours, _ = chunks(initial(0), 2, augment=blackened)
    theirs, _ = chunks(initial(0), 2, data=black)
    assert_same(ours, theirs, rtol=1e-6, atol=1e-7)


def test_a_fresh_start_keeps_weights_and_forgets_momentum():
    moved, _ = chunks(initial(0, 1), 4)
    again = toy().restart(moved)
    assert_same(again._replace(opt_state=()), moved._replace(opt_state=()))
    assert_same(again.opt_state, initial(0, 1).opt_state)


def test_programs_of_a_vmap_are_compiled_for_few_widths():
    assert [width(trials, "vmap") for trials in (1, 8, 9, 64)] == [8, 8, 16, 64]
    assert [width(trials, "map") for trials in (1, 9)] == [1, 9]
    filled = padded({"w": jnp.arange(3.0)}, 8)["w"]
    assert filled.tolist() == [0, 1, 2, 2, 2, 2, 2, 2]


# Language models and operators


def test_windows_are_cut_from_a_text_and_predict_its_next_letters():
    text = jnp.arange(100) % 7
    batch = windows(5)(jnp.array([3, 50]), text)
    np.testing.assert_array_equal(batch["x"], [(3 + np.arange(5)) % 7, (50 + np.arange(5)) % 7])
    np.testing.assert_array_equal(batch["y"][:, :-1], batch["x"][:, 1:])
    right = 50.0 * jax.nn.one_hot(batch["y"], 7)
    assert OBJECTIVES["next_token"].loss(right, batch).tolist() == [0, 0]
    np.testing.assert_allclose(OBJECTIVES["next_token"].loss(0 * right, batch), np.log(7))
    assert windows(5) is windows(5)  # so that tasks of equal windows share programs


def test_the_relative_error_of_a_field_does_not_know_its_scale():
    y = jnp.asarray(np.random.default_rng(0).normal(size=(3, 16, 2)), jnp.float32)
    loss = OBJECTIVES["relative_l2"].loss
    np.testing.assert_allclose(loss(1.25 * y, {"y": y}), 0.25, rtol=1e-5)
    np.testing.assert_allclose(loss(5 * y, {"y": 4 * y}), 0.25, rtol=1e-5)
