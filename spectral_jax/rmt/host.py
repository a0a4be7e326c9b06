"""The bulk and the threshold of one spectrum on the host: NumPy, float64, nothing to compile.

Compressing a checkpoint is a moment's work, in which importing jax and compiling would be most of
the wait. Functions have the names and formulas of their twins in ``spectral_jax.rmt``, which are
for use inside programs; a test holds both to the same numbers. Where more than half of the values
are 0 these refuse, while the twins fit what is left. Spectra are of float32 weights.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from spectral_jax import laws
from spectral_jax.rmt._edge import noise_edge

NOISE = 16.0  # singular values below this many eps of the largest are the rounding of an SVD
FLOOR = (NOISE * float(np.finfo(np.float32).eps)) ** 2
FEWEST = 2  # order statistics that make a fit
TRIM = Fraction(1, 5)  # share of the eigenvalues at either end that is not fitted


class MPFit(NamedTuple):
    """A bulk, as of ``rmt.fit_marchenko_pastur``; ``status`` is ok, or why it is NaN."""

    variance: float
    threshold: float
    spikes: float | int
    ks: float
    status: str


NO_FIT = MPFit(math.nan, math.nan, math.nan, math.nan, "not fitted")


def fit_marchenko_pastur(eigenvalues: np.ndarray, shape: tuple[int, int]) -> MPFit:
    """Fit the Marchenko-Pastur law to the middle of the spectrum ``s^2 / max(m, n)`` (BEMA0).

    ``eigenvalues`` are ``min(m, n)`` numbers in any order, ``shape`` is ``(m, n)``. With the
    eigenvalues ``l_k`` ascending and ``q_k`` the quantiles of the law of variance 1 at ``(k - 1/2)
    / p``, ``.2 p <= k <= .8 p``: ``variance = sum q_k l_k / sum q_k^2``. Exact zeros count as the
    smallest of noise that were truncated.
    Source: Ke, Ma & Lin, arXiv 2006.00436.
    """
    p, n = min(shape), max(shape)
    ascending = np.sort(eigenvalues)
    # The smallest of noise may have been truncated; more than half zeros leave no bulk to fit.
    nonzero = ascending[ascending > FLOOR * ascending.max(initial=0.0)]
    rank = len(nonzero)
    if 2 * rank < max(p, 1):
        return _no_fit(rank, f"{rank} of {p} values are not 0: no noise")
    k = np.arange(max(math.ceil(TRIM * rank), 1), math.floor((1 - TRIM) * rank) + 1)
    if len(k) < FEWEST:
        return _no_fit(rank, f"{len(k)} values to fit, {FEWEST} needed")
    positions, middle = (p - rank + k - 0.5) / p, nonzero[k - 1]
    quantiles = laws.marchenko_pastur_quantile(positions, p / n)
    variance = float(quantiles @ middle / (quantiles @ quantiles))
    edge = noise_edge(shape, variance=variance)
    distance = np.abs(laws.marchenko_pastur_cdf(middle / variance, p / n) - positions)
    spikes = int(np.sum(ascending > edge))
    return MPFit(variance, math.sqrt(n * edge), spikes, float(distance.max()), "ok")


def hard_threshold(shape: tuple[int, int], *, singular_values: np.ndarray) -> float:
    """Gavish and Donoho's threshold at unknown noise, ``omega(b) median(s)`` (arXiv 1305.5870).

    NaN where less than half of the values are not 0: there is no median of noise.
    """
    b, p = min(shape) / max(*shape, 1), min(shape)
    known = math.sqrt(2 * (b + 1) + 8 * b / (b + 1 + math.sqrt(b**2 + 14 * b + 1)))
    nonzero = above_rounding(singular_values)
    if 2 * len(nonzero) < max(p, 1):
        return math.nan
    # Zeros count as the smallest values of noise, which were truncated. The median of the others is
    # then not the median of the law but a higher quantile.
    middle = laws.marchenko_pastur_quantile(1 - len(nonzero) / (2 * p), b)
    return float(known / math.sqrt(middle) * np.median(nonzero))


def above_rounding(singular_values: np.ndarray) -> np.ndarray:
    """The values that are more than the rounding of the largest."""
    return singular_values[singular_values**2 > FLOOR * singular_values.max(initial=0.0) ** 2]


def _no_fit(rank: int, reason: str) -> MPFit:
    return NO_FIT._replace(spikes=rank, status=reason)
