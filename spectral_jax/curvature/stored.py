"""What a product does not need to compute again."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from spectral_jax.linalg.operators import SymmetricOperator, check_operator


def stored(op: SymmetricOperator) -> SymmetricOperator:
    """The same operator, with all that does not depend on the vector computed once and kept.

    Of a curvature matrix those are the activations of all examples, micro-batches or not, and what
    is sent back through the network: tens of numbers for each of a layer's outputs. A product then
    costs two gradients for `hessian` and 1.2 for `ggn`, which pays from the third product on, as in
    a solver, if the memory is there.

    Works under ``jit``, ``vmap`` and ``grad``, and compiles once for operators of the same shapes.
    Raises ``ValueError`` for what is no operator.

    >>> from spectral_jax.linalg import gram
    >>> (stored(gram(jnp.array([[1.0, 2.0]]))) @ jnp.ones(2)).tolist()
    [3.0, 6.0]
    """
    check_operator(op)
    return SymmetricOperator(_apply, _linear_part(op), op.size)


@jax.jit
def _linear_part(op: SymmetricOperator) -> Callable[[Array], Array]:
    """A product as a function whose constants are a pytree: those of one program have one tree."""
    return jax.linearize(lambda x: op @ x, jnp.zeros(op.size, op.dtype))[1]


@jax.jit
def _apply(linear: Callable[[Array], Array], x: Array) -> Array:
    return linear(x)
