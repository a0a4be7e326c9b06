"""Sloppy data: what each study holds fixed, and that its evidence has the right sign."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from experiments.data.sloppy import decades, effective_rank, problem, variances
from experiments.papers.sloppy import PAPER, claims
from experiments.papers.sloppy.figures import error_curves
from experiments.papers.sloppy.studies import (
    analytic,
    causal,
    curvature,
    dziugaite_roy,
    mirror,
    numerical,
    oracles,
    spectra,
)
from experiments.report.claims import check
from experiments.report.results import merge, of_arrays
from experiments.report.verdicts import judge_all
from spectral_jax import capacity

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]

RATES, EXAMPLES, CONTROLS_AT = (0.0, 0.001, 0.01, 0.02, 0.05), (1000, 5000, 50_000), 5000


def test_claims_name_what_there_is():
    check(claims.CLAIMS, PAPER.known())


def verdicts(results, preset="small"):
    return {one.id: one.verdict for one in judge_all(claims.CLAIMS, results, preset=preset)}


class Shelf:
    """What the studies need of a run, kept in memory."""

    def __init__(self):
        self.arrays = {}

    def save_array(self, name, **arrays):
        self.arrays[name] = {key: np.asarray(value) for key, value in arrays.items()}

    def load_array(self, name):
        return self.arrays.get(name)

    def log(self, message):
        pass


def test_what_follows_from_published_numbers_comes_out():
    found = verdicts(oracles.measure(None), "smoke")
    ids = [one.id for one in claims.CLAIMS if one.evidence
           and any(need.protocol == "oracles" for need in one.evidence.needs())]  # fmt: skip
    assert len(ids) == 13 and {found[id] for id in ids} == {"NUMBER MATCH"}


# Data sets


def test_a_sloppy_table_is_told_from_a_flat_one_and_from_one_with_a_mean(monkeypatch):
    noise = np.random.default_rng(0).normal(size=(400, 12))
    tables = {
        "sloppy": noise * 10.0 ** -(0.4 * np.arange(12)),
        "flat": noise,
        "mean": noise + 50.0,
    }
    monkeypatch.setattr(spectra, "table", tables.get)
    found = spectra.measure(Shelf(), tables=list(tables), blocks=2)

    def at(name, metric, kind="uncentred"):
        return found.known(metric, arm=f"{name}/{kind}", protocol="spectra")[0]

    np.testing.assert_allclose(at("sloppy", "decades"), 8.8, atol=0.3)
    np.testing.assert_allclose(at("sloppy", "decades beyond"), at("sloppy", "decades") - 3)
    assert at("sloppy", "r_squared") > 0.99 and at("flat", "decades") < 0.5
    assert at("mean", "drop") > 4 and abs(at("mean", "drop", "centred")) < 0.3
    together = found.known("drop", arm="uncentred", protocol="spectra")
    np.testing.assert_array_equal(together, [at(name, "drop") for name in tables])


def test_text_is_one_column_for_each_character_and_place():
    rows = spectra.one_hot(np.arange(17) % 3, 3)
    assert rows.shape == (2, 24) and (rows.reshape(2, 8, 3).sum(axis=2) == 1).all()
    np.testing.assert_array_equal(rows[1].reshape(8, 3).argmax(axis=1), np.arange(8, 16) % 3)


# Curvature


def bent_twice(params, inputs):
    return jnp.tanh(inputs @ params[0]) @ params[1]


def test_both_ends_of_the_hessian_are_told_largest_first():
    keys = jax.random.split(jax.random.key(0), 3)
    params = jax.random.normal(keys[0], (2, 3)), jax.random.normal(keys[1], (3, 2))
    data = jax.random.normal(keys[2], (8, 2)), jnp.arange(8) % 2
    found = curvature.hessian("end", bent_twice, params, data, 2)
    flat, unravel = ravel_pytree(params)

    def loss(flat):
        logits = bent_twice(unravel(flat), data[0])
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(8), data[1]])

    values = np.linalg.eigvalsh(np.asarray(jax.hessian(loss)(flat), float))[::-1]
    np.testing.assert_allclose(found["end/hessian"], values[:2], rtol=1e-4)
    np.testing.assert_allclose(found["end/hessian/bottom"], values[-2:], rtol=1e-4)
    assert values[-1] < 0


def test_the_share_of_the_way_is_that_in_the_leading_vectors():
    start, end = jnp.zeros(4), jnp.array([3.0, 0.0, 4.0, 0.0])
    eye = jnp.eye(4)
    found = curvature.subspaces({"start": eye[:, :2], "end": eye[:, 1:3]}, end, start)
    np.testing.assert_allclose(found["displacement/start"], [0.36, 0.36], rtol=1e-6)
    np.testing.assert_allclose(found["subspace/displacement beyond half/end"], 0.14, rtol=1e-5)
    np.testing.assert_allclose(found["subspace/overlap"], 0.5)
    np.testing.assert_allclose(found["subspace/overlap beyond chance"], 0.0)


@pytest.mark.parametrize("share, verdict", [(0.8, "SUPPORTED"), (0.2, "CONTRADICTED")])
def test_predominantly_means_more_than_half(share, verdict):
    beyond = share - 0.5 + np.array([-0.01, 0.0, 0.01])
    told = {f"subspace/displacement beyond half/{stage}": beyond for stage in curvature.STAGES}
    assert verdicts(of_arrays("curvature", "fc2", told))["fc2-subspace"] == verdict


@pytest.mark.parametrize("steeper, verdict", [(3.0, "SUPPORTED"), (-3.0, "CONTRADICTED")])
def test_curvature_that_follows_the_inputs_is_told_from_one_that_does_not(
    monkeypatch, steeper, verdict
):
    def fake(seed, rate, *_, **__):
        spans = 4 + seed / 10 + (steeper if rate else 0)
        values = 10.0 ** -np.linspace(0, spans, 20)
        floors = {f"{stage}/floor": 1e-30 for stage in mirror.STAGES}
        return {stage: values for stage in mirror.STAGES} | floors

    monkeypatch.setattr(mirror, "spectra", fake)
    found = mirror.measure(Shelf(), rates=(0.0, 0.05), count=1, seeds=3, examples=1)
    difference = found.known("end/fall", arm="steepest minus flat", protocol="mirror")
    np.testing.assert_allclose(difference, steeper * 10 / 19, rtol=1e-4)
    assert verdicts(found)["mirror-decades"] == verdict


def test_spectra_that_meet_the_floor_before_their_middle_are_not_compared():
    falling = 10.0 ** -np.arange(20.0)
    np.testing.assert_allclose(mirror.fall(falling, 1e-12), 10)
    assert np.isnan(mirror.fall(falling, 1e-9))


# Bounds


def bent(key=0, size=6, k=2):
    """A linear network of two classes around which a posterior can be read off."""
    keys = jax.random.split(jax.random.key(key), 3)
    vectors = jnp.linalg.qr(jax.random.normal(keys[0], (size, size)))[0][:, :k]
    start = jnp.zeros((size // 2, 2))
    weights = jax.random.normal(keys[1], start.shape)
    x = jax.random.normal(keys[2], (50, size // 2))
    y = jnp.argmax(x @ weights, axis=-1)
    moved = (weights - start).ravel()
    return analytic.Found(
        linear, weights, start, jnp.array([0.3, 0.01]), capacity.vector_basis(vectors),
        np.asarray(moved @ vectors, float), float(jnp.linalg.norm(moved)), (x, y), 40,
    )  # fmt: skip


def linear(params, inputs):
    return inputs @ params


@pytest.mark.parametrize("method", list(analytic.METHODS))
def test_the_certificate_counts_every_direction_of_the_posterior(method):
    """In few coordinates as in all of them."""
    found, j = bent(), 5
    chosen = analytic.posterior(found, j, method)
    within = jnp.broadcast_to(-jnp.log(chosen.precision) / 2, (2,))
    q = capacity.Gaussian(found.weights, (within, -jnp.log(chosen.epsilon) / 2))
    whole = capacity.gaussian_kl(q, analytic.prior(found, j), basis=found.basis)
    told = analytic.certified(found, j, method, np.zeros(100))
    np.testing.assert_allclose(told.kl, whole, rtol=1e-5)
    assert told.valid and told.n == 40


def test_the_point_is_chosen_on_draws_that_are_not_certified(monkeypatch):
    """The point that looks best is taken; what is certified are other draws."""
    seen = []

    def fake(found, j, method, key, count, batch, tested=False):
        kind = "test" if tested else "certify" if count == 20 else "choose"
        seen.append((kind, j, jax.random.key_data(key).tolist()))
        looks = {4: 0.0, 5: 0.4, 6: 0.4}
        return np.full(count, 0.3 if kind == "certify" else looks[j])

    monkeypatch.setattr(analytic, "errors", fake)
    told = analytic.bounds(bent(), 0, points=(4, 5, 6), tried=5, draws=20, batch=3)
    for method in analytic.METHODS:
        assert told[f"{method}/point"] == 4
        np.testing.assert_allclose(told[f"{method}/risk"], 0.3)
        np.testing.assert_allclose(told[f"{method}/margin"], 0.5 - told[f"{method}/bound"])
        assert told[f"{method}/bound"] > told[f"{method}/plug-in"] - 0.2
    keys = {kind: {str(k) for each, _, k in seen if each == kind} for kind, *_ in seen}
    assert not keys["choose"] & keys["certify"]


@pytest.fixture
def starts():
    """The four methods; the prior of M4 saw ten rows behind those that count."""
    found = bent()
    q = capacity.Gaussian(found.weights, (jnp.full(2, -2.0), jnp.array(-1.0)))
    variance, values = analytic.GRID.variance(5), jnp.array([2.0, 0.5])
    isotropic = numerical.isotropic_start(found.start, variance, found.basis.data, q)
    return {
        "M1": numerical.diagonal_start(found.start, found.weights),
        "M2": isotropic,
        "M3": isotropic,
        "M4": numerical.held_out_start(
            found.start, found.weights, variance, found.basis.data, values, weight=3.0,
            seen=np.arange(40, 50),
        ),
    }  # fmt: skip


def trained_from(start, **options):
    found = bent()
    data = tuple(part[:40] for part in found.examples)
    return numerical.trained(
        found.model, start, data, 0, epochs=2, learning_rate=0.1, batch=20, **options
    )


@pytest.mark.parametrize("method", ["M2", "M3", "M4"])
def test_a_trained_posterior_pays_for_all_that_training_moved(starts, method):
    start, other = starts[method], jnp.linalg.qr(jnp.arange(12.0).reshape(6, 2) ** 0.5)[0]
    laws = trained_from(start, renewed=(lambda at: other) if method == "M3" else None)
    for old, new in zip(
        jax.tree.leaves(start.posterior), jax.tree.leaves(laws.posterior), strict=True
    ):
        assert (old != new).any()
    told = numerical.certified(laws, np.zeros(100), n=40)
    vectors = np.asarray(laws.vectors)
    np.testing.assert_array_equal(vectors, other if method == "M3" else start.vectors)
    whole = np.c_[vectors, np.linalg.svd(vectors)[0][:, 2:]]  # a basis of all weights
    after, before = (
        np.r_[np.broadcast_to(_along(s), 2), np.full(4, _beyond(s))]
        for s in (laws.posterior.log_scale, laws.prior.gaussian.log_scale)
    )
    ratio = np.exp(2 * (after - before))
    moved = np.ravel(laws.posterior.mean - start.prior.gaussian.mean) @ whole / np.exp(before)
    kl = np.sum(ratio - 1 - np.log(ratio) + moved**2) / 2
    np.testing.assert_allclose(told.kl, kl, rtol=1e-4)
    assert told.valid and told.n == 40


def test_eigenvectors_are_looked_for_at_the_weights_of_each_epoch_but_the_first(starts):
    """And finding the same ones again changes nothing."""
    seen = []

    def renewed(at):
        seen.append(np.asarray(at))
        return starts["M3"].vectors

    again, fixed = trained_from(starts["M3"], renewed=renewed), trained_from(starts["M2"])
    assert len(seen) == 1 and (seen[0] != bent().weights).any()
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(fixed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_scale_of_the_diagonal_posteriors_prior_is_trained_and_rounded_to_a_grid(starts):
    """M1: its relative entropy is that of the point, every weight has a scale of its own."""
    start, laws = starts["M1"], trained_from(starts["M1"])
    np.testing.assert_allclose(
        np.exp(start.posterior.log_scale), np.sqrt(np.abs(bent().weights) / 10), rtol=1e-4
    )
    np.testing.assert_allclose(float(start.prior.gaussian.log_scale), -3, rtol=1e-6)
    np.testing.assert_array_equal(laws.prior.gaussian.mean, bent().start)
    learnt = float(laws.prior.gaussian.log_scale)
    assert learnt != -3 and laws.basis is None and len(laws.prior.seen) == 0
    grid = dziugaite_roy.GRID
    told = numerical.certified(laws, np.zeros(100), n=40, grid=grid)
    assert told.grid_index in grid.neighbours(math.exp(2 * learnt))
    variance = grid.variance(told.grid_index)
    ratio = np.exp(2 * np.asarray(laws.posterior.log_scale, float)) / variance
    moved = np.asarray(laws.posterior.mean, float) ** 2 / variance  # it starts at 0
    kl = np.sum(ratio - 1 - np.log(ratio) + moved) / 2
    np.testing.assert_allclose(told.kl, kl, rtol=1e-5)
    assert told.valid and told.penalty == grid.penalty(told.grid_index)


@pytest.mark.parametrize("rate", [0.1, math.inf])
def test_trained_posteriors_pay_for_the_point_that_was_chosen_and_m1_for_its_own(
    starts, monkeypatch, rate
):
    """At the study's own call; a posterior that diverged is told as NaN, at no point."""
    paid, certify = [], capacity.certify

    def spy(posterior, prior, draws, **options):
        paid.append(certify(posterior, prior, draws, **options))
        return paid[-1]

    monkeypatch.setattr(numerical.capacity, "certify", spy)
    training = {"epochs": 2, "learning_rate": rate, "batch": 20}
    told = analytic.of_trained(
        bent(), starts, 0, 5, training, renewed=lambda at: starts["M3"].vectors, draws=20, batch=3
    )
    for method, found in zip(starts, paid, strict=True):
        assert found.valid == math.isfinite(rate) and found.draws == 20 and found.n == 40
        np.testing.assert_array_equal(told[f"{method}/bound"], found.bound)
        grid, point = analytic.GRID, 5
        if method == "M1":
            grid, point = dziugaite_roy.GRID, found.grid_index
        np.testing.assert_array_equal(told[f"{method}/point"], point or math.nan)
        assert found.penalty == (grid.penalty(point) if point else 0)


