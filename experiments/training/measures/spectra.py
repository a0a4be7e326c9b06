"""How well the weight graph is connected: its Fiedler values, and where their vectors live."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.config import ExperimentConfig
from experiments.training.program import axis_here, over_trials
from models import Network
from spectral_jax import graphs, weights

# A weight below this is counted as gone.
SMALL_WEIGHT = 1e-3


def measure(config: ExperimentConfig, network: Network):
    """``spectra/lambda_2``, ``spectra/nu_2`` and what belongs to them, and the vectors."""
    return lambda state, data: spectra(state.params, state.model_state, network.layout)


@partial(jax.jit, static_argnums=2)
def spectra(
    params: Any, model_state: Any, layout: tuple[weights.Block, ...]
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Connectivity, localisation and sparsity of every trial; all arms of a network share it."""

    def one(state):
        blocks = weights.graph_weights(state[0], layout, batch_stats=state[1])
        edges = weights.edges(layout)
        plain = graphs.fiedler(blocks, normalised=False, edges=edges)
        normalised = graphs.fiedler(blocks, normalised=True, edges=edges)
        small = sum(jnp.sum(jnp.abs(block) < SMALL_WEIGHT) for block in blocks)
        metrics = {
            "lambda_2": plain.value,
            "lambda_2/participation_ratio": plain.participation_ratio,
            "lambda_2/quotient_bound": plain.quotient_bound,
            "lambda_2/degree_bound": plain.degree_bound,
            "lambda_2/relative_residual": plain.residual / jnp.maximum(plain.value, 1e-30),
            "lambda_2/converged": plain.converged,
            "lambda_2/matvecs": plain.matvecs,
            "lambda_2/peak_group": plain.peak_group,
            "nu_2": normalised.value,
            "nu_2/participation_ratio": normalised.participation_ratio,
            "nu_2/converged": normalised.converged,
            "component_size": plain.component_size,
            "small_weights": small / sum(block.size for block in blocks),
        }
        return metrics, {"lambda_2": plain.vector, "nu_2": normalised.vector}

    metrics, vectors = over_trials(one, axis_here())((params, model_state))
    return {f"spectra/{name}": value for name, value in metrics.items()}, vectors
