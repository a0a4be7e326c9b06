"""Where subspaces lie to each other, and how far a displacement lies within one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from spectral_jax.linalg.precision import unit_of, working
from spectral_jax.linalg.subspace import mm


def overlap(a: Float[Array, "p k"], b: Float[Array, "p k"]) -> Float[Array, ""]:
    """``||A^T B||_F^2 / k`` of orthonormal columns: 1 for one subspace, 0 for orthogonal ones.

    The mean square cosine of the principal angles. Of random subspaces it is ``k / p`` on average:
    compare with that. Columns that are NaN (eigenvectors at a floor) make it NaN.

    Works under ``jit``, ``vmap`` and ``grad``. That columns are orthonormal is the caller's
    promise. Raises ``ValueError`` for matrices that are not both ``[p, k]``.
    Source: Gur-Ari, Roberts & Dyer 2018, arXiv 1812.04754, equation 4.

    >>> eye = jnp.eye(4)
    >>> float(overlap(eye[:, :2], eye[:, 1:3]))
    0.5
    """
    a, b = working(a), working(b, "b")
    if a.ndim != 2 or a.shape != b.shape or a.shape[1] == 0:
        raise ValueError(f"a {a.shape} and b {b.shape}: pass two matrices [p, k] of one shape")
    return jnp.sum(mm(a.T, b) ** 2) / a.shape[1]


def displacement(vectors: Float[Array, "p k"], w: PyTree, w0: PyTree) -> Float[Array, " k"]:
    """``||U_j^T (w - w0)||^2 / ||w - w0||^2`` for the first ``j = 1 .. k`` orthonormal columns.

    Which share of a displacement lies within a growing subspace; a random one of ``j`` dimensions
    holds ``j / p`` on average. ``w`` and ``w0`` are trees of parameters, or vectors ``[p]``. NaN
    where they are equal, and from the first column on that is NaN.

    Works under ``jit``, ``vmap`` and ``grad``. Raises ``ValueError`` for shapes that do not fit,
    and for two trees of different structure, whose parameters are in another order.

    >>> displacement(jnp.eye(3)[:, :2], jnp.array([3.0, 0.0, 4.0]), jnp.zeros(3)).round(2).tolist()
    [0.36, 0.36]
    """
    trees = [tree for tree in (w, w0) if not hasattr(tree, "ndim")]
    if len({jax.tree.structure(tree) for tree in trees}) > 1:
        raise ValueError("w and w0 are trees of different structure: pass two of one network")
    (w, _), (w0, _) = ravel_pytree(w), ravel_pytree(w0)
    vectors, w, w0 = working(vectors, "vectors"), working(w, "w"), working(w0, "w0")
    if vectors.ndim != 2 or not vectors.shape[:1] == w.shape == w0.shape:
        raise ValueError(
            f"vectors {vectors.shape} and {w.size} and {w0.size} parameters: pass columns [p, k] "
            "for p of both"
        )
    moved = (w - w0) / unit_of(w - w0)
    return jnp.cumsum(mm(moved, vectors) ** 2) / jnp.sum(moved**2)
