"""The forward feature map, diagonalised: which functions the features hold, and what for.

The features ``Phi`` of ``n`` rows have the operator ``T = Phi Phi^T / n``, with the eigenvalues
``rho_k`` of their second moments and the eigenfunctions ``e_k = Phi v_k / sqrt(rho_k)``. Of each,
its share in the span of the targets is its *quality*, and its share in the span of the outputs its
*utilisation*.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from spectral_jax.features._sides import (
    Rows,
    check_tolerance,
    checked_head,
    of_moments,
    tolerance_of,
    undifferentiated,
)
from spectral_jax.features._spans import span, with_row
from spectral_jax.features.moments import (
    Beside,
    FeatureMoments,
    Head,
    as_moments,
    covariance,
    effective_rows,
    eigenvalues,
    factor,
    unitless,
)
from spectral_jax.linalg import eigh, moments, svd
from spectral_jax.linalg.spread import known
from spectral_jax.linalg.subspace import mm


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """Eigenvalues of the features, and what each eigenfunction is worth and used for.

    Directions whose eigenvalue is not above ``floor`` are rounding: their shares are NaN, and the
    cumulative ones leave them out. Without targets, or without outputs, the numbers of theirs are
    None. In text ``k`` counts from 1: ``cumulative_quality[k - 1]`` is ``Pi*(k)``.
    """

    eigenvalues: Float[Array, " p"]
    """``rho_k``, descending; NaN where the dtype does not have the square of the features' unit."""
    floor: Float[Array, ""]
    """The size up to which they are rounding."""
    vectors: Float[Array, "p p"]
    """``v_k``, a column each: ``e_k(x) = (x - mean) @ v_k / sqrt(rho_k)``, ``x`` itself if not
    centred. Signs, and the basis of a space whose eigenvalues are equal, are LAPACK's choice."""
    quality: Float[Array, " p"] | None
    """``|P e_k|^2`` with ``P`` the projection onto the span of the targets, between 0 and 1."""
    utilisation: Float[Array, " p"] | None
    """The same with the outputs."""
    cumulative_quality: Float[Array, " p"] | None
    """``Pi*(k)``: the sum of the first ``k`` over the rank of the targets. 1 at the end says that
    the targets are linear in the features."""
    cumulative_utilisation: Float[Array, " p"] | None
    """``Pihat(k)``. Below 1 at the end, the outputs are no linear function of the features."""
    target_rank: Int[Array, ""] | None
    output_rank: Int[Array, ""] | None
    target_gap: Float[Array, ""] | None
    """The largest singular value that the rank leaves out over the smallest that it counts."""
    output_gap: Float[Array, ""] | None
    chance: Float[Array, " p"]
    """What ``Pi*(k)`` of targets at random would be: ``k / n``, with ``n - 1`` if centred."""
    rows: Float[Array, ""]
    """``n``: how many rows of equal weight say as much."""
    few_rows: Bool[Array, ""]
    """No more rows than features: ``Pi*(p)`` is 1 whatever the targets. Take 4 rows a feature."""
    centred: bool = dataclasses.field(metadata={"static": True})
    """Whether of features less their mean, and of targets and outputs less theirs."""

    def reach(self, share: float = 0.95) -> Int[Array, ""]:
        """The smallest ``k`` with ``Pihat(k) >= share``; 0 if there is none.

        Raises ``ValueError`` for a map without outputs.
        """
        if self.cumulative_utilisation is None:
            raise ValueError("the map has no outputs: pass head to diagonalize")
        reached = self.cumulative_utilisation >= share
        return jnp.where(reached.any(), jnp.argmax(reached) + 1, 0).astype(jnp.int32)


def diagonalize(
    m: FeatureMoments | Float[ArrayLike, "n p"],
    *,
    head: Head | None = None,
    centred: bool = True,
    tolerance: float | None = None,
    outputs: Float[ArrayLike, "n c"] | None = None,
    targets: Float[ArrayLike, "n t"] | None = None,
    labels: Int[ArrayLike, " n"] | None = None,
    classes: int | None = None,
    weights: Float[ArrayLike, " n"] | None = None,
) -> FeatureMap:
    """Spectrum, quality and utilisation of features, one eigendecomposition ``p x p`` in all.

    Args:
      m: moments of the features (penultimate, after the nonlinearity, of a set of inputs fixed
        before training), or the features. Targets are the moments' own, or one-hot labels: what the
        loss sees.
      head: the last layer, ``outputs = x @ kernel + bias``; else the outputs in the moments.
      centred: take the means off features, targets and outputs. Without it the mean of the features
        is a direction like any other, mostly the largest, and the bias of a head lies outside of
        their span.
      tolerance: share of the largest singular value of targets or outputs below which a direction
        of theirs does not count. By default 1e-10 (and 8e-6 for ``method="gram"`` in float32), and
        the root of what the method resolves if they were summed.
      outputs, targets, labels, classes, weights: of the rows of an array, as for `of`.

    Works under ``jit`` and ``vmap``; refuses ``grad``. NaN in the features is NaN in all numbers.
    Raises ``ValueError`` for arrays that do not fit, and for arrays beside moments.
    Source: arXiv 2410.04264, whose definitions these are as far as it states them.

    >>> import jax.numpy as jnp
    >>> from spectral_jax.features import diagonalize
    >>> x = jnp.array([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0], [-1.0, 1.0]])
    >>> found = diagonalize(x, targets=x[:, :1])
    >>> found.eigenvalues.tolist(), found.quality.tolist()
    ([1.0, 0.25], [1.0, 0.0])
    """
    check_tolerance(tolerance)
    arrays = dict(outputs=outputs, targets=targets, labels=labels, classes=classes)
    m = as_moments(m, weights=weights, **arrays)
    if head is not None:
        head = checked_head(head, m.sizes.features)
    found = _eigenfunctions(undifferentiated(m), head, centred=centred)
    by_labels, by_head = not m.sizes.targets, head is not None
    tolerances = tuple(tolerance_of(m, exact, tolerance) for exact in (by_labels, by_head))
    # Compiled from here on only: `vmap` of what enters float64 has to enter it itself.
    return _told(found, tolerances, effective_rows(m), centred=centred)


