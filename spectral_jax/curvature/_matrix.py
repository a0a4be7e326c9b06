"""The symmetric matrix that a complete spectrum is computed from, within a memory budget.

Of the rows ``J [rows, p]``, either all inner products ``J J^T``, or ``J^T J`` itself: their
eigenvalues other than 0 are the same. It is accumulated in float64 wherever that can be had.
"""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from math import isqrt, prod
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from spectral_jax._choices import check_choice
from spectral_jax.curvature._gram import Part, block, parts_of
from spectral_jax.curvature._rows import Parts, Rows
from spectral_jax.linalg.precision import unit_of
from spectral_jax.linalg.subspace import mm

Route: TypeAlias = Literal["kernel", "parameter"]

# An eigensolver holds the matrix, a scaled copy of it and its own work.
COPIES = 3
# In 4 x 4 blocks the lower triangle is 10/16 of the products; for few rows it does not matter.
BLOCKS, FEW_ROWS = 4, 512


@dataclasses.dataclass(frozen=True)
class Problem:
    """The rows of all examples, the share of each item ``[n, *positions]``, and bytes to use."""

    rows: Rows
    params: Parts
    data: tuple[PyTree, PyTree]
    shares: Array
    memory: int

    @property
    def examples(self) -> int:
        """How many there are."""
        return len(self.shares)

    @property
    def dtype(self) -> jnp.dtype:
        """In which rows are combined, and results returned."""
        return self.rows.subset.dtype

    @property
    def of_each(self) -> int:
        """The number of rows of one example."""
        outputs = jax.eval_shape(self.rows.outputs, *self.params, self.data[0])
        return prod(outputs.shape[1:-1]) * self.rows.columns(outputs.shape[-1])

    @property
    def sizes(self) -> dict[Route, int]:
        """The size of the matrix by either route."""
        return {"kernel": self.examples * self.of_each, "parameter": self.rows.subset.size}

    def wide(self) -> AbstractContextManager:
        """Where arrays may be float64: anywhere, but in a traced program that has none."""
        leaves = jax.tree.leaves((self.params, self.data, self.shares))
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        return nullcontext() if traced else jax.enable_x64(True)

    def piece(self, start: int, size: int) -> tuple[Any, Array]:
        """Some examples and their shares; those beyond the last have a share of 0."""
        missing = max(0, start + size - self.examples)

        def cut(x: Array) -> Array:
            copies = jnp.broadcast_to(x[:1], (missing, *x.shape[1:]))
            return jnp.concatenate([x[start : start + size], copies])

        shares = jnp.pad(self.shares, [(0, missing)] + [(0, 0)] * (self.shares.ndim - 1))
        return jax.tree.map(cut, self.data), shares[start : start + size]

    def pieces(self, of_each: int, least: int = 1) -> list[tuple[Any, Array]]:
        """Examples and shares in pieces of one size, of which four fit into memory.

        An example takes ``of_each`` bytes.
        """
        n = self.examples
        number = max(least, -(-n * of_each * 4 // self.memory))
        size = max(1, -(-n // number))
        return [self.piece(start, size) for start in range(0, n, size)]


def route_of(problem: Problem, route: str, *, matrices: int = 1) -> Route:
    """The route, of the smaller matrix for ``auto``; ``ValueError`` for one beyond the memory."""
    check_choice(("auto", "kernel", "parameter"), route=route)
    sizes = problem.sizes
    chosen: Route = "kernel" if route == "kernel" else "parameter"
    if route == "auto":
        chosen = "kernel" if sizes["kernel"] <= sizes["parameter"] else "parameter"
    # Several are held twice while they are compared with each other.
    copies = COPIES + 2 * (matrices - 1)
    needed = {name: copies * 8 * size**2 for name, size in sizes.items()}
    if needed[chosen] > problem.memory:
        raise ValueError(_beyond(problem, chosen, needed, matrices == 1))
    return chosen


def _beyond(problem: Problem, route: Route, needed: dict[Route, int], choice: bool) -> str:
    other: Route = "parameter" if route == "kernel" else "kernel"
    ways = [f"memory={needed[route]}"]
    if choice and needed[other] <= problem.memory:
        ways.append(f"route={other!r}, which needs {needed[other]}")
    size = problem.sizes[route]
    fewer = isqrt(problem.memory * size**2 // needed[route]) // problem.of_each
    if route == "kernel" and fewer:
        ways.append(f"at most {fewer} examples")
    return (
        f"memory={problem.memory} bytes is too little for route={route!r}, which needs "
        f"{needed[route]} for a matrix of {size} rows: pass {' or '.join(ways)}. A few of its "
        "eigenvalues, or its density, take a few vectors: eigsh or spectral_density of ggn(...)"
    )


def matrix_of(problem: Problem, route: Route) -> Float[Array, "size size"]:
    """``J J^T`` or ``J^T J``, to be used where arrays are as `Problem.wide` has them."""
    if route == "parameter":
        return _second_moment(problem)
    return grams_of(problem, (0,) * len(problem.rows.subset.chosen))[0]


def grams_of(problem: Problem, groups: tuple[int, ...]) -> Float[Array, "groups rows rows"]:
    """``J_g J_g^T`` of the columns of each group of leaves; ``groups`` numbers that of each."""

    def parts(piece: tuple[Any, Array]) -> tuple[Part, ...]:
        return parts_of(problem.rows, groups, problem.params, *piece)

    rows = problem.sizes["kernel"]
    pieces = problem.pieces(bytes_of_example(problem), BLOCKS if rows > FEW_ROWS else 1)
    held = len(pieces) <= 2 * BLOCKS
    known = list(map(parts, pieces)) if held else []
    lower = {}
    for i, piece in enumerate(pieces):
        left = known[i] if held else parts(piece)
        for j in range(i + 1):
            right = left if i == j else known[j] if held else parts(pieces[j])
            with problem.wide():
                lower[i, j] = block(left, right, max(groups) + 1, jnp.result_type(float))
    with problem.wide():
        return _from_lower(lower, len(pieces))[:, :rows, :rows]


def bytes_of_example(problem: Problem) -> int:
    """What flows in and back for an example, as it is and once more as factors in float64."""
    groups = (0,) * len(problem.rows.subset.chosen)
    piece = problem.piece(0, 1)
    one = jax.eval_shape(partial(parts_of, problem.rows, groups), problem.params, *piece)
    return sum(leaf.size * (leaf.dtype.itemsize + 8) for leaf in jax.tree.leaves(one))


def _from_lower(lower: dict[tuple[int, int], Array], number: int) -> Array:
    def at(i: int, j: int) -> Array:
        return lower[i, j] if j <= i else jnp.swapaxes(lower[j, i], 1, 2)

    strips = [jnp.concatenate([at(i, j) for j in range(number)], axis=2) for i in range(number)]
    return jnp.concatenate(strips, axis=1)


def _second_moment(problem: Problem) -> Float[Array, "p p"]:
    size = problem.sizes["parameter"]
    with problem.wide():
        total = jnp.zeros((size, size))
    for data, shares in problem.pieces(16 * problem.of_each * size):
        rows = _gradients(problem.rows, problem.params, data, shares)
        with problem.wide():
            total = total + _gram_of_columns(rows, total.dtype)
    return total


@partial(jax.jit, static_argnames="rows")
def _gradients(rows: Rows, params: Parts, data: Any, shares: Array) -> Float[Array, "m k p"]:
    return rows.gradients(params, data, shares)


@partial(jax.jit, static_argnames="dtype")
def _gram_of_columns(rows: Float[Array, "m k p"], dtype: Any) -> Float[Array, "p p"]:
    unit = unit_of(rows)
    rows = (rows / unit).astype(dtype).reshape(-1, rows.shape[-1])
    return unit.astype(dtype) ** 2 * mm(rows.T, rows)
