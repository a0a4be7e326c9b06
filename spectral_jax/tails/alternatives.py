"""What else a tail may be: truncated power law, exponential, lognormal, by likelihood ratios."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc
from jaxtyping import Array, Float, Int

from spectral_jax._options import check_number
from spectral_jax.linalg.precision import working
from spectral_jax.tails.support import FitStatus, spectra, support

ITERATIONS = 60  # Newton steps; the count is fixed, since under `vmap` the slowest one decides
NEGLIGIBLE = 40.0  # densities below exp(-40) of the largest are less than float64's rounding
PANELS, NODES = 16, 16  # of the quadrature: 16 intervals, each with 16 Gauss-Legendre nodes


class Alternative(NamedTuple):
    """A law fitted to the same tail, and its comparison with the power law.

    ``ratio = log L(power law) - log L(this)``: above 0 the power law is the likelier.
    ``normalised`` is Vuong's ``ratio / (sd sqrt(n))``, ``sd`` of the pointwise differences, and
    ``p_value`` the chance of a ratio as large, of either sign, if both laws were equally good.
    ``status`` is a ``FitStatus``; at ``BOUNDARY`` the likelihood grows towards the edge of the
    family: most often its limit, the power law itself (then ``ratio`` is 0 and ``p_value`` 1).
    """

    parameters: Float[Array, "*batch p"]
    log_likelihood: Float[Array, "*batch"]
    ratio: Float[Array, "*batch"]
    normalised: Float[Array, "*batch"]
    p_value: Float[Array, "*batch"]
    status: Int[Array, "*batch"]


class TailAlternatives(NamedTuple):
    """Log-likelihood of the power law, and the laws it is compared with."""

    log_likelihood: Float[Array, "*batch"]
    truncated_power_law: Alternative
    """``x^-alpha exp(-lambda x)``; parameters ``(alpha, lambda)``."""
    exponential: Alternative
    """``exp(-lambda x)``; parameters ``(lambda,)``."""
    lognormal: Alternative
    """``exp(-(ln x - mu)^2 / (2 sigma^2)) / x``; parameters ``(mu, sigma)``."""


class _Family(NamedTuple):
    """Densities ``exp(-a s - b h(s)) / Z(a, b)`` of ``s = ln(x / xmin) >= 0``, with ``b > 0``."""

    h: Callable[[Array], Array]
    interval: Callable[[Array, Array], tuple[Array, Array]]
    """Where to integrate: all of ``s`` with a density above ``exp(-NEGLIGIBLE)`` of the largest."""
    floor: tuple[float, float]
    """The least share of each parameter that one step leaves, so that a positive one stays so;
    minus infinity for a parameter that may have any sign."""


def tail_alternatives(
    eigenvalues: Float[Array, "*batch N"], xmin: Float[Array, "*batch"] | float
) -> TailAlternatives:
    """Fit other laws to the eigenvalues from ``xmin`` on; every field has the batch's shape.

    ``xmin`` is where the tail begins, one number or one per spectrum, as `power_law_fit` finds it.
    All by maximum likelihood on ``x >= xmin``, as in the package powerlaw: the truncated power law
    ``x^-alpha exp(-lambda x) lambda^(1-alpha) / Gamma(1-alpha, lambda xmin)`` with ``alpha > 1``,
    the exponential and the lognormal. With ``s = ln(x/xmin)`` the first and the last are
    exponential families of two statistics, ``s`` with ``e^s - 1`` or ``s^2``, whose likelihood is
    concave: a damped Newton iteration on moments, which come from a quadrature over ``s`` and not
    from the incomplete gamma function, as that underflows for large ``lambda xmin``.

    The power law is a limit of the truncated one, so that this ratio is never above 0 and Vuong's
    test does not apply: its ``p_value`` is that of ``-2 ratio`` under chi-squared with one degree
    of freedom, as in powerlaw (conservative: half of it is correct at the limit).

    Zeros and rounding (see `support`) are left out; half precision and integers are read as
    float32. Parameters are good to 1e-6, likelihoods to rounding (float32: 1e-2 and 1e-5), at any
    scale. Where ``status`` is above ``BOUNDARY``, all is NaN.
    Works under ``jit``, ``vmap`` and, for likelihoods and ratios with the tail held, ``grad`` (at a
    maximum, parameters do not matter to first order). Raises ``ValueError`` for an ``xmin`` that is
    no finite number above 0, and for complex eigenvalues.
    Sources: Vuong 1989; arXiv 0706.1062; Alstott, Bullmore & Plenz (arXiv 1305.0215).

    >>> x = 1 / (1 - (jnp.arange(200) + 0.5) / 200)
    >>> other = tail_alternatives(x, 1.0).exponential
    >>> bool(other.ratio > 0), bool(other.p_value < 0.01)
    (True, True)
    """
    if isinstance(xmin, int | float):
        check_number("choose a finite number above 0", lambda x: 0 < x < np.inf, xmin=xmin)
    eigenvalues = spectra(eigenvalues)
    return _of_batch(eigenvalues, working(xmin, "xmin").astype(eigenvalues.dtype))


@jax.jit
def _of_batch(eigenvalues: Array, xmin: Array) -> TailAlternatives:
    *batch, n = eigenvalues.shape
    xmin = jnp.broadcast_to(xmin, batch)
    if not batch:
        return _compare(eigenvalues, xmin)
    compared = jax.vmap(_compare)(eigenvalues.reshape(-1, n), xmin.reshape(-1))
    return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), compared)


def _compare(eigenvalues: Array, xmin: Array) -> TailAlternatives:
    tail = _tail(eigenvalues, xmin)
    # x / xmin - 1, without the digits that exp(s) - 1 loses for small s.
    excess = jnp.expm1(tail.s)
    decay = 1 / tail.mean(excess)
    exponential = jnp.log(decay) - decay * excess + tail.s

    (a, b), truncated, truncated_edge = _fitted(tail, _TRUNCATED, lambda m: 0.5 / m)
    (c, d), lognormal, lognormal_edge = _fitted(tail, _LOGNORMAL, _normal)
    sigma2 = 0.5 / d  # infinite at the limit, which is the power law
    likelihood = tail.log_likelihood(tail.power_law)
    return TailAlternatives(
        log_likelihood=jnp.where(tail.exists, likelihood, jnp.nan),
        truncated_power_law=_alternative(
            tail,
            jnp.stack([1 + a, b / tail.xmin / tail.unit]),
            truncated,
            truncated_edge,
            nested=True,
        ),
        exponential=_alternative(
            tail, decay[None] / tail.xmin / tail.unit, exponential, jnp.asarray(False)
        ),
        lognormal=_alternative(
            tail,
            jnp.stack([tail.log_xmin - c * sigma2, jnp.sqrt(sigma2)]),
            lognormal,
            lognormal_edge,
        ),
    )


class _Tail(NamedTuple):
    """The eigenvalues from ``xmin`` on, as ``s = ln(x / xmin)`` where they are ``inside``."""

    s: Array
    inside: Array
    size: Array
    xmin: Array
    """In the ``unit`` of the spectrum."""
    unit: Array
    status: Array
    """A ``FitStatus``; unless it is ``OK``, ``s`` is made up."""

    @property
    def exists(self) -> Array:
        return self.status == FitStatus.OK

    @property
    def log_xmin(self) -> Array:
        return jnp.log(self.xmin) + jnp.log(self.unit)

    @property
    def rate(self) -> Array:
        """``alpha - 1`` of the power law."""
        return 1 / self.mean(self.s)

    @property
    def power_law(self) -> Array:
        """Its log density at each ``s``."""
        return jnp.log(self.rate) - self.rate * self.s

    def mean(self, values: Array) -> Array:
        return jnp.sum(jnp.where(self.inside, values, 0)) / self.size

    def log_likelihood(self, pointwise: Array) -> Array:
        """Of log densities of ``s``; the sum of ``ln x`` turns them into those of ``x``."""
        return self.size * self.mean(pointwise) - self.size * (self.mean(self.s) + self.log_xmin)


def _tail(eigenvalues: Array, xmin: Array) -> _Tail:
    found = support(eigenvalues)
    values, unit = found.values, found.unit
    usable = jnp.isfinite(xmin) & (xmin / unit > 0)
    xmin = jnp.where(usable, xmin / unit, 1)
    inside = found.keep & (values >= xmin)
    tail = jnp.sum(inside)
    n = jnp.maximum(tail, 1).astype(values.dtype)
    s = jnp.log(jnp.where(inside, values, xmin) / xmin)
    status = jnp.select(
        [~(found.finite & usable), tail < 2, jnp.max(s) <= 4 * float(jnp.finfo(s.dtype).eps)],
        [int(FitStatus.NOT_FINITE), int(FitStatus.NO_TAIL), int(FitStatus.DEGENERATE)],
        int(FitStatus.OK),
    )
    fitted = status == FitStatus.OK
    # A spectrum without a tail gets values that can be fitted, and NaN for results in the end: NaN
    # within the iteration would also spoil derivatives of others in the batch.
    s = jnp.where(fitted, s, jnp.linspace(0.0, 1.0, len(s), dtype=s.dtype) if len(s) > 1 else 1)
    return _Tail(s, inside | ~fitted, jnp.where(fitted, n, len(s)), xmin, unit, status)


def _fitted(
    tail: _Tail, family: _Family, start: Callable[[Array], Array]
) -> tuple[Array, Array, Array]:
    """Parameters of most likelihood, log densities, and whether they are at the family's edge."""
    h = family.h(tail.s)
    m = jax.lax.stop_gradient(jnp.stack([tail.mean(tail.s), tail.mean(h)]))
    theta, interior = _maximise(family, start(m), m)
    pointwise = -theta[0] * tail.s - theta[1] * h - _moments(family, theta)[0]
    # A family that contains the power law as a limit cannot do worse; if it does no better than
    # rounding, it is the power law.
    rounding = 100 * float(jnp.finfo(tail.s.dtype).eps)
    gains = tail.mean(tail.power_law - pointwise) < -rounding
    limit = jnp.stack([jax.lax.stop_gradient(tail.rate), jnp.zeros_like(tail.rate)])
    theta = jnp.where(gains, theta, limit)
    return theta, jnp.where(gains, pointwise, tail.power_law), ~(gains & interior)


