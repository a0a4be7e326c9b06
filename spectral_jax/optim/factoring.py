"""Between two compiled phases: a pruned network as a smaller one, and whether it was worth it.

    pruned, report = prune_spectra(params, policy)
    smaller = factorize(pruned, kept_ranks(report))
    opt_state = carry_moments(opt_state, pruned, smaller)
    rows = report_rows(report, params, smaller)

A factored kernel is ``{"u": first, "v": second}`` in the place of the array. The models of this
repository run it so (`models.factored`); `recombine_all` turns it back. To see what the loss of
momentum does by itself, train a control that keeps its weights and gets ``optimizer.init(params)``.
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from spectral_jax.linalg.subspace import mm
from spectral_jax.optim.surgery import recombine, split, split_refusal
from spectral_jax.optim.svd_prune import LayerReport, PruneStatus

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
    Raises ``ValueError`` for a name that is not there.

    >>> params = {"fc": {"kernel": jnp.ones((8, 6)), "bias": jnp.ones(6)}}
    >>> jax.tree.map(jnp.shape, factorize(params, {"fc/kernel": 2}), is_leaf=jnp.isscalar)
    {'fc': {'bias': (6,), 'kernel': {'u': (8, 2), 'v': (2, 6)}}}
    """
    left = dict(ranks)

    def replaced(path: Any, leaf: Array) -> Any:
        rank = left.pop(_name(path), None)
        if rank is None or split_refusal(leaf.shape, rank):
            return leaf
        return split(leaf, rank)

    result = jax.tree.map_with_path(replaced, params)
    if left:
        names = [_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
        raise ValueError(f"ranks: no kernel {min(left)!r}; the leaves are {', '.join(names)}")
    return result


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


def report_rows(
    report: Mapping[str, LayerReport], before: PyTree, after: PyTree
) -> list[dict[str, Any]]:
    """A row per reported layer: what was seen, what was done and why, and what it costs.

    ``flops`` are multiplications and additions per example (per position, for a convolution).
    ``outcome`` is ``split``, ``masked`` or ``kept``; a ``reason`` stands beside the last two.
    Reads the report on the host: not for use inside ``jit``.
    """
    kernels, results = _nodes(before), _nodes(after)
    return [
        _layer_row(name, jax.tree.map(np.asarray, row), kernels[name], results[name])
        for name, row in report.items()
    ]


def parameter_count(params: PyTree, *, bias_every_factor: bool = False) -> int:
    """Entries of all leaves. Works on arrays and on shapes.

    ``bias_every_factor`` counts a bias for each first factor, which has none: the published
    counts of arXiv 2303.08986 do.

    >>> parameter_count({"kernel": {"u": jnp.ones((8, 2)), "v": jnp.ones((2, 6))}})
    28
    """
    count = sum(prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return count + (sum(map(_inner_widths, _factored_nodes(params))) if bias_every_factor else 0)


def dead_classes(logits: Float[Array, "s c"]) -> Bool[Array, " c"]:
    """The classes that no sample is put into: whose logit is never the only largest.

    A ReLU on the logits can leave some at 0 for ever. Holds under ``jit`` and ``vmap``.

    >>> dead_classes(jnp.array([[0.0, 2.0, 1.0], [0.0, 1.0, 3.0]]))
    Array([ True, False, False], dtype=bool)
    """
    largest = logits == jnp.max(logits, axis=-1, keepdims=True)
    alone = jnp.sum(largest, axis=-1, keepdims=True) == 1
    return ~jnp.any(largest & alone, axis=-2)


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


def _layer_row(name: str, row: LayerReport, kernel: Array, result: Any) -> dict[str, Any]:
    m, n = prod(kernel.shape[:-1]), kernel.shape[-1]
    left = parameter_count(result)
    outcome, reason = _outcome(row, kernel, result)
    return {
        "layer": name,
        "m": m,
        "n": n,
        **{name: row._asdict()[name].item() for name in ("sigma", "edge", "spikes", "ks", "rank")},
        "outcome": outcome,
        "reason": reason,
        "parameters_before": m * n,
        "parameters_after": left,
        "flops_before": 2 * m * n,
        "flops_after": 2 * left,
    }


def _outcome(row: LayerReport, kernel: Array, result: Any) -> tuple[str, str]:
    if is_factored(result):
        return "split", ""
    status = PruneStatus(int(row.status))
    if status is PruneStatus.PRUNED:
        return "masked", split_refusal(kernel.shape, int(row.rank)) or "not split"
    return "kept", {
        PruneStatus.NO_FIT: "no fit: too few singular values, or weights that are not finite",
        PruneStatus.GATE_CLOSED: f"the gate is closed: ks {row.ks:.3f}",
        PruneStatus.NO_NOISE: "the noise was cut before: most singular values are 0",
    }[status]


def _factored_nodes(params: PyTree) -> list[Any]:
    return [x for x in jax.tree.leaves(params, is_leaf=is_factored) if is_factored(x)]


def _inner_widths(kernel: Any) -> int:
    """Outputs of all first factors of a chain."""
    if not is_factored(kernel):
        return 0
    inner = jax.tree.leaves(kernel["v"])[0].shape[-2]
    return inner + _inner_widths(kernel["u"]) + _inner_widths(kernel["v"])


def _at(whole: Any, after: PyTree) -> list[Any]:
    """What stands in ``after`` in the place of each leaf of ``before``."""
    return whole.flatten_up_to(after)


def _nodes(params: PyTree) -> dict[str, Any]:
    """Arrays and factored kernels by name; a chain also under the names of its links."""
    found: dict[str, Any] = {}

    def visit(path: Any, node: Any) -> None:
        found[_name(path)] = node
        if is_factored(node):
            for letter, link in node.items():
                visit((*path, jax.tree_util.DictKey(letter)), link)

    nodes, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_factored)
    for path, node in nodes:
        visit(path, node)
    return found


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