def _along(log_scale):
    return log_scale[0] if isinstance(log_scale, tuple) else log_scale


def _beyond(log_scale):
    return log_scale[1] if isinstance(log_scale, tuple) else log_scale


def test_a_prior_of_held_out_curvature_is_narrow_where_that_is_large(starts):
    variance = analytic.GRID.variance(5)
    along, beyond = starts["M4"].prior.gaussian.log_scale
    np.testing.assert_allclose(np.exp(-2 * along), 1 / variance + 3 * np.array([2, 0.5]), rtol=1e-5)
    np.testing.assert_allclose(np.exp(2 * beyond), variance, rtol=1e-5)
    with pytest.raises(ValueError, match="prior"):  # it saw row 40
        numerical.certified(starts["M4"], np.zeros(100), n=41)


def test_tested_draws_answer_test_examples_only():
    found = bent()
    x, y = found.examples
    wrong = found._replace(examples=(x, jnp.where(jnp.arange(50) < 40, y, 1 - y)))
    narrow = wrong._replace(values=jnp.array([1e9, 1e9]))
    for tested, error in ((False, 0.0), (True, 1.0)):
        drawn = analytic.errors(narrow, 200, "factor 2", jax.random.key(0), 20, 5, tested=tested)
        np.testing.assert_allclose(drawn.mean(), error, atol=0.02)


