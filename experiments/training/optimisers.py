"""From a configuration to an Optax chain: optimiser, penalty, and where the penalty goes.

What a configuration says falls in two: the numbers of `hyper_of`, which are traced, and the
structure of `structure_of`, which programs are compiled for. A number that is 0 is structure: its
part of the chain is left out, for a penalty that does nothing would still be computed.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.config import ExperimentConfig, TrainConfig
from experiments.errors import UserError
from experiments.names import offered
from experiments.training import prototypes
from experiments.training.program import Optimizer
from experiments.training.task import Hyper
from models import MODELS, Network, dropout
from models import options as options_of
from spectral_jax import optim, tails, weights
from spectral_jax.optim import Penalty, Refresh, SpectralPenaltyState
from spectral_jax.optim.sight import BatchView, View

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
    "spectral_norm": ("spectral_norm", {}),
    "richness": ("richness", {}),
}
GRAPH = {"fiedler", "layer_quotient"}
# Of `paper_compat`, what is a number of `hyper_of`.
TRACED_OPTIONS = ("half_gradient", "relu_logits")


def penalty_of(config: ExperimentConfig, network: Network) -> Penalty | None:
    """The configured penalty, or None; ``UserError`` (2) for an unknown name.

    It may be of a file outside the package: see `experiments.training.prototypes`.
    """
    name = config.penalty.name
    if name == "none":
        return None
    if prototypes.is_file(name):
        return prototypes.load(name).penalty
    if name not in CATALOGUE:
        known = ["none", *CATALOGUE]
        hint = offered(name, [*known, "a file.py"])
        raise UserError(f"penalty.name = {name!r} is no penalty{hint}")
    entry, options = CATALOGUE[name]
    if entry in GRAPH:
        options = {**options, "edges": weights.edges(network.layout)}
    if entry == "fiedler" and "whole_graph" in config.paper_compat:
        options = {**options, "component": "whole"}
    return optim.PENALTIES[entry](**options)


def strengths_of(name: str) -> tuple[float, float]:
    """The least and the largest strength that are worth a try, of a file's or a known penalty."""
    if prototypes.is_file(name):
        return prototypes.load(name).penalty.strengths
    entry, options = CATALOGUE[name]
    return optim.PENALTIES[entry](**options).strengths


def hyper_of(config: ExperimentConfig) -> dict[str, float]:
    """The numbers of a configuration that are traced: arms that differ in them share programs."""
    chosen, penalty, balance = config.optimizer, config.penalty, config.balance
    # The peer's hand-written derivative was half the true one.
    half = 0.5 if "half_gradient" in config.paper_compat else 1.0
    hyper = {
        "learning_rate": chosen.learning_rate,
        "label_scale": config.train.label_scale,
        "relu_logits": float("relu_logits" in config.paper_compat),
    }
    if chosen.name == "sgd" and chosen.momentum:
        hyper["momentum"] = chosen.momentum
    if chosen.weight_decay:
        hyper["weight_decay"] = chosen.weight_decay
    if penalty.name != "none" and penalty.strength:
        hyper["penalty_strength"] = penalty.strength * half
        hyper["shrink_rate"] = _steady_rate(config)
    if _drops(config):
        keep, scale = dropout(config.model.dropout)
        hyper |= {"dropout_keep": float(keep), "dropout_scale": float(scale)}
    if balance.metric != "none":
        hyper |= {"balance_low": balance.low, "balance_high": balance.high}
    return hyper


def _drops(config: ExperimentConfig) -> bool:
    """Whether the network has dropout, and that is on."""
    name = config.model.name
    return config.model.dropout > 0 and name in MODELS and "dropout" in options_of(name)


def structure_of(config: ExperimentConfig) -> ExperimentConfig:
    """What a configuration has in common with those that differ from it in traced numbers.

    Data, seeds and times of measurement are left out as well: no optimiser knows them.
    """
    chosen, penalty, train = config.optimizer, config.penalty, config.train
    return ExperimentConfig(
        "structure",
        model=replace(config.model, dropout=0.5 if config.model.dropout else 0.0),
        optimizer=replace(
            chosen,
            learning_rate=1.0,
            momentum=0.5 if chosen.momentum else 0.0,
            weight_decay=1.0 if chosen.weight_decay else 0.0,
        ),
        penalty=replace(penalty, strength=1.0 if penalty.strength else 0.0),
        balance=replace(config.balance, low=1.0, high=1.0),
        train=TrainConfig(epochs=train.epochs, objective=train.objective),
        paper_compat=tuple(o for o in config.paper_compat if o not in TRACED_OPTIONS),
    )


