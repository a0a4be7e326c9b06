"""The spectral density: what a rule of Lanczos nodes must know, and what it cannot."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_jax.linalg import SymmetricOperator, dense_operator, eigsh, lanczos
from spectral_jax.linalg.density import logdet, spectral_density
from spectral_jax.linalg.lanczos import three_term

pytestmark = pytest.mark.usefixtures("quick_compilation")
N = 40
KEY = jax.random.key(3)
SPECTRA = {
    "random": np.random.default_rng(7).standard_normal(N),
    "outliers": np.r_[[100.0, 50.0, 20.0], np.linspace(0, 1, N - 3)],
    "graded": np.logspace(-12, 0, N),
    "repeated": np.r_[[1.0] * 10, [4.0] * (N - 10)],
    "low rank": np.r_[[0.0] * (N - 3), [1.0, 2.0, 5.0]],
    "huge": 1e20 * np.linspace(1, 2, N),
}


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


def rotated(eigenvalues, dtype="float64"):
    """A matrix with Haar-random eigenvectors: signs would see a diagonal one without error."""
    draw = np.random.default_rng(0).standard_normal((len(eigenvalues),) * 2)
    vectors, r = np.linalg.qr(draw)
    vectors = vectors * np.sign(np.diag(r))
    a = vectors * eigenvalues @ vectors.T
    return jnp.asarray((a + a.T) / 2, dtype)


def within(estimate, truth, *, errors=4.0, atol=0.0):
    deviation = np.abs(np.asarray(estimate.value) - truth)
    return bool(np.all(deviation <= errors * np.asarray(estimate.standard_error) + atol))


# Rules


@pytest.mark.parametrize("dtype, eps", [("float32", 2e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_every_rule_is_a_probability_on_the_convex_hull_of_the_spectrum(spectrum, dtype, eps):
    values = SPECTRA[spectrum]
    density = spectral_density(dense_operator(rotated(values, dtype)), KEY, probes=4, steps=12)
    assert density.nodes.shape == density.weights.shape == (4, 12)
    assert density.nodes.dtype == density.weights.dtype == dtype
    np.testing.assert_allclose(density.weights.sum(axis=1), 1, rtol=eps)
    assert (density.weights >= 0).all() and (jnp.diff(density.nodes) >= 0).all()
    slack = 10 * eps * np.abs(values).max()
    assert density.nodes.min() >= values.min() - slack
    assert density.nodes.max() <= values.max() + slack
    assert density.matvecs == 4 * 12


@pytest.mark.parametrize("spectrum", ["random", "outliers"])
def test_all_steps_find_all_eigenvalues(spectrum):
    density = spectral_density(dense_operator(rotated(SPECTRA[spectrum])), KEY, probes=3, steps=N)
    for nodes in density.nodes:
        np.testing.assert_allclose(nodes, np.sort(SPECTRA[spectrum]), atol=1e-11)


def test_more_steps_than_dimensions_are_not_taken():
    density = spectral_density(dense_operator(rotated([1.0, 2.0, 4.0])), KEY, probes=2, steps=100)
    assert density.nodes.shape == (2, 3) and density.matvecs == 6


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_a_rule_integrates_polynomials_below_twice_its_size(steps):
    a = rotated(SPECTRA["random"])
    density = spectral_density(dense_operator(a), KEY, probes=1, steps=steps)
    start = jax.random.normal(KEY, (N, 1))[:, 0]
    start = start / jnp.linalg.norm(start)
    power, found = start, density.moments(2 * steps - 1).value
    for moment in found:
        power = a @ power
        assert float(moment) == pytest.approx(float(start @ power), rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("reorthogonalise", [True, False])
def test_moments_are_traces_within_their_errors(reorthogonalise):
    values = SPECTRA["outliers"]
    density = spectral_density(
        dense_operator(rotated(values)),
        KEY,
        probes=200,
        steps=8,
        reorthogonalise=reorthogonalise,
        batch_size=50,
    )
    truth = np.array([np.mean(values**k) for k in (1, 2, 3)])
    moments = density.moments(3)
    assert within(moments, truth)
    assert (moments.standard_error < 0.3 * truth).all()


def test_batches_of_probes_change_nothing():
    op = dense_operator(rotated(SPECTRA["random"]))
    alone = spectral_density(op, KEY, probes=5, steps=9)
    together = spectral_density(op, KEY, probes=5, steps=9, batch_size=2)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-12), alone, together)


# Breakdown


@pytest.mark.parametrize("reorthogonalise", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_breakdown_leaves_an_exact_rule(dtype, reorthogonalise):
    for values, rank in (([2.0] * N, 1), ([0.0] * N, 1), (SPECTRA["repeated"], 2)):
        density = spectral_density(
            dense_operator(rotated(values, dtype)),
            KEY,
            probes=3,
            steps=10,
            reorthogonalise=reorthogonalise,
        )
        assert not reorthogonalise or (density.rank == rank).all()
        tolerance = 20 * jnp.finfo(dtype).eps
        distance = np.abs(np.asarray(density.nodes)[..., None] - np.unique(values)).min(axis=-1)
        assert (distance * np.asarray(density.weights)).sum() <= 10 * tolerance
        np.testing.assert_allclose(density.weights.sum(axis=1), 1, rtol=tolerance)


def test_a_low_rank_matrix_is_seen_in_about_rank_plus_one_steps():
    density = spectral_density(dense_operator(rotated(SPECTRA["low rank"])), KEY, steps=20)
    # Whether the fifth vector is rounding is a matter of rounding; it then has no weight.
    assert (density.rank >= 4).all() and (density.rank <= 5).all()
    seen = np.asarray(density.nodes)[np.asarray(density.weights) > 1e-12]
    np.testing.assert_allclose(np.unique(seen.round(8)), [0, 1, 2, 5], atol=1e-8)
    assert within(density.cdf(jnp.array([0.5])), 1 - 3 / N)


def test_a_nan_is_not_swallowed():
    a = rotated(SPECTRA["random"]).at[2, 3].set(jnp.nan)
    for reorthogonalise in (True, False):
        density = spectral_density(
            dense_operator(a), KEY, probes=2, steps=5, reorthogonalise=reorthogonalise
        )
        assert jnp.isnan(density.nodes).all() and jnp.isnan(density.weights).all()
    assert jnp.isnan(density.moments(2).value).all()
    assert jnp.isnan(logdet(dense_operator(a), KEY, probes=2, steps=5).value)


# Orthogonality: one pass after the recurrence is enough


@pytest.mark.parametrize("dtype, eps", [("float32", 1e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("spectrum", ["outliers", "graded", "random"])
def test_the_basis_stays_orthonormal_as_far_as_it_goes(spectrum, dtype, eps):
    values = np.r_[SPECTRA[spectrum], np.linspace(0, 0.3, 160)]
    t = lanczos(dense_operator(rotated(values, dtype)), jnp.ones(200, dtype), 120)
    rank = int(t.rank)
    q = np.asarray(t.basis[:, :rank], "float64")
    assert rank >= 20
    np.testing.assert_allclose(q.T @ q, np.eye(rank), atol=4 * eps)


def test_the_bare_recurrence_makes_copies_that_share_the_weight():
    values = np.r_[[100.0, 50.0], np.linspace(0, 1, 200)]
    op = dense_operator(rotated(values, "float32"))
    kept, bare = (
        spectral_density(op, KEY, probes=2, steps=60, reorthogonalise=r) for r in (True, False)
    )
    assert ((kept.nodes > 99).sum(axis=1) == 1).all()
    assert ((bare.nodes > 99).sum(axis=1) > 1).all()
    at = jnp.array([0.25, 0.75, 10.0, 70.0], "float32")
    np.testing.assert_allclose(bare.cdf(at).value, kept.cdf(at).value, atol=0.02)
    share = [jnp.where(d.nodes > 10, d.weights, 0).sum(axis=1) for d in (kept, bare)]
    np.testing.assert_allclose(*share, rtol=1e-3)
    # A basis that does not fit is not kept.
    tight = spectral_density(op, KEY, probes=2, steps=60, memory=60 * 202 * 4 - 1)
    np.testing.assert_array_equal(tight.nodes, bare.nodes)


def test_the_bare_recurrence_is_that_of_the_basis_while_it_is_orthogonal():
    op = dense_operator(rotated(SPECTRA["random"]))
    t, (alpha, beta, rank) = lanczos(op, jnp.ones(N), 8), three_term(op, jnp.ones(N), 8)
    np.testing.assert_allclose(alpha, t.alpha, atol=1e-12)
    np.testing.assert_allclose(beta, t.beta, atol=1e-12)
    assert rank == t.rank == 8


# What it says of the spectrum


def test_the_smoothed_density_is_the_convolution_and_integrates_to_one():
    values = SPECTRA["random"]
    density = spectral_density(dense_operator(rotated(values)), KEY, probes=50, steps=N)
    at, broadening = jnp.linspace(-6, 6, 241), 0.4
    found = density.smoothed(at, broadening)
    bumps = np.exp(-(((np.asarray(at)[:, None] - values) / broadening) ** 2) / 2)
    truth = bumps.mean(axis=1) / (broadening * np.sqrt(2 * np.pi))
    assert within(found, truth, atol=1e-12, errors=5)
    assert float(jnp.trapezoid(found.value, at)) == pytest.approx(1, abs=1e-9)
    assert float(found.standard_error.max()) < 0.1 * truth.max()


def test_the_cdf_counts_eigenvalues():
    values = SPECTRA["random"]
    density = spectral_density(dense_operator(rotated(values)), KEY, probes=100, steps=N)
    at = jnp.linspace(-3, 3, 13) + 1e-3
    found = density.cdf(at)
    truth = (values <= np.asarray(at)[:, None]).mean(axis=1)
    assert within(found, truth, atol=1e-12)
    assert found.value[0] >= 0 and found.value[-1] == pytest.approx(1)


def test_standard_errors_cover_what_they_claim():
    """Mean 10 of 20 probes: Student's t puts 95 % within 2.09 standard errors."""
    a, truth = rotated(SPECTRA["outliers"]), SPECTRA["outliers"].mean()
    keys = jax.random.split(KEY, 300)
    estimate = jax.jit(
        jax.vmap(lambda k: spectral_density(dense_operator(a), k, probes=20, steps=3).moments(1))
    )(keys)
    covered = np.abs(estimate.value - truth) <= 2.09 * estimate.standard_error
    assert 0.88 <= covered.mean() <= 0.99
    spread = float(estimate.value.std())
    assert float(jnp.sqrt((estimate.standard_error**2).mean())) == pytest.approx(spread, rel=0.15)


