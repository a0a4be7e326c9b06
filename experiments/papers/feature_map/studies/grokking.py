"""Grokking: do the features change before the network generalises, or after?

A tanh network with large initial weights and a little L2 fits 1,000 digits within some ten epochs
and generalises hundreds of epochs later. At log-spaced steps, on the examples it is trained on and
on unseen ones: D_LR, the effective dimension, NC1, the distance of the features' kernel to that of
the start; and the norm of the parameters. Controls: smaller initial weights, and no L2.

Fixed beforehand: the *onset* of a quantity is the first step at which half of its total change
since every training example is right has happened, on its own scale, by interpolation between
checkpoints along the logarithm of the step. Where the accuracy on unseen examples changes by less
than ``LEAST_RISE`` from there on, nothing is grokked and no quantity has an onset.

D_LR counts every direction of the outputs in full, however small; ``richness/resolved``, of outputs
that are centred first, those with more than a share ``RESOLVED`` of the largest. That share is not
fixed beforehand: it was set after a run of seed 0 of `modular`, in a gap between the directions.

Results: arms of protocol ``grokking``, per seed ``onset/<quantity>`` in epochs,
``lag/<quantity>`` behind the accuracy on unseen examples (negative: the quantity leads),
``end/<quantity>`` and ``start/<quantity>``. Stored per arm and seed: every quantity ``[t]``, the
steps, and the eigenvalues ``[t, p]`` of the features' covariance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.papers.feature_map.subsets import subset
from experiments.papers.feature_map.trained import checkpoints, columns
from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from experiments.training.blocks import Trial
from experiments.training.program import TrainState
from experiments.training.task import OBJECTIVES, Hyper, Task
from experiments.training.trainer import Trainer
from models import Network, network
from spectral_jax import capacity, features

Tree = Any
# From parameters and inputs to the last features and the head that reads them.
Look = Callable[[Tree, Array], tuple[Array, features.Head]]

# Arm -> by what the initial weights N(0, 1/inputs) are multiplied, and the strength of L2.
ARMS = {"as given": (5.0, 1e-4), "init gain 1": (1.0, 1e-4), "no L2": (5.0, 0.0)}
SPLITS = ("train", "unseen")
LABEL_SCALE = 3.0
LEAST_RISE = 0.1
# Of the outputs' largest singular value: what a direction must have to be counted as one of theirs.
RESOLVED = 0.03
GENERALISES = "unseen/accuracy"


def measure(
    run: Run, *, seeds: Mapping[str, int], epochs: int, times: int, **options: Any
) -> Results:
    """Every arm and seed; a network that is done is not trained again.

    seeds: of each arm.
    times: how often it is looked at, at most.
    """
    found = []
    for arm, count in seeds.items():
        rows = []
        for seed in range(count):
            name = f"{arm.replace(' ', '-')}-{seed}"
            stored = run.load_array(name)
            if stored is None:
                trainer, state = started(arm, seed, **options)
                watched = checkpoints(trainer, state, epochs=epochs, count=times)
                stored = course(trainer, watched, partial(last_of, trainer.task.net))
                run.save_array(name, **stored)
            rows.append(summary(stored))
            run.log(f"grokking: {arm}, seed {seed} is done")
        found.append(of_arrays("grokking", arm, columns(rows)))
    return merge(found)


def summary(course: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Of every quantity the start, the end, the onset, and its lag behind generalisation."""
    epochs = course["step"] / float(course["steps_per_epoch"])
    quantities = {name: values for name, values in course.items() if values.shape == epochs.shape}
    numbers: dict[str, float] = {}
    right = np.flatnonzero(course["train/accuracy"] == 1)
    grokked = right.size and np.ptp(course[GENERALISES][right[0] :][[0, -1]]) >= LEAST_RISE
    for name, values in quantities.items():
        if name != "step":
            numbers |= {f"start/{name}": values[0], f"end/{name}": values[-1]}
            began = onset(epochs, values, right[0]) if grokked else np.nan
            numbers[f"onset/{name}"] = began
    for name in [key for key in numbers if key.startswith("onset/")]:
        lag = numbers[name] - numbers[f"onset/{GENERALISES}"]
        numbers[name.replace("onset", "lag", 1)] = lag
    return {name: float(value) for name, value in numbers.items()}


