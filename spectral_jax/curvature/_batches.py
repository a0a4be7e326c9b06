"""Examples in micro-batches, with their shares of a mean, on one device or sharded over many."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from spectral_jax._options import count
from spectral_jax.curvature.losses import shares_of

Model: TypeAlias = Callable[[PyTree, PyTree], Array]
Weight: TypeAlias = Float[Array, "n *positions"] | None


class Batches(NamedTuple):
    """``n`` examples as ``count`` micro-batches of ``m``, padded by examples of share 0.

    Micro-batch ``j`` holds ``[:, j]`` of leaves ``[m, count, ...]``, every ``count``-th example: if
    the examples are sharded, each of its parts is where it was. ``total`` is what the shares were
    divided by, the weight of all examples.
    """

    examples: PyTree
    shares: Float[Array, "m count *positions"]
    total: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Layout:
    """What is static of batches: their number, where their examples lie, and how to add."""

    count: int
    mesh: Mesh | None = None
    axes: Any = None
    compensated: bool = False


def leading(data: PyTree) -> int:
    """``n``, the length of the leading axis that all leaves share, else ``ValueError``."""
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(lengths) != 1 or () in lengths or (0,) in lengths:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(data)]
        raise ValueError(
            f"data has leaves of shapes {shapes}: every leaf needs the same leading axis of "
            "examples, at least one"
        )
    return lengths.pop()[0]


def pair_of(data: Any) -> tuple[PyTree, PyTree]:
    """Inputs and targets, else ``ValueError``."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise ValueError("data is no pair: pass (inputs, targets)")
    return data[0], data[1]


def micro_size(n: int, micro_batch: int | None) -> int:
    """The examples in one micro-batch: all ``n`` by default."""
    return n if micro_batch is None else min(n, count("micro_batch", micro_batch))


def one_batch(data: PyTree, m: int) -> PyTree:
    """Shapes and dtypes of a micro-batch of ``m`` examples."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((m, *jnp.shape(x)[1:]), jnp.result_type(x)), data
    )


def split(
    data: PyTree, mask: Array, weight: Array | None, m: int, compensated: bool, params: PyTree
) -> tuple[Batches, Layout]:
    """``data`` in micro-batches of ``m``, and the layout in which to add over them.

    ``mask`` ``[n, *positions]`` says which items count. ``params`` only say whether they are
    sharded themselves.
    """
    shares, total = shares_of(mask, weight)
    n = leading(data)
    number = -(-n // m)
    mesh, axes = _examples_mesh(data, params)
    if mesh is not None and m % (parts := _parts(mesh, axes)):
        raise ValueError(
            f"micro_batch={m} for examples on {parts} devices: choose a multiple of {parts}"
        )
    place = _placed(number * m - n, m, number, mesh, axes)
    padded = jnp.pad(shares, [(0, number * m - n)] + [(0, 0)] * (shares.ndim - 1))
    examples = jax.tree.map(place, data)
    return (
        Batches(examples, padded.reshape(m, number, *shares.shape[1:]), total),
        Layout(number, mesh, axes, compensated),
    )


def add_up(layout: Layout, term: Callable[..., PyTree], at: PyTree, batches: Batches) -> Array:
    """``sum_j term(at, examples_j, shares_j)`` over all micro-batches, raveled to one vector.

    Examples on several devices cost one all-reduce, of the vector.
    """

    def local(at: PyTree, batches: Batches) -> Array:
        return ravel_pytree(_in_turn(layout, term, at, batches))[0]

    if layout.mesh is None:
        return local(at, batches)
    # A partitioner left to itself would reduce every leaf of the gradient on its own.
    everywhere: Any = PartitionSpec()
    sharded: Any = PartitionSpec(layout.axes)
    return jax.shard_map(
        lambda at, batches: jax.lax.psum(local(at, batches), layout.axes),
        mesh=layout.mesh,
        in_specs=(everywhere, Batches(sharded, sharded, everywhere)),
        out_specs=everywhere,
        check_vma=False,
    )(at, batches)


def take(batches: Batches, j: Array | int) -> tuple[PyTree, Array]:
    """Examples ``[m, ...]`` and shares of micro-batch ``j``."""

    def one(leaf: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(leaf, j, axis=1, keepdims=False)

    return jax.tree.map(one, batches.examples), one(batches.shares)


def _in_turn(layout: Layout, term: Callable, at: PyTree, batches: Batches) -> PyTree:
    if layout.count == 1:
        return term(at, *take(batches, 0))

    def step(carry: tuple[PyTree, PyTree], j: Array) -> tuple[tuple[PyTree, PyTree], None]:
        value = term(at, *take(batches, j))
        added = _compensated if layout.compensated else _plain
        sums = jax.tree.map(added, *carry, value)
        outer = jax.tree.structure(value)
        return jax.tree.transpose(outer, jax.tree.structure((0, 0)), sums), None

    shapes = jax.eval_shape(term, at, *take(batches, 0))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(step, (zeros, zeros), jnp.arange(layout.count))[0][0]


def _plain(total: Array, lost: Array, value: Array) -> tuple[Array, Array]:
    return total + value, lost


def _compensated(total: Array, lost: Array, value: Array) -> tuple[Array, Array]:
    """Kahan's summation: ``lost`` is what rounding has added to the total so far."""
    value = value - lost
    after = total + value
    return after, (after - total) - value


def _placed(extra: int, m: int, number: int, mesh: Mesh | None, axes: Any) -> Callable:
    def place(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        if extra:  # copies of an example, whose loss is as finite as that of the example
            leaf = jnp.concatenate([leaf, jnp.repeat(leaf[:1], extra, axis=0)])
        leaf = leaf.reshape(m, number, *leaf.shape[1:])
        if mesh is None:
            return leaf
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(axes)))

    return place


def _examples_mesh(data: PyTree, params: PyTree) -> tuple[Mesh | None, Any]:
    """The mesh and its axes over which examples lie, unless the parameters are sharded as well."""
    if any(
        s is not None and not s.is_fully_replicated for s in map(_sharding, jax.tree.leaves(params))
    ):
        return None, None
    for sharding in map(_sharding, jax.tree.leaves(data)):
        if isinstance(sharding, NamedSharding) and any(sharding.spec[:1]):
            mesh, axes = sharding.mesh, sharding.spec[0]
            if isinstance(mesh, Mesh) and _parts(mesh, axes) > 1:
                return mesh, axes
    return None, None


def _sharding(leaf: Any) -> Any:
    """Where a leaf lies; under ``jit`` that is for the compiler to know."""
    if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array):
        return None
    return leaf.sharding


def _parts(mesh: Mesh, axes: Any) -> int:
    names = axes if isinstance(axes, tuple) else (axes,)
    parts = 1
    for name in names:
        parts *= mesh.shape[name]
    return parts
