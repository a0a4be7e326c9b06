"""What can be certified of a network on all classes, by training it on the bound itself.

Networks with Gaussian weights, as in arXiv 2007.12911, of dense layers or convolutional. The prior
of an arm is around random initial weights, or learnt on a share of the examples, which then count
no more. Noise is drawn anew for every example (`capacity.local_dense`, `capacity.local_conv`), in
training and for the risk, so that each pass over the data gives as many independent draws as
examples.

Results: protocol ``pac_bayes``, one arm for each in the options, with the certificate's numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import Dataset, load
from experiments.papers.sloppy.studies.causal import optimizer_of
from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from experiments.training.augmentation import crop, of_images
from experiments.training.blocks import Trial
from experiments.training.program import TrainState
from experiments.training.task import Batch, Data, Objective, Task, accuracy, cross_entropy
from experiments.training.trainer import Trainer
from models import Network
from spectral_jax.capacity import (
    Certificate,
    Gaussian,
    certify,
    data_free_prior,
    gaussian_kl,
    learnt_prior,
    local_conv,
    local_dense,
    pac_bayes_bound,
)

Tree = Any

KERNEL = 5
DELTA_MC = 0.01  # the probability that the correction of one of the risks compared fails


class Arm(NamedTuple):
    """One way to a posterior.

    channels: of convolutions before the ``hidden`` dense layers, 5 x 5 each, with ReLU and the
      maxima of 2 x 2: LeNet's if they are 6 and 16.
    scale: standard deviation of the prior, in every coordinate.
    learnt: the share of the examples that the prior is trained on, for so many ``prior_epochs``,
      each image shifted by up to ``shift`` pixels.
    tried: how many such settings were compared before this one was declared, on any data: their
      priors and the draws by which they were compared are paid for as if one were chosen among so
      many.
    """

    dataset: str
    hidden: tuple[int, ...]
    scale: float
    epochs: int
    learning_rate: float
    batch: int
    learnt: float = 0.0
    prior_epochs: int = 0
    prior_rate: float = 0.0
    shift: int = 0
    tried: int = 1
    channels: tuple[int, ...] = ()


def measure(
    run: Run,
    *,
    arms: Mapping[str, Mapping[str, Any]],
    seeds: int,
    passes: int,
) -> Results:
    """Certify every arm for every seed; what is done is not trained again.

    passes: over the examples, each with fresh draws, for the risk.
    """
    found = []
    for name, options in arms.items():
        arm = Arm(**options)
        data = load(arm.dataset, preprocessing="unit")
        rows = [
            _stored(run, f"{name}-{seed}".replace(" ", "-"), data, arm, seed, passes=passes)
            for seed in range(seeds)
        ]
        run.log(f"pac_bayes: {name} is certified")
        found.append(of_arrays("pac_bayes", name, {k: [row[k] for row in rows] for k in rows[0]}))
    return merge(found)


def _stored(run: Run, file: str, *arguments: Any, **options: Any) -> dict[str, float]:
    kept = run.load_array(file)
    if kept is not None:
        return {name: float(value) for name, value in kept.items()}
    numbers = numbers_of(*certified(*arguments, **options))
    run.save_array(file, **numbers)
    return numbers


def numbers_of(found: Certificate, test_error: float) -> dict[str, float]:
    """The columns of the table; NaN where nothing is known."""
    columns = {
        "bound": found.bound, "risk": found.risk, "risk/corrected": found.risk_bound,
        "kl": found.kl, "chance": found.chance, "prior/bound": found.prior_bound,
        "held-out/bound": found.held_out_bound, "test/error": test_error, "n": found.n,
        "draws": found.draws, "valid": found.valid, "non-vacuous": found.nonvacuous,
    }  # fmt: skip
    return {name: math.nan if x is None else float(x) for name, x in columns.items()}


def certified(dataset: Dataset, arm: Arm, seed: int, *, passes: int) -> tuple[Certificate, float]:
    """Train prior and posterior; the certificate, and the posterior's error on the test set."""
    # At random, not in proportion to the classes: the examples that count must be independent of
    # those that the prior saw.
    rows = np.random.default_rng(seed).permutation(len(dataset.train_y))
    seen, counted = np.split(rows, [round(arm.learnt * len(rows))])
    net = random_network(
        dataset.train_x.shape[1:], tuple(arm.hidden), dataset.classes, arm.scale,
        tuple(arm.channels),
    )  # fmt: skip
    trial = Trial(seed, {"n": len(counted), "learning_rate": arm.learning_rate})
    task = Task("posterior", net, BOUND, split_data(dataset, counted), "", arm.batch)
    learnt = _prior(net, dataset, seen, trial, arm)
    trainer, state = _trained(task, trial, arm.epochs, learnt)
    start = state.model_state
    free = not len(seen)
    mean = jax.tree.map(lambda leaf: leaf[0], start.mean)
    prior = data_free_prior(mean, arm.scale) if free else learnt_prior(mean, arm.scale, seen=seen)
    wrong = errors(trainer, state, "test", 1)
    found = certify(
        jax.tree.map(lambda leaf: leaf[0], state.params), prior,
        errors(trainer, state, "train", passes), examples=counted,
        delta_mc=DELTA_MC / arm.tried, penalty=math.log(arm.tried), chance=1 - 1 / dataset.classes,
        prior_draws=errors(trainer, state._replace(params=start), "train", passes),
        held_out=(int(wrong.sum()), len(wrong)),
    )  # fmt: skip
    return found, float(wrong.mean())


