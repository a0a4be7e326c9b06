"""Which weights to remove from one matrix, and what to make of the rest.

Matrices are ``[in, out]`` and inputs ``[samples, in]``: a layer computes ``inputs @ weights``.
``sparsity`` is the share to remove and may be traced; the number of removed weights is its product
with the size, rounded. Everything here holds under ``jit`` and ``vmap``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from spectral_jax import weights as weights_of
from spectral_jax._choices import check_choice
from spectral_jax._options import check_count
from spectral_jax._transforms.hyperparameters import check_share
from spectral_jax._transforms.leaves import like
from spectral_jax.linalg.precision import unit_of, working
from spectral_jax.linalg.subspace import mm

Sparsity = float | Float[Array, ""]


class Pruned(NamedTuple):
    """The result of `sparsegpt`.

    weights: the pruned ones are 0, the others changed to make up for them.
    kept: True where a weight was kept.
    sound: False if the inputs cannot be used (NaN among them, or a Gram matrix that is not positive
      definite in spite of the damping); the weights are then NaN.
    """

    weights: Float[Array, "m n"]
    kept: Bool[Array, "m n"]
    sound: Bool[Array, ""]


def magnitude_mask(weights: Float[Array, "m n"], sparsity: Sparsity) -> Bool[Array, "m n"]:
    """Keep the weights of largest magnitude, in an array of any shape; of equals, the later ones.

    >>> magnitude_mask(jnp.array([[3.0, -1.0], [0.5, -4.0]]), 0.5)
    Array([[ True, False],
           [False,  True]], dtype=bool)
    """
    weights = jnp.asarray(weights)
    # As floats: the magnitude of the least integer of a width is itself, below all others.
    sizes = jnp.abs(weights if jnp.iscomplexobj(weights) else working(weights, "weights"))
    return _largest(sizes.ravel(), sparsity).reshape(weights.shape)


def wanda_mask(
    weights: Float[Array, "m n"], inputs: Float[Array, "samples m"], sparsity: Sparsity
) -> Bool[Array, "m n"]:
    """Keep, for each output ``j``, the weights with the largest ``|W_ij| ||x_i||_2``.

    That is the size of what input ``i`` contributes to the output over all samples. The share of
    weights removed is the same for each output.
    Raises ``ValueError`` if the inputs are not as wide as the matrix is high.
    Source: Wanda, arXiv 2306.11695.
    """
    weights, inputs = _checked(weights, inputs)
    weights, inputs = weights / unit_of(weights), inputs / unit_of(inputs)
    scores = jnp.abs(weights) * jnp.linalg.norm(inputs, axis=0)[:, None]
    return jax.vmap(lambda column: _largest(column, sparsity), in_axes=1, out_axes=1)(scores)


@partial(jax.jit, static_argnames=("block_size", "damping"))
def sparsegpt(
    weights: Float[Array, "m n"],
    inputs: Float[Array, "samples m"],
    sparsity: Sparsity,
    *,
    block_size: int = 128,
    damping: float = 0.01,
) -> Pruned:
    """Remove weights input by input; those of later inputs change to make up for each removal.

    With ``H = X^T X + damping mean(diag X^T X) I`` and the upper triangular ``U`` of
    ``H^-1 = U^T U``: removing ``W_ij`` raises the squared error of output ``j`` by
    ``W_ij^2 / U_ii^2``, so the weights for which that is least go. The weights of later inputs then
    change by ``-(W_ij / U_ii) U_i,i+1:``, which is the least-squares answer with all earlier inputs
    held fixed (the optimal brain surgeon).

    Args:
      block_size: weights to remove are chosen for so many inputs at a time, from the values that
        earlier blocks have left.
      damping: of ``H``, which without it is singular for fewer samples than inputs.

    Inputs that are 0 in all samples lose their weights first. For small models: it holds ``[m, m]``
    matrices and takes ``O(m^3 + m^2 n)`` operations.
    Raises ``ValueError`` for inputs of the wrong width, ``block_size < 1`` or ``damping <= 0``.
    Source: SparseGPT, arXiv 2301.00774.
    """
    given = weights
    weights, inputs = _checked(weights, inputs)
    check_count(block_size=block_size)
    if not damping > 0:
        raise ValueError(f"damping={damping}: choose it above 0, or H may have no inverse")
    unit, inputs = unit_of(weights), inputs / unit_of(inputs)
    gram = mm(inputs.T, inputs)
    dead = jnp.diag(gram) == 0
    factor = _inverse_factor(gram, dead, damping)
    weights = jnp.where(dead[:, None], 0, weights / unit)
    size = len(weights)
    rest, kept = weights, []
    for start in range(0, size, block_size):
        stop = min(start + block_size, size)
        rest, mask = _prune_block(rest, factor, start, stop, sparsity)
        kept.append(mask)
    sound = jnp.all(jnp.isfinite(rest))
    return Pruned(like(given, unit * rest), jnp.concatenate(kept), sound)


def reconstruction_error(
    weights: Float[Array, "m n"], pruned: Float[Array, "m n"], inputs: Float[Array, "samples m"]
) -> Float[Array, ""]:
    """The share of a layer's output that pruning changed; 0 where the output is 0 anyway.

    ``||X W - X W'||_F^2 / ||X W||_F^2``, with ``W'`` the pruned weights.
    """
    weights, inputs = _checked(weights, inputs)
    pruned = working(pruned, "pruned")
    if pruned.shape != weights.shape:
        raise ValueError(f"pruned has shape {pruned.shape}: pass that of weights, {weights.shape}")
    unit, inputs = unit_of(weights), inputs / unit_of(inputs)
    pruned, weights = pruned / unit, weights / unit
    lost, whole = (jnp.sum(mm(inputs, w) ** 2) for w in (weights - pruned, weights))
    return jnp.where(whole > 0, lost / jnp.where(whole > 0, whole, 1), 0)


def prune_weights(
    params: PyTree,
    sparsities: Mapping[str, Sparsity],
    *,
    method: Literal["magnitude", "wanda", "sparsegpt"] = "magnitude",
    inputs: Mapping[str, Float[Array, "samples m"]] | None = None,
) -> PyTree:
    """Prune the named kernels (``"layers/0/kernel"``) and leave every other leaf as it is.

    Args:
      sparsities: the share of weights to remove from each kernel, by its name. Of a leaf that
        stacks several layers, ``"layers/fc/kernel:3"`` is one; the name alone means each of them.
      method: `magnitude_mask`, `wanda_mask` or `sparsegpt`.
      inputs: what each named layer is given, ``[samples, in]``; ``magnitude`` needs none. All axes
        of a kernel but the last count as inputs: of a convolution ``[h, w, i, o]``, read as
        ``[h w i, o]``, they are the patches, flattened in that order.

    A kernel of float8 is pruned if it has no scale or a single one, which changes no order and
    leaves 0 what it is. Raises ``ValueError`` for one with a scale per row or block, whose codes
    have no common order, and for integer codes, as for a name that is no leaf, and for inputs that
    are missing.

    >>> params = {"a": {"kernel": jnp.array([[1.0, -2.0], [3.0, 4.0]]), "bias": jnp.ones(2)}}
    >>> prune_weights(params, {"a/kernel": 0.5})["a"]["kernel"].tolist()
    [[0.0, 0.0], [3.0, 4.0]]
    """
    check_choice(("magnitude", "wanda", "sparsegpt"), method=method)
    weights_of.require_arrays(params)
    flat, tree = jax.tree_util.tree_flatten_with_path(params)
    leaves = {weights_of.leaf_name(path): leaf for path, leaf in flat}
    chosen = _layers(leaves, sparsities)
    _refuse_codes(leaves, {place.leaf for place, _ in chosen.values()})
    absent = [] if method == "magnitude" else sorted(set(chosen) - set(inputs or {}))
    if absent:
        raise ValueError(f"inputs: none for {absent[0]!r}, which method={method!r} needs")
    for name, (place, sparsity) in chosen.items():
        kernel = weights_of.entry(leaves[place.leaf], place.at)
        seen = None if inputs is None else inputs.get(name)
        pruned = _prune_matrix(kernel.reshape(-1, kernel.shape[-1]), sparsity, method, seen)
        pruned = pruned.reshape(kernel.shape)
        whole = jnp.asarray(leaves[place.leaf])  # one of NumPy has no `at`
        leaves[place.leaf] = weights_of.with_entry(whole, place.at, pruned)
    return jax.tree.unflatten(tree, list(leaves.values()))


def _layers(
    leaves: Mapping[str, Array], sparsities: Mapping[str, Sparsity]
) -> dict[str, tuple[weights_of.Place, Sparsity]]:
    """Where each named layer lies and its sparsity; a stack's own name is all of its layers."""
    places = weights_of.places(weights_of.named_leaves(leaves))
    stacks = {name: place for name, place in places.items() if place.at}
    chosen: dict[str, tuple[weights_of.Place, Sparsity]] = {}
    for name, sparsity in sparsities.items():
        layers = {n: place for n, place in stacks.items() if name in (n, place.leaf)}
        if not layers and name not in leaves:
            known = [*leaves, *stacks]
            raise ValueError(f"sparsities: no leaf at {name!r}; the leaves are {known}")
        layers = layers or {name: weights_of.Place(name)}
        chosen |= {each: (place, sparsity) for each, place in layers.items()}
    return chosen


