"""Eigenvectors and singular vectors of batches of matrices, with derivatives of any order.

The textbook derivative of an eigenvector divides by the gaps between eigenvalues, which gives inf
or NaN where two values repeat, and under- or overflow for matrices far from unit size. The rules
here mask the first and divide out the second.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spectral_jax.linalg.lapack import each_leading, joining_batches
from spectral_jax.linalg.precision import unit_of, working
from spectral_jax.linalg.subspace import mm

# Eigenvalues closer together than 10 eps times the largest are treated as one that repeats: LAPACK
# computes each with an error of a few eps times the largest, so their gap is nothing but rounding.
REPEATED = 10


class Eigh(NamedTuple):
    """``a = vectors diag(values) vectors^T``, values ascending."""

    values: Float[Array, "*batch n"]
    vectors: Float[Array, "*batch n n"]


class SVD(NamedTuple):
    """``a = u diag(s) vt``, ``s`` descending."""

    u: Float[Array, "*batch m k"]
    s: Float[Array, "*batch k"]
    vt: Float[Array, "*batch k n"]


@jax.jit
def eigh(a: Float[Array, "*batch n n"]) -> Eigh:
    """Eigenvalues and eigenvectors of symmetric matrices ``[..., n, n]``, as ``jnp.linalg.eigh``.

    Three things are different. On a CPU whose jaxlib may deadlock over batches, matrices go to
    LAPACK one by one, in derivatives too (docs/method-selection.md). Derivatives of any order do
    not depend on the scale of the matrix: those of ``1e-20 A`` neither underflow nor overflow. And
    they are finite everywhere: the term ``1 / (values_j - values_i)`` of two values within 10 eps
    of each other is replaced by 0. That is right for functions of whole eigenspaces, such as
    projectors; in the derivative of ``V diag(f(values)) V^T`` and in second derivatives of values
    a part is then missing, because no choice of basis vectors is differentiable there.

    Only the symmetric part of ``a`` counts. NaN or inf in a matrix gives NaN for that matrix only.
    Half types and integers are computed in float32. Where only values are wanted `eigvalsh` is
    faster. Works under ``jit``, ``vmap`` (which joins the batch) and on sharded batches.
    Raises ``ValueError`` for matrices that are complex or not square.
    Source: Giles 2008, Collected matrix derivative results for forward and reverse mode AD.

    >>> values, vectors = eigh(jnp.array([[2.0, 1.0], [1.0, 2.0]]))
    >>> values.round(4).tolist(), abs(vectors).round(4).tolist()
    ([1.0, 3.0], [[0.7071, 0.7071], [0.7071, 0.7071]])
    """
    a = working(a)
    if a.ndim < 2 or a.shape[-2] != a.shape[-1]:
        raise ValueError(f"a has shape {a.shape}: pass square matrices [..., n, n]")
    return _eigh(a)


@jax.jit
def svd(a: Float[Array, "*batch m n"]) -> SVD:
    """Singular vectors and values of ``[..., m, n]``, as ``jnp.linalg.svd(full_matrices=False)``.

    What `eigh` says of deadlocks, derivatives and scale holds here; the derivative of the vectors
    of a singular value 0 divides by it and is masked like that of values that repeat. Signs of
    vectors are LAPACK's choice, a column of ``u`` and its row of ``vt`` together. Where only values
    are wanted `svdvals` is faster. NaN or inf in a matrix gives NaN for that matrix only; half
    types and integers are computed in float32.

    Works under ``jit``, ``vmap`` (which joins the batch) and on sharded batches. Raises
    ``ValueError`` for what is complex or no matrix.
    Source: Giles 2008; Townsend 2016, Differentiating the singular value decomposition.

    >>> u, s, vt = svd(jnp.array([[3.0, 0.0], [0.0, -4.0], [0.0, 0.0]]))
    >>> s.tolist(), u.shape, vt.shape
    ([4.0, 3.0], (3, 2), (2, 2))
    """
    a = working(a)
    if a.ndim < 2:
        raise ValueError(f"a has shape {a.shape}: pass matrices, [..., m, n]")
    return _svd(a)


def to_unit_size(a: Float[Array, "*batch m n"]) -> tuple[Array, Float[Array, "*batch 1"]]:
    """Each matrix divided by the power of two above its largest magnitude, and those powers.

    LAPACK's squares then neither overflow nor underflow, and no entry is rounded. A matrix with NaN
    or inf is replaced by zeros and its power by NaN, which `from_unit_size` puts into its results.
    """
    known = jnp.all(jnp.isfinite(a), axis=(-2, -1), keepdims=True)
    scale = unit_of(a, axis=(-2, -1), keepdims=True)
    return jnp.where(known, a / scale, 0), jnp.where(known, scale, jnp.nan)[..., 0]


def from_unit_size(
    values: Float[Array, "*batch k"], scale: Float[Array, "*batch 1"]
) -> Float[Array, "*batch k"]:
    """The values of the matrices that `to_unit_size` scaled; NaN where a matrix held NaN or inf."""
    return jnp.where(jnp.isfinite(scale), values * scale, jnp.nan)


@jax.custom_jvp
def _eigh(a: Array) -> Eigh:
    return joining_batches(_eigh_stack)(a)


def _eigh_stack(a: Array) -> Eigh:
    if a.size == 0:
        return Eigh(jnp.zeros(a.shape[:-1], a.dtype), jnp.zeros(a.shape, a.dtype))
    unit, scale = to_unit_size(a)
    values, vectors = each_leading(jnp.linalg.eigh, unit)
    vectors = jnp.where(jnp.isfinite(scale[..., None]), vectors, jnp.nan)
    return Eigh(from_unit_size(values, scale), vectors)


@_eigh.defjvp
def _eigh_jvp(primals, tangents):
    # dV = V (F * (V^T dA V)) with F_ij = 1 / (values_j - values_i), F_ii = 0 (Giles 2008, 3.1).
    # Values are measured in units of `size`: gaps of values of 1e-20 have squares that underflow,
    # and second derivatives square them.
    values, vectors = found = _eigh(*primals)
    size = _size(values)
    change = mm(_transposed(vectors), mm(_symmetric(*tangents), vectors))
    turn = change / size * _inverse_gaps(values / size[..., 0], -1)
    slope = jnp.diagonal(change, axis1=-2, axis2=-1)
    return found, Eigh(slope, mm(vectors, turn))


@jax.custom_jvp
def _svd(a: Array) -> SVD:
    return joining_batches(_svd_stack)(a)


def _svd_stack(a: Array) -> SVD:
    m, n = a.shape[-2:]
    if a.size == 0:
        k = min(m, n)
        shapes = (m, k), (k,), (k, n)
        return SVD(*(jnp.zeros((*a.shape[:-2], *shape), a.dtype) for shape in shapes))
    unit, scale = to_unit_size(a)
    u, s, vt = each_leading(lambda a: jnp.linalg.svd(a, full_matrices=False), unit)
    known = jnp.isfinite(scale[..., None])
    u, vt = (jnp.where(known, vectors, jnp.nan) for vectors in (u, vt))
    return SVD(u, from_unit_size(s, scale), vt)


@_svd.defjvp
def _svd_jvp(primals, tangents):
    """``dU = U R + (I - U U^T) dA V S^-1`` and likewise ``dV``, with ``P = U^T dA V``.

    The textbook's rotation ``R_ij = (P_ij s_j + s_i P_ji) / (s_j^2 - s_i^2)`` squares the values,
    which halves the digits of a gap and the range of scales. Split into the symmetric and the
    antisymmetric part of ``P`` it is ``sym(P)_ij / (s_j - s_i) + anti(P)_ij / (s_j + s_i)``, and
    the rotation of ``V`` is the difference of the two.
    """
    (da,) = tangents
    u, s, vt = found = _svd(*primals)
    v, size = _transposed(vt), _size(s)
    change = mm(_transposed(u), mm(da, v))
    unit, s = change / size, s / size[..., 0]
    shared = _symmetric(unit) * _inverse_gaps(s, -1)
    apart = (unit - _transposed(unit)) / 2 * _inverse_gaps(s, 1)
    inverse = _inverse(s)[..., None, :] / size
    du = mm(u, shared + apart) + _outside(u, mm(da, v)) * inverse
    dv = mm(v, shared - apart) + _outside(v, mm(_transposed(da), u)) * inverse
    return found, SVD(du, jnp.diagonal(change, axis1=-2, axis2=-1), _transposed(dv))


def _inverse_gaps(values: Array, sign: int) -> Array:
    """``1 / (values_j + sign values_i)`` at row ``i``, 0 where the sum is no more than rounding."""
    return _inverse(values[..., None, :] + sign * values[..., :, None])


def _inverse(x: Array) -> Array:
    """``1 / x``, 0 where ``x`` is a rounding error of values in ``[-1, 1]``; NaN stays NaN."""
    counts = ~(jnp.abs(x) <= REPEATED * jnp.finfo(x.dtype).eps)
    return jnp.where(counts, 1 / jnp.where(counts, x, 1), 0)


def _size(values: Array) -> Array:
    """A power of two next to the largest of the values, as their unit; shape ``[..., 1, 1]``."""
    return unit_of(values, axis=-1)[..., None, None]


def _outside(basis: Array, x: Array) -> Array:
    """``x`` minus its part in the span of orthonormal columns."""
    return x - mm(basis, mm(_transposed(basis), x))


def _symmetric(a: Array) -> Array:
    return (a + _transposed(a)) / 2


def _transposed(a: Array) -> Array:
    return jnp.swapaxes(a, -2, -1)
