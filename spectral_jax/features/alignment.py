"""How much of what features tell apart is what targets tell apart."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from spectral_jax.features.moments import (
    Beside,
    FeatureMoments,
    Head,
    as_moments,
    covariance,
    cross,
    effective_rows,
    gram,
    unitless,
)
from spectral_jax.linalg.moments import exactly
from spectral_jax.linalg.precision import unit_of


class Alignment(NamedTuple):
    """The cosine between two kernel matrices, and what it is for no reason at all."""

    value: Float[Array, ""]
    """Between 0 and 1."""
    chance: Float[Array, ""]
    """About what features give that have nothing to do with the targets: it is not 0."""


def alignment(
    m: FeatureMoments | Float[ArrayLike, "n p"],
    beside: Beside | Head = "targets",
    *,
    centred: bool = True,
    **arrays: Any,
) -> Alignment:
    """The alignment of the features' kernel with that of the targets, ``K = X X^T, L = Y Y^T``.

    ``<K, L> / (||K|| ||L||) = ||A||^2 / (||S|| ||G||)`` with Frobenius norms, ``S`` the covariance
    of the features, ``G`` that of the targets and ``A`` between both: no ``n x n`` matrix is made.
    Independent features give ``tr S tr G / ((n - 1) ||S|| ||G||)`` on average, which few rows or
    a flat spectrum make large: the ``chance``.

    Args:
      m: moments with targets or classes; or features ``[n, p]`` with ``targets=`` or ``labels=``.
      beside: ``"targets"`` (those of labels are one-hot), ``"outputs"``, or a `Head`, for its
        outputs.
      centred: take off means first (Cortes, Mohri & Rostamizadeh 2012). Without (Cristianini et al.
        2001) the means count too, which of features that are nowhere negative is most of it.

    Works under ``jit``, ``vmap`` and ``grad`` (of moments by ``method="gram"`` in float32). NaN
    where features or targets are constant. Raises ``ValueError`` for what the moments do not hold.

    >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> round(float(alignment(x, labels=jnp.array([0, 0, 1])).value), 6)
    1.0
    """
    state = as_moments(m, **arrays)
    if isinstance(beside, Head):
        return _aligned(state, beside, centred=centred)
    return _aligned(state, None, beside=beside, centred=centred)


@partial(exactly, static=("beside", "centred"))
def _aligned(
    m: FeatureMoments, head: Head | None, *, beside: Beside = "targets", centred: bool
) -> Alignment:
    # Norms of squares are products of four: of numbers of any size they are numbers in units alone.
    unit = m.state.high.unit[0]
    m, what = unitless(m), beside if head is None else _in_units(head, jnp.where(unit > 0, unit, 1))
    s = covariance(m, centred=centred)
    g = gram(m, what, centred=centred)
    norms = jnp.sqrt(jnp.sum(s**2)) * jnp.sqrt(jnp.sum(g**2))
    value = jnp.sum(cross(m, what, centred=centred) ** 2) / norms
    return Alignment(value, jnp.trace(s) * jnp.trace(g) / ((effective_rows(m) - 1) * norms))


def _in_units(head: Head, unit: Array) -> Head:
    """The head of features divided by ``unit``, in a unit of its own."""
    own = unit_of(head.kernel)
    return Head(head.kernel / own, None if head.bias is None else head.bias / unit / own)
