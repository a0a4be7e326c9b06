"""The metrics of every layer, group by group."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from spectral_jax.analysis import host
from spectral_jax.analysis.columns import names
from spectral_jax.analysis.layers import Layer

WINDOW = 100  # rows and columns of a FARMS window, or the short side of a smaller layer
WINDOWS_PER_AXIS = 9
DRAWS = 200  # bootstrap samples of goodness: a p-value to ± 0.03


def measure(layers: Sequence[Layer], groups: Sequence[str]) -> list[dict[str, Any]]:
    """One row of metrics per layer; NaN where there is nothing to measure."""
    return [_row(layer, groups) for layer in layers]


def windowed_eigenvalues(matrix: np.ndarray) -> np.ndarray:
    """The pooled spectrum of square windows of at most 100 x 100, nine along either side."""
    from spectral_jax.tails import farms_eigenvalues

    pooled = farms_eigenvalues(matrix.astype(np.float32), window=WINDOW, samples=WINDOWS_PER_AXIS)
    return np.asarray(pooled, np.float64)


def _row(layer: Layer, groups: Sequence[str]) -> dict[str, Any]:
    *_, m, n = layer.view.shape
    if not layer.finite or not layer.eigenvalues[-1] > 0:
        unknown = dict.fromkeys(names(groups)[len(names(())) :], math.nan)
        return unknown | {"rank": 0} | ({"fit": "not finite or zero"} if "ks" in groups else {})
    row: dict[str, Any] = {"rank": host.matrix_rank(layer.eigenvalues, (m, n))}
    for group in groups:
        row |= _GROUPS[group](layer, row)
    return row


def _norms(layer: Layer, row: dict[str, Any]) -> dict[str, Any]:
    return host.norms(layer.eigenvalues, layer.view.shape[-2:])


def _hill(layer: Layer, row: dict[str, Any]) -> dict[str, Any]:
    *slices, m, n = layer.view.shape
    return host.hill(layer.eigenvalues, (math.prod(slices), m, n))


def _ks(layer: Layer, row: dict[str, Any]) -> dict[str, Any]:
    return host.weighted(host.power_law(layer.eigenvalues), layer.eigenvalues)


def _farms(layer: Layer, row: dict[str, Any]) -> dict[str, Any]:
    windowed = np.zeros(0) if layer.windowed is None else layer.windowed
    return {"alpha_farms": host.hill_alpha(windowed)}


def _alternatives(layer: Layer, row: dict[str, Any]) -> dict[str, Any]:
    from spectral_jax.tails import tail_alternatives

    fit = host.power_law(layer.eigenvalues)
    if fit.fit != "ok":
        return dict.fromkeys(names(["alternatives"])[len(names(())) :], math.nan)
    found = tail_alternatives(_padded(layer.eigenvalues / fit.xmin), xmin=1.0)
    return {
        "truncated_ratio": float(found.truncated_ratio),
        "truncated_p": float(found.truncated_p),
        "exponential_ratio": float(found.exponential_ratio),
        "exponential_p": float(found.exponential_p),
    }


def _goodness(layer: Layer, row: dict[str, Any]) -> dict[str, Any]:
    import jax

    from spectral_jax.tails import goodness_of_fit, power_law_fit

    values = _padded(layer.eigenvalues / layer.eigenvalues[-1])
    found = goodness_of_fit(jax.random.key(0), values, power_law_fit(values), draws=DRAWS)
    return {"p_value": float(found.p_value)}


def _padded(values: np.ndarray) -> np.ndarray:
    """Float32, with zeros up to the next power of two: one program serves many layers."""
    length = 1 << max(5, (len(values) - 1).bit_length())
    return np.pad(values.astype(np.float32), (length - len(values), 0))


_GROUPS = {
    "norms": _norms,
    "hill": _hill,
    "ks": _ks,
    "farms": _farms,
    "alternatives": _alternatives,
    "goodness": _goodness,
}
