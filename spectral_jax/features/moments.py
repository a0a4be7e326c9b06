"""One pass over features, and everything that is known of them afterwards.

    m = features.zero(p, classes=10)
    for x, labels in batches:                   # [b, p] each; also inside jit and scan
        m = features.update(m, x, labels=labels)
    features.covariance(m)                      # and every other number of this room

Features are the columns of a layer, one row for each input; beside them may stand the network's
outputs and the targets of its loss. A `FeatureMoments` holds the sums of their second degree, by
`linalg.moments`: exact for half types and for directions of very different size. All numbers of
this room are functions of it, and take features themselves in its place (see `as_moments`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial, reduce
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from spectral_jax._choices import check_choice
from spectral_jax._options import count
from spectral_jax.linalg import moments
from spectral_jax.linalg.jackknife import Interval, interval
from spectral_jax.linalg.precision import working
from spectral_jax.linalg.subspace import mm

Beside = Literal["outputs", "targets"]
CHUNK = 8192  # rows of a block that `of` takes at a time: it copies no more to float64


class Head(NamedTuple):
    """A linear last layer: ``outputs = features @ kernel + bias``."""

    kernel: Float[Array, "p o"]
    bias: Float[Array, " o"] | None = None


class Sizes(NamedTuple):
    """How many columns there are of each kind."""

    features: int
    outputs: int
    targets: int

    @property
    def parts(self) -> tuple[int, ...]:
        """Those that there are any of."""
        return tuple(size for size in self if size)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FeatureMoments:
    """Moments of rows ``[features | outputs | targets]``: a pytree of arrays.

    Make one with `zero` and `update`, or `of`; read it with the functions of this room.
    """

    state: moments.Moments
    """Of all columns; with a leading axis for the blocks if there are any."""
    turn: Any
    """How many batches were dealt out to blocks, which take turns at the odd rows: an integer array
    without axes, or what stands in its place as JAX maps over the tree."""
    sizes: Sizes = dataclasses.field(metadata={"static": True})
    blocks: int = dataclasses.field(metadata={"static": True})

    @property
    def joint(self) -> moments.Moments:
        """The moments of the rows of all blocks."""
        return pooled(self).state

    @property
    def classes(self) -> int:
        """How many labels there are; 0 without."""
        spread = self.state.high.spread
        return 0 if spread is None else spread.shape[-2]


class ClassSums(NamedTuple):
    """What rows of one class have in common."""

    weight: Float[Array, " c"]
    """``sum w``: the number of rows; 0 of a class without any, and then so are the others."""
    mean: Float[Array, "c p"]
    """Of the features."""
    spread: Float[Array, " c"]
    """``sum w |x - mean|^2``, of the features."""
    outputs: Float[Array, "c o"]
    """Means of the outputs."""


def zero(
    p: int,
    *,
    outputs: int = 0,
    targets: int = 0,
    classes: int = 0,
    fourth: bool = False,
    blocks: int = 1,
    method: moments.Method = "gram64",
    dtype: DTypeLike | None = None,
) -> FeatureMoments:
    """The moments of no rows of ``p`` features.

    Args:
      p: features.
      outputs: columns of the network's outputs, which a linear head makes unnecessary: see `Head`.
      targets: columns of what the loss compares them with. Labels make one-hot targets unnecessary.
      classes: how many labels there are, if rows come with labels.
      fourth: also sum ``|x|^4`` and ``|x|^2 x``, which unbiased estimates need.
      blocks: each batch is dealt out to so many blocks of rows, for intervals: see `jackknife`.
      method: of summing, ``"gram64"``, ``"qr"`` or ``"gram"``: see `linalg.moments`. ``"gram"`` is
        the one that float32 programs can differentiate.
      dtype: in which results come back. The default float if None; float32 for a half type.

    Raises ``ValueError`` for a size that is none, an unknown method or a complex dtype.

    >>> zero(3, classes=2, blocks=4).classes
    2
    """
    sizes = Sizes(
        count("p", p), count("outputs", outputs, least=0), count("targets", targets, least=0)
    )
    classes, blocks = count("classes", classes, least=0), count("blocks", blocks)
    state = moments.zero(
        sizes.parts, method=method, dtype=dtype, groups=classes or None, fourth=fourth
    )
    if blocks > 1:
        state = jax.tree.map(lambda x: jnp.zeros((blocks, *x.shape), x.dtype), state)
    return FeatureMoments(state, jnp.zeros((), jnp.int32), sizes, blocks)


def update(
    m: FeatureMoments,
    features: Float[ArrayLike, "b p"],
    *,
    outputs: Float[ArrayLike, "b o"] | None = None,
    targets: Float[ArrayLike, "b t"] | None = None,
    labels: Int[ArrayLike, " b"] | None = None,
    weights: Float[ArrayLike, " b"] | None = None,
) -> FeatureMoments:
    """``m`` with the rows of a batch added.

    Any order and any batches give the same moments, up to rounding.

    Args:
      outputs, targets, labels: what `zero` announced, and nothing else. A row of a negative label
        is not read; a label that is no class makes every number NaN.
      weights: at least 0; 1 for each row by default. A row of weight 0 is not read, whatever it
        holds: ``weights=mask`` leaves out padding. A weight ``k`` is ``k`` rows alike.

    Works under ``jit``, ``vmap``, ``scan``, on rows sharded over devices (one all-reduce of the
    matrix), and under ``grad`` but for ``gram64`` in float32. NaN in a row is NaN in every number
    that it enters. Raises ``ValueError`` for arrays that do not fit.

    >>> m = update(zero(2), jnp.array([[1.0, 0.0], [3.0, 2.0]]))
    >>> covariance(m).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    given = _given(m, features, outputs, targets)
    if labels is None and m.classes:
        raise ValueError(f"labels are missing: the moments began with {m.classes} classes")
    if labels is not None and not m.classes:
        raise ValueError("labels for moments without classes: begin with zero(p, classes=...)")
    rows = side_by_side(m.state, given)
    if m.blocks == 1:
        state = moments.update(m.state, rows, weights=weights, labels=labels)
        return dataclasses.replace(m, state=state)
    return _dealt(m, rows, weights, labels)


