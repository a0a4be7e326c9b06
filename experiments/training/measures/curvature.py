"""How curved the loss is where training stands: both ends of the Hessian's spectrum, its trace."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.config import ExperimentConfig
from experiments.training.program import TrainState, axis_here, forward, over_trials
from experiments.training.task import OBJECTIVES, Data, Task, relu_switch
from models import Network
from spectral_jax.curvature import hessian
from spectral_jax.linalg import eigsh, trace

# The Hessian is that of the mean loss of so many training examples, the first ones, without dropout
# or augmentation.
PROBE_EXAMPLES = 1000
TOLERANCE = 1e-2  # of the residual; the values are then right to about four digits
MATVECS = 40  # for the trace


def measure(config: ExperimentConfig, network: Network):
    """What `curvatures` says of the loss."""

    def take(state, data):
        # Arms that differ in the optimiser share the compiled function.
        state = state._replace(opt_state=None)
        options = {"objective": config.train.objective, "network": network}
        return curvatures(state, data["train"], **options), {}

    return take


@dataclass(frozen=True)
class _Loss:
    """The loss of each example, given ``{"weights", "others"}``, all that a trial brings along."""

    task: Task

    def __call__(self, given: dict[str, Any], examples: Any) -> jax.Array:
        state, shared = given["others"]
        values, _ = forward(self.task, state._replace(params=given["weights"]), examples, shared)
        return values["loss"]


@partial(jax.jit, static_argnames=("objective", "network"))
def curvatures(
    state: TrainState, data: Data, *, objective: str, network: Network
) -> dict[str, jax.Array]:
    """The ends of the Hessian's spectrum and its trace, for every trial.

    Below ``curvature/``: ``lambda_max`` and ``lambda_min`` with ``/residual`` and ``/converged``,
    and ``trace`` with ``/standard_error``.
    """
    task = Task("", network, OBJECTIVES[objective], {}, "", batch_size=1, head=relu_switch)
    probed = jnp.arange(min(PROBE_EXAMPLES, data.size))

    def one(trial: TrainState) -> dict[str, jax.Array]:
        others = trial._replace(params=None), data.shared
        examples = data.rows(probed, trial.hyper)
        given = {"weights": trial.params, "others": others}
        matrix = hessian(_Loss(task), given, examples, where=_is_weight)
        ends = eigsh(matrix, 2, which="BE", tol=TOLERANCE, max_matvecs=200)
        total = trace(matrix, jax.random.key(0), matvecs=MATVECS)
        numbers = {"trace": total.value, "trace/standard_error": total.standard_error}
        for end, name in enumerate(("lambda_min", "lambda_max")):
            numbers[name] = ends.values[end]
            numbers[f"{name}/residual"] = ends.residuals[end]
            numbers[f"{name}/converged"] = ends.converged[end]
        return {f"curvature/{name}": value for name, value in numbers.items()}

    return over_trials(one, axis_here())(state)


def _is_weight(name: str) -> bool:
    return name.startswith("weights/")
