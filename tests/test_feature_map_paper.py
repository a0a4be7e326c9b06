"""The forward feature map: what is trained and how, and that its evidence has the right sign."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data as datasets
from experiments.config import OptimizerConfig, dump_yaml, to_mapping
from experiments.papers.feature_map import PAPER, claims, figures
from experiments.papers.feature_map.claims import RICHNESS
from experiments.papers.feature_map.measured import balancing, last_of, look, of_last
from experiments.papers.feature_map.protocols import DIGITS, P1, ways_of
from experiments.papers.feature_map.studies import (
    endpoints,
    estimates,
    lazy,
    pixels,
    regimes,
    sizes,
)
from experiments.papers.feature_map.trained import Images, dense, split, trainer
from experiments.papers.networks import opened
from experiments.papers.paper import Outcome
from experiments.report.results import merge, of_arrays
from experiments.report.verdicts import judge_all
from experiments.training.blocks import Trial

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]
NET = dense((3, 2), (5, 4), 3)


# What is trained


def test_ways_to_train_differ_in_what_they_are_named_after():
    ways = ways_of(P1, few=2000, few_epochs=150)
    few = {"data.train_limit", "data.subsets", "data.batch_size", "train.epochs"}
    for way, keys in {
        "mse": set(),
        "cross_entropy": {"train.objective"},
        "decay": {"optimizer.name", "optimizer.weight_decay", "train.epochs"},
        "last_layer": {"optimizer.trained"},
        "shuffled": few | {"data.label_noise"},
        "unshuffled": few,
    }.items():
        assert set(differences(to_mapping(P1), to_mapping(ways[way]))) == keys, way


def differences(one, other, prefix=""):
    for key, value in one.items():
        if isinstance(value, dict):
            yield from differences(value, other[key], f"{prefix}{key}.")
        elif value != other[key]:
            yield f"{prefix}{key}"


class Peer:
    """A finished run of a protocol, of which only the configuration is looked at."""

    def __init__(self, path):
        self.path = path

    def array(self, name):
        return {}


def test_networks_are_opened_with_the_images_and_labels_of_their_seed(tmp_path):
    config = ways_of(DIGITS, few=320, few_epochs=1)["shuffled"]
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    bench = opened(Peer(tmp_path))
    whole = datasets.load("digits", preprocessing="unit")
    for seed in bench.seeds:
        own = bench.splits_of(seed)
        expected = datasets.prepare(whole, train_limit=320, label_noise=0.9, seed=seed)
        np.testing.assert_array_equal(own.train_x, expected.train_x)
        np.testing.assert_array_equal(own.train_y, expected.train_y)
    assert np.any(bench.splits_of(0).train_y != bench.splits_of(1).train_y)


def test_the_steps_of_f_minus_f0_to_small_labels_are_those_of_large_outputs():
    """The gradient of ``mean (alpha (f - f0) - y)^2 / alpha^2``, by hand."""
    alpha, net = 30.0, lazy.minus_initial(NET)
    data = {"train": split(jax.random.normal(jax.random.key(1), (6, 3, 2)), np.arange(6) % 3)}
    training = trainer(net, data, batch=6, optimizer=OptimizerConfig("sgd", 1.0, 0.0))
    started = training.start([Trial(0, {"learning_rate": 1.0, "label_scale": 1 / alpha})])
    first = jax.tree.map(lambda leaf: leaf[0], started.params)
    x, y = data["train"].examples["x"], jax.nn.one_hot(data["train"].examples["y"], 3)

    def loss(params):
        moved = NET.apply(params, {}, x)[0] - NET.apply(first, {}, x)[0]
        return jnp.mean((alpha * moved - y) ** 2) / alpha**2

    expected = jax.tree.map(jnp.subtract, first, jax.grad(loss)(first))
    ended = jax.tree.map(lambda leaf: leaf[0], training.train(started, steps=1).params)
    for one, other in zip(jax.tree.leaves(ended), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


# The class in the pixels


def splits_of(count, classes=3):
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(3):
        parts += [rng.random((count, 4, 4)), rng.integers(0, classes, count)]
    return datasets.Splits(*parts)


def test_pixels_name_the_class_a_random_one_or_none():
    splits = splits_of(3000)
    data, random = pixels.written(splits, 1.0, 2.0, 3)
    codes = {name: part.examples["x"].reshape(3000, -1)[:, :3] for name, part in data.items()}
    for name in ("train", "validation", "correct"):
        np.testing.assert_array_equal(codes[name], 2 * np.eye(3)[data[name].examples["y"]])
    np.testing.assert_array_equal(codes["conflicting"], 2 * np.eye(3)[random])
    assert not codes["blanked"].any()
    np.testing.assert_allclose(np.mean(random == splits.test_y), 1 / 3, atol=0.03)
    rest = data["conflicting"].examples["x"].reshape(3000, -1)[:, 3:]
    np.testing.assert_allclose(rest, splits.test_x.reshape(3000, -1)[:, 3:], rtol=1e-6)
    for name in pixels.TESTS:
        np.testing.assert_array_equal(data[name].examples["y"], splits.test_y)


class Tried:
    """A trainer whose networks score by their learning rate, otherwise on test images."""

    def start(self, trials):
        return [trial.hyper["learning_rate"] for trial in trials]

    def train(self, state, *, epochs):
        return state

    def evaluate(self, state, split="test"):
        scores = {"validation": {0.1: 0.5, 0.2: 0.9, 0.3: 0.9}, "test": {0.3: 1.0}}
        return {"accuracy": np.array([scores[split].get(rate, 0) for rate in state])}


def test_the_rate_is_chosen_on_validation_images_that_have_the_training_code():
    assert pixels.best_rate(Tried(), (0.1, 0.2, 0.3), epochs=1, seeds=range(2)) == 1


# What is measured


def test_the_last_layer_is_what_the_head_is_given():
    params = NET.init(jax.random.key(0))[0]
    x, y = jax.random.normal(jax.random.key(1), (40, 3, 2)), np.arange(40) % 3
    looked = look(NET, params, split(x, y), rows=40)
    np.testing.assert_allclose(looked.outputs, NET.apply(params, {}, x)[0], rtol=1e-5, atol=1e-6)
    made = last_of(looked) @ looked.head.kernel + looked.head.bias
    np.testing.assert_allclose(made, looked.outputs, rtol=1e-5, atol=1e-6)
    numbers, spectra = of_last(NET, params, split(x, y), rows=40)
    expected = literal(last_of(looked), looked.outputs)
    np.testing.assert_allclose(numbers["richness"], expected, rtol=1e-4)
    np.testing.assert_allclose(numbers["accuracy"], np.mean(looked.outputs.argmax(1) == y))
    assert spectra["eigenvalues"].shape == spectra["quality"].shape == (4,)
    filled, _ = of_last(NET, params, split(x[:30], y[:30]), rows=40)
    alone, _ = of_last(NET, params, split(x[:30], y[:30]), rows=30)
    np.testing.assert_allclose(filled["accuracy"], alone["accuracy"])


def literal(features, outputs):
    """1 - CKA of the feature kernel and the projector on the outputs, ``n x n`` and in float64."""
    features, outputs = np.asarray(features, float), np.asarray(outputs, float)
    basis = np.linalg.svd(outputs, full_matrices=False)[0]
    n = len(features)
    centre = np.eye(n) - 1 / n
    kernels = [centre @ k @ k.T @ centre for k in (features, basis)]
    product = np.sum(kernels[0] * kernels[1])
    return 1 - product / np.prod([np.linalg.norm(kernel) for kernel in kernels])


def test_balancing_makes_every_class_that_is_there_count_alike():
    y = jnp.array([0, 0, 0, 1, 1, 3])
    weights = balancing(y, 4)
    np.testing.assert_allclose([weights[y == c].sum() for c in (0, 1, 3)], 2, rtol=1e-6)


def test_few_images_are_estimated_from_subsets_of_them():
    """With all images in every subset, the plain estimate is that of all of them."""
    x, own = jax.random.normal(jax.random.key(0), (30, 4)), NET.head(NET.init(jax.random.key(1))[0])
    found = estimates.estimated(x, own, jax.random.key(2), count=30, subsets=2)
    np.testing.assert_allclose(found["plain"], literal(x, x @ own.kernel + own.bias), rtol=1e-4)


def test_changes_are_from_the_first_measurement_to_the_last():
    values = np.array([[1.0, 2.0], [9.0, 9.0], [4.0, 1.0]])
    history = {"features/richness": (np.array([0, 1, 5]), values), "test/loss": (None, values)}
    found = endpoints.changes(history)
    assert set(found) == {"start/features/richness", "moved/features/richness"}
    np.testing.assert_array_equal(found["moved/features/richness"], [3, -1])


def test_sizes_keep_the_first_classes_or_examples():
    images = Images(np.arange(6.0)[:, None], np.array([0, 2, 1, 2, 0, 1]),
                    np.arange(3.0)[:, None], np.array([2, 1, 0]), 3)  # fmt: skip
    two = sizes.of_classes(images, 2)
    assert two.y.tolist() == [0, 1, 0, 1] and two.x[:, 0].tolist() == [0, 2, 4, 5]
    assert two.test_y.tolist() == [1, 0] and two.classes == 2
    assert sizes.of_examples(images, 4).y.tolist() == [0, 2, 1, 2]


class Shelf:
    """What the studies need of a run, kept in memory."""

    def __init__(self):
        self.arrays = {}

    def save_array(self, name, **arrays):
        self.arrays[name] = {key: np.asarray(value) for key, value in arrays.items()}

    def array(self, name):
        return self.arrays[name]

    def log(self, message):
        pass


def test_the_spectra_of_the_first_seed_are_in_the_order_of_the_steps(tmp_path):
    (tmp_path / "arrays").mkdir()
    for step in (100, 0, 20):
        (tmp_path / "arrays" / f"vectors-{step:08d}.npz").touch()

    class Kept(Peer):
        def array(self, name):
            step = int(name[8:])
            spectrum = np.array([[step + 2.0, step + 1.0], [np.nan, np.nan]])
            return {f"features/{kind}": spectrum for kind in ("eigenvalues", "quality",
                                                               "utilisation")}  # fmt: skip

    spectra = figures.spectra_of(Kept(tmp_path), rows=7)
    assert spectra.at.tolist() == [0, 20, 100] and spectra.rows == 7
    np.testing.assert_array_equal(spectra.eigenvalues, [[2, 1], [22, 21], [102, 101]])


def test_regimes_are_directions_per_class_at_both_ends(tmp_path, monkeypatch):
    class Watched(Peer):
        def history(self):
            steps = np.array([0, 9])
            return {
                regimes.DIMENSION: (steps, np.array([[50.0, 40.0], [15.0, 30.0]])),
                regimes.USED: (steps, np.array([[70.0, 60.0], [9.0, 11.0]])),
            }

    (tmp_path / "config.yaml").write_text(dump_yaml(DIGITS))
    monkeypatch.setattr(regimes, "trained", lambda run, runs: {"mnist-mlp": Watched(tmp_path)})
    found = regimes.measure(Shelf(), runs={})
    for metric, values in (
        ("start/per class", [5, 4]),
        ("beyond minimal", [-0.5, 1.0]),
        ("start/used per class", [7, 6]),
        ("used per class", [0.9, 1.1]),
    ):
        got = found.known(metric, arm="mnist-mlp", protocol="regimes")
        np.testing.assert_allclose(got, values)


# From numbers to verdicts, where the truth is known

LOW, HIGH = np.array([0.10, 0.11, 0.12]), np.array([0.50, 0.52, 0.51])
# Claim -> protocol, and the numbers under which it holds: arm -> metric -> values.
TRUTHS = {
    "training-is-rich": ("endpoints", {"mse": {f"moved/{RICHNESS}": LOW - HIGH}}),
    "last-layer-is-lazy": (
        "p1", {"mse": {RICHNESS: LOW}, "last_layer": {RICHNESS: HIGH}}
    ),
    "decay-is-rich": ("p1", {"decay": {RICHNESS: LOW}, "mse": {RICHNESS: HIGH}}),
    "shuffled-is-lazy": (
        "p1", {"shuffled": {RICHNESS: HIGH}, "unshuffled": {RICHNESS: LOW}}
    ),
    "last-layer-is-richest": (
        "p1", {"mse": {RICHNESS: LOW, f"{RICHNESS}/layers/1": HIGH}}
    ),
    "unseen": ("p1", {"mse": {RICHNESS: LOW, "features/unseen/richness": HIGH}}),
    "width": ("sizes", {"width=512": {"richness": HIGH}, "width=64": {"richness": LOW}}),
    "classes": ("sizes", {"classes=5": {"richness": HIGH}, "classes=2": {"richness": LOW}}),
    "examples": (
        "sizes", {"examples=8000": {"richness": HIGH}, "examples=1000": {"richness": LOW}}
    ),
    "alpha": ("lazy", {"alpha=100": {"richness": HIGH}, "alpha=1": {"richness": LOW}}),
    "pixels-rich": (
        "pixels", {"full/amp=3": {"richness": LOW}, "last/amp=3": {"richness": HIGH}}
    ),
    "pixels-wrong": (
        "pixels",
        {"full/amp=3": {"conflicting/accuracy": LOW}, "last/amp=3": {"conflicting/accuracy": HIGH}},
    ),
    "pixels-held": ("pixels", {"full/amp=3": {"code/quality": HIGH, "image/quality": LOW}}),
    "extended-cifar10-mlp": (
        "regimes", {"cifar10-mlp": {"per class": 9 + HIGH}, "mnist-mlp": {"per class": LOW}}
    ),
}  # fmt: skip


def verdicts(protocol, arms):
    results = merge(of_arrays(protocol, arm, metrics) for arm, metrics in arms.items())
    return {one.id: one.verdict for one in judge_all(claims.CLAIMS, results, preset="small")}


@pytest.mark.parametrize("claim", TRUTHS)
def test_a_known_difference_is_told_with_its_sign(claim):
    protocol, arms = TRUTHS[claim]
    assert verdicts(protocol, arms)[claim] == "SUPPORTED"
    mirrored = {
        arm: {metric: -values for metric, values in metrics.items()}
        for arm, metrics in arms.items()
    }
    assert verdicts(protocol, mirrored)[claim] == "CONTRADICTED"


def test_every_direction_has_a_known_truth():
    asked = {one.id for one in claims.CLAIMS if one.type == "direction"}
    ours = {id for id in asked if not id.startswith("minimal-")}
    dynamic = {one.id for one in claims.claims_dynamics.CLAIMS}
    assert ours - dynamic == set(TRUTHS)


@pytest.mark.parametrize("off, verdict", [(0.0, "REPRODUCED"), (0.2, "NOT REPRODUCED")])
def test_an_estimate_that_is_off_is_told(off, verdict):
    near = off + np.array([-0.001, 0.0, 0.001])
    arms = {"mse": {"corrected/128": near, "plain/128": near}}
    assert verdicts("estimates", arms)["corrected-mse"] == verdict


@pytest.mark.parametrize("moved, verdict", [(0.0, "NUMBER MATCH"), (1e-6, "NUMBER MISS")])
def test_features_that_move_under_a_trained_head_are_a_miss(moved, verdict):
    arms = {"last_layer": {f"moved/{claims.DIMENSION}": np.full(3, moved)}}
    assert verdicts("endpoints", arms)["features-stay"] == verdict


@pytest.mark.parametrize("beyond, verdict", [(-0.5, "SUPPORTED"), (3.0, "CONTRADICTED")])
def test_twice_as_many_directions_as_classes_are_too_many(beyond, verdict):
    arms = {"mnist-cnn": {"beyond minimal": beyond + np.array([-0.01, 0.0, 0.01])}}
    assert verdicts("regimes", arms)["minimal-mnist-cnn"] == verdict


def test_networks_that_begin_with_few_directions_are_told_from_those_that_come_to_them():
    ends = {"cnn": (9.0, -0.5), "resnet": (0.25, -1.0), "mlp": (30.0, 3.0)}
    near = np.array([-0.01, 0.0, 0.01])
    results = merge(
        of_arrays("regimes", f"mnist-{net}", {"start/per class": start + near,
                                              "beyond minimal": beyond + near})
        for net, (start, beyond) in ends.items()
    )  # fmt: skip
    told = claims.learned(
        Outcome(PAPER, "small", results), judge_all(claims.CLAIMS, results, preset="small")
    )
    (line,) = (line for line in told if line.startswith("Of 3 pairs"))
    assert "2 surely had no more than two a class; of these, 1 had no more before" in line


def test_sentences_say_nothing_of_what_was_not_run():
    moved = {"mse": {f"moved/{RICHNESS}": LOW - HIGH}}
    results = merge(of_arrays("endpoints", arm, metrics) for arm, metrics in moved.items())
    told = claims.learned(None, judge_all(claims.CLAIMS, results, preset="small"))
    assert any("moved it by -0.4" in line for line in told)
    assert not any("say nothing of the image" in line for line in told)
