"""Bounds that are certified: their numbers, what makes one invalid, and how often they fail."""

import math
from decimal import Decimal, getcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from spectral_jax.capacity import (
    Basis,
    Gaussian,
    Prior,
    ScaleGrid,
    analytic_posterior,
    bounded_cross_entropy,
    certify,
    data_free_prior,
    draw,
    gaussian,
    gaussian_kl,
    held_out_bound,
    kl_inverse,
    learnt_prior,
    local_conv,
    local_dense,
    pac_bayes_bound,
    risk_draws,
    starting_posterior,
    vector_basis,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")
KEY = jax.random.key(0)


def of_ones(shape):
    return gaussian(jnp.ones(shape), 1.0)


def exact_kl(q: float, p: float) -> Decimal:
    """In 50 digits."""
    getcontext().prec = 50
    a, b = Decimal(q), Decimal(p)
    heads = a * (a / b).ln() if a else Decimal(0)
    return heads + ((1 - a) * ((1 - a) / (1 - b)).ln() if a < 1 else Decimal(0))


# kl and its inverse


@pytest.mark.parametrize(
    "q, c, expected",
    [
        (0.01, 0.01, 0.031125881450),
        (0.05, 0.05, 0.149062496341),
        (0.1, 0.1, 0.282379139456),
        (0.1, 0.001, 0.113947931033),
        (0.5, 0.1, 0.712878631456),
        (0.0, 0.3, 1 - math.exp(-0.3)),
        (1.0, 0.3, 1.0),
        (0.3, 0.0, 0.3),
        (0.3, math.inf, 1.0),
        (0.0, math.inf, 1.0),
    ],
)
def test_kl_inverse_has_the_published_values(q, c, expected):
    with jax.enable_x64(True):
        assert float(kl_inverse(q, c)) == pytest.approx(expected, abs=1e-12 if q == 0 else 1e-10)


def test_kl_inverse_is_nan_where_there_is_no_probability():
    q, c = jnp.array([-0.1, 1.1, jnp.nan, 0.5, 0.5]), jnp.array([1.0, 1, 1, -1, jnp.nan])
    assert jnp.isnan(kl_inverse(q, c)).all() and jnp.isnan(kl_inverse(q, c, side="lower")).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kl_inverse_never_ends_on_the_optimistic_side(dtype):
    """Against kl in 50 digits of the very numbers that went in and came out."""
    rng = np.random.default_rng(0)
    q, c = (
        (rng.uniform(1e-6, 1, 50) ** 3).astype(dtype),
        (10 ** rng.uniform(-8, 1, 50)).astype(dtype),
    )
    with jax.enable_x64(True):
        upper, lower = (np.asarray(kl_inverse(q, c, side=side)) for side in ("upper", "lower"))
    assert upper.dtype == dtype
    for q_i, c_i, high, low in zip(
        q.tolist(), c.tolist(), upper.tolist(), lower.tolist(), strict=True
    ):
        assert high == 1 or exact_kl(q_i, high) >= Decimal(c_i)
        assert low == 0 or exact_kl(q_i, low) >= Decimal(c_i)


@pytest.mark.parametrize(
    "q, root, newton, exact",
    [
        (0.3, 0.69, 0.8871427401, 0.8871423095),
        (0.05, 0.94, 0.8728030468, 0.8728024158),
        (0.6, 0.45, 1.0, 0.9239516420),
    ],
)
def test_five_newton_steps_are_those_of_the_notebook_and_not_the_inverse(q, root, newton, exact):
    with jax.enable_x64(True):
        c = 2 * root**2
        assert float(kl_inverse(q, c, paper_compat="newton5")) == pytest.approx(newton, abs=1e-9)
        assert float(kl_inverse(q, c)) == pytest.approx(exact, abs=1e-9)


def test_the_binomial_bound_is_that_of_clopper_and_pearson():
    assert held_out_bound(120, 10_000, delta=0.05) == pytest.approx(0.013950635558, abs=1e-11)
    assert held_out_bound(120, 10_000, delta=0.025) == pytest.approx(0.014332168991, abs=1e-11)
    assert held_out_bound(0, 100, delta=0.05) == pytest.approx(1 - 0.05 ** (1 / 100), abs=1e-12)
    assert held_out_bound(7, 7) == 1.0
    # By symmetry: the chance of 1 or fewer of 2 is 1 - p^2, that of a delta above one half.
    assert held_out_bound(1, 2, delta=0.99) == pytest.approx(0.1, abs=1e-12)


@pytest.mark.parametrize(
    "arguments, says",
    [((-1, 10), "errors=-1"), ((11, 10), "errors=11"), ((0, 0), "trials=0"), ((1.5, 10), "1.5")],
)
def test_the_binomial_bound_refuses_what_cannot_be_counted(arguments, says):
    with pytest.raises(ValueError, match=says):
        held_out_bound(*arguments)


# Relative entropies


def test_relative_entropy_of_gaussians_is_that_of_the_textbook():
    with jax.enable_x64(True):
        one = gaussian_kl(gaussian(jnp.ones(1), 0.5**0.5), gaussian(jnp.zeros(1), 1.0))
        assert float(one) == pytest.approx(0.5965735903, abs=1e-10)


def rotation(seed, size):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


def textbook_kl(mean, covariance, prior_mean, prior_covariance):
    """Of any two Gaussians, by their covariance matrices."""
    inverse, d = np.linalg.inv(prior_covariance), mean - prior_mean
    logs = np.linalg.slogdet(prior_covariance)[1] - np.linalg.slogdet(covariance)[1]
    return (np.trace(inverse @ covariance) + d @ inverse @ d - len(d) + logs) / 2


def turned(data, w):
    return data.T @ w


def turned_back(data, z):
    return data @ z


def test_relative_entropy_in_a_basis_is_that_of_the_covariances():
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        u = rotation(0, 6)
        means, scales = rng.standard_normal((2, 6)), np.exp(rng.standard_normal((2, 6)))
        q, p = (gaussian(jnp.array(m), jnp.array(s)) for m, s in zip(means, scales, strict=True))
        found = gaussian_kl(q, p, basis=Basis(turned, turned_back, u))
    covariances = [u @ np.diag(s**2) @ u.T for s in scales]
    assert float(found) == pytest.approx(
        textbook_kl(means[0], covariances[0], means[1], covariances[1]), rel=1e-12
    )


def test_some_vectors_and_one_variance_beyond_them_are_a_basis_too():
    """Relative entropy and the covariance of draws, against the covariance matrix."""
    with jax.enable_x64(True):
        u = rotation(0, 5)[:, :2]
        basis = vector_basis(u)
        q = gaussian(jnp.arange(5.0), (jnp.array([2.0, 3.0]), 0.5))
        covariance = u @ np.diag([4.0, 9.0]) @ u.T + 0.25 * (np.eye(5) - u @ u.T)
        p = gaussian(jnp.zeros(5), 0.7)
        expected = textbook_kl(np.arange(5.0), covariance, np.zeros(5), 0.49 * np.eye(5))
        assert float(gaussian_kl(q, p, basis=basis)) == pytest.approx(expected, rel=1e-12)
        # A draw is the mean plus a linear map of the noise: its square is the covariance.
        noise = jax.random.normal(jax.random.key(3), (5,))
        root = 2 * u[:, :1] @ u[:, :1].T + 3 * u[:, 1:] @ u[:, 1:].T
        root += 0.5 * (np.eye(5) - u @ u.T)
        np.testing.assert_allclose(
            draw(jax.random.key(3), q, basis=basis), q.mean + root @ noise, rtol=1e-12
        )


def test_draws_have_the_mean_the_scale_and_the_dtypes_of_their_tree():
    q = gaussian({"b": jnp.zeros(4, jnp.bfloat16), "w": jnp.full(16_000, 2.0)}, 0.1)
    weights = jax.tree.map(np.asarray, draw(KEY, q))
    assert weights["b"].dtype == jnp.bfloat16 and weights["w"].dtype == jnp.float32
    assert weights["w"].mean() == pytest.approx(2, abs=0.003)
    assert weights["w"].std() == pytest.approx(0.1, rel=0.02)
    assert np.array_equal(jax.tree.leaves(draw(KEY, q.untied()))[1], weights["w"])


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: gaussian(jnp.ones(2), -1.0), "scale=-1.0"),
        (lambda: learnt_prior(jnp.ones(2), 1.0, seen=[0, 0]), "seen repeats a row"),
        (lambda: learnt_prior(jnp.ones(2), 1.0, seen=[-1]), "seen repeats a row or counts"),
        (lambda: learnt_prior(jnp.ones(2), 1.0, seen=[True, False]), "seen is bool"),
        (lambda: vector_basis(2 * jnp.eye(3)[:, :1]), "orthonormal only to 3"),
        (lambda: vector_basis(jnp.ones((2, 3))), r"vectors has shape \(2, 3\)"),
        (lambda: gaussian_kl(gaussian([jnp.ones(2)], 1.0), gaussian(jnp.ones(2), 1.0)), "differ"),
        (lambda: gaussian_kl(of_ones((1,)), of_ones((3,))), r"shapes \(1,\) and \(3,\)"),
        (lambda: draw(KEY, gaussian(jnp.ones(2), jnp.ones((2, 1)))), r"shape \(2, 1\) for a mean"),
        (lambda: draw(KEY, gaussian(jnp.arange(3), 0.4)), "mean has a leaf of int"),
        (lambda: draw(KEY, data_free_prior(jnp.ones(2), 1.0)), "q is a Prior: pass a Gaussian"),
        (lambda: ScaleGrid(b=0.0, c=0.1).variance(1), "b=0.0"),
        (lambda: ScaleGrid(b=10, c=-1.0).relaxed_penalty(0.0), "c=-1.0"),
    ],
)
def test_distributions_refuse_what_they_cannot_be_made_of(make, says):
    with pytest.raises(ValueError, match=says):
        make()


