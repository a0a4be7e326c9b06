"""tails: power-law fits and what else a tail may be, against loops and SciPy's optimisers."""

from functools import partial

import jax
import numpy as np
from scipy import integrate, optimize, stats

from spectral_jax.tails.alternatives import tail_alternatives
from spectral_jax.tails.goodness import goodness_of_fit
from spectral_jax.tails.power_law import power_law_fit
from spectral_jax.tails.support import FitStatus
from tests import draws
from tests.contract import Case, Degenerate, register

BATCH, N = 3, 24
XMIN = 0.9
NOT_FINITE = (np.nan, np.inf, -np.inf)


def spectra(key, dtype):
    return (np.exp(draws.normal(key, (BATCH, N), dtype)),)


def fit_from(ascending, xmin):
    """Alpha and KS distance of the values from ``xmin`` on, by the formulas."""
    x = ascending[ascending >= xmin]
    n = len(x)
    alpha = 1 + n / np.log(x / xmin).sum()
    ks = np.abs(1 - (x / xmin) ** (1 - alpha) - np.arange(n) / n).max()
    return alpha, xmin, ks, (alpha - 1) / np.sqrt(n)


def loop(spectrum):
    """Every distinct value but the largest is tried."""
    ascending = np.sort(spectrum)
    fits = [fit_from(ascending, xmin) for xmin in np.unique(ascending)[:-1]]
    return min(fits, key=lambda fit: fit[2])


def each(function):
    return lambda spectra: tuple(np.transpose([function(s) for s in spectra]))


def numbers(fit):
    return fit.alpha, fit.xmin, fit.ks, fit.standard_error


def undecided(status):
    return lambda fit: bool(np.isnan(fit.alpha).all() & (fit.status == status).all())


DEGENERATE = {
    "zero": Degenerate((np.zeros((BATCH, N)),), undecided(FitStatus.TOO_FEW)),
    "repeated": Degenerate((np.ones((BATCH, N)),), undecided(FitStatus.DEGENERATE)),
    "one value": Degenerate((np.ones((BATCH, 1)),), undecided(FitStatus.TOO_FEW)),
    "no values": Degenerate((np.ones((BATCH, 0)),), undecided(FitStatus.TOO_FEW)),
    **{
        f"one {value}": Degenerate(
            (draws.changed(np.arange(1.0, N + 1), 3, value),),
            undecided(FitStatus.NOT_FINITE),
            False,
        )
        for value in NOT_FINITE
    },
}
FIT = dict(make_inputs=spectra, select=numbers, degenerate=DEGENERATE, leading=True)
DEGREES = (0, 1, 0, 0)

