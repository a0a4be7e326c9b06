"""LiDAR: how many directions tell the classes of a table apart, weighed by how well they do."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import entr
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from spectral_jax._choices import check_choice
from spectral_jax._options import check_number
from spectral_jax.features._classes import Classes, classes_about
from spectral_jax.features.moments import (
    FeatureMoments,
    as_moments,
    effective_rows,
    unitless,
    within,
)
from spectral_jax.linalg.decompositions import eigh
from spectral_jax.linalg.moments import exactly
from spectral_jax.linalg.subspace import mm
from spectral_jax.linalg.values import eigvalsh

Compat = Literal["paper", "reptrix"]
# What both add to each share of the spectrum, so that no logarithm is of 0.
EPSILON = 1e-7
EQUAL = 4  # roundings of their mean by which rows of a class may differ and count as equal


class Lidar(NamedTuple):
    """An effective number of directions, at most ``min(C - 1, p)``."""

    value: Float[Array, ""]
    """``exp(-sum q ln q)``, with ``q`` the values as shares of their sum."""
    values: Float[Array, " k"]
    """Eigenvalues of ``S_W^(-1/2) S_B S_W^(-1/2)``, descending: between against within."""
    classes: Int[Array, ""]
    """``C``, the classes that are present."""
    single: Int[Array, ""]
    """Classes with one example, which say nothing about ``S_W``: see `NeuralCollapse`."""


def lidar(
    m: FeatureMoments | Float[ArrayLike, "n p"],
    *,
    delta: float | None = None,
    compat: Compat | None = None,
    **arrays: Any,
) -> Lidar:
    """The linear discriminant analysis rank of features (Thilak et al., arXiv 2312.04000).

    Classes are, as a rule, inputs, and the examples of a class augmentations of one: many classes
    of few examples. ``S_B`` is the covariance of class means, ``S_W`` that about them.

    Args:
      m: moments with ``classes``; or features ``[n, p]`` with ``labels=`` and ``classes=``.
      delta: what is added to the diagonal of ``S_W``, which has to be inverted: a share of its mean
        variance ``tr S_W / p``, 1e-4 if None, so that the number does not depend on the features'
        scale.
      compat: ``"paper"`` adds ``delta`` itself, and 1e-7 to each share. ``"reptrix"`` does what
        that package does (at dbf53c5): ``S_W`` is the sum over the examples of a class, averaged
        over classes, a ``delta`` of 1e-6 is added to it, and the spectrum is that of the
        *covariance of the rows* of the matrix above, 1e-7 added to each share.

    If ``S_W`` is 0 the values are those of ``S_B``, to which those of ``S_W -> 0`` tend in
    proportion. Works under ``jit``, ``vmap`` and, where the values differ, ``grad`` (of moments by
    ``method="gram"`` in float32). NaN for fewer than two classes and for NaN in the features.
    Raises ``ValueError`` for moments without classes, a ``delta`` not above 0, an unknown name.

    >>> x = jnp.array([[1.0, 0.0], [1.2, 0.0], [0.0, 1.0], [0.0, 1.2], [-1.0, -1.0], [-1.2, -1.2]])
    >>> round(float(lidar(x, labels=jnp.array([0, 0, 1, 1, 2, 2]), classes=3).value), 3)
    2.0
    """
    check_choice((None, "paper", "reptrix"), compat=compat)
    if delta is None:
        delta = 1e-6 if compat == "reptrix" else 1e-4
    check_number("choose above 0", lambda x: x > 0, delta=delta)
    return _lidar(as_moments(m, **arrays), jnp.asarray(delta), compat=compat)


@partial(exactly, static=("compat",))
def _lidar(m: FeatureMoments, delta: Array, *, compat: Compat | None) -> Lidar:
    m = m if compat else unitless(m)
    classes = classes_about(m, "classes")
    if compat == "reptrix":
        each = effective_rows(m) / classes.number  # examples of a class, all having as many
        values = _of_rows(each * within(m), delta, classes)
    else:
        values = _discriminant(within(m), classes, delta, m.state.eps, relative=compat is None)
    shares = values / jnp.sum(values)
    if compat is not None:
        shares = shares + EPSILON
    entropy = jnp.sum(entr(shares))
    return Lidar(jnp.exp(entropy), values, jnp.sum(classes.here), jnp.sum(classes.single))


def _discriminant(
    scatter: Array, classes: Classes, delta: Array, eps: float, *, relative: bool
) -> Array:
    if relative:
        # Equal rows leave the rounding of their mean, which would be scaled up to a variance of 1.
        rounding = (EQUAL * eps) ** 2 * jnp.sum(mm(classes.share, classes.mean**2))
        scatter = jnp.where(jnp.trace(scatter) <= rounding, 0, scatter)
        size = jnp.trace(scatter) / len(scatter)
        scatter = scatter / jnp.where(size == 0, 1, size)
    root = jnp.linalg.cholesky(_damped(scatter, delta))
    scaled = jnp.sqrt(classes.share)[:, None] * classes.centred  # S_B = scaled^T scaled
    return _squares(solve_triangular(root, scaled.T, lower=True))


def _of_rows(scatter: Array, delta: Array, classes: Classes) -> Array:
    values, vectors = eigh(_damped(scatter, delta))
    whitened = mm(classes.centred, mm(vectors / jnp.sqrt(values), vectors.T))
    matrix = mm(whitened.T, whitened)
    return _squares(matrix - jnp.mean(matrix, axis=0))


def _squares(a: Array) -> Array:
    """Squared singular values, descending."""
    gram = mm(a, a.T) if a.shape[0] <= a.shape[1] else mm(a.T, a)
    return jnp.maximum(eigvalsh(gram)[::-1], 0)


def _damped(scatter: Array, delta: Array) -> Array:
    return scatter + delta * jnp.eye(len(scatter), dtype=scatter.dtype)