def merge(a: FeatureMoments, b: FeatureMoments) -> FeatureMoments:
    """The moments of the rows of both, block by block.

    Associative and commutative up to rounding. Works under ``jit``, ``vmap`` and ``grad``. Raises
    ``ValueError`` for moments of different columns, classes, blocks, method or dtype.

    >>> one = of(jnp.array([[1.0]]))
    >>> mean(merge(one, of(jnp.array([[2.0], [3.0]])))).tolist()
    [2.0]
    """
    if (a.sizes, a.blocks) != (b.sizes, b.blocks):
        told = [f"{m.sizes} in {m.blocks} blocks" for m in (a, b)]
        raise ValueError(f"moments of {told[0]} and {told[1]}: merge what one zero(...) began")
    together = moments.merge if a.blocks == 1 else jax.vmap(moments.merge)
    return dataclasses.replace(a, state=together(a.state, b.state), turn=a.turn + b.turn)


def psum(m: FeatureMoments, axis_name: str | tuple[str, ...]) -> FeatureMoments:
    """The moments of the rows of all devices along a mapped axis, on each of them.

    Inside ``shard_map`` or ``vmap(axis_name=...)``, after any number of updates.
    """
    return _each_block(partial(moments.psum, axis_name=axis_name), m)


def decay(m: FeatureMoments, factor: ArrayLike) -> FeatureMoments:
    """All weights so far times ``factor``, between 0 and 1: a moving average over batches.

    Works under ``jit``, ``vmap`` and ``grad``. Raises ``ValueError`` for a Python number outside
    [0, 1].

    >>> m = update(decay(of(jnp.array([[0.0]])), 0.5), jnp.array([[3.0]]))
    >>> round(float(mean(m)[0]), 6)
    2.0
    """
    return _each_block(lambda state: moments.decay(state, factor), m)


def of(
    features: Float[ArrayLike, "n p"],
    *,
    outputs: Float[ArrayLike, "n o"] | None = None,
    targets: Float[ArrayLike, "n t"] | None = None,
    labels: Int[ArrayLike, " n"] | None = None,
    classes: int | None = None,
    weights: Float[ArrayLike, " n"] | None = None,
    fourth: bool = False,
    blocks: int = 1,
    method: moments.Method = "gram64",
) -> FeatureMoments:
    """The moments of features that are there as a whole: `zero` and `update`, in chunks.

    Args:
      classes: how many labels there are; one more than the largest label by default, which a
        program under ``jit`` has to say.

    The others are those of `zero` and `update`. Works under ``jit`` and ``vmap``.

    >>> class_sums(of(jnp.eye(3), labels=jnp.array([0, 1, 1]))).weight.tolist()
    [1.0, 2.0]
    """
    m = zero(
        _columns("features", features),
        outputs=_columns("outputs", outputs),
        targets=_columns("targets", targets),
        classes=label_count(labels, classes),
        fourth=fourth,
        blocks=blocks,
        method=method,
        dtype=_dtype(features),
    )
    arrays = dict(
        features=features, outputs=outputs, targets=targets, labels=labels, weights=weights
    )
    return _in_chunks(m, {name: x for name, x in arrays.items() if x is not None})


