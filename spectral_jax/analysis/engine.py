"""From a source of tensors to the rows of the table."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, Literal, NamedTuple

import numpy as np

from spectral_jax import weights
from spectral_jax._door.source import SHOW_PROGRESS_ABOVE, Source, select
from spectral_jax._progress import progress
from spectral_jax.analysis.columns import DEFAULT, OPTIONAL
from spectral_jax.analysis.layers import Layer, spectra
from spectral_jax.analysis.verdicts import judge, summarise


class Analysis(NamedTuple):
    """Rows in the network's order, their spectra, what was left out, and the gist in sentences."""

    rows: list[dict[str, Any]]
    layers: list[Layer]
    skipped: tuple[weights.Skipped, ...]
    gist: list[str]

    @property
    def summary(self) -> str:
        """The gist as one paragraph."""
        return " ".join(self.gist)


def analyze_layers(
    source: Source,
    *,
    metrics: Sequence[str] = DEFAULT,
    layers: Sequence[str] = (),
    conv: weights.Conv = "positions",
    framework: weights.Framework | Literal["auto"] = "auto",
    kinds: Mapping[str, str] | None = None,
    label: str = "weights",
) -> Analysis:
    """Every layer's spectrum and its metrics; memory is that of the largest layer.

    Raises:
        ValueError: an unknown metric group, layers that match nothing, no matrix in the source.
    """
    groups = check_groups(metrics)
    plan = weights.plan(
        source.tensors, conv=conv, framework=framework, kinds=kinds, tied=source.tied
    )
    views = select(plan, layers)
    read = _read(source, views, groups, label)
    from spectral_jax.analysis.measure import measure

    rows = [_identity(layer) | row for layer, row in zip(read, measure(read, groups), strict=True)]
    for row in rows:
        row["verdict"], row["reason"] = judge(row)
    skipped = plan.skipped + tuple(
        weights.Skipped(name, (), why) for name, why in source.skipped.items()
    )
    # Of the tensors, not of the matrices: the product of two factors is larger than they are.
    sources = {name for layer in read for name in layer.view.sources}
    sizes = {name: prod(tensor.shape) for name, tensor in source.tensors.items()}
    whole = sum(size for name, size in sizes.items() if name not in source.tied)
    share = sum(sizes[name] for name in sources) / whole
    return Analysis(rows, read, skipped, summarise(rows, skipped=len(skipped), share=share))


def check_groups(metrics: Sequence[str]) -> tuple[str, ...]:
    """The metric groups asked for; ``all`` stands for every one."""
    metrics = (metrics,) if isinstance(metrics, str) else metrics
    unknown = [name for name in metrics if name not in (*OPTIONAL, "all")]
    if unknown:
        raise ValueError(f"metrics={unknown[0]!r} is unknown: use {', '.join(OPTIONAL)} or all")
    return OPTIONAL if "all" in metrics else tuple(dict.fromkeys(metrics))


@np.errstate(invalid="ignore")  # of casting a signalling NaN; the layer's row says what it holds
def _read(
    source: Source, views: Sequence[weights.View], groups: Sequence[str], label: str
) -> list[Layer]:
    windows: Callable[[np.ndarray], np.ndarray] | None = None
    if "farms" in groups:
        from spectral_jax.analysis.measure import windowed_eigenvalues

        windows = windowed_eigenvalues
    read = []
    work = sum(prod(view.shape) for view in views)
    with progress(work, label, show=work > SHOW_PROGRESS_ABOVE) as advance:
        for layer in spectra(source, views, windows=windows):
            read.append(layer)
            advance(prod(layer.view.shape), note=layer.view.name)
    return read


def _identity(layer: Layer) -> dict[str, Any]:
    *slices, m, n = layer.view.shape
    return {
        "layer": layer.view.name,
        "kind": layer.view.kind,
        "m": m,
        "n": n,
        "slices": prod(slices),
        "parameters": prod(layer.view.shape),
        "eigenvalues": len(layer.eigenvalues),
        "possible_rank": layer.possible_rank,
        "finite": layer.finite,
        "note": layer.view.note,
    }
