"""Dziugaite and Roy's protocol: its objective, its noise, its grid, and what its prior has seen."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import load
from experiments.papers.sloppy import PAPER, claims
from experiments.papers.sloppy.studies import dziugaite_roy as study
from experiments.report.results import of_arrays
from experiments.report.verdicts import judge_all
from spectral_jax import capacity

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]
HIDDEN = (3,)
N = 1000


@pytest.fixture(scope="module")
def learnt():
    """Parameters of a small network, away from where its prior is."""
    start = study.plain_network(4, HIDDEN).init(jax.random.key(0))[0]
    weights = jax.tree.map(lambda leaf: leaf + 0.1, start)
    return start, study.Learnt.around(weights, "dziugaite-roy")


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(float)


def test_the_cross_entropy_of_the_logits_is_the_logistic_loss_in_bits(learnt):
    start, _ = learnt
    x = jax.random.normal(jax.random.key(1), (6, 2, 2))
    logits = study.dense(HIDDEN)(start, x)
    hidden = np.maximum(x.reshape(6, 4) @ start[0]["w"] + start[0]["b"], 0)
    f = np.ravel(hidden @ start[1]["w"] + start[1]["b"]).astype(float)
    y = np.array([0, 1, 1, 0, 1, 0])
    losses = study.on_risk({"logits": logits}, {"y": jnp.asarray(y)})
    np.testing.assert_allclose(losses, np.log2(1 + np.exp(-(2 * y - 1) * f)), rtol=1e-5)


def test_the_network_begins_as_theirs_does():
    first, last = study.plain_network(400, (300,)).init(jax.random.key(0))[0]
    assert (first["b"] == 0.1).all() and not last["b"].any()
    assert 0.07 < np.abs(first["w"]).max() <= 0.08
    # Of a standard normal that is cut off at 2 the deviation is .8796.
    np.testing.assert_allclose(np.std(first["w"]), 0.04 * 0.8796, rtol=0.01)


def test_the_objective_is_their_formula_in_float64(learnt):
    """Risk + sqrt((KL + 2 log(b log(c / l)) + log(pi^2 m / 6 delta)) / 2 (m - 1))."""
    start, params = learnt
    params = params._replace(log_scale=jnp.float32(-2.6))
    x, y = jax.random.normal(jax.random.key(1), (5, 4)), jnp.array([0, 1, 1, 0, 1])
    model = study.dense(HIDDEN)
    outputs, state = study.drawn_once(model).apply(params, start, x)
    hyper = {"n": jnp.float32(N)}
    found = study.on_bound(outputs, {"y": y, "hyper": hyper})

    mean, q = flat(params.posterior.mean), np.exp(2 * flat(params.posterior.log_scale))
    variance = math.exp(-5.2)
    kl = np.sum(q / variance - 1 - np.log(q / variance) + (mean - flat(start)) ** 2 / variance) / 2
    penalty = 2 * math.log(100 * math.log(0.1 / variance)) + math.log(math.pi**2 * N / (6 * 0.025))
    risk = float(study.on_risk({"logits": model(params.posterior.mean, x)}, {"y": y}).mean())
    expected = risk + math.sqrt((kl + penalty) / (2 * (N - 1)))
    np.testing.assert_allclose(found, np.full(5, expected), rtol=1e-5)
    assert state is start


def test_their_first_widths_are_twice_the_weights_and_their_prior_has_that_of_minus_three(learnt):
    _, params = learnt
    np.testing.assert_allclose(
        np.exp(flat(params.posterior.log_scale)),
        np.maximum(2 * np.abs(flat(params.posterior.mean)), 1e-4),
        rtol=1e-5,
    )
    assert float(params.log_scale) == -3


def test_a_batch_shares_its_weights_in_training_and_no_two_examples_do_in_the_risk(learnt):
    start, params = learnt
    x, key = jnp.ones((3, 4)), jax.random.key(1)

    def answers(net):
        return np.asarray(net.apply(params, start, x, key=key)[0]["logits"])[:, 1]

    assert len(np.unique(answers(study.drawn_once(study.dense(HIDDEN))))) == 1
    assert len(np.unique(answers(study.drawn_by_example(HIDDEN)))) == 3


def test_both_kinds_of_draws_have_one_law(learnt):
    """Mean and variance of an output over many draws."""
    start, params = learnt
    x = jax.random.normal(jax.random.key(2), (1, 4))
    keys = jax.random.split(jax.random.key(1), 20_000)

    def answers(net):
        drawn = jax.vmap(lambda key: net.apply(params, start, x, key=key)[0]["logits"])(keys)
        return np.asarray(drawn)[:, 0, 1]

    once = answers(study.drawn_once(study.dense(HIDDEN)))
    each = answers(study.drawn_by_example(HIDDEN))
    spread = once.std()
    np.testing.assert_allclose(each.mean(), once.mean(), atol=0.05 * spread)
    np.testing.assert_allclose(each.std(), spread, rtol=0.05)


ARM = {
    "dataset": "digits2", "hidden": (5,), "examples": 1400, "sgd_epochs": 1, "epochs": 1,
    "full_rate": 1, "batch": 100,
}  # fmt: skip


def test_the_certificate_holds_at_a_point_of_the_grid_and_its_prior_saw_no_data(monkeypatch):
    """What reaches `certify`: the weights before SGD, a prior that saw no rows, draws alone."""
    seen = {}

    def spy(posterior, prior, draws, **options):
        seen.update(posterior=posterior, prior=prior, draws=draws, **options)
        seen["found"] = capacity.certificate.certify(posterior, prior, draws, **options)
        return seen["found"]

    monkeypatch.setattr(study.capacity, "certify", spy)
    row = study.certified(load("digits2", preprocessing="unit"), study.Arm(**ARM), 3, passes=2)
    start = study.plain_network(64, (5,)).init(jax.random.key(np.uint32(3)))[0]
    np.testing.assert_array_equal(flat(seen["prior"].gaussian.mean), flat(start))
    assert len(seen["prior"].seen) == 0 and len(seen["draws"]) == 2800
    found = seen["found"]
    assert found.valid and found.confidence == pytest.approx(0.965) and not found.why_not
    variance = math.exp(2 * float(seen["prior"].gaussian.log_scale))
    assert found.grid_index in study.GRID.neighbours(variance)
    assert found.penalty == study.GRID.penalty(found.grid_index)
    assert row["bound"] == found.bound and row["point"] == found.grid_index
    # The relative entropy is that of the point, not of the scale that was learnt.
    at_point = capacity.gaussian(
        seen["prior"].gaussian.mean, math.sqrt(study.GRID.variance(found.grid_index))
    )
    np.testing.assert_allclose(
        row["kl"], capacity.gaussian_kl(seen["posterior"], at_point), rtol=1e-4
    )


def test_random_labels_are_those_of_a_seed_and_the_test_set_keeps_its_own():
    dataset, arm = load("digits2", preprocessing="unit"), study.Arm(**ARM)
    plain = study._data(dataset, arm, 0)
    first, again, other = (
        study._data(dataset, arm._replace(random_labels=True), seed) for seed in (0, 0, 1)
    )
    labels = [np.asarray(d["train"].examples["y"]) for d in (plain, first, again, other)]
    np.testing.assert_array_equal(labels[1], labels[2])
    assert all(0.4 < np.mean(labels[1] == each) < 0.6 for each in (labels[0], labels[3]))
    np.testing.assert_array_equal(plain["test"].examples["y"], first["test"].examples["y"])


def test_the_rate_falls_to_a_tenth():
    optimizer = study.rmsprop(2)({"learning_rate": 0.1})
    state, steps = optimizer.init(jnp.zeros(1)), []
    for _ in range(4):
        updates, state = optimizer.update(jnp.zeros(1) + 1e6, state)
        steps.append(float(updates[0]))
    # TensorFlow's: the mean square starts at 1 and takes a tenth of each new one.
    squares = 1e12 * (1 - 0.9 ** np.arange(1, 5))
    expected = -np.array([0.1, 0.1, 0.01, 0.01]) * 1e6 / np.sqrt(squares)
    np.testing.assert_allclose(steps, expected, rtol=1e-5)


@pytest.mark.filterwarnings("error:a prior variance")
def test_the_priors_scale_stays_on_the_grid_however_fast_it_is_trained():
    """Far beyond the grid's first point a scale would be rounded to another prior altogether."""
    arm = study.Arm(**{**ARM, "learning_rate": 3.0, "epochs": 2})
    row = study.certified(load("digits2", preprocessing="unit"), arm, 0, passes=1)
    assert row["point"] >= 1 and row["valid"] == 1
    params = study.Learnt(capacity.gaussian(jnp.zeros(2), 1.0), jnp.float32(-2.0))
    held = study.on_grid(lambda hyper: study.optax.identity())({})
    for asked, expected in ((5.0, math.log(study.GRID.variance(1)) / 2 + 2), (-5.0, -5.0)):
        updates, _ = held.update(params._replace(log_scale=asked), held.init(params), params)
        np.testing.assert_allclose(updates.log_scale, expected, rtol=1e-4)