def as_moments(features: FeatureMoments | Float[ArrayLike, "n p"], **arrays: Any) -> FeatureMoments:
    """What a function of this room was given, as moments without blocks.

    Args:
      features: moments; or an array, of which the moments are taken.
      arrays: of an array, what else `of` takes.

    Raises ``ValueError`` for arrays beside moments.

    >>> as_moments(jnp.eye(2)).sizes.features
    2
    """
    if not isinstance(features, FeatureMoments):
        return of(features, **arrays)
    if given := sorted(name for name, x in arrays.items() if x is not None and x is not False):
        raise ValueError(f"{given[0]} beside moments: these hold what update(...) was given")
    return pooled(features)


def jackknife(
    m: FeatureMoments, function: Callable[[FeatureMoments], Any], *, level: float = 0.95
) -> Interval:
    """Any number of moments with a confidence interval, by leaving out blocks of rows in turn.

    Args:
      m: begun with ``blocks=16`` or so, here or by ``of(rows, blocks=16)``. A block is a run of
        consecutive rows of each batch: rows that belong together (by writer, by day) make the
        interval as wide as that deserves, unless they are shuffled first. NaN for an interval if a
        block is without rows.
      function: of moments without blocks, to a number, an array, or a tree of them (as the results
        of this room are), each of which gets its interval. It is called twice: once on all rows,
        once under ``vmap`` on what is left without each block.
      level: see `linalg.interval`, which says how and for what this holds.

    Works under ``jit``. Raises ``ValueError`` for moments without blocks.

    >>> x = np.random.default_rng(0).normal(size=(2000, 3))
    >>> found = jackknife(of(x, blocks=16), lambda m: jnp.trace(covariance(m)))
    >>> bool(found.low < 3 < found.high)
    True
    """
    if m.blocks < 2:
        raise ValueError("the moments have no blocks: begin with zero or of(..., blocks=16)")
    without = jax.vmap(lambda state: function(_of_state(m, state)))(_without_each(m))
    complete = jnp.all(jnp.sum(m.state.high.weight, axis=-1) > 0)
    dtype = m.state.high.mean.dtype
    without = jax.tree.map(lambda t: jnp.where(complete, t.astype(dtype), jnp.nan), without)
    return interval(function(pooled(m)), without, level=level)


def pooled(m: FeatureMoments) -> FeatureMoments:
    """The same without blocks: their rows in one."""
    if m.blocks == 1:
        return m
    return _of_state(m, reduce(moments.merge, _blocks(m)))


def unitless(m: FeatureMoments) -> FeatureMoments:
    """The moments of features, outputs and targets divided by a power of two each, in which no
    square is out of range: for numbers that their scale does not change."""
    return dataclasses.replace(m, state=moments.unitless(m.state))


def mean(m: FeatureMoments) -> Float[Array, " p"]:
    """The mean of the features; 0 without rows."""
    return moments.mean(_part(m, "features"))


def covariance(m: FeatureMoments, *, centred: bool = True) -> Float[Array, "p p"]:
    """``sum w (x - mean)(x - mean)^T / sum w`` of the features; of ``x x^T`` if not ``centred``."""
    return moments.second(_part(m, "features"), centred=centred)


def within(m: FeatureMoments) -> Float[Array, "p p"]:
    """``sum w (x - m_c)(x - m_c)^T / sum w``, each row about the mean of its class.

    Summed as such: its digits do not depend on how far apart the classes are. Raises ``ValueError``
    for moments without labels.
    """
    _check_classes(m)
    return moments.within(_part(m, "features"))


def class_sums(m: FeatureMoments) -> ClassSums:
    """Weights, means and spreads of the classes. Raises ``ValueError`` without labels."""
    _check_classes(m)
    found = moments.groups(pooled(m).state)
    p, o, _ = m.sizes
    spread = found.weight * jnp.sum(found.variance[:, :p], axis=1)
    return ClassSums(found.weight, found.mean[:, :p], spread, found.mean[:, p : p + o])


