"""Where the noise of a layer ends, and how many of its singular values to keep."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple, TypeAlias

import numpy as np

from spectral_jax import laws
from spectral_jax.rmt import noise_edge

FEWEST = 2  # order statistics that make a fit
TRIM = Fraction(1, 5)  # alpha of BEMA
FLOOR = (16 * float(np.finfo(np.float32).eps)) ** 2  # of the largest; below, a square counts as 0
DEFAULT_ENERGY = 0.99


class Bulk(NamedTuple):
    """The noise in the singular values of one layer; NaN where ``fit`` is not ok.

    sigma: standard deviation of the noise per entry.
    edge: the singular value that noise alone exceeds once in ten layers.
    spikes: how many singular values do.
    ks: Kolmogorov-Smirnov distance of the middle values from the Marchenko-Pastur law.
    """

    sigma: float
    edge: float
    spikes: float | int
    ks: float
    fit: str


Rule: TypeAlias = Callable[[np.ndarray, tuple[int, int], Bulk], int]
"""(singular values descending, shape, bulk) -> rank; raises ValueError where it cannot say."""


def fit_bulk(values: np.ndarray, shape: tuple[int, int]) -> Bulk:
    """Fit the Marchenko-Pastur law to the middle of the spectrum (BEMA0).

    With ``l_k = s_k^2 / max(m, n)`` ascending and ``q_k`` the quantiles of the law of variance 1 at
    ``(k - 1/2) / p``, ``.2 p <= k <= .8 p``: ``sigma^2 = sum q_k l_k / sum q_k^2``. Exact zeros
    count as the smallest of noise that were truncated. The same numbers as
    `spectral_jax.rmt.fit_marchenko_pastur` gives, without jax.
    Source: Ke, Ma & Lin, arXiv 2006.00436.
    """
    p, n = min(shape), max(shape)
    ascending = np.sort(values) ** 2 / n
    nonzero = ascending[ascending > FLOOR * ascending[-1]]
    rank = len(nonzero)
    if 2 * rank < p:
        return Bulk(math.nan, math.nan, rank, math.nan, f"{rank} of {p} values are not 0: no noise")
    k = np.arange(max(math.ceil(TRIM * rank), 1), math.floor((1 - TRIM) * rank) + 1)
    if len(k) < FEWEST:
        return Bulk(math.nan, math.nan, rank, math.nan, f"{len(k)} values to fit, {FEWEST} needed")
    positions, middle = (p - rank + k - 0.5) / p, nonzero[k - 1]
    quantiles = laws.marchenko_pastur_quantile(positions, p / n)
    variance = float(quantiles @ middle / (quantiles @ quantiles))
    edge = noise_edge(shape, variance=variance)
    distance = np.abs(laws.marchenko_pastur_cdf(middle / variance, p / n) - positions)
    spikes = int(np.sum(ascending > edge))
    return Bulk(math.sqrt(variance), math.sqrt(n * edge), spikes, float(distance.max()), "ok")


def parse_rank(text: str) -> Rule:
    """The rule that ``--rank`` names: ``mp``, ``gd``, ``energy``, ``energy=0.95`` or a number.

    Raises ``ValueError`` for anything else.
    """
    name, _, number = text.partition("=")
    if text == "mp":
        return _above_edge
    if text == "gd":
        return _gavish_donoho
    if name == "energy":
        return _energy_rule(text, number)
    if text.isdecimal() and int(text) > 0:
        return lambda values, shape, bulk: min(int(text), len(values))
    raise ValueError(f"rank {text!r}: use mp, gd, energy, energy=0.95 or a number from 1 up")


def _above_edge(values: np.ndarray, shape: tuple[int, int], bulk: Bulk) -> int:
    if bulk.fit != "ok":
        raise ValueError(f"no Marchenko-Pastur fit: {bulk.fit}")
    return int(bulk.spikes)


def _gavish_donoho(values: np.ndarray, shape: tuple[int, int], bulk: Bulk) -> int:
    """The optimal hard threshold at unknown noise, ``omega(b) median(s)`` (arXiv 1305.5870)."""
    b, p = min(shape) / max(shape), len(values)
    known = math.sqrt(2 * (b + 1) + 8 * b / (b + 1 + math.sqrt(b**2 + 14 * b + 1)))
    nonzero = values[values**2 > FLOOR * values[0] ** 2]
    if 2 * len(nonzero) < p:
        raise ValueError(f"no median of noise: {len(nonzero)} of {p} values are not 0")
    # Zeros are the smallest that were truncated: the others' median is a higher quantile.
    middle = laws.marchenko_pastur_quantile(1 - len(nonzero) / (2 * p), b)
    return int(np.sum(values > known / math.sqrt(middle) * np.median(nonzero)))


def _energy_rule(text: str, number: str) -> Rule:
    try:
        share = float(number) if "=" in text else DEFAULT_ENERGY
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise ValueError(f"rank {text!r}: write the share of energy to keep, as in energy=0.95")

    def rank(values: np.ndarray, shape: tuple[int, int], bulk: Bulk) -> int:
        energy = np.cumsum(values**2)
        # Relative, or the rounding of the sum would ask for a value more than all.
        return int(np.searchsorted(energy, share * energy[-1] * (1 - 1e-12)) + 1)

    return rank
