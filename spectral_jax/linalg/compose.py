"""New operators from an operator: shifted, folded, deflated, projected.

What a product sends between devices when the data is sharded: the table at the end of
docs/which-solver-when.md.
"""

from __future__ import annotations

from jax.typing import ArrayLike
from jaxtyping import Array, Float

from spectral_jax.linalg.operators import (
    SymmetricOperator,
    as_scalar,
    low_rank_operator,
)
from spectral_jax.linalg.precision import working
from spectral_jax.linalg.subspace import outside


def shift(op: SymmetricOperator, mu: ArrayLike) -> SymmetricOperator:
    """``A + mu I``: every eigenvalue moves by ``mu``, no eigenvector does.

    Works under ``jit``, ``vmap`` and ``grad``, with respect to ``mu`` too. Raises ``ValueError`` if
    ``mu`` is not one number.

    >>> import jax.numpy as jnp
    >>> from spectral_jax.linalg.operators import diagonal_operator
    >>> shift(diagonal_operator(jnp.array([1.0, 2.0])), 10.0).dense().tolist()
    [[11.0, 0.0], [0.0, 12.0]]
    """
    return SymmetricOperator(_shifted_matvec, (as_scalar(mu, op), op), op.size)


def fold(op: SymmetricOperator, sigma: ArrayLike) -> SymmetricOperator:
    """``(A - sigma I)^2``: its smallest eigenpairs are those of ``A`` nearest ``sigma``.

    For eigenvalues in the interior of a spectrum where ``A - sigma I`` cannot be factorised. A
    product costs two with ``A``, and as gaps between eigenvalues are squared, solvers need many.
    The eigenvalue of ``A`` itself is ``v^T A v``. Two eigenvalues at the same distance on either
    side of ``sigma`` become one that repeats, with any mixture of their vectors as an answer:
    choose ``sigma`` off the middle.

    Works under ``jit``, ``vmap`` and ``grad``, with respect to ``sigma`` too. Raises ``ValueError``
    if ``sigma`` is not one number.
    Source: Wang & Zunger 1994 (folded spectrum method).

    >>> import jax.numpy as jnp
    >>> from spectral_jax.linalg.operators import diagonal_operator
    >>> fold(diagonal_operator(jnp.array([1.0, 2.0, 5.0])), 3.0).dense().diagonal().tolist()
    [4.0, 1.0, 4.0]
    """
    return SymmetricOperator(_folded_matvec, shift(op, -as_scalar(sigma, op)), op.size)


def deflate(
    op: SymmetricOperator, vectors: Float[Array, "n d"], values: Float[Array, " d"]
) -> SymmetricOperator:
    """``A - V diag(values) V^T``: known eigenpairs become eigenvalues 0 (Hotelling's deflation).

    ``vectors`` are orthonormal columns. With ``values`` other than their eigenvalues these move to
    ``lambda - values`` instead. An error in a pair remains in the result as a perturbation of that
    size; `project` removes the directions exactly, whether or not they are eigenvectors.

    Works under ``jit``, ``vmap`` and ``grad``. Raises ``ValueError`` for shapes or dtypes that do
    not fit ``op``. Source: Saad 2011, Numerical Methods for Large Eigenvalue Problems, section 4.2.

    >>> import jax.numpy as jnp
    >>> from spectral_jax.linalg.operators import diagonal_operator
    >>> op = diagonal_operator(jnp.array([1.0, 5.0]))
    >>> deflate(op, jnp.array([[0.0], [1.0]]), jnp.array([5.0])).dense().tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    vectors = columns(op, vectors)
    return op - low_rank_operator(vectors, values)


def project(op: SymmetricOperator, vectors: Float[Array, "n d"]) -> SymmetricOperator:
    """``(I - V V^T) A (I - V V^T)`` for orthonormal columns: ``A`` on what ``V`` leaves.

    The columns become eigenvectors of value 0, whether or not they were eigenvectors of ``A``.
    Solvers that take ``deflate=`` keep such a 0 out of their search as well.

    Works under ``jit``, ``vmap`` and ``grad``. Raises ``ValueError`` for shapes or dtypes that do
    not fit ``op``; orthonormality is the caller's promise.

    >>> import jax.numpy as jnp
    >>> from spectral_jax.linalg.operators import dense_operator
    >>> op = dense_operator(jnp.array([[1.0, 2.0], [2.0, 5.0]]))
    >>> project(op, jnp.array([[0.0], [1.0]])).dense().tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    vectors = columns(op, vectors)
    return SymmetricOperator(_projected_matvec, (vectors, op), op.size)


def columns(op: SymmetricOperator, vectors: Array, name: str = "vectors") -> Array:
    """``vectors``, which must be columns ``[n, d]`` of the size and dtype of ``op``.

    Else ``ValueError``, under the ``name`` of the argument.
    """
    vectors = working(vectors, name)
    if vectors.ndim != 2 or vectors.shape[0] != op.size:
        raise ValueError(f"{name} has shape {vectors.shape}: pass columns [{op.size}, d]")
    if vectors.dtype != op.dtype:
        raise ValueError(f"{name} are {vectors.dtype}: pass {name}.astype({op.dtype})")
    return vectors


def _shifted_matvec(data: tuple[Array, SymmetricOperator], x: Array) -> Array:
    mu, op = data
    return op @ x + mu * x


def _folded_matvec(shifted: SymmetricOperator, x: Array) -> Array:
    return shifted @ (shifted @ x)


def _projected_matvec(data: tuple[Array, SymmetricOperator], x: Array) -> Array:
    # On both sides: projected on one side alone the operator would not be symmetric.
    vectors, op = data
    return outside(op @ outside(x, vectors), vectors)
