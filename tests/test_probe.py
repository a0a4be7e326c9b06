"""A probe measures when it is due, in any loop, and says when to stop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spectral_jax.features import Head
from spectral_jax.nnx import from_nnx, tap
from spectral_jax.optim import log_spaced, probe, when

pytestmark = pytest.mark.usefixtures("quick_compilation")
NAN = float("nan")
SIZE = {"size": lambda layer: jnp.max(layer.rows)}
INPUTS = jnp.ones((2, 1))


def scaled(params, inputs):
    return params * inputs


def looking(at, stop=None, measure=SIZE):
    return probe(scaled, INPUTS, at=at, measure=measure, stop=stop)


def probed(seen=scaled, head=None):
    return probe(seen, INPUTS, at=(0,), measure=SIZE, head=head)


def followed(look, course):
    """The log of a loop that calls at these steps, with parameters that are as large."""
    log = look.start(0.0)
    for step in course:
        log = look.update(log, step, float(step))
    return log


@pytest.mark.parametrize(
    ("course", "steps"),
    [
        (range(6), [0, 2, 5]),
        ((0, 3, 6), [0, 3, 6]),  # ends of chunks: made up for at the next call
        ((1, 6), [1, -1, 6]),
        ((0, 0, 2, 2, 9, 9), [0, 2, 9]),
        ((7,), [-1, -1, 7]),
    ],
)
def test_each_step_of_the_schedule_is_measured_once_when_it_has_come(course, steps):
    log = followed(looking((0, 2, 5)), course)
    assert log.steps.tolist() == steps
    expected = [NAN if step < 0 else step for step in steps]
    np.testing.assert_array_equal(log.values["size"], expected)


@pytest.mark.parametrize(
    ("stop", "at"),
    [
        (when("size", above=2.5), 3),
        (when("size", above=2.5, patience=3), 5),
        (when("size", above=0.5, below=1.5), 1),
        (when("size", above=0.5, below=2.5, patience=3), None),
        (when("size", below=-1), None),
        (None, None),
    ],
)
def test_it_stops_where_a_number_has_been_in_its_range_for_long_enough(stop, at):
    look, ended = looking(range(7), stop), None
    log = look.start(0.0)
    for step in range(7):
        log = look.update(log, step, float(step))
        if ended is None and log.stopped:
            ended = step
    assert ended == at and bool(log.stopped) is (at is not None)  # for good


def test_it_runs_in_a_compiled_loop_of_many_networks_and_computes_only_when_due():
    calls = []

    def counted(layer):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.max(layer.rows)

    look = looking((0, 4), when("size", above=5), {"size": counted})

    @jax.jit
    def train(look, start):
        def step(log, number):
            update = jax.vmap(look.update, in_axes=(0, None, 0))
            return update(log, number, start + number), None

        first = jax.vmap(look.start)(start)
        return jax.lax.scan(step, first, jnp.arange(8))[0]

    log = train(look, jnp.array([0.0, 2.0]))
    jax.effects_barrier()
    np.testing.assert_array_equal(log.values["size"], [[0, 4], [2, 6]])
    assert log.stopped.tolist() == [False, True]
    assert len(calls) == 2  # at two of eight steps, for both networks at once


def test_the_network_of_a_tap_is_compared_with_its_outputs():
    net = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(1)))
    x = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    _, params = from_nnx(net)

    def head(params):
        last = params["layers"][1]
        return Head(last["kernel"], last["bias"])

    names = ("richness", "effective_dimension", "utilisation")
    layers = tap(net, {"last": "layers.1:input", "outputs": ""})
    by_outputs = probe(layers, x, at=(0,), measure=names)
    by_head = probe(tap(net, "layers.1:input"), x, at=(0,), measure=names, head=head)
    found, expected = jax.jit(lambda p: (by_outputs.numbers(p), by_head.numbers(p)))(params)
    assert set(found) == {f"{name}/last" for name in names}
    for name in names:
        assert float(found[f"{name}/last"]) == pytest.approx(float(expected[name]), rel=1e-4)
    assert 0 < expected["richness"] < 1 < expected["effective_dimension"] < 3
    assert 0 < expected["utilisation"] < 1


@pytest.mark.parametrize("outputs, rows, flags", [(4, 9, (1, 0)), (2, 4, (0, 1)), (2, 9, (0, 0))])
def test_where_richness_says_nothing_is_told_beside_it(outputs, rows, flags):
    x = np.random.default_rng(0).standard_normal((rows, 4)).astype(np.float32)
    names = ("richness", "degenerate", "few_rows")
    head = Head(jnp.eye(4)[:, :outputs])
    look = probe(scaled, x, at=(0,), measure=names, head=lambda params: head)
    found = look.numbers(jnp.arange(1.0, 5.0))
    assert tuple(found[name] for name in names[1:]) == flags


def test_classes_are_measured_by_labels():
    x, labels = jnp.eye(4), np.array([0, 0, 1, 1])
    look = probe(lambda scale, x: x @ scale, x, at=(0,), measure=("nc1",), labels=labels)
    collapsed = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert look.numbers(collapsed)["nc1"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: looking(()), r"at=\[\]: pass steps in rising order"),
        (lambda: looking((3, 1)), "rising"),
        (lambda: looking((0,), measure=("richnes",)), "measure='richnes': choose 'richness'"),
        (lambda: looking((0,), when("nc1", below=1)).start(0.0), "by 'nc1': there are size"),
        (lambda: looking((0,), measure="nc1"), r"measure='nc1': pass a tuple of names, \('nc1',\)"),
        (lambda: looking((0,), measure=("nc1",)).start(0.0), "measure 'nc1' needs those"),
        (
            lambda: looking((0,), measure={"rows": lambda layer: layer.rows}).start(0.0),
            r"measure 'rows' has shape \(2, 1\): return one number",
        ),
        (lambda: looking(5), "at=5: pass steps in rising order"),
        (lambda: looking((0,), stop="size below 1"), "stop='size below 1': pass when"),
        (lambda: probed(head=Head(jnp.eye(2))), "head is a Head: pass a function of params"),
        (
            lambda: probed(seen=lambda p, x: {"a": x}, head=lambda p: Head(jnp.eye(1))).start(0.0),
            "head beside layers by name: give the network's outputs as the layer 'outputs'",
        ),
        (lambda: when("size", below=1, above=2), "below=1, above=2: no number is both"),
        (lambda: when("size"), "say where 'size' ends training"),
        (lambda: when("size", below=NAN), "below=nan"),
        (lambda: when("size", below=1, patience=0), "patience=0"),
        (lambda: log_spaced(0, 3), "total=0"),
    ],
)
def test_misuse_is_refused_with_the_fix(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_log_spaced_steps_hold_both_ends():
    assert log_spaced(1, 2) == (0, 1)
    steps = log_spaced(10**5, 30)
    assert (steps[0], steps[-1]) == (0, 10**5) and len(steps) <= 30
