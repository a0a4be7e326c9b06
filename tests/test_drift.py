"""Drift: the promised rate of false alarms, and alarms where something changed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import sqrtm

from spectral_jax.features import bures, calibrate, drift, of

pytestmark = pytest.mark.usefixtures("quick_compilation")
RNG = np.random.default_rng(0)
MIX = RNG.standard_normal((6, 4))


def batches(count, rows):
    """Features with heavy tails and dead units, as networks have them."""
    hidden = RNG.standard_t(4, (count, rows, 6)) @ MIX - 1
    return np.maximum(hidden, 0).astype(np.float32)


@pytest.fixture(scope="module")
def reference():
    return calibrate(batches(1, 2000)[0], jax.random.key(0), rows=(20, 60), draws=199)


def test_the_distance_is_that_of_gaussians():
    a, b = batches(2, 50).astype(np.float64)
    covariances = [np.cov(x.T, bias=True) for x in (a, b)]
    root = sqrtm(covariances[0])
    shape = np.trace(sum(covariances) - 2 * sqrtm(root @ covariances[1] @ root)).real
    location = np.linalg.norm(a.mean(0) - b.mean(0))
    found = bures(a, of(b))
    np.testing.assert_allclose(found.location, location, rtol=1e-5)
    np.testing.assert_allclose(found.shape, np.sqrt(shape), rtol=1e-5)
    np.testing.assert_allclose(found.distance, np.hypot(location, np.sqrt(shape)), rtol=1e-5)


@pytest.mark.parametrize("rows", [20, 60, 80])
def test_of_batches_like_the_reference_a_share_of_level_gives_an_alarm(reference, rows):
    """Exactly at calibrated numbers of rows, less often in between; 3 standard errors of 500."""
    found = jax.jit(jax.vmap(lambda x: drift(reference, x, level=0.1)))(batches(500, rows))
    rate = float(found.alarm.mean())
    assert rate < 0.1 + 3 * np.sqrt(0.1 * 0.9 / 500)
    assert rate > 0.1 - 3 * np.sqrt(0.1 * 0.9 / 500) or rows == 80
    assert (found.alarm == (found.distance > found.threshold)).all()
    assert (found.alarm == (found.p_value <= 0.1 + 1e-6)).all()


def test_a_shift_a_change_of_shape_and_nan_give_an_alarm(reference):
    (x,) = batches(1, 60)
    for changed in (x + 1, 2 * x, np.where(x == x.max(), np.nan, x)):
        found = drift(reference, of(changed))
        assert found.alarm and not found.p_value > 0.01
    assert drift(reference, x + 1).location > drift(reference, x + 1).shape


def test_too_few_rows_are_an_alarm_without_a_threshold(reference):
    found = drift(reference, batches(1, 19)[0])
    assert found.alarm and jnp.isnan(found.threshold) and jnp.isnan(found.p_value)


def test_a_batch_counts_by_the_rows_that_its_weights_amount_to(reference):
    (x,) = batches(1, 80)
    masked = of(np.concatenate([x[:60], x[:20] + 9]), weights=(np.arange(80) < 60).astype(float))
    found, expected = drift(reference, masked), drift(reference, x[:60])
    assert found.rows == 60
    np.testing.assert_allclose(found.distance, expected.distance, rtol=1e-5)
    assert found.threshold == expected.threshold


def test_the_unit_of_features_is_no_matter():
    (x,) = batches(1, 2000)
    (batch,) = batches(1, 20)
    found = [
        drift(calibrate(size * x, jax.random.key(0), rows=(20, 60), draws=199), size * batch)
        for size in map(np.float32, (1e-30, 1, 1e30))
    ]
    assert found[0].p_value == found[1].p_value == found[2].p_value


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda r: drift(r, np.ones((20, 3))), "a has 4 features, b 3"),
        (lambda r: drift(r, np.ones((20, 4)), level=0.001), "level=0.001: choose from 1 / 200"),
        (lambda r: drift(r, np.ones((20, 4)), level=1.0), "level=1.0"),
        (lambda r: calibrate(np.ones((40, 4)), jax.random.key(0), rows=11), "a quarter of the"),
        (lambda r: calibrate(np.ones((40, 4)), jax.random.key(0), rows=()), "rows=()"),
        (lambda r: calibrate(np.ones((40, 4)), 0, rows=4), "key=0 is no random key"),
        (lambda r: calibrate(np.ones(40), jax.random.key(0), rows=4), "pass rows [n, p]"),
        (lambda r: calibrate(np.ones((7, 4)), jax.random.key(0), rows=1), "have 7 rows: pass at"),
        (lambda r: drift(r.moments, np.ones((20, 4))), "reference is a FeatureMoments: pass what"),
    ],
)
def test_what_cannot_be_promised_is_refused(reference, wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        wrong(reference)
