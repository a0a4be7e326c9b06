"""Spectra that steer training: Optax transformations, the penalty catalogue, and pruning."""

from spectral_jax.optim.alphas import METRICS, debiased, farms, hill, shape_only
from spectral_jax.optim.assignment import (
    ASSIGNMENTS,
    linear_map,
    llr_sigmoid,
    log2_map,
    sqrt_map,
    step_map,
    tb_sigmoid,
)
from spectral_jax.optim.ownership import owners
from spectral_jax.optim.penalties import PENALTIES, EigenState, Penalty
from spectral_jax.optim.pruners import (
    Pruned,
    magnitude_mask,
    prune,
    reconstruction_error,
    sparsegpt,
    wanda_mask,
)
from spectral_jax.optim.sparsity import Allocation, alpha_pruning, block_means, layer_sparsities
from spectral_jax.optim.spectral_penalty import (
    Refresh,
    SpectralPenaltyState,
    epoch_start_and_every_100,
    every,
    fiedler_decay,
    on_residual,
    spectral_penalty,
)
from spectral_jax.optim.temp_balance import TempBalanceState, alpha_decay, temp_balance

__all__ = [
    "ASSIGNMENTS",
    "Allocation",
    "EigenState",
    "METRICS",
    "PENALTIES",
    "Penalty",
    "Pruned",
    "Refresh",
    "SpectralPenaltyState",
    "TempBalanceState",
    "alpha_decay",
    "alpha_pruning",
    "block_means",
    "debiased",
    "epoch_start_and_every_100",
    "every",
    "farms",
    "fiedler_decay",
    "hill",
    "layer_sparsities",
    "linear_map",
    "llr_sigmoid",
    "log2_map",
    "magnitude_mask",
    "on_residual",
    "owners",
    "prune",
    "reconstruction_error",
    "shape_only",
    "sparsegpt",
    "spectral_penalty",
    "sqrt_map",
    "step_map",
    "tb_sigmoid",
    "temp_balance",
    "wanda_mask",
]