def onset(at: np.ndarray, values: np.ndarray, since: int) -> float:
    """When half of the change between checkpoint ``since`` and the last has happened first.

    Between checkpoints by interpolation along ``log at``; NaN where nothing changes.

    >>> onset(np.array([1.0, 10.0, 100.0, 1000.0]), np.array([5.0, 0.0, 0.0, 1.0]), 1)
    316.22776601683796
    """
    start, change = values[since], values[-1] - values[since]
    if not change:
        return np.nan
    share = (values - start) / change
    after = next(k for k in range(since + 1, len(at)) if share[k] >= 0.5)
    between = share[after - 1 : after + 1]
    return float(np.exp(np.interp(0.5, between, np.log(at[after - 1 : after + 1]))))


def course(
    trainer: Trainer, watched: Iterable[tuple[int, TrainState]], look: Look
) -> dict[str, np.ndarray]:
    """Every quantity at every checkpoint, the first of which is the start."""
    first: dict[str, Array] = {}
    rows = []
    for step, state in watched:
        params = jax.tree.map(lambda leaf: leaf[0], state.params)
        row = {"step": step, "norm": optax.tree.norm(params, squared=True)}
        for split in SPLITS:
            data = trainer.task.data[split]
            batch = trainer.task.prepare(data.examples, data.shared)
            x, head = look(params, batch["x"])
            found = measured(x, head, batch["y"], first.setdefault(split, x))
            found |= {name: each[0] for name, each in trainer.evaluate(state, split).items()}
            row |= {f"{split}/{name}": value for name, value in found.items()}
        rows.append(jax.tree.map(np.asarray, row))
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return stacked | {
        "steps_per_epoch": np.array(trainer.task.steps_per_epoch),
        "classes": np.array(head.kernel.shape[1]),
        "rows": np.array(len(x)),  # of the last split
    }


@jax.jit
def measured(
    x: Float[Array, "n p"], head: features.Head, labels: Int[Array, " n"], first: Array
) -> dict[str, Array]:
    """What is told of features; ``first`` are those of the same examples at the start.

    Numbers, and below ``spectrum/`` one for each direction: one decomposition serves them all.
    """
    moments = features.of(x, labels=labels, classes=head.kernel.shape[1])
    mapped = features.diagonalize(moments, head=head)
    richness = partial(features.richness, moments, head=head)
    resolved = jnp.where(mapped.eigenvalues > mapped.floor, mapped.eigenvalues, jnp.nan)
    found = {
        "richness": richness().value,
        "richness/centre_first": richness(order="centre-first").value,
        "richness/resolved": richness(order="centre-first", tolerance=RESOLVED).value,
        "effective_dimension": capacity.spread(mapped.eigenvalues, floor=mapped.floor).entropy,
        "nc1": features.neural_collapse(moments).nc1,
        "kernel distance": features.kernel_distance(first, x),
        "spectrum/eigenvalues": resolved,
        "spectrum/quality": mapped.cumulative_quality,
        "spectrum/utilisation": mapped.cumulative_utilisation,
    }
    return {name: jnp.asarray(value) for name, value in found.items()}


def last_of(net: Network, params: Tree, x: Array) -> tuple[Array, features.Head]:
    """The features that the network's head is given, and the head."""
    point = net.representations[-1]
    return net.features(params, {}, x, points=(point,))[point], net.head(params)


def started(
    arm: str, seed: int, *, dataset: str, examples: int, unseen: int, hidden: Sequence[int],
    batch: int, learning_rate: float,
) -> tuple[Trainer, TrainState]:  # fmt: skip
    """The trainer of a seed's examples, and its one network as it begins."""
    found = subset(dataset, seed, train=examples, unseen=unseen)
    gain, l2 = ARMS[arm]
    net = _tanh(found.shape, found.classes, tuple(hidden), gain)
    task = Task("grokking", net, OBJECTIVES["mse"], found.data, sha256="", batch_size=batch)
    trainer = Trainer(task, optimizer)
    hyper = {"learning_rate": learning_rate, "l2": l2, "label_scale": LABEL_SCALE}
    return trainer, trainer.start([Trial(seed, hyper)])


@cache
def _tanh(shape: tuple[int, ...], classes: int, hidden: tuple[int, ...], gain: float) -> Network:
    # The same functions for every seed, so that compiled programs are shared.
    return network(
        "mlp", input_shape=shape, classes=classes, hidden=hidden, activation="tanh", gain=gain
    )


def optimizer(hyper: Hyper) -> optax.GradientTransformation:
    """Adam, L2 added to the gradient as torch does."""
    return optax.chain(optax.add_decayed_weights(hyper["l2"]), optax.adam(hyper["learning_rate"]))
