"""What neural collapse asks of rows that lie in host memory, in two passes of NumPy.

Moments hold the whole scatter within classes: ``n p^2`` products, in float64. Neural collapse asks
how large it is, and how large along the ``C`` directions in which class means differ: with these at
hand, in a second pass, ``n p C`` products say that, and float32 has the digits for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spectral_jax._options import WHOLE
from spectral_jax.features.moments import Head, label_count, on_host

BLOCK = 512  # rows that are taken at a time: they stay in the cache
# Float32 has the squares of features whose squared distances are larger than this, to the last
# digit that the features have beside them.
LEAST_SQUARE = 1e-20


class HostRows(NamedTuple):
    """Rows with labels."""

    features: np.ndarray
    labels: np.ndarray
    """From 0 up to ``classes``, also of rows that are not read."""
    weights: np.ndarray
    """0 of a row that is not read, NaN of one that has no class."""
    classes: int
    dtype: type
    """What the rows are multiplied in: float32 if it holds them, or float64."""
    unit: float
    """A power of two that rows are divided by, so that float64 has their squares."""


class ClassMeans(NamedTuple):
    """In units, and in float64."""

    weight: np.ndarray
    mean: np.ndarray
    effective: float
    """``(sum w)^2 / sum w^2``."""
    noise: float
    """How exact the means are, as a share of their length."""


class Within(NamedTuple):
    """What is left within classes, in units."""

    variance: np.ndarray
    """The mean squared distance of a class to its mean."""
    along: float
    """``tr(A^T S_W A)`` for the columns ``A`` that were asked for."""
    disagree: float
    """The share of the weight that a head puts into another class than the nearest mean does.
    NaN without one."""


class _Decisions(NamedTuple):
    """Of a row ``x`` with label ``c`` and ``d = x - base[c]``: for each class how near its mean is,
    ``d . near + offset[c]``, and what the head says, ``x . kernel + bias``."""

    near: np.ndarray
    offset: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray | float


def host_rows(features: Any, arrays: Mapping[str, Any]) -> HostRows | None:
    """The rows, or None for what NumPy is not to multiply or what `of` would refuse.

    They are arrays of NumPy or of a CPU that is JAX's default, and nothing is asked for but labels,
    how many these are, and weights.
    """
    if set(arrays) - {"labels", "classes", "weights"} or jax.default_backend() != "cpu":
        return None
    x, labels, weights = map(on_host, (features, arrays.get("labels"), arrays.get("weights")))
    if not (_is_array(x, 2) and _is_array(labels, 1) and labels.dtype.kind in "iu"):
        return None
    if x.shape[1] == 0 or len(labels) != len(x):
        return None
    if weights is not None and not (_is_array(weights, 1) and len(weights) == len(x)):
        return None
    classes = label_count(labels, arrays.get("classes"))
    if isinstance(classes, bool) or not isinstance(classes, WHOLE) or classes < 1:
        return None
    known = (labels >= 0) & (labels < classes)
    w = np.ones(len(x)) if weights is None else weights.astype(np.float64)
    w = np.where(labels < 0, 0, np.where(known & (w >= 0), w, np.nan))
    dtype = np.float32 if np.result_type(x.dtype, np.float32) == np.float32 else np.float64
    labels = np.where(known, labels, 0).astype(np.intp)
    rows = HostRows(np.asarray(x), labels, w, int(classes), dtype, 1.0)
    return rows if dtype is np.float32 else rows._replace(unit=_unit(rows))


@np.errstate(all="ignore")
def class_means(rows: HostRows) -> ClassMeans:
    """The first pass: weights and means, which float64 holds far below what is left about them."""
    weight = np.bincount(rows.labels, rows.weights, rows.classes)
    some = np.where(weight == 0, 1, weight)[:, None]
    mean = _totals(rows, None) / some
    effective = weight.sum() ** 2 / (rows.weights @ rows.weights)
    if rows.dtype is np.float32:
        return ClassMeans(weight, mean, effective, noise=2.0**-46)
    # A sum of float64 is rounded by a share of the rows' size, which may be far above what is left
    # within classes: of rows about nearly their mean it is not.
    mean += _totals(rows, mean) / some
    return ClassMeans(weight, mean, effective, noise=2.0**-50)


@np.errstate(all="ignore")
def within_classes(
    rows: HostRows, means: ClassMeans, columns: np.ndarray, head: Head | None
) -> Within:
    """The second pass: about class means, along ``columns``, and whether ``head`` agrees."""
    found = _within(rows, means, columns, head)
    centred = _about_their_mean(means)[1]
    size = max(found.variance.max(), _squares(centred).max())
    if rows.dtype is np.float64 or LEAST_SQUARE <= size < np.inf:
        return found
    return _within(rows._replace(dtype=np.float64), means, columns, head)


def _within(rows: HostRows, means: ClassMeans, columns: np.ndarray, head: Head | None) -> Within:
    if columns.shape[1] > len(columns):  # fewer of the same A A^T
        columns = np.transpose(np.linalg.qr(columns.T, mode="r"))
    size = float(np.abs(columns).max()) or 1.0
    columns = columns / size
    base: np.ndarray = means.mean.astype(rows.dtype)
    decisions = None if head is None else _decisions(rows, means, base, head)
    sides = [columns] if decisions is None else [columns, decisions.near]
    right: np.ndarray = np.concatenate(sides, axis=1).astype(rows.dtype)
    spread, along, disagree = np.zeros(rows.classes), 0.0, 0.0
    for x, labels, w in _blocks(rows, rows.dtype):
        d = np.take(base, labels, axis=0)
        np.subtract(x, d, out=d)
        spread += np.bincount(labels, w * _squares(d), rows.classes)
        products = d @ right
        along += w @ _squares(products[:, : columns.shape[1]])
        if decisions is not None:
            near = products[:, columns.shape[1] :] + decisions.offset[labels]
            disagree += w @ _differ(near, x @ decisions.kernel + decisions.bias)
    total = means.weight.sum()
    slip = means.mean - base  # what the means were rounded by
    spread -= means.weight * _squares(slip)
    along -= means.weight @ _squares(slip @ columns)
    variance = np.maximum(spread, 0) / np.where(means.weight == 0, 1, means.weight)
    share = np.nan if head is None else disagree / total
    return Within(variance, np.maximum(along, 0) / total * size**2, share)


def _decisions(rows: HostRows, means: ClassMeans, base: np.ndarray, head: Head) -> _Decisions:
    """About the middle of the means, so that distances keep their digits where that is far away."""
    middle, centred = _about_their_mean(means)
    size = np.abs(centred).max() or 1.0  # lest squares leave the dtype
    near = centred.T / size
    offset = (base - middle) @ near - _squares(centred) / (2 * size)
    return _Decisions(
        near=near,
        offset=np.where(means.weight == 0, -np.inf, offset),
        kernel=(np.asarray(head.kernel, np.float64) * rows.unit).astype(rows.dtype),
        bias=0.0 if head.bias is None else np.asarray(head.bias, rows.dtype),
    )


def _differ(near: np.ndarray, says: np.ndarray) -> np.ndarray:
    lost = np.isnan(near).any(axis=1) | np.isnan(says).any(axis=1)
    return np.where(lost, np.nan, near.argmax(axis=1) != says.argmax(axis=1))


def _about_their_mean(means: ClassMeans) -> tuple[np.ndarray, np.ndarray]:
    here = means.weight != 0
    middle = here @ means.mean / here.sum()
    return middle, np.where(here[:, None], means.mean - middle, 0)


def _totals(rows: HostRows, about: np.ndarray | None) -> np.ndarray:
    """``sum w (x - about)`` of each class, in float64.

    By a sparse product: it takes no longer for many classes than for few.
    """
    from scipy.sparse import csc_array

    total = np.zeros((rows.classes, rows.features.shape[1]))
    for x, labels, w in _blocks(rows, np.float64):
        member = csc_array((w, labels, np.arange(len(w) + 1)), shape=(rows.classes, len(w)))
        total += member @ (x if about is None else x - about[labels])
    return total


def _blocks(rows: HostRows, dtype: type) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows in units, labels and weights, of rows that are read."""
    for start in range(0, len(rows.features), BLOCK):
        block = slice(start, start + BLOCK)
        x, labels, w = rows.features[block], rows.labels[block], rows.weights[block]
        read = w != 0
        if not read.all():
            x, labels, w = x[read], labels[read], w[read]
        x = x.astype(dtype, copy=False)
        yield (x if rows.unit == 1 else x / rows.unit), labels, w


def _unit(rows: HostRows) -> float:
    """The power of two next below the largest magnitude; 1 if that is 0 or no number."""
    largest = max((np.abs(x).max(initial=0) for x, _, _ in _blocks(rows, np.float64)), default=0.0)
    usable = 0 < largest < np.inf
    return float(np.ldexp(0.5, np.frexp(largest)[1])) if usable else 1.0


def _squares(rows: np.ndarray) -> np.ndarray:
    """The squared length of each."""
    return np.einsum("ij,ij->i", rows, rows)


def _is_array(x: Any, axes: int) -> bool:
    """Of real numbers, and nothing masked."""
    plain = isinstance(x, np.ndarray) and not isinstance(x, np.ma.MaskedArray)
    if not plain or x.ndim != axes:
        return False
    return x.dtype.kind in "biuf" or jnp.issubdtype(x.dtype, jnp.floating)
