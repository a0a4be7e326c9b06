"""Spectral kernels on arrays and operators; nothing here has heard of a network."""

from spectral_jax.linalg.eigsh import EigResult, eigsh
from spectral_jax.linalg.lanczos import Tridiagonal, lanczos, orthogonalise
from spectral_jax.linalg.operators import SymmetricOperator, dense_operator

__all__ = [
    "EigResult",
    "SymmetricOperator",
    "Tridiagonal",
    "dense_operator",
    "eigsh",
    "lanczos",
    "orthogonalise",
]
