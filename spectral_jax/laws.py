"""The limit laws of random matrices: Marchenko-Pastur and Tracy-Widom, in float64 on the host.

Needs NumPy only: shapes are known before anything is compiled, so quantiles of these laws are
constants inside ``jit``. (For traced arrays there are the density and the distribution function of
``rmt``.) The ``ratio`` is ``p / n`` for the ``p`` eigenvalues of ``X^T X / n``,
``X`` being ``n x p`` with independent entries of mean 0 and the given ``variance``; above 1, a
share ``1 - 1 / ratio`` of them is 0.

>>> marchenko_pastur_edges(1 / 4)
(0.25, 2.25)
>>> round(marchenko_pastur_median(1), 8), round(tracy_widom_quantile(0.9), 4)
(0.65277594, 0.4501)
"""

import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from spectral_jax._options import check_count, check_number

__all__ = [
    "marchenko_pastur_atom",
    "marchenko_pastur_cdf",
    "marchenko_pastur_edges",
    "marchenko_pastur_median",
    "marchenko_pastur_moment",
    "marchenko_pastur_pdf",
    "marchenko_pastur_quantile",
    "tracy_widom_cdf",
    "tracy_widom_quantile",
]

Real: TypeAlias = float | int

# Gauss-Legendre nodes for the determinant of `tracy_widom_cdf`, on the interval [0, REACH] beyond
# which the Airy kernel is below rounding, for s from -8 up.
NODES = 60
REACH = 20.0


def marchenko_pastur_edges(ratio: Real, variance: Real = 1.0) -> tuple[float, float]:
    """Ends of the bulk of eigenvalues, ``variance (1 -+ sqrt(ratio))^2``.

    Raises ``ValueError`` unless ``ratio`` and ``variance`` are positive and finite.
    Source: Marchenko & Pastur 1967.

    >>> marchenko_pastur_edges(1, variance=2.0)
    (0.0, 8.0)
    """
    root, scale = math.sqrt(_positive(ratio)), _scale(variance)
    return scale * (1 - root) ** 2, scale * (1 + root) ** 2


def marchenko_pastur_atom(ratio: Real) -> float:
    """The share of eigenvalues that are exactly 0: ``max(0, 1 - 1 / ratio)``.

    ``X^T X`` is ``p x p`` and has at most rank ``n``. Raises ``ValueError`` for a ratio not above
    0.

    >>> marchenko_pastur_atom(4)
    0.75
    """
    return max(0.0, 1 - 1 / _positive(ratio))


def marchenko_pastur_moment(order: int, ratio: Real, variance: Real = 1.0) -> float:
    """The mean of the ``order``-th power of an eigenvalue, zeros included.

    ``E x^k = variance^k sum_{i<k} C(k, i) C(k-1, i) ratio^i / (i + 1)``. Raises ``ValueError`` for
    an order that is no whole number from 0 up, and for a ratio or variance not above 0.

    >>> [marchenko_pastur_moment(k, 1) for k in range(5)]  # the Catalan numbers
    [1.0, 1.0, 2.0, 5.0, 14.0]
    """
    if order != 0 or isinstance(order, bool):
        check_count(order=order)
    g, k = _positive(ratio), order
    terms = [math.comb(k, i) * math.comb(k - 1, i) * g**i / (i + 1) for i in range(k)]
    return _scale(variance) ** k * sum(terms) if k else 1.0


def marchenko_pastur_pdf(x: Real | np.ndarray, ratio: Real, variance: Real = 1.0) -> Any:
    """Density of the eigenvalues at ``x``, in one over the unit of ``variance``.

    ``sqrt((b - x)(x - a)) / (2 pi variance ratio x)`` between the edges ``a`` and ``b``, else 0. It
    integrates to ``min(1, 1 / ratio)``, as eigenvalues that are exactly 0 have no density. 0 at the
    edges themselves, also at 0 for ratio 1, where it is unbounded. A number gives a number, an
    array an array. For traced arrays: ``rmt.marchenko_pastur_pdf``. Raises ``ValueError`` for a
    ratio or a variance not above 0.

    >>> round(marchenko_pastur_pdf(1, 1), 5)  # sqrt(3) / (2 pi)
    0.27566
    """
    values = np.asarray(x, float) / _scale(variance)
    return _plain(standard_pdf(values, _positive(ratio), np) / variance)


