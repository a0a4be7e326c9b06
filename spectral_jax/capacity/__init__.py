"""Capacity: how much of a network the data use, and what can be certified of it."""

from spectral_jax.capacity.analytic import AnalyticPosterior, analytic_posterior
from spectral_jax.capacity.binomial import held_out_bound
from spectral_jax.capacity.bound import pac_bayes_bound
from spectral_jax.capacity.certificate import Certificate, certify
from spectral_jax.capacity.dimension import (
    DataDimension,
    Dimension,
    data_dimension,
    effective_dimension,
    n_effective,
)
from spectral_jax.capacity.gaussians import (
    Basis,
    Gaussian,
    Prior,
    data_free_prior,
    draw,
    gaussian,
    gaussian_kl,
    learnt_prior,
    vector_basis,
)
from spectral_jax.capacity.grid import ScaleGrid
from spectral_jax.capacity.kl import binary_kl, kl_inverse
from spectral_jax.capacity.posteriors import (
    bounded_cross_entropy,
    local_conv,
    local_dense,
    risk_draws,
    starting_posterior,
)
from spectral_jax.capacity.sloppiness import Sloppiness, sloppiness
from spectral_jax.capacity.spectrum import (
    InputSpectrum,
    Noise,
    above_noise,
    input_spectrum,
    jackknife,
)
from spectral_jax.linalg.jackknife import Interval
from spectral_jax.linalg.spread import Spread, spread

__all__ = [
    "AnalyticPosterior",
    "Basis",
    "Certificate",
    "DataDimension",
    "Dimension",
    "Gaussian",
    "InputSpectrum",
    "Interval",
    "Noise",
    "Prior",
    "ScaleGrid",
    "Sloppiness",
    "Spread",
    "above_noise",
    "analytic_posterior",
    "binary_kl",
    "bounded_cross_entropy",
    "certify",
    "data_dimension",
    "data_free_prior",
    "draw",
    "effective_dimension",
    "gaussian",
    "gaussian_kl",
    "held_out_bound",
    "input_spectrum",
    "jackknife",
    "kl_inverse",
    "learnt_prior",
    "local_conv",
    "local_dense",
    "n_effective",
    "pac_bayes_bound",
    "risk_draws",
    "sloppiness",
    "spread",
    "starting_posterior",
    "vector_basis",
]
