"""Gaussian distributions over weights, diagonal in the weights or in a basis of your choice.

A posterior is a `Gaussian`. A prior is a `Prior`: a Gaussian, and the training examples that it saw
when it was chosen, which no bound that uses it may count again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from spectral_jax._options import check_number
from spectral_jax.linalg.precision import working

Tree: TypeAlias = PyTree[Any]

ORTHONORMAL = 1e-3  # how far products of columns may be from 0 and 1: float32 is off by far less


class Gaussian(NamedTuple):
    """Independent Gaussian coordinates: what training moves, all of it differentiable.

    ``log_scale`` holds logarithms of standard deviations: one number for all coordinates, or a tree
    like ``mean`` whose leaves broadcast to those of ``mean``. With a `Basis` it refers to the
    basis' coordinates instead, see there; ``mean`` never does. `gaussian` makes one.
    """

    mean: Tree
    log_scale: Tree

    def untied(self) -> Gaussian:
        """The same law with a ``log_scale`` for each weight: where a posterior may start."""

        def spread(scale, weights):
            return jnp.broadcast_to(scale, jnp.shape(weights))

        return Gaussian(
            self.mean, jax.tree.map(spread, _scales(self.log_scale, self.mean), self.mean)
        )


class Prior(NamedTuple):
    """A Gaussian that was fixed before the examples it is used with were seen.

    ``seen`` lists the rows of the training set by which it was chosen, empty for a prior that saw
    no data. `certify` refuses to count them. `data_free_prior` and `learnt_prior` make one.
    """

    gaussian: Gaussian
    seen: Int[Array, " k"] | Int[np.ndarray, " k"]


def gaussian(mean: Tree, scale: Tree) -> Gaussian:
    """The Gaussian of this ``mean`` and these standard deviations, one number or a tree like it.

    NaN where a standard deviation is not positive. Raises ``ValueError`` if it is one Python number
    and not positive, or if the tree fits neither ``mean`` nor a single number.

    >>> gaussian({"w": jnp.zeros(2)}, 0.5).log_scale.round(3).tolist()
    -0.693
    """
    if isinstance(scale, int | float):
        check_number("choose above 0", lambda x: 0 < x < np.inf, scale=scale)
    return Gaussian(mean, jax.tree.map(_log_scale, scale))


def data_free_prior(mean: Tree, scale: Tree) -> Prior:
    """A prior that depends on no example: say, around the random initial weights.

    Its ``scale`` too must be chosen without the data, or from a `ScaleGrid`. Raises ``ValueError``
    as `gaussian` does.

    >>> data_free_prior({"w": jnp.zeros(2)}, 0.1).seen.tolist()
    []
    """
    return Prior(gaussian(mean, scale), np.zeros(0, np.int64))


def learnt_prior(mean: Tree, scale: Tree, *, seen: Int[ArrayLike, " k"]) -> Prior:
    """A prior trained on the rows ``seen`` of the training set.

    Everything that had a part in its choice counts: rows it was trained on, rows that decided when
    to stop, rows whose Fisher information set its variances. Raises ``ValueError`` unless ``seen``
    is a vector of distinct whole numbers from 0 up, or as `gaussian` does.

    >>> learnt_prior({"w": jnp.ones(2)}, 0.1, seen=jnp.arange(3)).seen.tolist()
    [0, 1, 2]
    """
    return Prior(gaussian(mean, scale), rows("seen", seen))


def rows(name: str, indices: Int[ArrayLike, " k"]) -> np.ndarray:
    """Indices of a data set as an array, else ``ValueError``."""
    found = np.asarray(indices)
    if found.ndim != 1 or not (np.issubdtype(found.dtype, np.integer) or found.size == 0):
        raise ValueError(f"{name} is {found.dtype} of shape {found.shape}: pass row numbers [k]")
    found = found.astype(np.int64)
    if np.any(found < 0) or len(np.unique(found)) != len(found):
        raise ValueError(f"{name} repeats a row or counts from the end: pass distinct rows from 0")
    return found


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Basis:
    """An orthogonal change of coordinates of the raveled weights ``[P]``.

    ``forward(data, vector)`` gives the coordinates, a pytree, and ``backward(data, coordinates)``
    the vector; the arrays live in ``data``, the functions are static (module-level functions, or a
    fresh lambda compiles afresh). That ``backward`` is the transpose and the inverse of ``forward``
    is the caller's promise. In this basis, ``log_scale`` of a `Gaussian` is one number or a tree
    like the coordinates.

    ``lost`` counts, for each leaf of the coordinates, the directions in which that leaf cannot
    move: none but in `vector_basis`.

    >>> turned = Basis(lambda d, w: d @ w, lambda d, z: d.T @ z, jnp.array([[0.0, 1.0], [-1, 0]]))
    >>> turned.backward(turned.data, turned.forward(turned.data, jnp.arange(2.0))).tolist()
    [0.0, 1.0]
    """

    forward: Callable[[Any, Array], Tree] = dataclasses.field(metadata={"static": True})
    backward: Callable[[Any, Tree], Array] = dataclasses.field(metadata={"static": True})
    data: Any
    lost: tuple[int, ...] | None = dataclasses.field(default=None, metadata={"static": True})


def vector_basis(vectors: Float[Array, "P k"]) -> Basis:
    """The basis of ``k`` orthonormal columns, as eigenvectors of a Hessian, and all the rest.

    Coordinates are ``(within, beyond)``: the ``k`` components along the columns, and the part
    ``[P]`` orthogonal to them, which is given one standard deviation: ``log_scale`` is
    ``([k] or a number, a number)``.

    Works under ``jit``, ``vmap`` and ``grad``. Raises ``ValueError`` for what is no matrix of at
    most as many columns as rows, and for columns not orthonormal to 1e-3 (outside transforms): with
    them `gaussian_kl` would be of other laws than `draw`, and what it certifies no bound.

    >>> along, rest = vector_basis(jnp.eye(3)[:, :1]).forward(jnp.eye(3)[:, :1], jnp.arange(3.0))
    >>> along.tolist(), rest.tolist()
    ([0.0], [0.0, 1.0, 2.0])
    """
    vectors = working(vectors, "vectors")
    if vectors.ndim != 2 or vectors.shape[0] < vectors.shape[1]:
        raise ValueError(f"vectors has shape {vectors.shape}: pass orthonormal columns [P, k]")
    if not isinstance(vectors, jax.core.Tracer):
        gram = jnp.matmul(vectors.T, vectors, precision=jax.lax.Precision.HIGHEST)
        off = float(jnp.max(jnp.abs(gram - jnp.eye(len(gram))), initial=0))
        if not off <= ORTHONORMAL:
            raise ValueError(f"vectors are orthonormal only to {off:.1g}: take the q of their qr")
    return Basis(_split, _joined, vectors, lost=(0, vectors.shape[1]))


def draw(key: PRNGKeyArray, q: Gaussian, *, basis: Basis | None = None) -> Tree:
    """Weights drawn from ``q``: a tree like its mean, in the same dtypes.

    ``mean + scale * z`` with standard normal ``z``, so that gradients with respect to mean and
    ``log_scale`` pass through. In a ``basis``, ``mean + backward(scale * forward(z))``. Works under
    ``jit``, ``vmap`` (over keys) and ``grad``. Raises ``ValueError`` for a mean of whole numbers,
    to which a draw would be cut, and for trees that do not fit.

    >>> q = gaussian({"w": jnp.ones(3)}, 1e-3)
    >>> draw(jax.random.key(0), q)["w"].round(1).tolist()
    [1.0, 1.0, 1.0]
    """
    check_gaussian("q", q)
    for dtype in map(jnp.result_type, jax.tree.leaves(q.mean)):
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"mean has a leaf of {dtype}: pass floats, for a draw is none of it")
    if basis is not None:
        flat, unravel = ravel_pytree(q.mean)
        noise = basis.forward(basis.data, jax.random.normal(key, flat.shape, working(flat).dtype))
        spread = jax.tree.map(_times_scale, noise, _scales(q.log_scale, noise))
        return unravel((flat + basis.backward(basis.data, spread)).astype(flat.dtype))
    leaves, structure = jax.tree.flatten(q.mean)
    keys = jax.tree.unflatten(structure, list(jax.random.split(key, len(leaves))))
    return jax.tree.map(_drawn, keys, q.mean, _scales(q.log_scale, q.mean))


def gaussian_kl(q: Gaussian, p: Gaussian, *, basis: Basis | None = None) -> Float[Array, ""]:
    """``KL(q || p)`` in nats of two Gaussians that are diagonal in the same coordinates.

    ``1/2 sum_i [ (m_i / p_i)^2 + (q_i / p_i)^2 - 1 - log (q_i / p_i)^2 ]`` for standard deviations
    ``q_i``, ``p_i`` and the difference ``m`` of the means, in the weights themselves or, given one,
    in the coordinates of ``basis``. An isotropic ``p`` is diagonal in every basis. The sum of a
    million terms of float32 has five or six digits; `certify` computes in float64.

    Works under ``jit``, ``vmap`` and ``grad``. Raises ``ValueError`` for trees that do not fit.
    Source: arXiv 1703.11008, eq. 4.

    >>> q, p = gaussian(jnp.ones(1), 0.5**0.5), gaussian(jnp.zeros(1), 1.0)
    >>> round(float(gaussian_kl(q, p)), 7)
    0.5965736
    """
    check_gaussian("q", q)
    check_gaussian("p", p)
    _check_alike(q.mean, p.mean)
    for a, b in zip(*(map(jnp.shape, jax.tree.leaves(x.mean)) for x in (q, p)), strict=True):
        if a != b:
            raise ValueError(f"the means have leaves of shapes {a} and {b}: pass one shape")
    moved = jax.tree.map(lambda a, b: working(a) - working(b), q.mean, p.mean)
    if basis is not None:
        moved = basis.forward(basis.data, ravel_pytree(moved)[0])
    scales = (jax.tree.leaves(_scales(x.log_scale, moved)) for x in (q, p))
    leaves = jax.tree.leaves(moved)
    lost = (basis and basis.lost) or (0,) * len(leaves)
    return sum(map(_leaf_kl, leaves, *scales, lost), jnp.zeros((), leaves[0].dtype))


def _leaf_kl(moved: Array, log_q: Array, log_p: Array, lost: int) -> Array:
    # expm1(r) - r is q/p - 1 - log(q/p) without the rounding of q/p near 1.
    r = 2 * (log_q - log_p)
    spread = jnp.expm1(r) - r
    if lost and spread.ndim:
        raise ValueError(f"log_scale has shape {spread.shape} off the vectors: pass one number")
    each = jnp.sum(jnp.broadcast_to(spread, moved.shape)) if spread.ndim else spread
    moving = 1 if spread.ndim else moved.size - lost
    return (moving * each + jnp.sum((moved * jnp.exp(-log_p)) ** 2)) / 2


def _scales(log_scale: Tree, like: Tree) -> Tree:
    """Logarithms of standard deviations for every leaf of ``like``."""
    if not isinstance(log_scale, dict | list | tuple) and jnp.ndim(log_scale) == 0:
        return jax.tree.map(lambda _: working(log_scale, "log_scale"), like)
    _check_alike(log_scale, like)
    return jax.tree.map(_fitting, log_scale, like)


def _fitting(log_scale: ArrayLike, like: Array) -> Array:
    log_scale, shape = working(log_scale, "log_scale"), jnp.shape(like)
    sizes = zip(reversed(log_scale.shape), reversed(shape), strict=False)
    if log_scale.ndim > len(shape) or any(a not in (1, b) for a, b in sizes):
        raise ValueError(f"log_scale has a leaf of shape {log_scale.shape} for a mean of {shape}")
    return log_scale


def check_gaussian(name: str, q: Any) -> None:
    """``ValueError`` for what has no mean and no scales, such as a `Prior`."""
    if not hasattr(q, "mean") or not hasattr(q, "log_scale"):
        raise ValueError(f"{name} is a {type(q).__name__}: pass a Gaussian (of a Prior, .gaussian)")


def _check_alike(a: Tree, b: Tree) -> None:
    ours: Any = jax.tree.structure(a)
    theirs: Any = jax.tree.structure(b)
    if ours != theirs or ours.num_leaves == 0:
        raise ValueError(
            f"the trees differ: {ours} and {theirs}; pass one, not empty, or one scale"
        )


def _log_scale(scale: ArrayLike) -> Array:
    scale = working(scale, "scale")
    # A Python number's dtype is weak, and the first step of training would make it a strong one:
    # the second step would be compiled again.
    scale = scale.astype(scale.dtype)
    return jnp.where(scale > 0, jnp.log(jnp.where(scale > 0, scale, 1)), jnp.nan)


def _drawn(key: PRNGKeyArray, mean: Array, log_scale: Array) -> Array:
    noise = jax.random.normal(key, jnp.shape(mean), working(mean).dtype)
    return (working(mean) + _times_scale(noise, log_scale)).astype(jnp.result_type(mean))


def _times_scale(noise: Array, log_scale: Array) -> Array:
    return noise * jnp.exp(log_scale).astype(noise.dtype)


def _split(vectors: Array, w: Array) -> tuple[Array, Array]:
    within = jnp.matmul(w, vectors, precision=jax.lax.Precision.HIGHEST)
    return within, w - jnp.matmul(vectors, within, precision=jax.lax.Precision.HIGHEST)


def _joined(vectors: Array, coordinates: tuple[Array, Array]) -> Array:
    within, beyond = coordinates
    return jnp.matmul(vectors, within, precision=jax.lax.Precision.HIGHEST) + beyond
