"""Features: what a network has learnt, from the moments of its features in one pass."""

from spectral_jax.features import layers
from spectral_jax.features.alignment import Alignment, alignment
from spectral_jax.features.cca import CCA, cca
from spectral_jax.features.collapse import (
    Agreement,
    NeuralCollapse,
    collapse_agreement,
    neural_collapse,
)
from spectral_jax.features.drift import Bures, Drift, Reference, bures, calibrate, drift
from spectral_jax.features.lidar import Lidar, lidar
from spectral_jax.features.map import FeatureMap, diagonalize
from spectral_jax.features.moments import (
    ClassSums,
    FeatureMoments,
    Head,
    as_moments,
    class_sums,
    covariance,
    cross,
    decay,
    effective_rows,
    eigenvalues,
    factor,
    fourth,
    gram,
    jackknife,
    mean,
    mean_beside,
    merge,
    of,
    pooled,
    psum,
    update,
    within,
    zero,
)
from spectral_jax.features.richness import Order, Richness, richness
from spectral_jax.features.ridge import RidgeProbe, ridge_probe
from spectral_jax.features.similarity import CKA, cka, kernel_distance, procrustes
from spectral_jax.features.stored import load, save

__all__ = [
    "CCA",
    "CKA",
    "Agreement",
    "Alignment",
    "Bures",
    "ClassSums",
    "Drift",
    "FeatureMap",
    "FeatureMoments",
    "Head",
    "Lidar",
    "NeuralCollapse",
    "Order",
    "Reference",
    "Richness",
    "RidgeProbe",
    "alignment",
    "as_moments",
    "bures",
    "calibrate",
    "cca",
    "cka",
    "class_sums",
    "collapse_agreement",
    "covariance",
    "cross",
    "decay",
    "diagonalize",
    "drift",
    "effective_rows",
    "eigenvalues",
    "factor",
    "fourth",
    "gram",
    "jackknife",
    "kernel_distance",
    "layers",
    "lidar",
    "load",
    "mean",
    "mean_beside",
    "merge",
    "neural_collapse",
    "of",
    "pooled",
    "procrustes",
    "psum",
    "richness",
    "ridge_probe",
    "save",
    "update",
    "within",
    "zero",
]
