"""Spectral kernels on arrays and operators; nothing here has heard of a network."""

from spectral_jax.linalg import moments
from spectral_jax.linalg.compose import deflate, fold, project, shift
from spectral_jax.linalg.convert import from_scipy, pytree_operator, to_scipy
from spectral_jax.linalg.convolutions import fast_convolutions
from spectral_jax.linalg.decompositions import SVD, Eigh, eigh, svd
from spectral_jax.linalg.density import Density, logdet, spectral_density
from spectral_jax.linalg.eigsh import eigsh
from spectral_jax.linalg.jackknife import Interval, interval
from spectral_jax.linalg.lanczos import Tridiagonal, lanczos
from spectral_jax.linalg.operators import (
    LinearOperator,
    SymmetricOperator,
    dense_operator,
    diagonal_operator,
    function_gram,
    gram,
    low_rank_operator,
)
from spectral_jax.linalg.randomized import SVDResult, randomized_svd
from spectral_jax.linalg.subspace import EigResult, generic_vectors, unit
from spectral_jax.linalg.trace import Estimate, diagonal, trace
from spectral_jax.linalg.values import eigvalsh, spectral_norm, svdvals

__all__ = [
    "SVD",
    "Density",
    "EigResult",
    "Eigh",
    "Estimate",
    "Interval",
    "LinearOperator",
    "SVDResult",
    "SymmetricOperator",
    "Tridiagonal",
    "deflate",
    "dense_operator",
    "diagonal",
    "diagonal_operator",
    "eigh",
    "eigsh",
    "eigvalsh",
    "fast_convolutions",
    "fold",
    "from_scipy",
    "function_gram",
    "generic_vectors",
    "gram",
    "interval",
    "lanczos",
    "logdet",
    "low_rank_operator",
    "moments",
    "project",
    "pytree_operator",
    "randomized_svd",
    "shift",
    "spectral_density",
    "spectral_norm",
    "svd",
    "svdvals",
    "to_scipy",
    "trace",
    "unit",
]
