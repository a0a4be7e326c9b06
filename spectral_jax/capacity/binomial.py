"""The exact binomial bound of a held-out test set, on the host in float64; needs NumPy only."""

from __future__ import annotations

import math

import numpy as np

from spectral_jax._options import check_number, count


def held_out_bound(errors: int, trials: int, *, delta: float = 0.025) -> float:
    """The largest error rate under which ``errors`` or fewer of ``trials`` have probability delta.

    With probability ``1 - delta`` over a test set that nothing was chosen by, the true error rate
    is at most this (Clopper & Pearson 1934, one side). What a PAC-Bayes bound competes with: it
    needs no prior and no second set of weights, but the examples that it holds out (arXiv
    2503.08231). Holds for one network; or, with each example answered by weights drawn for it
    alone, for the random predictor.

    Up to rounding of 1e-12. Raises ``ValueError`` unless ``0 <= errors <= trials``, ``trials >= 1``
    and ``0 < delta < 1``.

    >>> round(held_out_bound(120, 10_000), 5), held_out_bound(3, 3)
    (0.01433, 1.0)
    """
    trials = count("trials", trials)
    errors = count("errors", errors, least=0, most=trials, why="the number of trials")
    check_number("choose above 0 and below 1", lambda x: 0 < x < 1, delta=delta)
    if errors == trials:
        return 1.0
    ways = _log_binomials(errors, trials)
    low, high = errors / trials, 1.0
    if low > 0 and _log_tail(ways, trials, low) <= math.log(delta):
        low = 0.0  # a delta above one half asks for less than the rate that was seen
    for _ in range(60):
        middle = (low + high) / 2
        if _log_tail(ways, trials, middle) <= math.log(delta):
            high = middle
        else:
            low = middle
    return high


def _log_binomials(errors: int, trials: int) -> np.ndarray:
    """``log C(trials, k)`` for ``k = 0 .. errors``."""
    k = np.arange(1, errors + 1)
    return np.concatenate([[0.0], np.cumsum(np.log((trials - k + 1) / k))])


def _log_tail(ways: np.ndarray, trials: int, rate: float) -> float:
    """``log P(Binomial(trials, rate) < len(ways))``, for 0 < rate < 1."""
    k = np.arange(len(ways))
    terms = ways + k * math.log(rate) + (trials - k) * math.log1p(-rate)
    largest = terms.max()
    return float(largest + np.log(np.exp(terms - largest).sum()))
