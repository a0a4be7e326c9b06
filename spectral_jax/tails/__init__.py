"""Heavy tails of weight spectra: windows, exponents, their null, and the metrics beside them.

The null is Python numbers and loads without jax; the rest loads on first use.

>>> import jax
>>> w = jax.random.normal(jax.random.key(0), (128, 256))
>>> alpha = hill_alpha(farms_eigenvalues(w, window=64))
>>> abs(float(alpha) - marchenko_pastur_alpha(1)) < 0.1
True
"""

from typing import TYPE_CHECKING

from spectral_jax._lazy import lazy
from spectral_jax.tails.null import (
    NullAlpha,
    marchenko_pastur_alpha,
    null_alpha,
)

if TYPE_CHECKING:
    from spectral_jax.tails.alternatives import Alternative, TailAlternatives, tail_alternatives
    from spectral_jax.tails.debias import debiased_alpha, null_zscore
    from spectral_jax.tails.goodness import Goodness, goodness_of_fit
    from spectral_jax.tails.hill import HillFit, hill_alpha, hill_fit
    from spectral_jax.tails.layers import farms_alphas
    from spectral_jax.tails.metrics import SpectralMetrics, layer_metrics, spectral_metrics
    from spectral_jax.tails.power_law import PowerLawFit, power_law_fit
    from spectral_jax.tails.support import FitStatus
    from spectral_jax.tails.windows import farms_eigenvalues, farms_windows

__all__ = [
    "Alternative",
    "FitStatus",
    "Goodness",
    "HillFit",
    "NullAlpha",
    "PowerLawFit",
    "SpectralMetrics",
    "TailAlternatives",
    "debiased_alpha",
    "farms_alphas",
    "farms_eigenvalues",
    "farms_windows",
    "goodness_of_fit",
    "hill_alpha",
    "hill_fit",
    "layer_metrics",
    "marchenko_pastur_alpha",
    "null_alpha",
    "null_zscore",
    "power_law_fit",
    "spectral_metrics",
    "tail_alternatives",
]

_NEEDS_JAX = {
    "Alternative": "alternatives",
    "TailAlternatives": "alternatives",
    "tail_alternatives": "alternatives",
    "debiased_alpha": "debias",
    "null_zscore": "debias",
    "Goodness": "goodness",
    "goodness_of_fit": "goodness",
    "HillFit": "hill",
    "hill_alpha": "hill",
    "hill_fit": "hill",
    "farms_alphas": "layers",
    "SpectralMetrics": "metrics",
    "layer_metrics": "metrics",
    "spectral_metrics": "metrics",
    "PowerLawFit": "power_law",
    "power_law_fit": "power_law",
    "FitStatus": "support",
    "farms_eigenvalues": "windows",
    "farms_windows": "windows",
}

__getattr__, __dir__ = lazy(__name__, _NEEDS_JAX)
