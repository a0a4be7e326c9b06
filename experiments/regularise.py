"""From a configuration to an Optax chain: optimiser, penalty, and where the penalty goes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.config import ExperimentConfig
from experiments.errors import UserError
from experiments.names import did_you_mean
from models import Network
from spectral_jax import optim, weights
from spectral_jax.optim import Penalty, Refresh, SpectralPenaltyState

# Names of the arms; a new one is a line here (and, if it is a new function, one in PENALTIES).
# `graph` penalties know the network's edges.
CATALOGUE: dict[str, tuple[str, dict[str, Any]]] = {
    "l1": ("l1", {}),
    "l2": ("l2", {}),
    "fiedler": ("fiedler", {"normalised": False}),
    "fiedler_normalised": ("fiedler", {"normalised": True}),
    "spectral_gap": ("fiedler", {"normalised": True, "sign": -1.0}),
    "cluster": ("fiedler", {"normalised": True, "k": 3}),
    "layer_quotient": ("layer_quotient", {}),
}
GRAPH = {"fiedler", "layer_quotient"}


def penalty_of(config: ExperimentConfig, network: Network) -> Penalty | None:
    """The configured penalty, or None; ``UserError`` (2) for an unknown name."""
    name = config.penalty.name
    if name == "none":
        return None
    if name not in CATALOGUE:
        known = ["none", *CATALOGUE]
        hint = did_you_mean(name, known) or f"; there are: {', '.join(known)}"
        raise UserError(f"penalty.name = {name!r} is no penalty{hint}")
    entry, options = CATALOGUE[name]
    if entry in GRAPH:
        options = {**options, "edges": weights.edges(network.layout)}
    if entry == "fiedler" and "whole_graph" in config.paper_compat:
        options = {**options, "component": "whole"}
    return optim.PENALTIES[entry](**options)


def strength_of(config: ExperimentConfig) -> float:
    """The penalty's factor; the peer's hand-written derivative was half the true one."""
    return config.penalty.strength * (0.5 if "half_gradient" in config.paper_compat else 1.0)


def view_of(config: ExperimentConfig, network: Network) -> Callable[[Any], tuple[jax.Array, ...]]:
    """Which magnitudes the penalty sees: the graph's blocks, or, as released, every parameter.

    Batch-norm scales are left out: while training they change with every batch.
    """
    everything = {"l1": "l1_biases", "l2": "coupled_l2"}.get(config.penalty.name)
    if everything in config.paper_compat:
        return lambda params: tuple(jax.tree.leaves(params))
    blocks = tuple(block._replace(norm=None) for block in network.layout)
    return partial(weights.graph_weights, layout=blocks)


def optimizer_of(
    config: ExperimentConfig, network: Network, *, steps_per_epoch: int, axis_name: str | None
) -> optax.GradientTransformation:
    """The optimiser with its penalty: added to the gradient, or as a proximal step behind it."""
    rate, momentum = config.optimizer.learning_rate, config.optimizer.momentum
    if config.optimizer.name == "adam":
        descent, effective_rate = optax.adam(rate), rate
    else:
        # Heavy-ball momentum multiplies a steady pull by 1 / (1 - momentum).
        descent = optax.sgd(rate, momentum=momentum or None)
        effective_rate = rate / (1 - momentum)
    parts = [descent]
    penalty = penalty_of(config, network)
    if penalty is not None and config.penalty.strength > 0:
        shrink = optim.spectral_penalty(
            penalty,
            strength_of(config),
            mode=config.penalty.mode,
            learning_rate=effective_rate,
            view=view_of(config, network),
            refresh=_refresh_of(config, steps_per_epoch),
            axis_name=axis_name,
        )
        parts = [shrink, descent] if config.penalty.mode == "penalty" else [descent, shrink]
    if "rescale_units" in config.paper_compat:
        if config.model.name != "mlp":
            raise UserError(
                "paper_compat rescale_units is for model.name = mlp: leave it out, or change "
                f"model.name = {config.model.name}"
            )
        parts.append(rescale_units())
    return optax.chain(*parts)


def rescale_units() -> optax.GradientTransformation:
    """Keep every hidden ReLU unit of an MLP balanced: divide its incoming weights and bias by
    ``s = ||(w_in, b)|| / sqrt(2)`` and multiply the outgoing ones by it.

    The network computes the same function; the graph's weights change, so a penalty cannot be met
    by scale alone. Source: the peer's code (arXiv 2103.03386).
    """

    def update(updates, state, params=None):
        layers = optax.apply_updates(params, updates)["layers"]
        balanced = {name: dict(layer) for name, layer in layers.items()}
        names = sorted(balanced, key=int)
        for name, after in zip(names[:-1], names[1:], strict=True):
            kernel, bias = balanced[name]["kernel"], balanced[name]["bias"]
            scale = jnp.sqrt((jnp.sum(kernel**2, axis=0) + bias**2) / 2)
            scale = jnp.where(scale > 0, scale, 1)
            balanced[name] |= {"kernel": kernel / scale, "bias": bias / scale}
            balanced[after]["kernel"] = balanced[after]["kernel"] * scale[:, None]
        return jax.tree.map(jnp.subtract, {"layers": balanced}, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def penalty_state(opt_state: Any) -> SpectralPenaltyState | None:
    """The penalty's part of an optimiser state, if it has one."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda part: isinstance(part, SpectralPenaltyState))
    return next((part for part in leaves if isinstance(part, SpectralPenaltyState)), None)


def _refresh_of(config: ExperimentConfig, steps_per_epoch: int) -> Refresh:
    if "epoch_start_and_every_100" in config.paper_compat:
        return optim.epoch_start_and_every_100(steps_per_epoch)
    if config.penalty.refresh == "schedule":
        return optim.every(config.penalty.refresh_every)
    return optim.on_residual(config.penalty.residual_tolerance)
