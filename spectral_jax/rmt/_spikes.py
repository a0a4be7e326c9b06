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
    """Numbers of spikes that the spectrum is compatible with, from ``low`` to ``high``."""

    low: Int[Array, "*batch"]
    high: Int[Array, "*batch"]


def spike_interval(
    eigenvalues: Float[Array, "*batch p"],
    shape: tuple[int, int],
    variance: float | Float[Array, "*batch"],
    *,
    confidence: float = 0.9,
) -> SpikeInterval:
    """The numbers ``k`` for which the next eigenvalue may be the largest of noise.

    With ``e(b)`` the edge that the largest eigenvalue of noise exceeds with probability ``b``, and
    ``d = 1 - confidence``: ``low`` is the number above ``e(d / 2)``, and ``high`` that above
    ``e(1 - d / 2)`` without the one that noise has there itself, at least ``low``. If ``k``
    eigenvalues of the noise-free matrix are large enough to leave the bulk, the largest of the
    noise comes next, and the interval holds ``k`` with probability ``confidence``. Spikes that
    noise hides (variance below ``sqrt(p / n)``) are not counted.

    ``eigenvalues`` of ``W^T W / n`` as in `fit_marchenko_pastur`, in any order, and the
    ``variance`` it gives. Where that is NaN, or an eigenvalue is NaN or inf, nothing is known: from
    0 to ``p``. Works under ``jit`` and ``vmap``. Raises ``ValueError`` for a confidence out of
    (0, 1), a variance not above 0 and eigenvalues that do not fit the shape.

    >>> spectrum = jnp.linspace(0, 3.7, 100).at[-3:].set(9)
    >>> [int(count) for count in spike_interval(spectrum, (100, 100), 1.0)]
    [3, 3]
    """
    p, n = sizes(shape)
    check_number("choose above 0 and below 1", lambda c: 0 < c < 1, confidence=confidence)
    eigenvalues = spectra(eigenvalues, shape, "eigenvalues")
    miss = (1 - confidence) / 2
    edges = edge_factor((p, n), miss, ()), edge_factor((p, n), 1 - miss, ())
    if not (isinstance(variance, float) and math.isnan(variance)):  # as of a fit that failed
        variance = scale_of_noise(variance, "variance")
    return _interval(eigenvalues, jnp.asarray(variance, eigenvalues.dtype)[..., None], edges)


@partial(jax.jit, static_argnames="edges")
def _interval(eigenvalues: Array, variance: Array, edges: tuple[float, float]) -> SpikeInterval:
    usable = jnp.isfinite(variance) & (variance > 0)
    known = usable[..., 0] & jnp.all(jnp.isfinite(eigenvalues), axis=-1)
    unit = power_of_two(variance)  # an edge above the largest number would hide what exceeds it
    eigenvalues, variance = eigenvalues / unit, variance / unit
    low, high = (jnp.sum(eigenvalues > variance * e, axis=-1).astype(jnp.int32) for e in edges)
    high = jnp.maximum(high - 1, low)
    return SpikeInterval(jnp.where(known, low, 0), jnp.where(known, high, eigenvalues.shape[-1]))