def _refuse_codes(leaves: Mapping[str, Array], named: Collection[str]) -> None:
    """Raise ``ValueError`` for a named leaf of codes that are not in the order of the weights."""
    single = {name for name, leaf in leaves.items() if jnp.size(leaf) == 1}
    for name, scales in weights_of.coded(leaves).items():
        one_scale = len(scales) == 1 and single.issuperset(scales)
        if name in named and not one_scale:
            weights_of.refuse_codes(
                {each: leaves[each] for each in (name, *scales)},
                "prune the weights that they stand for, then quantise",
            )


def _prune_matrix(matrix: Array, sparsity: Sparsity, method: str, inputs: Any) -> Array:
    check_share("sparsity", sparsity)
    if method == "sparsegpt":
        return sparsegpt(matrix, inputs, sparsity).weights
    if method == "wanda":
        return jnp.where(wanda_mask(matrix, inputs, sparsity), matrix, 0)
    return jnp.where(magnitude_mask(matrix, sparsity), matrix, 0)


def _largest(scores: Float[Array, " k"], sparsity: Sparsity) -> Bool[Array, " k"]:
    """All but the ``round(sparsity k)`` smallest; exactly that many, ties in order of place."""
    check_share("sparsity", sparsity)
    removed = jnp.round(jnp.asarray(sparsity, jnp.float32) * scores.size)
    order = jnp.argsort(scores)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(scores.size, dtype=order.dtype))
    return rank >= removed.astype(order.dtype)


