"""Second moments of rows of data: streamed, weighted, merged, sharded, centred or not.

    state = moments.zero(p)
    for batch in batches:                       # [b, p] each; also inside jit and scan
        state = moments.update(state, batch)
    moments.eigenvalues(state)                  # of sum w x x^T / sum w, and their floor

Squaring loses digits: a product of float32 numbers, summed in float32, hides every eigenvalue below
``n eps`` of the largest, which is most of the spectrum of natural data. Three methods:

========== ============================================== =================== ===================
method     sums                                           floor, of the top   use it
========== ============================================== =================== ===================
``gram64`` ``X^T X`` in float64, kept as two float32      ``n 2^-48``         as a rule
``qr``     the triangular factor of ``X``, never squared  ``n p eps^2``       for more decades
``gram``   ``X^T X`` in the dtype of the state            ``n eps``           if the top is enough
========== ============================================== =================== ===================

The mean is taken off each batch before it is squared, and put back for the uncentred moments: both
come from one state and neither is the difference of large numbers (Chan, Golub & LeVeque 1983).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from spectral_jax._choices import check_choice
from spectral_jax._options import check_number, count
from spectral_jax.linalg.precision import unit_of, working
from spectral_jax.linalg.subspace import mm
from spectral_jax.linalg.values import eigvalsh, svdvals

__all__ = [
    "Eigenvalues",
    "Moments",
    "Sums",
    "decay",
    "effective_rows",
    "eigenvalues",
    "leave_one_out",
    "mapped",
    "mean",
    "merge",
    "psum",
    "second",
    "unpaired",
    "update",
    "wide",
    "zero",
]

Method = Literal["gram64", "qr", "gram"]
METHODS = get_args(Method)

# The spacing of sums of two float32 numbers, the second of which holds the rounding of the first.
PAIR_EPS = 2.0**-48
SMALLEST = float(np.finfo(np.float32).tiny)
BLOCK = 1024  # rows that the host converts at a time: they stay in its cache
EXACT_REACH = 256  # whole numbers within it of each other's middle: blocks of 256 rows or more


class Sums(NamedTuple):
    """What is summed, in units of ``unit``, in which no square over- or underflows."""

    unit: Float[Array, ""]
    """The power of two next above the largest entry so far; 0 before there is one."""
    weight: Float[Array, ""]
    """``sum w``."""
    squares: Float[Array, ""]
    """``sum w^2``."""
    mean: Float[Array, " p"]
    scatter: Float[Array, "p p"]
    """``sum w (x - mean)(x - mean)^T``; for ``qr`` the triangular ``R``, ``R^T R`` being that."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """The state: a pytree of arrays, whose method is static.

    ``high`` holds the sums. ``low`` holds what their rounding to float32 left over, for ``gram64``
    in float32; else it is None. Make one with `zero`, read it with `mean`, `second`, `eigenvalues`.
    """

    high: Sums
    low: Sums | None
    method: Method = dataclasses.field(metadata={"static": True})

    @property
    def size(self) -> int:
        """The number of columns, ``p``."""
        return self.high.mean.shape[-1]


class Eigenvalues(NamedTuple):
    """Descending, and the size below which they are rounding, not data."""

    values: Float[Array, " p"]
    floor: Float[Array, ""]


def zero(p: int, *, method: Method = "gram64", dtype: DTypeLike | None = None) -> Moments:
    """The moments of no rows of length ``p``.

    Args:
      method: see the module.
      dtype: in which results come back; ``gram64`` sums in float64 whatever it is. The default
        float if None; float32 for a half type.

    Raises ``ValueError`` for a size below 1, an unknown method or a complex dtype.

    >>> zero(3, method="qr").high.scatter.shape
    (3, 3)
    """
    p = count("p", p)
    check_choice(METHODS, method=method)
    none = working(jnp.zeros((), float if dtype is None else dtype), "dtype")
    sums = Sums(none, none, none, jnp.zeros(p, none.dtype), jnp.zeros((p, p), none.dtype))
    paired = method == "gram64" and none.dtype == jnp.float32
    return Moments(sums, jax.tree.map(jnp.zeros_like, sums) if paired else None, method)


def update(
    state: Moments, x: Float[ArrayLike, "b p"], *, weights: Float[ArrayLike, " b"] | None = None
) -> Moments:
    """``state`` with the rows of a batch ``[b, p]`` added.

    Any order and any batches give the same moments, up to rounding. ``gram64`` reads all numbers
    exactly: half types, integers, and float64 where JAX has none.

    On a CPU ``gram64`` multiplies NumPy rows by NumPy, in three tenths of XLA's time and without a
    float64 copy of the batch.

    Args:
      weights: ``[b]``, at least 0; 1 for each row by default. A weight ``k`` is ``k`` rows alike. A
        row of weight 0 is not read, whatever it holds: ``weights=mask`` leaves out padding, and
        ``weights=jnp.isfinite(x).all(1)`` rows with NaN, which otherwise make every number that
        they enter NaN. So does a negative weight.

    Works under ``jit``, ``vmap``, ``scan`` and on rows sharded over devices, of which each sums its
    own: an all-reduce of the matrix, after one of the mean and one of the unit. Under ``grad``
    too, but ``gram64`` in float32 refuses it. Raises ``ValueError`` for shapes that do not fit,
    complex numbers, or float64 rows for a state of float32.

    >>> second(update(zero(2), jnp.array([[1.0, 0.0], [3.0, 2.0]]))).tolist()
    [[5.0, 3.0], [3.0, 2.0]]
    """
    with wide(state):
        if _on_host(state, x, weights):
            return _added(state, _host_batch(*_host_rows(state, x, weights)))
        return _updated(state, x, weights)


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of the rows of both.

    Associative and commutative up to rounding, with ``zero`` as its unit. Works under ``jit``,
    ``vmap`` and ``grad``. Raises ``ValueError`` for states of different size, method or dtype.

    >>> one = update(zero(1), jnp.array([[1.0]]))
    >>> mean(merge(one, update(zero(1), jnp.array([[2.0], [3.0]])))).tolist()
    [2.0]
    """
    _check_alike(a, b)
    with wide(a):
        return _together(a, b)


