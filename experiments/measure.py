"""What is measured of the weights between epochs: connectivity, tails, bulks; a penalty's pull."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.config import ExperimentConfig
from experiments.loop import Data, SeedAxis, TrainState, normalise, over_seeds
from experiments.regularise import arms_of, balance_state, penalty_of, penalty_state, view_of
from models import Network
from spectral_jax import graphs, optim, rmt, weights
from spectral_jax.linalg import svdvals
from spectral_jax.optim import SpectralPenaltyState
from spectral_jax.optim.sight import SIGHTS

# A weight below this is counted as gone (sheet fiedler.md, section 4.3).
SMALL_WEIGHT = 1e-3
# The pull of the penalty is compared with the pull of the loss on this many training examples.
PROBE_EXAMPLES = 1000


class Measurement:
    """Measurements of one arm: ``measurement(state, data, seed_axis) -> (metrics, arrays)``."""

    def __init__(self, config: ExperimentConfig, network: Network) -> None:
        self._config, self._network = config, network

    def __call__(self, state: TrainState, data: Data, seed_axis: SeedAxis) -> tuple[dict, dict]:
        """Per-seed scalars to record, and Fiedler vectors or singular values to keep, if any."""
        if self._config.train.spectra == "tails":
            metrics, vectors = self._tails(state, seed_axis), {}
        elif self._config.train.spectra == "bulk":
            metrics, vectors = bulks(state.params)
        else:
            layout = self._network.layout
            metrics, vectors = spectra(state.params, state.model_state, layout, seed_axis)
        kept = penalty_state(state.opt_state)
        if kept is not None:
            shared = {"arms": arms_of(self._config), "network": self._network}
            metrics = metrics | pulls(state, kept, data, seed_axis=seed_axis, **shared)
        return metrics, vectors

    def _tails(self, state: TrainState, seed_axis: SeedAxis) -> dict[str, jax.Array]:
        """``hill/<layer>``, ``farms/<layer>``, and ``scale/<layer>`` of its rate if balanced."""
        balance = self._config.balance
        windows = balance.window, balance.samples, balance.cols_per_row
        metrics = tail_exponents(state.params, windows, balance.min_eigenvalues, seed_axis)
        kept = balance_state(state.opt_state)
        scales = {} if kept is None else kept.scales
        return metrics | {f"scale/{name}": value for name, value in scales.items()}


@partial(jax.jit, static_argnames=("arms", "network", "seed_axis"))
def pulls(
    state: TrainState,
    penalty_state: SpectralPenaltyState,
    data: Data,
    *,
    arms: ExperimentConfig,
    network: Network,
    seed_axis: SeedAxis,
) -> dict[str, jax.Array]:
    """The penalty as training sees it (its vectors as they are), beside the loss.

    ``arms`` is ``arms_of`` the configuration: arms that differ in the strength share the program.
    """
    penalty, view = penalty_of(arms, network), view_of(arms, network)
    assert penalty is not None
    sight = SIGHTS[penalty.sees](penalty, view)

    def one(seed: tuple[TrainState, SpectralPenaltyState]) -> dict[str, jax.Array]:
        state, kept = seed

        def loss(params):
            x, y = normalise(data, data.x[:PROBE_EXAMPLES]), data.y[:PROBE_EXAMPLES]
            logits, _ = network.apply(params, state.model_state, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        def pull(params):
            return kept.strength * penalty.value(sight.blocks(params), kept.penalty)

        loss_value, loss_grad = jax.value_and_grad(loss)(state.params)
        value, grad = jax.value_and_grad(pull)(state.params)
        return {
            "penalty": value,
            "penalty/loss_ratio": value / loss_value,
            "penalty/gradient_ratio": optax.tree.norm(grad) / optax.tree.norm(loss_grad),
            **_solver(kept.penalty),
        }

    return over_seeds(one, seed_axis)((state, penalty_state))


def _solver(kept: Any) -> dict[str, jax.Array]:
    if not hasattr(kept, "refreshes"):
        return {}
    return {"penalty/refreshes": kept.refreshes, "penalty/matvecs": kept.matvecs}


@partial(jax.jit, static_argnums=(1, 2, 3))
def tail_exponents(
    params: Any, windows: tuple[int, int, float], min_eigenvalues: int, seed_axis: SeedAxis
) -> dict[str, jax.Array]:
    """Plain and FARMS exponent of every kernel that can be balanced, for every seed.

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
        return {f"{kind}/{name}": alpha for name, of in found.items() for kind, alpha in of.items()}

    return over_seeds(one, seed_axis)(params)


@jax.jit
def bulks(params: Any) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The Marchenko-Pastur fit of every kernel, for every seed, and the singular values it is of.

    ``sigma/<layer>`` is the noise per entry, ``edge/<layer>`` the singular value at which it ends,
    ``spikes/<layer>`` how many lie above, ``ks/<layer>`` the distance of the bulk from the law.
    """

    def one(params: Any) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        metrics: dict[str, jax.Array] = {}
        values: dict[str, jax.Array] = {}
        for name, kernel in weights.matrices(params, conv="flattened").items():
            m, n = kernel.matrix.shape
            # One after the other, and seeds in turn: LAPACK calls that run at once can wait for
            # each other for ever on jaxlib's CPU thread pool (seen with 0.10.2; cf. jax#36927).
            matrix, values = jax.lax.optimization_barrier((kernel.matrix, values))
            values[name] = svdvals(matrix)
            fit = rmt.fit_marchenko_pastur(values[name] ** 2 / max(m, n), (m, n))
            metrics[f"sigma/{name}"] = jnp.sqrt(fit.variance)
            metrics[f"edge/{name}"] = fit.threshold
            metrics[f"spikes/{name}"] = fit.spikes
            metrics[f"ks/{name}"] = fit.ks
        return metrics, values

    return jax.lax.map(one, params)


@partial(jax.jit, static_argnums=(2, 3))
def spectra(
    params: Any, model_state: Any, layout: tuple[weights.Block, ...], seed_axis: SeedAxis
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Connectivity, localisation and sparsity of every seed; all arms of a network share it."""

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

    return over_seeds(one, seed_axis)((params, model_state))