def test_one_probe_knows_no_error():
    density = spectral_density(dense_operator(rotated(SPECTRA["random"])), KEY, probes=1, steps=4)
    assert jnp.isnan(density.moments(1).standard_error).all()
    assert jnp.isfinite(density.moments(1).value).all()


def test_it_cannot_see_a_sloppy_tail_and_its_error_does_not_say_so():
    """The docstring's warning: 40 % of the eigenvalues are below 1e-6, none is reported."""
    values = np.logspace(-10, 0, 400)

    def apply(d, x):
        reflected = x - 2 * d[1] * jnp.vdot(d[1], x)
        image = d[0] * reflected
        return image - 2 * d[1] * jnp.vdot(d[1], image)

    data = (jnp.asarray(values), jnp.ones(400) / 20)
    density = spectral_density(SymmetricOperator(apply, data, 400), KEY, probes=5, steps=40)
    tail = density.cdf(jnp.array([1e-6]))
    assert (values < 1e-6).mean() == pytest.approx(0.4, abs=0.01)
    assert tail.value[0] < 0.1 and not within(tail, 0.4)


# Resolution on a logarithmic axis

MAGNITUDES = jnp.logspace(-12, 0.5, 60)
DECADES = {
    "nine decades": np.logspace(-9, 0, 300),
    "many zeros": np.r_[np.zeros(260), np.logspace(-3, 0, 40)],
    "no small ones": np.r_[np.random.default_rng(0).uniform(0.01, 1, 297), [5.0, 10.0, 20.0]],
    "both signs": np.r_[-np.logspace(-6, -2, 50), np.logspace(-5, 0, 250)],
}