def psum(state: Moments, axis_name: str | tuple[str, ...]) -> Moments:
    """The moments of the rows of all devices along a mapped axis, on each of them.

    Inside ``shard_map`` or ``vmap(axis_name=...)``, after any number of updates: an all-reduce of
    the matrix (``qr``: an all-gather), after one of the mean and one of the unit.

    >>> parts = jnp.arange(6.0).reshape(3, 2, 1)
    >>> pooled = jax.vmap(lambda x: mean(psum(update(zero(1), x), "i")), axis_name="i")(parts)
    >>> pooled.ravel().tolist()
    [2.5, 2.5, 2.5]
    """
    with wide(state):
        own = _sums(state)
        own = _in_unit(own, jax.lax.pmax(own.unit, axis_name), state.method)
        weight, squares, total = jax.lax.psum(
            (own.weight, own.squares, own.weight * own.mean), axis_name
        )
        middle = total / _positive(weight)
        apart = jnp.sqrt(own.weight) * (own.mean - middle)
        if state.method == "qr":
            rows = jnp.concatenate([own.scatter, apart[None]])
            everyone = jax.lax.all_gather(rows, axis_name, tiled=True)
            scatter = _triangle(everyone.reshape(-1, state.size))
        else:
            scatter = jax.lax.psum(own.scatter + jnp.outer(apart, apart), axis_name)
        return _stored(Sums(own.unit, weight, squares, middle, scatter), state)


def decay(state: Moments, factor: ArrayLike) -> Moments:
    """All weights so far times ``factor``, between 0 and 1: an exponential moving average.

    Works under ``jit``, ``vmap`` and ``grad``. Raises ``ValueError`` for a Python number outside
    [0, 1].

    >>> old = update(zero(1), jnp.array([[0.0]]))
    >>> round(float(mean(update(decay(old, 0.5), jnp.array([[3.0]])))[0]), 6)
    2.0
    """
    if not isinstance(factor, jax.Array):
        check_number("choose between 0 and 1", lambda f: 0 <= f <= 1, factor=factor)
    with wide(state):
        sums = _sums(state)
        f = jnp.asarray(factor).astype(sums.weight.dtype)
        of_scatter = jnp.sqrt(f) if state.method == "qr" else f
        decayed = sums._replace(
            weight=f * sums.weight, squares=f * f * sums.squares, scatter=of_scatter * sums.scatter
        )
        return _stored(decayed, state)


