"""How alike two representations of the same inputs are: numbers that no rotation changes.

Each takes what there is: two arrays ``[n, p]`` and ``[n, q]``, whose rows are the same ``n``
inputs, and gives one number; or the layers of a network by name, ``{"block1": [n, p], ...}``, or
the `layers.LayerMoments` that were streamed of them, and gives the map ``[layers, layers]``, in
their order (a dict that has passed through ``jit`` is sorted by name; `layers.of` of it has
``names``). For the map between two networks pass the layers of both, and take the block of a pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from spectral_jax.features import layers
from spectral_jax.features.layers import LayerMoments, Layers
from spectral_jax.linalg import moments
from spectral_jax.linalg.subspace import mm
from spectral_jax.linalg.values import svdvals

__all__ = ["CKA", "cka", "kernel_distance", "procrustes"]

Compared = LayerMoments | Layers | Float[ArrayLike, "n p"]


class CKA(NamedTuple):
    """How alike representations are, and whether the rows say anything about them."""

    value: Float[Array, "*map"]
    """1 for the same up to rotation, shift and scale; unbiased, about 0 for independent ones."""
    signal: Float[Array, " layers"]
    """Of each layer's HSIC with itself the share that is no bias. Where it is 0 or less, the layer
    is constant or lost in the noise of too few rows, and its values are NaN."""
    rows: Float[Array, ""]
    """How many rows the weights amount to, ``(sum w)^2 / sum w^2``."""


def cka(
    x: Compared,
    y: Float[ArrayLike, "n q"] | None = None,
    *,
    unbiased: bool = True,
    weights: Float[ArrayLike, " n"] | None = None,
    method: moments.Method = "gram64",
) -> CKA:
    """Centred kernel alignment with linear kernels, over all rows at once, without ``n x n``.

    ``HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y))``. With the covariance ``S`` of the columns of both
    and, about the means, ``q = mean |x|^2 |y|^2``, the unbiased HSIC of ``n`` rows is

        n / (n - 3) (||S_xy||^2 - q / (n - 2) + tr S_xx tr S_yy / ((n - 1) (n - 2)))

    which is the estimator of Song et al. with its three ``n x n`` sums carried out. The biased one
    is ``||S_xy||^2``: with fewer rows than columns it finds *independent* representations alike
    (.64 for 200 rows of 512 and 256 columns).

    Args:
      x, y: see the module. ``y`` only beside an array.
      unbiased: False for the biased form. The unbiased value may be below 0, which is not cut off:
        averages over independent pairs are 0.
      weights: one for each row, for arrays. The correction is exact for weights that are equal or
        0, as a mask is; of others it is that of as many equal ones as they amount to.
      method: see `layers.zero`, for arrays.

    With three rows or fewer, NaN. Half types and float32 are summed in float64. Works under
    ``jit`` and ``vmap``, and under ``grad`` in float64 or with ``method="gram"``. Raises
    ``ValueError`` for arrays of different rows, complex numbers, or ``y`` beside a map.
    Source: Kornblith et al., arXiv 1905.00414; Song et al. 2012 (JMLR 13), equation 5, the
    unbiased HSIC; Nguyen, Raghu & Kornblith, arXiv 2010.15327, its use for CKA.

    >>> x = np.random.default_rng(0).normal(size=(50, 4))
    >>> round(float(cka(x, 3 * x[:, ::-1] + 1).value), 5)
    1.0
    """
    state, pair = _state(x, y, weights, method)
    found = _cka(state, unbiased=unbiased)
    return found._replace(value=found.value[0, 1]) if pair else found


def kernel_distance(
    x: Compared,
    y: Float[ArrayLike, "n q"] | None = None,
    *,
    centred: bool = False,
    weights: Float[ArrayLike, " n"] | None = None,
    method: moments.Method = "gram64",
) -> Float[Array, "*map"]:
    """``1 - <K, L> / (||K|| ||L||)`` of the kernels ``K = X X^T`` and ``L = Y Y^T``.

    Of features at initialisation and now, how far the kernel has moved: 0 as long as it is the
    same up to a factor, at most 1. From moments, ``<K, L> = ||X^T Y||^2``. NaN for features that
    are all 0.

    Args:
      centred: take off the mean of each column first; then this is one minus the biased `cka`.

    Other arguments, transforms and errors are those of `cka`.
    Source: Fort et al., arXiv 2010.15110, equation 3.

    >>> x = np.random.default_rng(0).normal(size=(50, 4))
    >>> kernel_distance(x, 2 * x[:, ::-1]).round(5).tolist()
    0.0
    """
    state, pair = _state(x, y, weights, method)
    found = _kernel_distance(state, centred=centred)
    return found[0, 1] if pair else found


def procrustes(
    x: Compared,
    y: Float[ArrayLike, "n q"] | None = None,
    *,
    weights: Float[ArrayLike, " n"] | None = None,
    method: moments.Method = "gram64",
) -> Float[Array, "*map"]:
    """``min_R ||X - Y R||^2`` over rotations, of centred representations scaled to ``||X|| = 1``.

    That is ``2 - 2 ||X^T Y||_*`` (the sum of singular values): 0 for the same up to rotation, shift
    and scale, 2 for uncorrelated ones. The narrower one is filled up with zeros. The root is a
    metric, and the Bures distance of the kernels ``X X^T`` and ``Y Y^T``. Biased as `cka` without
    ``unbiased`` is: compare at equal numbers of rows, many times the columns. NaN for constant
    features.

    A decomposition of ``p x q`` for each pair. Arguments, transforms and errors are those of `cka`.
    Source: Ding, Denain & Steinhardt, arXiv 2108.01661; Harvey, Larsen & Williams, arXiv
    2311.11436 (Bures).

    >>> x = np.random.default_rng(0).normal(size=(50, 4))
    >>> procrustes(x, 2 * x[:, ::-1]).round(5).tolist()
    0.0
    """
    state, pair = _state(x, y, weights, method)
    found = _procrustes(state)
    return found[0, 1] if pair else found


def _state(x: Any, y: Any, weights: Any, method: moments.Method) -> tuple[moments.Moments, bool]:
    """The moments of all layers, and whether they are of two arrays."""
    if isinstance(x, LayerMoments):
        if y is not None or weights is not None:
            raise ValueError("x holds moments: what else is to be compared is summed with them")
        return x.state, False
    if y is not None:
        return layers.of([x, y], weights=weights, method=method).state, True
    if not isinstance(x, Mapping | list | tuple):
        raise ValueError("y=None: pass what x is to be compared with, or several layers by name")
    return layers.of(x, weights=weights, method=method).state, False


class _Centred(NamedTuple):
    """Moments about the mean, each layer in the unit in which the trace of its covariance is 1."""

    second: Array
    fourth: Array
    """``mean |x_l|^2 |x_m|^2``, ``[layers, layers]``."""
    varies: Array
    """Whether the layer has any variance, ``[layers]``."""


def _centred(state: moments.Moments) -> _Centred:
    state = moments.unitless(state)
    second, mean = moments.second(state, centred=True), moments.mean(state)
    owner = _owner(state)
    spread = mm(owner, jnp.diagonal(second))
    varies = ~(spread <= (16 * state.eps) ** 2 * mm(owner, mean**2))  # NaN is no constant
    spread = jnp.where(varies, spread, 1)
    scale = mm(jnp.sqrt(spread), owner)
    fourth = moments.fourth(state).squares / jnp.outer(spread, spread)
    return _Centred(second / jnp.outer(scale, scale), fourth, varies)


def _owner(state: moments.Moments) -> Array:
    """``[layers, p]``: 1 where a column is of a layer; a product with it sums over those."""
    which = np.repeat(np.arange(len(state.parts)), state.parts)
    own = which == np.arange(len(state.parts))[:, None]
    return jnp.asarray(own, state.high.mean.dtype)


def _squares(state: moments.Moments, second: Array) -> Array:
    """``||S_lm||^2`` of all pairs of layers, ``[layers, layers]``."""
    owner = _owner(state)
    return mm(mm(owner, second**2), owner.T)


def _aligned(products: Array, known: Array) -> Array:
    """Cosines of inner products; NaN for those of what is not ``known`` to have a length."""
    lengths = jnp.where(known, jnp.diagonal(products), 1)
    inverse = jnp.where(known, lengths**-0.5, jnp.nan)
    return products * jnp.outer(inverse, inverse)


@partial(moments.exactly, static=("unbiased",))
def _cka(state: moments.Moments, *, unbiased: bool) -> CKA:
    second, fourth, varies = _centred(state)
    n = moments.effective_rows(state)
    plain = _squares(state, second)
    hsic = plain - fourth / (n - 2) + 1 / ((n - 1) * (n - 2))
    own, biased = jnp.diagonal(hsic), jnp.where(varies, jnp.diagonal(plain), 1)
    # Where the terms cancel, as for orthogonal rows or just above three of them, what is left is
    # rounding: none of it is signal.
    rounding = 64 * state.eps * (biased + jnp.diagonal(fourth) / jnp.abs(n - 2))
    share = jnp.where(jnp.abs(own) <= rounding, 0, n / (n - 3) * own / biased)
    signal = jnp.where(varies, jnp.where(n > 3, share, jnp.nan), 0)
    value = _aligned(hsic, signal > 0) if unbiased else _aligned(plain, varies)
    return CKA(value, signal, n)


@partial(moments.exactly, static=("centred",))
def _kernel_distance(state: moments.Moments, *, centred: bool) -> Array:
    if centred:
        second, _, known = _centred(state)
    else:
        second = moments.second(moments.unitless(state))
        known = ~(mm(_owner(state), jnp.diagonal(second)) <= 0)
    return jnp.maximum(1 - _aligned(_squares(state, second), known), 0)


def _procrustes(state: moments.Moments) -> Array:
    # The decomposition is of the dtype of the program: a TPU has none of float64 in one without.
    second, varies = _unit_covariance(state)
    shared = jnp.eye(len(state.parts), dtype=second.dtype)  # with itself: the trace
    places = list(enumerate(_places(state)))
    for i, rows in places:
        for j, columns in places[:i]:
            value = jnp.sum(svdvals(second[rows, columns]))
            shared = shared.at[np.array([i, j]), np.array([j, i])].set(value)
    known = jnp.outer(varies, varies) & ~jnp.isnan(jnp.trace(second))
    return jnp.maximum(2 - 2 * jnp.where(known, shared, jnp.nan), 0)


@moments.exactly
def _unit_covariance(state: moments.Moments) -> tuple[Array, Array]:
    found = _centred(state)
    return found.second, found.varies


def _places(state: moments.Moments) -> list[slice]:
    """The columns of each layer."""
    ends = [sum(state.parts[: i + 1]) for i in range(len(state.parts))]
    return [slice(end - size, end) for end, size in zip(ends, state.parts, strict=True)]