@pytest.fixture(scope="module")
def rules():
    """Rules with and without a basis of spectra over decades."""
    run = partial(spectral_density, key=KEY, probes=4, steps=30)
    return {
        (name, kept): run(dense_operator(rotated(values)), reorthogonalise=kept)
        for name, values in DECADES.items()
        for kept in (True, False)
    }


@jax.jit
def said_at(density, at):
    return density.cdf(at).value, density.quadrature_error(at), density.floor


def shares_of_probes(values, at, probes=4):
    """The probes' own distribution functions at ``at``, which their rules approximate."""
    starts = np.asarray(jax.random.normal(KEY, (len(values), probes)))
    found, vectors = np.linalg.eigh(np.asarray(rotated(values)))
    weights = (vectors.T @ starts) ** 2 / (starts**2).sum(axis=0)
    return ((found <= at[:, None])[..., None] * weights).sum(axis=1).mean(axis=1)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("spectrum", DECADES)
def test_the_quadrature_error_bounds_what_few_nodes_get_wrong(rules, spectrum, kept):
    density, values = rules[spectrum, kept], DECADES[spectrum]
    for at in (MAGNITUDES, -MAGNITUDES):
        share, error, floor = map(np.asarray, said_at(density, at))
        visible = np.abs(at) > floor  # below, a zero is at 1e-17 or at -1e-17
        wrong = np.abs(share - shares_of_probes(values, np.asarray(at)))
        # What the bare recurrence has lost of orthogonality shows in the third digit.
        assert (wrong <= error + (1e-9 if kept else 2e-3))[visible].all()


