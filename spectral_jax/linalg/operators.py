"""Symmetric linear operators: what a Krylov solver needs to know of a matrix, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from spectral_jax.linalg.convolutions import fast_convolutions
from spectral_jax.linalg.precision import WORKING, working


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SymmetricOperator:
    """A real symmetric operator ``x -> apply(data, x)`` on vectors of length ``size``.

    Vectors are float64 if ``data`` holds float64, else float32: solvers compute in no half type.

    The arrays live in ``data`` (a pytree, traced) and the code in ``apply`` (static), so an
    operator passes through ``jit``, ``vmap`` and ``grad`` like any other argument, and a solver
    compiled for one operator serves every operator with the same ``apply`` and shapes. Keep
    ``apply`` a module-level function or a hashable callable: a fresh lambda compiles afresh.

    Symmetry is the caller's promise; nothing here checks it.

    Operators of one size and dtype form a vector space: ``a + b``, ``a - b``, ``2.0 * a``, ``-a``.
    The result holds its parts as data, so its structure is static, its numbers are not, and it
    transforms as the parts do.

    >>> op = SymmetricOperator(lambda d, x: d * x, jnp.arange(3.0), 3)
    >>> (op @ jnp.ones(3)).tolist(), ((op - 2.0 * op) @ jnp.ones(3)).tolist()
    ([0.0, 1.0, 2.0], [0.0, -1.0, -2.0])
    """

    # NumPy's scalars and arrays would otherwise take the operator for an array of objects.
    __array_ufunc__ = None

    apply: Callable[[Any, Array], Array] = dataclasses.field(metadata={"static": True})
    data: Any
    size: int = dataclasses.field(metadata={"static": True})

    @property
    def dtype(self) -> jnp.dtype:
        """The floating dtype of the arrays in ``data``; vectors should have it too."""
        return floating_dtype(self.data)

    def __matmul__(self, x: Array) -> Array:
        """Apply to a vector ``[n]`` or to the columns of a block ``[n, k]``."""
        if x.ndim not in (1, 2) or x.shape[0] != self.size:
            raise ValueError(f"x has shape {x.shape}: pass [n] or [n, k] with n = {self.size}")
        return _product(self.apply, self.data, x)

    def __add__(self, other: "SymmetricOperator") -> "SymmetricOperator":
        if not isinstance(other, SymmetricOperator):
            return NotImplemented
        if self.size != other.size:
            raise ValueError(f"operators of size {self.size} and {other.size}: pass one size")
        if self.dtype != other.dtype:
            raise ValueError(
                f"operators of {self.dtype} and {other.dtype}: build both from arrays of one dtype"
            )
        return SymmetricOperator(_sum_matvec, (self, other), self.size)

    def __sub__(self, other: "SymmetricOperator") -> "SymmetricOperator":
        return self + -other if isinstance(other, SymmetricOperator) else NotImplemented

    def __neg__(self) -> "SymmetricOperator":
        return -1.0 * self

    def __mul__(self, factor: ArrayLike) -> "SymmetricOperator":
        if isinstance(factor, SymmetricOperator):
            return NotImplemented
        return SymmetricOperator(_scaled_matvec, (as_scalar(factor, self), self), self.size)

    __rmul__ = __mul__

    def dense(self) -> Float[Array, "n n"]:
        """The matrix itself; for tests and small problems (``size`` matvecs)."""
        return self @ jnp.eye(self.size, dtype=self.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearOperator:
    """A real ``m x n`` operator: ``matvec(data, x)`` of ``[n]``, ``rmatvec(data, y)`` of ``[m]``.

    The rectangular sibling of ``SymmetricOperator``: arrays in ``data`` (a pytree, traced), code
    static and hashable. That ``rmatvec`` is the transpose is the caller's promise.

    >>> op = LinearOperator(lambda d, x: d * x[:2], lambda d, y: jnp.pad(d * y, (0, 1)),
    ...                     jnp.array([2.0, 3.0]), (2, 3))
    >>> (op @ jnp.ones(3)).tolist(), (op.T @ jnp.ones(2)).tolist()
    ([2.0, 3.0], [2.0, 3.0, 0.0])
    """

    matvec: Callable[[Any, Array], Array] = dataclasses.field(metadata={"static": True})
    rmatvec: Callable[[Any, Array], Array] = dataclasses.field(metadata={"static": True})
    data: Any
    shape: tuple[int, int] = dataclasses.field(metadata={"static": True})

    @property
    def dtype(self) -> jnp.dtype:
        """The floating dtype of the arrays in ``data``; vectors should have it too."""
        return floating_dtype(self.data)

    @property
    def T(self) -> "LinearOperator":
        """The transpose."""
        return LinearOperator(self.rmatvec, self.matvec, self.data, self.shape[::-1])

    def __matmul__(self, x: Array) -> Array:
        """Apply to a vector ``[n]`` or to the columns of a block ``[n, k]``."""
        return _product(self.matvec, self.data, x)


def dense_operator(a: Float[Array, "n n"]) -> SymmetricOperator:
    """Wrap a dense symmetric matrix ``[n, n]``; a product costs ``2 n^2`` flops.

    Products run at JAX's HIGHEST precision: by default float32 is multiplied in bfloat16 on a TPU,
    with two or three digits. That ``a`` is symmetric is the caller's promise.

    Works under ``jit``, ``vmap`` and ``grad``. Raises ``ValueError`` if ``a`` is not square.

    >>> (dense_operator(jnp.array([[2.0, 1.0], [1.0, 2.0]])) @ jnp.ones(2)).tolist()
    [3.0, 3.0]
    """
    a = working(a)
    if a.ndim != 2 or a.shape[0] != a.shape[1]:
        raise ValueError(f"a has shape {a.shape}: pass one square matrix [n, n] (vmap for a batch)")
    return SymmetricOperator(_dense_matvec, a, a.shape[0])


def diagonal_operator(diagonal: Float[Array, " n"]) -> SymmetricOperator:
    """``x -> diagonal * x`` for a vector ``[n]``.

    Works under ``jit``, ``vmap`` and ``grad``. Raises ``ValueError`` if it is not one vector.

    >>> diagonal_operator(jnp.array([1.0, 2.0])).dense().tolist()
    [[1.0, 0.0], [0.0, 2.0]]
    """
    diagonal = working(diagonal, "diagonal")
    if diagonal.ndim != 1:
        raise ValueError(f"diagonal has shape {diagonal.shape}: pass one vector [n]")
    return SymmetricOperator(_diagonal_matvec, diagonal, diagonal.shape[0])


def low_rank_operator(
    vectors: Float[Array, "n r"], values: Float[Array, " r"]
) -> SymmetricOperator:
    """``V diag(values) V^T`` for columns ``[n, r]``, orthonormal or not, and values ``[r]``.

    A product costs ``4 n r`` flops. Works under ``jit``, ``vmap`` and ``grad``. Raises
    ``ValueError`` for shapes that do not fit or dtypes that differ.

    >>> low_rank_operator(jnp.array([[1.0], [2.0]]), jnp.array([3.0])).dense().tolist()
    [[3.0, 6.0], [6.0, 12.0]]
    """
    vectors, values = working(vectors, "vectors"), working(values, "values")
    if vectors.ndim != 2 or values.shape != vectors.shape[1:]:
        raise ValueError(
            f"vectors {vectors.shape} and values {values.shape}: pass columns [n, r] and [r]"
        )
    if vectors.dtype != values.dtype:
        raise ValueError(f"vectors are {vectors.dtype}, values {values.dtype}: pass one dtype")
    return SymmetricOperator(_low_rank_matvec, (vectors, values), vectors.shape[0])


def gram(a: Float[Array, "m n"] | LinearOperator) -> SymmetricOperator:
    """``A^T A`` of a rectangular matrix ``[m, n]`` or operator; ``gram(a.T)`` is ``A A^T``.

    It is never formed. Its eigenvalues are the squared singular values of ``A``; those below
    ``eps * ||A||^2`` are lost in rounding. A product costs ``4 m n`` flops for a matrix (forming
    ``A^T A`` would cost as much as ``n / 2`` products), and one product with ``A`` and one with its
    transpose for an operator.

    Works under ``jit``, ``vmap`` and ``grad``. Raises ``ValueError`` if an array is not a matrix.

    >>> gram(jnp.array([[1.0, 2.0]])).dense().tolist()
    [[1.0, 2.0], [2.0, 4.0]]
    """
    if isinstance(a, LinearOperator):
        return SymmetricOperator(_operator_gram_matvec, a, a.shape[1])
    a = working(a)
    if a.ndim != 2:
        raise ValueError(f"a has shape {a.shape}: pass one matrix [m, n] (vmap for a batch)")
    return SymmetricOperator(_gram_matvec, a, a.shape[1])


def function_gram(forward: Callable[[Any, Array], Any], data: Any, size: int) -> SymmetricOperator:
    """``A^T A`` of a linear function ``x -> forward(data, x)`` from ``[size]`` to any pytree.

    The transpose is taken from ``forward`` by reverse mode, so a Jacobian-vector product gives the
    Gauss-Newton matrix. Linearity is the caller's promise. As with ``SymmetricOperator``, keep
    ``forward`` a module-level function and the arrays in ``data``.

    ``size`` is the length of ``x``. Works under ``jit`` and ``vmap``; under ``grad`` if ``forward``
    can be differentiated twice. Raises ``ValueError``, when applied, for complex results.

    >>> def differences(step, x):
    ...     return (x[1:] - x[:-1]) / step
    >>> function_gram(differences, jnp.float32(1.0), 3).dense().tolist()
    [[1.0, -1.0, 0.0], [-1.0, 2.0, -1.0], [0.0, -1.0, 1.0]]
    """
    return SymmetricOperator(_FunctionGram(forward), data, size)


def check_operator(op: Any) -> None:
    """Raise ``ValueError``, saying what to pass, for a matrix and whatever else is no operator."""
    if not isinstance(op, SymmetricOperator):
        kind = f"an array of shape {op.shape}" if hasattr(op, "ndim") else f"a {type(op).__name__}"
        raise ValueError(
            f"op is {kind}: pass an operator, such as dense_operator(a) for a symmetric matrix a, "
            "or gram(a), which is A^T A, for any other"
        )


def as_scalar(value: ArrayLike, op: SymmetricOperator) -> Float[Array, ""]:
    """``value`` as a traced number in the operator's dtype: a new one compiles nothing."""
    if jnp.ndim(value) != 0:
        raise ValueError(f"a factor or shift of shape {jnp.shape(value)}: pass one number")
    return jnp.asarray(value, op.dtype)


