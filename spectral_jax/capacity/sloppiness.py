"""How sloppy a spectrum is: a sharp drop, then small eigenvalues spread evenly over decades."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from spectral_jax.linalg.precision import unit_of
from spectral_jax.linalg.spread import Resolved, line, resolved


class Sloppiness(NamedTuple):
    """A spectrum in a few numbers; all logarithms are decimal. NaN where too few values are."""

    rank: Int[Array, ""]
    """Values above the floor: nothing below it enters any of the other numbers."""
    decades: Float[Array, ""]
    """``log10`` of the largest over the smallest of them. A lower bound if others lie below the
    floor and are not exactly 0: spectra that all reach their floor seem to span the same decades.
    Compare those at a rank of their own, or by ``slope``."""
    slope: Float[Array, ""]
    """Decades per index, of the line through ``log10(value)`` within the window."""
    intercept: Float[Array, ""]
    """Where that line stands at index 0, the largest value's."""
    r_squared: Float[Array, ""]
    """The share of the variance within the window that the line explains: 1 for a geometric
    spectrum."""
    drop: Float[Array, ""]
    """Decades by which the largest value stands above that line."""
    effective_rank: Float[Array, ""]
    """The sum of the values over the largest."""
    first: Int[Array, ""]
    """Index of the first value that the line is fitted to; -1 if there is none."""
    last: Int[Array, ""]
    """And of the last."""


def sloppiness(
    spectrum: Resolved | Float[ArrayLike, " k"],
    *,
    floor: ArrayLike | None = None,
    window: tuple[float, float] = (0.05, 0.9),
) -> Sloppiness:
    """Summarise a spectrum, in any order, from its values above the floor alone.

    Args:
      spectrum: of inputs or of a curvature; or an array of eigenvalues.
      floor: of an array: the size up to which its values are rounding. ``k eps`` of the largest by
        default, which is too low for values that went through a float32 Gram matrix.
      window: shares of the rank between which the line is fitted: without the drop at the top and
        the bend at the end. Index ``i`` of ``rank`` values stands at ``(i + 1/2) / rank``.

    Works under ``jit``, ``vmap`` and ``grad`` (but for the counts). Follows any scale. Where a
    value is NaN all but the counts are. Raises ``ValueError`` for a window that is not
    ``0 <= first < last <= 1`` or for no list of values.
    Source: arXiv 2110.14163 for the term; the definitions are ours, for it states none.

    >>> found = sloppiness(10.0 ** -jnp.arange(0.0, 3.0, 0.1))
    >>> int(found.rank), round(float(found.slope), 3), round(float(found.decades), 3)
    (30, -0.1, 2.9)
    """
    if np.shape(window) != (2,) or not 0 <= window[0] < window[1] <= 1:
        raise ValueError(f"window={window}: choose 0 <= first < last <= 1")
    values, least = resolved(spectrum, floor)
    found = _summary(values, least, window=(float(window[0]), float(window[1])))
    hole = jnp.where(jnp.any(jnp.isnan(values)), jnp.nan, 0).astype(values.dtype)
    return Sloppiness(*(x + hole if x.dtype == hole.dtype else x for x in found))


@partial(jax.jit, static_argnames="window")
def _summary(values: Array, floor: Array, *, window: tuple[float, float]) -> Sloppiness:
    values = -jnp.sort(-values)
    above = values > floor
    # The logarithm of 1e-30 has lost two digits of the differences between such logarithms.
    unit = unit_of(jnp.where(above, values, 0))
    values = jnp.where(above, values / unit, 1)
    rank = jnp.sum(above)
    index = jnp.arange(len(values), dtype=values.dtype)
    logs = jnp.log10(values)
    place = (index + 0.5) / jnp.maximum(rank, 1).astype(values.dtype)
    inside = above & (place >= window[0]) & (place <= window[1])
    slope, intercept, explained = line(index, logs, inside)
    top = jnp.max(jnp.where(above, logs, -jnp.inf), initial=-jnp.inf)
    top = jnp.where(rank > 0, top, jnp.nan)
    largest = jnp.max(jnp.where(above, values, 0), initial=0)
    return Sloppiness(
        rank=rank.astype(jnp.int32),
        decades=top - jnp.min(jnp.where(above, logs, jnp.inf), initial=jnp.inf),
        slope=slope,
        intercept=intercept + jnp.log10(unit),
        r_squared=explained,
        drop=top - intercept,
        effective_rank=jnp.sum(jnp.where(above, values, 0)) / jnp.where(rank > 0, largest, 1),
        first=_extreme(jnp.min(jnp.where(inside, index, jnp.inf), initial=jnp.inf)),
        last=_extreme(jnp.max(jnp.where(inside, index, -1), initial=-1)),
    )


def _extreme(index: Array) -> Array:
    return jnp.where(jnp.isfinite(index), index, -1).astype(jnp.int32)
