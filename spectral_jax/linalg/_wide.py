"""Arithmetic in float64 inside of programs that have none, under every transformation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

Tree = TypeVar("Tree")


def widened(function: Callable[..., Tree], *arrays: Any) -> Tree:
    """``function(*arrays)`` with JAX's float64 switched on, whatever it is told to have.

    JAX looks at that switch whenever it traces. A transformation of a program that was traced
    before, as by ``vmap`` of a ``jit`` or of a ``scan``, traces it anew when the switch is off
    again, and finds float64 where there is none. So such a program holds the function as one
    sealed operation, and ``vmap`` of it switches float64 on before it looks inside.

    Args:
      function: compiled by ``jax.jit``, so that it stays whole where it is lowered. Its results
        are not float64, unless JAX has that anyway.
    """
    outside = jnp.result_type(float) != jnp.float64
    if outside and any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(arrays)):
        return _sealed(function)(*arrays)
    with jax.enable_x64(True):
        return function(*arrays)


def _sealed(function: Callable[..., Tree]) -> Callable[..., Tree]:
    @custom_vmap
    def call(*arrays):
        with jax.enable_x64(True):
            return function(*arrays)

    @call.def_vmap
    def mapped(size, batched, *arrays):
        axes = jax.tree.map(lambda each: 0 if each else None, batched)
        # Sealed again: another vmap may follow.
        found = _sealed(jax.vmap(function, axes, axis_size=size))(*arrays)
        return found, jax.tree.map(lambda _: True, found)

    return call
