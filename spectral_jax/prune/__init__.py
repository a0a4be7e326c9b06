"""Smaller networks from spectra: edits of singular values, pruning, factoring, and a report."""

from spectral_jax._factors import split_refusal
from spectral_jax.prune.factoring import (
    Attempt,
    attempt,
    carry_moments,
    factorize,
    is_factored,
    kept_ranks,
    recombine_all,
)
from spectral_jax.prune.policies import Policy, every_epochs, linear_keep, on_plateau
from spectral_jax.prune.report import (
    PruningReport,
    dead_classes,
    parameter_count,
    pruning_report,
    report_rows,
)
from spectral_jax.prune.spectra import (
    LayerReport,
    PruneStatus,
    Pruning,
    SVDPruneState,
    prune_spectra,
    svd_prune,
)
from spectral_jax.prune.surgery import (
    halve,
    random_subset,
    recombine,
    shrink,
    sparsify,
    sparsify_vectors,
    split,
    truncate,
)
from spectral_jax.prune.unstructured import (
    Pruned,
    magnitude_mask,
    prune_weights,
    reconstruction_error,
    sparsegpt,
    wanda_mask,
)

__all__ = [
    "Attempt",
    "LayerReport",
    "Policy",
    "PruneStatus",
    "Pruned",
    "Pruning",
    "PruningReport",
    "SVDPruneState",
    "attempt",
    "carry_moments",
    "dead_classes",
    "every_epochs",
    "factorize",
    "halve",
    "is_factored",
    "kept_ranks",
    "linear_keep",
    "magnitude_mask",
    "on_plateau",
    "parameter_count",
    "prune_spectra",
    "prune_weights",
    "pruning_report",
    "random_subset",
    "recombine",
    "recombine_all",
    "reconstruction_error",
    "report_rows",
    "shrink",
    "sparsegpt",
    "sparsify",
    "sparsify_vectors",
    "split",
    "split_refusal",
    "svd_prune",
    "truncate",
    "wanda_mask",
]