def test_training_is_pulled_to_where_a_seed_began():
    start, now = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, 1.0])}
    pull = analytic.pull_to_start(0.5)
    updates, _ = pull.update({"w": jnp.zeros(2)}, pull.init(start), now)
    np.testing.assert_allclose(updates["w"], [2.0, -1.0])


def test_a_bound_above_chance_contradicts_the_claim():
    def told(bound):
        near = bound + np.array([-0.01, 0.0, 0.01])
        numbers = {"bound": near, "margin": 0.5 - near, "test-set bound": np.full(3, 0.02)}
        arms = {f"fc2/{method}": numbers for method in analytic.METHODS}
        return verdicts(merge(of_arrays("analytic", arm, each) for arm, each in arms.items()))

    assert told(0.2)["analytic-chance"] == "SUPPORTED"
    assert told(0.6)["analytic-chance"] == "CONTRADICTED"
    assert told(0.2)["analytic-test-set"] == "CONTRADICTED"


# The inputs of the causal experiment


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


@pytest.mark.parametrize("flat_labels, told_so", [(3.0, True), (0.0, False)])
def test_that_labels_must_follow_is_learned_where_they_must(flat_labels, told_so):
    judged, _ = told(-1.5, flat_labels=flat_labels, noise=0.002)
    words = " ".join(claims.learned(None, list(judged.values())))
    assert "points per decade (as claimed) with 1,000 examples" in words
    assert ("hurt where" in words) == told_so


