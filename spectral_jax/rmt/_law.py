"""The Marchenko-Pastur law for traced arrays, with the formulas of `laws` and derivatives."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from spectral_jax import laws
from spectral_jax.linalg.precision import power_of_two, working
from spectral_jax.rmt._edge import scale_of_noise


def marchenko_pastur_pdf(
    x: Float[Array, "..."], ratio: float | int, variance: float | Float[Array, ""] = 1.0
) -> Float[Array, "..."]:
    """Density of the eigenvalues of ``X^T X / n``, ``X`` of shape ``n x p`` and ``ratio = p / n``.

    ``sqrt((b - x)(x - a)) / (2 pi variance ratio x)`` between ``a, b = variance (1 -+
    sqrt(ratio))^2``, else 0, also at the edges; its integral is ``min(1, 1 / ratio)``, as for
    ``ratio > 1`` the rest of the eigenvalues is exactly 0.

    ``x`` and ``variance`` (of the entries of ``X``) are in the same unit; ``ratio`` is a Python
    number, static under ``jit``. NaN where a traced variance is no number above 0. Works under
    ``jit``, ``vmap`` and ``grad``. Raises ``ValueError`` for a ratio or a variance that is not a
    finite number above 0.
    Source: Marchenko & Pastur 1967.

    >>> round(float(marchenko_pastur_pdf(jnp.array(1.0), 1)), 5)  # sqrt(3) / (2 pi)
    0.27566
    """
    x, variance = _standard(x, variance)
    return laws.standard_pdf(x, _checked(ratio), jnp) / variance


def marchenko_pastur_cdf(
    x: Float[Array, "..."], ratio: float | int, variance: float | Float[Array, ""] = 1.0
) -> Float[Array, "..."]:
    """Share of the eigenvalues of ``X^T X / n`` up to ``x``, those that are 0 included.

    For ``ratio > 1`` it begins at ``1 - 1 / ratio``. ``x``, ``ratio``, ``variance`` and the
    ``ValueError`` for them are those of `marchenko_pastur_pdf`. Works under ``jit``, ``vmap`` and
    ``grad`` (the density).

    >>> round(float(marchenko_pastur_cdf(jnp.array(1.0), 1)), 5)
    0.609
    """
    return _cdf(_standard(x, variance)[0], _checked(ratio))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _cdf(x: Array, ratio: float | int) -> Array:
    return laws.standard_cdf(x, ratio, jnp)


@_cdf.defjvp
def _cdf_jvp(ratio, primals, tangents):
    # The density, written by hand. Derived from the formula of the distribution function it would
    # be a difference of infinite slopes at the edges (of square roots and angles): NaN.
    return _cdf(*primals, ratio), laws.standard_pdf(*primals, ratio, jnp) * tangents[0]


def _standard(x: ArrayLike, variance: Any) -> tuple[Array, Any]:
    """``x`` for noise of variance 1, and the variance; NaN where that is no positive number."""
    x, variance = working(x, "x"), scale_of_noise(variance, "variance")
    if not isinstance(variance, jax.Array):
        return x / variance, variance
    usable = (variance > 0) & jnp.isfinite(variance)
    variance = jnp.where(usable, variance, jnp.nan).astype(x.dtype)
    # Divided in two steps, by an exact unit and by a number near 1: the derivative of x / variance
    # by the variance, x / variance^2, would overflow for small ones.
    unit = power_of_two(variance)
    return (x / unit) / (variance / unit), variance


def _checked(ratio: float | int) -> float:
    laws.marchenko_pastur_edges(ratio)
    return float(ratio)
