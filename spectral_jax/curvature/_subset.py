"""Some leaves of a tree of parameters as one vector, the others held constant."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from spectral_jax.linalg.precision import working

Where: TypeAlias = Callable[[str], bool] | PyTree | None


@dataclasses.dataclass(frozen=True)
class Subset:
    """What is static of a selection: the tree, which leaves are chosen, and their vector."""

    tree: Any
    chosen: tuple[bool, ...]
    unravel: Callable[[Array], list[Array]]
    size: int
    dtype: jnp.dtype

    def rebuild(self, chosen: list[Array], others: list[Any]) -> PyTree:
        """The whole tree, of its chosen leaves and of the others."""
        parts = {True: iter(chosen), False: iter(others)}
        return jax.tree.unflatten(self.tree, [next(parts[here]) for here in self.chosen])


def select(params: PyTree, where: Where = None) -> tuple[Subset, list[Array], list[Any]]:
    """The chosen leaves of ``params`` in the dtype that spectra are computed in, and the others.

    ``where`` is a predicate of a leaf's name (``"layers/0/kernel"``, its path joined by slashes) or
    a tree of booleans like ``params``; by default every floating leaf is chosen. Leaves that are
    not floating, such as counters and keys, never are.

    Raises ``ValueError`` if nothing is chosen, for a complex leaf, and for a tree of booleans that
    does not fit.
    """
    named, tree = jax.tree_util.tree_flatten_with_path(params)
    leaves = [leaf for _, leaf in named]
    names = names_of(params)
    wanted = _wanted(where, names, tree)
    chosen = tuple(bool(w) and _is_real(x) for w, x in zip(wanted, leaves, strict=True))
    picked = [working(x, "params") for x, here in zip(leaves, chosen, strict=True) if here]
    others = [
        x if hasattr(x, "dtype") else jnp.asarray(x)
        for x, here in zip(leaves, chosen, strict=True)
        if not here
    ]
    flat, unravel = ravel_pytree(picked)
    if flat.size == 0:
        listed = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        raise ValueError(f"where chooses no floating parameters of params, which has: {listed}")
    return Subset(tree, chosen, unravel, flat.size, flat.dtype), picked, others


def names_of(params: PyTree) -> tuple[str, ...]:
    """The names of the leaves, as in ``"layers/0/kernel"``."""
    named, _ = jax.tree_util.tree_flatten_with_path(params)
    return tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in named)


def _wanted(where: Where, names: Sequence[str], tree: Any) -> list[bool]:
    if where is None:
        return [True] * len(names)
    if callable(where):
        return [where(name) for name in names]
    flags, flag_tree = jax.tree.flatten(where)
    if flag_tree != tree or not all(map(_is_flag, flags)):
        raise ValueError("where is no tree like params: pass one boolean for each leaf")
    return flags


def _is_flag(flag: Any) -> bool:
    """Not a string, which Python takes for true, nor the mask of a leaf's entries."""
    return not isinstance(flag, str) and jnp.ndim(flag) == 0


def _is_real(leaf: Any) -> bool:
    """Whether a leaf can be chosen; complex ones raise instead of being held in silence."""
    dtype = jnp.result_type(leaf)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        working(leaf, "params")
    return jnp.issubdtype(dtype, jnp.floating)
