"""The pull of the penalty beside the pull of the loss."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.config import ExperimentConfig
from experiments.training.optimisers import penalty_of, penalty_state, structure_of, view_of
from experiments.training.program import TrainState, axis_here, forward, over_trials, seen
from experiments.training.task import OBJECTIVES, Data, Task, relu_switch
from models import Network
from spectral_jax.optim import SpectralPenaltyState
from spectral_jax.optim.sight import SIGHTS, looking_at

# The pull of the penalty is compared with the pull of the loss on this many training examples.
PROBE_EXAMPLES = 1000


def measure(config: ExperimentConfig, network: Network):
    """``spectra/penalty`` and what belongs to it; nothing of an arm without a penalty."""

    def take(state, data):
        kept = penalty_state(state.opt_state)
        if kept is None:
            return {}, {}
        state = state._replace(opt_state=None)
        options = {"structure": structure_of(config), "network": network}
        return pulls(state, kept, data["train"], **options), {}

    return take


@partial(jax.jit, static_argnames=("structure", "network"))
def pulls(
    state: TrainState,
    penalty_state: SpectralPenaltyState,
    data: Data,
    *,
    structure: ExperimentConfig,
    network: Network,
) -> dict[str, jax.Array]:
    """The penalty as training sees it (its vectors as they are), beside the loss."""
    penalty, view = penalty_of(structure, network), view_of(structure, network)
    assert penalty is not None
    sight = SIGHTS[penalty.sees](penalty, view)
    objective = OBJECTIVES[structure.train.objective]
    task = Task("", network, objective, {}, "", batch_size=1, head=relu_switch)
    probed = jnp.arange(min(PROBE_EXAMPLES, data.size))

    def one(trial: tuple[TrainState, SpectralPenaltyState]) -> dict[str, jax.Array]:
        state, kept = trial
        first = data.rows(probed, state.hyper)
        key = jax.random.fold_in(state.key, state.step)
        looking = looking_at(sight, **seen(task, state, first, data.shared, key))

        def loss(params):
            values, _ = forward(task, state._replace(params=params), first, data.shared)
            return values["loss"].mean()

        def pull(params):
            return kept.strength * looking.value(params, kept.penalty)

        loss_value, loss_grad = jax.value_and_grad(loss)(state.params)
        value, grad = jax.value_and_grad(pull)(state.params)
        return {
            "spectra/penalty": value,
            "spectra/penalty/loss_ratio": value / loss_value,
            "spectra/penalty/gradient_ratio": optax.tree.norm(grad) / optax.tree.norm(loss_grad),
            **_solver(kept.penalty),
        }

    return over_trials(one, axis_here())((state, penalty_state))


def _solver(kept: Any) -> dict[str, jax.Array]:
    if not hasattr(kept, "refreshes"):
        return {}
    return {
        "spectra/penalty/refreshes": kept.refreshes,
        "spectra/penalty/matvecs": kept.matvecs,
    }