def cross(m: FeatureMoments, beside: Beside | Head, *, centred: bool = True) -> Float[Array, "k p"]:
    """``sum w y x^T / sum w`` of what stands beside the features with them, less the means.

    Args:
      beside: ``"outputs"``, ``"targets"`` (of which labels are the one-hot ones), or a `Head`,
        whose outputs need not have been summed.
      centred: without it, the means are not taken off.

    Raises ``ValueError`` for what the moments do not hold.

    >>> m = of(jnp.array([[1.0], [3.0]]), labels=jnp.array([0, 1]))
    >>> cross(m, "targets").tolist()
    [[-0.5], [0.5]]
    """
    if isinstance(beside, Head):
        return _cross_of_head(pooled(m), beside, centred=centred)
    if _by_labels(m, beside):
        return _cross_of_labels(pooled(m), centred=centred)
    return moments.cross(pooled(m).state, _place(m, beside), 0, centred=centred)


def gram(m: FeatureMoments, beside: Beside | Head, *, centred: bool = True) -> Float[Array, "k k"]:
    """``sum w y y^T / sum w`` of what stands beside the features, less the means: as `cross`.

    >>> gram(of(jnp.eye(2), labels=jnp.array([0, 1])), "targets", centred=False).tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    if isinstance(beside, Head):
        return _gram_of_head(pooled(m), beside, centred=centred)
    if _by_labels(m, beside):
        return _gram_of_labels(pooled(m), centred=centred)
    place = _place(m, beside)
    return moments.cross(pooled(m).state, place, place, centred=centred)


def mean_beside(m: FeatureMoments, beside: Beside | Head) -> Float[Array, " k"]:
    """The mean of what stands beside the features: see `cross`."""
    if isinstance(beside, Head):
        return _mean_of_head(pooled(m), beside)
    if _by_labels(m, beside):
        weight = moments.groups(pooled(m).state).weight
        return weight / _positive(jnp.sum(weight))
    return moments.mean(_part(m, beside))


def eigenvalues(m: FeatureMoments, *, centred: bool = True) -> moments.Eigenvalues:
    """Those of `covariance`, descending, and the floor below which they are rounding.

    Each is as exact as the method of summing makes it, also where float32 entries would have lost
    it: see `linalg.moments.eigenvalues`.
    """
    return moments.eigenvalues(_part(m, "features"), centred=centred)


def factor(m: FeatureMoments, *, centred: bool = True) -> Float[Array, "k p"]:
    """``R`` with ``R^T R = covariance(m)``: of `Head` outputs ``R @ kernel`` is a factor then.

    Of all columns, features first, it is ``linalg.moments.factor(m.joint)``, which says how it is
    made and how exact it is.
    """
    return moments.factor(_part(m, "features"), centred=centred)


def fourth(m: FeatureMoments, *, centred: bool = True) -> moments.Fourth:
    """``sum w |x|^4 / sum w`` and ``sum w |x|^2 x / sum w`` of features, about their mean.

    About the origin if not ``centred``. Raises ``ValueError`` for moments without them.
    """
    found = moments.fourth(_part(m, "features"), centred=centred)
    return moments.Fourth(found.squares[0, 0], found.rows[0])


def effective_rows(m: FeatureMoments) -> Float[Array, ""]:
    """``(sum w)^2 / sum w^2``: how many rows of equal weight say as much; 0 of none."""
    return moments.effective_rows(pooled(m).state)


def _of_state(m: FeatureMoments, state: moments.Moments) -> FeatureMoments:
    return dataclasses.replace(m, state=state, blocks=1)


def _blocks(m: FeatureMoments) -> list[moments.Moments]:
    return [jax.tree.map(itemgetter(k), m.state) for k in range(m.blocks)]


@jax.jit
def _without_each(m: FeatureMoments) -> moments.Moments:
    """`moments.leave_one_out` of the blocks, as loops: written out, it compiles for minutes."""

    def step(before: moments.Moments, block: moments.Moments) -> tuple[Any, Any]:
        return moments.merge(before, block), before

    _, before = jax.lax.scan(step, _empty(m), m.state)
    _, behind = jax.lax.scan(step, _empty(m), m.state, reverse=True)
    return jax.vmap(moments.merge)(before, behind)


def _part(m: FeatureMoments, name: Literal["features"] | Beside) -> moments.Moments:
    return moments.part(pooled(m).state, _place(m, name))


def _place(m: FeatureMoments, name: Literal["features"] | Beside) -> int:
    """Which part of the state the columns of this name are."""
    check_choice(Sizes._fields, beside=name)
    if not getattr(m.sizes, name):
        raise ValueError(f"the moments hold no {name}: begin with zero(p, {name}=...), pass them")
    return sum(size > 0 for size in m.sizes[: Sizes._fields.index(name)])


def _by_labels(m: FeatureMoments, name: Beside) -> bool:
    return name == "targets" and not m.sizes.targets and m.classes > 0


def _check_classes(m: FeatureMoments) -> None:
    if not m.classes:
        raise ValueError("the moments have no classes: begin with zero(p, classes=...)")


def _positive(x: Array) -> Array:
    return jnp.where(x == 0, 1, x)


@partial(moments.exactly, static=("centred",))
def _cross_of_head(m: FeatureMoments, head: Head, *, centred: bool) -> Array:
    found = mm(head.kernel.T, covariance(m, centred=centred))
    if centred or head.bias is None:
        return found
    return found + jnp.outer(head.bias, mean(m))


@partial(moments.exactly, static=("centred",))
def _gram_of_head(m: FeatureMoments, head: Head, *, centred: bool) -> Array:
    found = mm(head.kernel.T, mm(covariance(m), head.kernel))
    if centred:
        return found
    middle = mean_beside(m, head)
    return found + jnp.outer(middle, middle)


@moments.exactly
def _mean_of_head(m: FeatureMoments, head: Head) -> Array:
    found = mm(mean(m), head.kernel)
    return found if head.bias is None else found + head.bias


@partial(moments.exactly, static=("centred",))
def _cross_of_labels(m: FeatureMoments, *, centred: bool) -> Array:
    found = class_sums(m)
    share = found.weight / _positive(jnp.sum(found.weight))
    return share[:, None] * (found.mean - mean(m) if centred else found.mean)


@partial(moments.exactly, static=("centred",))
def _gram_of_labels(m: FeatureMoments, *, centred: bool) -> Array:
    share = mean_beside(m, "targets")
    return jnp.diag(share) - centred * jnp.outer(share, share)


def _each_block(
    function: Callable[[moments.Moments], moments.Moments], m: FeatureMoments
) -> FeatureMoments:
    function = function if m.blocks == 1 else jax.vmap(function)
    return dataclasses.replace(m, state=function(m.state))


def _given(m: FeatureMoments, features: Any, outputs: Any, targets: Any) -> dict[str, Any]:
    """The arrays that the moments have columns for, in order."""
    arrays = dict(features=features, outputs=outputs, targets=targets)
    for name, x in arrays.items():
        size = getattr(m.sizes, name)
        if x is None and size:
            raise ValueError(f"{name} are missing: the moments began with {size} columns of them")
        if x is not None and (len(np.shape(x)) != 2 or np.shape(x)[1] != size):
            raise ValueError(f"{name} have shape {np.shape(x)}: pass rows [b, {size}]")
        if x is not None and np.shape(x)[0] != np.shape(features)[0]:
            raise ValueError(f"{name} have {np.shape(x)[0]} rows, features {np.shape(features)[0]}")
    return {name: x for name, x in arrays.items() if x is not None}


def side_by_side(state: moments.Moments, arrays: Mapping[str, Any]) -> Any:
    """Arrays of the same rows as one, NumPy's if all are: their digits are read as they are."""
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    for name, x in arrays.items():
        working(x[:0], name)  # refuses what is no number, by its name
    arrays = _kept_wide(arrays)
    if state.method == "gram64" and all(isinstance(x, np.ndarray) for x in arrays.values()):
        return np.concatenate(list(arrays.values()), axis=1)
    found = [working(x, name) for name, x in arrays.items()]
    wide = state.method == "gram64" and any(x.dtype == jnp.float64 for x in found)
    dtype = jnp.float64 if wide else state.high.mean.dtype
    return jnp.concatenate([x.astype(dtype) for x in found], axis=1)


