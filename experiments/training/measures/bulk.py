"""The noise in each layer: the Marchenko-Pastur fit of its singular values."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.config import ExperimentConfig
from models import Network
from spectral_jax import rmt, weights
from spectral_jax.linalg import svdvals


def measure(config: ExperimentConfig, network: Network):
    """What ``bulks`` says of the weights."""
    return lambda state, data: bulks(state.params)


@jax.jit
def bulks(params: Any) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The Marchenko-Pastur fit of every kernel, for every trial, and the singular values it is of.

    Below ``spectra/``: ``sigma/<layer>`` is the noise per entry, ``edge/<layer>`` the singular
    value at which it ends, ``spikes/<layer>`` how many lie above, ``ks/<layer>`` the distance of
    the bulk from the law.
    """

    def one(params: Any) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        metrics: dict[str, jax.Array] = {}
        values: dict[str, jax.Array] = {}
        for name, kernel in weights.matrices(params, conv="flattened").items():
            m, n = kernel.matrix.shape
            # One after the other, and trials in turn: LAPACK calls that run at once can wait for
            # each other for ever on jaxlib's CPU thread pool (seen with 0.10.2; cf. jax#36927).
            matrix, values = jax.lax.optimization_barrier((kernel.matrix, values))
            values[name] = svdvals(matrix)
            fit = rmt.fit_marchenko_pastur(values[name] ** 2 / max(m, n), (m, n))
            metrics[f"spectra/sigma/{name}"] = jnp.sqrt(fit.variance)
            metrics[f"spectra/edge/{name}"] = fit.threshold
            metrics[f"spectra/spikes/{name}"] = fit.spikes
            metrics[f"spectra/ks/{name}"] = fit.ks
        return metrics, values

    return jax.lax.map(one, params)
