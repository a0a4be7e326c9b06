"""The arithmetic of `linalg.moments`: sums of one dtype, in units of their own."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spectral_jax.linalg.precision import unit_of
from spectral_jax.linalg.subspace import mm

Method = Literal["gram64", "qr", "gram"]
Parts = tuple[int, ...]
SMALLEST = float(np.finfo(np.float32).tiny)


class Fourth(NamedTuple):
    """Of rows ``z = [z_1 | z_2 | ...]`` of several parts, what has the fourth degree."""

    squares: Float[Array, "parts parts"]
    """Of ``|z_i|^2 |z_j|^2``."""
    rows: Float[Array, "parts p"]
    """Of ``|z_i|^2 z``."""


class Sums(NamedTuple):
    """What is summed, in units of ``unit``, in which no square over- or underflows."""

    unit: Float[Array, " parts"]
    """For each part of the columns the power of two next above its largest entry so far; 0 before
    there is one."""
    weight: Float[Array, " groups"]
    """``sum w`` over each group; without labels there is one group."""
    squares: Float[Array, ""]
    """``sum w^2``."""
    mean: Float[Array, "groups p"]
    scatter: Float[Array, "p p"]
    """``sum w (x - mean)(x - mean)^T``, each row about the mean of its group; for ``qr`` the
    triangular ``R``, ``R^T R`` being that."""
    spread: Float[Array, "groups p"] | None
    """The diagonal of that for each group; None without labels."""
    fourth: Fourth | None
    """Sums about the mean of all rows; None unless asked for."""


def nothing(parts: Parts, dtype: jnp.dtype, groups: int | None, fourth: bool) -> Sums:
    p, shares = sum(parts), len(parts)
    means = jnp.zeros((groups or 1, p), dtype)
    return Sums(
        unit=jnp.zeros(shares, dtype),
        weight=jnp.zeros(groups or 1, dtype),
        squares=jnp.zeros((), dtype),
        mean=means,
        scatter=jnp.zeros((p, p), dtype),
        spread=None if groups is None else jnp.zeros_like(means),
        fourth=_no_fourth(parts, dtype) if fourth else None,
    )


def of_batch(
    x: Array, w: Array, member: Array | None, method: Method, parts: Parts, fourth: bool
) -> Sums:
    """The sums of a batch; for ``qr`` its rows stand in the place of their triangular factor.

    ``member [b, groups]`` is 1 where a row belongs, and None without labels.
    """
    sizes = [
        jnp.where(jnp.any(share != 0), jnp.maximum(unit_of(share), SMALLEST), 0)
        for share in _split(x, parts)
    ]
    # No smaller than float32 holds: the unit of float64 rows is stored as a pair like the rest.
    unit = jnp.stack(sizes)
    x = x / across(known(unit), parts)
    shares = w[:, None] if member is None else w[:, None] * member
    weight = jnp.sum(shares, axis=0)
    # A sum of many rows is rounded by a share of their size, which may be far above their spread:
    # of rows about their own mean it is not.
    shift = mm(w, x) / positive(jnp.sum(w))
    about = x - shift
    middle = mm(shares.T, about) / positive(weight)[:, None]
    apart = about - (middle if member is None else mm(member, middle))
    rows = jnp.sqrt(w)[:, None] * apart
    sums = Sums(
        unit=unit,
        weight=weight,
        squares=jnp.sum(w * w),
        mean=jnp.where(weight[:, None] == 0, 0, shift + middle),
        scatter=rows if method == "qr" else mm(rows.T, rows),
        spread=None if member is None else mm(shares.T, apart * apart),
        fourth=None,
    )
    return sums._replace(fourth=_fourth_of(x - overall(sums)[1], w, parts)) if fourth else sums


def merged(a: Sums, b: Sums, method: Method, parts: Parts) -> Sums:
    unit = jnp.maximum(a.unit, b.unit)
    a, b = in_unit(a, unit, method, parts), in_unit(b, unit, method, parts)
    weight = a.weight + b.weight
    share = b.weight / positive(weight)
    apart = b.mean - a.mean
    between = jnp.sqrt(a.weight * share)[:, None] * apart
    if method == "qr":
        scatter = triangle(jnp.concatenate([a.scatter, b.scatter, between]))
    else:
        scatter = a.scatter + b.scatter + mm(between.T, between)
    both = Sums(
        unit=unit,
        weight=weight,
        squares=a.squares + b.squares,
        mean=a.mean + share[:, None] * apart,
        scatter=scatter,
        spread=jax.tree.map(lambda x, y: x + y + between**2, a.spread, b.spread),
        fourth=None,
    )
    if a.fourth is None:
        return both
    middle = overall(both)[1]
    moved = [fourth_about(middle, sums, method, parts) for sums in (a, b)]
    return both._replace(fourth=jax.tree.map(jnp.add, *moved))


def pooled(own: Sums, axis_name: str | tuple[str, ...], method: Method, parts: Parts) -> Sums:
    """The sums of all devices along a mapped axis."""
    own = in_unit(own, jax.lax.pmax(own.unit, axis_name), method, parts)
    weight, squares, total = jax.lax.psum(
        (own.weight, own.squares, own.weight[:, None] * own.mean), axis_name
    )
    middle = total / positive(weight)[:, None]
    apart = jnp.sqrt(own.weight)[:, None] * (own.mean - middle)
    if method == "qr":
        rows = jnp.concatenate([own.scatter, apart])
        scatter = triangle(jax.lax.all_gather(rows, axis_name, tiled=True))
    else:
        scatter = jax.lax.psum(own.scatter + mm(apart.T, apart), axis_name)
    spread = None if own.spread is None else jax.lax.psum(own.spread + apart**2, axis_name)
    everyone = Sums(own.unit, weight, squares, middle, scatter, spread, None)
    if own.fourth is None:
        return everyone
    fourth = fourth_about(overall(everyone)[1], own, method, parts)
    return everyone._replace(fourth=jax.lax.psum(fourth, axis_name))


def decayed(sums: Sums, f: Array, method: Method) -> Sums:
    return sums._replace(
        weight=f * sums.weight,
        squares=f * f * sums.squares,
        scatter=(jnp.sqrt(f) if method == "qr" else f) * sums.scatter,
        spread=None if sums.spread is None else f * sums.spread,
        fourth=jax.tree.map(lambda x: f * x, sums.fourth),
    )


def in_unit(sums: Sums, unit: Array, method: Method, parts: Parts) -> Sums:
    """The same in larger units. Powers of two: nothing is rounded."""
    ratio = sums.unit / known(unit)
    column = across(ratio, parts)
    fourth = sums.fourth
    if fourth is not None:
        squares = (ratio * ratio)[:, None]
        fourth = Fourth(squares * squares.T * fourth.squares, squares * column * fourth.rows)
    return sums._replace(
        unit=unit,
        mean=column * sums.mean,
        scatter=(column if method == "qr" else column[:, None] * column) * sums.scatter,
        spread=None if sums.spread is None else column**2 * sums.spread,
        fourth=fourth,
    )


def in_one_unit(sums: Sums, method: Method, parts: Parts) -> Sums:
    """In the largest of the units: what a part loses then is rounding of the whole."""
    return in_unit(sums, jnp.full_like(sums.unit, jnp.max(sums.unit)), method, parts)


def overall(sums: Sums) -> tuple[Array, Array, Array]:
    """The weight and mean of all rows, and the rows ``B`` of which ``B^T B`` is the scatter of the
    means of groups."""
    weight = jnp.sum(sums.weight)
    apart = sums.mean - sums.mean[0]  # exactly 0 of a single group
    mean = sums.mean[0] + mm(sums.weight / positive(weight), apart)
    return weight, mean, jnp.sqrt(sums.weight)[:, None] * (sums.mean - mean)


def part_of(sums: Sums, i: int, method: Method, parts: Parts) -> Sums:
    """Of one part of the columns alone."""
    columns = span(i, parts)
    if method == "qr" and i > 0:
        scatter = triangle(sums.scatter[:, columns])
    else:
        scatter = sums.scatter[columns, columns]
    fourth = sums.fourth
    if fourth is not None:
        fourth = Fourth(fourth.squares[i : i + 1, i : i + 1], fourth.rows[i : i + 1, columns])
    return sums._replace(
        unit=sums.unit[i : i + 1],
        mean=sums.mean[:, columns],
        scatter=scatter,
        spread=None if sums.spread is None else sums.spread[:, columns],
        fourth=fourth,
    )


def matrix(
    sums: Sums,
    method: Method,
    *,
    about: Literal["origin", "mean", "groups"],
    rows: slice = slice(None),
    columns: slice = slice(None),
) -> Array:
    """Second moments, or a block of them, in units."""
    if method == "qr":
        scatter = mm(sums.scatter[:, rows].T, sums.scatter[:, columns])
    else:
        scatter = sums.scatter[rows, columns]
    weight, mean, between = overall(sums)
    if about != "groups":
        scatter = scatter + mm(between[:, rows].T, between[:, columns])
    scatter = scatter / positive(weight)
    return scatter + jnp.outer(mean[rows], mean[columns]) if about == "origin" else scatter


def summed_rows(sums: Sums, *, centred: bool) -> Array:
    """For ``qr``: rows ``R`` with ``R^T R`` the second moments times the weight, in units."""
    weight, mean, between = overall(sums)
    rows = [sums.scatter, between]
    return jnp.concatenate(rows if centred else [*rows, jnp.sqrt(weight) * mean[None]])


def fourth_about(point: Array, sums: Sums, method: Method, parts: Parts) -> Fourth:
    """The sums of fourth degree about another point: of ``z + d`` for rows ``z`` about the mean.

    ``|z_i + d_i|^2 = |z_i|^2 + 2 z_i . d_i + |d_i|^2``, multiplied out; what is linear in ``z``
    sums to 0.
    """
    assert sums.fourth is not None
    weight, mean, between = overall(sums)
    d = mean - point
    shifts = jnp.where(_owner(parts), d, 0)
    length = jnp.sum(shifts * shifts, axis=1)
    by_scatter = mm(shifts, sums.scatter.T if method == "qr" else sums.scatter)
    if method == "qr":
        by_scatter = mm(by_scatter, sums.scatter)
    by_scatter = by_scatter + mm(mm(shifts, between.T), between)
    own = sums.scatter**2 if method == "qr" else jnp.diag(jnp.diagonal(sums.scatter))
    traces = jnp.sum(jnp.where(_owner(parts), jnp.sum(own, axis=0) + jnp.sum(between**2, 0), 0), 1)
    once = 2 * mm(sums.fourth.rows, shifts.T) + jnp.outer(traces, length)
    squares = once + once.T + 4 * mm(by_scatter, shifts.T) + weight * jnp.outer(length, length)
    rows = 2 * by_scatter + (traces + weight * length)[:, None] * d
    return Fourth(sums.fourth.squares + squares, sums.fourth.rows + rows)


def triangle(rows: Array) -> Array:
    return jnp.linalg.qr(rows, mode="r")


def across(per_part: Array, parts: Parts) -> Array:
    """One number for each column, from one for each part."""
    if len(parts) == 1:
        return jnp.broadcast_to(per_part, parts)
    return jnp.concatenate(
        [jnp.broadcast_to(x, size) for x, size in zip(per_part, parts, strict=True)]
    )


def span(i: int, parts: Parts) -> slice:
    """The columns of a part."""
    start = sum(parts[:i])
    return slice(start, start + parts[i])


def known(unit: Array) -> Array:
    return jnp.where(unit > 0, unit, 1)


def positive(weight: Array) -> Array:
    return jnp.where(weight == 0, 1, weight)


def _split(x: Array, parts: Parts) -> list[Array]:
    return [x[..., span(i, parts)] for i in range(len(parts))]


def _owner(parts: Parts) -> np.ndarray:
    """Which part each column is of, as booleans ``[parts, p]``."""
    return np.repeat(np.arange(len(parts)), parts) == np.arange(len(parts))[:, None]


def _no_fourth(parts: Parts, dtype: jnp.dtype) -> Fourth:
    shares, p = len(parts), sum(parts)
    return Fourth(jnp.zeros((shares, shares), dtype), jnp.zeros((shares, p), dtype))


def _fourth_of(rows: Array, w: Array, parts: Parts) -> Fourth:
    lengths = jnp.stack([jnp.sum(x * x, axis=1) for x in _split(rows, parts)], axis=1)
    weighted = w[:, None] * lengths
    return Fourth(mm(weighted.T, lengths), mm(weighted.T, rows))
