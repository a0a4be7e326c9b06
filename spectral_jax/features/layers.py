"""Moments of several layers of the same rows, in one pass: what comparing representations needs.

    state = layers.zero({"block1": 64, "block2": 32})
    for batch in batches:                       # {"block1": [b, 64], "block2": [b, 32]} each
        state = layers.update(state, batch)     # also inside jit and scan
    cka(state), kernel_distance(state), procrustes(state)

Layers may be of one network or of two, or of one before and after training. What is summed are the
second moments of all columns side by side, and ``sum |x|^2 |y|^2`` of each pair of layers, by
`linalg.moments`: no ``n x n`` matrix, in float64 as a rule, each layer in a unit of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float

from spectral_jax._options import count
from spectral_jax.features.moments import CHUNK, side_by_side
from spectral_jax.linalg import moments
from spectral_jax.linalg.jackknife import Interval, interval
from spectral_jax.linalg.precision import working

__all__ = ["LayerMoments", "decay", "jackknife", "merge", "of", "psum", "update", "zero"]

Layers = Mapping[str, Float[ArrayLike, "b _"]] | Sequence[Float[ArrayLike, "b _"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerMoments:
    """Moments of rows ``[layer | layer | ...]``: a pytree of arrays. Make one with `zero` or `of`.

    ``state`` has a part for each layer.
    """

    state: moments.Moments
    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    @property
    def sizes(self) -> dict[str, int]:
        """The columns of each layer."""
        return dict(zip(self.names, self.state.parts, strict=True))


def zero(
    sizes: Mapping[str, int] | Sequence[int],
    *,
    method: moments.Method = "gram64",
    dtype: DTypeLike | None = None,
) -> LayerMoments:
    """The moments of no rows.

    Args:
      sizes: the columns of each layer, by name; layers without names are called "0", "1", ...
      method: of summing: see `linalg.moments`. ``"gram"`` is the one that float32 programs can
        differentiate; ``"qr"`` keeps most digits for `cca`.
      dtype: in which results come back. The default float if None; float32 for a half type.

    Raises ``ValueError`` for no layer, a size below 1, an unknown method or a complex dtype.

    >>> zero({"a": 3, "b": 2}).sizes
    {'a': 3, 'b': 2}
    """
    named = _named(sizes)
    if not named:
        raise ValueError("sizes is empty: pass the number of columns of each layer")
    parts = [count(f"sizes[{name!r}]", size) for name, size in named.items()]
    state = moments.zero(parts, method=method, dtype=dtype, fourth=True)
    return LayerMoments(state, tuple(named))


def update(
    m: LayerMoments, layers: Layers, *, weights: Float[ArrayLike, " b"] | None = None
) -> LayerMoments:
    """``m`` with the rows of a batch added: ``[b, p]`` of each layer, of the same ``b`` inputs.

    Any order and any batches give the same moments, up to rounding, wherever the mean lies.

    Args:
      weights: ``[b]``, at least 0; ``weights=mask`` leaves out padding, whatever it holds.

    Works under ``jit``, ``vmap``, ``scan``, on sharded rows, and under ``grad`` but for ``gram64``
    in float32. Raises ``ValueError`` for layers other than those of ``m``, shapes that do not fit,
    or complex numbers.

    >>> m = update(zero([2, 1]), [np.ones((4, 2)), np.ones((4, 1))])
    >>> float(moments.effective_rows(m.state))
    4.0
    """
    named = _named(layers)
    if set(named) != set(m.names):
        raise ValueError(f"layers are {list(named)}: the moments are of {list(m.names)}")
    arrays = {f"layers[{name!r}]": named[name] for name in m.names}
    b = (*np.shape(named[m.names[0]]), "b")[0]
    for (name, x), size in zip(arrays.items(), m.state.parts, strict=True):
        if np.shape(x) != (b, size):
            raise ValueError(f"{name} has shape {np.shape(x)}: pass rows [{b}, {size}]")
    rows = side_by_side(m.state, arrays)
    return dataclasses.replace(m, state=moments.update(m.state, rows, weights=weights))


def merge(a: LayerMoments, b: LayerMoments) -> LayerMoments:
    """The moments of the rows of both.

    Associative and commutative up to rounding. Works under ``jit``, ``vmap`` and ``grad``. Raises
    ``ValueError`` for moments of different layers, method or dtype.

    >>> one = of([np.ones((4, 2)), np.ones((4, 1))])
    >>> float(moments.effective_rows(merge(one, one).state))
    8.0
    """
    if a.sizes != b.sizes or a.names != b.names:
        raise ValueError(f"layers {a.sizes} and {b.sizes}: merge what one zero(...) began")
    return dataclasses.replace(a, state=moments.merge(a.state, b.state))


def psum(m: LayerMoments, axis_name: str | tuple[str, ...]) -> LayerMoments:
    """The moments of the rows of all devices along a mapped axis, on each of them.

    Inside ``shard_map`` or ``vmap(axis_name=...)``, after any number of updates.
    """
    return dataclasses.replace(m, state=moments.psum(m.state, axis_name))


def decay(m: LayerMoments, factor: ArrayLike) -> LayerMoments:
    """All weights so far times ``factor``, between 0 and 1: a moving average over batches.

    Works under ``jit``, ``vmap`` and ``grad``. Raises ``ValueError`` for a Python number outside
    [0, 1].
    """
    return dataclasses.replace(m, state=moments.decay(m.state, factor))


def of(
    layers: Layers,
    *,
    weights: Float[ArrayLike, " n"] | None = None,
    method: moments.Method = "gram64",
) -> LayerMoments:
    """The moments of arrays that are there as a whole: `zero` and `update`, in chunks.

    Results come back in the widest dtype of the layers. Arguments, transforms and errors are those
    of `zero` and `update`.

    >>> of({"a": np.ones((4, 2)), "b": np.ones((4, 1))}).sizes
    {'a': 2, 'b': 1}
    """
    named = {name: _array(x, f"layers[{name!r}]") for name, x in _named(layers).items()}
    for name, x in named.items():
        if x.ndim != 2:
            raise ValueError(f"layers[{name!r}] has shape {x.shape}: pass rows [n, p]")
    dtypes = [working(x[:0]).dtype for x in named.values()]
    dtype = max(dtypes, key=lambda dtype: dtype.itemsize, default=None)
    m = zero({name: x.shape[1] for name, x in named.items()}, method=method, dtype=dtype)
    w = None if weights is None else _array(weights, "weights")
    for start in range(0, max(len(x) for x in named.values()), CHUNK):
        rows = slice(start, start + CHUNK)
        batch = {name: x[rows] for name, x in named.items()}
        m = update(m, batch, weights=None if w is None else w[rows])
    return m


def jackknife(
    blocks: Sequence[LayerMoments], function: Callable[[LayerMoments], Any], *, level: float = 0.95
) -> Interval:
    """Any number of layers with a confidence interval, by leaving out blocks of rows in turn.

    Args:
      blocks: moments of 16 or so parts of the inputs, of about as many rows each.
      function: of their moments together, to a number, an array, or a tree of them. It is called
        twice: on all rows, and under ``vmap`` on what is left without each block.
      level: see `linalg.interval`, which says how and for what this holds.

    Works under ``jit``. Raises ``ValueError`` for fewer than two blocks, or blocks of different
    layers.

    >>> x = np.random.default_rng(0).normal(size=(16, 50, 3))
    >>> blocks = [of({"x": part, "twice": 2 * part[:, :2]}) for part in x]
    >>> found = jackknife(blocks, lambda m: moments.second(m.state)[0, 0])
    >>> bool(found.low < 1 < found.high)
    True
    """
    whole = reduce(merge, blocks)
    rest = moments.leave_one_out([m.state for m in blocks])
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *rest)
    without = jax.vmap(lambda state: function(dataclasses.replace(whole, state=state)))(stacked)
    return interval(function(whole), without, level=level)


def _named(layers: Any) -> dict[str, Any]:
    if isinstance(layers, Mapping):
        named = {str(name): layers[name] for name in layers}
        if len(named) < len(layers):
            raise ValueError(f"layers are {list(layers)}: two of these are one name as text")
        return named
    return {str(place): layer for place, layer in enumerate(layers)}


def _array(x: Any, name: str) -> Any:
    """An array of JAX; or of NumPy, whose float64 is not JAX's unless the sums ask for it."""
    return x if isinstance(x, np.ndarray) else working(x, name)