def _prior(
    net: Network, dataset: Dataset, seen: np.ndarray, trial: Trial, arm: Arm
) -> Gaussian | None:
    """What the rows ``seen`` teach under the prior's own noise, or None if there are none."""
    if not len(seen):
        return None
    trial = Trial(trial.seed, {**trial.hyper, "learning_rate": arm.prior_rate})
    augment = shifted(arm.shift) if arm.shift else None
    task = Task("prior", net, GIBBS, split_data(dataset, seen), "", arm.batch, augment=augment)
    _, state = _trained(task, trial, arm.prior_epochs, None)
    # Only the mean is learnt; the scale was declared.
    return state.model_state._replace(mean=state.params.mean)


def _trained(
    task: Task, trial: Trial, epochs: int, start: Gaussian | None
) -> tuple[Trainer, TrainState]:
    """A posterior trained from its prior, that is from ``start`` or from random weights."""
    trainer = Trainer(task, optimizer_of(epochs * task.steps_per_epoch))
    state = trainer.start([trial])
    if start is not None:
        state = state._replace(params=start, model_state=start)
    return trainer, trainer.train(state, epochs=epochs)


def errors(trainer: Trainer, state: TrainState, split: str, passes: int) -> np.ndarray:
    """1 where weights drawn for an example are wrong about it, for each pass and example."""
    drawn = []
    for number in range(passes):
        # A stream of its own: the posterior depends on the noise that it was trained with.
        key = jax.vmap(jax.random.fold_in, (0, None))(state.key, 2**31 + number)
        right = trainer.items(state._replace(key=key), split, dropout=True)["accuracy"]
        drawn.append(1 - right[0])
    return np.concatenate(drawn)


def split_data(dataset: Dataset, rows: np.ndarray) -> dict[str, Data]:
    """Rows of the training set, and the test set."""
    shared = {"shift": jnp.asarray(dataset.shift), "scale": jnp.asarray(dataset.scale)}
    pairs = {
        "train": (dataset.train_x[rows], dataset.train_y[rows]),
        "test": (dataset.test_x, dataset.test_y),
    }
    return {
        name: Data({"x": jnp.asarray(x), "y": jnp.asarray(y)}, shared)
        for name, (x, y) in pairs.items()
    }


@cache
def shifted(pixels: int) -> Callable[[jax.Array, Tree], Tree]:
    """One function for each distance: programs are compiled for it."""
    return of_images(partial(crop, padding=pixels))


