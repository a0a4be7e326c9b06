"""Random matrix theory: the bulk of a weight matrix' spectrum, its edge, and what sticks out.

The laws are Python numbers and load without jax; what takes arrays loads on first use.

>>> import jax, jax.numpy as jnp
>>> noise = jax.random.normal(jax.random.key(0), (100, 500))
>>> w = noise.at[0].multiply(3)  # one row with nine times the variance
>>> s = jnp.linalg.svd(w, compute_uv=False)
>>> fit = fit_marchenko_pastur(s**2 / 500, w.shape)
>>> int(fit.spikes), bool(s[0] > fit.threshold > s[1])
(1, True)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectral_jax._lazy import lazy
from spectral_jax.laws import (
    marchenko_pastur_atom,
    marchenko_pastur_edges,
    marchenko_pastur_median,
    marchenko_pastur_moment,
    marchenko_pastur_quantile,
    tracy_widom_cdf,
    tracy_widom_quantile,
)
from spectral_jax.rmt._edge import noise_edge

if TYPE_CHECKING:
    from spectral_jax.rmt._fit import (
        MPFit,
        MPStatus,
        fit_marchenko_pastur,
        follows_marchenko_pastur,
    )
    from spectral_jax.rmt._law import marchenko_pastur_cdf, marchenko_pastur_pdf
    from spectral_jax.rmt._spikes import SpikeInterval, spike_interval
    from spectral_jax.rmt._threshold import hard_threshold, optimal_shrinkage

__all__ = [
    "MPFit",
    "MPStatus",
    "SpikeInterval",
    "fit_marchenko_pastur",
    "follows_marchenko_pastur",
    "hard_threshold",
    "marchenko_pastur_atom",
    "marchenko_pastur_cdf",
    "marchenko_pastur_edges",
    "marchenko_pastur_median",
    "marchenko_pastur_moment",
    "marchenko_pastur_pdf",
    "marchenko_pastur_quantile",
    "noise_edge",
    "optimal_shrinkage",
    "spike_interval",
    "tracy_widom_cdf",
    "tracy_widom_quantile",
]

_NEEDS_JAX = {
    "MPFit": "_fit",
    "MPStatus": "_fit",
    "fit_marchenko_pastur": "_fit",
    "follows_marchenko_pastur": "_fit",
    "marchenko_pastur_cdf": "_law",
    "marchenko_pastur_pdf": "_law",
    "SpikeInterval": "_spikes",
    "spike_interval": "_spikes",
    "hard_threshold": "_threshold",
    "optimal_shrinkage": "_threshold",
}

__getattr__, __dir__ = lazy(__name__, _NEEDS_JAX)