def _alternative(
    tail: _Tail, parameters: Array, pointwise: Array, edge: Array, *, nested: bool = False
) -> Alternative:
    """A law of these log densities against the power law; ``nested`` if that is a limit of it."""
    n, tiny = tail.size, jnp.finfo(tail.s.dtype).tiny
    differences = tail.power_law - pointwise
    ratio = n * tail.mean(differences)
    sd = jnp.sqrt(jnp.maximum(tail.mean((differences - ratio / n) ** 2), tiny))
    normalised = jnp.where(edge & (ratio == 0), 0, ratio / (sd * jnp.sqrt(n)))
    surprise = jnp.sqrt(jnp.maximum(-ratio, 0)) if nested else jnp.abs(normalised) / 2**0.5
    verdict = jnp.where(tail.exists & edge, int(FitStatus.BOUNDARY), tail.status)

    def told(value: Array) -> Array:
        return jnp.where(tail.exists, value, jnp.nan)

    return Alternative(
        parameters=told(parameters),
        log_likelihood=told(tail.log_likelihood(pointwise)),
        ratio=told(ratio),
        normalised=told(normalised),
        p_value=told(erfc(surprise)),
        status=verdict,
    )


def _normal(m: Array) -> Array:
    """The normal density with these first two moments."""
    variance = jnp.maximum(m[1] - m[0] ** 2, 1e-3 * m[1])
    return jnp.stack([-m[0], jnp.full_like(m[0], 0.5)]) / variance