# Certificates

PRIOR = data_free_prior(jnp.zeros(2), 1.0)


def nats(amount):
    """A posterior at this relative entropy from ``PRIOR``."""
    return gaussian(jnp.array([math.sqrt(2 * amount), 0.0]), 1.0)


def losses(rate, draws):
    """Draws of an error whose mean is exactly ``rate``."""
    return np.arange(draws) < round(rate * draws)


def test_certificate_of_dziugaite_and_roy_follows_from_their_table():
    """T-600: q .028, KL 5144; .1608 from the plug-in risk, .1634 after its correction."""
    posterior = nats(5144.0)
    options = {"examples": 55_000, "constant": "seeger", "penalty": math.log(math.pi**2 / 6)}
    plain = certify(posterior, PRIOR, losses(0.028, 150_000), **options, paper_compat={"plugin_mc"})
    honest = certify(posterior, PRIOR, losses(0.028, 150_000), **options)
    assert plain.bound == pytest.approx(0.1608, abs=5e-5) and not plain.valid
    assert honest.bound == pytest.approx(0.1634, abs=5e-5) and honest.valid
    assert honest.kl == pytest.approx(5144, rel=1e-6) and honest.confidence == 1 - 0.025 - 0.01


def test_the_better_neighbour_on_the_grid_is_taken_and_paid_for():
    """The chain of the released code at j = 37 of its grid, isotropic in the Hessian's basis."""
    grid = ScaleGrid(b=10, c=0.05)
    precision = 1 / grid.variance(37)
    assert precision == pytest.approx(808.946087201, abs=1e-8)
    weights = jnp.array([math.sqrt(2 * 26160.28 / precision), 0.0])
    scale = math.sqrt(grid.variance(37) * math.exp(-0.02))  # a fifth of the way to j = 38
    found = certify(
        gaussian(weights, precision**-0.5), data_free_prior(jnp.zeros(2), scale), 0.0878836364,
        examples=55_000, constant="seeger", grid=grid, chance=0.5,
    )  # fmt: skip
    assert found.grid_index == 37
    assert found.penalty + math.log(55_000 / 0.025) == pytest.approx(22.323504046, abs=1e-9)
    assert found.bound == pytest.approx(0.5461233925, abs=1e-6)
    assert not found.valid and "a number, not draws" in found.verdict


