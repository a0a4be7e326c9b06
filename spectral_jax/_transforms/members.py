"""Work that is due now and then, in programs that ``vmap`` runs for several members at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool

from spectral_jax.linalg import fast_convolutions

Tree = TypeVar("Tree")


def where_needed(needed: Bool[Array, ""], fresh: Callable[[], Tree], last: Tree) -> Tree:
    """``fresh()`` for the members that need it, ``last`` for the others.

    It is computed only where some member needs it, and then for all of them: ``vmap`` would turn
    ``lax.cond`` with a flag per member into a select, which computes both branches at every step.
    What a member gets does not depend on the others.
    """

    def computed() -> Tree:
        return jax.tree.map(partial(jnp.where, needed), fresh(), last)

    anyone = any_member(needed)
    if isinstance(anyone, jax.core.Tracer):
        return jax.lax.cond(anyone, fast_convolutions(computed), lambda: last)
    return computed() if anyone else last  # eagerly, cond would compile its branches at every call


@custom_vmap
def any_member(flag: Bool[Array, ""]) -> Bool[Array, ""]:
    """Whether the flag holds for any member of all ``vmap``s around it; alone, the flag itself.

    One flag for all members, so that ``lax.cond`` on it stays a branch under ``vmap``, however
    ``jit``, ``scan`` and further ``vmap``s lie between. A flag that depends on weights should be
    False for a member whose weights are not finite, or one diverged member keeps all others busy.
    """
    return flag


@any_member.def_vmap
def _any_of_batch(axis_size: int, batched: list[bool], flag: Any) -> tuple[Array, bool]:
    del axis_size, batched
    return any_member(jnp.any(flag)), False
