"""Richness: which share of what varies in the features the outputs of a network use.

For features ``Phi`` and outputs ``f`` on the same rows, with ``P`` the projection onto the span of
the outputs' columns and a bar for what is centred over the rows,

    D_LR = 1 - <bar Phi bar Phi^T, bar P> / (||bar Phi bar Phi^T|| ||bar P||)

in Frobenius norms: 0 if the features vary along the outputs alone, all directions alike (the
richest), towards 1 the more they hold besides (the laziest). It needs neither labels nor the
network's initial state. Never an ``n x n`` matrix, nor an eigendecomposition of a ``p x p`` one:
rows ``R`` with ``R^T R`` the covariance of the features stand for the features, and any ``q`` do.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from spectral_jax._choices import check_choice
from spectral_jax.features._sides import (
    Sides,
    by_head,
    check_tolerance,
    checked_head,
    of_data,
    of_moments,
    quartic_of,
    tolerance_in,
    tolerance_of,
    undifferentiated,
)
from spectral_jax.features._spans import Span, span, with_row
from spectral_jax.features.moments import FeatureMoments, Head, effective_rows, pooled
from spectral_jax.linalg.precision import working
from spectral_jax.linalg.subspace import mm

Order = Literal["literal", "centre-first"]
ORDERS = get_args(Order)
CONSTANT = 4  # features that vary by no more than so many roundings of their mean are constant


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Richness:
    """``D_LR``, what to judge it by, and how it was defined."""

    value: Float[Array, ""]
    """0 is the richest, 1 the laziest; NaN where there is none. Corrected, it may fall below 0."""
    rank: Int[Array, ""]
    """The dimension of the outputs' span."""
    singular_values: Float[Array, " k"]
    """Of the outputs over the root of the number of rows (centred, if centred first), descending:
    the rank is how many of them are above the tolerance."""
    gap: Float[Array, ""]
    """The largest of them cut off over the smallest kept; 0 if none is. Near 1 it is the tolerance
    that chose the rank."""
    constant: Float[Array, ""]
    """The share of the constant function that lies in the outputs' span; 0 if centred first."""
    rows: Float[Array, ""]
    """How many rows of equal weight say as much."""
    few_rows: Bool[Array, ""]
    """No more rows than features: the plain number is far too low if training was lazy, too high
    if it was rich."""
    degenerate: Bool[Array, ""]
    """The number says nothing about training. It is NaN as the features or the outputs are constant
    or hold NaN (or, corrected, as there are too few rows), or the outputs span all that features on
    these rows can: with ``c >= p``, as in language models, it is ``1 - sqrt(PR / p)`` with ``PR``
    the participation ratio of the features' spectrum, whatever the head. Pass fewer outputs."""
    order: Order = dataclasses.field(metadata={"static": True})
    corrected: bool = dataclasses.field(metadata={"static": True})


