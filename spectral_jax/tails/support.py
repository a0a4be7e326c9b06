"""Which eigenvalues a fit may use, and what it says when it cannot."""

from enum import IntEnum

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

NOISE = 16.0  # singular values below this many eps of the largest are the rounding of an SVD


class FitStatus(IntEnum):
    """What became of a fit. Up to ``BOUNDARY`` there is one; beyond, ``alpha`` is NaN."""

    OK = 0
    RANK_DEFICIENT = 1
    """One eigenvalue in a hundred or more is within rounding of 0: the fit is of the rest."""
    BOUNDARY = 2
    """The optimum lies at an edge of what was searched: the true one may lie beyond."""
    TOO_FEW = 3
    """Fewer eigenvalues than the fit takes: two in Hill's tail, five for a search."""
    NO_TAIL = 4
    """No candidate for the start of a tail, or fewer than two eigenvalues from a given one on."""
    DEGENERATE = 5
    """The whole tail is one repeated value, to rounding: no exponent is finite."""
    NOT_FINITE = 6
    """NaN or inf among the eigenvalues, or a threshold that is not a positive number."""


def support(
    eigenvalues: Float[Array, "*batch N"], floor: float | None = None
) -> Bool[Array, "*batch N"]:
    """Where an eigenvalue is above ``floor`` times the largest, and above zero.

    The default ``(16 eps)^2`` is where squared singular values become rounding. Zeros are never
    part of the support, so that spectra may be padded with them. Nowhere if any value is NaN.
    """
    if floor is None:
        floor = (NOISE * float(jnp.finfo(eigenvalues.dtype).eps)) ** 2
    largest = jnp.max(eigenvalues, axis=-1, keepdims=True, initial=0)
    return eigenvalues > floor * jnp.maximum(largest, 0)


def number(where: Bool[Array, "*batch N"], dtype: jnp.dtype) -> Int[Array, "*batch"]:
    """How many hold. Exact up to 2^24: XLA compiles a sum of floats three times as fast."""
    return jnp.sum(where.astype(dtype), axis=-1).astype(jnp.int32)


def kth_largest(
    values: Float[Array, "*batch N"], k: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """The ``k``-th largest, from 1 on, of values none of which is negative; 0 beyond the last.

    Such numbers are ordered like their bits, which are found from the first to the last by
    counting: ``O(N)``, where a sort in XLA takes ten times as long.
    """
    width = 8 * values.dtype.itemsize
    whole = jnp.dtype(f"int{width}")
    bits = jax.lax.bitcast_convert_type(values, whole)

    def refine(i, found):
        larger = found | (jnp.ones((), whole) << (width - 2 - i))
        return jnp.where(number(bits >= larger[..., None], values.dtype) >= k, larger, found)

    found = jax.lax.fori_loop(0, width - 1, refine, jnp.zeros(k.shape, whole))
    return jnp.max(jnp.where(bits <= found[..., None], values, 0), axis=-1, initial=0)
