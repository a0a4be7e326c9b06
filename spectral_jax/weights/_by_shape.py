"""One function for matrices of many shapes: one batch, and so one program, per shape."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from spectral_jax.linalg.lapack import after
from spectral_jax.weights._matrices import WeightMatrix, require_arrays

# Entries of a batch at most. Stacking copies the matrices; 64 MB in float32 is little beside a
# large network.
ENTRIES = 2**24

Name = TypeVar("Name", bound=Hashable)
Result = TypeVar("Result")


def map_by_shape(
    matrices: Mapping[Name, WeightMatrix | PyTree[Array]], function: Callable[[Any], Result]
) -> dict[Name, Result]:
    """``{name: function(matrix)}``, with matrices of equal shape and dtype in one ``vmap``.

    A network has many layers and few shapes, and XLA compiles ``function`` once for every shape.

    Args:
      matrices: by name, as `matrices` gives them; or a pytree of arrays for each name, such as a
        matrix and a key.
      function: of one of these, without its name; a pytree of arrays. It must hold under ``vmap``.

    A batch has at most 2^24 entries, unless a single matrix has more. Batches go one after the
    other: LAPACK calls that run at once can wait for each other for ever on the threads of a CPU
    (docs/method-selection.md), so a function that maps over a network should do it by this one.
    Works under ``jit``, ``vmap`` and ``grad`` as far as ``function`` does.

    Raises:
        ValueError: ``matrices`` has no names, or ``function`` gives no array.

    >>> pair = {"a": jnp.ones((2, 3)), "b": 2 * jnp.ones((2, 3)), "c": jnp.ones((1, 4))}
    >>> {name: float(norm) for name, norm in map_by_shape(pair, jnp.sum).items()}
    {'a': 6.0, 'b': 12.0, 'c': 4.0}
    """
    if not isinstance(matrices, Mapping):
        kind = type(matrices).__name__
        raise ValueError(f"matrices is a {kind}: pass a dict, as weights.matrices(params) gives it")
    given = {name: w.matrix if isinstance(w, WeightMatrix) else w for name, w in matrices.items()}
    for name, arrays in given.items():
        require_arrays({str(name): arrays}, "matrices")
    results: dict[Name, Result] = {}
    last: Any = None
    for names in _batches(given):
        stack = jax.tree.map(lambda *same: jnp.stack(same), *(given[name] for name in names))
        if last is not None:
            stack = _not_before(last, stack)
        # Without jit, this keeps the next stack out of memory until the results are there.
        last = jax.block_until_ready(jax.vmap(function)(stack))
        results |= zip(names, _unstacked(last), strict=True)
    return {name: results[name] for name in given}


def _batches(given: Mapping[Name, PyTree[Array]]) -> Iterator[Sequence[Name]]:
    """Names of equal shapes, as many as make a batch."""
    alike: dict[Any, list[Name]] = {}
    for name, arrays in given.items():
        leaves, structure = jax.tree.flatten(arrays)
        alike.setdefault((structure, *map(jax.typeof, leaves)), []).append(name)
    for (_, *types), names in alike.items():
        together = max(1, ENTRIES // max(1, sum(prod(each.shape) for each in types)))
        yield from (names[start : start + together] for start in range(0, len(names), together))


def _not_before(found: PyTree[Array], stack: PyTree[Array]) -> PyTree[Array]:
    """The stack, which XLA may read only when all of ``found`` is computed."""
    known = _one_number(found)
    return jax.tree.map(lambda x: after(known, x) if _is_number(x) else x, stack)


def _one_number(found: PyTree[Array]) -> Float[Array, ""]:
    """A number that depends on every array: waiting for it is waiting for all of them."""
    firsts = [x.ravel()[0] for x in jax.tree.leaves(found) if x.size and _is_number(x)]
    return sum((jnp.abs(x).astype(jnp.float32) for x in firsts), jnp.zeros((), jnp.float32))


def _is_number(x: Array) -> bool:
    return not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _unstacked(found: Result) -> Iterator[Result]:
    leaves, structure = jax.tree.flatten(found)
    if not leaves:
        raise ValueError(f"function gives {found!r}, in which there is no array: return one")
    return (jax.tree.unflatten(structure, row) for row in zip(*leaves, strict=True))
