"""Rich is not good: the class written into the first pixels of an image, where it will not stay.

Networks see training images whose first pixels, one a class, hold ``amp`` at the image's class and
0 elsewhere, and are trained whole (``full``) or in their last layer (``last``), each at the
learning rate that did best on validation images with the same code. Tested on images whose code
names a random class (``conflicting``), the true one (``correct``) or none (``blanked``).

Results: arms ``<full or last>/amp=<amp>`` of protocol ``pixels``. On the conflicting images, where
the two classes are independent, ``image/quality`` and ``code/quality`` say how much of either the
leading directions hold; arrays ``<full or last>-<amp>`` hold both, of the first seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import data as datasets
from experiments.config import OptimizerConfig
from experiments.data.splits import Splits
from experiments.papers.feature_map.choices import chosen, of_choice
from experiments.papers.feature_map.measured import Arrays, Numbers, of_last
from experiments.papers.feature_map.trained import columns, dense, each, split, trainer
from experiments.papers.paper import FRESH
from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from experiments.training.blocks import Trial
from experiments.training.task import Data
from experiments.training.trainer import Trainer
from models import Network

Tree = Any
WAYS = {"full": OptimizerConfig("adam"), "last": OptimizerConfig("adam", trained="head")}
TESTS = ("conflicting", "correct", "blanked")
NONE = -1  # the class of no code


def measure(
    run: Run, *, amps: Sequence[float], rates: Sequence[float], dataset: str,
    hidden: Sequence[int], batch: int, epochs: int, seeds: int, tuned: int, validation: int,
    examples: int,
) -> Results:  # fmt: skip
    """Every arm: a learning rate from ``rates`` by ``tuned`` seeds of their own, then all seeds."""
    found = datasets.load(dataset, preprocessing="unit")
    splits = datasets.prepare(found, validation=validation)
    net, parts = dense(found.train_x.shape[1:], tuple(hidden), found.classes), []
    for amp in amps:
        data, codes = written(splits, float(found.scale), amp, found.classes)
        for way, optimizer in WAYS.items():
            training = trainer(net, data, batch=batch, optimizer=optimizer)
            best = best_rate(training, rates, epochs=epochs, seeds=range(FRESH, FRESH + tuned))
            hyper = {"learning_rate": rates[best]}
            state = training.start([Trial(seed, hyper) for seed in range(seeds)])
            state = training.train(state, epochs=epochs)
            told = [of_network(net, p, data, codes, examples) for p in each(state.params)]
            tests = {f"{name}/accuracy": training.evaluate(state, name)["accuracy"]
                     for name in TESTS}  # fmt: skip
            choice = of_choice("learning_rate", rates, best)
            numbers = {**columns([{**one, **choice} for one, _ in told]), **tests}
            parts.append(of_arrays("pixels", f"{way}/amp={amp:g}", numbers))
            run.save_array(f"{way}-{amp:g}", **told[0][1])
        run.log(f"pixels: amp = {amp:g} is trained")
    return merge(parts)


def written(
    splits: Splits, scale: float, amp: float, classes: int
) -> tuple[dict[str, Data], np.ndarray]:
    """Images with a code, by what it says, and the classes that the conflicting ones name."""
    x = {"train": splits.train_x, "validation": splits.validation_x}
    y = {"train": splits.train_y, "validation": splits.validation_y}
    random = np.random.default_rng(0).integers(0, classes, len(splits.test_y))
    said = {
        **y,
        "conflicting": random,
        "correct": splits.test_y,
        "blanked": np.full(len(splits.test_y), NONE),
    }
    data = {
        name: split(
            coded(x.get(name, splits.test_x) * scale, codes, amp, classes),
            y.get(name, splits.test_y),
        )
        for name, codes in said.items()
    }
    return data, random


def coded(x: np.ndarray, codes: np.ndarray, amp: float, classes: int) -> np.ndarray:
    """The images with ``amp`` at the pixel of each one's code, and 0 at those of other classes.

    >>> coded(np.ones((2, 2, 2)), np.array([1, NONE]), 3.0, 2).reshape(2, 4).tolist()
    [[0.0, 3.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
    """
    flat = x.reshape(len(x), math.prod(x.shape[1:])).copy()
    flat[:, :classes] = amp * (np.arange(classes) == codes[:, None])
    return flat.reshape(x.shape)


def best_rate(
    training: Trainer, rates: Sequence[float], *, epochs: int, seeds: Sequence[int]
) -> int:
    """The place of the learning rate with the best mean validation accuracy."""
    if len(rates) == 1:
        return 0
    state = training.start([Trial(s, {"learning_rate": rate}) for rate in rates for s in seeds])
    state = training.train(state, epochs=epochs)
    scores = training.evaluate(state, "validation")["accuracy"].reshape(len(rates), len(seeds))
    return chosen(scores.mean(axis=1))


def of_network(
    net: Network, params: Tree, data: Mapping[str, Data], codes: np.ndarray, examples: int
) -> tuple[Numbers, Arrays]:
    """Numbers on training images, and on conflicting ones how much is held of image and code."""
    numbers, _ = of_last(net, params, data["train"], rows=examples)
    conflicting = data["conflicting"]
    arrays: Arrays = {}
    coded = replace(conflicting, examples={**conflicting.examples, "y": jnp.asarray(codes)})
    for signal, labelled in (("image", conflicting), ("code", coded)):
        found, spectra = of_last(net, params, labelled, rows=examples)
        numbers[f"{signal}/quality"] = found["quality"]
        arrays |= {"eigenvalues": spectra["eigenvalues"], f"{signal}/quality": spectra["quality"]}
    return numbers, arrays