def test_a_seed_that_diverges_certifies_nothing_and_ends_no_study():
    arm = study.Arm(**{**ARM, "learning_rate": math.inf})
    row = study.certified(load("digits2", preprocessing="unit"), arm, 0, passes=1)
    assert row["valid"] == 0 and math.isnan(row["bound"]) and math.isnan(row["margin"])


@pytest.mark.parametrize("bound, verdict", [(0.2, "SUPPORTED"), (0.8, "CONTRADICTED")])
def test_a_bound_below_chance_is_theirs_and_with_random_labels_it_must_not_be(bound, verdict):
    near = bound + np.array([-0.01, 0.0, 0.01])
    numbers = {"bound": near, "margin": 0.5 - near, "held-out/bound": near}
    opposite = {"SUPPORTED": "CONTRADICTED", "CONTRADICTED": "SUPPORTED"}
    for arm, claim, expected in (
        ("T-600", "dr-chance", verdict),
        ("R-600", "dr-random-labels", opposite[verdict]),
    ):
        judged = judge_all(claims.CLAIMS, of_arrays("dziugaite_roy", arm, numbers), preset="small")
        assert {one.id: one.verdict for one in judged}[claim] == expected


def test_every_preset_has_a_true_and_a_random_network():
    for preset in ("smoke", "small", "paper"):
        (chosen,) = (s for s in PAPER.studies_of(preset) if s.name == "dziugaite_roy")
        arms = {name: study.Arm(**arm) for name, arm in chosen.options[preset]["arms"].items()}
        assert arms["R-600"].random_labels and not arms["T-600"].random_labels
