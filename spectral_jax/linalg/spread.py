"""Spectra with a floor, and how their values are spread."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from spectral_jax.linalg.precision import unit_of, working


@runtime_checkable
class Resolved(Protocol):
    """A spectrum with a floor: `InputSpectrum`, or that of a curvature."""

    @property
    def values(self) -> Any: ...

    @property
    def floor(self) -> Any: ...


class Spread(NamedTuple):
    """Three answers to "how many eigenvalues carry the sum"; ``k`` for ``k`` equal ones."""

    intrinsic: Float[Array, ""]
    """``sum / max``."""
    participation: Float[Array, ""]
    """``(sum)^2 / sum of squares``."""
    entropy: Float[Array, ""]
    """``exp(-sum q log q)`` of the shares ``q``."""


def spread(
    spectrum: Resolved | Float[ArrayLike, " k"], *, floor: ArrayLike | None = None
) -> Spread:
    """How many eigenvalues carry the sum: intrinsic dimension, participation ratio, entropy.

    Of the values above the floor; 0 if there are none. Always ``intrinsic <= participation <=
    entropy <= rank``: the exponentials of Renyi's entropies of the shares, of orders infinity, 2, 1
    and 0. Works under ``jit``, ``vmap`` and ``grad``, at any scale.

    >>> [round(float(x), 4) for x in spread(jnp.array([1.0, 1.0, 1.0, 0.0]))]
    [3.0, 3.0, 3.0]
    """
    values, least = resolved(spectrum, floor)
    above = values > least
    parts = jnp.where(above, values, 0)
    parts = parts / unit_of(parts)
    largest = jnp.max(parts, initial=0)
    total = jnp.sum(parts)
    safe = jnp.where(total > 0, total, 1)
    q = jnp.where(above, parts / safe, 1)
    entropy = jnp.exp(-jnp.sum(jnp.where(above, q * jnp.log(q), 0)))
    squares = jnp.sum(parts * parts)
    found = (
        total / jnp.where(largest > 0, largest, 1),
        total**2 / jnp.where(squares > 0, squares, 1),
        jnp.where(total > 0, entropy, 0),
    )
    return Spread(*(known(number, values) for number in found))


def resolved(
    spectrum: Resolved | Float[ArrayLike, " k"], floor: ArrayLike | None
) -> tuple[Float[Array, " k"], Float[Array, ""]]:
    """Values and floor of a spectrum, or of an array; ``k eps`` of its largest if none is given."""
    if isinstance(spectrum, Resolved):
        if floor is not None:
            raise ValueError("the spectrum has a floor of its own: pass its values with another")
        values = working(spectrum.values, "spectrum")
        return values, jnp.asarray(spectrum.floor).astype(values.dtype)
    values = working(spectrum, "spectrum")
    if values.ndim != 1:
        raise ValueError(f"spectrum has shape {values.shape}: pass one list of eigenvalues")
    if floor is None:
        largest = jnp.max(jnp.abs(values), initial=0)
        return values, len(values) * float(jnp.finfo(values.dtype).eps) * largest
    return values, jnp.asarray(floor).astype(values.dtype)


def line(x: Array, y: Array, inside: Array) -> tuple[Array, Array, Array]:
    """Slope, value at 0 and share of the variance explained, of least squares over ``inside``."""
    many = jnp.sum(inside) >= 2
    size = jnp.maximum(jnp.sum(inside), 1).astype(y.dtype)

    def mean(z):
        return jnp.sum(jnp.where(inside, z, 0)) / size

    dx, dy = x - mean(x), y - mean(y)
    spread = jnp.where(many, mean(dx * dx), 1)
    slope = jnp.where(many, mean(dx * dy) / spread, jnp.nan)
    total = mean(dy * dy)
    explained = slope * slope * spread / jnp.where(total > 0, total, 1)
    return slope, mean(y) - slope * mean(x), jnp.where(total > 0, explained, jnp.nan)


def known(number: Array, values: Array) -> Array:
    """In the dtype of the values, and NaN if they hold one: its comparisons are False."""
    return jnp.where(jnp.any(jnp.isnan(values)), jnp.nan, number.astype(values.dtype))
