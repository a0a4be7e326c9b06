"""Features and outputs (or targets) of the same rows, as rows that are easier to compute with.

Every number about both is a function of their second moments. So ``n`` rows may be replaced by any
others with the same ones: by ``q`` rows orthogonal to the constant function, and their means.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spectral_jax._options import check_number
from spectral_jax.features.moments import (
    Beside,
    FeatureMoments,
    Head,
    class_sums,
    fourth,
    unitless,
)
from spectral_jax.linalg import moments
from spectral_jax.linalg.precision import unit_of, working
from spectral_jax.linalg.subspace import mm


class Rows(NamedTuple):
    """``rows^T rows`` is the covariance of some columns; with the mean, in units of ``unit``."""

    rows: Float[Array, "q k"]
    mean: Float[Array, " k"]
    unit: Float[Array, ""]


class Sides(NamedTuple):
    """Rows of the features and of what stands beside them, one for one."""

    features: Rows
    others: Rows


def by_head(features: Rows, head: Head) -> Sides:
    """The outputs are computed from the features: no digit of theirs is squared."""
    rows, mean, unit = features
    own = unit_of(kernel := head.kernel.astype(rows.dtype))
    kernel = kernel / own
    level = mm(mean, kernel)
    if head.bias is not None:
        level += head.bias.astype(level.dtype) / unit / own  # their product may be out of range
    return Sides(features, Rows(mm(rows, kernel), level, unit * own))


def of_data(x: Float[Array, "n k"], share: Float[Array, " n"]) -> Rows:
    """The rows themselves, each by the root of its share of the weight."""
    mean = mm(share, x)
    mean = mean + mm(share, x - mean)  # what the sum of many rows was rounded by
    rows = jnp.sqrt(share)[:, None] * (x - mean)
    unit = jnp.maximum(unit_of(rows), unit_of(mean))
    return Rows(rows / unit, mean / unit, unit)


def of_moments(m: FeatureMoments, beside: Head | Beside) -> Sides:
    """From a factor of the second moments, by their method."""
    if isinstance(beside, Head):
        return by_head(feature_rows(m), beside)
    return _beside(m, beside=beside)


@moments.exactly
def feature_rows(m: FeatureMoments) -> Rows:
    """Of the features alone."""
    own = moments.part(m.state, 0)
    return _in_units(moments.factor(own, centred=True), moments.mean(own))


@moments.exactly
def quartic_of(m: FeatureMoments) -> Float[Array, ""]:
    """The mean of ``|x - mean|^4``, in the unit of `feature_rows`."""
    m = unitless(m)
    return fourth(m).squares / feature_rows(m).unit ** 4


@partial(moments.exactly, static=("beside",))
def _beside(m: FeatureMoments, *, beside: Beside) -> Sides:
    if not getattr(m.sizes, beside):
        return _of_labels(m)
    p = m.sizes.features
    start = p if beside == "outputs" else p + m.sizes.outputs
    columns = slice(start, start + getattr(m.sizes, beside))
    rows, mean = moments.factor(m.state, centred=True), moments.mean(m.state)
    features = _in_units(rows[:, :p], mean[:p])
    return Sides(features, _in_units(rows[:, columns], mean[columns]))


def _of_labels(m: FeatureMoments) -> Sides:
    """One-hot labels, without rounding.

    Indicators of classes over the roots of their shares are orthonormal: in that basis the labels
    are the diagonal matrix of these roots, and the features are class means.
    """
    own, mean = class_sums(m), moments.mean(moments.part(m.state, 0))
    total = jnp.sum(own.weight)
    share = own.weight / jnp.where(total == 0, 1, total)
    root = jnp.sqrt(share)
    labels = jnp.diag(root) - jnp.outer(root, share)
    return Sides(_in_units(root[:, None] * (own.mean - mean), mean), _in_units(labels, share))


def _in_units(rows: Array, mean: Array) -> Rows:
    unit = unit_of(rows)
    return Rows(rows / unit, mean / unit, unit)


@jax.custom_jvp
def undifferentiated(m: FeatureMoments) -> FeatureMoments:
    """The same. A factor has no derivative where the moments are singular, as of a dead feature."""
    return m


@undifferentiated.defjvp
def _no_derivative(primals, tangents):
    raise ValueError("no derivative by moments: pass the features themselves to richness")


# Which directions count


def check_tolerance(tolerance: float | None) -> None:
    if tolerance is not None:
        check_number("choose in [0, 1)", lambda t: 0 <= t < 1, tolerance=tolerance)


def tolerance_in(dtype: Any, tolerance: float | None) -> float:
    """A share of the largest singular value, for columns that are known to the last digits."""
    return max(1e-10, 64 * float(jnp.finfo(dtype).eps)) if tolerance is None else tolerance


def tolerance_of(m: FeatureMoments, exact: bool, tolerance: float | None) -> Array:
    """The same for columns in moments: ``exact`` by a head or by labels, or themselves summed.

    Directions of zero length then come out with the root of what the sums resolve.
    """
    least = tolerance_in(m.state.high.mean.dtype, tolerance)
    return jnp.maximum(least, 0 if exact else 4 * jnp.sqrt(moments.resolution(m.state)))


def checked_head(head: Any, p: int) -> Head:
    """The head as arrays, for ``p`` features."""
    if not isinstance(head, Head):
        raise ValueError(f"head is a {type(head).__name__}: pass features.Head(kernel, bias)")
    kernel = working(head.kernel, "head.kernel")
    if kernel.ndim != 2 or kernel.shape[0] != p or kernel.shape[1] == 0:
        raise ValueError(
            f"head.kernel has shape {kernel.shape}: pass [{p}, c] for outputs x @ kernel"
        )
    if head.bias is None:
        return Head(kernel)
    bias = working(head.bias, "head.bias")
    if bias.shape != kernel.shape[1:]:
        raise ValueError(f"head.bias has shape {bias.shape}: pass {kernel.shape[1]} numbers")
    return Head(kernel, bias)
