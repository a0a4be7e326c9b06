"""Operators to and from SciPy, and on pytrees of parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from spectral_jax.linalg.operators import SymmetricOperator
from spectral_jax.linalg.precision import working

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


def from_scipy(matrix: Any) -> SymmetricOperator:
    """Wrap a real symmetric SciPy ``LinearOperator``, sparse matrix or NumPy array ``[n, n]``.

    Products run on the host through ``jax.pure_callback`` and each one waits for it: right for
    trying a solver on an existing operator, not for an accelerator. A block is one ``matmat``. Wrap
    once and keep the result: the operator is static, so wrapping again compiles again, and the
    compiled program keeps it alive. Double precision needs ``jax_enable_x64`` set globally.

    Works under ``jit`` and ``vmap`` over the vectors; no ``grad`` (JAX raises ``ValueError``).
    Raises ``ValueError`` if the operator is not square and real, and when run if JAX would round
    its vectors.

    >>> import numpy as np
    >>> (from_scipy(np.diag([1.0, 2.0])) @ jnp.ones(2)).tolist()
    [1.0, 2.0]
    """
    # Imported only here: SciPy's sparse package takes longer to import than the whole library.
    from scipy.sparse.linalg import aslinearoperator

    linear_operator = aslinearoperator(matrix)
    rows, columns = linear_operator.shape
    if rows != columns:
        raise ValueError(f"matrix has shape {linear_operator.shape}: pass a square [n, n]")
    if np.issubdtype(linear_operator.dtype, np.complexfloating):
        raise ValueError(f"matrix is {linear_operator.dtype}: pass a real symmetric operator")
    inexact = np.issubdtype(linear_operator.dtype, np.floating)
    dtype = linear_operator.dtype if inexact else float
    return SymmetricOperator(_HostProduct(linear_operator), _carrier(dtype), rows)


def to_scipy(op: SymmetricOperator) -> "LinearOperator":
    """``op`` as a SciPy ``LinearOperator``, for ``eigsh``, ``lobpcg``, ``cg`` and the rest.

    Products are compiled once per block width and give NumPy arrays in the operator's dtype;
    without ``jax_enable_x64`` that is single precision at best. Not for use under ``jit``: SciPy
    runs on the host.

    >>> from scipy.sparse.linalg import eigsh
    >>> from spectral_jax.linalg.operators import diagonal_operator
    >>> op = to_scipy(diagonal_operator(jnp.arange(1.0, 9.0)))
    >>> eigsh(op, 1, return_eigenvectors=False).round(4).tolist()
    [8.0]
    """
    from scipy.sparse.linalg import LinearOperator

    def product(x: np.ndarray) -> np.ndarray:
        return np.array(_product(op, x.astype(op.dtype)))

    return LinearOperator(
        (op.size, op.size),
        matvec=product,
        rmatvec=product,
        matmat=product,
        rmatmat=product,
        dtype=op.dtype,
    )


def pytree_operator(
    function: Callable[[Any, Any], Any], data: Any, example: Any
) -> tuple[SymmetricOperator, Callable[[Array], Any]]:
    """A symmetric linear ``tree -> function(data, tree)`` as an operator, and its ``unravel``.

    Vectors are ``jax.flatten_util.ravel_pytree`` of trees like ``example`` (only its structure,
    shapes and dtypes count), of length ``n`` = all its entries; ``unravel`` turns ``[n]`` back into
    a tree. As with ``SymmetricOperator``, keep ``function`` a module-level function and pass arrays
    in ``data``: new parameters then compile nothing. Trees keep their dtypes; in a half type they
    have no more digits than that, though vectors are float32.

    ``function(data, tree)`` must be linear and symmetric in ``tree``, such as a Hessian-vector
    product at the parameters ``data``; that is the caller's promise.

    Works under ``jit`` and ``vmap``, and ``grad`` with respect to ``data`` where ``function`` does.
    Raises ``ValueError`` if ``example`` has no entries, or not the dtype of ``data``.

    >>> def hessian_vector(params, v):
    ...     loss = lambda p: jnp.sum(p["w"] ** 2) * p["b"]
    ...     return jax.jvp(jax.grad(loss), (params,), (v,))[1]
    >>> params = {"b": jnp.array(3.0), "w": jnp.ones(2)}
    >>> op, unravel = pytree_operator(hessian_vector, params, params)
    >>> op.dense().tolist()
    [[0.0, 2.0, 2.0], [2.0, 6.0, 0.0], [2.0, 0.0, 6.0]]
    >>> unravel(jnp.arange(3.0))["w"].tolist()
    [1.0, 2.0]
    """
    flat, unravel = ravel_pytree(example)
    if flat.size == 0:
        raise ValueError("example has no entries: pass a tree like those function takes")
    carrier = _carrier(working(flat, "example").dtype)
    op = SymmetricOperator(_TreeProduct(function, unravel, flat.dtype), (carrier, data), flat.size)
    if op.dtype != carrier.dtype:
        raise ValueError(f"example is {flat.dtype} and data {op.dtype}: cast one to the other")
    return op, unravel


@dataclasses.dataclass(frozen=True)
class _HostProduct:
    linear_operator: Any

    def __call__(self, _: Array, x: Array) -> Array:
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        on_host = partial(self._on_host, dtype=x.dtype)
        return jax.pure_callback(on_host, shape, x, vmap_method="broadcast_all")

    def _on_host(self, x: Array, *, dtype: jnp.dtype) -> np.ndarray:
        # JAX runs callbacks in a thread of their own. `with jax.enable_x64(True)` holds for one
        # thread only, so that a float64 vector arrives here rounded to float32, without a warning.
        if x.dtype != dtype:
            fix = "jax.config.update('jax_enable_x64', True), for every thread"
            raise ValueError(f"JAX rounded {dtype} to {x.dtype} on its way to SciPy: set {fix}")
        rows = np.asarray(x).reshape(-1, x.shape[-1])
        return self.linear_operator.matmat(rows.T).T.reshape(x.shape).astype(dtype)


@dataclasses.dataclass(frozen=True)
class _TreeProduct:
    function: Callable[[Any, Any], Any]
    unravel: Callable[[Array], Any]
    dtype: jnp.dtype

    def __call__(self, data: tuple[Array, Any], x: Array) -> Array:
        image = ravel_pytree(self.function(data[1], self.unravel(x.astype(self.dtype))))[0]
        return image.astype(x.dtype)


def _carrier(dtype: Any) -> Array:
    """An empty array: it gives an operator without floating data the dtype of its vectors."""
    return jnp.zeros(0, jax.dtypes.canonicalize_dtype(dtype))


@jax.jit
def _product(op: SymmetricOperator, x: Array) -> Array:
    return op @ x
