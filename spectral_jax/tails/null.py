"""What the Hill exponent of a matrix of pure noise is: the baseline to read an alpha against.

Everything here is Python numbers in float64, and needs no jax: a null depends on the shape alone,
which is known before anything is compiled, so that the results are constants inside ``jit``.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, inf
from typing import Any, NamedTuple

import numpy as np

from spectral_jax import laws
from spectral_jax._options import check_number, is_count
from spectral_jax.laws import rational

NODES, WEIGHTS = np.polynomial.legendre.leggauss(128)
POINTS = 2048  # of t, for Fourier coefficients of a function with a kink, which fall as 1/k^2


class NullAlpha(NamedTuple):
    """The Hill exponent over draws of a Gaussian matrix of one shape."""

    limit: float
    """``alpha(q)`` of infinitely large matrices: ``marchenko_pastur_alpha``."""
    mean: float
    """Expectation at this size: ``limit`` and its ``1/N`` correction."""
    deviation: float
    """Standard deviation at this size."""

    def zscore(self, alpha: Any) -> Any:
        """How many deviations ``alpha``, a number or an array, lies above this null.

        ``(1 / (mean - 1) - 1 / (alpha - 1)) (mean - 1)^2 / deviation``: the distance is taken in
        ``1 / (alpha - 1)``, the mean of logarithms that the estimator inverts, which is nearly
        normally distributed where ``alpha`` itself is skewed.
        """
        scale = self.mean - 1
        return scale * (1 - scale / (alpha - 1)) / self.deviation

    def at(self, zscore: float) -> float:
        """The exponent with that z-score; infinite where no exponent has one as large."""
        scale = self.mean - 1
        rest = 1 - zscore * self.deviation / scale
        return 1 + scale / rest if rest > 0 else inf


def marchenko_pastur_alpha(ratio: float | int, *, fraction: float = 0.5) -> float:
    """Hill exponent of the Marchenko-Pastur law of ``ratio = min(m, n) / max(m, n)``.

    The exponent that ``hill_alpha`` gives for an infinitely large matrix of noise: with ``q`` the
    ratio, ``lam(t) = 1 + q + 2 sqrt(q) cos t``, ``dmu = 2 sin(t)^2 / (pi lam) dt`` and ``t_m`` such
    that ``mu[0, t_m] = fraction``, it is
    ``1 + 1 / (int_0^t_m ln(lam / lam(t_m)) dmu / fraction)``. The exponent has no unit: the
    variance of the entries drops out. ``fraction`` is the share of eigenvalues in the tail; 1/2 is
    the default of ``hill_alpha``.

    Accurate to 1e-10 up to fractions of .95. Raises ``ValueError`` unless ``0 < ratio <= 1`` and
    ``0 < fraction < 1``. Takes and gives Python numbers.
    Sources: derived in docs/null-exponents.md; arXiv 2506.06280 for the bias.

    >>> round(marchenko_pastur_alpha(1), 5), round(marchenko_pastur_alpha(1 / 4), 5)
    (2.12168, 3.45459)
    """
    wanted = "pass min(m, n) / max(m, n), above 0 and at most 1"
    check_number(wanted, lambda r: 0 < r <= 1, ratio=ratio)
    _check_fraction(fraction)
    return _Bulk(float(ratio), float(fraction)).alpha


def null_alpha(shape: tuple[int, ...], *, fraction: float = 0.5) -> NullAlpha:
    """Mean and spread of ``hill_alpha`` for a Gaussian matrix ``(m, n)`` or stack ``(p, m, n)``.

    The spectra of the ``p`` matrices of a stack count as pooled. Both corrections are closed forms,
    derived in docs/null-exponents.md. With ``h = ln(lam/lam_m)_+ / fraction +
    1{lam <= lam_m} / (lam_m density(lam_m))``, which says how much one eigenvalue ``lam`` moves the
    estimate (its influence function), and Fourier coefficients ``h_k`` in the angle ``t``: the mean
    of ``sum h(lam_i)`` shifts by ``sum_{k even} h_k / 2`` (real entries), and its variance is
    ``sum_k k h_k^2 / 2``, cut at ``k = 2 pi e^(1 - pi^2/8) N dmu/dt``, where it agrees with the
    number variance of real random matrices. So ``deviation ~ c(q) sqrt(log N) / N``, far below the
    ``1 / sqrt(N)`` of independent values: eigenvalues repel each other.

    Measured against draws (``pytest tests/test_tails.py -k null``): the deviation is right to 10 %
    from ``min(m, n) = 32`` on, and 20 % low at 16; the mean to a tenth of a deviation.
    Assumes entries with Gaussian fourth moment; heavier entries spread more.
    Mean and deviation are NaN where the tail is the whole spectrum, as with one eigenvalue, and
    only an order of magnitude where matrices of a stack have one or two eigenvalues each.
    Raises ``ValueError`` for an impossible shape or fraction. Takes and gives Python numbers.
    Sources: Bai & Silverstein, Ann. Probab. 32 (2004) for both sums; Mehta, Random Matrices, for
    the number variance.

    >>> null = null_alpha((128, 512))
    >>> round(null.limit, 3), round(null.mean, 3), round(null.deviation, 3)
    (3.455, 3.487, 0.055)
    """
    _check_fraction(fraction)
    check_shape(shape)
    return _null_alpha(tuple(map(int, shape)), float(fraction))


class _Bulk:
    """The Marchenko-Pastur law in the angle ``t``, cut into a tail ``[0, cut]`` and a rest.

    ``edge`` is the eigenvalue at the cut, ``hill`` the mean of ``ln(lam / edge)`` over the tail.
    """

    def __init__(self, q: float, fraction: float):
        self.q, self.fraction = q, fraction
        self.cut = float(laws.angle_of(fraction, q))
        self.edge = float(self.eigenvalue(self.cut))
        self.hill = _integral(lambda t: self.log_ratio(t) * self.mass(t), self.cut) / fraction
        self.alpha = float(1 + 1 / self.hill)

    def eigenvalue(self, t):
        return laws.eigenvalue_at(t, self.q)

    def mass(self, t):
        return laws.density_at(t, self.q)

    def log_ratio(self, t):
        return np.log(self.eigenvalue(t) / self.edge)


@lru_cache(maxsize=1024)
def _null_alpha(shape: tuple[int, ...], fraction: float) -> NullAlpha:
    *stack, short, long = *shape[:-2], *sorted(shape[-2:])
    copies = stack[0] if stack else 1
    limit = _Bulk(short / long, fraction).alpha
    total = copies * short
    tail = tail_size(total, fraction)
    if tail == total:
        return NullAlpha(limit, float("nan"), float("nan"))
    # The tail is a whole number of eigenvalues, which for a small matrix is not the fraction.
    bulk = _Bulk(short / long, tail / total)
    step = _step(bulk)
    shift, variance = _fluctuation(bulk, step, short)
    # The threshold is the lowest eigenvalue of the tail, which lies half a spacing above the
    # quantile: step / 2 off the mean. And it is a position, not a count; the variance of a count
    # includes that of rounding to whole numbers, 1/12, which does not belong here.
    mean = (shift * copies - step / 2) / total
    variance = (variance * copies - step**2 / 12) / total**2
    # alpha = 1 + 1 / H to second order in the error of H: -scale^2 dH + scale^3 dH^2.
    scale = bulk.alpha - 1
    expected = bulk.alpha - scale**2 * mean + scale**3 * variance
    return NullAlpha(limit, float(expected), float(scale**2 * variance**0.5))


def _step(bulk: _Bulk) -> float:
    """``1 / (lam density(lam))`` at the cut: how much ``ln lam_m`` moves, over the number of
    eigenvalues, if one of them crosses it."""
    slope = 2 * bulk.q**0.5 * np.sin(bulk.cut)
    return slope / (bulk.mass(bulk.cut) * bulk.edge)


def _fluctuation(bulk: _Bulk, step: float, size: int) -> tuple[float, float]:
    """Shift of the mean, and variance, of ``sum_i h(lam_i)`` over one matrix of ``size`` values.

    ``h`` is a function with a kink at the cut plus a jump. Coefficients of the kink are computed,
    those of the jump known; the sum of squares of the latter alone is cut off (``cutoff``).
    """
    # Midpoints of a grid on (0, pi), for which the Fourier sum is a fast cosine transform.
    t = (np.arange(POINTS) + 0.5) * np.pi / POINTS
    h = np.where(t < bulk.cut, bulk.log_ratio(t) / bulk.fraction, 0)
    k = np.arange(1, POINTS // 4)
    kink = _cosine_coefficients(h)[k]
    jump = -step * 2 / np.pi * np.sin(k * bulk.cut) / k
    ends = bulk.log_ratio(0.0) / bulk.fraction + step
    average = np.mean(h) + step * (1 - bulk.cut / np.pi)
    cutoff = 2 * np.pi * np.exp(1 - np.pi**2 / 8) * size * bulk.mass(bulk.cut)
    # sum_k k (kink_k + jump_k)^2: all terms with the kink converge; squares of the jump alone are
    # summed up to the cutoff.
    j = np.arange(1, int(cutoff) + 1)
    counting = (step * 2 / np.pi) ** 2 * np.sum(np.sin(j * bulk.cut) ** 2 / j)
    return ends / 4 - average / 2, float(np.sum(k * kink * (kink + 2 * jump)) + counting) / 2


def _cosine_coefficients(h):
    """``2/pi int_0^pi h cos(kt) dt`` from values at the midpoints of a grid."""
    spectrum = np.fft.rfft(np.concatenate([h, h[::-1]]))
    return np.real(spectrum * np.exp(-0.5j * np.pi * np.arange(len(h) + 1) / len(h))) / len(h)


def tail_size(count: int, fraction: float) -> int:
    """Eigenvalues in the tail of ``count``: ``count - int(count (1 - fraction))``, exactly.

    >>> tail_size(9, 1 / 2), tail_size(9, 1 / 3)
    (5, 3)
    """
    return ceil(count * rational(fraction))


def _integral(function, upper: float) -> float:
    half = upper / 2
    return half * float(WEIGHTS @ function(half * (NODES + 1)))


def check_shape(shape: tuple[int, ...]) -> None:
    """Refuse what is not the shape of a matrix or of a stack of them."""
    if len(shape) not in (2, 3) or not all(map(is_count, shape)):
        raise ValueError(f"shape={shape}: pass (m, n) or (positions, m, n), all at least 1")


def _check_fraction(fraction: float) -> None:
    check_number("choose above 0 and below 1", lambda f: 0 < f < 1, fraction=fraction)
