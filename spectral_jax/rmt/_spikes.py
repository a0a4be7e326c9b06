"""How many eigenvalues stand out of the noise, with an interval."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spectral_jax._options import check_number
from spectral_jax.linalg.precision import power_of_two
from spectral_jax.rmt._edge import edge_factor, scale_of_noise, sizes
from spectral_jax.rmt._spectrum import spectra


class SpikeInterval(NamedTuple):
    """Numbers of spikes that a spectrum is compatible with, from ``low`` to ``high`` inclusive."""

    low: Int[Array, "*batch"]
    high: Int[Array, "*batch"]


def spike_interval(
    eigenvalues: Float[Array, "*batch p"],
    shape: tuple[int, int],
    variance: float | Float[Array, "*batch"],
    *,
    confidence: float = 0.9,
) -> SpikeInterval:
    """How many eigenvalues are signal: an interval of counts, from the law of the largest of noise.

    If ``k`` eigenvalues of the noise-free matrix are large enough to leave the bulk, the ``k + 1``-
    th eigenvalue is the largest of noise, whose law is known (Tracy-Widom). Let ``e(b)`` be the
    edge that it exceeds with probability ``b`` (`noise_edge`), and ``d = 1 - confidence``. ``low``
    is the number of eigenvalues above ``e(d / 2)``; ``high`` is the number above ``e(1 - d / 2)``
    less one, the noise's own, and at least ``low``. The interval holds ``k`` with probability
    ``confidence``. Spikes below ``sqrt(p / n)`` times the noise variance stay inside the bulk and
    are not counted (Baik & Silverstein 2006).

    Args:
      eigenvalues: ``[..., p]`` of ``W^T W / n`` as in `fit_marchenko_pastur`, in any order.
      shape: ``(m, n)`` of ``W``.
      variance: of the noise, as `fit_marchenko_pastur` gives it. Its own error is not part of the
        interval.
      confidence: probability that the interval holds the true count; 0.9 leaves 5 % on each side.

    Where the variance is NaN, or an eigenvalue is NaN or inf, nothing is known: from 0 to ``p``.
    Works under ``jit`` and ``vmap``. Raises ``ValueError`` for a confidence out of (0, 1), a
    variance not above 0 and eigenvalues that do not fit the shape.
    Source: Johnstone, Ann. Stat. 29 (2001).

    >>> spectrum = jnp.linspace(0, 3.7, 100).at[-3:].set(9)
    >>> [int(count) for count in spike_interval(spectrum, (100, 100), 1.0)]
    [3, 3]
    """
    p, n = sizes(shape)
    check_number("choose above 0 and below 1", lambda c: 0 < c < 1, confidence=confidence)
    eigenvalues = spectra(eigenvalues, shape, "eigenvalues")
    miss = (1 - confidence) / 2
    edges = edge_factor((p, n), miss, ()), edge_factor((p, n), 1 - miss, ())
    # NaN is the variance of a fit that failed: an answer ("nothing is known"), not a mistake.
    if not (isinstance(variance, float) and math.isnan(variance)):
        variance = scale_of_noise(variance, "variance")
    return _interval(eigenvalues, jnp.asarray(variance, eigenvalues.dtype)[..., None], edges)


@partial(jax.jit, static_argnames="edges")
def _interval(eigenvalues: Array, variance: Array, edges: tuple[float, float]) -> SpikeInterval:
    usable = jnp.isfinite(variance) & (variance > 0)
    known = usable[..., 0] & jnp.all(jnp.isfinite(eigenvalues), axis=-1)
    # In units of the variance: an edge beyond the largest number of the dtype would be infinite,
    # and nothing exceeds infinity.
    unit = power_of_two(variance)
    eigenvalues, variance = eigenvalues / unit, variance / unit
    low, high = (jnp.sum(eigenvalues > variance * e, axis=-1).astype(jnp.int32) for e in edges)
    high = jnp.maximum(high - 1, low)
    return SpikeInterval(jnp.where(known, low, 0), jnp.where(known, high, eigenvalues.shape[-1]))
