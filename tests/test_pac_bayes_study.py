"""The study of certified bounds: its random network, its objective and its columns."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import load
from experiments.papers.sloppy.studies import pac_bayes
from experiments.papers.sloppy.studies.pac_bayes import (
    numbers_of,
    on_bound,
    random_network,
)
from spectral_jax.capacity import Gaussian, certify, data_free_prior, draw, gaussian

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]
NET = random_network((2, 2), (3,), 2, 0.5)
CONVOLUTIONAL = random_network((12, 13, 2), (7,), 3, 0.1, (4,))


def test_without_a_key_the_network_is_that_of_the_means():
    posterior, prior = NET.init(jax.random.key(0))
    x = np.random.default_rng(0).standard_normal((5, 2, 2)).astype(np.float32)
    outputs, state = NET.apply(posterior, prior, x)
    first, second = (jax.tree.map(np.asarray, layer) for layer in posterior.mean)
    hidden = np.maximum(x.reshape(5, 4) @ first["kernel"] + first["bias"], 0)
    expected = hidden @ second["kernel"] + second["bias"]
    np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-5, atol=1e-6)
    assert state is prior and not outputs["kl"].any()


def test_with_one_every_example_has_weights_of_its_own():
    posterior, prior = NET.init(jax.random.key(0))
    x = jnp.ones((3, 4))
    logits = NET.apply(posterior, prior, x, key=jax.random.key(1))[0]["logits"]
    assert len(np.unique(np.asarray(logits)[:, 0])) == 3


def test_the_objective_is_the_quadratic_bound_of_the_batch():
    batch = {"y": jnp.array([0, 1]), "hyper": {"n": jnp.array(1000.0)}}
    logits = jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]]))
    risk = math.log(8) / 2 / math.log(2)  # in units of log 2, what guessing costs
    c = (10 + math.log(2 * math.sqrt(1000) / 0.025)) / 1000
    expected = (math.sqrt(risk + c / 2) + math.sqrt(c / 2)) ** 2
    losses = on_bound({"logits": logits, "kl": jnp.full(2, 10.0)}, batch)
    np.testing.assert_allclose(losses, [expected] * 2, rtol=1e-6)


def test_a_certificate_becomes_a_row_and_what_is_not_known_nan():
    law = jnp.zeros(2), 1.0
    found = certify(gaussian(*law), data_free_prior(*law), np.zeros(100), examples=100, chance=0.5)
    row = numbers_of(found, 0.25)
    assert row["bound"] == found.bound and row["valid"] == 1 and row["test/error"] == 0.25
    assert math.isnan(row["prior/bound"]) and math.isnan(row["non-vacuous"])
    assert row["risk/corrected"] == pytest.approx(1 - (0.01 / 2) ** (1 / 100), abs=1e-6)


def test_a_convolutional_network_of_means_is_its_layers_one_after_the_other():
    posterior, _ = CONVOLUTIONAL.init(jax.random.key(0))
    x = np.random.default_rng(0).standard_normal((3, 12, 13, 2)).astype(np.float32)
    first, *rest = (jax.tree.map(np.asarray, layer) for layer in posterior.mean)
    maps = np.zeros((3, 8, 9, 4))
    for row in range(8):
        for column in range(9):
            patch = x[:, row : row + 5, column : column + 5]
            maps[:, row, column] = np.tensordot(patch, first["kernel"], 3)
    maps = np.maximum(maps + first["bias"], 0)[:, :, :8].reshape(3, 4, 2, 4, 2, 4).max((2, 4))
    hidden = np.maximum(maps.reshape(3, -1) @ rest[0]["kernel"] + rest[0]["bias"], 0)
    expected = hidden @ rest[1]["kernel"] + rest[1]["bias"]
    found = CONVOLUTIONAL.apply(posterior, posterior, x)[0]["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_its_noise_has_the_law_of_whole_networks_that_are_drawn():
    """Mean and spread of a logit, of weights drawn layer by layer and of weights drawn at once."""
    posterior, prior = CONVOLUTIONAL.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (1, 12, 13, 2))
    keys = jax.random.split(jax.random.key(2), 4000)

    def whole(key):
        weights = draw(key, posterior)
        return CONVOLUTIONAL.apply(Gaussian(weights, posterior.log_scale), prior, x)[0]["logits"][0]

    def local(key):
        return CONVOLUTIONAL.apply(posterior, prior, x, key=key)[0]["logits"][0]

    one, other = (np.asarray(jax.lax.map(f, keys, batch_size=500)) for f in (whole, local))
    spread = one.std(axis=0)
    np.testing.assert_allclose(other.mean(axis=0), one.mean(axis=0), atol=0.1 * spread.max())
    np.testing.assert_allclose(other.std(axis=0), spread, rtol=0.08)


def test_every_example_has_a_convolution_of_its_own():
    posterior, prior = CONVOLUTIONAL.init(jax.random.key(0))
    x = jnp.ones((3, 12, 13, 2))
    logits = CONVOLUTIONAL.apply(posterior, prior, x, key=jax.random.key(1))[0]["logits"]
    assert len(np.unique(np.asarray(logits)[:, 0])) == 3


def test_the_learnt_prior_has_seen_no_example_that_counts(monkeypatch):
    """What reaches `certify` of a convolutional arm, on a few digits."""
    seen = {}

    def spy(posterior, prior, draws, **options):
        seen.update(prior=prior, draws=draws, **options)
        return certify(posterior, prior, draws, **options)

    monkeypatch.setattr(pac_bayes, "certify", spy)
    arm = pac_bayes.Arm(
        "digits", (5,), 0.1, epochs=1, learning_rate=1e-3, batch=100, learnt=0.5, prior_epochs=1,
        prior_rate=1e-3, channels=(2,), tried=4,
    )  # fmt: skip
    found, _ = pac_bayes.certified(load("digits", preprocessing="unit"), arm, 0, passes=2)
    counted = seen["examples"]
    assert not set(counted) & set(seen["prior"].seen)
    assert len(counted) + len(seen["prior"].seen) == 1437 and len(seen["draws"]) == 2 * len(counted)
    assert found.valid and found.n == len(counted) and found.penalty == math.log(4)
    assert found.confidence == pytest.approx(1 - 0.025 - 0.01 / 4)