def _truncated_interval(a: Array, b: Array) -> tuple[Array, Array]:
    return jnp.zeros_like(a), jnp.minimum(NEGLIGIBLE / a, jnp.log1p(NEGLIGIBLE / b))


def _lognormal_interval(a: Array, b: Array) -> tuple[Array, Array]:
    mode, width = jnp.maximum(-a / (2 * b), 0), jnp.sqrt(NEGLIGIBLE / b)
    beyond = jnp.where(a > 0, jnp.minimum(width, NEGLIGIBLE / jnp.where(a > 0, a, 1)), width)
    return jnp.maximum(mode - width, 0), mode + beyond


_TRUNCATED = _Family(jnp.expm1, _truncated_interval, (0.1, 0.1))
_LOGNORMAL = _Family(jnp.square, _lognormal_interval, (-np.inf, 0.1))


def _maximise(family: _Family, theta: Array, mean: Array) -> tuple[Array, Array]:
    """Maximise ``-theta . mean - ln Z``, which is concave; and whether inside, not at an edge.

    Each step is the best of Newton's, whole and by halves, in both parameters or in one of them.
    """
    floor = jnp.asarray(family.floor, theta.dtype)
    steps = 0.5 ** jnp.arange(8, dtype=theta.dtype)
    axes = jnp.asarray([[1, 1], [1, 0], [0, 1]], theta.dtype)

    def likelihood(theta):
        return -jnp.sum(theta * mean) - _moments(family, theta)[0]

    def newton(theta):
        _, expected, covariance = _moments(family, theta)
        gradient = expected - mean
        return gradient, _solve(covariance, gradient), gradient / jnp.diagonal(covariance)

    def improve(_, theta):
        _, both, single = newton(theta)
        directions = jnp.concatenate([both[None], axes[1:] * single])
        trials = theta + (steps[:, None, None] * directions).reshape(-1, 2)
        least = jnp.where(jnp.isfinite(floor), floor * theta, -jnp.inf)
        trials = jnp.concatenate([theta[None], jnp.maximum(trials, least)])
        values = jax.vmap(likelihood)(trials)
        return trials[jnp.argmax(jnp.where(jnp.isnan(values), -jnp.inf, values))]

    theta = jax.lax.fori_loop(0, ITERATIONS, improve, theta)
    # Half the Newton decrement is the gain that is left: rounding, at an interior maximum.
    gradient, both, _ = newton(theta)
    decrement = jnp.sum(gradient * both)
    interior = jnp.abs(decrement) <= 100 * float(jnp.finfo(theta.dtype).eps)
    return jax.lax.stop_gradient(theta), interior


