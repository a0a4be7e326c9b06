"""Spectra of the diagonal blocks of a Gauss-Newton matrix, and what the blocks leave out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float, PyTree

from spectral_jax.curvature._batches import Model, Weight
from spectral_jax.curvature._matrix import grams_of, route_of
from spectral_jax.curvature._subset import Subset, Where, names_of
from spectral_jax.curvature.kernel import (
    Spectrum,
    examples_are_apart,
    lost_in,
    problem_of,
    spectrum_of,
)
from spectral_jax.curvature.losses import Loss
from spectral_jax.linalg.precision import unit_of


class Blocks(NamedTuple):
    """The diagonal blocks of a Gauss-Newton matrix ``G``, by name, and the rest of it.

    shares: ``||G_lm||_F^2 / ||G||_F^2`` for blocks ``l`` and ``m`` in the order of ``spectra``; NaN
      for a zero matrix.
    outside: the sum of those off the diagonal, what a block-diagonal approximation leaves out.
    """

    spectra: dict[str, Spectrum]
    shares: Float[Array, "blocks blocks"]
    outside: Float[Array, ""]


def ggn_blocks(
    model: Model,
    loss: Loss,
    params: PyTree,
    data: tuple[PyTree, PyTree],
    *,
    block: Callable[[str], str] | None = None,
    weight: Weight = None,
    where: Where = None,
    memory: int = 4 * 2**30,
) -> Blocks:
    """The spectrum of each diagonal block of the Gauss-Newton matrix, and their share of it.

    ``G_lm = J_l^T J_m`` for the columns of the rows ``J`` that belong to blocks ``l`` and ``m``.
    Inner products ``K_l = J_l J_l^T`` hold all that is needed: the eigenvalues of a block, and
    ``||G_lm||_F^2 = tr(K_l K_m)``, so that no block is formed.

    ``block`` takes the name of a leaf (``"layers/0/kernel"``) to that of its block, such as
    ``lambda name: name.rpartition("/")[0]`` for layers; by default each leaf is one. There is a
    matrix of inner products in memory for each. A block whose largest eigenvalue is below the
    square of the rounding unit, as a share of the largest of all, is below its floor. Other
    arguments, transforms, accuracy and errors are those of `ggn_spectrum`.

    >>> from spectral_jax.curvature import SquaredError
    >>> params = {"a": jnp.ones((2, 1)), "b": jnp.ones((1, 1))}
    >>> x = jnp.array([[1.0, 0.0, 1.0], [0.0, 2.0, 0.0]])
    >>> found = ggn_blocks(lambda p, x: x[:, :2] @ p["a"] + x[:, 2:] @ p["b"], SquaredError(),
    ...                    params, (x, jnp.zeros((2, 1))))
    >>> found.spectra["a"].values.tolist(), found.spectra["b"].values.tolist()
    ([4.0, 1.0], [1.0])
    >>> found.outside.round(2).tolist()
    0.1
    """
    if not (block is None or callable(block)):
        raise ValueError(f"block={block!r}: pass a function from a leaf's name to its block's")
    problem = problem_of(
        model, loss, "hessian", params, data, weight=weight, where=where, memory=memory
    )
    blocks = _numbered(problem.rows.subset, params, block)
    route_of(problem, "kernel", matrices=len(blocks.sizes))
    with jax.default_matmul_precision("highest"):
        grams = grams_of(problem, blocks.of_leaf)
        apart = examples_are_apart(problem)
    rows, lost = problem.sizes["kernel"], lost_in(problem)
    spectra = {
        name: spectrum_of(problem, gram, apart, lost, min(rows, size))[0]
        for (name, size), gram in zip(blocks.sizes.items(), grams, strict=True)
    }
    spectra = _told_from_rounding(spectra, problem.dtype)
    with problem.wide():
        grams = jnp.where(apart, grams / unit_of(grams), jnp.nan)
        energy = jnp.einsum("lij,mij->lm", grams, grams, precision=Precision.HIGHEST)
        shares = (energy / jnp.sum(energy)).astype(problem.dtype)
        outside = jnp.sum(shares) - jnp.trace(shares)
    return Blocks(spectra, shares, outside)


def _told_from_rounding(spectra: dict[str, Spectrum], dtype: Any) -> dict[str, Spectrum]:
    """Floors above the blocks of which nothing can be told from the rounding in their columns.

    The columns of a block may cancel: a softmax does not see the bias of attention's keys, whose
    curvature is 0. What is left are rounding errors, whose squares are this share of the largest
    eigenvalue of any block or less.
    """
    largest = jnp.max(jnp.stack([found.values[0] for found in spectra.values()]))
    rounding = largest * jnp.finfo(dtype).eps ** 2

    def floored(found: Spectrum) -> Spectrum:
        above = jnp.maximum(found.floor, rounding.astype(found.floor.dtype))
        floor = jnp.where(found.values[0] <= rounding, above, found.floor)
        return dataclasses.replace(found, floor=floor)

    return {name: floored(found) for name, found in spectra.items()}


class _Numbered(NamedTuple):
    """The sizes of blocks by name, and the number of the block of each leaf."""

    sizes: dict[str, int]
    of_leaf: tuple[int, ...]


def _numbered(subset: Subset, params: PyTree, block: Callable[[str], str] | None) -> _Numbered:
    sizes: dict[str, int] = {}
    names = []
    leaves = zip(names_of(params), jax.tree.leaves(params), subset.chosen, strict=True)
    for name, leaf, chosen in leaves:
        names.append(block(name) if block and chosen else name)
        if chosen:
            sizes[names[-1]] = sizes.get(names[-1], 0) + jnp.size(leaf)
    numbers = {name: i for i, name in enumerate(sizes)}
    return _Numbered(sizes, tuple(numbers.get(name, 0) for name in names))