def test_the_prior_alone_pays_for_the_rounding_of_its_scale_too():
    """Its draws are of the scale that was learnt; 60 nats from the grid's."""
    grid, start = ScaleGrid(b=10, c=0.05), np.zeros(100_000)
    learnt = data_free_prior(start, math.sqrt(grid.variance(20) * math.exp(-0.05)))
    draws = losses(0.1, 20_000)
    found = certify(learnt.gaussian, learnt, draws, examples=20_000, grid=grid, prior_draws=draws)
    ratio = math.exp(-0.05 if found.grid_index == 20 else 0.05)
    assert found.kl == pytest.approx(50_000 * (ratio - 1 - math.log(ratio)), rel=3e-5)
    assert found.prior_bound == found.bound and not found.nonvacuous


def test_billions_of_examples_are_a_sample_size():
    n = 5_000_000_000
    found = certify(nats(1.0), PRIOR, losses(0.1, 1000), examples=n)
    expected = pac_bayes_bound(found.risk_bound, 1.0, n=n)
    assert found.bound == pytest.approx(float(expected), abs=1e-6) and found.n == n
    # NumPy's have 64 bits, of which JAX would read the last 32: as 705,032,704 here.
    assert pac_bayes_bound(0.1, 1.0, n=np.int64(n)) == pac_bayes_bound(0.1, 1.0, n=n)
    assert pac_bayes_bound(0.1, 10**10, n=n) == pac_bayes_bound(0.1, 1e10, n=n)


