"""What a pruning did to every layer, and to the network as a whole.

    layers, network = pruning_report(
        report, params, smaller, predict=predict, x=x_test, labels=y_test, latency=(0.012, 0.007)
    )

``report`` comes from `prune_spectra`, and ``smaller`` from `factorize` of its result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import nan, prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from spectral_jax._factors import split_refusal
from spectral_jax.prune.factoring import is_factored
from spectral_jax.prune.spectra import LayerReport, PruneStatus
from spectral_jax.weights import entry, leaf_name, named_leaves, places


class PruningReport(NamedTuple):
    """The result of `pruning_report`, which describes what both parts hold."""

    layers: list[dict[str, Any]]
    network: dict[str, Any]


def pruning_report(
    report: Mapping[str, LayerReport],
    before: PyTree,
    after: PyTree,
    *,
    predict: Callable[[PyTree, Array], Array],
    x: Float[Array, "s ..."],
    labels: Int[Array, " s"],
    latency: tuple[float, float] = (nan, nan),
) -> PruningReport:
    """Sizes, costs and accuracy before and after, for every layer and for the network.

    ``layers`` are the rows of `report_rows`. ``network`` has, each ``_before`` and ``_after``:

    ``parameters``
        of all leaves, biases and norms included;
    ``flops``
        per example, as XLA counts the program (additions and activations too; a loop once);
    ``latency``
        in seconds, the two numbers given: the library itself measures no times;
    ``accuracy``
        the share of ``x`` whose largest logit is that of the label; a row of logits with a NaN
        counts as wrong;
    ``dead_classes``
        the classes that no sample is put into, see `dead_classes`.

    Args:
      report: what `prune_spectra` found.
      before, after: the parameters before the pruning, and those that training continues with.
      predict: ``(params, x) -> logits [s, c]``; called once for each network, with all of ``x``.

    Runs on the host, for one seed. Raises ``ValueError`` if logits and labels do not fit.
    """
    network: dict[str, Any] = {}
    for when, params, seconds in zip(("before", "after"), (before, after), latency, strict=True):
        logits = predict(params, x)
        if logits.shape[:-1] != labels.shape:
            raise ValueError(f"logits {logits.shape} for labels {labels.shape}: pass [s, c], [s]")
        network |= {
            f"parameters_{when}": parameter_count(params),
            f"flops_{when}": _flops(predict, params, x[:1]),
            f"latency_{when}": float(seconds),
            f"accuracy_{when}": _accuracy(logits, labels),
            f"dead_classes_{when}": np.flatnonzero(dead_classes(logits)).tolist(),
        }
    return PruningReport(report_rows(report, before, after), network)


def report_rows(
    report: Mapping[str, LayerReport], before: PyTree, after: PyTree
) -> list[dict[str, Any]]:
    """A row per reported layer: its fit, what was done and why, and its cost before and after.

    ``sigma``, ``edge``, ``spikes``, ``ks`` and ``rank`` are those of `LayerReport`. ``outcome`` is
    ``split`` (in two factors), ``masked`` (pruned in its old shape) or ``kept`` (not pruned);
    ``reason`` says why it is not ``split``. ``flops`` are multiplications and additions per
    example, for a convolution per position.
    Reads the report on the host: not for use inside ``jit``.
    """
    kernels, results = _nodes(before), _nodes(after)
    return [
        _layer_row(name, jax.tree.map(np.asarray, row), kernels[name], results[name])
        for name, row in report.items()
    ]


def parameter_count(params: PyTree, *, bias_every_factor: bool = False) -> int:
    """The number of entries of all leaves, which may be arrays or ``jax.ShapeDtypeStruct``.

    ``bias_every_factor`` adds a bias for every factor but the last of a kernel. Such factors have
    none here, but the published counts of arXiv 2303.08986 include them.

    >>> parameter_count({"kernel": {"u": jnp.ones((8, 2)), "v": jnp.ones((2, 6))}})
    28
    """
    count = sum(prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return count + (sum(map(_inner_widths, _factored_nodes(params))) if bias_every_factor else 0)


def dead_classes(logits: Float[Array, "s c"]) -> Bool[Array, " c"]:
    """Classes that no sample is put into, because their logit is never the single largest.

    Under a ReLU on the logits, one that is never positive is 0 for all samples and gets no gradient
    again. Holds under ``jit`` and ``vmap``.

    >>> dead_classes(jnp.array([[0.0, 2.0, 1.0], [0.0, 1.0, 3.0]]))
    Array([ True, False, False], dtype=bool)
    """
    largest = logits == jnp.max(logits, axis=-1, keepdims=True)
    alone = jnp.sum(largest, axis=-1, keepdims=True) == 1
    return ~jnp.any(largest & alone, axis=-2)


def _flops(predict: Callable[[PyTree, Array], Array], params: PyTree, x: Array) -> float:
    counted = jax.jit(predict).lower(params, x).cost_analysis()
    return float((counted or {}).get("flops", nan))


def _accuracy(logits: Array, labels: Array) -> float:
    right = jnp.argmax(logits, axis=-1) == labels
    return float(jnp.mean(right & jnp.all(jnp.isfinite(logits), axis=-1)))


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
    """The summed widths between the factors of a kernel."""
    if not is_factored(kernel):
        return 0
    inner = jax.tree.leaves(kernel["v"])[0].shape[-2]
    return inner + _inner_widths(kernel["u"]) + _inner_widths(kernel["v"])


def _nodes(params: PyTree) -> dict[str, Any]:
    """Arrays, factored kernels, their factors, and the layers of stacks, all by name."""
    found: dict[str, Any] = {}

    def visit(path: Any, node: Any) -> None:
        found[leaf_name(path)] = node
        if is_factored(node):
            for letter, link in node.items():
                visit((*path, jax.tree_util.DictKey(letter)), link)

    nodes, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_factored)
    for path, node in nodes:
        visit(path, node)
    stacks = {name: place for name, place in places(named_leaves(params)).items() if place.at}
    return found | {name: entry(found[leaf], at) for name, (leaf, at) in stacks.items()}
