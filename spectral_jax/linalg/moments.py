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
Rows with labels lose the mean of their own group: the scatter within groups is exact, however much
smaller than that between them it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from spectral_jax._choices import check_choice
from spectral_jax._options import check_number, count
from spectral_jax.linalg._host_sums import host_sums
from spectral_jax.linalg._sums import (
    Fourth,
    Method,
    Sums,
    across,
    decayed,
    fourth_about,
    in_one_unit,
    known,
    matrix,
    merged,
    nothing,
    of_batch,
    overall,
    part_of,
    pooled,
    positive,
    span,
    summed_rows,
)
from spectral_jax.linalg._wide import widened
from spectral_jax.linalg.precision import working
from spectral_jax.linalg.values import eigvalsh, svdvals

__all__ = [
    "Eigenvalues",
    "Fourth",
    "Groups",
    "Moments",
    "Sums",
    "cross",
    "decay",
    "effective_rows",
    "eigenvalues",
    "exactly",
    "factor",
    "fourth",
    "groups",
    "leave_one_out",
    "mean",
    "merge",
    "part",
    "psum",
    "resolution",
    "second",
    "unitless",
    "update",
    "within",
    "zero",
]

METHODS = get_args(Method)
Tree = Any
About = Literal["origin", "mean", "groups"]

# The spacing of sums of two float32 numbers, the second of which holds the rounding of the first.
PAIR_EPS = 2.0**-48


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
    parts: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    """How many columns each part has."""
    eps: float = dataclasses.field(metadata={"static": True})
    """The relative spacing of the sums."""

    @property
    def size(self) -> int:
        """The number of columns, ``p``."""
        return sum(self.parts)


class Groups(NamedTuple):
    """What the rows of one label have in common."""

    weight: Float[Array, " groups"]
    """``sum w``; 0 of a label that no row has, and then so are the others."""
    mean: Float[Array, "groups p"]
    variance: Float[Array, "groups p"]
    """``sum w (x - mean)^2 / sum w``, of each column."""


class Eigenvalues(NamedTuple):
    """Descending, and the size below which they are rounding, not data."""

    values: Float[Array, " p"]
    floor: Float[Array, ""]


def zero(
    p: int | Sequence[int],
    *,
    method: Method = "gram64",
    dtype: DTypeLike | None = None,
    groups: int | None = None,
    fourth: bool = False,
) -> Moments:
    """The moments of no rows of length ``p``.

    Args:
      p: columns; of rows that have several parts (two layers; features and targets) the columns of
        each. Parts may differ in scale: each is summed in a unit of its own.
      method: see the module.
      dtype: in which results come back; ``gram64`` sums in float64 whatever it is. The default
        float if None; float32 for a half type.
      groups: how many labels there are, if rows come with labels.
      fourth: whether to sum what `fourth` returns too.

    Raises ``ValueError`` for a size below 1, an unknown method or a complex dtype.

    >>> zero(3, method="qr").high.scatter.shape
    (3, 3)
    """
    parts = tuple(count("p", size) for size in (p if isinstance(p, Sequence) else (p,)))
    if not parts:
        raise ValueError("p=(): choose the columns of at least one part")
    check_choice(METHODS, method=method)
    if groups is not None:
        groups = count("groups", groups)
    of_dtype = working(jnp.zeros((), float if dtype is None else dtype), "dtype").dtype
    sums = nothing(parts, of_dtype, groups, fourth)
    paired = method == "gram64" and of_dtype == jnp.float32
    low = jax.tree.map(jnp.zeros_like, sums) if paired else None
    return Moments(sums, low, method, parts, PAIR_EPS if paired else float(jnp.finfo(of_dtype).eps))