def test_between_the_points_of_a_grid_the_penalty_is_smooth_and_at_them_that_of_the_point():
    grid = ScaleGrid(b=100, c=0.1)
    with jax.enable_x64(True):
        at = jnp.array([math.log(grid.variance(j)) for j in (1, 2, 37, 600)])
        expected = [grid.penalty(j) for j in (1, 2, 37, 600)]
        np.testing.assert_allclose(grid.relaxed_penalty(at), expected, rtol=1e-12)
        # j is 100 (log .1 - x), so that the slope of 2 log j in x is -200 / j.
        slope = jax.grad(grid.relaxed_penalty)(at[2])
        np.testing.assert_allclose(slope, -200 / 37, rtol=1e-10)
        assert float(grid.relaxed_penalty(0.0)) == pytest.approx(grid.penalty(1), rel=1e-12)
    assert grid.relaxed_penalty(jnp.zeros(2, jnp.float16)).dtype == jnp.float32


def test_a_grid_that_ends_before_the_variance_says_so():
    with pytest.warns(UserWarning, match="enlarge c"):
        found = certify(
            nats(1.0), PRIOR, losses(0.1, 1000), examples=1000, grid=ScaleGrid(b=10, c=0.05)
        )
    assert found.grid_index == 1


def test_the_penalty_as_written_is_that_of_the_released_code():
    grid = ScaleGrid(b=100, c=0.1)
    found = certify(
        nats(100.0), data_free_prior(jnp.zeros(2), math.exp(-3)), losses(0.1, 1000),
        examples=55_000, constant="seeger", grid=grid, paper_compat={"penalty_as_written"},
    )  # fmt: skip
    assert math.log(math.pi**2 * 55_000 / 6 * 0.025) == pytest.approx(7.7239093126, abs=1e-9)
    written = 2 * math.log(2 * abs(100 * math.log(0.1 / math.exp(-6)))) + 7.7239093126
    assert found.penalty + math.log(55_000 / 0.025) == pytest.approx(written, abs=1e-9)
    assert not found.valid and "delta multiplies" in found.why_not[0]


def test_a_bound_is_compared_with_chance_and_with_the_prior_alone():
    def verdict(kl, rate, **options):
        return certify(nats(kl), PRIOR, losses(rate, 20_000), examples=20_000, **options)

    worse = verdict(10_000.0, 0.1, chance=0.5, prior_draws=losses(0.9, 20_000))
    assert worse.nonvacuous is False and "not below chance" in worse.verdict
    idle = verdict(300.0, 0.1, chance=0.5, prior_draws=losses(0.1, 20_000))
    assert idle.nonvacuous is False and "prior alone" in idle.verdict
    good = verdict(300.0, 0.1, chance=0.9, prior_draws=losses(0.9, 20_000), held_out=(120, 10_000))
    assert good.nonvacuous is True and good.held_out_bound == held_out_bound(120, 10_000)
    assert verdict(300.0, 0.1, chance=0.9).nonvacuous is None


def test_a_prior_and_its_bound_share_no_example():
    prior = learnt_prior(jnp.zeros(2), 1.0, seen=np.arange(50))
    draws = losses(0.1, 1000)
    honest = certify(nats(1.0), prior, draws, examples=np.arange(50, 150))
    assert honest.valid and honest.n == 100
    with pytest.raises(ValueError, match="the prior saw 1 of the 100 examples"):
        certify(nats(1.0), prior, draws, examples=np.arange(49, 149))
    with pytest.raises(ValueError, match="the prior saw 50 rows: pass the rows"):
        certify(nats(1.0), prior, draws, examples=100)
    with pytest.raises(ValueError, match="no record of what it saw"):
        certify(nats(1.0), prior.gaussian, draws, examples=100)
    published = certify(
        nats(1.0), prior, draws, examples=np.arange(100), paper_compat={"prior_on_train"}
    )
    assert not published.valid and "saw examples" in published.why_not[0]