def _moments(family: _Family, theta: Array) -> tuple[Array, Array, Array]:
    """``ln Z``, and mean and covariance of ``(s, h(s))`` under the density of ``theta``."""
    low, high = family.interval(*theta)
    nodes, weights = (jnp.asarray(x, theta.dtype) for x in _quadrature())
    s = low + (high - low) * nodes
    statistics = jnp.stack([s, family.h(s)])
    exponent = -jnp.sum(theta[:, None] * statistics, axis=0)
    # The largest exponent is taken out before exp, which would over- or underflow.
    top = jnp.max(exponent)
    mass = weights * jnp.exp(exponent - top)
    total = jnp.sum(mass)
    share = mass / total
    mean = jnp.sum(share * statistics, axis=1)
    centred = statistics - mean[:, None]
    covariance = jnp.sum(share * centred[:, None] * centred[None], axis=-1)
    return top + jnp.log(total * (high - low)), mean, covariance


def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre on ``[0, 1]``, in panels."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    left = np.arange(PANELS)[:, None]
    return (
        ((left + (nodes + 1) / 2) / PANELS).ravel(),
        np.tile(weights / (2 * PANELS), PANELS),
    )


def _solve(matrix: Array, right: Array) -> Array:
    """A symmetric 2 x 2 system, scaled to a unit diagonal: its entries differ by many orders."""
    scale = jnp.sqrt(jnp.diagonal(matrix))
    correlation = matrix[0, 1] / (scale[0] * scale[1])
    u, v = right / scale
    determinant = jnp.maximum(1 - correlation**2, float(jnp.finfo(matrix.dtype).eps))
    return jnp.stack([u - correlation * v, v - correlation * u]) / determinant / scale
