"""Dziugaite and Roy's own protocol (arXiv 1703.11008): the first bound below chance, step by step.

Handwritten digits in two classes. A network of one output is trained by SGD. Then its weights
become random: a mean and a standard deviation for each start at the trained weights, are drawn once
a batch, and are trained on McAllester's form of the bound of the logistic loss in bits, together
with the one standard deviation of a prior around the weights *before* SGD. What that ends at is
rounded to the neighbouring points of their grid, the error is measured by independent draws, its
Monte Carlo error counted, and kl inverted. An arm with random labels asks whether the bound knows
that nothing can be learned.

Where theirs takes one draw of all weights for the whole training set 150,000 times, ours draws anew
for every example. Faults of their code of 2017 are not repeated.

Results: protocol ``dziugaite_roy``, one arm for each in the options.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import Dataset, load
from experiments.papers.networks import Model
from experiments.papers.sloppy.studies.pac_bayes import errors, numbers_of, right, split_data
from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from experiments.training.blocks import Trial
from experiments.training.program import Optimizer, TrainState
from experiments.training.task import Batch, Data, Hyper, Objective, Task, cross_entropy
from experiments.training.trainer import Trainer
from models import Network
from spectral_jax import capacity

Tree = Any
# Fixed before any data: prior variances .1 exp(-j / 100), and where the learnt one starts.
GRID = capacity.ScaleGrid(b=100, c=0.1)
FIRST_LOG_SCALE = -3.0
CHANCE = 0.5


class Arm(NamedTuple):
    """A network of these ``hidden`` widths, and for how long its stages last.

    examples: the last so many of the training set.
    sgd_epochs: of SGD; ``epochs``, ``full_rate``: of training on the bound, and after how many of
      them its rate falls to a tenth (theirs: 1000 and 250).
    random_labels: whether those of the training set are coin tosses.
    """

    dataset: str
    hidden: tuple[int, ...]
    examples: int
    sgd_epochs: int
    epochs: int
    full_rate: int
    learning_rate: float = 1e-3
    sgd_rate: float = 0.01
    batch: int = 100
    random_labels: bool = False


class Learnt(NamedTuple):
    """What training on the bound moves."""

    posterior: capacity.Gaussian
    log_scale: jax.Array
    """The logarithm of the prior's one standard deviation."""

    def prior(self, mean: Tree) -> capacity.Gaussian:
        """Around ``mean``, which does not move."""
        return capacity.Gaussian(mean, self.log_scale)

    @classmethod
    def around(cls, weights: Tree, method: Literal["dziugaite-roy", "M1"]) -> Learnt:
        """Where training starts: the posterior of the method, the prior where theirs starts."""
        first = jnp.full((), FIRST_LOG_SCALE, jnp.float32)
        return cls(capacity.starting_posterior(method, weights), first)


def measure(run: Run, *, arms: Mapping[str, Mapping[str, Any]], seeds: int, passes: int) -> Results:
    """Certify every arm for every seed; what is done is not trained again.

    passes: over the examples, each with fresh draws, for the error that is certified.
    """
    found = []
    for name, options in arms.items():
        arm = Arm(**options)
        rows = [_stored(run, name, arm, seed, passes) for seed in range(seeds)]
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        found.append(of_arrays("dziugaite_roy", name, columns))
    return merge(found)


def _stored(run: Run, name: str, arm: Arm, seed: int, passes: int) -> dict[str, float]:
    file = f"{name}-{seed}"
    kept = run.load_array(file)
    if kept is not None:
        return {key: float(value) for key, value in kept.items()}
    numbers = certified(load(arm.dataset, preprocessing="unit"), arm, seed, passes=passes)
    run.save_array(file, **numbers)
    run.log(f"dziugaite_roy: {name}, seed {seed}, is certified")
    return numbers