@pytest.mark.parametrize(
    "change, says",
    [
        ({"delta": 0.0}, "delta=0.0"),
        ({"delta": 1.0}, "delta=1.0"),
        ({"delta_mc": math.nan}, "delta_mc=nan"),
        ({"delta": 0.6, "delta_mc": 0.5}, r"delta \+ delta_mc=1.1"),
        ({"examples": 7}, "n=7: choose at least 8"),
        ({"risk_draws": np.array([0.0, 1.5])}, "pass losses within"),
        ({"risk_draws": np.zeros(0)}, "pass losses within"),
        ({"prior_draws": 0.1}, "prior_draws=0.1: pass draws"),
        ({"delta": jnp.array(2.0)}, "delta=Array"),
        ({"form": "catoni"}, "form='catoni'"),
        ({"penalty": -1.0}, "penalty=-1.0"),
        ({"paper_compat": {"newton"}}, "paper_compat='newton'"),
        ({"paper_compat": {"penalty_as_written"}}, "needs a grid"),
        ({"posterior": PRIOR}, "posterior is a Prior: pass a Gaussian"),
        ({"chance": 10}, "chance=10: choose 0 to 1"),
        ({"held_out": 120}, r"held_out=120: pass \(errors, trials\)"),
        ({"risk_draws": np.zeros(10) + 1j}, "risk_draws are masked or complex"),
        ({"risk_draws": np.ma.masked_all(10)}, "risk_draws are masked or complex"),
        ({"risk_draws": ["a", "b"]}, "risk_draws are no losses"),
        ({"risk_draws": (x for x in "ab")}, "risk_draws are no losses"),
        ({"delta": "0.025"}, "delta='0.025': choose above 0 and below 1"),
        ({"grid": ScaleGrid(b=10, c=0)}, "c=0: choose above 0"),
        ({"grid": (10, 0.05)}, r"grid=\(10, 0.05\): pass ScaleGrid"),
    ],
)
def test_a_certificate_refuses_by_name(change, says):
    usual = {"posterior": nats(1.0), "risk_draws": np.zeros(10), "examples": 100}
    with pytest.raises(ValueError, match=says):
        certify(prior=PRIOR, **(usual | change))


def test_a_certificate_under_jit_is_refused_in_one_line():
    with pytest.raises(ValueError, match="certify runs on the host in float64: call it outside"):
        jax.jit(lambda draws: certify(nats(1.0), PRIOR, draws, examples=100).bound)(np.zeros(10))


def test_a_posterior_that_diverged_certifies_nothing():
    found = certify(gaussian(jnp.full(2, jnp.nan), 1.0), PRIOR, np.zeros(10), examples=100)
    assert math.isnan(found.bound) and not found.valid and "diverged" in found.verdict


@pytest.mark.parametrize("scale", [math.nan, math.inf, 400.0, -400.0])
@pytest.mark.parametrize("mean", [0.0, math.nan])
def test_nor_does_one_whose_prior_diverged_off_its_grid(mean, scale):
    """Whatever became of the posterior: equal to its prior, it would have no relative entropy."""
    law = Gaussian(jnp.full(2, mean), jnp.float32(scale))
    prior, grid = Prior(law, np.zeros(0, int)), ScaleGrid(b=100, c=0.1)
    draws = np.zeros(10)
    found = certify(law, prior, draws, examples=100, grid=grid, prior_draws=draws)
    assert math.isnan(found.bound) and not found.valid and not found.nonvacuous
    assert found.grid_index is None and math.isnan(found.prior_bound)


def test_the_forms_are_ordered_and_fall_with_less_evidence():
    with jax.enable_x64(True):
        risk, kl = jnp.array([0.0, 0.1, 0.4]), jnp.array([1.0, 100.0, 50.0])
        tight, quadratic, pinsker = (
            pac_bayes_bound(risk, kl, n=1000, form=form) for form in ("kl", "quadratic", "pinsker")
        )
        assert (tight < quadratic).all() and (tight < pinsker).all()
        assert (tight < pac_bayes_bound(risk, kl, n=1000, constant="seeger")).all()
        assert (tight > pac_bayes_bound(risk, kl, n=2000)).all()


