"""Symmetric linear operators: what a Krylov solver needs to know of a matrix, and nothing else."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SymmetricOperator:
    """A real symmetric operator ``x -> apply(data, x)`` on vectors of length ``size``.

    The arrays live in ``data`` (a pytree, traced) and the code in ``apply`` (static), so an
    operator passes through ``jit``, ``vmap`` and ``grad`` like any other argument, and a solver
    compiled for one operator serves every operator with the same ``apply`` and shapes. Keep
    ``apply`` a module-level function or a hashable callable: a fresh lambda compiles afresh.

    Symmetry is the caller's promise; nothing here checks it.

    >>> op = SymmetricOperator(lambda d, x: d * x, jnp.arange(3.0), 3)
    >>> (op @ jnp.ones(3)).tolist()
    [0.0, 1.0, 2.0]
    """

    apply: Callable[[Any, Array], Array] = dataclasses.field(metadata={"static": True})
    data: Any
    size: int = dataclasses.field(metadata={"static": True})

    @property
    def dtype(self) -> jnp.dtype:
        """The floating dtype of the arrays in ``data``; vectors should have it too."""
        floating = [x for x in jax.tree.leaves(self.data) if jnp.issubdtype(x.dtype, jnp.floating)]
        return jnp.result_type(*floating) if floating else jnp.result_type(float)

    def __matmul__(self, x: Array) -> Array:
        """Apply to a vector ``[n]`` or to the columns of a block ``[n, k]``."""
        if x.ndim == 1:
            return self.apply(self.data, x)
        return jax.vmap(self.apply, in_axes=(None, 1), out_axes=1)(self.data, x)

    def dense(self) -> Float[Array, "n n"]:
        """The matrix itself; for tests and small problems (``size`` matvecs)."""
        return self @ jnp.eye(self.size, dtype=self.dtype)


def dense_operator(a: Float[Array, "n n"]) -> SymmetricOperator:
    """Wrap a dense symmetric matrix ``[n, n]``; products run at HIGHEST precision.

    Works under ``jit``, ``vmap`` and ``grad``. Raises ``ValueError`` if ``a`` is not square.
    """
    if a.ndim != 2 or a.shape[0] != a.shape[1]:
        raise ValueError(f"a has shape {a.shape}: pass one square matrix [n, n] (vmap for a batch)")
    return SymmetricOperator(_dense_matvec, a, a.shape[0])


def _dense_matvec(a: Array, x: Array) -> Array:
    return jnp.matmul(a, x, precision=Precision.HIGHEST)