def richness(
    m: FeatureMoments | Float[ArrayLike, "n p"],
    *,
    head: Head | None = None,
    outputs: Float[ArrayLike, "n c"] | None = None,
    weights: Float[ArrayLike, " n"] | None = None,
    order: Order = "literal",
    corrected: bool = False,
    tolerance: float | None = None,
) -> Richness:
    """``D_LR`` of features and the outputs computed from them, for one set of rows.

    Args:
      m: moments of the features; or the features, whose own rows are then computed with: squared
        they are not, and there is a gradient in float32 too. Give 4 rows a feature, or `corrected`.
      head: the last layer, ``outputs = x @ kernel + bias``: the outputs need not be in the moments,
        and spans are found to the last digits, where moments of the outputs have lost half.
      outputs: of the same rows, for features given as an array and no head: logits as trained, not
        probabilities. Moments of features and outputs need neither.
      weights: of the rows, for features given as an array, as for `update`.
      order: ``"literal"`` projects onto the span of the outputs, then centres, as the definition
        reads; adding a constant to the outputs then changes the number. ``"centre-first"`` centres
        the outputs and then projects: it does not. They differ much for networks at random: .647
        and .551.
      corrected: estimate what infinitely many rows would give: a U-statistic of ``||S||^2``, right
        on average for any distribution, and an overlap without the part of chance, right on average
        for normal features. The moments must have been made with ``fourth=True``. Weights that are
        not all alike enter by the number of rows they amount to, an approximation.
      tolerance: share of the largest singular value of the outputs below which a direction does not
        count: all that count do so alike, however small. By default 1e-10 in float64 and 8e-6 in
        float32; of outputs in moments no less than the root of what the method resolves.

    Does not change with rotations, shifts and scales of the features, nor with an invertible
    mixture of the outputs. Works under ``jit``, ``vmap`` and ``grad``, twice, through features
    whose spectrum is degenerate too; the gradient is 0 where constant features or outputs make the
    number NaN. Moments have one with respect to the head alone, and refuse any other. Raises
    ``ValueError`` for shapes that do not fit and without outputs.
    Source: arXiv 2410.04264; the trace form and the correction are ours.

    >>> import jax.numpy as jnp
    >>> from spectral_jax.features import Head, richness
    >>> x = jnp.array([[1.0, 0.0, 2.0], [2.0, 1.0, 0.0], [0.0, 1.0, 1.0], [3.0, 0.0, 1.0],
    ...                [1.0, 2.0, 0.0], [0.0, 3.0, 2.0], [2.0, 2.0, 1.0], [1.0, 1.0, 3.0]])
    >>> head = Head(jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]]), jnp.array([0.5, 0.0]))
    >>> found = richness(x, head=head)
    >>> round(float(found.value), 4), int(found.rank), bool(found.degenerate)
    (0.4215, 2, False)
    """
    check_choice(ORDERS, order=order)
    check_tolerance(tolerance)
    options: dict[str, Any] = dict(tolerance=tolerance, order=order, corrected=corrected)
    if isinstance(m, FeatureMoments):
        if outputs is not None or weights is not None:
            raise ValueError("outputs, weights: moments hold what update(...) was given; pass head")
        return _of_moments(*_checked_moments(m, head, corrected), **options)
    return _of_data(*_checked_data(m, head, outputs, weights), **options)


class _Known(NamedTuple):
    """What else is known of the rows."""

    rows: Array
    """How many they amount to."""
    quartic: Array | float
    """The mean of ``|x - mean|^4``, in the unit of the features."""
    tolerance: Array | float
    eps: float
    """The relative spacing of the numbers of which the rows came."""


# Not compiled as a whole: `vmap` of what enters float64 has to enter it itself.
def _of_moments(
    m: FeatureMoments, head: Head | None, *, tolerance: float | None, **options: Any
) -> Richness:
    sides = of_moments(m, head or "outputs")
    known = _Known(
        effective_rows(m),
        quartic_of(m) if options["corrected"] else jnp.nan,
        tolerance_of(m, head is not None, tolerance),
        m.state.eps,
    )
    return _measured(sides, known, **options)


@partial(jax.jit, static_argnames=("tolerance", "order", "corrected"))
def _of_data(
    x: Array, head: Head | None, outputs: Any, w: Array, *, tolerance: float | None, **options: Any
) -> Richness:
    total = jnp.sum(w)
    share = w / jnp.where(total == 0, 1, total)
    features = of_data(x, share)
    lengths = jnp.sum(features.rows**2, axis=1)
    known = _Known(
        jnp.where(total == 0, 0, 1 / jnp.sum(share**2)),
        jnp.sum(lengths**2 / jnp.where(share > 0, share, 1)),
        tolerance_in(x.dtype, tolerance),
        float(jnp.finfo(x.dtype).eps),
    )
    sides = by_head(features, head) if head else Sides(features, of_data(outputs, share))
    return _measured(sides, known, **options)