def view_of(config: ExperimentConfig, network: Network) -> View | BatchView | None:
    """Which magnitudes the penalty sees: the graph's blocks, or, as released, every parameter.

    Batch-norm scales are left out: while training they change with every batch. A penalty on
    matrices has no graph, and sees all of them; one on activations sees those that the head reads,
    and the outputs. ``UserError`` (2) where there are none.
    """
    penalty = penalty_of(config, network)
    if penalty is not None and penalty.sees in ("matrices", "function"):
        return None
    if penalty is not None and penalty.sees == "activations":
        return _features_and_outputs(network)
    everything = {"l1": "l1_biases", "l2": "coupled_l2"}.get(config.penalty.name)
    if everything in config.paper_compat:
        return lambda params: tuple(jax.tree.leaves(params))
    blocks = tuple(block._replace(norm=None) for block in network.layout)
    return partial(weights.graph_weights, layout=blocks)


def _features_and_outputs(network: Network) -> BatchView:
    if not network.representations:
        raise UserError("penalty.name: the network has no hidden layer whose features it could see")
    point = network.representations[-1]

    def view(params: Any, batch: Any) -> tuple[jax.Array, ...]:
        outputs, _, parts = network.tapped(params, batch["state"], batch["x"], points=(point,))
        return parts[point], outputs

    return view


def optimizer_of(structure: ExperimentConfig, network: Network, steps_per_epoch: int) -> Optimizer:
    """The optimiser of a structure: the same function for all arms, so the same programs.

    The penalty is added to the gradient, or is a proximal step behind it. A balance multiplies what
    the optimiser makes of the gradient, layer by layer. ``UserError`` (2) where the configuration
    names what does not exist or does not go together.
    """
    # A file may have been edited since: its content is part of what is remembered.
    files = tuple(prototypes.sources(structure).items())
    return _optimizer_of(structure, network, steps_per_epoch, files)


@lru_cache
def _optimizer_of(
    structure: ExperimentConfig,
    network: Network,
    steps_per_epoch: int,
    files: tuple[tuple[str, str], ...],
) -> Optimizer:
    del files
    penalty = penalty_of(structure, network)
    if not structure.penalty.strength:
        penalty = None
    rescaled = "rescale_units" in structure.paper_compat
    if rescaled and structure.model.name != "mlp":
        raise UserError(
            "paper_compat rescale_units is for model.name = mlp: leave it out, or change "
            f"model.name = {structure.model.name}"
        )
    if penalty is not None:
        _refuse_proximal(structure, penalty)
    if structure.optimizer.trained == "head":
        _refuse_without_head(network)

    def optimizer(hyper: Hyper) -> optax.GradientTransformation:
        parts = [_descent(structure, hyper, steps_per_epoch)]
        if structure.balance.metric != "none":
            parts.append(balance_of(structure, network, hyper, steps_per_epoch))
        if penalty is not None:
            shrink = optim.spectral_penalty(
                penalty,
                hyper["penalty_strength"],
                mode=structure.penalty.mode,
                learning_rate=hyper["shrink_rate"],
                view=view_of(structure, network),
                refresh=_refresh_of(structure, steps_per_epoch),
            )
            parts = [shrink, *parts] if structure.penalty.mode == "penalty" else [*parts, shrink]
        if structure.optimizer.trained == "head":
            parts.append(only_head(network))
        return optax.chain(*parts, *([rescale_units()] if rescaled else []))

    return optimizer


def balance_of(
    config: ExperimentConfig, network: Network, hyper: Hyper, steps_per_epoch: int
) -> optax.GradientTransformationExtraArgs:
    """The configured ``optim.temp_balance``."""
    balance = config.balance
    bounds: dict[str, Any] = {"low": hyper["balance_low"], "high": hyper["balance_high"]}
    make = partial(
        optim.temp_balance,
        balance.assignment,
        metric=alpha_of(config),
        refresh_every=balance.refresh_every * steps_per_epoch,
        tuned=balance.tuned,
        layout=network.layout,
        min_eigenvalues=balance.min_eigenvalues,
        **(bounds if balance.assignment in ("linear", "step") else {}),
    )
    return _shuffled(make) if balance.metric == "shuffled" else make()