def mapped(
    state: Moments, matrix: Float[ArrayLike, "p r"], offset: Float[ArrayLike, " r"] | float = 0.0
) -> Moments:
    """The moments of the rows ``x @ matrix + offset``, of ``r`` columns, without the rows.

    Works under ``jit``, ``vmap`` and ``grad``. Raises ``ValueError`` for a matrix of other than
    ``p`` rows.

    >>> second(mapped(update(zero(2), jnp.array([[1.0, 2.0]])), jnp.array([[1.0], [1.0]]))).tolist()
    [[9.0]]
    """
    matrix, offset = working(matrix, "matrix"), working(offset, "offset")
    if matrix.ndim != 2 or len(matrix) != state.size:
        raise ValueError(f"matrix has shape {matrix.shape}: pass [{state.size}, r] for these rows")
    with wide(state):
        return _mapped(state, matrix, offset)


def wide(state: Moments) -> contextlib.AbstractContextManager[None]:
    """``with wide(state):`` JAX has the dtype in which the state sums, whatever it is told to have.

    For arithmetic on `unpaired` moments. Bring results back to the dtype of ``state`` yourself.

    >>> with wide(zero(1)):
    ...     print(second(unpaired(zero(1))).dtype)
    float64
    """
    return contextlib.nullcontext() if state.low is None else jax.enable_x64(True)


def unpaired(state: Moments) -> Moments:
    """The same in the dtype in which it sums, of which `second` and `mean` then are: under `wide`.

    For differences of moments, which their rounding to the dtype of the state would ruin.
    """
    return Moments(_sums(state), None, state.method)


def leave_one_out(states: Sequence[Moments]) -> list[Moments]:
    """For each of the states the merged moments of all others: the samples of a jackknife.

    By merging from both ends, for a difference would lose digits; ``3 len(states)`` merges. Raises
    ``ValueError`` for fewer than two states.

    >>> blocks = [update(zero(1), jnp.array([[x]])) for x in (1.0, 2.0, 6.0)]
    >>> [float(mean(others)[0]) for others in leave_one_out(blocks)]
    [4.0, 3.5, 1.5]
    """
    if len(states) < 2:
        raise ValueError(f"{len(states)} states: a jackknife leaves out one of at least two")
    before, after = [states[0]], [states[-1]]
    for ahead, behind in zip(states[1:-1], states[-2:0:-1], strict=True):
        before.append(merge(before[-1], ahead))
        after.append(merge(behind, after[-1]))
    after.reverse()
    middle = [merge(a, b) for a, b in zip(before[:-1], after[1:], strict=True)]
    return [after[0], *middle, before[-1]]


def mean(state: Moments) -> Float[Array, " p"]:
    """``sum w x / sum w``; 0 without rows."""
    with wide(state):
        sums = _sums(state)
        return _narrow(sums.mean * _known(sums.unit), state)


def second(state: Moments, *, centred: bool = False) -> Float[Array, "p p"]:
    """``sum w x x^T / sum w``, or ``sum w (x - mean)(x - mean)^T / sum w`` if ``centred``.

    Symmetric, positive semidefinite up to rounding; zeros without rows. For ``gram64`` in float32
    each entry is the float64 one, rounded, so that its *small eigenvalues are lost*: take those
    from `eigenvalues`. NaN where the square of the data's unit is outside the dtype.

    Works under ``jit``, ``vmap`` and ``grad``.
    """
    with wide(state):
        sums = _sums(state)
        matrix = _matrix(sums, state.method, centred) * _square(sums.unit, state)
        return _narrow(matrix, state)


def eigenvalues(state: Moments, *, centred: bool = False) -> Eigenvalues:
    """The eigenvalues of `second`, descending, and the floor of what the method can resolve.

    The floor is the share in the module's table of the largest eigenvalue; ``n`` in it is the
    number of rows that the weights amount to, ``(sum w)^2 / sum w^2``, and at least ``p``; or, if
    ``centred`` and larger, the square of what rounding leaves of the mean; and never below the
    smallest normal number of the dtype, unless all rows are 0. Values below are rounding or have
    underflowed, whatever they say; what rounds to a negative number is one of them. Those
    above are off by no more than the floor; by ``qr``, whose *roots* are, ``2 sqrt(value floor)``.
    ``gram64`` computes in float64 and rounds each eigenvalue by itself: the small ones keep their
    digits in float32 too.

    Works under ``jit`` and ``vmap``, and ``grad`` except for ``gram64`` in float32. Without rows
    all are 0. NaN in the rows is NaN in all values and in the floor.
    """
    with wide(state):
        return _eigenvalues(state, centred=centred)


