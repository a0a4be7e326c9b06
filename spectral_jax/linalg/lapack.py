"""Stacks of matrices through LAPACK on a CPU, without the deadlock of jaxlib's thread pool."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import jaxlib
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

# Up to here jaxlib splits a batched LAPACK call over its thread pool and blocks the calling thread,
# itself one of the pool, until all parts are done (cf. jax#36927). As soon as every thread is such
# a caller, no part is ever run. Later releases (watched to 0.12.0.1) do not split.
LAST_JAXLIB_TO_SPLIT = (0, 11, 0)
# With more threads than this it takes more calls at once than a program usually has, and splitting
# the batch gains more than it risks.
FEW_THREADS = 4

Result = TypeVar("Result")


def each(
    function: Callable[[Array], Result], stack: Float[Array, "b m n"], *, split: bool | None = None
) -> Result:
    """``function(stack)``, which must treat matrices apart; on a CPU one after the other.

    A LAPACK call for a single matrix does not touch the thread pool; on two threads it is as fast.
    With ``split``, by default where that `splitting_pays`, and on other backends, it is one batched
    call. A ``vmap`` would batch the calls again: join the batch before (``custom_vmap``).
    Works under ``jit``; as differentiable as ``function``.
    """
    if split is None:
        split = splitting_pays()
    if split or len(stack) == 1:
        return function(stack)
    in_turn = partial(jax.lax.map, function)
    return jax.lax.platform_dependent(stack, cpu=in_turn, default=function)


def joining_batches(function: Callable[[Array], Result]) -> Callable[[Array], Result]:
    """``function`` of ``[..., m, n]``, to which ``vmap`` adds a leading axis.

    By itself ``vmap`` would batch what `each` takes in turn, and run both branches of a ``cond``.
    """
    joined = custom_vmap(function)

    @joined.def_vmap
    def joined_batch(size, batched, a):
        result = joining_batches(function)(a)
        return result, jax.tree.map(lambda _: True, result)

    return joined


def each_leading(function: Callable[[Array], Result], a: Float[Array, "*batch m n"]) -> Result:
    """`each` over all the leading axes."""
    results = each(function, a.reshape(-1, *a.shape[-2:]))
    return jax.tree.map(lambda x: x.reshape(*a.shape[:-2], *x.shape[1:]), results)


def in_turn(function: Callable[..., Result]) -> Callable[..., Result]:
    """``function`` of pytrees, which ``vmap`` on a CPU calls for one after the other, like `each`.

    For programs of several LAPACK calls and much else. Not differentiable.
    """
    wrapped = custom_vmap(function)

    @wrapped.def_vmap
    def one_after_the_other(size, batched, *arguments):
        leaves, structure = jax.tree.flatten(arguments)
        flags = jax.tree.leaves(batched)
        mapped = [leaf for leaf, flag in zip(leaves, flags, strict=True) if flag]

        def single(call, own):
            own = iter(own)
            parts = [next(own) if flag else leaf for leaf, flag in zip(leaves, flags, strict=True)]
            return call(*jax.tree.unflatten(structure, parts))

        together = jax.vmap(partial(single, function))
        if splitting_pays():
            results = together(mapped)
        else:
            singly = partial(jax.lax.map, partial(single, wrapped))
            results = jax.lax.platform_dependent(mapped, cpu=singly, default=together)
        return results, jax.tree.map(lambda _: True, results)

    return wrapped


def after(known: Float[Array, ""], x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``x``, not before ``known`` is: one batched call after the other in a program of several.

    A dependence of data, at the cost of reading ``known``: XLA drops an ``optimization_barrier``
    before it schedules.
    """
    never = jnp.isnan(known) & jnp.isinf(known)
    return jnp.where(never, 0, x)


def splitting_pays() -> bool:
    """Whether jaxlib spreads a batched call over threads, and over so many that not all wait."""
    return splits_batches() and cpu_threads() > FEW_THREADS


def splits_batches() -> bool:
    """Whether this jaxlib spreads a batched call over threads, and blocks one of them for it."""
    return tuple(int(part) for part in jaxlib.__version__.split(".")[:3]) <= LAST_JAXLIB_TO_SPLIT


def cpu_threads() -> int:
    """How many threads XLA's pool has on this CPU."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
