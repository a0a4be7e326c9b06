"""The study of certified bounds: its random network, its objective and its columns."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.papers.sloppy.studies.pac_bayes import (
    numbers_of,
    on_bound,
    random_network,
)
from spectral_jax.capacity import certify, data_free_prior, gaussian

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]
NET = random_network(4, (3,), 2, 0.5)


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