def _kept_wide(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Beside float64 of NumPy that JAX does not have, the others as NumPy's: it is not rounded."""
    numpy = [x for x in arrays.values() if isinstance(x, np.ndarray)]
    lost = any(x.dtype == np.float64 for x in numpy) and jnp.result_type(float) != jnp.float64
    return {name: on_host(x) if lost else x for name, x in arrays.items()}


def _dealt(m: FeatureMoments, rows: Any, weights: Any, labels: Any) -> FeatureMoments:
    """Runs of consecutive rows to the blocks; from batch to batch others get the longer ones."""
    given = {"rows": rows, "weights": weights, "labels": labels}
    arrays = _kept_wide({name: x for name, x in given.items() if x is not None})
    if not len(rows):
        return m
    runs = np.array_split(np.arange(len(rows)), m.blocks)
    by = _by_run if all(isinstance(x, np.ndarray) for x in arrays.values()) else _by_lane
    batch = jax.tree.map(lambda x: jnp.roll(x, m.turn, axis=0), by(m, runs, **arrays))
    state = jax.vmap(moments.merge)(m.state, batch)
    return dataclasses.replace(m, state=state, turn=m.turn + 1)


def _by_run(
    m: FeatureMoments, runs: list[np.ndarray], *, rows: np.ndarray, **beside: np.ndarray
) -> moments.Moments:
    """On the host, a block after the other."""
    states = [
        moments.update(_empty(m), rows[run], **{name: x[run] for name, x in beside.items()})
        for run in runs
    ]
    return jax.tree.map(lambda *x: jnp.stack(x), *states)


def _by_lane(
    m: FeatureMoments, runs: list[np.ndarray], *, rows: Any, weights: Any = None, labels: Any = None
) -> moments.Moments:
    """All blocks at once; the shorter ones have a row of weight 0 in addition."""
    index = np.stack([np.resize(run, len(runs[0])) for run in runs if len(run)])
    index = np.pad(index, ((0, m.blocks - len(index)), (0, 0)))
    real = np.arange(len(runs[0])) < np.array([len(run) for run in runs])[:, None]
    dtype = m.state.high.mean.dtype
    w = jnp.ones(len(rows), dtype) if weights is None else working(weights, "weights")
    lanes = [working(rows, "features")[index], jnp.where(real, w[index], 0)]
    if labels is not None:
        lanes.append(jnp.asarray(labels)[index])

    def update(x: Array, w: Array, labels: Array | None = None) -> moments.Moments:
        return moments.update(_empty(m), x, weights=w, labels=labels)

    return jax.vmap(update)(*lanes)


def _empty(m: FeatureMoments) -> moments.Moments:
    """The state of one block, without rows."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), m.state)


def _in_chunks(m: FeatureMoments, arrays: dict[str, Any]) -> FeatureMoments:
    if m.state.method == "gram64" and m.state.high.fourth is None:
        arrays = {name: on_host(x) for name, x in arrays.items()}
    if not all(isinstance(x, np.ndarray) for x in arrays.values()):
        return _scanned(m, {name: jnp.asarray(x) for name, x in arrays.items()})
    step = CHUNK * m.blocks
    for start in range(0, len(arrays["features"]), step):
        m = update(m, **{name: x[start : start + step] for name, x in arrays.items()})
    return m


def on_host(x: Any) -> Any:
    """An array that a CPU holds anyway as NumPy's, which multiplies float64 three times as fast."""
    if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) and len(x.devices()) == 1:
        (device,) = x.devices()
        return np.asarray(x) if device.platform == "cpu" else x
    return x


@jax.jit
def _scanned(m: FeatureMoments, arrays: dict[str, Array]) -> FeatureMoments:
    n = len(arrays["features"])
    whole = n // CHUNK * CHUNK
    if whole:
        chunks = {name: x[:whole].reshape(-1, CHUNK, *x.shape[1:]) for name, x in arrays.items()}
        m, _ = jax.lax.scan(lambda m, chunk: (update(m, **chunk), None), m, chunks)
    rest = {name: x[whole:] for name, x in arrays.items()}
    return update(m, **rest) if n > whole or not whole else m


def _dtype(features: Any) -> jnp.dtype:
    return working(features[:0], "features").dtype


def _columns(name: str, x: Any) -> int:
    if x is None:
        return 0
    if len(np.shape(x)) != 2:
        raise ValueError(f"{name} have shape {np.shape(x)}: pass rows [n, columns]")
    return np.shape(x)[1]


def label_count(labels: Any, classes: int | None) -> int:
    """``classes``, or one more than the largest label."""
    if labels is None:
        return classes or 0
    if classes is not None:
        return classes
    if isinstance(labels, jax.core.Tracer):
        raise ValueError("classes=None under jit, where labels are not known: pass classes=")
    return int(np.max(np.asarray(labels), initial=0)) + 1