@partial(jax.jit, static_argnames="centred")
def _told(
    found: _Found, tolerances: tuple[Array, Array], rows: Array, *, centred: bool
) -> FeatureMap:
    shares = [
        _Share(None, None, None, None)
        if beside is None
        else _share(beside, found.values, tolerance, centred)
        for beside, tolerance in zip((found.targets, found.outputs), tolerances, strict=True)
    ]
    quality, utilisation = shares
    p = len(found.values)
    k = jnp.arange(1, p + 1, dtype=rows.dtype)
    square, least = found.unit**2, float(jnp.finfo(rows.dtype).tiny)
    square = jnp.where((square >= least) & jnp.isfinite(square), square, jnp.nan)
    return FeatureMap(
        eigenvalues=found.values * square,
        floor=jnp.where(found.floor > 0, jnp.maximum(found.floor * square, least), found.floor),
        vectors=found.vectors,
        quality=quality.each,
        utilisation=utilisation.each,
        cumulative_quality=quality.cumulative,
        cumulative_utilisation=utilisation.cumulative,
        target_rank=quality.rank,
        output_rank=utilisation.rank,
        target_gap=quality.gap,
        output_gap=utilisation.gap,
        chance=jnp.minimum(k / jnp.maximum(rows - (1 if centred else 0), 1), 1),
        rows=rows,
        few_rows=rows <= p,
        centred=centred,
    )


class _Beside(NamedTuple):
    """The eigenfunctions, a column each, and what stands beside the features, in rows of its."""

    functions: Array
    others: Rows


class _Found(NamedTuple):
    values: Array
    """In units of ``unit**2``."""
    floor: Array
    unit: Array
    vectors: Array
    targets: _Beside | None
    outputs: _Beside | None


@partial(moments.exactly, static=("centred",))
def _eigenfunctions(m: FeatureMoments, head: Head | None, *, centred: bool) -> _Found:
    of_rows = m.state.high.unit[0]
    unit, m_in_units = jnp.where(of_rows > 0, of_rows, 1), unitless(m)
    values, floor = eigenvalues(m_in_units, centred=centred)
    vectors = _vectors(m_in_units, centred)
    resolved = values > floor
    size = jnp.where(resolved, jnp.sqrt(jnp.where(resolved, values, 1)), jnp.nan)

    def beside(what: Head | Beside) -> _Beside:
        features, others = of_moments(m, what)
        rows = features.rows if centred else with_row(features.rows, features.mean)
        return _Beside(mm(rows, vectors) * (features.unit / unit / size), others)

    held = beside("targets") if m.sizes.targets or m.classes else None
    used = beside(head or "outputs") if head is not None or m.sizes.outputs else None
    return _Found(values, floor, unit, vectors, held, used)


def _vectors(m: FeatureMoments, centred: bool) -> Array:
    """A column for each eigenvalue, descending."""
    if m.state.method == "qr":  # a square has lost the small directions that the factor resolves
        return svd(factor(m, centred=centred)).vt.T
    return eigh(covariance(m, centred=centred)).vectors[:, ::-1]


class _Share(NamedTuple):
    """What of each eigenfunction lies in the span of some columns."""

    each: Array | None
    cumulative: Array | None
    rank: Array | None
    gap: Array | None


def _share(beside: _Beside, values: Array, tolerance: Array, centred: bool) -> _Share:
    functions, (rows, mean, _) = beside
    columns = rows if centred else with_row(rows, mean)
    found = span(columns, tolerance, jnp.max(jnp.abs(mean)))
    each = jnp.sum(mm(found.basis.T, functions) ** 2, axis=0)
    cumulative = jnp.cumsum(jnp.nan_to_num(each)) / found.rank.astype(each.dtype)
    return _Share(each, known(cumulative, values), found.rank, found.gap)