@partial(jax.jit, static_argnames=("order", "corrected"))
def _measured(sides: Sides, known: _Known, *, order: Order, corrected: bool) -> Richness:
    (features, middle, _), (others, level, unit) = sides
    columns = others if order == "centre-first" else with_row(others, level)
    found = span(columns, known.tolerance, jnp.max(jnp.abs(level)))
    basis, constant = found.basis[: len(others)], found.basis[len(others) :]
    overlap, plane = _square(mm(basis.T, features)), _square(_gram(basis))
    squares = _square(_gram(features))
    if corrected:
        centred = span(others, known.tolerance, jnp.max(jnp.abs(level)))
        overlap, squares = _corrected(features, basis, centred, overlap, squares, known)
    varies = _square(features) > (CONSTANT * known.eps) ** 2 * _square(middle)
    exists = varies & (squares > 0) & (plane > known.tolerance**4)
    product = jnp.sqrt(jnp.where(exists, squares * plane, 1))
    value = jnp.where(exists, 1 - overlap / product, jnp.nan)
    p, rows = features.shape[1], known.rows
    full = found.rank.astype(rows.dtype) >= jnp.minimum(p, rows - 1)
    return Richness(
        value=value,
        rank=found.rank,
        singular_values=found.singular_values * unit,
        gap=found.gap,
        constant=_square(constant),
        rows=rows,
        few_rows=rows <= p,
        degenerate=full | ~jnp.isfinite(value),
        order=order,
        corrected=corrected,
    )


def _corrected(
    features: Array, basis: Array, centred: Span, overlap: Array, squares: Array, known: _Known
) -> tuple[Array, Array]:
    """The overlap and ``||S||^2`` that ``n`` rows give, without the part of chance.

    What the outputs leave of the features falls into their span by chance, as much in each
    dimension: it is taken off as it is from the explained variance of a regression. ``||S||^2`` is
    estimated as by Himeno & Yamada (2014).
    """
    n = known.rows
    total = _square(features)
    left = total - _square(mm(centred.basis.T, features))
    free = n - 1 - centred.rank.astype(n.dtype)
    enough = (free > 0) & (n > 3)
    n, free = (jnp.where(enough, count, 4) for count in (n, free))
    overlap = n / (n - 1) * (overlap - _square(basis) * left / free)
    squares = n / ((n - 2) * (n - 3)) * ((n - 2) * squares + total**2 / (n - 1) - known.quartic)
    return overlap, jnp.where(enough, squares, 0)


def _gram(rows: Array) -> Array:
    """``R^T R`` or ``R R^T``, the smaller: their squares have one sum."""
    return mm(rows.T, rows) if rows.shape[0] >= rows.shape[1] else mm(rows, rows.T)


def _square(x: Array) -> Array:
    return jnp.sum(x * x)


def _checked_moments(m: FeatureMoments, head: Any, corrected: bool) -> tuple[Any, Any]:
    if head is None and not m.sizes.outputs:
        raise ValueError("head=None, and no outputs in the moments: pass the last layer as a Head")
    if corrected and m.state.high.fourth is None:
        raise ValueError("corrected=True needs fourth moments: begin with zero(p, fourth=True)")
    return undifferentiated(pooled(m)), None if head is None else checked_head(
        head, m.sizes.features
    )


def _checked_data(x: Any, head: Any, outputs: Any, weights: Any) -> tuple[Any, ...]:
    x = working(x, "m")
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"m has shape {x.shape}: pass features [n, p]")
    if (head is None) == (outputs is None):
        raise ValueError("head, outputs: pass one of them, to say what the features are used for")
    if head is not None:
        head = checked_head(head, x.shape[1])
    else:
        outputs = working(outputs, "outputs").astype(x.dtype)
        if outputs.ndim != 2 or len(outputs) != len(x) or 0 in outputs.shape:
            raise ValueError(f"outputs have shape {outputs.shape}: pass [{len(x)}, c]")
    if weights is None:
        return x, head, outputs, jnp.ones(len(x), x.dtype)
    w = working(weights, "weights").astype(x.dtype)
    if w.shape != (len(x),):
        raise ValueError(f"weights have shape {w.shape}: pass one for each of {len(x)} rows")
    read = (w != 0)[:, None]
    outputs = None if outputs is None else jnp.where(read, outputs, 0)
    return jnp.where(read, x, 0), head, outputs, jnp.where(w >= 0, w, jnp.nan)
