"""Ridge regression of the targets on features, for all penalties from one eigendecomposition."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from spectral_jax.features.moments import (
    FeatureMoments,
    Head,
    as_moments,
    covariance,
    cross,
    effective_rows,
    gram,
    mean,
    mean_beside,
    pooled,
)
from spectral_jax.linalg.decompositions import eigh
from spectral_jax.linalg.moments import exactly
from spectral_jax.linalg.precision import working
from spectral_jax.linalg.subspace import mm

# Twice a decade, from no penalty at all to a constant.
PENALTIES = 10 ** np.linspace(-8, 3, 23)


class RidgeProbe(NamedTuple):
    """Errors are squared distances to the target, summed over its columns, on average."""

    penalties: Float[Array, " s"]
    """As shares of the mean eigenvalue of the covariance."""
    training: Float[Array, " s"]
    """The error on the rows that were fitted."""
    error: Float[Array, " s"]
    """On the validation rows; without, by generalised cross-validation."""
    degrees: Float[Array, " s"]
    """Of freedom: ``1 + sum rho / (rho + penalty)``."""
    best: Int[Array, ""]
    """Which penalty has the least error."""
    r2: Float[Array, ""]
    """``1 - error / variance`` for it: 1 for targets that features tell linearly; the variance is
    that of the targets on the rows of ``error``."""
    head: Head
    """Kernel ``[p, k]`` and bias ``[k]`` for it."""


class _Path(NamedTuple):
    """The fits for all penalties, in the eigenbasis of the covariance."""

    values: Float[Array, " p"]
    """0 where they are rounding: few rows leave directions that no row has."""
    vectors: Float[Array, "p p"]
    projections: Float[Array, "k p"]
    """Of the covariance of targets and features onto the eigenvectors."""
    penalties: Float[Array, " s"]
    """In the unit of the eigenvalues."""
    weights: Float[Array, "s k p"]
    middle: Float[Array, " p"]
    """The mean of the features, not in the eigenbasis."""
    target: Float[Array, " k"]
    """The mean of the targets."""


def ridge_probe(
    m: FeatureMoments | Float[ArrayLike, "n p"],
    *,
    penalties: Float[ArrayLike, " s"] | None = None,
    validation: FeatureMoments | None = None,
    **arrays: Any,
) -> RidgeProbe:
    """How well a linear map of the features tells the targets.

    ``min_(W, b) E |y - W^T x - b|^2 + penalty |W|^2``, the bias free, has the solution
    ``W = sum_j v_j (v_j^T A^T) / (rho_j + penalty)`` with eigenpairs of the features' covariance
    and its covariance ``A`` with the targets: after one pass over the rows and one
    eigendecomposition, every penalty costs a product.

    Args:
      m: moments with targets or classes (whose targets are one-hot); or features ``[n, p]`` with
        ``targets=`` or ``labels=``.
      penalties: above 0, as shares of the mean eigenvalue ``tr S / p``, so that they do not depend
        on the features' scale; ``10^-8 .. 10^3`` by default.
      validation: moments, of the same columns, of the rows by which to choose. Without, generalised
        cross-validation chooses: ``training / (1 - degrees / n)^2``, about the error on a row that
        was left out (Golub, Heath & Wahba 1979); infinite for as many degrees as rows.

    Of constant features the probe is the mean of the targets. Works under ``jit`` and ``vmap``. NaN
    for NaN in the rows. Raises ``ValueError`` for moments without targets, for validation moments
    of other columns, and what is no list of penalties; penalties that are not above 0 give NaN.
    Source: Hastie, Tibshirani & Friedman, The Elements of Statistical Learning, sections 3.4, 7.10.

    >>> x = jnp.array([[0.0], [1.0], [2.0], [3.0]])
    >>> found = ridge_probe(x, targets=2 * x + 1)
    >>> round(float(found.head.kernel[0, 0]), 4), round(float(found.r2), 4)
    (2.0, 1.0)
    """
    state = as_moments(m, **arrays)
    shares = working(PENALTIES if penalties is None else penalties, "penalties")
    if shares.ndim != 1 or not len(shares):
        raise ValueError(f"penalties have shape {shares.shape}: pass a list of at least one")
    if validation is not None:
        _check_columns(state, validation)
        validation = pooled(validation)
    return _probed((state, validation), shares.astype(state.state.high.mean.dtype))


@exactly
def _probed(states: tuple[FeatureMoments, FeatureMoments | None], shares: Array) -> RidgeProbe:
    m, validation = states
    shares = jnp.where(shares > 0, shares, jnp.nan)
    path = _path(m, shares)
    variance = jnp.trace(gram(m, "targets"))
    training = _training(path, variance, m.state.eps)
    degrees = 1 + jnp.sum(path.values / (path.values + path.penalties[:, None]), axis=1)
    if validation is None:
        left = 1 - degrees / effective_rows(m)
        error = jnp.where(left <= 0, jnp.inf, training / jnp.where(left <= 0, 1, left) ** 2)
    else:
        error, variance = _error(validation, path), jnp.trace(gram(validation, "targets"))
    # Not by argmin: lowered outside of `exactly`, it has no int64 to count in.
    numbers = jnp.arange(len(error))
    best = jnp.min(jnp.where(error == jnp.min(error), numbers, len(error) - 1))
    kernel = mm(path.vectors, path.weights[best].T)
    head = Head(kernel, path.target - mm(path.middle, kernel))
    r2 = 1 - error[best] / variance
    return RidgeProbe(shares, training, error, degrees, best, r2, head)


def _path(m: FeatureMoments, shares: Array) -> _Path:
    values, vectors = eigh(covariance(m))
    rounding = values <= len(values) * m.state.eps * values[-1]  # False for NaN
    values = jnp.where(rounding, 0, values)
    size = jnp.mean(values)
    size = jnp.where(size == 0, 1, size)  # of constant features, for which the mean alone tells
    penalties = shares * size
    projections = jnp.where(rounding, 0, mm(cross(m, "targets"), vectors))
    weights = projections / (values + penalties[:, None])[:, None]
    return _Path(
        values, vectors, projections, penalties, weights, mean(m), mean_beside(m, "targets")
    )


def _training(path: _Path, variance: Array, eps: float) -> Array:
    """What no fit explains, and what each penalty keeps from being explained.

    The variance less what a fit explains would be rounding where that is nearly all, and cross-
    validation divides it by the square of as small a number.
    """
    explains = path.values > 0
    values = jnp.where(explains, path.values, 1)
    parts = jnp.sum(path.projections**2, axis=0) / values
    left = variance - jnp.sum(parts)
    spread = jnp.max(path.values) / jnp.min(jnp.where(explains, path.values, jnp.inf))
    noise = 2 * len(values) * eps * jnp.sqrt(spread) * variance
    kept = path.penalties[:, None] / (path.values + path.penalties[:, None])
    return jnp.where(left <= noise, 0, left) + mm(kept**2, parts)


def _error(m: FeatureMoments, path: _Path) -> Array:
    """Of each fit on the rows of ``m``: ``E |y - W x|^2`` about their means, and between these."""
    s = mm(path.vectors.T, mm(covariance(m), path.vectors))
    a = mm(cross(m, "targets"), path.vectors)
    about = jnp.sum(path.weights * (mm(path.weights, s) - 2 * a), axis=(1, 2))
    moved = mm(path.weights, mm(mean(m) - path.middle, path.vectors))
    off = mean_beside(m, "targets") - path.target - moved
    return jnp.trace(gram(m, "targets")) + about + jnp.sum(off**2, axis=1)


def _check_columns(m: FeatureMoments, validation: FeatureMoments) -> None:
    ours, theirs = ((x.sizes.features, x.sizes.targets, x.classes) for x in (m, validation))
    if ours != theirs:
        raise ValueError(
            f"validation has (features, targets, classes) {theirs}, m {ours}: begin both alike"
        )
