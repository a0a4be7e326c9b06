"""From a pruned network to a smaller one, between two compiled phases of training.

    pruned, report = prune_spectra(params, policy)
    smaller = factorize(pruned, kept_ranks(report))
    opt_state = carry_moments(opt_state, pruned, smaller)
    rows = report_rows(report, params, smaller)

A factored kernel is ``{"u": first, "v": second}`` in the place of the array. The models of this
repository run such parameters (`models.factored`); `recombine_all` multiplies the factors again. A
smaller network has other parameters, so the optimiser's state must change with it: `carry_moments`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from spectral_jax._factors import split_refusal
from spectral_jax.linalg.subspace import mm
from spectral_jax.prune.spectra import LayerReport, PruneStatus
from spectral_jax.prune.surgery import recombine, split
from spectral_jax.weights import leaf_name, named_leaves, places, require_arrays

T = TypeVar("T")


def kept_ranks(report: Mapping[str, LayerReport]) -> dict[str, int]:
    """The rank to split each pruned layer at, as Python ints for `factorize`.

    Of a report with a leading axis of seeds, the largest rank among them, for layers that were
    pruned in every seed: seeds that train together have factors of one shape.
    Reads the report on the host: not for use inside ``jit``.
    """
    return {
        name: int(np.max(np.asarray(row.rank)))
        for name, row in report.items()
        if np.all(np.asarray(row.status) == PruneStatus.PRUNED)
    }


def factorize(params: PyTree, ranks: Mapping[str, int]) -> PyTree:
    """Replace every named kernel by two factors, if those have fewer parameters.

    Where they have not (`split_refusal`), the kernel stays as it is. The network computes what it
    would with the kernels truncated at these ranks. Holds under ``jit`` and ``vmap`` (seeds share
    the ranks). Raises ``ValueError`` for a name that is no leaf, for a leaf that stacks several
    layers (of ``nnx.scan``), whose factors would need one common rank, and for one of float8.

    >>> params = {"fc": {"kernel": jnp.ones((8, 6)), "bias": jnp.ones(6)}}
    >>> jax.tree.map(jnp.shape, factorize(params, {"fc/kernel": 2}), is_leaf=jnp.isscalar)
    {'fc': {'bias': (6,), 'kernel': {'u': (8, 2), 'v': (2, 6)}}}
    """
    require_arrays(params)
    left = dict(ranks)
    _refuse_stacks(params, ranks)

    def replaced(path: Any, leaf: Array) -> Any:
        rank = left.pop(leaf_name(path), None)
        if rank is None or split_refusal(leaf.shape, rank):
            return leaf
        if leaf.dtype.itemsize < 2:
            raise ValueError(f"ranks: {leaf_name(path)!r} is {leaf.dtype}, too narrow for factors")
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
    """The parameters with the factors of every kernel multiplied, the structure before any split.

    Holds under ``jit``, ``vmap`` and ``grad``.
    """
    require_arrays(params)
    return jax.tree.map(recombine, params, is_leaf=is_factored)


def is_factored(node: Any) -> bool:
    """Whether a node of a tree of parameters is a kernel in two factors."""
    return isinstance(node, Mapping) and set(node) == {"u", "v"}


def carry_moments(opt_state: PyTree, before: PyTree, after: PyTree) -> PyTree:
    """The optimiser's state of ``before`` as one of ``after``, the factored parameters.

    A momentum ``M`` of ``W = u v`` is a weighted sum of gradients ``G`` of ``W``; by the chain rule
    those of ``u`` and ``v`` are ``G v^T`` and ``u^T G``, so it becomes ``M v^T`` and ``u^T M``.
    Second moments, which are leaves of a field named ``nu``, sum up squared gradients and become
    ``M (v^2)^T`` and ``(u^2)^T M``, which is exact only for uncorrelated gradients. Parts of the
    state that are not shaped like the parameters, such as a step count, stay as they are.
    Holds under ``jit`` and ``vmap``.

    Starting the optimiser anew would do without, but momentum and Adam's scales are then lost: to
    see what that does by itself, train a control with ``before`` and ``optimizer.init(before)``.
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
    """What `attempt` found.

    state: the changed state if it was accepted, else the old one.
    before, after: the metric of the old and of the changed state.
    accepted: whether the change stands.
    """

    state: Any
    before: float
    after: float
    accepted: bool


def attempt(
    state: T, change: Callable[[T], Any], metric: Callable[[Any], float], *, max_drop: float
) -> Attempt:
    """Make a change, and take it back if the metric falls by more than ``max_drop``.

    ``metric(state)`` is, for instance, the validation accuracy: more is better. NaN after the
    change counts as a fall. Runs on the host, between compiled phases.
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
    """The subtree of ``after`` at the place of each leaf of ``before``."""
    return whole.flatten_up_to(after)
