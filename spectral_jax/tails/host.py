"""Exponents and norms of one spectrum on the host: NumPy, float64, nothing to compile.

Reading a checkpoint is a moment's work, in which importing jax and compiling would be most of the
wait; and a search for the best ``xmin`` decides between candidates that float32 cannot tell apart.
Functions have the names and formulas of their twins in ``spectral_jax.tails``, which are for use
inside programs; a test holds both to the same numbers. Eigenvalues are of float32 weights.
"""

import math
from typing import NamedTuple

import numpy as np

from spectral_jax.laws import marchenko_pastur_quantile

NOISE = 16.0  # singular values below this many eps of the largest are the rounding of an SVD
FLOOR = (NOISE * float(np.finfo(np.float32).eps)) ** 2
FEWEST = 5  # eigenvalues that make a fit
# Distances computed at a time: a block stays in the cache. It is a band of a triangle (tails from
# one candidate on), and the narrower the band, the fewer of its entries lie outside the triangle.
BLOCK = 2**17


class PowerLawFit(NamedTuple):
    """A fitted tail, as of ``tails.power_law_fit``; ``status`` is ok, or why alpha is NaN."""

    alpha: float
    xmin: float
    tail: int
    ks: float
    standard_error: float
    status: str


def norms(eigenvalues: np.ndarray, shape: tuple[int, ...], unit: float = 1.0) -> dict[str, float]:
    """The fields of ``tails.SpectralMetrics`` that need no exponent, of ascending eigenvalues.

    ``unit`` is what the weights were divided by; norms that float64 cannot hold are 0 or infinite,
    their logarithms right.
    """
    total, largest = float(eigenvalues.sum()), float(eigenvalues[-1])
    rank = matrix_rank(eigenvalues, shape)
    edge = _bulk_edge(eigenvalues, shape)
    return {
        "norm": total * unit * unit,
        "log_norm": _log10(total) + 2 * math.log10(unit),
        "spectral_norm": largest * unit * unit,
        "log_spectral_norm": _log10(largest) + 2 * math.log10(unit),
        "stable_rank": total / largest if largest > 0 else math.nan,
        "entropy": _entropy(eigenvalues, rank),
        "mp_softrank": edge / largest if largest > 0 else math.nan,
    }


def alpha_norms(eigenvalues: np.ndarray, alpha: float, unit: float = 1.0) -> dict[str, float]:
    """The fields of ``tails.SpectralMetrics`` that an exponent weights; as `norms`."""
    shift = 2 * math.log10(unit)
    kept = eigenvalues[eigenvalues > 0]
    powers = alpha * np.log10(kept) if len(kept) else np.array([math.nan])
    top = float(powers.max())
    return {
        "alpha_weighted": alpha * (_log10(float(eigenvalues[-1])) + shift),
        "log_alpha_norm": top + _log10(float(np.sum(10 ** (powers - top)))) + alpha * shift,
    }


def matrix_rank(eigenvalues: np.ndarray, shape: tuple[int, ...]) -> int:
    """How many eigenvalues stand above the rounding of float32 weights of this ``shape``:
    ``(max(m, n) eps)^2`` of the largest."""
    tolerance = (max(shape) * float(np.finfo(np.float32).eps)) ** 2
    return int(np.count_nonzero(eigenvalues > tolerance * eigenvalues.max(initial=0.0)))


def hill_alpha(eigenvalues: np.ndarray) -> float:
    """Hill exponent of the upper half of the eigenvalues, in any order; see ``tails.hill_fit``.

    NaN for a tail of fewer than two values, or of one value that repeats.
    """
    values = _support(eigenvalues)
    tail = -(-len(values) // 2)
    if tail < 2:
        return math.nan
    excess = float(np.log(values[-tail:] / values[-tail]).sum())
    return 1 + tail / excess if excess > 4 * np.finfo(float).eps * tail else math.nan


def power_law_fit(eigenvalues: np.ndarray) -> PowerLawFit:
    """The power law above the ``xmin`` of least Kolmogorov-Smirnov distance, of all candidates.

    ``eigenvalues`` in any order; zeros are left out. For the candidate ``x_i``,
    ``D(i) = max_{j >= i} |1 - (x_j / x_i)^(1 - alpha_i) - (j - i) / n_i|`` with ``n_i`` values from
    ``x_i`` on and ``alpha_i = 1 + n_i / sum_j ln(x_j / x_i)``.
    """
    values = _support(eigenvalues)
    n = len(values)
    if n < FEWEST:
        return _no_fit("too few")
    logs = np.log(values)
    count = np.arange(n, 0, -1.0)
    # excess[i] = sum_{j >= i} ln(x_j / x_i), as a sum of gaps, none negative: nothing cancels.
    excess = np.append(np.cumsum((np.diff(logs) * count[1:])[::-1])[::-1], 0.0)
    flat = excess <= 4 * np.finfo(float).eps * count
    if flat[0]:
        return _no_fit("degenerate")
    rate = np.where(flat, 0.0, count / np.where(flat, 1.0, excess))
    distinct = np.append(True, np.diff(values) > 0)
    candidates = np.flatnonzero(distinct & ~flat)[: n - 1]
    distances = _distances(logs, rate, candidates)
    best = int(candidates[np.argmin(distances)])
    tail = n - best
    return PowerLawFit(
        alpha=1 + float(rate[best]),
        xmin=float(values[best]),
        tail=tail,
        ks=float(distances.min()),
        standard_error=float(rate[best]) / math.sqrt(tail),
        status="ok" if tail >= FEWEST else "hardly a tail",
    )


def _distances(logs: np.ndarray, rate: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    n = len(logs)
    found = []
    for rows in np.array_split(candidates, max(1, len(candidates) * n // BLOCK)):
        if not len(rows):
            continue
        first = rows[0]
        columns = np.arange(first, n)
        # Plain exp instead of expm1: small arguments lose digits, but a distance between two
        # distribution functions needs them to an absolute accuracy only.
        model = 1 - np.exp(-rate[rows, None] * np.maximum(logs[first:] - logs[rows, None], 0))
        empirical = (columns - rows[:, None]) / (n - rows[:, None])
        gap = np.abs(model - empirical)
        gap[columns < rows[:, None]] = 0.0
        found.append(gap.max(axis=1))
    return np.concatenate(found)


def _support(eigenvalues: np.ndarray) -> np.ndarray:
    values = np.sort(eigenvalues)
    return values[values > FLOOR * max(values[-1], 0.0)] if len(values) else values


def _bulk_edge(eigenvalues: np.ndarray, shape: tuple[int, ...]) -> float:
    q = min(shape) / max(shape)
    scale = float(np.median(_support(eigenvalues))) / marchenko_pastur_quantile(0.5, q)
    return scale * (1 + math.sqrt(q)) ** 2


def _entropy(eigenvalues: np.ndarray, rank: int) -> float:
    if rank < 2:
        return 0.0
    share = eigenvalues / eigenvalues.sum()
    share = share[share > 0]
    return float(-(share * np.log(share)).sum() / math.log(rank))


def _log10(value: float) -> float:
    return math.log10(value) if value > 0 else -math.inf


def _no_fit(reason: str) -> PowerLawFit:
    return PowerLawFit(math.nan, math.nan, 0, math.nan, math.nan, reason)