def certified(dataset: Dataset, arm: Arm, seed: int, *, passes: int) -> dict[str, float]:
    """All stages for one seed; the columns of their table."""
    data, hidden = _data(dataset, arm, seed), tuple(arm.hidden)
    start, weights, plain = _by_sgd(data, arm, seed, math.prod(dataset.train_x.shape[1:]))
    trainer, state = _on_bound(data, dense(hidden), start, weights, arm, seed)
    found = jax.tree.map(lambda leaf: leaf[0], state.params)
    prior = capacity.Prior(found.prior(start), np.zeros(0, int))
    random = replace(trainer.task, net=drawn_by_example(hidden), objective=RISK)
    drawn = replace(trainer, task=random)
    wrong = errors(drawn, state, "test", 1)
    alone = state._replace(params=one(Learnt(prior.gaussian.untied(), found.log_scale)))
    certificate = capacity.certify(
        found.posterior, prior, errors(drawn, state, "train", passes), examples=arm.examples,
        grid=GRID, constant="seeger", chance=CHANCE,
        prior_draws=errors(drawn, alone, "train", passes),
        held_out=(int(wrong.sum()), len(wrong)),
    )  # fmt: skip
    return numbers_of(certificate, float(wrong.mean())) | _theirs(certificate) | plain


def _theirs(found: capacity.Certificate) -> dict[str, float]:
    """What they tell of it beyond the columns of `pac_bayes`."""
    complexity = math.sqrt(found.kl / (2 * (found.n - 1)))
    return {
        "margin": CHANCE - found.bound,
        "complexity": complexity,
        "complexity beyond one": complexity - 1,
        "point": math.nan if found.grid_index is None else found.grid_index,
    }


def _data(dataset: Dataset, arm: Arm, seed: int) -> dict[str, Data]:
    total = len(dataset.train_y)
    rows = np.arange(total - arm.examples, total)
    if arm.random_labels:
        tossed = np.random.default_rng(seed).integers(0, 2, total).astype(dataset.train_y.dtype)
        dataset = dataset._replace(train_y=tossed)
    return split_data(dataset, rows)


def _by_sgd(
    data: Mapping[str, Data], arm: Arm, seed: int, inputs: int
) -> tuple[Tree, Tree, dict[str, float]]:
    """Weights before and after SGD, and its errors."""
    net = plain_network(inputs, tuple(arm.hidden))
    trainer = Trainer(Task("sgd", net, RISK, data, "", arm.batch), momentum)
    state = trainer.start([Trial(seed, {"learning_rate": arm.sgd_rate})])
    ended = trainer.train(state, epochs=arm.sgd_epochs)
    told = {
        f"sgd/{split}/error": 1 - float(trainer.evaluate(ended, split)["accuracy"][0])
        for split in ("train", "test")
    }
    start, weights = (jax.tree.map(lambda leaf: leaf[0], x.params) for x in (state, ended))
    return start, weights, told


def _on_bound(
    data: Mapping[str, Data], model: Model, start: Tree, weights: Tree, arm: Arm, seed: int
) -> tuple[Trainer, TrainState]:
    """Posterior and prior's scale after training on the bound."""
    task = Task("bound", drawn_once(model), BOUND, data, "", arm.batch)
    trainer = Trainer(task, on_grid(rmsprop(arm.full_rate * task.steps_per_epoch)))
    hyper = {"n": arm.examples, "learning_rate": arm.learning_rate}
    first = Learnt.around(weights, "dziugaite-roy")
    state = started(trainer, first, start, Trial(seed, hyper))
    return trainer, trainer.train(state, epochs=arm.epochs)


def started(trainer: Trainer, params: Tree, fixed: Tree, trial: Trial) -> TrainState:
    """A state whose parameters are given, beside what the network keeps fixed."""
    hyper = {name: jnp.full(1, value, jnp.float32) for name, value in trial.hyper.items()}
    key = jax.random.key(np.uint32(trial.seed))[None]
    steps = jnp.zeros(1, jnp.int32)
    return trainer.restart(TrainState(one(params), None, one(fixed), hyper, key, steps))


@cache
def dense(hidden: tuple[int, ...]) -> Model:
    """ReLU layers and one output ``f``, as logits ``[-f/2, f/2]``.

    So the cross-entropy is ``log(1 + exp(-y f))`` of labels of -1 and 1.
    """

    def model(weights: Tree, x: jax.Array) -> jax.Array:
        return _forward(x, hidden, lambda place, x: x @ weights[place]["w"] + weights[place]["b"])

    return model


def _forward(
    x: jax.Array, hidden: tuple[int, ...], layer: Callable[[int, jax.Array], jax.Array]
) -> jax.Array:
    x = x.reshape(len(x), -1)
    for place in range(len(hidden)):
        x = jax.nn.relu(layer(place, x))
    x = layer(len(hidden), x)
    return jnp.concatenate([-x / 2, x / 2], axis=-1)