def update(
    state: Moments,
    x: Float[ArrayLike, "b p"],
    *,
    weights: Float[ArrayLike, " b"] | None = None,
    labels: Int[ArrayLike, " b"] | None = None,
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
      labels: ``[b]``, from 0 up, for a state with ``groups``. A row of a negative label is not
        read; a label that is no group's makes every number NaN.

    Works under ``jit``, ``vmap``, ``scan`` and on rows sharded over devices, of which each sums its
    own: an all-reduce of the matrix, after two of the mean and one of the unit. Under ``grad``
    too, but ``gram64`` in float32 refuses it. Raises ``ValueError`` for shapes that do not fit,
    complex numbers, or float64 rows for a state of float32.

    >>> second(update(zero(2), jnp.array([[1.0, 0.0], [3.0, 2.0]]))).tolist()
    [[5.0, 3.0], [3.0, 2.0]]
    """
    x, weights, labels = _array("x", x), _array("weights", weights), _array("labels", labels)
    if _on_host(state, x, weights, labels):
        with jax.enable_x64(True):
            rows, w, own = _host_rows(state, x, weights, labels)
            return _added(state, host_sums(rows, w, own, _groups(state), state.parts))
    return _of_state(_updated, state, x, weights, labels)


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of the rows of both.

    Associative and commutative up to rounding, with ``zero`` as its unit. Works under ``jit``,
    ``vmap`` and ``grad``. Raises ``ValueError`` for states of different size, method or dtype.

    >>> one = update(zero(1), jnp.array([[1.0]]))
    >>> mean(merge(one, update(zero(1), jnp.array([[2.0], [3.0]])))).tolist()
    [2.0]
    """
    _check_alike(a, b)
    return _of_state(_together, a, b)


def psum(state: Moments, axis_name: str | tuple[str, ...]) -> Moments:
    """The moments of the rows of all devices along a mapped axis, on each of them.

    Inside ``shard_map`` or ``vmap(axis_name=...)``, after any number of updates: an all-reduce of
    the matrix (``qr``: an all-gather), after one of the mean and one of the unit.

    >>> parts = jnp.arange(6.0).reshape(3, 2, 1)
    >>> pooled = jax.vmap(lambda x: mean(psum(update(zero(1), x), "i")), axis_name="i")(parts)
    >>> pooled.ravel().tolist()
    [2.5, 2.5, 2.5]
    """
    # Not sealed as the others are: it has to see the axis.
    with contextlib.nullcontext() if state.low is None else jax.enable_x64(True):
        return _stored(pooled(_sums(state), axis_name, state.method, state.parts), state)


def decay(state: Moments, factor: ArrayLike) -> Moments:
    """All weights so far times ``factor``, between 0 and 1: an exponential moving average.

    Works under ``jit``, ``vmap`` and ``grad``. Raises ``ValueError`` for a Python number outside
    [0, 1]; an array outside gives NaN.

    >>> old = update(zero(1), jnp.array([[0.0]]))
    >>> round(float(mean(update(decay(old, 0.5), jnp.array([[3.0]])))[0]), 6)
    2.0
    """
    if not isinstance(factor, jax.Array):
        check_number("choose between 0 and 1", lambda f: 0 <= f <= 1, factor=factor)
    return _of_state(_decayed, state, jnp.asarray(factor))


def unitless(state: Moments) -> Moments:
    """The moments of the rows divided by a power of two, in which no square is out of range.

    Each part by its own. For numbers that the scale of the rows does not change.

    >>> float(second(unitless(update(zero(1), jnp.array([[1e30]]))))[0, 0]) < 1
    True
    """
    unit = jnp.where(state.high.unit > 0, 1, state.high.unit)
    # Of 2^128, which float32 rounds to infinity, the rounding is infinite too.
    low = None if state.low is None else state.low._replace(unit=jnp.zeros_like(unit))
    return dataclasses.replace(state, high=state.high._replace(unit=unit), low=low)


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
    return _of_state(_mean, state)


def second(state: Moments, *, centred: bool = False) -> Float[Array, "p p"]:
    """``sum w x x^T / sum w``, or ``sum w (x - mean)(x - mean)^T / sum w`` if ``centred``.

    Symmetric, positive semidefinite up to rounding; zeros without rows. For ``gram64`` in float32
    each entry is the float64 one, rounded, so that its *small eigenvalues are lost*: take those
    from `eigenvalues`. NaN where the square of the data's unit is outside the dtype.

    Works under ``jit``, ``vmap`` and ``grad``.
    """
    return _of_state(_second, state, about="mean" if centred else "origin")


def within(state: Moments) -> Float[Array, "p p"]:
    """``sum w (x - m)(x - m)^T / sum w`` with ``m`` the mean of the row's group.

    Of a state without groups the same as ``second(centred=True)``, of which it otherwise is the
    part that is not the scatter of the means.
    """
    return _of_state(_second, state, about="groups")


def cross(state: Moments, i: int, j: int, *, centred: bool = False) -> Float[Array, "p_i p_j"]:
    """The block of `second` of the columns of part ``i`` with those of part ``j``.

    Raises ``ValueError`` for a part that the state does not have.

    >>> state = update(zero((1, 2)), jnp.array([[1.0, 2.0, 3.0], [1.0, 0.0, 1.0]]))
    >>> cross(state, 0, 1).tolist()
    [[1.0, 2.0]]
    """
    pair = _checked_part(state, i), _checked_part(state, j)
    return _of_state(_cross, state, pair=pair, about="mean" if centred else "origin")


def part(state: Moments, i: int) -> Moments:
    """The moments of the columns of part ``i`` alone. Raises ``ValueError`` if there is none."""
    i = _checked_part(state, i)
    take = partial(part_of, i=i, method=state.method, parts=state.parts)
    low = None if state.low is None else take(state.low)
    parts = state.parts[i : i + 1]
    return dataclasses.replace(state, high=take(state.high), low=low, parts=parts)


def groups(state: Moments) -> Groups:
    """Weight, mean and variance of each group.

    Raises ``ValueError`` for a state without groups.

    >>> x = jnp.array([[1.0], [3.0], [7.0]])
    >>> groups(update(zero(1, groups=2), x, labels=jnp.array([0, 0, 1]))).mean.ravel().tolist()
    [2.0, 7.0]
    """
    if state.high.spread is None:
        raise ValueError("the state has no groups: begin with zero(p, groups=...) and pass labels")
    return _of_state(_groups_of, state)


def fourth(state: Moments, *, centred: bool = True) -> Fourth:
    """``sum w |z_i|^2 |z_j|^2 / sum w`` and ``sum w |z_i|^2 z / sum w``, ``z = x - mean``.

    For each pair of parts ``i, j``; with them sums over all pairs of *different* rows, as unbiased
    estimates need, are sums over all pairs less their diagonal. ``z = x`` if not ``centred``.
    Raises ``ValueError`` for a state without them.

    >>> state = update(zero(1, fourth=True), jnp.array([[0.0], [2.0]]))
    >>> fourth(state).squares.tolist(), fourth(state, centred=False).squares.tolist()
    ([[1.0]], [[8.0]])
    """
    if state.high.fourth is None:
        raise ValueError("the state has no fourth moments: begin with zero(p, fourth=True)")
    return _of_state(_fourth, state, centred=centred)


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
    return _of_state(_eigenvalues, state, centred=centred)


def factor(state: Moments, *, centred: bool = False) -> Float[Array, "k p"]:
    """Rows ``R`` with ``R^T R = second(state, centred=centred)``, ``k >= p``.

    By ``qr`` what was summed, and never squared. By the other methods a Cholesky factor of the
    matrix with its columns scaled to the same length, so that small columns keep their digits
    beside large ones; if rounding made that indefinite, as it does if the rank is not full, the
    `resolution` is added to each column's square first.

    Works under ``jit``, ``vmap`` and, where `update` does, ``grad``.

    >>> rows = factor(update(zero(1), jnp.array([[3.0], [4.0]])))
    >>> round(float((rows**2).sum()), 6)
    12.5
    """
    return _factor(state, centred=centred)


def resolution(state: Moments) -> Float[Array, ""]:
    """The share of the largest eigenvalue below which values are rounding: see `eigenvalues`."""
    return _share(state.high, state)


def effective_rows(state: Moments) -> Float[Array, ""]:
    """``(sum w)^2 / sum w^2``: how many rows of equal weight say as much (Kish 1965); 0 of none.

    NaN where weights are so small or large that the dtype does not have their squares.
    """
    return _effective_rows(state.high)


def exactly(function: Callable[..., Tree], *, static: Sequence[str] = ()) -> Callable[..., Tree]:
    """``function`` of states in the precision of their sums; its results in the states' dtype.

    What a float32 state of ``gram64`` or ``qr`` holds is more than float32: its second moments,
    rounded, have lost their small eigenvalues. Within ``function`` the states, and arrays that it
    takes beside them, are in float64, also where JAX has none; so are squares of numbers that
    float32 cannot square. A state of ``gram`` is left as it is, and can be differentiated.

    Args:
      function: of a pytree with states, then of arrays or None. It is compiled: name it once, at
        the top of a module.
      static: its keyword options that are no arrays.

    >>> smallest = exactly(lambda state: jnp.linalg.eigvalsh(second(state))[0])
    >>> x = jnp.array([[1.0, 1.0], [1.0, 1.0 + 2.0**-20]])
    >>> bool(smallest(update(zero(2), x)) > 1e-13)
    True
    """

    @partial(jax.jit, static_argnames=static)
    def compiled(states: Tree, *arrays: Tree, **options: Any) -> Tree:
        dtype = _first(states).high.mean.dtype
        states = jax.tree.map(_full, states, is_leaf=_is_state)
        if _widens(_first(states)):
            arrays = jax.tree.map(lambda x: _float64(working(x)), arrays)
        return jax.tree.map(partial(_back, dtype=dtype), function(states, *arrays, **options))

    @wraps(function)
    def call(states: Tree, *arrays: Tree, **options: Any) -> Tree:
        if _widens(_first(states)):
            return widened(partial(compiled, **options), states, *arrays)
        return compiled(states, *arrays, **options)

    return call


# Everything below is arithmetic on `Sums` of one dtype. Under `widened` that is float64, also where
# JAX is told to have none: what a user's program does outside is not touched.


def _of_state(function: Callable[..., Tree], state: Moments, *arrays: Any, **options: Any) -> Tree:
    """The compiled ``function`` in the dtype in which the state sums; ``options`` are static."""
    function = partial(function, **options)
    return function(state, *arrays) if state.low is None else widened(function, state, *arrays)


def _sums(state: Moments) -> Sums:
    if state.low is None:
        return state.high
    return jax.tree.map(lambda high, low: _float64(high) + _float64(low), state.high, state.low)


def _widens(state: Moments) -> bool:
    """Whether float64 holds more of the state than its dtype does."""
    return state.method != "gram"


def _full(state: Any) -> Any:
    if not _is_state(state) or not _widens(state):
        return state
    high = jax.tree.map(_float64, _sums(state))
    return dataclasses.replace(state, high=high, low=None)


def _back(x: Array, dtype: Any) -> Array:
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(dtype)
    return x.astype(jnp.int32) if jnp.issubdtype(x.dtype, jnp.integer) else x


def _is_state(x: Any) -> bool:
    return isinstance(x, Moments)


def _first(states: Tree) -> Moments:
    return next(filter(_is_state, jax.tree.leaves(states, is_leaf=_is_state)))


def _stored(sums: Sums, like: Moments) -> Moments:
    if like.low is None:
        return dataclasses.replace(like, high=sums)
    high = jax.tree.map(lambda x: x.astype(jnp.float32), sums)
    low = jax.tree.map(lambda x, h: (x - _float64(h)).astype(jnp.float32), sums, high)
    return dataclasses.replace(like, high=high, low=low)


def _float64(x: Array) -> Array:
    return x if x.dtype == jnp.float64 else _from_float32(x)


@jax.custom_jvp
def _from_float32(x: Array) -> Array:
    return x.astype(jnp.float64)


@_from_float32.defjvp
def _no_derivative(primals, tangents):
    """Reverse mode would run outside `widened`, where its products lose float64 unseen."""
    raise ValueError("no derivative of gram64 in float32: make the state by method='gram'")


def _narrow(x: Array, state: Moments) -> Array:
    return x.astype(state.high.mean.dtype)


@jax.jit
def _updated(state: Moments, x: Any, weights: Any, labels: Any) -> Moments:
    x, w, member = _rows(state, x, weights, labels)
    fourth = state.high.fourth is not None
    batch = of_batch(x, w, member, state.method, state.parts, fourth)
    return _stored(merged(_sums(state), batch, state.method, state.parts), state)


@jax.jit
def _added(state: Moments, batch: Sums) -> Moments:
    return _stored(merged(_sums(state), batch, state.method, state.parts), state)


@jax.jit
def _together(a: Moments, b: Moments) -> Moments:
    return _stored(merged(_sums(a), _sums(b), a.method, a.parts), a)


@jax.jit
def _decayed(state: Moments, factor: Array) -> Moments:
    sums = _sums(state)
    factor = jnp.where((factor >= 0) & (factor <= 1), factor, jnp.nan)
    return _stored(decayed(sums, factor.astype(sums.weight.dtype), state.method), state)


@jax.jit
def _mean(state: Moments) -> Array:
    sums = _sums(state)
    return _narrow(overall(sums)[1] * across(known(sums.unit), state.parts), state)


@partial(jax.jit, static_argnames="about")
def _second(state: Moments, *, about: About) -> Array:
    sums = _sums(state)
    return _narrow(matrix(sums, state.method, about=about) * _squares(sums, state), state)


@partial(jax.jit, static_argnames=("pair", "about"))
def _cross(state: Moments, *, pair: tuple[int, int], about: About) -> Array:
    sums = _sums(state)
    rows, columns = (span(k, state.parts) for k in pair)
    block = matrix(sums, state.method, about=about, rows=rows, columns=columns)
    one, other = known(sums.unit)[jnp.array(pair)]
    return _narrow(block * _product(one * other, state), state)


@jax.jit
def _groups_of(state: Moments) -> Groups:
    sums = _sums(state)
    unit = across(known(sums.unit), state.parts)
    assert sums.spread is not None
    variance = sums.spread / positive(sums.weight)[:, None] * _product(unit**2, state)
    found = Groups(sums.weight, unit * sums.mean, variance)
    return jax.tree.map(lambda x: _narrow(x, state), found)


@partial(jax.jit, static_argnames="centred")
def _fourth(state: Moments, *, centred: bool) -> Fourth:
    sums = _sums(state)
    weight, middle, _ = overall(sums)
    point = middle if centred else jnp.zeros_like(middle)
    squares, rows = fourth_about(point, sums, state.method, state.parts)
    unit = known(sums.unit)
    square = _product(unit * unit, state)[:, None]
    column = across(unit, state.parts)
    found = Fourth(
        squares * _product(square * square.T, state), rows * _product(square * column, state)
    )
    return jax.tree.map(lambda x: _narrow(x / positive(weight), state), found)


@partial(jax.jit, static_argnames="centred")
def _eigenvalues(state: Moments, *, centred: bool) -> Eigenvalues:
    sums = in_one_unit(_sums(state), state.method, state.parts)
    weight, middle, _ = overall(sums)
    if state.method == "qr":
        values = svdvals(summed_rows(sums, centred=centred)) ** 2 / positive(weight)
        values = values[: state.size]
    else:
        about: About = "mean" if centred else "origin"
        values = eigvalsh(matrix(sums, state.method, about=about))[::-1]
    floor = values[0] * _share(sums, state)
    if centred:  # constant columns leave the rounding of their mean
        floor = jnp.maximum(floor, (4 * state.eps) ** 2 * jnp.sum(middle**2))
    square = _product(known(sums.unit[0]) ** 2, state)
    # What underflows is no more known than what is rounded.
    least = jnp.where(sums.unit[0] > 0, float(jnp.finfo(state.high.mean.dtype).tiny), 0)
    floor = jnp.maximum(floor * square, least)
    return Eigenvalues(_narrow(values * square, state), _narrow(floor, state))


def _rows(state: Moments, x: Any, weights: Any, labels: Any) -> tuple[Array, Array, Array | None]:
    """The batch, its weights and its groups in the dtype of the sums; unread rows as zeros."""
    x = working(x, "x")
    dtype = state.high.mean.dtype if state.low is None else jnp.dtype("float64")
    _check_rows(state, x.shape, weights, labels)
    if dtype == jnp.float32 and x.dtype != dtype:
        raise ValueError(f"x is {x.dtype}, the state {dtype}: begin with zero(p, dtype=x.dtype)")
    x = x if x.dtype == dtype else _float64(x)
    if weights is None and labels is None:
        return x, jnp.ones(len(x), dtype), None
    w = jnp.ones(len(x), dtype) if weights is None else working(weights, "weights").astype(dtype)
    w = jnp.where(w >= 0, w, jnp.nan)
    member = None
    if labels is not None:
        labels = jnp.asarray(labels)
        if labels.dtype.itemsize < 4:  # may not hold the number of groups
            labels = labels.astype(jnp.int32)
        w = jnp.where(labels < 0, 0, jnp.where(labels < _groups(state), w, jnp.nan))
        known = jnp.arange(_groups(state), dtype=labels.dtype)
        member = (labels[:, None] == known).astype(dtype)
    return jnp.where(w[:, None] == 0, 0, x), w, member


def _share(sums: Sums, state: Moments) -> Array:
    """The floor as a share of the largest eigenvalue."""
    rows = jnp.maximum(_effective_rows(sums), state.size)
    eps = state.eps
    return rows * state.size * eps**2 if state.method == "qr" else rows * eps


def _effective_rows(sums: Sums) -> Array:
    weight = jnp.sum(sums.weight)
    # Not 1 for squares of 0: of weights above 0 these have underflowed.
    return weight**2 / jnp.where(weight == 0, 1, sums.squares)


def _squares(sums: Sums, state: Moments) -> Array:
    """The unit of each entry of a matrix of second moments."""
    unit = across(known(sums.unit), state.parts)
    return _product(unit[:, None] * unit, state)


def _product(units: Array, state: Moments) -> Array:
    """A product of units, NaN where the dtype of the results does not have it."""
    span = jnp.finfo(state.high.mean.dtype)
    inside = (units >= float(span.tiny)) & (units <= float(span.max))
    return jnp.where(inside, units, jnp.nan)


def _groups(state: Moments) -> int:
    return state.high.weight.shape[-1]


def _checked_part(state: Moments, i: int) -> int:
    return count("part", i, least=0, most=len(state.parts) - 1, why="the state has no others")


def _check_rows(state: Moments, rows: tuple[int, ...], weights: Any, labels: Any) -> None:
    if len(rows) != 2 or rows[1] != state.size:
        raise ValueError(f"x has shape {rows}: pass rows [b, {state.size}]")
    if weights is not None and (shape := jnp.shape(weights)) != rows[:1]:
        raise ValueError(f"weights have shape {shape}: pass one for each of {rows[0]} rows")
    if (labels is None) != (state.high.spread is None):
        raise ValueError(
            "a state takes labels if it has groups, and only then: zero(p, groups=...)"
        )
    if labels is None:
        return
    if (shape := jnp.shape(labels)) != rows[:1]:
        raise ValueError(f"labels have shape {shape}: pass one for each of {rows[0]} rows")
    if not jnp.issubdtype(dtype := jnp.result_type(labels), jnp.integer):
        raise ValueError(f"labels have dtype {dtype}: pass whole numbers from 0 up")


def _array(name: str, x: Any) -> Any:
    """Lists, matrices and tables of the host as plain arrays; what JAX holds as it is."""
    if x is None or isinstance(x, jax.Array):
        return x
    if isinstance(x, np.ma.MaskedArray):
        raise ValueError(f"{name} is a masked array: pass its data, and weights=0 for masked rows")
    return np.asarray(x)


def _on_host(state: Moments, x: Any, weights: Any, labels: Any) -> bool:
    """Whether NumPy is to multiply: rows of its own, in float64, beside which XLA is slow."""
    ours = isinstance(x, np.ndarray) and all(
        isinstance(array, np.ndarray | None) for array in (weights, labels)
    )
    doubles = state.method == "gram64" and (
        state.low is not None or jnp.result_type(float) == jnp.float64
    )
    plain = state.high.fourth is None and state.high.mean.ndim == 2
    return ours and doubles and plain and jax.default_backend() == "cpu"


def _host_rows(
    state: Moments, x: Any, weights: Any, labels: Any
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    for name, array in (("x", x), ("weights", weights)):
        if array is not None:
            working(array[:0], name)  # refuses complex numbers and whatever else is no number
    _check_rows(state, x.shape, weights, labels)
    if weights is None and (
        labels is None or not ((labels < 0) | (labels >= _groups(state))).any()
    ):
        return x, None, labels
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    w = np.where(w >= 0, w, np.nan)
    if labels is None:
        return x[w != 0], w[w != 0], None
    w = np.where(labels < 0, 0, np.where(labels < _groups(state), w, np.nan))
    return x[w != 0], w[w != 0], np.where(labels < _groups(state), labels, 0)[w != 0]


def _check_alike(a: Moments, b: Moments) -> None:
    kinds = [
        (
            state.parts if len(state.parts) > 1 else state.size,
            state.method,
            str(state.high.mean.dtype),
            *((state.high.spread is not None) * (f"{_groups(state)} groups",)),
            *((state.high.fourth is not None) * ("fourth",)),
        )
        for state in (a, b)
    ]
    if kinds[0] != kinds[1]:
        raise ValueError(f"states of {kinds[0]} and {kinds[1]}: merge what one zero(...) began")


def _rooted(state: Moments, *, centred: bool) -> Array:
    sums = _sums(state)
    weight, middle, _ = overall(sums)
    if state.method == "qr":
        rows = summed_rows(sums, centred=centred) / jnp.sqrt(positive(weight))
    else:
        rows = _cholesky(matrix(sums, state.method, about="mean"), _share(sums, state))
        rows = rows if centred else jnp.concatenate([rows, middle[None]])
    return rows * across(known(sums.unit), state.parts)


def _cholesky(a: Array, rounding: Array) -> Array:
    squares = jnp.diagonal(a)
    scale = jnp.sqrt(jnp.where(squares > 0, squares, 1))
    one = jnp.eye(len(a), dtype=a.dtype)
    even = jnp.where(one > 0, 1, a / scale[:, None] / scale)
    plain = jnp.linalg.cholesky(even)
    lower = jax.lax.cond(
        jnp.all(jnp.isfinite(plain)),
        lambda: plain,
        lambda: jnp.linalg.cholesky(even + rounding * one),
    )
    return lower.T * jnp.where(squares > 0, scale, 0 * squares)


_factor = exactly(_rooted, static=("centred",))
