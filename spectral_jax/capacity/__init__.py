"""Capacity: how much of a network the data use, and what can be certified of it."""

from spectral_jax.capacity.analytic import AnalyticPosterior, analytic_posterior
from spectral_jax.capacity.binomial import held_out_bound
from spectral_jax.capacity.bound import pac_bayes_bound
from spectral_jax.capacity.certificate import Certificate, certify
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
    local_dense,
    starting_posterior,
)

__all__ = [
    "AnalyticPosterior",
    "Basis",
    "Certificate",
    "Gaussian",
    "Prior",
    "ScaleGrid",
    "analytic_posterior",
    "binary_kl",
    "bounded_cross_entropy",
    "certify",
    "data_free_prior",
    "draw",
    "gaussian",
    "gaussian_kl",
    "held_out_bound",
    "kl_inverse",
    "learnt_prior",
    "local_dense",
    "pac_bayes_bound",
    "starting_posterior",
    "vector_basis",
]