register(
    Case(
        name="tails.power_law_fit", function=power_law_fit, oracle=each(loop), degree=DEGREES, **FIT
    ),
)
register(
    Case(
        name="tails.power_law_fit: median",
        function=partial(power_law_fit, xmin="median"),
        oracle=each(lambda s: fit_from(np.sort(s), np.sort(s)[N // 2])),
        degree=DEGREES,
        **FIT,
    )
)
register(
    Case(
        name="tails.power_law_fit: given xmin",
        function=partial(power_law_fit, xmin=XMIN),
        oracle=each(lambda s: fit_from(np.sort(s), XMIN)),
        unscaled="xmin is held: tests/test_power_law.py",
        **FIT,
    )
)


def peak(spectrum):
    counts, edges = np.histogram(np.log10(spectrum), bins=100)
    mode, ascending = 10 ** edges[counts.argmax()], np.sort(spectrum)
    near = (ascending >= 0.95 * mode) & (ascending <= 1.5 * mode)
    near[-1] = False
    return min((fit_from(ascending, xmin) for xmin in ascending[near]), key=lambda fit: fit[2])


register(
    Case(
        name="tails.power_law_fit: peak",
        function=partial(power_law_fit, xmin="peak"),
        oracle=each(peak),
        degree=DEGREES,
        **FIT,
    )
)


def truncated(a, b, s):
    return a * s + b * np.expm1(s)


def normal(a, b, s):
    return a * s + b * s**2


def best(s, exponent, start, bounds):
    """Largest mean log-density ``-exponent - ln Z`` of ``s``, the integral for ``Z`` adaptive."""

    def cost(theta):
        z, _ = integrate.quad(
            lambda s: np.exp(-exponent(*theta, s)), 0, 60, epsabs=0, epsrel=1e-11, limit=200
        )
        return exponent(*theta, s).mean() + np.log(z)

    options = dict(xatol=1e-9, fatol=1e-13, maxiter=2000)
    found = optimize.minimize(
        cost, start, method="Nelder-Mead", bounds=bounds, tol=1e-13, options=options
    )
    return -found.fun


def ratios(spectrum):
    x = spectrum[spectrum >= XMIN]
    n, s = len(x), np.log(x / XMIN)
    power_law = np.log(1 / s.mean()) - 1
    small = 1e-9
    start = np.array([0.5 / s.mean(), 0.5 / np.expm1(s).mean()])
    tempered = best(s, truncated, start, [(small, 50), (small, 50)])
    start = np.array([-s.mean(), 0.5]) / s.var()
    lognormal = best(s, normal, start, [(-50, 50), (small, 50)])
    rate = 1 / (x.mean() - XMIN)
    exponential = np.log(rate) - 1 + s.mean() + np.log(XMIN)
    total = n * (power_law - s.mean() - np.log(XMIN))
    return total, *(n * (power_law - other) for other in (tempered, exponential, lognormal))


register(
    Case(
        name="tails.tail_alternatives",
        function=lambda lam: tail_alternatives(lam, XMIN),
        make_inputs=spectra,
        oracle=each(ratios),
        select=lambda found: (found.log_likelihood, *(law.ratio for law in found[1:])),
        tolerance={"float32": 1e-4, "float64": 1e-7},
        unscaled="xmin is held, and a likelihood shifts: tests/test_power_law.py",
        leading=True,
        degenerate={
            name: Degenerate(
                (lam,),
                lambda found: all(
                    bool((law.status > FitStatus.BOUNDARY).all() & np.isnan(law.ratio).all())
                    for law in found[1:]
                ),
                False,
            )
            for name, lam in {
                "zero": np.zeros((BATCH, N)),
                "repeated": np.full((BATCH, N), XMIN),
                "no values": np.ones((BATCH, 0)),
                **{f"one {x}": draws.changed(np.arange(1.0, N), 3, x) for x in NOT_FINITE},
            }.items()
        },
    )
)


def bootstrap(lam):
    fit = power_law_fit(lam, xmin=0.1)
    return goodness_of_fit(jax.random.key(0), lam, fit, draws=20, xmin=0.1)


def bulk_and_law(key, dtype):
    """What no power law resembles, bounded on both sides, and quantiles of one, in either order."""
    bulk = 1 + draws.uniform(key, (200,), dtype)
    law = 0.1 * (np.arange(1, 201).astype(dtype) / 201) ** -0.5
    order = draws.bernoulli(jax.random.fold_in(key, 1))
    return (np.where(order, np.stack([bulk, law]), np.stack([law, bulk])),)


def kolmogorov(spectrum):
    """The limit law of the distance, which decides where that is tiny or huge."""
    ascending = np.sort(spectrum)
    _, _, distance, _ = fit_from(ascending, 0.1)
    return stats.kstwobign.sf(distance * len(ascending) ** 0.5)


register(
    Case(
        name="tails.goodness_of_fit",
        function=jax.vmap(bootstrap),
        make_inputs=bulk_and_law,
        oracle=lambda spectra: np.array([kolmogorov(lam) for lam in spectra]),
        unscaled="xmin is held: tests/test_power_law.py",
        select=lambda result: result.p_value,
        differentiable=False,
        degenerate={
            "zero": Degenerate(
                (np.zeros((2, 200)),),
                lambda r: (np.isnan(r.p_value) & (r.status == FitStatus.TOO_FEW)).all(),
            )
        },
    )
)
