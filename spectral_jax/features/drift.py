"""Whether new inputs look like those of a reference, with a false-alarm rate that is known.

reference = calibrate(features, key, rows=(64, 256))       # once, of inputs as they should be
drift(reference, batch, level=0.01).alarm                  # of 1 in 100 batches like them, True
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Key

from spectral_jax._options import check_number, count
from spectral_jax.features.moments import FeatureMoments, as_moments, effective_rows, of
from spectral_jax.linalg import moments
from spectral_jax.linalg.arguments import check_key
from spectral_jax.linalg.precision import unit_of, working
from spectral_jax.linalg.subspace import mm
from spectral_jax.linalg.values import svdvals

__all__ = ["Bures", "Drift", "Reference", "bures", "calibrate", "drift"]

Features = FeatureMoments | Float[ArrayLike, "n p"]


class Bures(NamedTuple):
    """How far apart the features of two sets of inputs are, in the unit of the features."""

    distance: Float[Array, ""]
    """``sqrt(location^2 + shape^2)``."""
    location: Float[Array, ""]
    """``|mean_a - mean_b|``."""
    shape: Float[Array, ""]
    """The Bures distance of the covariances."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reference:
    """What `drift` compares with; make one with `calibrate`, keep it with `save`."""

    moments: FeatureMoments
    """Of one half of the features."""
    null: Float[Array, "sizes draws"]
    """Distances of batches of the other half, ascending, for each number of rows."""
    rows: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    """Those numbers, ascending."""


class Drift(NamedTuple):
    """A batch beside the batches that are as they should be."""

    distance: Float[Array, ""]
    """Of the batch from the reference: see `bures`."""
    threshold: Float[Array, ""]
    """What a share ``level`` of batches like the reference exceeds, at most."""
    p_value: Float[Array, ""]
    """The share of batches like the reference that are as far away, this one counted."""
    alarm: Bool[Array, ""]
    """Whether ``p_value <= level``; also if the distance or the threshold is NaN."""
    location: Float[Array, ""]
    shape: Float[Array, ""]
    rows: Float[Array, ""]
    """How many rows the batch has, or its weights amount to."""


def bures(a: Features, b: Features) -> Bures:
    """The Frechet distance of two sets of inputs by their features, as if these were Gaussian.

    ``distance^2 = |mean_a - mean_b|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2))`` with covariances
    ``A`` and ``B``: the Wasserstein distance of Gaussians, of which the square is known as FID. By
    factors ``A = R^T R``, ``B = Q^T Q`` the last trace is ``||R Q^T||_*``: no root of a matrix, and
    no inverse, so that fewer rows than features do no harm but the bias that they bring: ``n`` rows
    are further away than all would be, so compare at equal ``n``.

    Args:
      a, b: moments, or features ``[n, p]`` of any two numbers of inputs, by the same network. (Two
        networks on the same inputs are compared by `procrustes`.)

    Shapes below ``sqrt(p eps)`` of the deviation of the features are rounding. Works under ``jit``
    and ``vmap``, not under ``grad``. Raises ``ValueError`` for different numbers of features.
    Source: Dowson & Landau 1982; Heusel et al., arXiv 1706.08500 (FID).

    >>> x = jax.random.normal(jax.random.key(0), (50, 3))
    >>> [round(float(d), 3) for d in bures(x, 2 + x)]
    [3.464, 3.464, 0.0]
    """
    a, b = as_moments(a), as_moments(b)
    if a.sizes.features != b.sizes.features:
        raise ValueError(f"a has {a.sizes.features} features, b {b.sizes.features}")
    states = (moments.part(a.state, 0), moments.part(b.state, 0))
    return _distance(_apart(states), *(moments.factor(state, centred=True) for state in states))