def effective_rows(state: Moments) -> Float[Array, ""]:
    """``(sum w)^2 / sum w^2``: how many rows of equal weight say as much (Kish 1965); 0 of none.

    NaN where weights are so small or large that the dtype does not have their squares.
    """
    return _effective_rows(state.high)


# Everything below is arithmetic on `Sums` of one dtype. Under `wide` that is float64, also where
# JAX is told to have none: what a user's program does outside is not touched.


def _sums(state: Moments) -> Sums:
    if state.low is None:
        return state.high
    return jax.tree.map(lambda high, low: _float64(high) + _float64(low), state.high, state.low)


def _stored(sums: Sums, like: Moments) -> Moments:
    if like.low is None:
        return Moments(sums, None, like.method)
    high = jax.tree.map(lambda x: x.astype(jnp.float32), sums)
    low = jax.tree.map(lambda x, h: (x - _float64(h)).astype(jnp.float32), sums, high)
    return Moments(high, low, like.method)


@jax.custom_jvp
def _float64(x: Array) -> Array:
    return x.astype(jnp.float64)


@_float64.defjvp
def _no_derivative(primals, tangents):
    """Reverse mode would run outside `wide`, where its products lose float64 unseen."""
    raise ValueError("no derivative of gram64 in float32: make the state by method='gram'")


def _narrow(x: Array, state: Moments) -> Array:
    return x.astype(state.high.mean.dtype)


@jax.jit
def _updated(state: Moments, x: Any, weights: Any) -> Moments:
    x, w = _rows(state, x, weights)
    return _stored(_merged(_sums(state), _batch(x, w, state.method), state.method), state)


@jax.jit
def _added(state: Moments, batch: Sums) -> Moments:
    return _stored(_merged(_sums(state), batch, state.method), state)


@jax.jit
def _together(a: Moments, b: Moments) -> Moments:
    return _stored(_merged(_sums(a), _sums(b), a.method), a)


@jax.jit
def _mapped(state: Moments, matrix: Array, offset: Array) -> Moments:
    sums = _sums(state)
    dtype = sums.mean.dtype
    matrix, offset = matrix.astype(dtype), jnp.broadcast_to(offset.astype(dtype), matrix.shape[1:])
    offset = jnp.where(sums.weight == 0, 0, offset)
    # No entry of the new rows is larger than that.
    reach = sums.unit * jnp.max(jnp.sum(jnp.abs(matrix), axis=0)) + jnp.max(jnp.abs(offset))
    unit = jnp.where(reach == 0, 0, jnp.maximum(unit_of(reach), SMALLEST))
    here = matrix * (sums.unit / _known(unit))
    middle = mm(sums.mean, here) + offset / _known(unit)
    if state.method == "qr":
        rows = jnp.pad(mm(sums.scatter, here), ((0, max(0, len(here.T) - len(here))), (0, 0)))
        scatter = _triangle(rows)
    else:
        scatter = mm(mm(here.T, sums.scatter), here)
    return _stored(sums._replace(unit=unit, mean=middle, scatter=scatter), state)


@partial(jax.jit, static_argnames="centred")
def _eigenvalues(state: Moments, *, centred: bool) -> Eigenvalues:
    sums = _sums(state)
    if state.method == "qr":
        rows = sums.scatter if centred else _with_mean(sums)
        values = svdvals(rows) ** 2 / _positive(sums.weight)
    else:
        values = eigvalsh(_matrix(sums, state.method, centred))[::-1]
    floor = values[0] * _share(sums, state)
    if centred:  # constant columns leave the rounding of their mean
        floor = jnp.maximum(floor, (4 * _eps(state)) ** 2 * jnp.sum(sums.mean**2))
    square = _square(sums.unit, state)
    # What underflows is no more known than what is rounded.
    least = jnp.where(sums.unit > 0, float(jnp.finfo(state.high.mean.dtype).tiny), 0)
    floor = jnp.maximum(floor * square, least)
    return Eigenvalues(_narrow(values * square, state), _narrow(floor, state))


