"""The Marchenko-Pastur law of arrays that are traced; its formulas are those of `laws`."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spectral_jax import laws


def marchenko_pastur_pdf(
    x: Float[Array, "..."], ratio: float | int, variance: float | Float[Array, ""] = 1.0
) -> Float[Array, "..."]:
    """Density of the eigenvalues of ``X^T X / n``, ``X`` of shape ``n x p`` and ``ratio = p / n``.

    ``sqrt((b - x)(x - a)) / (2 pi variance ratio x)`` between ``a, b = variance (1 -+
    sqrt(ratio))^2``, else 0, also at the edges; its integral is ``min(1, 1 / ratio)``.
    ``ratio`` is a Python number. Works under ``jit``, ``vmap`` and ``grad``.
    """
    return laws.standard_pdf(x / variance, _checked(ratio), jnp) / variance


def marchenko_pastur_cdf(
    x: Float[Array, "..."], ratio: float | int, variance: float | Float[Array, ""] = 1.0
) -> Float[Array, "..."]:
    """Share of those eigenvalues up to ``x``; for ``ratio > 1`` it begins at ``1 - 1 / ratio``.

    ``ratio`` is a Python number. Works under ``jit``, ``vmap`` and ``grad`` (the density).

    >>> round(float(marchenko_pastur_cdf(jnp.array(1.0), 1)), 5)
    0.609
    """
    return _cdf(x / variance, _checked(ratio))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _cdf(x: Array, ratio: float | int) -> Array:
    return laws.standard_cdf(x, ratio, jnp)


@_cdf.defjvp
def _cdf_jvp(ratio, primals, tangents):
    # Square roots and angles have infinite slopes at the edges, where the density has none.
    return _cdf(*primals, ratio), laws.standard_pdf(*primals, ratio, jnp) * tangents[0]


def _checked(ratio: float | int) -> float:
    laws.marchenko_pastur_edges(ratio)
    return float(ratio)
