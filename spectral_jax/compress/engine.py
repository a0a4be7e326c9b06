"""From a source of tensors to those of the factored network, one layer at a time."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from spectral_jax import weights
from spectral_jax._door.source import (
    SHOW_PROGRESS_ABOVE,
    SQUARED_IN_FLOAT64,
    Arrays,
    Source,
    in_a_unit,
    select,
)
from spectral_jax._factors import split_refusal
from spectral_jax._options import check_number
from spectral_jax._progress import progress
from spectral_jax.compress.ranks import Rule, parse_rank
from spectral_jax.rmt import host

STORABLE = ("float16", "bfloat16", "float32", "float64")  # wide enough for a factor
EPS = float(np.finfo(np.float32).eps)
# Kolmogorov-Smirnov distance from which an edge is not to be relied on. Noise has it, at the 99 %
# quantile, only with fewer than some 40 singular values, which are too few to tell.
NOT_NOISE = 0.05


class Compressed(NamedTuple):
    """A row per layer, the tensors of the new network, and what was copied without a look.

    In a row, ``rank`` is what the rule asks for (NaN where it cannot say), ``error`` the share of
    the layer's Frobenius norm that is gone, and ``flops`` are per example, or per position of a
    convolution.

    A factored ``NAME`` is there as ``NAME.u``, the layer applied first, and ``NAME.v`` (``NAME/u``
    where names have slashes), each in the layout of ``NAME``: a dense ``[in, out]`` as ``[in, k]``
    and ``[k, out]``, a torch ``[out, in]`` as ``[k, in]`` and ``[out, k]``, a convolution as one of
    its window to ``k`` channels and a 1 x 1 one. The bias belongs to the second.
    """

    rows: list[dict[str, Any]]
    tensors: dict[str, np.ndarray]
    skipped: tuple[weights.Skipped, ...]


def compress(
    params: Any,
    *,
    rank: str | int = "mp",
    gate: float | None = None,
    layers: Sequence[str] = (),
    framework: weights.Framework | Literal["auto"] = "auto",
    kinds: Mapping[str, str] | None = None,
    label: str = "weights",
) -> Compressed:
    """Factor every dense layer and convolution that two factors of the chosen rank make smaller.

    Args:
      params: a pytree, a mapping of names to arrays, an open checkpoint, or the path of one.
      rank: ``mp``, what stands above the Marchenko-Pastur edge; ``gd``, above the threshold of
        Gavish and Donoho; ``energy=0.95``, that share of the squares; or a number.
      gate: the Kolmogorov-Smirnov distance of the bulk from noise above which a layer is copied;
        1 is off. Default: 0.05 for ``mp`` and ``gd``, which cut into signal where the bulk is no
        noise (a trained ResNet-20 falls from 92 to 12 %), and off for the other rules.
      layers: shell patterns of the names to factor; the rest is copied.
      framework, kinds: as in `spectral_jax.weights.plan`.

    Reads one tensor at a time; memory is that of the result and one layer in float64.
    Raises ``ValueError`` for an unknown option, a gate outside [0, 1], patterns that match nothing
    or a network without a matrix, ``CheckpointError`` for a bad file, and ``FileNotFoundError``.
    """
    gate = default_gate(rank) if gate is None else gate
    check_number("distances lie in [0, 1], so choose it there", lambda d: 0 <= d <= 1, gate=gate)
    rule = _gated(parse_rank(rank), gate)
    if isinstance(params, str) or hasattr(params, "__fspath__"):
        from spectral_jax.checkpoints import open_checkpoint

        with open_checkpoint(params) as checkpoint:
            return _compress(checkpoint, rule, layers, framework, kinds, label)
    source = params if hasattr(params, "read") else Arrays(params)
    return _compress(source, rule, layers, framework, kinds, label)


def default_gate(rank: str | int) -> float:
    """The gate of a rule: closed to what is no noise where the rule reads the noise."""
    return NOT_NOISE if rank in ("mp", "gd") else 1.0


def _gated(rule: Rule, gate: float) -> Rule:
    def gated(values: np.ndarray, shape: tuple[int, int], bulk: host.MPFit) -> int:
        rank = rule(values, shape, bulk)
        if gate < 1 and not bulk.ks <= gate:
            raise ValueError(f"the gate is closed: ks {bulk.ks:.2f} is above {gate:g}")
        return rank

    return gated


@np.errstate(invalid="ignore")  # of casting a signalling NaN; the layer's row says what it holds
def _compress(
    source: Source,
    rule: Rule,
    layers: Sequence[str],
    framework: Any,
    kinds: Mapping[str, str] | None,
    label: str,
) -> Compressed:
    plan = weights.plan(
        source.tensors, conv="flattened", framework=framework, kinds=kinds, tied=source.tied
    )
    chosen: dict[str, list[weights.View]] = {}
    for view in select(plan, layers):
        chosen.setdefault(view.sources[0], []).append(view)
    rows: list[dict[str, Any]] = []
    tensors: dict[str, np.ndarray] = {}
    sizes = {name: math.prod(tensor.shape) for name, tensor in source.tensors.items()}
    work = sum(sizes.values())
    with progress(work, label, show=work > SHOW_PROGRESS_ABOVE) as advance:
        for name, size in sizes.items():
            stored = {name: np.asarray(source.read(name))}
            if name in chosen:
                refusal = _not_alone(name, source)
                row, stored = _treat(stored[name], chosen[name], rule, refusal=refusal)
                rows.append(row)
            _add(tensors, stored)
            advance(size, note=name)
    return Compressed(rows, tensors, plan.skipped)


def _not_alone(name: str, source: Source) -> str:
    """Why a tensor may not be factored for what else there is; empty if it may."""
    twin = name[:-1] + {"u": "v", "v": "u"}.get(name[-1:], "")
    if name[-2:-1] in ("/", ".") and name != twin and twin in source.tensors:
        return "factors already"
    tied = [other for pair in source.tied.items() if name in pair for other in pair]
    others = sorted({*tied} - {name})
    return f"tied to {', '.join(others)}, which would no longer be the same" if others else ""


def _add(tensors: dict[str, np.ndarray], stored: Mapping[str, np.ndarray]) -> None:
    taken = sorted(tensors.keys() & stored.keys())
    if taken:
        raise ValueError(f"{taken[0]!r} is a tensor already: leave its layer out with --layers")
    tensors.update(stored)


def _treat(
    tensor: np.ndarray, views: Sequence[weights.View], rule: Rule, *, refusal: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The row of one tensor, and what takes its place."""
    view, name = views[0], views[0].sources[0]
    refusal = refusal or _not_a_layer(tensor, views)
    if refusal:
        return _row(tensor, view, host.NO_FIT, 1.0, math.nan, 0.0, refusal), {name: tensor}
    matrix, unit = in_a_unit(view.read(tensor.astype(np.float64)), SQUARED_IN_FLOAT64)
    if math.isnan(unit):
        refusal = "NaN or infinity among the weights"
        return _row(tensor, view, host.NO_FIT, 1.0, math.nan, 0.0, refusal), {name: tensor}
    values, vectors = _spectrum(matrix)
    bulk = host.fit_marchenko_pastur(values**2 / max(matrix.shape), matrix.shape)
    row = partial(_row, tensor, view, bulk, unit)
    try:
        nonzero = int(np.sum(values > max(matrix.shape) * EPS * values[0]))
        rank = min(rule(values, matrix.shape, bulk), nonzero)
        refusal = split_refusal(matrix.shape, rank)
    except ValueError as error:
        return row(math.nan, 0.0, str(error)), {name: tensor}
    if refusal:
        return row(rank, 0.0, refusal), {name: tensor}
    lost = math.sqrt(float(np.sum(values[rank:] ** 2) / np.sum(values**2)))
    factors = _factors(matrix, values[:rank], vectors[:, :rank], unit)
    return row(rank, lost, ""), _as_stored(name, tensor, view, factors)


