"""BEMA for noise whose columns have unequal variances, by simulation."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from spectral_jax.linalg import svdvals
from spectral_jax.rmt._spectrum import Spectrum
from spectral_jax.rmt._variance import least_squares

# The numbers of the authors' code (arXiv 2006.00436).
THETAS = np.geomspace(0.1, 50, 25)
SPECTRA = 10  # simulated spectra, whose average stands for the quantiles of the law
TOPS = 500  # simulated largest eigenvalues, whose 1 - beta quantile is the edge
POINTS = 8192  # of a table of the Gamma law, from which column variances are drawn


class GammaFit(NamedTuple):
    """``variance`` and ``theta``; ``edge`` is that of variance 1, ``shares`` the fitted cdf."""

    variance: Float[Array, "*batch"]
    theta: Float[Array, "*batch"]
    edge: Float[Array, "*batch"]
    shares: Float[Array, "*batch p"]
    boundary: Bool[Array, "*batch"]


def gamma_fit(
    key: PRNGKeyArray,
    spectrum: Spectrum,
    window: Bool[Array, "*batch p"],
    positions: Float[Array, " p"],
    shape: tuple[int, int],
    beta: float,
) -> GammaFit:
    """Fit noise whose column variances are ``variance Gamma(theta, theta)``, of mean ``variance``.

    Such noise has no closed law, so that it is simulated. For each of 25 values of ``theta`` from
    0.1 to 50, the average of 10 sorted spectra stands for the quantiles, and the variance is the
    least-squares slope over the window. ``theta`` is that of the least squared error; the edge is
    the ``1 - beta`` quantile of the largest eigenvalues of 500 spectra of it.
    Source: arXiv 2006.00436, algorithm 2, and the authors' code for the numbers.
    """
    dtype = positions.dtype
    spectra_key, tops_key = jax.random.split(key)
    quantiles = jax.lax.map(
        lambda place: _spectra(spectra_key, place, shape, SPECTRA, dtype).mean(0),
        jnp.arange(len(THETAS)),
    )
    values, inside = spectrum.values[..., None, :], window[..., None, :]
    variances = least_squares(values, quantiles, inside)
    # For every theta the best variance and what it misses; then the theta that misses least.
    missed = jnp.where(inside, values - variances[..., None] * quantiles, 0)
    best = jnp.argmin(jnp.sum(missed**2, axis=-1), axis=-1)
    variance = jnp.take_along_axis(variances, best[..., None], axis=-1)[..., 0]

    def edge(place):
        tops = _spectra(tops_key, place, shape, TOPS, dtype)[:, -1]
        return jnp.quantile(tops, 1 - beta)

    edges = jax.lax.map(edge, best.reshape(-1)).reshape(best.shape)
    # The fitted distribution function is a line through the simulated quantiles.
    scaled = spectrum.values / jnp.where(variance > 0, variance, 1)[..., None]
    shares = jnp.vectorize(jnp.interp, signature="(p),(p),(p)->(p)")(
        scaled, quantiles[best], positions
    )
    boundary = (best == 0) | (best == len(THETAS) - 1)
    return GammaFit(variance, jnp.asarray(THETAS, dtype)[best], edges, shares, boundary)


def _spectra(
    key: Array, place: Array, shape: tuple[int, int], draws: int, dtype: jnp.dtype
) -> Float[Array, "draws p"]:
    """Ascending eigenvalues of noise with column variances from the Gamma law of one ``theta``.

    The same key draws the same uniforms for every ``theta``: errors of two values then differ by
    ``theta`` and not by chance. That takes inversion of the distribution function (a table);
    ``jax.random.gamma`` rejects draws, and how many depends on ``theta``.
    """
    p, n = shape
    shares, logs = (jnp.asarray(table, dtype)[place] for table in _gamma_quantiles())

    def one(key):
        columns, entries = jax.random.split(key)
        scale = jnp.exp(jnp.interp(jax.random.uniform(columns, (p,), dtype), shares, logs) / 2)
        return svdvals(jax.random.normal(entries, (n, p), dtype) * scale)[::-1] ** 2 / n

    return jax.lax.map(one, jax.random.split(key, draws))


@lru_cache(maxsize=1)
def _gamma_quantiles() -> tuple[np.ndarray, np.ndarray]:
    """For every ``theta`` a table of the distribution function of ``y = ln Gamma(theta, theta)``.

    Shares, and the ``y`` up to which they lie. In ``y`` the density is ``exp(theta (y - e^y))`` up
    to a factor, smooth and falling fast on both sides, for which the trapezoidal rule is accurate;
    in the Gamma variable itself it is infinite at 0 for ``theta < 1``.
    """
    theta = THETAS[:, None]
    y = np.linspace(-36 / theta - 1, np.log1p(45 / theta), POINTS, axis=-1)[:, 0]
    density = np.exp(theta * (y - np.exp(y) + 1))
    shares = np.cumsum(density[:, 1:] + density[:, :-1], axis=-1)
    return np.insert(shares / shares[:, -1:], 0, 0, axis=-1), y