def floating_dtype(data: Any) -> jnp.dtype:
    """The dtype to compute in with the floating arrays of a pytree: float32 or float64.

    JAX's default float if there are none.
    """
    floating = {x.dtype for x in jax.tree.leaves(data) if jnp.issubdtype(x.dtype, jnp.floating)}
    if not floating:
        return jnp.result_type(float)
    return jnp.result_type(*(x if x in WORKING else jnp.float32 for x in floating))


def transposed_product(a: Float[Array, "m n"], x: Float[Array, "m *k"]) -> Float[Array, "n *k"]:
    """``A^T x``, computed as ``x A``.

    On a CPU XLA reads ``A^T`` column by column, across the rows that are contiguous in memory: up
    to 15 times as long for a vector, 4 times for a block of 8. The optimisation barrier keeps XLA
    from turning ``x A`` back into a product with ``A^T``.
    """
    if x.ndim == 2:
        return jax.vmap(transposed_product, in_axes=(None, 1), out_axes=1)(a, x)
    return jax.lax.optimization_barrier(_dense_matvec(x, a))


def _product(apply: Callable[[Any, Array], Array], data: Any, x: Array) -> Array:
    """A product with one vector, or with every column of a block by ``vmap``."""
    product = apply if x.ndim == 1 else jax.vmap(apply, in_axes=(None, 1), out_axes=1)
    # Where a program is traced already. Elsewhere it would be traced anew for every product.
    product = fast_convolutions(product) if isinstance(x, jax.core.Tracer) else product
    return _real(product(data, x))