def test_violations_are_as_rare_as_promised():
    """500 samples of a problem whose true risk is known.

    Thresholds on [0, 1] with 10 % of the labels flipped, a Gibbs posterior over 64 of them that
    overfits on purpose, and two draws of it for each example.

    The threshold ``t`` errs on ``.1 + .8 |t - .5|``. The entropy is that of the finite class.
    """
    samples, n, draws, delta, delta_mc = 500, 60, 120, 0.1, 0.05
    rng = np.random.default_rng(0)
    thresholds = (np.arange(64) + 0.5) / 64
    true_risk = 0.1 + 0.8 * np.abs(thresholds - 0.5)
    x = rng.random((samples, n))
    labels = (x > 0.5) ^ (rng.random((samples, n)) < 0.1)
    wrong = (x[..., None] > thresholds) != labels[..., None]
    empirical = wrong.mean(axis=1)
    weights = np.exp(-n * empirical)
    weights /= weights.sum(axis=1, keepdims=True)
    kl = (weights * np.log(64 * weights)).sum(axis=1)
    chosen = (weights.cumsum(axis=1)[:, None] < rng.random((samples, draws, 1))).sum(axis=-1)
    chosen = np.minimum(chosen, 63)
    rows = np.arange(draws) % n
    seen = wrong[np.arange(samples)[:, None], rows, chosen].mean(axis=1)
    with jax.enable_x64(True):
        corrected = kl_inverse(seen, math.log(2 / delta_mc) / draws)
        bound = np.asarray(pac_bayes_bound(corrected, kl, n=n, delta=delta))
        corrected = np.asarray(corrected)
    truth = (weights * true_risk).sum(axis=1)
    assert (truth > bound).mean() <= delta
    # Both halves do their work: neither the correction nor the bound is idle on these samples.
    assert ((weights * empirical).sum(axis=1) > corrected).mean() <= delta_mc
    assert (truth > seen).mean() > 0.3


# Posteriors from curvature, and those that are trained


def test_the_analytic_posterior_is_that_of_the_released_chain():
    grid = ScaleGrid(b=10, c=0.05)
    with jax.enable_x64(True):
        found = analytic_posterior(
            jnp.zeros(3), 8.0422, n=55_000, epsilon=1 / grid.variance(37),
            penalty=grid.penalty(37), factor="isotropic",
        )  # fmt: skip
        assert float(found.kl) == pytest.approx(26160.10, rel=1e-5)
        assert float(kl_inverse(0.0878836364, 2 * found.root**2)) == pytest.approx(
            0.54612, rel=1e-5
        )
        # The norm that the notebook's KL of 26160.28 has, unrounded.
        exact = jnp.sqrt(2 * 26160.2767 / found.epsilon)
        root = math.sqrt((26160.2767 + 22.323504046) / (2 * 54_999))
        again = analytic_posterior(
            jnp.zeros(0), exact, n=55_000, epsilon=found.epsilon,
            penalty=grid.penalty(37), factor=4,
        )  # fmt: skip
        assert float(again.root) == pytest.approx(root, abs=1e-9)


def test_the_optimal_factor_minimises_the_second_order_bound():
    """Against a numerical search over every precision."""
    values, n, epsilon = np.array([3.0, 0.1, 1e-3, -0.5]), 500, 20.0

    def second_order(log_precision):
        precision = np.exp(log_precision)
        kl = (np.log(precision / epsilon) + epsilon / precision - 1).sum() / 2 + epsilon * 2.0
        nats = kl + math.log(n / 0.025)
        return (np.maximum(values, 0) / precision).sum() / 2 + math.sqrt(nats / (2 * (n - 1)))

    with jax.enable_x64(True):
        found = analytic_posterior(jnp.array(values), 2.0, n=n, epsilon=epsilon)
        fixed = [
            analytic_posterior(jnp.array(values), 2.0, n=n, epsilon=epsilon, factor=f)
            for f in (2, 4)
        ]
    best = minimize(
        second_order, np.log(np.full(4, epsilon)), method="BFGS", options={"gtol": 1e-9}
    )
    np.testing.assert_allclose(np.log(found.precision), best.x, atol=1e-5)
    assert float(found.rise + found.root) == pytest.approx(best.fun, abs=1e-12)
    for factor, posterior in zip((2, 4), fixed, strict=True):
        expected = epsilon + factor * (n - 1) * np.maximum(values, 0)
        np.testing.assert_allclose(posterior.precision, expected, rtol=1e-12)


def test_the_analytic_posterior_has_the_relative_entropy_of_its_gaussian():
    with jax.enable_x64(True):
        vectors = rotation(1, 5)[:, :2]
        start, trained = jnp.zeros(5), jnp.arange(5.0)
        found = analytic_posterior(jnp.array([2.0, 0.1]), trained - start, n=100, epsilon=3.0)
        expected = gaussian_kl(
            found.gaussian(trained), gaussian(start, 3.0**-0.5), basis=vector_basis(vectors)
        )
        assert float(found.kl) == pytest.approx(float(expected), rel=1e-12)