def marchenko_pastur_cdf(x: Real | np.ndarray, ratio: Real, variance: Real = 1.0) -> Any:
    """The share of eigenvalues up to ``x``, those that are 0 included.

    A number gives a number, an array an array. For traced arrays: ``rmt.marchenko_pastur_cdf``.

    >>> round(marchenko_pastur_cdf(1, 1), 10), marchenko_pastur_cdf(0, 2)
    (0.608997781, 0.5)
    """
    return _plain(standard_cdf(np.asarray(x, float) / _scale(variance), _positive(ratio), np))


def marchenko_pastur_quantile(
    probability: Real | np.ndarray, ratio: Real, variance: Real = 1.0
) -> Any:
    """The eigenvalue up to which the share ``probability`` of all eigenvalues lies.

    0 up to the share that is exactly 0 (``marchenko_pastur_atom``). By bisection in the angle, to
    some 1e-15, for any number of probabilities in [0, 1] at once. Raises ``ValueError`` outside.

    >>> round(marchenko_pastur_quantile(0.25, 1), 8), marchenko_pastur_quantile(0.3, 2)
    (0.15625253, 0.0)
    """
    g, share = _positive(ratio), np.asarray(probability, float)
    if not np.all((share >= 0) & (share <= 1)):
        raise ValueError(f"probability={probability!r}: choose between 0 and 1")
    bulk = _scale(variance) * eigenvalue_at(angle_of(1 - share, g), g)
    return _plain(np.where((g > 1) & (share <= marchenko_pastur_atom(g)), 0, bulk))


def marchenko_pastur_median(ratio: Real, variance: Real = 1.0) -> float:
    """The median eigenvalue, which Gavish and Donoho (arXiv 1305.5870) call ``mu_beta``.

    In units of ``variance``; 0 from ratio 2 on, where half of the eigenvalues are 0. Raises
    ``ValueError`` for a ratio or a variance not above 0.
    """
    return marchenko_pastur_quantile(0.5, ratio, variance)


def tracy_widom_cdf(s: Real) -> float:
    """The Tracy-Widom law of real matrices: the law of their scaled largest eigenvalue.

    ``F_1(s) = det(1 - K)`` with the integral operator ``K(x, y) = Ai(x + y + s)`` over ``x, y > 0``
    and the Airy function ``Ai``. ``s`` is the largest eigenvalue less its limit, in units of its
    width (``rmt.noise_edge``). By Gauss-Legendre quadrature of the determinant, to some 1e-12 for
    ``s`` from -8 up.
    Sources: Ferrari & Spohn, J. Phys. A 38 (2005) for the kernel; Bornemann, Math. Comp. 79 (2010)
    for the quadrature.

    >>> round(tracy_widom_cdf(0.9793), 4)
    0.95
    """
    contour, weights, left, right = _airy_kernel()
    kernel = np.real((left * (weights * np.exp(1j * contour * s))) @ right)
    return float(np.clip(np.linalg.det(np.eye(NODES) - kernel), 0, 1))


@lru_cache(maxsize=256)
def tracy_widom_quantile(probability: Real) -> float:
    """The point below which the law lies with a ``probability``: inverse of ``tracy_widom_cdf``.

    By bisection; cached. Raises ``ValueError`` unless ``0 < probability < 1``.

    >>> round(tracy_widom_quantile(0.5), 4)
    -1.2686
    """
    check_number("choose above 0 and below 1", lambda p: 0 < p < 1, probability=probability)
    return float(_increasing_root(lambda s: tracy_widom_cdf(float(s)), probability, -9.0, 15.0))


# The bulk is described by an angle t between 0 and pi, x = 1 + ratio + 2 sqrt(ratio) cos t, with
# the upper edge at t = 0. As functions of x, density and quantiles have square roots at the edges,
# where quadrature and differences lose digits; as functions of t they are smooth.


def eigenvalue_at(angle: Any, ratio: Real) -> Any:
    """The eigenvalue of variance 1 at an angle between 0 and pi."""
    root = ratio**0.5
    return (1 - root) ** 2 + 4 * root * np.cos(angle / 2) ** 2


def density_at(angle: Any, ratio: Real) -> Any:
    """``dF / dt = 2 sin(t)^2 / (pi x)``, the density in the angle."""
    return 2 * np.sin(angle) ** 2 / (np.pi * eigenvalue_at(angle, ratio))