def _rows(state: Moments, x: Any, weights: Any) -> tuple[Array, Array]:
    """The batch and its weights in the dtype of the sums; rows of weight 0 as zeros."""
    x = working(x, "x")
    dtype = state.high.mean.dtype if state.low is None else jnp.dtype("float64")
    _check_rows(state, x.shape, weights)
    if dtype == jnp.float32 and x.dtype != dtype:
        raise ValueError(f"x is {x.dtype}, the state {dtype}: begin with zero(p, dtype=x.dtype)")
    x = x if x.dtype == dtype else _float64(x)
    if weights is None:
        return x, jnp.ones(len(x), dtype)
    w = working(weights, "weights").astype(dtype)
    w = jnp.where(w >= 0, w, jnp.nan)
    return jnp.where(w[:, None] == 0, 0, x), w


def _batch(x: Array, w: Array, method: Method) -> Sums:
    """The sums of a batch; for ``qr`` its rows stand in the place of their triangular factor."""
    # No smaller than float32 holds: the unit of float64 rows is stored as a pair like the rest.
    unit = jnp.where(jnp.any(x != 0), jnp.maximum(unit_of(x), SMALLEST), 0)
    x = x / _known(unit)
    weight = jnp.sum(w)
    middle = mm(w, x) / _positive(weight)
    rows = jnp.sqrt(w)[:, None] * (x - middle)
    scatter = rows if method == "qr" else mm(rows.T, rows)
    return Sums(unit, weight, jnp.sum(w * w), middle, scatter)


def _merged(a: Sums, b: Sums, method: Method) -> Sums:
    unit = jnp.maximum(a.unit, b.unit)
    a, b = _in_unit(a, unit, method), _in_unit(b, unit, method)
    weight = a.weight + b.weight
    share = b.weight / _positive(weight)
    apart = b.mean - a.mean
    between = jnp.sqrt(a.weight * share) * apart
    if method == "qr":
        scatter = _triangle(jnp.concatenate([a.scatter, b.scatter, between[None]]))
    else:
        scatter = a.scatter + b.scatter + jnp.outer(between, between)
    return Sums(unit, weight, a.squares + b.squares, a.mean + share * apart, scatter)


def _in_unit(sums: Sums, unit: Array, method: Method) -> Sums:
    """The same in a larger unit. Powers of two: nothing is rounded."""
    factor = sums.unit / _known(unit)
    of_scatter = factor if method == "qr" else factor * factor
    return sums._replace(unit=unit, mean=factor * sums.mean, scatter=of_scatter * sums.scatter)


def _matrix(sums: Sums, method: Method, centred: bool) -> Array:
    scatter = sums.scatter
    if method == "qr":
        scatter = mm(scatter.T, scatter)
    scatter = scatter / _positive(sums.weight)
    return scatter if centred else scatter + jnp.outer(sums.mean, sums.mean)


def _with_mean(sums: Sums) -> Array:
    """``R`` and the mean as one more row: the factor of the uncentred moments."""
    return jnp.concatenate([sums.scatter, jnp.sqrt(sums.weight) * sums.mean[None]])


def _triangle(rows: Array) -> Array:
    return jnp.linalg.qr(rows, mode="r")


def _share(sums: Sums, state: Moments) -> Array:
    """The floor as a share of the largest eigenvalue."""
    rows = jnp.maximum(_effective_rows(sums), state.size)
    eps = _eps(state)
    return rows * state.size * eps**2 if state.method == "qr" else rows * eps


def _effective_rows(sums: Sums) -> Array:
    # Not 1 for squares of 0: of weights above 0 these have underflowed.
    return sums.weight**2 / jnp.where(sums.weight == 0, 1, sums.squares)


def _eps(state: Moments) -> float:
    return float(jnp.finfo(state.high.mean.dtype).eps) if state.low is None else PAIR_EPS


def _square(unit: Array, state: Moments) -> Array:
    """``unit^2``, NaN where the dtype of the results does not have it; 1 of no unit."""
    square = _known(unit) ** 2
    span = jnp.finfo(state.high.mean.dtype)
    inside = (square >= float(span.tiny)) & (square <= float(span.max))
    return jnp.where(inside, square, jnp.nan)


def _known(unit: Array) -> Array:
    return jnp.where(unit > 0, unit, 1)


