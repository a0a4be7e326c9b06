"""How much to prune in each block, from the tail exponents of its layers (AlphaPruning)."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from spectral_jax._choices import check_choice
from spectral_jax._transforms.hyperparameters import check_share, concrete
from spectral_jax.linalg.precision import unit_of, working
from spectral_jax.optim.assignment import linear_map


class Allocation(NamedTuple):
    """The result of `alpha_pruning`.

    ratios: the share of weights to remove from each block, ``min(1, scale r_i)``.
    scale: the factor common to all blocks.
    full: blocks of which everything is removed.
    achieved: the share removed of all weights; other than asked for only under ``paper_compat``.
    """

    ratios: Float[Array, " blocks"]
    scale: Float[Array, ""]
    full: Bool[Array, " blocks"]
    achieved: Float[Array, ""]


def alpha_pruning(
    alpha: Float[Array, " blocks"],
    sizes: Float[Array, " blocks"],
    sparsity: float | Float[Array, ""],
    *,
    epsilon: float = 0.3,
    paper_compat: Literal["clip_no_renorm"] | None = None,
) -> Allocation:
    """Share out the weights to remove: fewer from blocks with heavier tails (smaller alpha).

    ``r_i = 1 - eps + 2 eps (alpha_i - min) / (max - min)`` and ``ratio_i = min(1, c r_i)``, where
    ``c`` is such that ``sum_i N_i ratio_i = sparsity sum_i N_i``: what a block beyond 1 cannot give
    is taken from the others.

    Args:
      alpha: the mean exponent over the layers of each block (`block_means`). A NaN gets ``r = 1``.
      sizes: the number of weights ``N_i`` of each block.
      sparsity: the share to remove of all weights together.
      epsilon: how far blocks may differ; 0 gives all the same share.
      paper_compat: ``"clip_no_renorm"`` does as the released code, which finds ``c`` without the
        ceiling and then cuts ratios at .998 (.99999 at a sparsity of .7), so that less is removed
        than asked for.

    Holds under ``jit`` (``sparsity`` may be traced), ``vmap`` and ``grad``.
    Raises ``ValueError`` unless ``0 <= epsilon < 1`` and ``0 <= sparsity <= 1``, and for sizes that
    are not one a block, at least 0 and above it in all.
    Source: arXiv 2410.10912.

    >>> result = alpha_pruning(jnp.array([2.0, 3.0, 5.0]), jnp.array([1.0, 1.0, 2.0]), 0.8,
    ...                        epsilon=0.4)
    >>> [round(float(x), 4) for x in result.ratios]
    [0.4909, 0.7091, 1.0]
    """
    if not 0 <= epsilon < 1:
        raise ValueError(f"epsilon={epsilon}: choose 0 <= epsilon < 1, the spread of the ratios")
    check_share("sparsity", sparsity)
    check_choice(("clip_no_renorm", None), paper_compat=paper_compat)
    alpha = working(alpha, "alpha")
    target = jnp.asarray(sparsity).astype(alpha.dtype)
    sizes = working(sizes, "sizes").astype(alpha.dtype)
    _check_sizes(alpha, sizes)
    sizes = sizes / unit_of(sizes)
    shares = linear_map(alpha, low=1 - epsilon, high=1 + epsilon)
    if paper_compat is None:
        ceiling, scale = jnp.ones((), alpha.dtype), _water_level(shares, sizes, target)
    else:
        low, high = (jnp.asarray(x, alpha.dtype) for x in (0.998, 0.99999))
        ceiling = jnp.where(jnp.abs(target - 0.7) < 1e-6, high, low)
        scale = target * jnp.sum(sizes) / jnp.sum(sizes * shares)
    ratios = jnp.minimum(scale * shares, ceiling)
    achieved = jnp.sum(sizes * ratios) / jnp.sum(sizes)
    return Allocation(ratios, scale, scale * shares >= ceiling, achieved)


def _check_sizes(alpha: Array, sizes: Array) -> None:
    if alpha.ndim != 1 or alpha.shape != sizes.shape or not alpha.size:
        raise ValueError(
            f"alpha has shape {alpha.shape}, sizes {sizes.shape}: pass one number per block of each"
        )
    if not concrete(sizes):
        return
    known = np.asarray(sizes)  # not jnp, which jit would trace
    if not (np.all(known >= 0) and np.any(known > 0)):  # their sum may overflow
        raise ValueError(f"sizes={known}: pass the number of weights of every block, not all 0")


def block_means(
    alphas: Mapping[str, Float[Array, ""] | float],
    *,
    block_of: Callable[[str], Hashable] | None = None,
) -> dict[Hashable, Float[Array, ""]]:
    """Average alpha over the layers of each block, unknown (NaN) ones left out.

    ``block_of`` maps a layer's name to its block; by default a block is the name up to its first
    number (``"model.layers.3.mlp.up_proj.weight"`` -> ``"model.layers.3"``), and a layer without a
    number is its own. A block of unknown layers has mean NaN.

    >>> block_means({"layers/0/q": 2.0, "layers/0/k": 4.0, "head": 5.0})
    {'layers/0': Array(3., dtype=float32), 'head': Array(5., dtype=float32)}
    """
    return {
        block: jnp.nanmean(jnp.stack([working(alphas[name], name) for name in names]))
        for block, names in _blocks(alphas, block_of).items()
    }


def layer_sparsities(
    alphas: Mapping[str, Float[Array, ""] | float],
    sizes: Mapping[str, int],
    sparsity: float | Float[Array, ""],
    *,
    epsilon: float = 0.3,
    block_of: Callable[[str], Hashable] | None = None,
) -> dict[str, Float[Array, ""]]:
    """``alpha_pruning`` by name: the sparsity of each layer is that of its block.

    Args:
      sizes: the number of weights of every layer named in ``alphas``.
      sparsity: the share of all weights that is to go.
      epsilon: how far blocks may part: before scaling, shares lie within ``1 - epsilon`` and
        ``1 + epsilon``, the larger alpha the more.
      block_of: a layer's name to its block, as in `block_means`.

    Raises ``ValueError`` if there is no layer or a size is missing, and as ``alpha_pruning`` does.

    >>> ratios = layer_sparsities({"a": 2.0, "b": 4.0}, {"a": 10, "b": 10}, 0.5, epsilon=0.2)
    >>> [round(float(ratio), 2) for ratio in ratios.values()]
    [0.4, 0.6]
    """
    if not alphas:
        raise ValueError("alphas is empty: pass the exponent of at least one layer")
    missing = sorted(set(alphas) - set(sizes))
    if missing:
        raise ValueError(f"sizes: no entry for {missing[0]!r}; pass the size of every layer")
    blocks = _blocks(alphas, block_of)
    means = jnp.stack(list(block_means(alphas, block_of=block_of).values()))
    totals = jnp.asarray([float(sum(sizes[n] for n in names)) for names in blocks.values()])
    ratios = alpha_pruning(means, totals, sparsity, epsilon=epsilon).ratios
    of_layer = {n: ratios[i] for i, names in enumerate(blocks.values()) for n in names}
    return {name: of_layer[name] for name in alphas}


def _blocks(names, block_of) -> dict[Hashable, list[str]]:
    block_of = _up_to_number if block_of is None else block_of
    blocks: dict[Hashable, list[str]] = {}
    for name in names:
        blocks.setdefault(block_of(name), []).append(name)
    return blocks


def _up_to_number(name: str) -> str:
    match = re.match(r".*?(?:^|[./])[A-Za-z_]*\d+(?=[./])", name)
    return match.group() if match else name


def _water_level(shares: Array, sizes: Array, target: Array) -> Array:
    """The ``c`` with ``sum N min(1, c r) = target sum N``.

    If the ``k`` blocks with the largest ``r`` are at 1, the rest determine ``c_k``. The right ``k``
    is the first for which ``c_k r`` of the next block is at most 1.
    """
    order = jnp.argsort(-shares)
    r, n = shares[order], sizes[order]
    capped = jnp.cumsum(n) - n
    rest = jnp.cumsum((n * r)[::-1])[::-1]
    levels = (target * jnp.sum(n) - capped) / rest
    fits = levels * r <= 1
    return jnp.where(jnp.any(fits), levels[jnp.argmax(fits)], 1 / r[-1])