def test_local_noise_has_the_law_of_a_layer_with_drawn_weights():
    """Mean and covariance of the outputs; two examples are answered by independent weights."""
    kernel = gaussian(jnp.array([[1.0, 2.0], [0.0, -1.0]]), jnp.array([[0.1, 0.2], [0.3, 0.4]]))
    bias = gaussian(jnp.array([0.5, 0.0]), 0.05)
    x = jnp.array([[1.0, 2.0], [0.0, 0.0]])
    keys = jax.random.split(jax.random.key(0), 20_000)
    out = jax.vmap(lambda key: local_dense(key, x, kernel, bias))(keys).reshape(20_000, 4)
    np.testing.assert_allclose(out.mean(axis=0), [1.5, 0, 0.5, 0], atol=0.03)
    variances = [0.01 + 4 * 0.09 + 0.0025, 0.04 + 4 * 0.16 + 0.0025, 0.0025, 0.0025]
    np.testing.assert_allclose(np.cov(out.T), np.diag(variances), atol=0.02)


def test_a_convolution_without_noise_is_that_of_the_means():
    keys = jax.random.split(KEY, 3)
    x, w = jax.random.normal(keys[0], (3, 7, 6, 2)), jax.random.normal(keys[1], (3, 2, 2, 4))
    b = jax.random.normal(keys[2], (4,))
    with jax.enable_x64(True):
        x, w, b = (a.astype(jnp.float64) for a in (x, w, b))
        still = jnp.array(-60.0)
        found = local_conv(KEY, x, Gaussian(w, still), Gaussian(b, still))
        layout = ("NHWC", "HWIO", "NHWC")
        expected = jax.lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=layout)
        np.testing.assert_allclose(found, expected + b, atol=1e-12)


def test_no_images_give_no_outputs_and_a_scale_is_of_the_weights():
    kernel = gaussian(jnp.ones((2, 3, 2, 5)), 0.1)
    assert local_conv(KEY, jnp.ones((0, 4, 4, 2)), kernel).shape == (0, 3, 2, 5)
    for_each_image = Gaussian(kernel.mean, jnp.zeros((7, 2, 3, 2, 5)))
    with pytest.raises(ValueError, match="[Bb]roadcast"):
        local_conv(KEY, jnp.ones((7, 4, 4, 2)), for_each_image)


def test_a_noisy_convolution_has_the_law_of_one_with_drawn_weights():
    """One weight at two places ties their outputs; two examples have weights of their own."""
    kernel = gaussian(jnp.array([1.0, 2.0]).reshape(1, 2, 1, 1), 0.3)
    bias = gaussian(jnp.array([0.5]), 0.2)
    x = jnp.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]).reshape(2, 1, 3, 1)
    keys = jax.random.split(jax.random.key(0), 20_000)
    out = jax.vmap(lambda key: local_conv(key, x, kernel, bias))(keys).reshape(20_000, 4)
    np.testing.assert_allclose(out.mean(axis=0), [5.5, 8.5, 5.5, 8.5], atol=0.03)
    patches = np.array([[1.0, 2], [2, 3]])
    within = 0.09 * patches @ patches.T + 0.04
    expected = np.kron(np.eye(2), within)
    np.testing.assert_allclose(np.cov(out.T), expected, atol=0.04)


def above(weights, examples):
    return weights["w"][0] > examples["at"]


def test_draws_of_the_risk_are_independent_and_have_its_mean():
    """A standard normal exceeds -1 and 1 with probabilities .841 and .159, on average one half."""
    posterior = gaussian({"w": jnp.zeros(1)}, 1.0)
    data = {"at": jnp.array([-1.0, 1.0])}
    ones, pairs = (
        risk_draws(KEY, posterior, above, data, draws=4000, batch=batch) for batch in (1, 2)
    )
    assert float(ones.mean()) == pytest.approx(0.5, abs=0.03) and set(ones.tolist()) == {0, 1}
    assert float(pairs.mean()) == pytest.approx(0.5, abs=0.03) and set(pairs.tolist()) == {
        0,
        0.5,
        1,
    }
    neighbours = np.corrcoef(ones[:-1], ones[1:])[0, 1]
    assert abs(neighbours) < 0.06
    with pytest.raises(ValueError, match="one number per example"):
        risk_draws(KEY, posterior, lambda w, _: w["w"].sum(), data, draws=2, batch=2)


def test_an_input_of_zeros_leaves_the_gradient_finite():
    kernel = gaussian(jnp.ones((2, 2)), 0.1)
    slope = jax.grad(lambda k: local_dense(jax.random.key(0), jnp.zeros((1, 2)), k).sum())(kernel)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(slope))


