"""Block-diagonal matrices of Kronecker products over the parameters of a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float, Int

from spectral_jax._choices import check_choice
from spectral_jax._options import REAL, check_number
from spectral_jax.linalg.decompositions import eigh
from spectral_jax.linalg.operators import SymmetricOperator, as_scalar
from spectral_jax.linalg.precision import unit_of
from spectral_jax.linalg.subspace import mm

# A symmetric factor ``[k, k]``, or its diagonal ``[k]`` where it has nothing else, as that of an
# embedding, whose full matrix would have the square of the vocabulary.
Factor = Float[Array, "_ _"] | Float[Array, " _"]
Kind = Literal["kronecker", "dense", "diagonal", "unused"]


class LogDet(NamedTuple):
    """``log det`` of a positive semi-definite matrix, and how many eigenvalues it can vouch for.

    The matrix itself is singular where ``rank`` is below its size; ``value`` is then that of the
    damped matrix, and ``-inf`` without damping.
    """

    value: Float[Array, ""]
    rank: Int[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KroneckerBlock:
    """``A (x) B`` on a matrix ``W [i, o]`` of parameters: the product with it is ``A W B``.

    ``a`` ``[i, i]`` belongs to the rows of ``W`` (the inputs of a layer), ``b`` ``[o, o]`` to its
    columns (the outputs); in the row-major order of ``W`` the block is ``np.kron(a, b)``.
    ``index`` ``[i, o]`` says where each entry of ``W`` stands in the raveled parameters, and
    ``names`` from which leaves they come. ``kind`` says what the block is of the true curvature:
    ``"kronecker"`` (an approximation), ``"dense"`` (exact, ``a`` is one number), ``"diagonal"``
    (its diagonal, exact, the rest left out) or ``"unused"`` (zero: the model does not use them).
    """

    a: Factor
    b: Factor
    index: Int[np.ndarray | Array, "i o"]
    names: tuple[str, ...] = dataclasses.field(metadata={"static": True}, default=())
    kind: Kind = dataclasses.field(metadata={"static": True}, default="kronecker")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EigenBlock:
    """``(U (x) V) diag(values) (U (x) V)^T`` on a matrix of parameters.

    ``u`` ``[i, i]`` and ``v`` ``[o, o]`` are orthogonal, or None for the identity; ``values`` are
    ``[i, o]``, ``index`` as in `KroneckerBlock`.
    """

    u: Float[Array, "i i"] | None
    v: Float[Array, "o o"] | None
    values: Float[Array, "i o"]
    index: Int[np.ndarray | Array, "i o"]

    def to_basis(self, w: Float[Array, "i o"]) -> Float[Array, "i o"]:
        """Coordinates ``U^T W V``."""
        w = w if self.u is None else mm(self.u.T, w)
        return w if self.v is None else mm(w, self.v)

    def from_basis(self, coordinates: Float[Array, "i o"]) -> Float[Array, "i o"]:
        """``U C V^T``."""
        w = coordinates if self.u is None else mm(self.u, coordinates)
        return w if self.v is None else mm(w, self.v.T)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KroneckerEigenbasis:
    """A symmetric matrix known by its eigenvalues in a Kronecker-factored orthogonal basis.

    Every function of the matrix costs products with the small factors alone. Vectors are raveled
    parameters ``[p]``; coordinates ``[p]`` go block after block, each with the last index (the
    outputs of a layer) running fastest, in the order of ``values``.

    Methods work under ``jit``, ``vmap`` and ``grad``.
    """

    blocks: tuple[EigenBlock, ...]

    @property
    def size(self) -> int:
        """The number of parameters."""
        return _size(self.blocks)

    @property
    def values(self) -> Float[Array, " p"]:
        """The eigenvalues, in the order of the coordinates."""
        return jnp.concatenate([block.values.ravel() for block in self.blocks])

    def eigenvalues(self) -> Float[Array, " p"]:
        """The eigenvalues, descending. Those that could be rounding are exact zeros."""
        return jnp.sort(self.values, descending=True)

    def trace(self) -> Float[Array, ""]:
        """The sum of the eigenvalues."""
        return jnp.sum(self.values)

    def to_basis(self, vector: Float[Array, " p"]) -> Float[Array, " p"]:
        """The coordinates of raveled parameters; an orthogonal map, `from_basis` its inverse."""
        vector = self._checked(vector)
        return jnp.concatenate([b.to_basis(vector[b.index]).ravel() for b in self.blocks])

    def from_basis(self, coordinates: Float[Array, " p"]) -> Float[Array, " p"]:
        """The raveled parameters of coordinates."""
        coordinates = self._checked(coordinates)
        ends = list(accumulate(block.values.size for block in self.blocks))
        matrices = [
            block.from_basis(part.reshape(block.values.shape))
            for block, part in zip(self.blocks, jnp.split(coordinates, ends[:-1]), strict=True)
        ]
        return _vector(self.blocks, matrices)

    def _checked(self, vector: Float[Array, " p"]) -> Float[Array, " p"]:
        vector = jnp.asarray(vector)
        if vector.shape != (self.size,):
            raise ValueError(f"a vector of shape {vector.shape}: pass [{self.size}]")
        return vector

    def __matmul__(self, x: Array) -> Array:
        """Apply to a vector ``[p]`` or to the columns of a block ``[p, k]``."""
        return self.as_operator() @ x

    def as_operator(self) -> SymmetricOperator:
        """The same matrix for the solvers of `linalg`."""
        return SymmetricOperator(_apply_in_basis, self, self.size)

    def dense(self) -> Float[Array, "p p"]:
        """The matrix itself; for tests and small problems."""
        return self.as_operator().dense()

    def inverse(self, damping: Float[Array, ""] | float) -> KroneckerEigenbasis:
        """``(C + damping I)^-1``, in the same basis.

        The damping is absolute: a curvature of the mean loss, in the unit of the eigenvalues, that
        every direction gets at least. An eigenvalue that, damped, is not above 0 makes its block
        NaN; so without damping a singular block has no inverse and no silent pseudo-inverse.
        """
        damping = _as_damping(damping, self.as_operator())
        return self.with_values([_inverse(block.values + damping) for block in self.blocks])

    def logdet(self, damping: Float[Array, ""] | float = 0.0) -> LogDet:
        """``log det (C + damping I)``, with the unit of the damping as in `inverse`.

        ``-inf`` for a singular matrix, NaN for an indefinite one.
        """
        values = self.values
        shifted = values + _as_damping(damping, self.as_operator())
        return LogDet(jnp.sum(jnp.log(shifted)), jnp.sum(values > 0).astype(jnp.int32))

    def with_values(self, values: Sequence[Float[Array, "i o"]]) -> KroneckerEigenbasis:
        """The matrix with other values, for every block, in the same basis."""
        pairs = zip(self.blocks, values, strict=True)
        return KroneckerEigenbasis(tuple(dataclasses.replace(b, values=v) for b, v in pairs))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KroneckerOperator:
    """A block-diagonal matrix with one Kronecker product ``A (x) B`` for each block of parameters.

    Positive semi-definite where the factors are, as those of `kfac`. Vectors are raveled parameters
    ``[p]``; a product with a block ``[i, o]`` costs ``2 i o (i + o)`` flops. What asks for
    eigenvalues decomposes every factor (``i^3 + o^3``): for several such questions keep
    `eigenbasis`. Methods work under ``jit``, ``vmap`` and ``grad``.

    >>> eye = jnp.eye(2)
    >>> block = KroneckerBlock(2 * eye, jnp.diag(jnp.array([1.0, 3.0])), np.arange(4).reshape(2, 2))
    >>> op = KroneckerOperator((block,))
    >>> op.dense().diagonal().tolist(), op.eigenvalues().tolist()
    ([2.0, 6.0, 2.0, 6.0], [6.0, 6.0, 2.0, 2.0])
    """

    blocks: tuple[KroneckerBlock, ...]

    @property
    def size(self) -> int:
        """The number of parameters."""
        return _size(self.blocks)

    @property
    def kinds(self) -> dict[str, str]:
        """What is known of each leaf, by its name: the ``kind`` of its `KroneckerBlock`."""
        return {name: block.kind for block in self.blocks for name in block.names}

    def __matmul__(self, x: Array) -> Array:
        """Apply to a vector ``[p]`` or to the columns of a block ``[p, k]``."""
        return self.as_operator() @ x

    def as_operator(self) -> SymmetricOperator:
        """The same matrix for the solvers of `linalg`."""
        return SymmetricOperator(_apply_factors, self, self.size)

    def dense(self) -> Float[Array, "p p"]:
        """The matrix itself; for tests and small problems."""
        return self.as_operator().dense()

    def diagonal(self) -> Float[Array, " p"]:
        """The diagonal of the matrix."""
        outer = [jnp.outer(_diagonal(block.a), _diagonal(block.b)) for block in self.blocks]
        return _vector(self.blocks, outer)

    def trace(self) -> Float[Array, ""]:
        """The sum of the diagonal."""
        return jnp.sum(self.diagonal())

    def eigenbasis(self) -> KroneckerEigenbasis:
        """Eigenvectors and eigenvalues, the products of those of the factors.

        A product ``alpha beta`` that is not above its own rounding, ``eps (i max(alpha) beta +
        o max(beta) alpha)``, is set to 0. Products far below ``eps`` of the largest survive if both
        their factors are well determined, which no decomposition of the whole matrix achieves.
        """
        return KroneckerEigenbasis(tuple(map(_decomposed, self.blocks)))

    def eigenvalues(self) -> Float[Array, " p"]:
        """All eigenvalues, descending; those that could be rounding are exact zeros."""
        return self.eigenbasis().eigenvalues()

    def logdet(self, damping: Float[Array, ""] | float = 0.0) -> LogDet:
        """`KroneckerEigenbasis.logdet`."""
        return self.eigenbasis().logdet(damping)

    def inverse(
        self, damping: Float[Array, ""] | float, *, split: Literal["exact", "pi"] = "exact"
    ) -> KroneckerEigenbasis:
        """The inverse of the damped matrix; the unit of the damping is that of the eigenvalues.

        Args:
          damping: a curvature of the mean loss, as in `KroneckerEigenbasis.inverse`.
          split: ``"exact"`` inverts ``A (x) B + damping I``; ``"pi"`` the product ``(A + pi r I)
            (x) (B + r / pi I)`` with ``r = sqrt(damping)`` and ``pi^2`` the ratio of the mean
            eigenvalues of ``A`` and ``B``, which is what most optimisers use. It damps more.

        Raises ``ValueError`` for an unknown split or a negative damping.
        Source: Martens & Grosse, arXiv 1503.05671, section 6.3.
        """
        check_choice(("exact", "pi"), split=split)
        if split == "exact":
            return self.eigenbasis().inverse(damping)
        damping = _as_damping(damping, self.as_operator())
        return KroneckerEigenbasis(tuple(_split_inverse(block, damping) for block in self.blocks))


def product_values(
    alpha: Float[Array, " i"], beta: Float[Array, " o"]
) -> tuple[Float[Array, "i o"], Float[Array, "i o"]]:
    """The products of the eigenvalues of two factors, and the rounding error of each."""
    values = jnp.outer(alpha, beta)
    eps = jnp.finfo(values.dtype).eps
    largest_alpha, largest_beta = (jnp.max(x, initial=0) for x in (alpha, beta))
    of_alpha = len(alpha) * eps * largest_alpha * beta
    of_beta = len(beta) * eps * largest_beta * alpha
    return values, of_alpha[None, :] + of_beta[:, None]


def nearest_product(products: Sequence[tuple[Factor, Factor]]) -> tuple[Factor, Factor]:
    """The Kronecker product nearest in the Frobenius norm to a sum of them, ``sum_k A_k (x) B_k``.

    Rearranged, a product is the outer product of the entries of its factors (Van Loan & Pitsianis
    1993), so that this is the best approximation of rank 1 to a matrix of rank ``k``: of positive
    semi-definite factors it has such factors. One product is returned as it is.
    """
    if len(products) == 1:
        return products[0]
    left, right = map(_alike, zip(*products, strict=True))
    units = unit_of(left), unit_of(right)
    left, right = left / units[0], right / units[1]
    # Of sum_k a_k b_k^T the right singular vector is in the span of the b_k, with coefficients
    # G^(1/2) z for the top eigenvector z of G^(1/2) H G^(1/2), G and H the inner products.
    g, h = (mm(x.reshape(len(x), -1), x.reshape(len(x), -1).T) for x in (left, right))
    values, vectors = eigh(g)
    root = mm(vectors * jnp.sqrt(jnp.maximum(values, 0)), vectors.T)
    share = jnp.abs(mm(root, eigh(mm(root, mm(h, root))).vectors[:, -1]))
    b = jnp.tensordot(share, right, 1, precision=Precision.HIGHEST)
    size = share @ h @ share
    weights = jnp.where(size > 0, mm(h, share) / jnp.where(size > 0, size, 1), 0)
    a = jnp.tensordot(weights, left, 1, precision=Precision.HIGHEST)
    return units[0] * a, units[1] * b


def _alike(factors: Sequence[Factor]) -> Array:
    """Stacked; diagonals as matrices where not all are diagonals."""
    full = max(factor.ndim for factor in factors)
    return jnp.stack([jnp.diag(f) if f.ndim < full else f for f in factors])


def _decomposed(block: KroneckerBlock) -> EigenBlock:
    (alpha, u), (beta, v) = _eigh(block.a), _eigh(block.b)
    values, rounding = product_values(alpha, beta)
    # Written so that NaN stays NaN.
    return EigenBlock(u, v, jnp.where(values <= rounding, 0, values), block.index)


def _split_inverse(block: KroneckerBlock, damping: Array) -> EigenBlock:
    (alpha, u), (beta, v) = _eigh(block.a), _eigh(block.b)
    # Roots before the ratio, for the means may lie many orders of magnitude apart. No split of the
    # damping gives that of a block that is zero because one factor is. NaN is not zero.
    means = jnp.mean(alpha), jnp.mean(beta)
    zero = (means[0] <= 0) | (means[1] <= 0)
    roots = [jnp.sqrt(jnp.where(zero, 1, mean)) for mean in means]
    ratio, root = roots[0] / roots[1], jnp.sqrt(damping)
    split = jnp.outer(alpha + ratio * root, beta + root / ratio)
    values = jnp.where(zero, jnp.outer(alpha, beta) + damping, split)
    return EigenBlock(u, v, _inverse(values), block.index)


def _eigh(factor: Factor) -> tuple[Array, Array | None]:
    """Eigenvalues, with those below 0 set to 0, and eigenvectors: None for the unit vectors."""
    if factor.ndim == 1:
        return factor, None
    values, vectors = eigh(factor)
    return jnp.maximum(values, 0), vectors


def _inverse(values: Array) -> Array:
    """``1 / values``, NaN where a value is not positive."""
    positive = values > 0
    return jnp.where(positive, 1 / jnp.where(positive, values, 1), jnp.nan)


def _apply_factors(op: KroneckerOperator, x: Array) -> Array:
    images = [
        _times_factor(_times_factor(x[block.index], block.a, left=True), block.b, left=False)
        for block in op.blocks
    ]
    return _vector(op.blocks, images)


def _apply_in_basis(op: KroneckerEigenbasis, x: Array) -> Array:
    return op.from_basis(op.values * op.to_basis(x))


def _times_factor(w: Array, factor: Factor, *, left: bool) -> Array:
    """``F W`` or ``W F``."""
    if factor.ndim == 1:
        return w * (factor[:, None] if left else factor)
    return mm(factor, w) if left else mm(w, factor)


def _diagonal(factor: Factor) -> Array:
    return factor if factor.ndim == 1 else jnp.diagonal(factor)


Blocks = Sequence[KroneckerBlock] | Sequence[EigenBlock]


def _size(blocks: Blocks) -> int:
    return sum(block.index.size for block in blocks)


def _vector(blocks: Blocks, matrices: Sequence[Array]) -> Float[Array, " p"]:
    """The raveled parameters of the matrices of all blocks; every entry belongs to one block."""
    index = jnp.concatenate([block.index.ravel() for block in blocks])
    entries = jnp.concatenate([matrix.ravel() for matrix in matrices])
    return jnp.zeros_like(entries).at[index].set(entries, unique_indices=True)


def _as_damping(damping: Array | float, op: SymmetricOperator) -> Float[Array, ""]:
    if isinstance(damping, REAL):
        check_number("choose at least 0", lambda x: x >= 0, damping=damping)
    return as_scalar(damping, op)
