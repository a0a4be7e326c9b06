"""Spectra that steer training: Optax transformations, the penalty catalogue, sparsity per layer."""

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
from spectral_jax.optim.contract import Held, check_penalty
from spectral_jax.optim.metrics import metrics
from spectral_jax.optim.ownership import owners
from spectral_jax.optim.penalties import PENALTIES, EigenState, Penalty, PowerState
from spectral_jax.optim.probe import MEASURES, Layer, Probe, ProbeLog, Stop, log_spaced, probe, when
from spectral_jax.optim.regulariser import regulariser
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
from spectral_jax.optim.watch import Reading, WatchState, watch

# Of what lived here before `prune` was a room of its own, the names that programs use most.
from spectral_jax.prune import Policy, prune_spectra, recombine, split, svd_prune, truncate

__all__ = [
    "ASSIGNMENTS",
    "Allocation",
    "EigenState",
    "Held",
    "Layer",
    "MEASURES",
    "METRICS",
    "PENALTIES",
    "Penalty",
    "Policy",
    "PowerState",
    "Probe",
    "ProbeLog",
    "Reading",
    "Refresh",
    "SpectralPenaltyState",
    "Stop",
    "TempBalanceState",
    "WatchState",
    "alpha_decay",
    "alpha_pruning",
    "block_means",
    "check_penalty",
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
    "log_spaced",
    "metrics",
    "on_residual",
    "owners",
    "probe",
    "prune_spectra",
    "recombine",
    "regulariser",
    "shape_only",
    "spectral_penalty",
    "split",
    "sqrt_map",
    "step_map",
    "svd_prune",
    "tb_sigmoid",
    "temp_balance",
    "truncate",
    "watch",
    "when",
]
