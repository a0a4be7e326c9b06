"""Networks that are cut while they train: how they are trained, and how a cut one goes on.

    trainer = trainer_of("mnist", hidden=(300, 300), train_limit=5_000, batch_size=128)
    state = trainer.start([trial(seed, 0.08, relu=True) for seed in range(8)])
    state = trainer.train(state, epochs=5)
    assess(trainer, state)                  # accuracies and dead classes, one number per trial

Trials share shapes, so factors are padded with zeros to a common rank. A weight that is exactly 0
stays 0, so they train as the smaller ones that they are: whatever the ranks, the program is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import data as datasets
from experiments.training.blocks import Trial
from experiments.training.optimisers import elastic_net, zeros_stay
from experiments.training.program import TrainState
from experiments.training.task import Hyper, classification
from experiments.training.trainer import Trainer
from models.factored import factored
from spectral_jax import prune
from spectral_jax.prune import LayerReport, Policy, surgery

Tree = Any
# Padded ranks are multiples of this part of a layer's smaller side, so that arms share programs.
PAD = 8


def trial(
    seed: int, learning_rate: float, *, relu: bool = False, l1: float = 0.0, l2: float = 0.0
) -> Trial:
    """A seed and its numbers.

    relu: a ReLU on the logits, as the papers define their networks.
    l1, l2: penalties ``l1 |w| + l2 w^2 / 2`` on every parameter.
    """
    numbers = {"learning_rate": learning_rate, "relu_logits": float(relu), "l1": l1, "l2": l2}
    return Trial(seed, numbers)


@cache
def trainer_of(
    dataset: str,
    *,
    train_limit: int | None,
    validation: int = 0,
    batch_size: int,
    momentum: float = 0.9,
    decay: tuple[float, int] = (1.0, 1),
    model: str = "mlp",
    hidden: tuple[int, ...] = (),
) -> Trainer:
    """The trainer of such networks; equal options give the same one, data on the device included.

    decay: rates are multiplied by the first every so many (the second) epochs.
    """
    found = datasets.load(dataset, preprocessing="unit")
    splits = datasets.prepare(found, train_limit=train_limit, validation=validation)
    sizes = {"hidden": hidden} if hidden else {}
    net = factored(model, input_shape=found.train_x.shape[1:], classes=found.classes, **sizes)
    task = classification(dataset, found, splits, net, batch_size=batch_size)
    return Trainer(task, _optimizer(momentum, decay, task.steps_per_epoch))


def assess(trainer: Trainer, state: TrainState) -> dict[str, np.ndarray]:
    """Accuracy on each split, and the classes never answered on the test split, per trial."""
    found = {
        f"{split}/accuracy": trainer.evaluate(state, split)["accuracy"].astype(float)
        for split in trainer.task.data
    }
    dead = jax.vmap(prune.dead_classes)(trainer.outputs(state)).sum(axis=-1)
    return {**found, "dead_classes": np.asarray(dead, float)}


def in_turn(function: Callable[..., Tree], *trees: Tree) -> Tree:
    """``function`` of every trial, one after the other, and done when this returns.

    For whatever calls LAPACK: side by side, as under ``vmap``, such calls can wait for each other
    for ever on jaxlib's CPU thread pool (seen with 0.10.2; cf. jax#36927).
    """
    return jax.block_until_ready(_in_turn(function, trees))


def in_factors(
    state: TrainState, params: Tree, ranks: Mapping[str, np.ndarray]
) -> tuple[TrainState, dict[str, np.ndarray]]:
    """Two factors for every kernel that they make smaller in all trials; momentum goes along.

    params: the kernels as they were cut, ``ranks`` of them left.
    Returns what each kernel then costs in parameters, too.
    """
    costs, padded = {}, {}
    for layer, rank in ranks.items():
        *inputs, n = leaf(params, layer).shape[1:]
        m = prod(inputs)
        costs[layer] = rank * (m + n)
        if prune.split_refusal((m, n), int(max(rank))):
            costs[layer] = np.full(len(rank), m * n)
            continue
        step = max(1, min(m, n) // PAD)
        most = (m * n - 1) // (m + n)
        padded[layer] = min(-(-int(max(rank)) // step) * step, most)
    if not padded:
        return state._replace(params=params), costs
    split = {
        layer: in_turn(_splitting(rank), leaf(params, layer), jnp.asarray(ranks[layer]))
        for layer, rank in padded.items()
    }
    factors = replaced(params, split)
    opt_state = _carried(state.opt_state, state.params, factors)
    return state._replace(params=factors, opt_state=opt_state), costs


def fits(params: Tree, layers: Sequence[str]) -> dict[str, LayerReport]:
    """The fit of every trial's layers, their factors multiplied; changes nothing."""
    return in_turn(_fits(tuple(layers)), params)


def leaf(params: Tree, path: str) -> Any:
    """What stands at a path of the tree."""
    for name in path.split("/"):
        params = params[name]
    return params


def replaced(params: Tree, leaves: Mapping[str, Any]) -> Tree:
    """The tree with other leaves at these paths."""
    return jax.tree.map_with_path(
        lambda path, old: leaves.get(jax.tree_util.keystr(path, simple=True, separator="/"), old),
        params,
    )


@cache
def _optimizer(momentum: float, decay: tuple[float, int], steps_per_epoch: int) -> Any:
    falling = optax.exponential_decay(1.0, decay[1] * steps_per_epoch, decay[0], staircase=True)

    def optimizer(hyper: Hyper) -> optax.GradientTransformation:
        return optax.chain(
            elastic_net(hyper["l1"], hyper["l2"]),
            optax.trace(momentum),
            optax.scale_by_learning_rate(hyper["learning_rate"]),
            optax.scale_by_schedule(falling),
            zeros_stay(),
        )

    return optimizer


@partial(jax.jit, static_argnums=0)
def _in_turn(function: Callable[..., Tree], trees: tuple[Tree, ...]) -> Tree:
    return jax.lax.map(lambda given: function(*given), trees)


@cache
def _fits(layers: tuple[str, ...]) -> Callable[[Tree], dict[str, LayerReport]]:
    policies = dict.fromkeys(layers, Policy())
    return lambda params: prune.prune_spectra(prune.recombine_all(params), policies).report


@cache
def _splitting(padded: int) -> Callable[[jax.Array, jax.Array], Tree]:
    """Factors of a common rank; what a trial's own rank does not reach is exactly 0."""

    def split(kernel, rank):
        factors = surgery.split(kernel, padded)
        inside = jnp.arange(padded) < rank
        return {"u": factors["u"] * inside, "v": factors["v"] * inside[:, None]}

    return split


@jax.jit
def _carried(opt_state: Tree, before: Tree, after: Tree) -> Tree:
    return jax.vmap(prune.carry_moments)(opt_state, before, after)
