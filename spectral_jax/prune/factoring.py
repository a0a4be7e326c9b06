"""Between two compiled phases: a pruned network as a smaller one, and whether it was worth it.

    pruned, report = prune_spectra(params, policy)
    smaller = factorize(pruned, kept_ranks(report))
    opt_state = carry_moments(opt_state, pruned, smaller)
    rows = report_rows(report, params, smaller)

A factored kernel is ``{"u": first, "v": second}`` in the place of the array. The models of this
repository run it so (`models.factored`); `recombine_all` turns it back. To see what the loss of
momentum does by itself, train a control that keeps its weights and gets ``optimizer.init(params)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from spectral_jax.linalg.subspace import mm
from spectral_jax.prune.spectra import LayerReport, PruneStatus
from spectral_jax.prune.surgery import recombine, split, split_refusal
from spectral_jax.weights import leaf_name, named_leaves, places

T = TypeVar("T")


def kept_ranks(report: Mapping[str, LayerReport]) -> dict[str, int]:
    """The rank to split each pruned layer at; over seeds, the largest that one of them needs.

    Reads the report on the host: not for use inside ``jit``.
    """
    return {
        name: int(np.max(np.asarray(row.rank)))
        for name, row in report.items()
        if np.all(np.asarray(row.status) == PruneStatus.PRUNED)
    }


def factorize(params: PyTree, ranks: Mapping[str, int]) -> PyTree:
    """Put two factors in the place of every named kernel that they make smaller.

    Where they would not (`split_refusal`), the kernel stays. Forward results are those of the
    kernels truncated at these ranks. Holds under ``jit`` and ``vmap`` (seeds share the ranks).
    Raises ``ValueError`` for a name that is not there, or for a stack of layers, whose ranks would
    have to be one.

    >>> params = {"fc": {"kernel": jnp.ones((8, 6)), "bias": jnp.ones(6)}}
    >>> jax.tree.map(jnp.shape, factorize(params, {"fc/kernel": 2}), is_leaf=jnp.isscalar)
    {'fc': {'bias': (6,), 'kernel': {'u': (8, 2), 'v': (2, 6)}}}
    """
    left = dict(ranks)
    _refuse_stacks(params, ranks)

    def replaced(path: Any, leaf: Array) -> Any:
        rank = left.pop(leaf_name(path), None)
        if rank is None or split_refusal(leaf.shape, rank):
            return leaf
        return split(leaf, rank)

    result = jax.tree.map_with_path(replaced, params)
    if left:
        names = [leaf_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
        raise ValueError(f"ranks: no kernel {min(left)!r}; the leaves are {', '.join(names)}")
    return result


def _refuse_stacks(params: PyTree, ranks: Mapping[str, int]) -> None:
    stacks = {place.leaf for place in places(named_leaves(params)).values() if place.at}
    stacked = [name for name in ranks if name.partition(":")[0] in stacks]
    if stacked:
        raise ValueError(
            f"ranks: {stacked[0]!r} is a stack of layers, which share the shape of their factors; "
            "store each layer by itself to factor it"
        )


def recombine_all(params: PyTree) -> PyTree:
    """One kernel for every chain of factors, as before any split.

    Holds under ``jit``, ``vmap`` and ``grad``.
    """
    return jax.tree.map(recombine, params, is_leaf=is_factored)


def is_factored(node: Any) -> bool:
    """Whether a node of a tree of parameters is a kernel in two factors."""
    return isinstance(node, Mapping) and set(node) == {"u", "v"}


def carry_moments(opt_state: PyTree, before: PyTree, after: PyTree) -> PyTree:
    """The optimiser's state for ``before``, made one for ``after``, its factored parameters.

    The moment ``M`` of ``W = u v`` becomes ``M v^T`` for ``u`` and ``u^T M`` for ``v``: what the
    chain rule makes of the gradients that it sums up. Second moments (leaves under ``nu``) go
    through the squares, ``M (v^2)^T`` and ``(u^2)^T M``. Whatever is no image of the parameters,
    such as a step count, stays. Holds under ``jit`` and ``vmap``.
    """
    whole: Any = jax.tree.structure(before)

    def mirrors(node: Any) -> bool:
        if jax.tree.structure(node) != whole:
            return False
        pairs = zip(jax.tree.leaves(node), jax.tree.leaves(before), strict=True)
        return all(jnp.shape(a) == jnp.shape(b) for a, b in pairs)

    def carried(path: Any, node: Any) -> Any:
        if not mirrors(node):
            return node
        second = any(getattr(key, "name", None) == "nu" for key in path)
        moments = jax.tree.leaves(node)
        return jax.tree.unflatten(
            whole,
            [_split_moment(m, a, second) for m, a in zip(moments, _at(whole, after), strict=True)],
        )

    return jax.tree.map_with_path(carried, opt_state, is_leaf=mirrors)


class Attempt(NamedTuple):
    """A state, the validation metric before and after a change, and whether the change stands."""

    state: Any
    before: float
    after: float
    accepted: bool


def attempt(
    state: T, change: Callable[[T], Any], metric: Callable[[Any], float], *, max_drop: float
) -> Attempt:
    """Make a change, and take it back if the metric (more is better) falls by above ``max_drop``.

    NaN after the change is a fall. Runs on the host, between compiled phases.
    Raises ``ValueError`` for a negative ``max_drop``.

    >>> attempt(0.9, lambda accuracy: accuracy - 0.2, float, max_drop=0.1)
    Attempt(state=0.9, before=0.9, after=0.7, accepted=False)
    """
    if not max_drop >= 0:
        raise ValueError(f"max_drop={max_drop}: choose at least 0")
    changed = change(state)
    before, after = float(metric(state)), float(metric(changed))
    accepted = after >= before - max_drop
    return Attempt(changed if accepted else state, before, after, accepted)


def _split_moment(moment: Array, kernel: Any, second: bool) -> Any:
    """The moment of one kernel, for the factors that it has become."""
    if not is_factored(kernel):
        return moment
    u, v = recombine(kernel["u"]), recombine(kernel["v"])
    a, b = (x.reshape(-1, x.shape[-1]) for x in (u, v))
    a, b = (a * a, b * b) if second else (a, b)
    matrix = moment.reshape(-1, moment.shape[-1])
    first, last = mm(matrix, b.T).reshape(u.shape), mm(a.T, matrix).reshape(v.shape)
    return {
        "u": _split_moment(first, kernel["u"], second),
        "v": _split_moment(last, kernel["v"], second),
    }


def _at(whole: Any, after: PyTree) -> list[Any]:
    """What stands in ``after`` in the place of each leaf of ``before``."""
    return whole.flatten_up_to(after)