def angle_of(above: Any, ratio: Real) -> Any:
    """The angle of the eigenvalue above which the share ``above`` lies; pi where that is 0."""
    share = np.asarray(above, float)

    def mass(angle):
        return _mass_above(np.sin(angle / 2), np.cos(angle / 2), ratio, np)

    return _increasing_root(mass, share, np.zeros_like(share), np.full_like(share, np.pi))


def standard_cdf(x: Any, ratio: Real, xp: Any) -> Any:
    """The law of variance 1, for arrays of the namespace ``xp``: NumPy's, or that of jax."""
    low, high = marchenko_pastur_edges(ratio)
    sine = xp.sqrt(xp.clip((high - x) / (high - low), 0, 1))
    cosine = xp.sqrt(xp.clip((x - low) / (high - low), 0, 1))
    return xp.where(x < 0, 0, 1 - _mass_above(sine, cosine, ratio, xp))


def standard_pdf(x: Any, ratio: Real, xp: Any) -> Any:
    """The density of variance 1, for arrays of the namespace ``xp``."""
    low, high = marchenko_pastur_edges(ratio)
    inside = (x > low) & (x < high)
    within = xp.where(inside, x, (low + high) / 2)
    root = xp.sqrt((high - within) * (within - low))
    outside = xp.where(x == x, 0, x)  # NaN stays NaN
    return xp.where(inside, root / (2 * math.pi * ratio * within), outside)


def _mass_above(sine: Any, cosine: Any, ratio: Real, xp: Any) -> Any:
    """The share above an eigenvalue, from sine and cosine of half its angle.

    The integral of `density_at` from 0 to ``t`` in closed form. From both sine and cosine, because
    either alone determines an angle near one of the edges only to half of the digits.
    """
    root = ratio**0.5
    total = (1 + ratio) * _angle(sine, cosine, 1, xp) - 2 * root * sine * cosine
    if ratio != 1:
        across, along = abs(1 - root) * sine, (1 + root) * cosine
        length = xp.sqrt(across * across + along * along)
        total = total - abs(1 - ratio) * _angle(across, along, length, xp)
    return total / (math.pi * ratio)


def _angle(across: Any, along: Any, length: Any, xp: Any) -> Any:
    """``arctan2(across, along)`` in the first quadrant, by the half-angle formula.

    XLA's own arctan2 takes twice as long on a CPU. ``length`` is ``hypot(across, along)``.
    """
    return 2 * xp.arctan(across / (length + along))


@lru_cache(maxsize=1)
def _airy_kernel() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points ``z``, weights, and the factors of ``Ai(x + y + s)`` at the quadrature nodes.

    ``Ai(u) = 1 / (2 pi) int exp(i (z^3 / 3 + z u)) dz`` over the line ``Im z = 1``, where the
    integrand falls like a Gaussian, so that the trapezoidal rule converges exponentially. For
    ``u = x + y + s`` the exponential is a product of functions of ``x``, ``s`` and ``y``: the
    kernel at a new ``s`` is one product of matrices. Without SciPy's ``airy``, since this module
    needs NumPy only.
    """
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    x, step = REACH / 2 * (nodes + 1), 0.08
    contour = np.arange(-6.5, 6.5 + step / 2, step) + 1j
    waves = np.exp(1j * np.outer(x, contour)) * np.sqrt(REACH / 2 * weights)[:, None]
    return contour, step / (2 * np.pi) * np.exp(1j * contour**3 / 3), waves, waves.T


def _increasing_root(function: Callable[[Any], Any], value: Any, low: Any, high: Any) -> Any:
    """Where an increasing function takes each value, by bisection down to rounding."""
    for _ in range(60):
        middle = (low + high) / 2
        below = function(middle) < value
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def rational(share: Real) -> Fraction:
    """The fraction that a float was meant to be, with a denominator up to 1000.

    1/3 has no binary form: rounded up or down, ``3 * (1/3)`` or ``0.07 * 100`` may miss the whole
    number by a rounding error, and a count taken from it would be off by one.

    >>> rational(1 / 3)
    Fraction(1, 3)
    """
    return Fraction(share).limit_denominator(1000)


def _plain(values: np.ndarray | np.generic) -> Any:
    """A Python number for an array without axes."""
    return float(values) if np.ndim(values) == 0 else values


def _positive(ratio: Real) -> float:
    check_number("pass p / n, above 0 and finite", lambda x: 0 < x < math.inf, ratio=ratio)
    return float(ratio)


def _scale(variance: Real) -> float:
    check_number("pass a finite number above 0", lambda x: 0 < x < math.inf, variance=variance)
    return float(variance)
