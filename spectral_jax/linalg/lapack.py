"""Stacks of matrices through LAPACK on a CPU, without the deadlock of jaxlib's thread pool.

The deadlock, which programs hang and what each function here does about it:
docs/method-selection.md, "Several LAPACK calls in one program, on a CPU".
"""

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

# Up to this release jaxlib splits a batched LAPACK call over its thread pool and blocks the calling
# thread, itself one of the pool, until all parts are done (related: jax#36927). When every thread
# of the pool is such a caller, none is left to run a part: the program hangs. Later releases
# (tested up to 0.12.0.1) do not split.
LAST_JAXLIB_TO_SPLIT = (0, 11, 0)
# To block more threads than this takes more simultaneous batched calls than a program usually has,
# and the gain from splitting a batch over them outweighs the risk.
FEW_THREADS = 4

Result = TypeVar("Result")


def each(
    function: Callable[[Array], Result], stack: Float[Array, "b m n"], *, split: bool | None = None
) -> Result:
    """``function(stack)`` of a stack ``[b, m, n]``; on a CPU for one matrix after the other.

    A LAPACK call for a single matrix does not touch the thread pool; on two threads a loop of such
    calls is as fast as the batched call. On a GPU or TPU, and with ``split``, it is one batched
    call; ``split=None`` decides by `splitting_pays`.

    ``function`` must treat the matrices independently. Works under ``jit``; as differentiable as
    ``function``. Not for use under ``vmap``, which would turn the loop over single matrices into
    batched calls again: wrap the caller in `joining_batches`.
    """
    if split is None:
        split = splitting_pays()
    if split or len(stack) == 1:
        return function(stack)
    in_turn = partial(jax.lax.map, function)
    return jax.lax.platform_dependent(stack, cpu=in_turn, default=function)


def joining_batches(function: Callable[[Array], Result]) -> Callable[[Array], Result]:
    """``function`` of ``[..., m, n]``, called with one more leading axis under ``vmap``.

    By default ``vmap`` rewrites the inside of ``function``: it would batch the single calls of
    `each`, and run both branches of every ``cond``.
    """
    joined = custom_vmap(function)

    @joined.def_vmap
    def joined_batch(size, batched, a):
        result = joining_batches(function)(a)
        return result, jax.tree.map(lambda _: True, result)

    return joined


def each_leading(function: Callable[[Array], Result], a: Float[Array, "*batch m n"]) -> Result:
    """`each` over all leading axes of ``[..., m, n]``, flattened to one and restored after."""
    results = each(function, a.reshape(-1, *a.shape[-2:]))
    return jax.tree.map(lambda x: x.reshape(*a.shape[:-2], *x.shape[1:]), results)


def in_turn(function: Callable[..., Result]) -> Callable[..., Result]:
    """``function`` of pytrees, which ``vmap`` on a CPU runs for one example after the other.

    For functions that make several LAPACK calls between other work, where `each` around every call
    would be clumsy. Not differentiable: wrap it in a derivative rule of your own.
    """
    wrapped = custom_vmap(function)

    @wrapped.def_vmap
    def one_after_the_other(size, batched, *arguments):
        leaves, structure = jax.tree.flatten(arguments)
        flags = jax.tree.leaves(batched)
        # `lax.map` slices all it is given: only the arguments that have the batch axis.
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
    """``x`` itself, made to depend on ``known``, so that XLA computes ``known`` first.

    Two batched LAPACK calls that do not need each other may run at once, and enough of them
    deadlock the thread pool. Feed the second with ``after(result_of_first[0], x)``, any scalar of
    the first result, and it waits. It costs a comparison and a ``where`` over ``x``;
    ``jax.lax.optimization_barrier`` does not do it, because XLA removes it before it decides in
    which order things run.
    """
    # Never true, but the compiler cannot know that and so must wait for `known`.
    never = jnp.isnan(known) & jnp.isinf(known)
    return jnp.where(never, jnp.zeros((), x.dtype), x)


def splitting_pays() -> bool:
    """Whether jaxlib splits a batched call over threads, and has enough of them not to hang."""
    return splits_batches() and cpu_threads() > FEW_THREADS


def splits_batches() -> bool:
    """Whether this jaxlib splits a batched LAPACK call over its threads, blocking the caller's."""
    return tuple(int(part) for part in jaxlib.__version__.split(".")[:3]) <= LAST_JAXLIB_TO_SPLIT


def cpu_threads() -> int:
    """How many threads XLA's pool has on this CPU: ``NPROC``, or one for each core it may use."""
    asked = os.environ.get("NPROC", "")
    if asked.isdecimal():
        return max(1, int(asked))
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