def _not_a_layer(tensor: np.ndarray, views: Sequence[weights.View]) -> str:
    kind = views[0].kind
    if kind == "low_rank":
        return "factors already"
    if views[0].at:
        return f"a stack of {len(views)} layers in one tensor: store each by itself to factor it"
    if len(views) > 1:
        return "several matrices in one tensor; to factor them as one, say so: --kind 'NAME=dense'"
    if kind not in ("dense", "conv") or len(views[0].shape) != 2:
        return f"{kind} layers are not factored"
    if tensor.dtype.name not in STORABLE:
        return f"{tensor.dtype.name} is too narrow for a factor"
    return ""


def _spectrum(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Singular values, descending, and the vectors of the short side, by the Gram matrix."""
    tall = matrix if _tall(matrix) else matrix.T
    squares, vectors = np.linalg.eigh(tall.T @ tall)
    return np.sqrt(np.maximum(squares[::-1], 0)), vectors[:, ::-1]


def _factors(
    matrix: np.ndarray, values: np.ndarray, vectors: np.ndarray, unit: float
) -> tuple[np.ndarray, np.ndarray]:
    """``U sqrt(S)`` and ``sqrt(S) V^T``, for values above 0, of ``unit`` times the matrix."""
    roots, half = np.sqrt(values), math.sqrt(unit)
    if _tall(matrix):
        return matrix @ (vectors / roots * half), (vectors * roots * half).T
    return vectors * roots * half, (vectors / roots * half).T @ matrix


def _as_stored(
    name: str, tensor: np.ndarray, view: weights.View, factors: tuple[np.ndarray, np.ndarray]
) -> dict[str, np.ndarray]:
    """The factors under their names, in the layout and dtype of the tensor."""
    # How a view reads a tensor says how to write one: the order of axes to [*window, in, out].
    how = view.read.keywords  # type: ignore[attr-defined]
    axes = how["axes"] if view.kind == "conv" else (1, 0) if how.get("transpose") else (0, 1)
    *window, i, o = (tensor.shape[axis] for axis in axes)
    u, v = factors
    u, v = u.reshape(*window, i, -1), v.reshape(*[1] * len(window), -1, o)
    separator = "/" if "/" in name else "."
    back = np.argsort(axes)
    return {
        f"{name}{separator}{letter}": factor.transpose(back).astype(tensor.dtype)
        for letter, factor in (("u", u), ("v", v))
    }


def _row(
    tensor: np.ndarray,
    view: weights.View,
    bulk: host.MPFit,
    unit: float,
    rank: float | int,
    error: float,
    refusal: str,
) -> dict[str, Any]:
    m, n = math.prod(view.shape[:-1]), view.shape[-1]
    after = tensor.size if refusal else int(rank) * (m + n)
    return {
        "outcome": "kept" if refusal else "factored",
        "layer": view.sources[0],
        "kind": view.kind,
        "m": m,
        "n": n,
        "sigma": math.sqrt(bulk.variance) * unit,
        "edge": bulk.threshold * unit,
        "spikes": bulk.spikes,
        "ks": bulk.ks,
        "rank": rank,
        "error": error,
        "parameters_before": tensor.size,
        "parameters_after": after,
        "flops_before": 2 * tensor.size,
        "flops_after": 2 * after,
        "reason": refusal
        or (f"bulk unlike noise: ks {bulk.ks:.2f}" if bulk.ks > NOT_NOISE else ""),
    }


def _tall(matrix: np.ndarray) -> bool:
    return matrix.shape[0] >= matrix.shape[1]
