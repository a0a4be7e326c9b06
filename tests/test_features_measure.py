"""What a run says of its features is what NumPy makes of the network's own weights."""

from functools import partial
from itertools import product
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.errors import USAGE, UserError
from experiments.training import representations
from experiments.training.measures import MEASURES
from experiments.training.measures import features as measure
from experiments.training.program import Program
from experiments.training.task import OBJECTIVES, Data, Task
from models import moving, network

pytestmark = pytest.mark.usefixtures("quick_compilation")
NET = network("mlp", input_shape=(4,), classes=3, hidden=(6, 5))
RANDOM = np.random.default_rng(0)
SHARED = {"shift": jnp.float32(8), "scale": jnp.float32(1 / 4)}
X, Y = RANDOM.integers(0, 17, (60, 4)), RANDOM.integers(0, 3, 60)
CONFIG = SimpleNamespace()


@pytest.fixture(scope="module")
def state():
    task = Task("", NET, OBJECTIVES["mse"], {}, "", batch_size=10)
    made = Program(task, lambda _: optax.sgd(0.1)).init(
        jax.random.split(jax.random.key(0), 2), {"rate": jnp.zeros(2)}
    )
    return made._replace(params=jax.tree.map(lambda leaf: 3 * leaf, made.params))


@pytest.fixture
def sets(monkeypatch):
    """More training examples than are looked at, fewer unseen ones."""
    monkeypatch.setattr(representations, "PROBE_EXAMPLES", 40)
    data = Data({"x": jnp.asarray(X, jnp.uint8), "y": jnp.asarray(Y)}, SHARED)
    few = Data({"x": data.examples["x"][-20:], "y": data.examples["y"][-20:]}, SHARED)
    return {"train": data, "test": few}


def by_numpy(state, trial, rows):
    """Features of both layers, outputs, and labels, in float64."""
    layers = [
        {name: np.float64(leaf[trial]) for name, leaf in state.params["layers"][str(i)].items()}
        for i in range(3)
    ]
    x, seen = (X[rows] - 8) / 4, []
    for layer in layers:
        x = x @ layer["kernel"] + layer["bias"]
        seen.append(x)
        x = np.maximum(x, 0)
    return np.maximum(seen[0], 0), np.maximum(seen[1], 0), seen[2], Y[rows]


def richness(features, outputs):
    """1 - CKA of the two operators, n x n, the projection not centred before CKA does."""
    basis = np.linalg.qr(outputs)[0]
    middle = np.eye(len(features)) - 1 / len(features)
    a, b = middle @ features @ features.T @ middle, middle @ basis @ basis.T @ middle
    return 1 - np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))


def dimension(features):
    values = np.linalg.svd(features - features.mean(0), compute_uv=False) ** 2
    share = values / values.sum()
    return np.exp(-np.sum(share * np.log(share)))


def test_richness_and_dimension_are_those_of_the_layers(state, sets):
    numbers, arrays = MEASURES["features"](CONFIG, NET)(state, sets)
    shown = ("", slice(40)), ("unseen/", slice(40, 60))
    for (place, rows), trial in product(shown, range(2)):
        first, last, outputs, labels = by_numpy(state, trial, rows)
        told = {name: value[trial] for name, value in numbers.items()}
        close = dict(rel=1e-4)
        assert told[f"features/{place}richness"] == pytest.approx(richness(last, outputs), **close)
        other = told[f"features/{place}richness/layers/1"]
        assert other == pytest.approx(richness(first, outputs), **close)
        found = told[f"features/{place}effective_dimension/layers/1"]
        assert found == pytest.approx(dimension(first), **close)
        _check_spectrum(arrays, f"features/{place}", trial, last, labels)


def _check_spectrum(arrays, place, trial, features, labels):
    """Eigenvalues, and the share of the labels in the leading directions."""
    centred = features - features.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    values = arrays[f"{place}eigenvalues"][trial]
    known = ~np.isnan(values)
    np.testing.assert_allclose(values[known], s[known] ** 2 / len(features), rtol=1e-4)
    targets = np.eye(3)[labels]
    basis = np.linalg.svd(targets - targets.mean(0), full_matrices=False)[0][:, :2]
    expected = np.cumsum(np.sum((basis.T @ u) ** 2, axis=0)) / 2
    found = arrays[f"{place}quality"][trial]
    np.testing.assert_allclose(found[known], expected[known], rtol=1e-3)


def test_of_a_diverged_network_nothing_is_known(state, sets):
    params = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), state.params)
    numbers, arrays = MEASURES["features"](CONFIG, NET)(state._replace(params=params), sets)
    for name, (sound, diverged) in (numbers | arrays).items():
        assert np.isnan(diverged).all(), name
        assert not np.isnan(sound).all() or "corrected" in name, name


def test_collapse_is_that_of_the_classes(state, sets):
    numbers, arrays = MEASURES["collapse"](CONFIG, NET)(state, sets)
    assert not arrays
    first, last, outputs, labels = by_numpy(state, 0, slice(40, 60))
    for name, features in (("", last), ("/layers/1", first)):
        means = means_of(features, labels)
        within, between = np.cov((features - means[labels]).T, ddof=0), np.cov(means.T, ddof=0)
        expected = np.trace(within) / np.trace(between)
        found = numbers[f"collapse/unseen/nc1_quotient{name}"][0]
        assert found == pytest.approx(expected, rel=1e-4)
    nearest = np.argmin(((last[:, None] - means_of(last, labels)) ** 2).sum(-1), axis=1)
    disagree = np.mean(nearest != outputs.argmax(1))
    assert numbers["collapse/unseen/nc4"][0] == pytest.approx(disagree)


def means_of(features, labels):
    return np.stack([features[labels == c].mean(0) for c in range(3)])


def test_the_moments_that_training_batches_left_are_read(state, sets, monkeypatch):
    monkeypatch.setattr(measure, "measured", lambda *_: ({}, {}))  # of those alone
    net = moving(NET, decay=0.5)
    first = jax.vmap(net.init)(jax.random.split(jax.random.key(0), 2))[1]
    assert np.isnan(batches(net, state._replace(model_state=first), sets)).all()
    train = jax.jit(jax.vmap(partial(net.apply, train=True), in_axes=(0, 0, None)))
    kept = train(state.params, first, jnp.asarray((X - 8) / 4, jnp.float32))[1]
    found = batches(net, state._replace(model_state=kept), sets)
    for trial in range(2):
        _, last, outputs, _ = by_numpy(state, trial, slice(None))
        assert found[0][trial] == pytest.approx(richness(last, outputs), rel=1e-3)
        assert found[1][trial] == pytest.approx(dimension(last), rel=1e-3)


def batches(net, state, sets):
    numbers, _ = MEASURES["features"](CONFIG, net)(state, sets)
    return numbers["features/batches/richness"], numbers["features/batches/effective_dimension"]


@pytest.mark.parametrize("name", ["features", "collapse"])
def test_a_network_without_parts_has_no_features(name):
    with pytest.raises(UserError, match=f"train.measures: '{name}' needs") as failure:
        MEASURES[name](CONFIG, NET._replace(representations=()))
    assert failure.value.exit_code == USAGE