def _positive(weight: Array) -> Array:
    return jnp.where(weight == 0, 1, weight)


def _check_rows(state: Moments, rows: tuple[int, ...], weights: Any) -> None:
    if len(rows) != 2 or rows[1] != state.size:
        raise ValueError(f"x has shape {rows}: pass rows [b, {state.size}]")
    if weights is not None and (shape := jnp.shape(weights)) != rows[:1]:
        raise ValueError(f"weights have shape {shape}: pass one for each of {rows[0]} rows")


def _on_host(state: Moments, x: Any, weights: Any) -> bool:
    """Whether NumPy is to multiply: rows of its own, in float64, beside which XLA is slow."""
    ours = isinstance(x, np.ndarray) and isinstance(weights, np.ndarray | None)
    doubles = state.method == "gram64" and (
        state.low is not None or jnp.result_type(float) == jnp.float64
    )
    return ours and doubles and jax.default_backend() == "cpu"


def _host_rows(state: Moments, x: Any, weights: Any) -> tuple[np.ndarray, np.ndarray | None]:
    working(x[:0], "x")  # refuses complex numbers and whatever else is no number
    _check_rows(state, x.shape, weights)
    if weights is None:
        return x, None
    w = np.asarray(weights, np.float64)
    w = np.where(w >= 0, w, np.nan)
    return x[w != 0], w[w != 0]


def _host_batch(x: np.ndarray, w: np.ndarray | None) -> Sums:
    """`_batch` in NumPy, a block at a time: of ``Z^T Z`` its BLAS computes half, XLA the whole."""
    n, p = x.shape
    if n == 0:
        return Sums(*map(jnp.asarray, (0.0, 0.0, 0.0, np.zeros(p), np.zeros((p, p)))))
    low, high = float(x.min()), float(x.max())
    dtype, step, shift = _block_plan(x, w, low, high)
    total, scatter = np.zeros(p), np.zeros((p, p))
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, n, step):
            rows: np.ndarray = x[start : start + step].astype(dtype)
            rows -= shift
            v = np.ones(len(rows), dtype) if w is None else w[start : start + step]
            total += v @ rows
            if w is not None:
                rows *= np.sqrt(v)[:, None]
            scatter += rows.T @ rows
        weight, squares = (float(n), float(n)) if w is None else (w.sum(), w @ w)
        # In this order a difference of whole numbers is exact.
        scatter = (weight * scatter - np.outer(total, total)) / (weight or 1.0)
        middle = shift + total / (weight or 1.0)
    unit = _host_unit(max(high, -low))
    scale = unit or 1.0
    return Sums(*map(jnp.asarray, (unit, weight, squares, middle / scale, scatter / scale**2)))


def _block_plan(
    x: np.ndarray, w: np.ndarray | None, low: float, high: float
) -> tuple[type, int, np.ndarray]:
    """The dtype of a block, its number of rows, and what is taken off each row.

    Whole numbers up to a few hundred, as pixels are, are multiplied in float32, which takes half of
    the time: in blocks of so few rows that every sum is a whole number that float32 holds. They are
    shifted to the middle of their range. Others are shifted by the mean of the first block: the
    mean of all cannot be so far from it that a difference loses digits, for the block is part of
    the data.
    """
    reach = np.ceil((high - low) / 2)
    if w is None and reach < EXACT_REACH and _whole(x):
        step = min(BLOCK, int(2**24 // max(reach, 1) ** 2))
        return np.float32, step, np.full(x.shape[1], np.floor((high + low) / 2), np.float32)
    first = x[:BLOCK].astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.float64, BLOCK, first.mean(axis=0)


def _whole(x: np.ndarray) -> bool:
    if np.issubdtype(x.dtype, np.integer) or x.dtype == bool:
        return True
    blocks = (x[start : start + BLOCK] for start in range(0, len(x), BLOCK))
    return all(bool((block == np.rint(block)).all()) for block in blocks)


def _host_unit(largest: float) -> float:
    if not 0 < largest < np.inf:
        return float(largest != 0)
    return max(2.0 ** np.frexp(largest)[1], SMALLEST)


def _check_alike(a: Moments, b: Moments) -> None:
    kinds = [(state.size, state.method, str(state.high.mean.dtype)) for state in (a, b)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"states of {kinds[0]} and {kinds[1]}: merge what one zero(...) began")