def test_no_effect_is_said_so():
    none, _ = told(0.0, noise=0.001)
    assert none["causal-5000"].verdict == "NO EFFECT"


def test_the_figure_has_every_rate_and_the_controls_begin_at_the_flat_arm():
    _, results = told(-1.0, flat_labels=2.0)
    curves = error_curves(results)
    assert set(curves) == {
        "1000 examples", "5000 examples", "50000 examples",
        "5000 examples, flat labels", "5000 examples, flat inputs",
    }  # fmt: skip
    spans = [decades(rate, 200) for rate in RATES]
    for x, y in curves.values():
        np.testing.assert_allclose(x, spans)
        np.testing.assert_allclose(y[0], 40)


# Training


def test_a_seed_has_examples_and_weights_of_its_own_and_is_not_trained_twice(monkeypatch):
    shelf = Shelf()
    options = dict(
        rates=(0.0, 0.05), examples=(100,), controls_at=100, seeds=2, hidden=8, batch=50,
        steps=4, learning_rate=0.01, most=100, test=60,
    )  # fmt: skip
    found = causal.measure(shelf, **options)
    errors = found.known("test/error", arm=causal.name(0.0, 100), protocol="causal")
    assert errors.shape == (2,) and errors[0] != errors[1]
    assert "regression/n=100/flat inputs" in found.arms("causal")
    monkeypatch.setattr(causal, "trained", None)
    assert causal.measure(shelf, **options).to_json() == found.to_json()
