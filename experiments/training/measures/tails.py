"""The tails of each layer's spectrum, plain and by FARMS, and the rates that they steer."""

from functools import partial
from typing import Any

import jax

from experiments.config import ExperimentConfig
from experiments.training.optimisers import balance_state
from experiments.training.program import axis_here, over_trials
from models import Network
from spectral_jax import optim, weights


def measure(config: ExperimentConfig, network: Network):
    """``spectra/hill/<layer>``, ``spectra/farms/<layer>``, and, if balanced, ``spectra/scale/...``:
    the layer's rate.
    """
    balance = config.balance
    windows = balance.window, balance.samples, balance.cols_per_row

    def take(state, data):
        metrics = tail_exponents(state.params, windows, balance.min_eigenvalues)
        kept = balance_state(state.opt_state)
        scales = {} if kept is None else kept.scales
        return metrics | {f"spectra/scale/{name}": value for name, value in scales.items()}, {}

    return take


@partial(jax.jit, static_argnums=(1, 2))
def tail_exponents(
    params: Any, windows: tuple[int, int, float], min_eigenvalues: int
) -> dict[str, jax.Array]:
    """Plain and FARMS exponent of every kernel that can be balanced, for every trial.

    ``windows``: size, samples per axis, columns per row. NaN is a fit that could not be made.
    """
    window, samples, cols_per_row = windows
    metrics = {
        "hill": optim.hill(),
        "farms": optim.farms(window=window, samples=samples, cols_per_row=cols_per_row),
    }

    def one(params: Any) -> dict[str, jax.Array]:
        kernels = {
            name: matrix
            for name, (_, matrix, _) in weights.matrices(params).items()
            if matrix.size // max(matrix.shape[-2:]) >= min_eigenvalues
        }
        found = weights.map_by_shape(kernels, lambda w: {k: m(w) for k, m in metrics.items()})
        return {
            f"spectra/{kind}/{name}": alpha
            for name, of in found.items()
            for kind, alpha in of.items()
        }

    return over_trials(one, axis_here())(params)
