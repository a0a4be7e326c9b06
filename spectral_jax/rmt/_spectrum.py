"""A sorted spectrum, its exact zeros counted, and the quantiles that belong to its ranks."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from spectral_jax import laws
from spectral_jax.linalg.precision import power_of_two, working
from spectral_jax.rmt.host import NOISE


class Spectrum(NamedTuple):
    """``p`` ascending values, of which the last ``rank`` are above rounding."""

    values: Float[Array, "*batch p"]
    """Divided by ``unit``, so that their squares and sums neither underflow nor overflow."""
    unit: Float[Array, "*batch"]
    """A power of two."""
    rank: Int[Array, "*batch"]
    place: Int[Array, "*batch p"]
    """1 for the smallest value above rounding, ``rank`` for the largest; not positive for zeros."""
    finite: Bool[Array, "*batch"]

    @property
    def nonzero(self) -> Bool[Array, "*batch p"]:
        return self.place > 0

    def middle(self) -> Float[Array, "*batch"]:
        """The median of the values above rounding."""
        low, high = (self.rank + 1) // 2, self.rank // 2 + 1
        return (self._at(low) + self._at(high)) / 2

    def _at(self, place: Array) -> Array:
        return jnp.sum(jnp.where(self.place == place[..., None], self.values, 0), axis=-1)


def ordered(
    values: Float[Array, "*batch p"], floor: float, *, assume_sorted: bool = False
) -> Spectrum:
    """Sort a spectrum; values up to ``floor`` times the largest, or negative, become exact zeros.

    A spectrum with NaN or inf is replaced by ones and marked as not ``finite``: NaN would sort to
    the end and pass for the largest value.
    """
    p = values.shape[-1]
    finite = jnp.all(jnp.isfinite(values), axis=-1)
    values = jnp.where(finite[..., None], values, 1)
    largest = jnp.maximum(jnp.max(values, axis=-1, keepdims=True), 0)
    unit = power_of_two(largest)
    values = values / unit
    ascending = jnp.where(values > floor * (largest / unit), values, 0)
    if not assume_sorted:
        ascending = jnp.sort(ascending, axis=-1)
    rank = jnp.sum(ascending > 0, axis=-1).astype(jnp.int32)
    place = jnp.arange(1, p + 1, dtype=jnp.int32) - p + rank[..., None]
    return Spectrum(ascending, unit[..., 0], rank, place, finite)


def spectra(values: ArrayLike, shape: tuple[int, int], name: str) -> Float[Array, "*batch p"]:
    """Spectra in a working dtype; ``ValueError`` unless there are ``min(shape)`` values each."""
    values, p = working(values, name), min(shape)
    if values.shape[-1:] == (p,):
        return values
    raise ValueError(f"{name} of shape {values.shape} do not fit shape={shape}: pass [..., {p}]")


def rounding(dtype: jnp.dtype) -> float:
    """Relative to the largest, the size at which a singular value is a rounding error."""
    return NOISE * float(jnp.finfo(dtype).eps)


@lru_cache(maxsize=256)
def half_steps(p: int, n: int) -> np.ndarray:
    """Quantiles of the bulk of variance 1 at ``j / (2p)``, ``j = 0 .. 2p``.

    Even ``j`` are the plotting positions ``k/p``, odd ones ``(k - 1/2)/p``.
    """
    return laws.marchenko_pastur_quantile(np.arange(2 * p + 1) / (2 * p), p / n)
