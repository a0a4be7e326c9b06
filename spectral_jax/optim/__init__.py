"""Spectra that steer training: Optax transformations and the penalty catalogue."""

from spectral_jax.optim.penalties import PENALTIES, EigenState, Penalty
from spectral_jax.optim.spectral_penalty import (
    Refresh,
    SpectralPenaltyState,
    epoch_start_and_every_100,
    every,
    fiedler_decay,
    on_residual,
    spectral_penalty,
)

__all__ = [
    "PENALTIES",
    "EigenState",
    "Penalty",
    "Refresh",
    "SpectralPenaltyState",
    "epoch_start_and_every_100",
    "every",
    "fiedler_decay",
    "on_residual",
    "spectral_penalty",
]
