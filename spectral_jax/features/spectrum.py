"""The spectrum of features: how many directions they use, by every definition that is in use."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from spectral_jax._choices import check_choice
from spectral_jax._options import check_number, count
from spectral_jax.features.moments import (
    FeatureMoments,
    as_moments,
    covariance,
    effective_rows,
    eigenvalues,
    mean,
    unitless,
)
from spectral_jax.linalg.precision import unit_of
from spectral_jax.linalg.spread import Resolved, known, line, resolved, spread

Kind = Literal[
    "entropy",
    "participation",
    "stable_rank",
    "nesum",
    "rankme",
    "rankme_eigenvalues",
    "rankme_log",
    "srank",
    "renyi",
]
# A standard deviation that is this small beside the mean is the rounding of a constant.
CONSTANT = 2.0**-20


class FeatureSpectrum(NamedTuple):
    """Eigenvalues of the second moments of features, and how far to trust them."""

    values: Float[Array, " p"]
    """Descending. Those up to ``floor`` are rounding."""
    floor: Float[Array, ""]
    rank: Int[Array, ""]
    """How many values are above the floor."""
    rows: Float[Array, ""]
    """How many rows of equal weight there were."""
    few_rows: Bool[Array, ""]
    """Whether there were no more of them than features: then the rank is at most the number of
    rows, less one if centred, and every effective dimension is too small."""
    top_share: Float[Array, ""]
    """The largest value over their sum. Near 1 where a few massive activations rule."""


class Decay(NamedTuple):
    """A power law ``value ~ rank^-alpha``, fitted by least squares of the logarithms."""

    alpha: Float[Array, ""]
    """NaN of fewer than two values above the floor within the range."""
    r_squared: Float[Array, ""]
    """The share of the variance of the logarithms that the law explains."""
    first: Int[Array, ""]
    """The ranks, from 1, of the largest value that was fitted and of the smallest."""
    last: Int[Array, ""]


class UnitActivity(NamedTuple):
    """What each unit does over the rows."""

    score: Float[Array, " p"]
    """The root mean square of its feature over the mean of that of all units: 1 is ordinary."""
    dead: Bool[Array, " p"]
    """Always exactly 0."""
    dormant: Bool[Array, " p"]
    """Of a score up to the threshold; dead ones too."""
    constant: Bool[Array, " p"]
    """The same on all rows, as far as rounding lets see; dead ones too."""


def spectrum(
    features: FeatureMoments | Float[ArrayLike, "n p"],
    *,
    centred: bool = True,
    weights: Float[ArrayLike, " n"] | None = None,
) -> FeatureSpectrum:
    """The eigenvalues ``rho_1 >= rho_2 >= ...`` of the covariance of features.

    Args:
      features: moments, or an array.
      centred: without it, of ``sum w x x^T / sum w``, of which the mean of the features is most of
        the first one.
      weights: of an array's rows.

    Works under ``jit``, ``vmap`` and, but for ``gram64`` in float32, ``grad``. NaN features give
    NaN. The floor is that of `linalg.moments.eigenvalues`.

    >>> found = spectrum(jnp.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    >>> [round(float(x), 4) for x in found.values], round(float(found.top_share), 4)
    ([4.5, 0.5], 0.9)
    """
    m = as_moments(features, weights=weights)
    values, floor = eigenvalues(m, centred=centred)
    shares = _above(values, floor) / unit_of(values)
    total = jnp.sum(shares)
    rows = effective_rows(m)
    return FeatureSpectrum(
        values=values,
        floor=floor,
        rank=jnp.sum(values > floor).astype(jnp.int32),
        rows=rows,
        few_rows=rows <= len(values),
        top_share=known(shares[0] / jnp.where(total > 0, total, 1), values),
    )


def effective_dimension(
    features: FeatureMoments | Resolved | Float[ArrayLike, "n p"] | Float[ArrayLike, " k"],
    *,
    kind: Kind = "entropy",
    centred: bool = True,
    drop: int = 0,
    order: float = 2.0,
    delta: float = 0.01,
    eps: float = 0.0,
    weights: Float[ArrayLike, " n"] | None = None,
) -> Float[Array, ""]:
    """How many directions features use: ``k`` for ``k`` equal eigenvalues, 0 for none.

    With eigenvalues ``rho``, their shares ``q = rho / sum rho``, and ``s = sqrt(rho)``:

    ====================== =================================================== ==================
    ``kind``               value                                               source
    ====================== =================================================== ==================
    ``entropy``            ``exp(-sum q log q)``                               arXiv 2410.04264
    ``participation``      ``1 / sum q^2``
    ``stable_rank``        ``sum rho / max rho``; also called ``nesum``        arXiv 2305.16789
    ``rankme``             the entropy's, of the shares of ``s``               arXiv 2210.02885
    ``rankme_eigenvalues`` ``entropy``, as others compute ``rankme``
    ``rankme_log``         ``log(rankme) / log(p)``: not a number of           another reading
                           directions but a share of the largest entropy
    ``srank``              the fewest ``s`` that sum to ``1 - delta`` of all   arXiv 2010.14498
    ``renyi``              ``(sum q^order)^(1 / (1 - order))``                 Renyi 1961
    ====================== =================================================== ==================

    Args:
      features: moments, an array ``[n, p]``, a spectrum, or eigenvalues ``[k]``.
      centred: of moments and arrays ``[n, p]``; RankMe and srank are published for ``False``.
      drop: so many of the largest eigenvalues are left out: of a spectrum that massive activations
        rule, this says what is below them.
      order: of ``renyi``, above 0; at 1 it is the entropy, at infinity the stable rank.
      delta: of ``srank``, between 0 and 1.
      eps: of the three ``rankme``: added to each of the ``p`` shares, below the floor too. 1e-7 as
        published, which lets the result exceed ``p``.
      weights: of an array's rows.

    Values below the floor count as 0: rounding is no direction. Works under ``jit``, ``vmap`` and,
    but for ``srank`` and for ``gram64`` in float32, ``grad``, at any scale. NaN features give NaN.
    Raises ``ValueError`` for an unknown kind or an option out of its range.

    >>> [round(float(effective_dimension(jnp.array([4.0, 1.0, 1.0, 0.0]), kind=k)), 3)
    ...  for k in ("entropy", "participation", "stable_rank", "rankme")]
    [2.381, 2.0, 1.5, 2.828]
    """
    check_choice(get_args(Kind), kind=kind)
    drop = count("drop", drop, least=0)
    check_number("choose above 0", lambda x: x > 0, order=order)
    check_number("choose above 0 and below 1", lambda x: 0 < x < 1, delta=delta)
    check_number("choose at least 0", lambda x: x >= 0, eps=eps)
    values, floor = _values(features, centred=centred, weights=weights)
    options = dict(kind=kind, drop=drop, order=float(order), delta=float(delta), eps=float(eps))
    return _dimension(values, floor, **options)


def alpha_req(
    features: FeatureMoments | Resolved | Float[ArrayLike, "n p"] | Float[ArrayLike, " k"],
    *,
    first: int = 1,
    last: int | None = None,
    centred: bool = True,
    weights: Float[ArrayLike, " n"] | None = None,
) -> Decay:
    """The exponent ``alpha`` of a power law through the eigenvalues, ``rho_j ~ j^-alpha``.

    Args:
      features, centred, weights: as for `effective_dimension`.
      first, last: the ranks, from 1, between which the law is fitted, each as heavy as the other;
        ``last=None`` is the last. What is below the floor is left out in any case. The exponent
        depends on the range as much as on the spectrum: report both.

    Works under ``jit``, ``vmap`` and, but for ``gram64`` in float32, ``grad``. Raises
    ``ValueError`` for ``last`` below ``first``.
    Source: arXiv 2202.05808, without its weights.

    >>> found = alpha_req(jnp.arange(1.0, 50.0) ** -1.5)
    >>> round(float(found.alpha), 3), round(float(found.r_squared), 3), int(found.last)
    (1.5, 1.0, 49)
    """
    first = count("first", first)
    if last is not None:
        last = count("last", last, least=first, why="first")
    values, floor = _values(features, centred=centred, weights=weights)
    return _decay(values, floor, first=first, last=last)


def unit_activity(
    features: FeatureMoments | Float[ArrayLike, "n p"],
    *,
    threshold: float = 0.025,
    weights: Float[ArrayLike, " n"] | None = None,
) -> UnitActivity:
    """Which units are dead, dormant or constant over the rows.

    Args:
      features: moments, or an array, of activations: after the nonlinearity.
      threshold: the score up to which a unit is dormant.
      weights: of an array's rows.

    The score is that of Sokar et al. with root mean squares in the place of mean magnitudes, which
    are no moments: a unit that is seldom active, and then strongly, scores higher by it. Works
    under ``jit`` and ``vmap``. A NaN feature is neither, and its score NaN. Raises ``ValueError``
    for a threshold below 0.
    Source: Sokar et al. 2023 (arXiv 2302.12902).

    >>> found = unit_activity(jnp.array([[0.0, 1.0, 2.0], [0.0, 3.0, 2.0]]))
    >>> found.dead.tolist(), found.constant.tolist()
    ([True, False, False], [True, False, True])
    """
    check_number("choose at least 0", lambda x: x >= 0, threshold=threshold)
    m = unitless(as_moments(features, weights=weights))
    squares = jnp.diagonal(covariance(m, centred=False))
    size = jnp.sqrt(jnp.where(squares > 0, squares, 1)) * jnp.where(squares > 0, 1, squares)
    typical = jnp.nanmean(size)
    score = size / jnp.where(typical > 0, typical, 1)
    variance = jnp.diagonal(covariance(m))
    return UnitActivity(
        score=score,
        dead=(squares == 0) & (mean(m) == 0),  # a square may underflow
        dormant=score <= threshold,
        constant=variance <= (CONSTANT * mean(m)) ** 2,
    )


def _values(features: Any, *, centred: bool, weights: Any) -> tuple[Array, Array]:
    """Eigenvalues and floor, of whatever says them; of moments in a unit of their own."""
    if not isinstance(features, FeatureMoments):
        if isinstance(features, Resolved) or jnp.ndim(features) == 1:
            if weights is not None:
                raise ValueError("weights beside eigenvalues: they are of the rows of an array")
            return resolved(features, None)
    m = unitless(as_moments(features, weights=weights))
    found = eigenvalues(m, centred=centred)
    return found.values, found.floor


@partial(jax.jit, static_argnames=("kind", "drop", "order", "delta", "eps"))
def _dimension(
    values: Array, floor: Array, *, kind: Kind, drop: int, order: float, delta: float, eps: float
) -> Array:
    values = -jnp.sort(-values)[drop:]
    parts = _above(values, floor) / unit_of(values)
    if kind.startswith("rankme"):
        parts = parts if kind == "rankme_eigenvalues" else _root(parts)
        found = _rank_me(parts, eps)
        if kind == "rankme_log":
            found = jnp.log(jnp.maximum(found, 1)) / jnp.log(max(len(parts), 2))
    elif kind == "srank":
        roots = _root(parts)
        reached = jnp.cumsum(roots) < (1 - delta) * jnp.sum(roots)
        found = jnp.sum(reached) + jnp.any(roots > 0)
    elif kind == "renyi" and order not in (1.0, float("inf")):
        found = _renyi(parts, order)
    else:
        spreads = spread(parts, floor=jnp.zeros_like(floor))
        by_order = {1.0: "entropy", float("inf"): "intrinsic"}
        by_kind = {"stable_rank": "intrinsic", "nesum": "intrinsic", "renyi": by_order.get(order)}
        found = getattr(spreads, by_kind.get(kind) or kind)
    return known(found, values)


def _rank_me(parts: Array, eps: float) -> Array:
    total = jnp.sum(parts)
    shares = parts / jnp.where(total > 0, total, 1) + eps
    logs = jnp.log(jnp.where(shares > 0, shares, 1))
    return jnp.where(total > 0, jnp.exp(-jnp.sum(shares * logs)), 0)


def _renyi(parts: Array, order: float) -> Array:
    total = jnp.sum(parts)
    shares = parts / jnp.where(total > 0, total, 1)
    if abs(order - 1) < 0.1:  # the sum is nearly 1: only its distance from 1 has digits
        logs = jnp.log(jnp.where(shares > 0, shares, 1))
        apart = jnp.sum(shares * jnp.expm1((order - 1) * logs))
        return jnp.where(total > 0, jnp.exp(jnp.log1p(apart) / (1 - order)), 0)
    # By logarithms: a power of a small share underflows, and its root with it.
    logs = jnp.where(shares > 0, order * jnp.log(jnp.where(shares > 0, shares, 1)), -jnp.inf)
    found = jnp.exp(jax.nn.logsumexp(logs) / (1 - order))
    return jnp.where(total > 0, found, 0)


@partial(jax.jit, static_argnames=("first", "last"))
def _decay(values: Array, floor: Array, *, first: int, last: int | None) -> Decay:
    values = -jnp.sort(-values)
    rank = jnp.arange(1, len(values) + 1)
    inside = (values > floor) & (rank >= first) & (rank <= (last or len(values)))
    logs = jnp.log(jnp.where(inside, values / unit_of(values), 1))
    slope, _, explained = line(jnp.log(rank.astype(values.dtype)), logs, inside)
    some = jnp.any(inside)
    return Decay(
        alpha=known(-slope, values),
        r_squared=known(explained, values),
        first=jnp.where(some, jnp.argmax(inside) + 1, 0).astype(jnp.int32),
        last=jnp.max(jnp.where(inside, rank, 0), initial=0).astype(jnp.int32),
    )


def _above(values: Array, floor: Array) -> Array:
    return jnp.where(values > floor, values, 0)


def _root(x: Array) -> Array:
    """With a derivative of 0 at 0."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)
