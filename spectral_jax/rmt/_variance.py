"""The variance of the noise in a spectrum, by the methods that need no simulation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from spectral_jax.laws import marchenko_pastur_edges
from spectral_jax.rmt._spectrum import Spectrum, half_steps

CLIPS = 30  # rounds of "clip"; each drops the values above the edge of the last mean
CLIPPED = 1e-4  # settled, if one more round moves the variance by no more than this share

CANDIDATES = 61  # standard deviations that the density fit tries, from 0.6 to 1.6: 1.6 % apart
POINTS = 128  # of the grid on which two densities are compared


def simple_variance(
    method: str,
    spectrum: Spectrum,
    window: Bool[Array, "*batch p"],
    shape: tuple[int, int],
    *,
    before: int,
) -> tuple[Float[Array, "*batch"], Bool[Array, "*batch"] | bool]:
    """The variance by a ``method`` of `fit_marchenko_pastur`, and whether the iteration settled.

    ``before``: the ``k``-th plotting position is ``(2k - before) / (2p)``.
    """
    p, n = shape
    if method == "bema":
        quantiles = half_steps(p, n)[2 - before :: 2][:p]
        return least_squares(spectrum.values, _like(spectrum, quantiles), window), True
    if method == "median":
        return median_variance(spectrum, p, n), True
    if method == "density":
        return _density(spectrum, p, n), True
    edge = marchenko_pastur_edges(p / n)[1] if method == "clip" else None
    return _trace(spectrum, half_steps(p, n)[1::2], edge)


def least_squares(
    values: Float[Array, "*batch p"], quantiles: Float[Array, "... p"], window: Array
) -> Float[Array, "*batch"]:
    """The slope through the origin of values against quantiles, over the window."""
    inside = jnp.where(window, quantiles, 0)
    norm = jnp.sum(inside * inside, axis=-1)
    return jnp.sum(inside * values, axis=-1) / jnp.where(norm > 0, norm, 1)


def median_variance(spectrum: Spectrum, p: int, n: int) -> Float[Array, "*batch"]:
    """The median of the ``rank`` values above rounding, over the quantile of variance 1.

    That median has ``p - rank + rank / 2`` values below it, so that it is the quantile at
    ``1 - rank / (2p)`` of all ``p``.
    """
    middle = _like(spectrum, half_steps(p, n))[2 * p - spectrum.rank]
    return spectrum.middle() / jnp.where(middle > 0, middle, 1)


def _trace(
    spectrum: Spectrum, quantiles: np.ndarray, edge: float | None
) -> tuple[Array, Array | bool]:
    """Mean of the values, over that of the law at the same ranks.

    With an ``edge`` (of variance 1): the mean of those below ``edge`` times the mean, repeated.
    """
    law = _like(spectrum, quantiles / quantiles.mean())
    expected = _mean(jnp.broadcast_to(law, spectrum.values.shape), spectrum.nonzero)
    # 1 for a spectrum without zeros; the mean of the upper quantiles for one that was truncated.
    expected = jnp.where(expected > 0, expected, 1)
    variance = _mean(spectrum.values, spectrum.nonzero) / expected
    if edge is None:
        return variance, True

    def clip(_, variance):
        below = spectrum.values < edge * variance[..., None]
        return _mean(spectrum.values, spectrum.nonzero & below) / expected

    clipped = jax.lax.fori_loop(0, CLIPS, clip, variance)
    return clipped, jnp.abs(clip(0, clipped) - clipped) <= CLIPPED * clipped


def _density(spectrum: Spectrum, p: int, n: int) -> Float[Array, "*batch"]:
    """The variance whose smoothed density of singular values is closest to that of the data.

    Both densities are sums of Gaussians a twelfth of the bulk wide: around the values, and around
    the quantiles of the law. (Singular values, because the density of eigenvalues is infinite at 0
    for square matrices.) The squared difference is computed for 61 standard deviations from 0.6 to
    1.6 times that of the median; a parabola through the least and its neighbours, in the logarithm,
    gives the answer between them.
    """
    # The grid is in units of the median's estimate, so that it fits any scale.
    start = jax.lax.stop_gradient(jnp.sqrt(median_variance(spectrum, p, n)))
    start = jnp.where(start > 0, start, 1)[..., None]
    low, high = (edge**0.5 for edge in marchenko_pastur_edges(p / n))
    grid = jnp.linspace(max(0.0, 0.5 * low), 1.5 * high, POINTS, dtype=start.dtype)
    width = max(high - low, 1e-3) / 12
    where = spectrum.nonzero

    def smoothed(values):
        bumps = jnp.exp(-(((grid[:, None] - values[..., None, :]) / width) ** 2) / 2)
        return jnp.sum(jnp.where(where[..., None, :], bumps, 0), axis=-1)

    data = smoothed(jnp.sqrt(spectrum.values) / start)
    law = jnp.sqrt(_like(spectrum, half_steps(p, n)[1::2]))
    logs = np.linspace(np.log(0.6), np.log(1.6), CANDIDATES)
    errors = jax.lax.map(
        lambda scale: jnp.sum((data - smoothed(scale * law)) ** 2, axis=-1),
        _like(spectrum, np.exp(logs)),
    )
    return (start[..., 0] * jnp.exp(_parabola(jnp.moveaxis(errors, 0, -1), logs))) ** 2


def _parabola(errors: Float[Array, "*batch c"], places: np.ndarray) -> Float[Array, "*batch"]:
    """The minimum of the parabola through the least error and its neighbours; places are evenly
    spaced."""
    best = jnp.clip(jnp.argmin(errors, axis=-1), 1, errors.shape[-1] - 2)[..., None]
    left, here, right = (
        jnp.take_along_axis(errors, best + step, axis=-1)[..., 0] for step in (-1, 0, 1)
    )
    curvature = left - 2 * here + right
    shift = (left - right) / 2 / jnp.where(curvature > 0, curvature, 1)
    middle = jnp.asarray(places, errors.dtype)[best[..., 0]]
    return middle + jnp.clip(shift, -1, 1) * float(places[1] - places[0])


def _like(spectrum: Spectrum, constants: np.ndarray) -> Array:
    """Constants in float64 in the dtype of the spectrum."""
    return jnp.asarray(constants, spectrum.values.dtype)


def _mean(values: Array, where: Array) -> Array:
    count = jnp.sum(where, axis=-1).astype(values.dtype)
    return jnp.sum(jnp.where(where, values, 0), axis=-1) / jnp.maximum(count, 1)
