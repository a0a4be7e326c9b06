"""Capacity: how much of a network the data use, and what can be certified of it."""

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

__all__ = [
    "Basis",
    "Certificate",
    "Gaussian",
    "Prior",
    "ScaleGrid",
    "binary_kl",
    "certify",
    "data_free_prior",
    "draw",
    "gaussian",
    "gaussian_kl",
    "held_out_bound",
    "kl_inverse",
    "learnt_prior",
    "pac_bayes_bound",
    "vector_basis",
]
