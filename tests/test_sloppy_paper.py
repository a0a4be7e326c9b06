"""Sloppy data: what the causal experiment holds fixed, and that its evidence has the right sign."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data.sloppy import decades, effective_rank, problem, variances
from experiments.papers.sloppy import PAPER, claims
from experiments.papers.sloppy.figures import error_curves
from experiments.papers.sloppy.studies import causal
from experiments.report.claims import check
from experiments.report.results import merge, of_arrays
from experiments.report.verdicts import judge_all

pytestmark = pytest.mark.usefixtures("quick_compilation")

RATES, EXAMPLES, CONTROLS_AT = (0.0, 0.001, 0.01, 0.02, 0.05), (1000, 5000, 50_000), 5000


def test_claims_name_what_there_is():
    check(claims.CLAIMS, PAPER.known())


# The inputs


@pytest.mark.parametrize("rate", RATES)
def test_only_the_spread_of_the_variances_changes_with_the_rate(rate):
    values = np.asarray(variances(rate, 200), float)
    np.testing.assert_allclose(values.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(np.log10(values[0] / values[-1]), decades(rate, 200), atol=1e-4)
    np.testing.assert_allclose(values.sum() / values[0], effective_rank(rate, 200), rtol=1e-5)


def test_examples_and_teacher_are_the_same_for_every_spectrum():
    key, flat = jax.random.key(3), jnp.sqrt(variances(0.0, 6))
    steep = jnp.sqrt(variances(0.5, 6))
    options = {"count": 400, "features": 6, "classes": 3}
    plain, sloppy, relabelled = (
        problem(key, *scales, **options) for scales in ((flat, flat), (steep, steep), (flat, steep))
    )
    np.testing.assert_allclose(sloppy.x / steep, plain.x / flat, rtol=1e-5)
    np.testing.assert_array_equal(relabelled.x, plain.x)
    np.testing.assert_array_equal(relabelled.y, sloppy.y)
    assert np.mean(sloppy.y != plain.y) > 0.1


def test_what_is_no_spectrum_is_refused():
    with pytest.raises(ValueError, match="rate=-1"):
        variances(-1.0, 6)


# From errors to verdicts, where the truth is known


def told(per_decade, *, flat_labels=0.0, flat_inputs=0.0, noise=0.0, seeds=8):
    """Verdicts on errors that move by so many points a decade; the controls by as many more."""
    rng = np.random.default_rng(0)
    extra = {"": 0.0, "flat labels": flat_labels, "flat inputs": flat_inputs}
    numbers = {}
    for control, more in extra.items():
        for count in EXAMPLES if not control else (CONTROLS_AT,):
            for rate in RATES[1:] if control else RATES:
                errors = 0.4 + (per_decade + more) * decades(rate, 200) / 100
                noisy = errors + noise * rng.normal(size=seeds)
                numbers[causal.name(rate, count, control)] = {"test/error": noisy}
    fits = causal.regressions(numbers, RATES, EXAMPLES, CONTROLS_AT)
    results = merge(of_arrays("causal", arm, each) for arm, each in (numbers | fits).items())
    return {one.id: one for one in judge_all(claims.CLAIMS, results, preset="small")}, results


def test_a_known_slope_is_found_and_its_sign_decides():
    falling, results = told(-1.5, flat_labels=3.0, flat_inputs=1.0, noise=0.002)
    for count in EXAMPLES:
        assert falling[f"causal-{count}"].verdict == "SUPPORTED"
        arm = f"regression/n={count}"
        slopes = results.known("per decade", arm=arm, protocol="causal")
        np.testing.assert_allclose(slopes.mean(), -1.5, atol=0.1)
        assert results.known("per decade/r2", arm=arm, protocol="causal").min() > 0.9
    assert falling["causal-flat-labels"].verdict == "CONTRADICTED"
    assert falling["causal-flat-inputs"].verdict == "SUPPORTED"
    rising, _ = told(1.5, flat_inputs=-1.0, noise=0.002)
    assert rising["causal-1000"].verdict == "CONTRADICTED"
    assert rising["causal-flat-inputs"].verdict == "CONTRADICTED"


def test_no_effect_is_said_so():
    none, _ = told(0.0, noise=0.001)
    assert none["causal-5000"].verdict == "NO EFFECT"


def test_the_figure_has_every_rate_and_the_controls_begin_at_the_flat_arm():
    _, results = told(-1.0, flat_labels=2.0)
    curves = error_curves(results)
    assert set(curves) == {
        "n=1000", "n=5000", "n=50000", "n=5000/flat labels", "n=5000/flat inputs"
    }  # fmt: skip
    spans = [decades(rate, 200) for rate in RATES]
    for x, y in curves.values():
        np.testing.assert_allclose(x, spans)
        np.testing.assert_allclose(y[0], 40)


# Training


def test_a_seed_has_examples_and_weights_of_its_own_and_is_not_trained_twice(monkeypatch):
    made = {}

    class Shelf:
        def save_array(self, name, **arrays):
            made[name] = arrays

        def load_array(self, name):
            return made.get(name)

        def log(self, message):
            pass

    options = dict(
        rates=(0.0, 0.05), examples=(100,), controls_at=100, seeds=2, hidden=8, batch=50,
        steps=4, learning_rate=0.01, most=100, test=60,
    )  # fmt: skip
    found = causal.measure(Shelf(), **options)
    errors = found.known("test/error", arm=causal.name(0.0, 100), protocol="causal")
    assert errors.shape == (2,) and errors[0] != errors[1]
    assert "regression/n=100/flat inputs" in found.arms("causal")
    monkeypatch.setattr(causal, "trained", None)
    assert causal.measure(Shelf(), **options).to_json() == found.to_json()