def test_what_is_not_resolved_is_known(rules):
    """Thirty nodes cannot tell 1e-9 from 1e-3, and say so; a gap above zeros is seen by them."""
    expected = {"nine decades": 1e-2, "many zeros": 1e-3, "no small ones": 1e-11}
    for name, above in expected.items():
        density = rules[name, True]
        seen = np.asarray(density.resolved(MAGNITUDES))
        assert (np.diff(seen.astype(int)) >= 0).all() and seen.any()
        assert float(MAGNITUDES[np.argmax(seen)]) <= 10 * above
        assert not seen[np.asarray(MAGNITUDES) <= density.floor].any()
    assert not rules["nine decades", True].resolved(jnp.array([1e-8, 1e-6, 1e-4])).any()


def test_the_quadrature_error_is_the_christoffel_function():
    """Of a rule in closed form: the Legendre polynomials' on [-1, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    rule = spectral_density(dense_operator(jnp.eye(3)), KEY, probes=1, steps=1)._replace(
        nodes=jnp.asarray(nodes)[None],
        weights=jnp.asarray(weights / 2)[None],
        known=jnp.zeros((1, 8), bool),
    )
    at = np.linspace(-1.2, 1.2, 7)
    legendre = np.polynomial.legendre.legvander(at, 7) ** 2 * (2 * np.arange(8) + 1)
    np.testing.assert_allclose(rule.quadrature_error(jnp.asarray(at)), 1 / legendre.sum(axis=1))


def test_the_density_per_decade_integrates_to_the_shares_of_either_sign(rules):
    density, at = rules["both signs", True], jnp.logspace(-15, 2, 400)
    decades = jnp.log10(at)
    below = density.cdf(jnp.array([-1.0, 1.0]) * density.floor).value
    for negative, share in ((False, 1 - below[1]), (True, below[0])):
        drawn = density.per_decade(at, 0.1, negative=negative)
        assert jnp.isnan(drawn.value[at <= density.floor]).all()
        total = float(jnp.trapezoid(jnp.nan_to_num(drawn.value), decades))
        assert total == pytest.approx(float(share), abs=1e-3)


# Deflation


def test_known_pairs_count_exactly_and_take_their_variance_along():
    values = SPECTRA["outliers"]
    op = dense_operator(rotated(values))
    top = eigsh(op, 3, which="LA", tol=1e-12).vectors
    plain = spectral_density(op, KEY, probes=20, steps=10)
    split = spectral_density(op, KEY, probes=20, steps=10, deflate=top)
    np.testing.assert_allclose(split.weights.sum(axis=1), 1, rtol=1e-13)
    assert (jnp.diff(split.nodes) >= 0).all() and split.nodes.shape == (20, 13)
    assert split.known.sum() == 60 and split.matvecs == 20 * 10 + 3
    assert split.coupling < 1e-9
    truth = np.array([np.mean(values**k) for k in (1, 2, 3)])
    found = split.moments(3)
    assert within(found, truth, atol=1e-9)
    assert (found.standard_error < 0.03 * plain.moments(3).standard_error).all()
    at = jnp.array([10.0, 30.0, 70.0])
    np.testing.assert_allclose(split.cdf(at).value, 1 - np.array([3, 2, 1]) / N, atol=1e-12)
    assert (split.cdf(at).standard_error < 1e-12).all()


@pytest.mark.parametrize("reorthogonalise", [True, False])
def test_columns_that_are_no_eigenvectors_move_eigenvalues_by_their_coupling(reorthogonalise):
    a = rotated(SPECTRA["random"])
    columns = jnp.linalg.qr(jax.random.normal(KEY, (N, 2)))[0]
    density = spectral_density(
        dense_operator(a),
        KEY,
        probes=2,
        steps=N,
        deflate=columns,
        reorthogonalise=reorthogonalise,
    )
    images = np.asarray(a @ columns)
    outside = images - columns @ (columns.T @ images)
    assert float(density.coupling) == pytest.approx(np.linalg.norm(outside), rel=1e-12)
    if reorthogonalise:
        moved = np.abs(np.asarray(density.nodes[0]) - np.sort(SPECTRA["random"]))
        assert moved.max() <= density.coupling


def test_deflation_refuses_what_are_no_columns():
    op = dense_operator(jnp.eye(3))
    with pytest.raises(ValueError, match=r"deflate has shape \(2, 1\): pass columns \[3, d\]"):
        spectral_density(op, KEY, deflate=jnp.ones((2, 1)))
    with pytest.raises(ValueError, match="leave a direction for the probes"):
        spectral_density(op, KEY, deflate=jnp.eye(3))


# logdet


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("float64", 1e-9)])
def test_logdet_is_that_of_lapack_within_its_error(dtype, tolerance):
    a = rotated(np.linspace(0.5, 20, N), dtype)
    found = logdet(dense_operator(a), KEY, probes=60, steps=30)
    truth = np.linalg.slogdet(np.asarray(a, "float64"))[1]
    assert within(found, truth, atol=tolerance * truth)
    assert found.standard_error < 0.1 * truth and found.value.dtype == dtype
    assert found.matvecs == 60 * 30


def test_logdet_of_a_multiple_of_the_identity_is_exact():
    found = logdet(dense_operator(3.0 * jnp.eye(N)), KEY, probes=4)
    assert float(found.value) == pytest.approx(N * np.log(3), rel=1e-14)
    assert float(found.standard_error) == pytest.approx(0, abs=1e-12)


def test_logdet_error_shrinks_as_the_rules_grow_and_comes_from_above():
    a = rotated(np.logspace(-3, 0, N))
    few, more, all_ = (
        float(logdet(dense_operator(a), KEY, probes=3, steps=steps).value) for steps in (5, 10, N)
    )
    assert few > more > all_


@pytest.mark.parametrize("values", [np.linspace(-1, 5, N), SPECTRA["low rank"], np.zeros(N)])
def test_logdet_of_a_matrix_without_one_is_nan(values):
    assert jnp.isnan(logdet(dense_operator(rotated(values)), KEY, probes=3, steps=20).value)


@pytest.mark.parametrize("name", ["probes", "steps", "batch_size"])
def test_nonsense_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0: choose at least 1"):
        spectral_density(dense_operator(jnp.eye(3)), KEY, **{name: 0})