def _inverse_factor(gram: Array, dead: Array, damping: float) -> Array:
    """Upper triangular ``U`` with ``U^T U`` the inverse of the damped Gram matrix.

    ``U = P L^-1 P``, with ``L`` the Cholesky factor of the matrix in reversed order and ``P`` the
    reversal. Factoring the explicit inverse would lose twice as many digits.
    """
    alive = jnp.maximum(jnp.sum(~dead), 1).astype(gram.dtype)
    scale = jnp.sum(jnp.diag(gram)) / alive
    unit = jnp.where(scale > 0, scale, 1)
    damped = gram + jnp.diag(jnp.where(dead, unit, damping * unit))
    lower = jnp.linalg.cholesky(damped[::-1, ::-1])
    identity = jnp.eye(len(gram), dtype=gram.dtype)
    return jax.lax.linalg.triangular_solve(lower, identity, left_side=True, lower=True)[::-1, ::-1]


def _prune_block(rest: Array, factor: Array, start: int, stop: int, sparsity: Sparsity):
    """Prune inputs ``start`` to ``stop - 1``, and change the weights of all later ones."""
    block, local = rest[start:stop], factor[start:stop, start:stop]
    pivots = jnp.diag(local)
    scores = (block / pivots[:, None]) ** 2
    kept = _largest(scores.ravel(), sparsity).reshape(block.shape)
    indices = jnp.arange(stop - start)

    def remove(i, carry):
        block, errors = carry
        error = jnp.where(kept[i], 0, block[i]) / pivots[i]
        change = jnp.where(indices[:, None] > i, local[i][:, None] * error, 0)
        return block - change, errors.at[i].set(error)

    block, errors = jax.lax.fori_loop(0, stop - start, remove, (block, jnp.zeros_like(block)))
    after = rest[stop:] - mm(factor[start:stop, stop:].T, errors)
    pruned = jnp.where(kept, block, 0)
    return jnp.concatenate([rest[:start], pruned, after]), kept


def _checked(weights: Array, inputs: Array) -> tuple[Array, Array]:
    """Both in float32 or float64; ``ValueError`` if their shapes do not fit."""
    weights, inputs = working(weights, "weights"), working(inputs, "inputs")
    if weights.ndim != 2 or inputs.ndim != 2 or inputs.shape[1] != weights.shape[0]:
        raise ValueError(
            f"weights {weights.shape} and inputs {inputs.shape}: pass [in, out] and [samples, in]"
        )
    return weights, inputs