@cache
def random_network(
    shape: tuple[int, ...],
    hidden: tuple[int, ...],
    classes: int,
    scale: float,
    channels: tuple[int, ...] = (),
) -> Network:
    """ReLU layers with Gaussian weights: parameters are the posterior, the state the prior.

    Both begin around random weights. Given a key, weights are drawn for each example; without one
    they are the posterior's means.

    shape: of an input, ``(height, width)`` or with the colours behind.
    """
    kernels = _kernels(shape, hidden, classes, channels)

    def init(key):
        # Of variance one over the inputs; a normal draw takes XLA seconds to compile.
        mean = tuple(
            {
                "kernel": jax.random.uniform(k, kernel, minval=-1)
                * (3 / math.prod(kernel[:-1])) ** 0.5,
                "bias": jnp.zeros(kernel[-1]),
            }
            for k, kernel in zip(jax.random.split(key, len(kernels)), kernels, strict=True)
        )
        log_scale = jax.tree.map(lambda leaf: jnp.full_like(leaf, math.log(scale)), mean)
        return Gaussian(mean, log_scale), Gaussian(mean, log_scale)

    def apply(params, state, x, *, train=False, key=None):
        x = x.reshape(len(x), *shape[:2], -1) if channels else x
        for place, layer in enumerate(params.mean):
            noise = params.log_scale[place]
            parts = (Gaussian(layer[name], noise[name]) for name in ("kernel", "bias"))
            x = _layer(key if key is None else jax.random.fold_in(key, place), x, *parts)
            x = x if place == len(kernels) - 1 else jax.nn.relu(x)
            x = _maxima(x) if x.ndim == 4 else x
        return {"logits": x, "kl": jnp.full(len(x), gaussian_kl(params, state))}, state

    return Network(init, apply, lambda: ())


def _kernels(
    shape: tuple[int, ...], hidden: tuple[int, ...], classes: int, channels: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """The shapes of all kernels; the maxima of 2 x 2 leave half of each side.

    >>> _kernels((28, 28), (120, 84), 10, (6, 16))
    [(5, 5, 1, 6), (5, 5, 6, 16), (256, 120), (120, 84), (84, 10)]
    """
    seen = (shape[2] if len(shape) > 2 else 1, *channels)
    inputs = math.prod(shape)
    if channels:
        sides = list(shape[:2])
        for _ in channels:
            sides = [(side - KERNEL + 1) // 2 for side in sides]
        inputs = math.prod(sides) * channels[-1]
    widths = (inputs, *hidden, classes)
    return [(KERNEL, KERNEL, *pair) for pair in pairwise(seen)] + list(pairwise(widths))


def _layer(key: jax.Array | None, x: jax.Array, kernel: Gaussian, bias: Gaussian) -> jax.Array:
    """A layer of the kind that its kernel is for, with noise if there is a key for it."""
    if kernel.mean.ndim == 4:
        if key is not None:
            return local_conv(key, x, kernel, bias)
        layout = ("NHWC", "HWIO", "NHWC")
        seen = jax.lax.conv_general_dilated(
            x, kernel.mean, (1, 1), "VALID", dimension_numbers=layout
        )
        return seen + bias.mean
    x = x.reshape(len(x), -1)
    return x @ kernel.mean + bias.mean if key is None else local_dense(key, x, kernel, bias)


def _maxima(x: jax.Array) -> jax.Array:
    """Of 2 x 2 places each; an odd last row or column is left out."""
    height, width = (side // 2 for side in x.shape[1:3])
    even = x[:, : 2 * height, : 2 * width]
    return even.reshape(len(x), height, 2, width, 2, -1).max(axis=(2, 4))


def on_bound(outputs: Tree, batch: Batch) -> jax.Array:
    """The quadratic bound of the batch's cross-entropy in units of that of guessing, for each.

    Not clipped to [0, 1]: what is certified is another loss, the error.
    """
    guessing = math.log(outputs["logits"].shape[-1])
    risk = jnp.mean(cross_entropy(outputs["logits"], batch)) / guessing
    kl, n = outputs["kl"][0], batch["hyper"]["n"]
    return jnp.full(len(outputs["kl"]), pac_bayes_bound(risk, kl, n=n, form="quadratic"))


def on_risk(outputs: Tree, batch: Batch) -> jax.Array:
    """Cross-entropy under the noise, whatever the relative entropy."""
    return cross_entropy(outputs["logits"], batch)


def right(outputs: Tree, batch: Batch) -> jax.Array:
    """As of any classifier."""
    return accuracy(outputs["logits"], batch)


BOUND = Objective(on_bound, (("accuracy", right),))
GIBBS = Objective(on_risk, (("accuracy", right),))