def _real(image: Any) -> Any:
    """``image`` itself. A solver would drop the imaginary part of a complex product unseen."""
    for leaf in jax.tree.leaves(image):
        if jnp.iscomplexobj(leaf):
            raise ValueError(f"a product is complex ({leaf.dtype}): pass a real operator")
    return image


@dataclasses.dataclass(frozen=True)
class _FunctionGram:
    forward: Callable[[Any, Array], Any]

    def __call__(self, data: Any, x: Array) -> Array:
        image, pull_back = jax.vjp(partial(self.forward, data), x)
        return pull_back(_real(image))[0]


def _sum_matvec(parts: tuple[SymmetricOperator, SymmetricOperator], x: Array) -> Array:
    return parts[0] @ x + parts[1] @ x


def _scaled_matvec(data: tuple[Array, SymmetricOperator], x: Array) -> Array:
    factor, op = data
    return factor * (op @ x)


def _dense_matvec(a: Array, x: Array) -> Array:
    return jnp.matmul(a, x, precision=Precision.HIGHEST)


def _diagonal_matvec(diagonal: Array, x: Array) -> Array:
    return diagonal * x


def _low_rank_matvec(data: tuple[Array, Array], x: Array) -> Array:
    vectors, values = data
    return _dense_matvec(vectors, values * transposed_product(vectors, x))


def _gram_matvec(a: Array, x: Array) -> Array:
    return transposed_product(a, _dense_matvec(a, x))


def _operator_gram_matvec(op: LinearOperator, x: Array) -> Array:
    return op.T @ (op @ x)
