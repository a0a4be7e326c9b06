"""Spectral kernels on arrays and operators; nothing here has heard of a network."""

from spectral_jax.linalg.eigsh import eigsh
from spectral_jax.linalg.lanczos import Tridiagonal, lanczos
from spectral_jax.linalg.operators import SymmetricOperator, dense_operator
from spectral_jax.linalg.subspace import EigResult, generic_vectors, unit

__all__ = [
    "EigResult",
    "SymmetricOperator",
    "Tridiagonal",
    "dense_operator",
    "eigsh",
    "generic_vectors",
    "lanczos",
    "unit",
]
