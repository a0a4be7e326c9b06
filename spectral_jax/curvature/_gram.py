"""Inner products ``J J^T`` of rows, from what the taps find, block by block of examples.

Each parameter adds the Gram matrix of its part of the rows. For a kernel that reads one position,
row ``i`` is the outer product of ``a_i`` and ``b_i``, so that its part is ``(A A^T) o (B B^T)``,
entry by entry. With more positions it is the sum over pairs of positions of such products, or the
Gram matrix of the rows formed, whichever takes fewer operations.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float

from spectral_jax.curvature._rows import Parts, Rows
from spectral_jax.curvature._taps import Backward, Taps, taps
from spectral_jax.curvature._uses import Use
from spectral_jax.linalg.precision import unit_of, working


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Part:
    """The rows of ``m`` examples, ``k`` of each, as far as they belong to some parameters.

    a: what a kernel reads ``[m, positions, in]``, the numbers of the rows of a table that it looks
      up ``[m, positions]``, or None where ``b`` holds the rows themselves.
    b: what flows back ``[m, k, positions, out]``, or rows ``[m, k, size]``.
    unit: by what ``a b`` was divided, so that no square leaves the range of the dtype.
    group: the number of the block of parameters.
    """

    # Arrays; or only their shapes, where the memory of a product is worked out.
    a: Any
    b: Any
    unit: Any
    group: int = dataclasses.field(metadata={"static": True})


@partial(jax.jit, static_argnames=("rows", "groups"))
def parts_of(
    rows: Rows, groups: tuple[int, ...], params: Parts, data: Any, shares: Array
) -> tuple[Part, ...]:
    """The parts of all rows of some examples; ``groups`` numbers the block of each leaf."""
    found = taps(rows.model, rows.subset.rebuild(*params), data[0], chosen=rows.subset.chosen)
    columns = rows.cotangents(found.outputs, data[1], shares)
    back = jax.vmap(found.backward)(columns)
    # Products and sums of signals of a half model are numbers in float32 only.
    back = jax.tree.map(lambda x: working(jnp.moveaxis(x, 0, 1)), back)
    # Where the outputs depend on no parameter at all, rows have no entry.
    nothing = _part(0, None, jnp.zeros((*columns.shape[1::-1], 0), columns.dtype))
    return tuple(_parts(found, back, groups)) or (nothing,)


@partial(jax.jit, static_argnames=("groups", "dtype"))
def block(
    left: Sequence[Part], right: Sequence[Part], groups: int, dtype: Any
) -> Float[Array, "groups rows others"]:
    """Inner products of the rows of some examples with those of others, for each group."""
    m, k = left[0].b.shape[:2]
    n = len(right[0].b)
    sums = [jnp.zeros((m, k, n, k), dtype) for _ in range(groups)]
    for ours, theirs in zip(left, right, strict=True):
        unit = ours.unit.astype(dtype) * theirs.unit.astype(dtype)
        sums[ours.group] += unit * _products(ours, theirs, dtype)
    return jnp.stack(sums).reshape(groups, m * k, n * k)


def _parts(found: Taps, back: Backward, groups: tuple[int, ...]) -> Iterator[Part]:
    """Kernels by what flows in and back, and for each group the rows of all that is left."""
    left: dict[int, Array] = {}
    times = Counter(use.leaf for use in found.uses)
    for use, a, b in zip(found.uses, found.activations, back.signals, strict=True):
        bias = use.bias
        if times[use.leaf] == 1 and use.whole and _factors_are_cheaper(use, b):
            if bias is not None and groups[bias] == groups[use.leaf]:
                # A bias is the row of its kernel that reads a 1.
                a, bias = jnp.concatenate([a, jnp.ones_like(a[..., :1])], axis=-1), None
            yield _part(groups[use.leaf], a, b)
        else:
            left[use.leaf] = left.get(use.leaf, 0) + _rows(use, a, b)
        if bias is not None:
            left[bias] = b.sum(axis=2)
    left |= dict(zip(found.explicit, back.explicit, strict=True))
    for group in sorted({groups[leaf] for leaf in left}):
        rows = [rows for leaf, rows in left.items() if groups[leaf] == group]
        yield _part(group, None, jnp.concatenate(rows, axis=-1))


def _part(group: int, a: Array | None, b: Array) -> Part:
    unit = unit_of(b)
    b = b / unit
    if a is not None and jnp.issubdtype(a.dtype, jnp.floating):
        a, unit = a / unit_of(a), unit * unit_of(a).astype(unit.dtype)
    return Part(a, b, unit, group)


def _factors_are_cheaper(use: Use, b: Array) -> bool:
    """Whether inner products by pairs of positions take fewer operations than by rows formed."""
    k, positions, out = b.shape[1:]
    read = 1 if use.kind == "embedding" else use.shape[0]
    return positions**2 * (read + k**2 * out) <= k**2 * use.shape[0] * out


def _rows(use: Use, a: Array, b: Array) -> Float[Array, "m k size"]:
    """The rows of a leaf, or what one of its uses adds to them."""

    def one(a: Array, b: Array) -> Array:
        if use.kind == "embedding":
            return use.place(jnp.zeros(use.shape, b.dtype).at[a].add(b))
        return use.place(jnp.matmul(a.T, b, precision=Precision.HIGHEST))

    return jax.vmap(jax.vmap(one, in_axes=(None, 0)))(a, b)


def _products(ours: Part, theirs: Part, dtype: Any) -> Float[Array, "m k n l"]:
    b, other = ours.b.astype(dtype), theirs.b.astype(dtype)
    if ours.a is None or theirs.a is None:
        return _inner("mks,nls->mknl", b, other)
    if b.shape[2] == 1:
        read = _read(ours.a, theirs.a, dtype)[:, 0, :, 0]
        return read[:, None, :, None] * _inner("mko,nlo->mknl", b[:, :, 0], other[:, :, 0])

    return jnp.moveaxis(
        jax.lax.map(lambda pair: _with_one(ours.a, b, *pair), (theirs.a, other)), 0, 2
    )


def _with_one(
    a: Array, b: Float[Array, "m k p out"], read: Array, back: Float[Array, "l q out"]
) -> Float[Array, "m k l"]:
    """Inner products with the rows of one example, over all pairs of positions."""
    products = _inner("mkpo,lqo->mkplq", b, back)
    weights = _read(a, read[None], b.dtype)[:, None, :, 0]
    return jnp.sum(weights[:, :, :, None] * products, axis=(2, 4))


def _read(a: Array, other: Array, dtype: Any) -> Float[Array, "m p n q"]:
    """Inner products of what is read at each position; rows looked up are one-hot."""
    if jnp.issubdtype(a.dtype, jnp.integer):
        return (a[:, :, None, None] == other).astype(dtype)
    return _inner("mpi,nqi->mpnq", a.astype(dtype), other.astype(dtype))


def _inner(letters: str, a: Array, b: Array) -> Array:
    return jnp.einsum(letters, a, b, precision=Precision.HIGHEST)
