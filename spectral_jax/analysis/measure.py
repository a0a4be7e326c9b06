"""The metrics of every layer, group by group."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from spectral_jax._door.source import SQUARED_IN_FLOAT32, in_a_unit
from spectral_jax._progress import progress
from spectral_jax.analysis.columns import names
from spectral_jax.analysis.layers import Layer
from spectral_jax.tails import host, null_alpha

WINDOW = 100  # rows and columns of a FARMS window, or the short side of a smaller layer
WINDOWS_PER_AXIS = 9
DRAWS = 200  # bootstrap samples of goodness: a p-value to ± 0.03


def measure(layers: Sequence[Layer], groups: Sequence[str]) -> list[dict[str, Any]]:
    """One row of metrics per layer; NaN where there is nothing to measure."""
    rows = []
    # The bootstrap takes seconds a layer; nothing else is waited for.
    with progress(len(layers), "metrics", show="goodness" in groups) as advance:
        for layer in layers:
            rows.append(_row(layer, groups))
            advance(1, note=layer.view.name)
    return rows


def windowed_eigenvalues(matrix: np.ndarray) -> np.ndarray:
    """The pooled spectrum of square windows of at most 100 x 100, nine along either side."""
    import jax.numpy as jnp

    from spectral_jax.tails import farms_eigenvalues

    w = jnp.asarray(in_a_unit(matrix, SQUARED_IN_FLOAT32)[0], jnp.float32)
    pooled = farms_eigenvalues(w, window=WINDOW, samples=WINDOWS_PER_AXIS)
    return np.asarray(pooled, np.float64)


def _row(layer: Layer, groups: Sequence[str]) -> dict[str, Any]:
    *_, m, n = layer.view.shape
    if not layer.finite or not layer.eigenvalues[-1] > 0:
        return (
            _unknown(*groups)
            | {"rank": 0}
            | ({"fit": "not finite or zero"} if "ks" in groups else {})
        )
    row: dict[str, Any] = {"rank": host.matrix_rank(layer.eigenvalues, (m, n))}
    for group in groups:
        row |= _GROUPS[group](layer, row)
    return row


def _norms(layer: Layer, row: dict[str, Any]) -> dict[str, Any]:
    found = host.norms(layer.eigenvalues, layer.view.shape[-2:], layer.unit)
    return found | {"mp_softrank": math.nan} if _of_few_factors(layer) else found


def _hill(layer: Layer, row: dict[str, Any]) -> dict[str, Any]:
    *slices, m, n = layer.view.shape
    alpha = host.hill_alpha(layer.eigenvalues)
    if _of_few_factors(layer):
        return _unknown("hill") | {"alpha_hill": alpha}
    null = null_alpha((math.prod(slices), m, n))
    return {
        "alpha_hill": alpha,
        "alpha_null": null.mean,
        "alpha_z": null.zscore(alpha),
        "alpha_debiased": alpha - null.mean,
    }


def _of_few_factors(layer: Layer) -> bool:
    """Whether it is a product of low rank: what chance makes of that is not known."""
    return layer.possible_rank < min(layer.view.shape[-2:])


def _ks(layer: Layer, row: dict[str, Any]) -> dict[str, Any]:
    fit = host.power_law_fit(layer.eigenvalues)
    return {
        "alpha_ks": fit.alpha,
        "sigma": fit.standard_error,
        "xmin": fit.xmin * layer.unit * layer.unit,
        "tail": fit.tail,
        "ks_distance": fit.ks,
        "fit": fit.status,
    } | host.alpha_norms(layer.eigenvalues, fit.alpha, layer.unit)


def _farms(layer: Layer, row: dict[str, Any]) -> dict[str, Any]:
    windowed = np.zeros(0) if layer.windowed is None else layer.windowed
    return {"alpha_farms": host.hill_alpha(windowed)}


def _alternatives(layer: Layer, row: dict[str, Any]) -> dict[str, Any]:
    import jax.numpy as jnp

    from spectral_jax.tails import tail_alternatives

    fit = host.power_law_fit(layer.eigenvalues)
    if fit.status != "ok":
        return _unknown("alternatives")
    found = tail_alternatives(jnp.asarray(_padded(layer.eigenvalues / fit.xmin)), 1.0)
    return {
        f"{short}_{field}": float(getattr(getattr(found, law), attribute))
        for short, law in _LAWS.items()
        for field, attribute in (("ratio", "ratio"), ("p", "p_value"))
    }


def _goodness(layer: Layer, row: dict[str, Any]) -> dict[str, Any]:
    import jax

    from spectral_jax.tails import goodness_of_fit, power_law_fit

    values = jax.numpy.asarray(_padded(layer.eigenvalues / layer.eigenvalues[-1]))
    found = goodness_of_fit(jax.random.key(0), values, power_law_fit(values), draws=DRAWS)
    return {"p_value": float(found.p_value)}


def _unknown(*groups: str) -> dict[str, Any]:
    return dict.fromkeys(set(names(groups)) - set(names(())), math.nan)


def _padded(values: np.ndarray) -> np.ndarray:
    """Float32, with zeros up to the next power of two: one program serves many layers."""
    length = 1 << max(5, (len(values) - 1).bit_length())
    return np.pad(values.astype(np.float32), (length - len(values), 0))


_LAWS = {
    "truncated": "truncated_power_law",
    "exponential": "exponential",
    "lognormal": "lognormal",
}
_GROUPS = {
    "norms": _norms,
    "hill": _hill,
    "ks": _ks,
    "farms": _farms,
    "alternatives": _alternatives,
    "goodness": _goodness,
}
