"""rmt: bulks, edges and shrinkers, against NumPy loops and the formulas of the sheet."""

from functools import cache, partial

import jax
import numpy as np
from scipy import integrate, optimize, special

from spectral_jax.rmt import (
    MPStatus,
    fit_marchenko_pastur,
    follows_marchenko_pastur,
    hard_threshold,
    marchenko_pastur_cdf,
    marchenko_pastur_pdf,
    optimal_shrinkage,
    spike_interval,
)
from tests import draws
from tests.contract import Case, Degenerate, exempt, register

BATCH, P, N = 3, 12, 20
NOT_FINITE = (np.nan, np.inf, -np.inf)
SHAPE = (P, N)
EDGE = (1 + (P / N) ** 0.5) ** 2


# The laws once more, by SciPy: densities integrated, Airy functions in a determinant, roots.


def density(x, ratio):
    low, high = (1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2
    return np.sqrt((high - x) * (x - low)) / (2 * np.pi * ratio * x)


def share_below(x, ratio):
    """The atom and the density integrated in ``t``, ``x = 1 + ratio - 2 sqrt(ratio) cos t``."""
    root = ratio**0.5

    def in_angle(t):
        return density(1 + ratio - 2 * root * np.cos(t), ratio) * 2 * root * np.sin(t)

    angle = np.arccos(np.clip((1 + ratio - x) / (2 * root), -1, 1))
    return max(0, 1 - 1 / ratio) + integrate.quad(in_angle, 0, angle, epsabs=1e-14)[0]


@cache
def quantile(share, ratio=P / N):
    return optimize.brentq(
        lambda x: share_below(x, ratio) - share, (1 - ratio**0.5) ** 2, EDGE, xtol=1e-15
    )


@cache
def tracy_widom_quantile(share):
    """Of ``det(1 - Ai(x + y + s))`` over ``x, y > 0`` (Ferrari and Spohn 2005), by quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    nodes, weights = 8 * (nodes + 1), 8 * weights

    def law(s):
        kernel = special.airy(nodes[:, None] + nodes + s)[0]
        return np.linalg.det(np.eye(40) - kernel * weights)

    return optimize.brentq(lambda s: law(s) - share, -6, 4, xtol=1e-14)


def largest_of_noise(share):
    """What the largest eigenvalue of ``P x N`` noise stays below in that share (Johnstone 2001)."""
    root = 1 + (P / N) ** 0.5
    width = N ** (-2 / 3) * (P / N) ** (-1 / 6) * root ** (4 / 3)
    return EDGE + tracy_widom_quantile(share) * width


def singular_values(key, dtype):
    """Of noise of standard deviation .5 with a spike: distinct, none at an edge."""
    w = 0.5 * draws.normal(key, (BATCH, *SHAPE), dtype)
    w[:, 0] *= 4
    return (np.linalg.svd(w, compute_uv=False),)


def spectra(key, dtype):
    (s,) = singular_values(key, dtype)
    return (s**2 / N,)


def spectra_with_spikes(key, dtype):
    """None in the first matrix of the batch, one in the second, two in the third; or one more."""
    spikes = np.arange(BATCH)[:, None] + draws.bernoulli(jax.random.fold_in(key, 1))
    spiked = (np.arange(P) < spikes)[..., None]
    w = draws.normal(key, (BATCH, *SHAPE), dtype) * np.where(spiked, 6, 1).astype(dtype)
    return (np.linalg.svd(w, compute_uv=False) ** 2 / N,)


POSITIONS = (np.arange(1, P + 1) - 0.5) / P
QUANTILES = np.array([quantile(place) for place in POSITIONS])


def bema(lam):
    inside = slice(3 - 1, 9)  # ceil(.2 12) .. floor(.8 12)
    return QUANTILES[inside] @ lam[inside] / (QUANTILES[inside] @ QUANTILES[inside])


def clip(lam):
    variance = lam.mean()
    for _ in range(30):
        variance = lam[lam < variance * EDGE].mean()
    return variance


VARIANCES = {
    "bema": bema,
    "trace": np.mean,
    "clip": clip,
    "median": lambda lam: np.median(lam) / quantile(0.5),
}


def fitted(variance):
    def one(spectrum):
        lam = np.sort(spectrum)
        v = variance(lam)
        below = np.array([share_below(x, P / N) for x in lam[2:9] / v])
        ks = np.abs(POSITIONS[2:9] - below).max()
        edge = v * largest_of_noise(0.9)
        return v, edge, v * EDGE, (N * edge) ** 0.5, ks

    return lambda spectra: tuple(np.transpose([one(s) for s in spectra]))


def numbers(fit):
    return fit.variance, fit.edge, fit.bulk_edge, fit.threshold, fit.ks


def undecided(status):
    return lambda fit: bool(
        (fit.status == status).all()
        & np.isnan(fit.variance).all()
        & np.isnan(fit.edge).all()
        & np.isnan(fit.ks).all()
        & (fit.spikes == fit.rank).all()
    )


DEGENERATE = {
    "zero": Degenerate((np.zeros((BATCH, P)),), undecided(MPStatus.TOO_FEW)),
    "rank 1": Degenerate((np.eye(P)[:BATCH],), undecided(MPStatus.TOO_FEW)),
    **{
        f"one {value}": Degenerate(
            (draws.changed(np.arange(1.0, P + 1), 3, value),), undecided(MPStatus.NOT_FINITE), False
        )
        for value in NOT_FINITE
    },
}

for method, variance in VARIANCES.items():
    register(
        Case(
            name="rmt.fit_marchenko_pastur" + (method != "bema") * f": {method}",
            function=partial(fit_marchenko_pastur, shape=SHAPE, method=method),
            make_inputs=spectra,
            oracle=fitted(variance),
            select=numbers,
            degree=(1, 1, 1, 0.5, 0),
            degenerate=DEGENERATE,
            leading=True,
        )
    )


def gate(spectra):
    fit = fit_marchenko_pastur(spectra, SHAPE)
    return fit.ks, follows_marchenko_pastur(fit, gof_cutoff=0.06)


register(
    Case(
        name="rmt.follows_marchenko_pastur",
        function=gate,
        make_inputs=spectra,
        oracle=lambda lam: fitted(bema)(lam)[-1] <= 0.06,
        select=lambda result: result[1].astype("float32"),
        degree=0,
        differentiable=False,
        degenerate={"zero": Degenerate((np.zeros((BATCH, P)),), lambda r: not r[1].any())},
        leading=True,
    )
)


def interval(spectra):
    variance = fit_marchenko_pastur(spectra, SHAPE).variance
    return variance, spike_interval(spectra, SHAPE, variance)


def counts(spectra):
    def one(spectrum):
        edges = (largest_of_noise(share) for share in (0.95, 0.05))
        low, high = ((spectrum > bema(np.sort(spectrum)) * edge).sum() for edge in edges)
        return low, max(high - 1, low)

    return tuple(np.transpose([one(s) for s in spectra]))


register(
    Case(
        name="rmt.spike_interval",
        function=interval,
        make_inputs=spectra_with_spikes,
        oracle=counts,
        select=lambda result: tuple(result[1]),
        degree=0,
        differentiable=False,
        degenerate={
            "zero": Degenerate(
                (np.zeros((BATCH, P)),),
                lambda result: bool((result[1].low == 0).all() & (result[1].high == P).all()),
            ),
            **{
                f"one {value}": Degenerate(
                    (draws.changed(np.arange(1.0, P + 1), 3, value),),
                    lambda result: bool((result[1].low == 0) & (result[1].high == P)),
                )
                for value in NOT_FINITE
            },
        },
        leading=True,
    )
)


# Densities and shrinkers


def points(key, dtype):
    low, high = (1 - (P / N) ** 0.5) ** 2, EDGE
    x = np.sort(draws.uniform(key, (9,), dtype, low * 1.05, high * 0.95))
    return 3 * x, np.asarray(3, dtype)


register(
    Case(
        name="rmt.marchenko_pastur_pdf",
        function=lambda x, variance: marchenko_pastur_pdf(x, P / N, variance),
        make_inputs=points,
        oracle=lambda x, variance: density(x / variance, P / N) / variance,
        degree=-1,
        degenerate={
            "outside": Degenerate((np.array([-1.0, 0, 9]), 1.0), lambda f: not f.any()),
            "no variance": Degenerate((np.ones(3), 0.0), lambda f: np.isnan(f).all(), False),
        },
    )
)
register(
    Case(
        name="rmt.marchenko_pastur_cdf",
        function=lambda x, variance: marchenko_pastur_cdf(x, P / N, variance),
        make_inputs=points,
        oracle=lambda x, variance: np.array([share_below(v, P / N) for v in x / variance]),
        degree=0,
        degenerate={
            "outside": Degenerate(
                (np.array([-1.0, 0, 9]), 1.0), lambda f: np.allclose(f, [0, 0, 1], atol=1e-12)
            ),
            "no variance": Degenerate((np.ones(3), -1.0), lambda f: np.isnan(f).all(), False),
        },
    )
)
register(
    Case(
        name="rmt.marchenko_pastur_cdf: an atom",
        function=lambda x, variance: marchenko_pastur_cdf(x, N / P, variance),
        make_inputs=points,
        oracle=lambda x, variance: np.array([share_below(v, N / P) for v in x / variance]),
        degree=0,
    )
)
register(
    Case(
        name="rmt.hard_threshold",
        function=lambda s: hard_threshold(SHAPE, singular_values=s),
        make_inputs=singular_values,
        oracle=lambda s: gavish_donoho(P / N) * np.median(s, axis=-1) / quantile(0.5) ** 0.5,
        degree=1,
        degenerate={
            "zero": Degenerate((np.zeros((BATCH, P)),), lambda t: bool(np.isnan(t).all()), False),
            **{
                f"one {value}": Degenerate(
                    (draws.changed(np.arange(1.0, P + 1), 3, value),),
                    lambda t: bool(np.isnan(t)),
                    False,
                )
                for value in NOT_FINITE
            },
        },
        leading=True,
    )
)


def gavish_donoho(b):
    return np.sqrt(2 * (b + 1) + 8 * b / ((b + 1) + np.sqrt(b * b + 14 * b + 1)))


def least_loss(order):
    """The best value by brute force, over the two-dimensional space that signal and estimate span.

    ``order`` is that of the norm on the singular values of the error.
    """
    b = P / N

    def best(y):
        if y <= 1 + b**0.5:
            return 0.0
        square = (y * y - b - 1 + ((y * y - b - 1) ** 2 - 4 * b) ** 0.5) / 2
        s, t = (
            (b * (square + 1) / (square * (square + b))) ** 0.5,
            ((square + b) / (square * (square + 1))) ** 0.5,
        )
        left, right = np.array([(1 - s * s) ** 0.5, s]), np.array([(1 - t * t) ** 0.5, t])

        def loss(eta):
            error = square**0.5 * np.diag([1.0, 0]) - eta * np.outer(left, right)
            return np.linalg.norm(np.linalg.svd(error, compute_uv=False), order)

        low, high = 0.0, 2 * y
        for _ in range(100):  # unimodal: a convex function of eta
            a, c = low + (high - low) * 0.382, low + (high - low) * 0.618
            low, high = (low, c) if loss(a) < loss(c) else (a, high)
        return (low + high) / 2

    def oracle(s, noise):
        unit = N**0.5 * noise[:, None]
        return unit * np.vectorize(best)(s / unit)

    return oracle


def spectrum_and_noise(key, dtype):
    return *singular_values(key, dtype), np.full(BATCH, 0.5, dtype)


for loss, order in {"frobenius": 2, "operator": np.inf, "nuclear": 1}.items():
    register(
        Case(
            name=f"rmt.optimal_shrinkage: {loss}",
            function=lambda s, noise, loss=loss: optimal_shrinkage(
                s, SHAPE, noise=noise, loss=loss
            ),
            make_inputs=spectrum_and_noise,
            oracle=least_loss(order),
            # Golden sections end where losses differ by rounding.
            tolerance={"float32": 1e-5, "float64": 1e-6},
            degree=1,
            degenerate={
                "zero": Degenerate((np.zeros((1, P)), np.ones(1)), lambda s: not s.any()),
                "no noise": Degenerate((np.ones((1, P)), np.zeros(1)), lambda s: (s == 1).all()),
                "far above noise": Degenerate(
                    (np.full((1, P), 1e200), np.full(1, 1e-100)), lambda s: (s == 1e200).all()
                ),
                **{
                    f"one {value}": Degenerate(
                        (draws.changed(np.full(P, 9.0), 3, value), np.asarray(1.0)),
                        lambda s: bool(np.isnan(s[3])),
                        False,
                    )
                    for value in NOT_FINITE
                },
                "noise of NaN": Degenerate(
                    (np.ones((1, P)), np.full(1, np.nan)), lambda s: np.isnan(s).all(), False
                ),
            },
            leading=True,
        )
    )

for name in (
    "marchenko_pastur_atom",
    "marchenko_pastur_edges",
    "marchenko_pastur_median",
    "marchenko_pastur_moment",
    "marchenko_pastur_quantile",
    "tracy_widom_cdf",
    "tracy_widom_quantile",
):
    exempt(f"laws.{name}", "takes and gives Python numbers; tests/test_laws.py")
    exempt(f"rmt.{name}", "that of laws")
for name in ("marchenko_pastur_cdf", "marchenko_pastur_pdf"):
    exempt(f"laws.{name}", "takes and gives Python numbers; tests/test_laws.py")
exempt("rmt.noise_edge", "takes and gives Python numbers; tests/test_rmt.py")
