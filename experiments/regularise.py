"""From a configuration to an Optax chain: optimiser, penalty, and where the penalty goes."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.config import ExperimentConfig
from experiments.errors import UserError
from experiments.names import did_you_mean
from models import Network
from spectral_jax import optim, tails, weights
from spectral_jax.optim import Penalty, Refresh, SpectralPenaltyState
from spectral_jax.optim.sight import View

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


def view_of(config: ExperimentConfig, network: Network) -> View | None:
    """Which magnitudes the penalty sees: the graph's blocks, or, as released, every parameter.

    Batch-norm scales are left out: while training they change with every batch. A penalty on
    matrices has no graph, and sees all of them.
    """
    penalty = penalty_of(config, network)
    if penalty is not None and penalty.sees == "matrices":
        return None
    everything = {"l1": "l1_biases", "l2": "coupled_l2"}.get(config.penalty.name)
    if everything in config.paper_compat:
        return lambda params: tuple(jax.tree.leaves(params))
    blocks = tuple(block._replace(norm=None) for block in network.layout)
    return partial(weights.graph_weights, layout=blocks)


def optimizer_of(
    config: ExperimentConfig, network: Network, *, steps_per_epoch: int, axis_name: str | None
) -> optax.GradientTransformation:
    """The optimiser with its penalty: added to the gradient, or as a proximal step behind it.

    A balance multiplies what the optimiser makes of the gradient, layer by layer. The strength of
    the penalty is a number in the state.
    """
    descent = _descent(config, steps_per_epoch)
    if config.balance.metric != "none":
        balance = balance_of(config, network, steps_per_epoch=steps_per_epoch, axis_name=axis_name)
        descent = optax.chain(descent, balance)
    parts = [descent]
    penalty = penalty_of(config, network)
    if penalty is not None and config.penalty.strength > 0:
        shrink = optax.inject_hyperparams(optim.spectral_penalty)(
            penalty,
            strength_of(config),
            mode=config.penalty.mode,
            learning_rate=_steady_rate(config),
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


@lru_cache
def shared_optimizer_of(
    arms: ExperimentConfig, network: Network, *, steps_per_epoch: int, axis_name: str | None
) -> optax.GradientTransformation:
    """The optimiser of `arms_of` a configuration: the same object, so the same compiled programs.

    Its states need `with_strength`.
    """
    return optimizer_of(arms, network, steps_per_epoch=steps_per_epoch, axis_name=axis_name)


def arms_of(config: ExperimentConfig) -> ExperimentConfig:
    """What a configuration has in common with those that differ from it in a strength."""
    strength = 1.0 if config.penalty.strength > 0 else 0.0
    return replace(config, name="arms", penalty=replace(config.penalty, strength=strength))


def with_strength(opt_state: Any, strength: float) -> Any:
    """A state of `shared_optimizer_of` with this strength of the penalty, if it has one."""

    def put(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = getattr(path[-1], "name", getattr(path[-1], "key", None))
        return jnp.full_like(leaf, strength) if name == "strength" else leaf

    return jax.tree_util.tree_map_with_path(put, opt_state)


def balance_of(
    config: ExperimentConfig, network: Network, *, steps_per_epoch: int, axis_name: str | None
) -> optax.GradientTransformationExtraArgs:
    """The configured ``optim.temp_balance``; ``UserError`` (2) if it finds no layer to tune."""
    balance = config.balance
    bounds: dict[str, Any] = {"low": balance.low, "high": balance.high}
    make = partial(
        optim.temp_balance,
        balance.assignment,
        metric=alpha_of(config),
        refresh_every=balance.refresh_every * steps_per_epoch,
        tuned=balance.tuned,
        layout=network.layout,
        min_eigenvalues=balance.min_eigenvalues,
        axis_name=axis_name,
        **(bounds if balance.assignment in ("linear", "step") else {}),
    )
    made = _shuffled(make) if balance.metric == "shuffled" else make()
    params, _ = jax.eval_shape(network.init, jax.random.key(0))
    try:
        jax.eval_shape(made.init, params)
    except ValueError as error:
        raise UserError(f"balance: {error}") from None
    return made


def alpha_of(config: ExperimentConfig) -> Callable[[Any], jax.Array]:
    """The tail exponent that steers, ``matrix -> alpha``."""
    balance = config.balance
    windows: dict[str, Any] = dict(window=balance.window, cols_per_row=balance.cols_per_row)
    if balance.metric == "random_windows":
        return partial(_random_windows, samples=balance.samples, **windows)
    if balance.metric in ("farms", "shuffled"):
        return optim.farms(samples=balance.samples, **windows)
    return optim.METRICS[balance.metric]()


def _random_windows(matrix: Any, *, samples: int, **windows: Any) -> jax.Array:
    """FARMS with as many windows as on its grid, at new places whenever the matrix changed."""
    m, n = matrix.shape[-2:]
    rows = min(windows["window"], m, int(n / windows["cols_per_row"]))
    columns = int(rows * windows["cols_per_row"])
    count = min(samples, m - rows + 1) * min(samples, n - columns + 1)
    key = _key_of(matrix)
    eigenvalues = tails.farms_eigenvalues(
        matrix, samples=count, key=key, scheme="random", **windows
    )
    return tails.hill_alpha(eigenvalues)


class _ShuffledState(NamedTuple):
    key: jax.Array
    balance: optim.TempBalanceState


def _shuffled(make: Callable[..., Any]) -> optax.GradientTransformationExtraArgs:
    """A balance whose exponents go to the wrong layers: another permutation for every seed."""

    def init(params):
        # Seeds share this function; what tells them apart is where they start.
        key = _key_of(jax.tree.leaves(params))
        return _ShuffledState(key, make().init(params))

    def update(updates, state, params=None, **extra):
        balance = make(shuffle_key=state.key)
        updates, kept = balance.update(updates, state.balance, params, **extra)
        return updates, state._replace(balance=kept)

    return optax.GradientTransformationExtraArgs(init, update)


def _key_of(arrays: Any) -> jax.Array:
    """A random key that any change of the arrays changes."""
    total = sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(arrays))
    return jax.random.key(jax.lax.bitcast_convert_type(total, jnp.int32))


def _descent(config: ExperimentConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    chosen = config.optimizer
    rate = _rate(config, steps_per_epoch)
    if chosen.name == "adam":
        descent = optax.adam(rate)
    else:
        descent = optax.sgd(rate, momentum=chosen.momentum or None)
    if chosen.weight_decay:
        return optax.chain(optax.add_decayed_weights(chosen.weight_decay), descent)
    return descent


def _rate(config: ExperimentConfig, steps_per_epoch: int) -> optax.ScalarOrSchedule:
    chosen, epochs = config.optimizer, config.train.epochs
    if chosen.schedule == "constant":
        return chosen.learning_rate

    def cosine(step):
        passed = step // steps_per_epoch if "epoch" in chosen.schedule else step / steps_per_epoch
        return chosen.learning_rate / 2 * (1 + jnp.cos(jnp.pi * passed / epochs))

    return cosine


def _steady_rate(config: ExperimentConfig) -> float:
    """How far a steady pull of size 1 moves a weight in a step; for the proximal step."""
    chosen = config.optimizer
    if config.penalty.mode == "proximal" and chosen.schedule != "constant":
        raise UserError(
            f"optimizer.schedule = {chosen.schedule!r} with penalty.mode = 'proximal': the "
            "proximal step knows one rate only; set optimizer.schedule=constant"
        )
    if chosen.name == "adam":
        return chosen.learning_rate
    # Heavy-ball momentum multiplies a steady pull by 1 / (1 - momentum).
    return chosen.learning_rate / (1 - chosen.momentum)


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


def balance_state(opt_state: Any) -> optim.TempBalanceState | None:
    """The balance's part of an optimiser state, if it has one."""
    kind = optim.TempBalanceState
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda part: isinstance(part, kind))
    return next((part for part in leaves if isinstance(part, kind)), None)


def _refresh_of(config: ExperimentConfig, steps_per_epoch: int) -> Refresh:
    if "epoch_start_and_every_100" in config.paper_compat:
        return optim.epoch_start_and_every_100(steps_per_epoch)
    if config.penalty.refresh == "schedule":
        return optim.every(config.penalty.refresh_every)
    return optim.on_residual(config.penalty.residual_tolerance)
