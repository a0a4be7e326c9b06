"""Canonical correlations: what two representations say alike, whatever the scale of a direction."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from spectral_jax._options import check_number
from spectral_jax.features.layers import LayerMoments, of
from spectral_jax.linalg import moments
from spectral_jax.linalg.decompositions import SVD, svd
from spectral_jax.linalg.subspace import mm

__all__ = ["CCA", "cca"]


class CCA(NamedTuple):
    """Correlations of the best matched directions, and what they are worth."""

    correlations: Float[Array, " k"]
    """Descending, ``k = min(p, q)``; 0 beyond the smaller rank."""
    mean: Float[Array, ""]
    """Over the smaller rank: 1 for invertible maps of each other. NaN if a rank is 0."""
    weighted: Float[Array, ""]
    """The mean weighted by how much of ``x`` each direction accounts for (PWCCA)."""
    ranks: Int[Array, "2"]
    """How many directions of ``x`` and of ``y`` were kept."""
    forced: Int[Array, ""]
    """How many correlations are 1 whatever the data, for there are too few rows: of ``n`` rows
    about their mean ``max(0, rank_x + rank_y - n + 1)``. 0 is what you want. Unequal weights amount
    to fewer rows than there are: then at most so many."""


def cca(
    x: LayerMoments | Float[ArrayLike, "n p"],
    y: Float[ArrayLike, "n q"] | None = None,
    *,
    keep: float = 1.0,
    weights: Float[ArrayLike, " n"] | None = None,
    method: moments.Method = "qr",
) -> CCA:
    """Canonical correlations of two representations of the same inputs.

    With orthonormal bases ``U_x`` and ``U_y`` of the centred columns, the singular values of
    ``U_x^T U_y``. No invertible map of either changes them: a direction of tiny variance counts as
    much as the first, and rounding would too: directions at the floor of the moments are left out.

    Args:
      x: features ``[n, p]``, or the moments of two layers.
      y: features ``[n, q]``, if ``x`` is an array.
      keep: the share of each variance that is kept, by leading directions: .99 is SVCCA.
      weights: one for each row, for arrays.
      method: of summing, for arrays: see `linalg.moments`. ``"qr"`` resolves the smallest
        directions.

    Works under ``jit`` and ``vmap``, not under ``grad``. Raises ``ValueError`` for other than two
    layers, arrays that do not fit, or ``keep`` outside (0, 1].
    Source: Raghu et al., arXiv 1706.05806 (SVCCA); Morcos et al., arXiv 1806.05759 (PWCCA).

    >>> x = jnp.array([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [0.0, 3.0], [1.0, 5.0]])
    >>> found = cca(x, x[:, ::-1] * 100)
    >>> found.correlations.round(4).tolist(), int(found.forced)
    ([1.0, 1.0], 0)
    """
    check_number("choose above 0 and at most 1", lambda share: 0 < share <= 1, keep=keep)
    m = _pair(x, y, weights, method)
    state = moments.unitless(m.state)
    floors = [moments.eigenvalues(moments.part(state, i), centred=True).floor for i in (0, 1)]
    rows = moments.factor(state, centred=True)
    parts = rows[:, : state.parts[0]], rows[:, state.parts[0] :]
    return _cca(parts, floors, moments.effective_rows(state), keep)


def _pair(x: Any, y: Any, weights: Any, method: moments.Method) -> LayerMoments:
    if isinstance(x, LayerMoments) and y is not None:
        raise ValueError("y beside moments: pass two arrays, or the moments of two layers alone")
    m = x if y is None else of([x, y], weights=weights, method=method)
    if not isinstance(m, LayerMoments) or len(m.names) != 2:
        raise ValueError("x alone: pass the moments of two layers, or an array y beside an array")
    return m


@jax.jit
def _cca(parts: tuple[Array, Array], floors: list[Array], n: Array, keep: Array) -> CCA:
    x, y = (_kept(rows, floor, keep) for rows, floor in zip(parts, floors, strict=True))
    turn, correlations, _ = svd(mm(x.u.T, y.u))
    ranks = jnp.stack([jnp.sum(basis.s > 0) for basis in (x, y)])
    count = jnp.min(ranks)
    shared = jnp.arange(len(correlations)) < count
    correlations = jnp.where(shared, jnp.minimum(correlations, 1), 0)
    # How much of the columns of x each of its canonical directions accounts for.
    loads = jnp.where(shared, jnp.sum(jnp.abs(mm(mm(turn.T, x.u.T), parts[0])), axis=1), 0)
    return CCA(
        correlations,
        jnp.sum(correlations) / count.astype(correlations.dtype),
        jnp.sum(loads * correlations) / jnp.sum(loads),
        ranks,
        jnp.maximum(0, jnp.sum(ranks) - jnp.round(n).astype(int) + 1),
    )


def _kept(rows: Array, floor: Array, keep: Array) -> SVD:
    """The directions of a layer that hold so much of its variance, above the floor; others 0."""
    basis = svd(rows)
    variance = basis.s**2
    rest = jnp.cumsum(variance[::-1])[::-1]  # from here on: summed from the small end, or it is 0
    kept = (variance > 2 * floor) & (rest > (1 - keep) * rest[0])
    return SVD(jnp.where(kept, basis.u, 0), jnp.where(kept, basis.s, 0), basis.vt)
