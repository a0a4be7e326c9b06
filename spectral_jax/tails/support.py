"""Which eigenvalues a fit may use, in which unit, and what it says when it cannot."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from spectral_jax._options import check_number
from spectral_jax.linalg.carries import start_beside
from spectral_jax.linalg.precision import power_of_two, working
from spectral_jax.tails.host import NOISE


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


class Support(NamedTuple):
    """Spectra ``[..., N]`` in units of their own, and what of them a fit may use."""

    values: Float[Array, "*batch N"]
    """Eigenvalues over ``unit``, the largest about 1; what is negative is 0."""
    keep: Bool[Array, "*batch N"]
    """Where an eigenvalue is above the floor, which is no less than 0."""
    unit: Float[Array, "*batch"]
    """A power of two, so that nothing is rounded by it."""
    finite: Bool[Array, "*batch"]
    """Whether every eigenvalue is a number: neither NaN nor inf nor -inf."""

    @property
    def kept(self) -> Float[Array, "*batch N"]:
        """The values, and 0 in the place of those that are left out."""
        return jnp.where(self.keep, self.values, 0)


def spectra(eigenvalues: ArrayLike) -> Float[Array, "*batch N"]:
    """Eigenvalues in a working dtype; an empty spectrum becomes one zero, which no fit counts.

    Raises ``ValueError`` for complex numbers and for a single number without an axis.
    """
    eigenvalues = working(eigenvalues, "eigenvalues")
    if eigenvalues.ndim < 1:
        raise ValueError("eigenvalues has shape (): pass spectra [..., N]")
    if eigenvalues.shape[-1]:
        return eigenvalues
    return jnp.zeros((*eigenvalues.shape[:-1], 1), eigenvalues.dtype)


def support(eigenvalues: Float[Array, "*batch N"], floor: float | None = None) -> Support:
    """The eigenvalues that a fit may use: those above ``floor`` times the largest, and above zero.

    The default ``(16 eps)^2`` is where squared singular values become rounding. Zeros are never
    part of the support, so that spectra may be padded with them. If any value is NaN or inf nothing
    is. Values are divided by a power of two near the largest: products with the floor, ratios and
    their derivatives then neither underflow nor overflow, whatever the scale of the matrix.
    """
    if floor is None:
        floor = (NOISE * float(jnp.finfo(eigenvalues.dtype).eps)) ** 2
    # -inf would be lost in a maximum; as +inf it makes the spectrum not finite.
    seen = jnp.where(jnp.isneginf(eigenvalues), jnp.inf, eigenvalues)
    largest = jnp.max(seen, axis=-1, initial=0)
    unit = power_of_two(largest)
    values = eigenvalues / unit[..., None]
    keep = values > floor * (largest / unit)[..., None]
    return Support(jnp.maximum(values, 0), keep, unit, jnp.isfinite(largest))


def check_floor(floor: float | None) -> None:
    """``ValueError`` for a floor that is not a share of the largest eigenvalue, in [0, 1)."""
    if floor is not None:
        check_number("choose at least 0 and below 1", lambda f: 0 <= f < 1, floor=floor)


def number(where: Bool[Array, "*batch N"], dtype: jnp.dtype) -> Int[Array, "*batch"]:
    """How many are true. Summed as floats, which XLA compiles three times as fast as integers, and
    which is exact up to 2^24 in float32."""
    return jnp.sum(where.astype(dtype), axis=-1).astype(jnp.int32)


def kth_largest(
    values: Float[Array, "*batch N"], k: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """The ``k``-th largest, from 1 on, of values none of which is negative; 0 beyond the last.

    Floating-point numbers that are not negative are ordered like their bit patterns read as
    integers. The pattern of the result is found bit by bit, from the highest, by counting how many
    values reach it (radix selection): ``O(N)``, where a sort in XLA takes ten times as long.
    """
    width = 8 * values.dtype.itemsize
    whole = jnp.dtype(f"int{width}")
    bits = jax.lax.bitcast_convert_type(values, whole)

    def refine(i, found):
        larger = found | (jnp.ones((), whole) << (width - 2 - i))
        return jnp.where(number(bits >= larger[..., None], values.dtype) >= k, larger, found)

    start = start_beside(values, jnp.zeros(k.shape, whole))
    found = jax.lax.fori_loop(0, width - 1, refine, start)
    return jnp.max(jnp.where(bits <= found[..., None], values, 0), axis=-1, initial=0)
