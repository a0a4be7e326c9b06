"""The functions that the columns of some rows span: an orthonormal basis with a derivative."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spectral_jax.linalg import svd
from spectral_jax.linalg.subspace import mm


class Span(NamedTuple):
    """What `span` found. Of ``c`` columns of ``q`` rows, ``k = min(q, c)``."""

    basis: Float[Array, "q k"]
    """Orthonormal columns; zeros in the place of directions that were cut off."""
    rank: Int[Array, ""]
    """How many directions were kept."""
    singular_values: Float[Array, " k"]
    """Descending; of the directions that were cut off too."""
    gap: Float[Array, ""]
    """The largest singular value cut off over the smallest kept, 0 if none was cut off. Near 1 the
    rank is the tolerance's doing rather than the data's."""


def span(columns: Float[Array, "q c"], tolerance: float | Array, size: Float[Array, ""]) -> Span:
    """The span of the columns, without directions whose singular value is rounding.

    That is up to ``tolerance`` times the largest, or times ``size``: that of a part of the columns
    which has been taken off, and whose rounding they bear.

    Derivatives of functions of the span (those that do not ask which basis of it) are those at
    constant rank, right up to the second.
    """
    vectors, values, _ = svd(columns)
    kept = values > tolerance * jnp.maximum(values[0], size)
    held = jax.lax.stop_gradient((jnp.where(kept, vectors, 0), jnp.where(kept, values, 1)))
    least = jnp.min(jnp.where(kept, values, jnp.inf), initial=jnp.inf)
    gap = jnp.max(jnp.where(kept, 0, values), initial=0) / least
    return Span(_moving(columns, *held), jnp.sum(kept).astype(jnp.int32), values, gap)


def with_row(rows: Float[Array, "q c"], row: Float[Array, " c"]) -> Float[Array, "q+1 c"]:
    """The rows and one more: that of the constant function, if they were orthogonal to it."""
    return jnp.concatenate([rows, row[None]])


@jax.custom_jvp
def _moving(columns: Array, vectors: Array, values: Array) -> Array:
    """``vectors``, the left singular ones of the columns, as a function of the columns."""
    del columns, values
    return vectors


@_moving.defjvp
def _moving_jvp(primals, tangents):
    """``dU = (I - U U^T) dA V S^-1``: out of the span, but never around within it.

    The textbook's turn within the span divides by gaps of singular values, and no function of the
    span sees it. ``V`` is taken from ``U`` itself, so that the next derivative turns with it.
    """
    columns, _, values = primals
    u = _moving(*primals)
    v = mm(columns.T, u) / values
    # Orthonormal but for rounding, and to first order in a change of the columns: its
    # (pseudo-)inverse is then this, exact to second order.
    v = 2 * v - mm(v, mm(v.T, v))
    moved = mm(tangents[0], v / values)
    return u, moved - mm(u, mm(u.T, moved))