def refuse_what_cannot_balance(config: ExperimentConfig, network: Network) -> None:
    """`UserError` (2) if the balance finds no layer to tune."""
    if config.balance.metric == "none":
        return
    params, _ = jax.eval_shape(network.init, jax.random.key(0))
    try:
        jax.eval_shape(balance_of(config, network, hyper_of(config), 1).init, params)
    except ValueError as error:
        raise UserError(f"balance: {error}") from None


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


def _descent(
    config: ExperimentConfig, hyper: Hyper, steps_per_epoch: int
) -> optax.GradientTransformation:
    rate = _rate(config, hyper["learning_rate"], steps_per_epoch)
    if config.optimizer.name == "adamw":
        return optax.adamw(rate, weight_decay=hyper.get("weight_decay", 0.0))
    if config.optimizer.name == "adam":
        descent = optax.adam(rate)
    else:
        descent = optax.sgd(rate, momentum=hyper.get("momentum"))
    if "weight_decay" in hyper:
        return optax.chain(optax.add_decayed_weights(hyper["weight_decay"]), descent)
    return descent


def _rate(
    config: ExperimentConfig, learning_rate: jax.Array, steps_per_epoch: int
) -> optax.ScalarOrSchedule:
    schedule, epochs = config.optimizer.schedule, config.train.epochs
    if schedule == "constant":
        return learning_rate

    def cosine(step):
        passed = step // steps_per_epoch if "epoch" in schedule else step / steps_per_epoch
        return learning_rate / 2 * (1 + jnp.cos(jnp.pi * passed / epochs))

    return cosine


def _steady_rate(config: ExperimentConfig) -> float:
    """How far a steady pull of size 1 moves a weight in a step; for the proximal step."""
    chosen = config.optimizer
    if chosen.name != "sgd":
        return chosen.learning_rate
    # Heavy-ball momentum multiplies a steady pull by 1 / (1 - momentum).
    return chosen.learning_rate / (1 - chosen.momentum)


def _refuse_proximal(config: ExperimentConfig, penalty: Penalty) -> None:
    if config.penalty.mode != "proximal":
        return
    if penalty.sees != "magnitudes" and penalty.prox is None:
        raise UserError(
            f"penalty.mode = 'proximal': {config.penalty.name} has no proximal step; "
            "set penalty.mode=penalty"
        )
    if config.optimizer.schedule != "constant":
        raise UserError(
            f"optimizer.schedule = {config.optimizer.schedule!r} with penalty.mode = 'proximal': "
            "the proximal step knows one rate only; set optimizer.schedule=constant"
        )


def _refuse_without_head(network: Network) -> None:
    try:
        head_of(network)
    except ValueError as error:
        raise UserError(f"optimizer.trained = 'head': {error}; set optimizer.trained=all") from None


def zeros_stay() -> optax.GradientTransformation:
    """Leave weights that are exactly 0 where they are; put it last.

    So a mask needs no mask, and factors padded with zeros to a common rank train as the smaller
    ones that they are: whatever the ranks, trials share a program.
    """

    def keep(update, param):
        return jnp.where(param == 0, 0, update)

    return optax.stateless(lambda updates, params: jax.tree.map(keep, updates, params))


def head_of(network: Network) -> str:
    """The path of the layer that makes the outputs; ValueError where no layer does that alone."""
    head = network.representations[-1].partition(":")[0] if network.representations else ""
    params, _ = jax.eval_shape(network.init, jax.random.key(0))
    paths = (path for path, _ in jax.tree_util.tree_leaves_with_path(params))
    if not any(_name(path).startswith(f"{head}/") for path in paths):
        raise ValueError("the network has no layer that makes the outputs and does nothing else")
    return head


def only_head(network: Network) -> optax.GradientTransformation:
    """Leave all parameters as they are but those of the layer that makes the outputs; put it last.

    So the features stay those of the initial network. Running statistics of batch norms move.
    """
    head = head_of(network)

    def keep(path, update):
        return update if _name(path).startswith(f"{head}/") else jnp.zeros_like(update)

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(keep, updates))


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def elastic_net(l1: jax.Array, l2: jax.Array) -> optax.GradientTransformation:
    """Add the gradient of ``l1 |w| + l2 w^2 / 2`` on every parameter; put it first."""

    def add(update, param):
        return update + l1 * jnp.sign(param) + l2 * param

    return optax.stateless(lambda updates, params: jax.tree.map(add, updates, params))


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
