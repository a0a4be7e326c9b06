"""Floating leaves of a tree of parameters, in the dtype that spectra are computed in.

Half precision is read as float32; the results go back into the dtype of the leaf or update that
they replace. Other leaves (step counts, tables, random keys) are left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from spectral_jax import weights
from spectral_jax.linalg.precision import working


def floats(tree: PyTree) -> PyTree:
    """Floating leaves in float32 or float64; None in the place of every other leaf.

    Raises ``ValueError`` for a tree without floating leaves whose leaves are complex, and for
    leaves that are shapes.
    """
    weights.require_arrays(tree)
    found = jax.tree.map(lambda leaf: working(leaf) if _floating(leaf) else None, tree)
    if not jax.tree.leaves(found):
        for leaf in jax.tree.leaves(tree):
            if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
                working(leaf, "params")
    return found


def refuse_codes(params: PyTree) -> None:
    """Raise ``ValueError`` for float8 that a scale is beside, since its numbers are no weights.

    Integers are codes as well, but nobody takes them for weights that are trained: they are None
    among the `floats`.
    """
    weights.require_arrays(params)
    leaves = weights.named_leaves(params)
    trained = {name: leaf for name, leaf in leaves.items() if _floating(leaf)}
    weights.refuse_codes(
        trained, "train the weights themselves, or leave these out by optax.masked(...)"
    )


def moved(params: PyTree, updates: PyTree) -> PyTree:
    """The parameters after the updates, as `floats` gives them."""

    def one(parameter: Any, update: Any) -> Array | None:
        if not _floating(parameter):
            return None
        start = working(parameter)
        return start + jnp.asarray(update).astype(start.dtype)

    return jax.tree.map(one, params, updates)


def changed(change: Callable[..., Array], updates: PyTree, params: PyTree, by: PyTree) -> PyTree:
    """``change(update, parameter, by)`` for each leaf, or the update where ``by`` is None.

    Computed in the dtype of ``by`` and returned in that of the update.
    """

    def one(update: Any, parameter: Any, amount: Array | None) -> Any:
        if amount is None:
            return update
        pair = (jnp.asarray(x).astype(amount.dtype) for x in (update, parameter))
        return change(*pair, amount).astype(jnp.result_type(update))

    return jax.tree.map(one, updates, params, by)


def finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every leaf's sum of magnitudes is finite: no NaN, no inf, no sum that overflows."""
    sums = [jnp.isfinite(jnp.sum(jnp.abs(leaf))) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(sums))


def like(weights: Array, result: Array) -> Array:
    """The result in the dtype of the floating weights that it replaces.

    As integers, weights between -1 and 1 would become 0: those keep the result's own dtype.
    """
    dtype = getattr(weights, "dtype", result.dtype)  # a list has none
    return result.astype(dtype) if jnp.issubdtype(dtype, jnp.floating) else result


def _floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