@cache
def plain_network(inputs: int, hidden: tuple[int, ...]) -> Network:
    """`dense` with their initial weights: normal, cut off at two standard deviations of .04."""
    model, widths = dense(hidden), (inputs, *hidden, 1)

    def init(key):
        keys = jax.random.split(key, len(widths) - 1)
        layers = tuple(
            {
                "w": 0.04 * jax.random.truncated_normal(k, -2, 2, (i, o)),
                "b": jnp.full(o, 0.0 if place else 0.1, jnp.float32),
            }
            for place, (k, (i, o)) in enumerate(zip(keys, pairwise(widths), strict=True))
        )
        return layers, {}

    def apply(params, state, x, *, train=False, key=None):
        return {"logits": model(params, x)}, state

    return Network(init, apply, lambda: ())


@cache
def drawn_once(model: Model) -> Network:
    """The network whose weights are drawn for each batch: parameters are `Learnt`.

    The state is the prior's mean; ``kl`` has what the late choice of the prior's scale costs in it.
    """

    def apply(params, state, x, *, train=False, key=None):
        posterior, prior = params.posterior, params.prior(state)
        weights = posterior.mean if key is None else capacity.draw(key, posterior)
        nats = capacity.gaussian_kl(posterior, prior) + GRID.relaxed_penalty(2 * params.log_scale)
        return {"logits": model(weights, x), "kl": jnp.full(len(x), nats)}, state

    return Network(from_posterior, apply, lambda: ())


@cache
def drawn_by_example(hidden: tuple[int, ...]) -> Network:
    """The same network with weights of its own for each example, by `capacity.local_dense`."""

    def apply(params, state, x, *, train=False, key=None):
        mean, log_scale = params.posterior

        def layer(place, x):
            parts = (capacity.Gaussian(mean[place][name], log_scale[place][name]) for name in "wb")
            return capacity.local_dense(jax.random.fold_in(key, place), x, *parts)

        return {"logits": _forward(x, hidden, layer)}, state

    return Network(from_posterior, apply, lambda: ())


def from_posterior(key: jax.Array) -> Tree:
    """The ``init`` of a network that has none."""
    raise NotImplementedError("training begins from a posterior")


def on_bound(outputs: Tree, batch: Batch) -> jax.Array:
    """Their objective: the batch's logistic loss in bits, and the root that bounds its excess."""
    risk = jnp.mean(on_risk(outputs, batch))
    bound = capacity.pac_bayes_bound(
        risk, outputs["kl"][0], n=batch["hyper"]["n"], form="pinsker", constant="seeger"
    )
    return jnp.full(len(outputs["kl"]), bound)


def on_risk(outputs: Tree, batch: Batch) -> jax.Array:
    """The logistic loss in bits."""
    return cross_entropy(outputs["logits"], batch) / math.log(2)


@cache
def rmsprop(full_rate: int) -> Optimizer:
    """TensorFlow's defaults; after so many steps a tenth of the rate."""

    def optimizer(hyper: Hyper) -> optax.GradientTransformation:
        rate = optax.piecewise_constant_schedule(hyper["learning_rate"], {full_rate: 0.1})
        return optax.rmsprop(rate, decay=0.9, eps=1e-10, initial_scale=1.0)

    return optimizer


@cache
def on_grid(optimizer: Optimizer) -> Optimizer:
    """The same, but the prior's scale never leaves the grid at its wide end.

    Beyond the first point there is none to round to, and training at a high rate goes there: a
    width that costs nothing while gradients are noise, and at the certificate everything.
    """
    widest = math.log(GRID.variance(1)) / 2 - 1e-5  # a hair, for the rounding of float32

    def update(updates, state, params=None):
        most = widest - params.log_scale
        return updates._replace(log_scale=jnp.minimum(updates.log_scale, most)), state

    held = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    return lambda hyper: optax.chain(optimizer(hyper), held)


def momentum(hyper: Hyper) -> optax.GradientTransformation:
    """SGD with momentum .9."""
    return optax.sgd(hyper["learning_rate"], momentum=0.9)


def one(tree: Tree) -> Tree:
    """The tree with an axis of one trial."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tree)


BOUND = Objective(on_bound, (("accuracy", right),))
RISK = Objective(on_risk, (("accuracy", right),))