def test_posteriors_start_where_the_sources_do():
    weights = {"w": jnp.array([0.4, -0.1])}
    epsilon, values = 0.01, jnp.array([3.0, 1.0])

    def scales(method, **options):
        return jnp.exp(
            jnp.concatenate(
                [
                    jnp.ravel(x)
                    for x in jax.tree.leaves(
                        starting_posterior(method, weights, **options).log_scale
                    )
                ]
            )
        )

    np.testing.assert_allclose(scales("dziugaite-roy"), [0.8, 0.2], rtol=1e-6)
    np.testing.assert_allclose(scales("M1"), [0.2, 0.1], rtol=1e-6)
    full = scales("M2", eigenvalues=values, epsilon=epsilon)
    np.testing.assert_allclose(full, [0.301**0.5, 0.101**0.5], rtol=1e-6)
    some = scales("M3", eigenvalues=values[:1])
    np.testing.assert_allclose(some, [0.001**0.5, 3000**-0.5], rtol=1e-6)
    with pytest.raises(ValueError, match="pass its eigenvalues"):
        starting_posterior("M4", weights)


def of_data(data):
    return risk_draws(KEY, of_ones(()), lambda w, _: jnp.zeros(1), data, draws=2, batch=1)


def test_a_label_that_is_no_class_has_no_loss():
    found = bounded_cross_entropy(jnp.zeros((4, 3)), [0, -1, 3, 2])
    assert np.isnan(found).tolist() == [False, True, True, False]


def test_a_penalty_in_an_array_is_not_negative():
    penalty = jnp.array([1.0, -1.0])
    found = jax.vmap(
        lambda x: analytic_posterior(jnp.ones(2), 1.0, n=9, epsilon=1.0, penalty=x).kl
    )(penalty)
    assert np.isnan(found).tolist() == [False, True]


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: analytic_posterior(jnp.ones(2), 1.0, n=1, epsilon=1.0), "n=1"),
        (lambda: analytic_posterior(jnp.ones(2), 1.0, n=9, epsilon=1.0, delta=1.5), "delta=1.5"),
        (lambda: analytic_posterior(jnp.ones(2), 1.0, n=9, epsilon=1.0, factor=3), "factor=3"),
        (lambda: bounded_cross_entropy(jnp.ones((2, 3)), jnp.ones(3, int)), r"labels \(3,\)"),
        (lambda: bounded_cross_entropy(jnp.ones(3), jnp.array(0), pmin=0.0), "pmin=0.0"),
        (lambda: local_dense(KEY, jnp.ones((2, 3)), gaussian(jnp.ones((2, 3)), 1.0)), "kernel"),
        (
            lambda: local_conv(KEY, jnp.ones((1, 4, 4, 1)), gaussian(jnp.ones((2, 2, 3, 1)), 1.0)),
            "kernel",
        ),
        (
            lambda: local_conv(KEY, jnp.ones((1, 1, 4, 1)), gaussian(jnp.ones((2, 2, 1, 1)), 1.0)),
            "no larger",
        ),
        (
            lambda: local_dense(KEY, jnp.ones((2, 3)), of_ones((3, 4)), of_ones((1,))),
            r"bias \(1,\) and kernel \(3, 4\): pass a bias \[o\]",
        ),
        (
            lambda: local_conv(KEY, jnp.ones((1, 4, 4, 1)), of_ones((2, 2, 1, 4)), of_ones((3,))),
            r"bias \(3,\) and kernel \(2, 2, 1, 4\): pass a bias \[o\]",
        ),
        (lambda: starting_posterior("M5", jnp.ones(2)), "method='M5'"),
        (lambda: bounded_cross_entropy(jnp.ones((2, 3)), [0.0, 1.0]), "of float32: pass"),
        (lambda: analytic_posterior(jnp.ones(2), 1.0, n=9, epsilon=jnp.ones(2)), "vmap for"),
        (lambda: analytic_posterior(jnp.ones((2, 2)), 1.0, n=9, epsilon=1.0), r"pass \[k\]"),
        (
            lambda: analytic_posterior(jnp.ones(2), 1.0, n=9, epsilon=1.0, penalty=np.float32(-1)),
            "penalty=np.float32",
        ),
        (lambda: of_data((jnp.ones(3), jnp.ones(2))), r"lengths \[\(2,\), \(3,\)\]"),
        (lambda: of_data(jnp.ones(0)), r"lengths \[\(0,\)\]"),
        (lambda: of_data([1.0, 2.0]), r"lengths \[\(\)\]"),
    ],
)
def test_posteriors_refuse_by_name(make, says):
    with pytest.raises(ValueError, match=says):
        make()