def calibrate(
    features: Float[ArrayLike, "n p"],
    key: Key[Array, ""],
    *,
    rows: int | Sequence[int],
    draws: int = 999,
) -> Reference:
    """What `drift` needs to know of features of inputs as they should be.

    The moments of one half of them, drawn at random; and how far from it batches of the other half
    are, ``draws`` of each number of ``rows``, drawn from it without replacement: such a batch is
    one of independent rows, as a new one will be. (With replacement it would hold the same row
    twice, and lie further away.)

    Args:
      rows: of the batches to expect; several if they vary. At most a quarter of ``n``.
      draws: how many batches. A level below ``1 / (draws + 1)`` cannot be promised.

    A feature that is NaN makes every distance NaN, and every batch an alarm. Works under ``jit``.
    Raises ``ValueError`` for features that are no rows or too few of them, and for no random key.

    >>> x = jax.random.normal(jax.random.key(0), (400, 3))
    >>> calibrate(x, jax.random.key(1), rows=(50, 100), draws=99).null.shape
    (2, 99)
    """
    features, draws = working(features, "features"), count("draws", draws)
    if features.ndim != 2:
        raise ValueError(f"features have shape {features.shape}: pass rows [n, p]")
    if (n := len(features)) < 8:
        raise ValueError(f"features have {n} rows: pass at least 8, four times those of a batch")
    check_key(key, draws="batches are drawn")
    sizes = sorted({*np.ravel(rows).tolist()})
    why = "a quarter of the rows of features"
    sizes = [count("rows", size, least=2, most=n // 4, why=why) for size in sizes]
    if not sizes:
        raise ValueError("rows=(): choose the number of rows of a batch")
    split, batches = jax.random.split(key)
    mixed = jax.random.permutation(split, features)
    m = of(mixed[: n // 2])
    factor = moments.factor(m.state, centred=True)
    pool = mixed[n // 2 :] - moments.mean(m.state)
    null = _null(factor, pool, batches, sizes=tuple(sizes), draws=draws)
    return Reference(m, null, tuple(sizes))


def drift(reference: Reference, features: Features, *, level: float = 0.01) -> Drift:
    """Whether a batch of features is further from the reference than chance explains.

    The alarm is false for at most a share ``level`` of batches whose rows are drawn as those of the
    reference were, on the average over references: the distance of such a batch is as likely to
    have any place among the ``draws`` calibrated ones as any other. It makes no assumption about
    the features. Rows that belong together (frames of a film) are fewer than they seem, and the
    promise does not hold for them.

    Args:
      reference: of `calibrate`. The batch is compared with batches of as many rows as it has, or
        the next smaller number that is calibrated: those lie further away, and so the rate is at
        most ``level`` then too.
      features: of the batch ``[n, p]``, or their moments.
      level: of false alarms, at least ``1 / (draws + 1)``.

    For a batch of fewer rows than any calibrated, ``threshold`` is NaN, and that is an alarm, as
    NaN features are. Works under ``jit`` and ``vmap``, not under ``grad``. Raises ``ValueError``
    for another number of features, or a level that the draws cannot promise.

    >>> x = jax.random.normal(jax.random.key(0), (1000, 3))
    >>> reference = calibrate(x[:900], jax.random.key(1), rows=100, draws=99)
    >>> bool(drift(reference, x[900:]).alarm), bool(drift(reference, x[900:] + 1).alarm)
    (False, True)
    """
    if not isinstance(reference, Reference):
        raise ValueError(f"reference is a {type(reference).__name__}: pass what calibrate made")
    draws = reference.null.shape[-1]
    check_number(
        f"choose from 1 / {draws + 1} up to 1, for the null has {draws} draws",
        lambda x: 1 <= x * (draws + 1) * (1 + 1e-9) and x < 1,
        level=level,
    )
    m = as_moments(features)
    found, n = bures(reference.moments, m), effective_rows(m)
    distance, dtype = found.distance, found.distance.dtype
    size = jnp.sum(jnp.asarray(reference.rows, n.dtype) <= jnp.round(n)) - 1
    null = jnp.where(size >= 0, reference.null[jnp.maximum(size, 0)].astype(dtype), jnp.nan)
    as_far = jnp.sum(null >= distance).astype(dtype)
    known = jnp.isfinite(distance) & jnp.isfinite(null[-1])  # NaN is sorted to the end
    p_value = jnp.where(known, (1 + as_far) / (draws + 1), jnp.nan)
    passes = int(np.floor(level * (draws + 1) * (1 + 1e-9)))  # of all, this one counted
    alarm = ~(as_far + 1 > passes) | ~known
    return Drift(distance, null[draws - passes], p_value, alarm, found.location, found.shape, n)


@moments.exactly
def _apart(states: tuple[moments.Moments, moments.Moments]) -> Array:
    return moments.mean(states[0]) - moments.mean(states[1])


@jax.jit
def _distance(apart: Array, first: Array, second: Array) -> Bures:
    """From the difference of the means and factors of the covariances."""
    unit = unit_of(jnp.concatenate([apart[None], first, second]))  # whose squares are numbers
    apart, first, second = (x / unit for x in (apart, first, second))
    shared = jnp.sum(svdvals(mm(first, second.T)))
    shape = jnp.maximum(jnp.sum(first**2) + jnp.sum(second**2) - 2 * shared, 0)
    location = jnp.sum(apart**2)
    return Bures(*(unit * jnp.sqrt(x) for x in (location + shape, location, shape)))


@partial(jax.jit, static_argnames=("sizes", "draws"))
def _null(factor: Array, pool: Array, key: Array, *, sizes: tuple[int, ...], draws: int) -> Array:
    def distance(size: int, key: Array) -> Array:
        batch = pool[jax.random.choice(key, len(pool), (size,), replace=False)]
        apart = jnp.mean(batch, axis=0)
        return _distance(apart, (batch - apart) / size**0.5, factor).distance

    return jnp.stack(
        [
            jnp.sort(jax.lax.map(partial(distance, size), jax.random.split(each, draws)))
            for size, each in zip(sizes, jax.random.split(key, len(sizes)), strict=True)
        ]
    )
