"""Training made lazy by the size of the outputs: richness should rise with it.

The outputs are ``alpha (f - f0)``, ``f0`` the network at the start, and the loss is divided by
``alpha^2``; the same steps are those of ``f - f0`` towards labels of size ``1/alpha``, which is
what is done here. Learned is ``f - f0``, which lies outside of the span of the features.

Results: arms ``alpha=<alpha>`` of protocol ``lazy``. ``richness`` is that of ``f - f0``,
``of f/richness`` that of the network's own outputs, which utilisation belongs to as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import jax.numpy as jnp

from experiments.config import OptimizerConfig
from experiments.papers.feature_map.measured import Numbers, last_of, look, of_last
from experiments.papers.feature_map.trained import columns, dense, each, images, split, trainer
from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from experiments.training.blocks import Trial
from experiments.training.task import Data
from models import Network
from spectral_jax import features

Tree = Any
# The loss is the mean over classes: of ten this is a rate of 0.01 for the sum.
SGD = OptimizerConfig("sgd", 0.1, 0.9)


def measure(
    run: Run, *, alphas: Sequence[float], dataset: str, hidden: Sequence[int], batch: int,
    epochs: int, seeds: int, examples: int,
) -> Results:  # fmt: skip
    """Every scale and seed, in one program."""
    data = images(dataset)
    net = dense(data.shape, tuple(hidden), data.classes)
    splits = {"train": split(data.x, data.y), "test": split(data.test_x, data.test_y)}
    training = trainer(minus_initial(net), splits, batch=batch, optimizer=SGD)
    steps = {"learning_rate": SGD.learning_rate, "momentum": SGD.momentum}
    state = training.start(
        [Trial(s, {**steps, "label_scale": 1 / alpha}) for alpha in alphas for s in range(seeds)]
    )
    state = training.train(state, epochs=epochs)
    accuracy = training.evaluate(state)["accuracy"]
    pairs = zip(each(state.params), each(state.model_state), accuracy, strict=True)
    rows = [
        {
            **of_difference(net, now, then["initial"], splits["train"], examples),
            "unseen/accuracy": right,
        }
        for now, then, right in pairs
    ]
    run.log("lazy: all scales are trained")
    return merge(
        of_arrays("lazy", f"alpha={alpha:g}", columns(rows[i * seeds : (i + 1) * seeds]))
        for i, alpha in enumerate(alphas)
    )


@cache
def minus_initial(net: Network) -> Network:
    """``f - f0``; the state holds the parameters of ``f0``."""

    def init(key):
        params, _ = net.init(key)
        return params, {"initial": params}

    def apply(params, state, x, *, train=False, key=None):
        now, _ = net.apply(params, {}, x, train=train, key=key)
        first, _ = net.apply(state["initial"], {}, x)
        return now - first, state

    return Network(init, apply, net.blocks)


def of_difference(net: Network, now: Tree, initial: Tree, data: Data, rows: int) -> Numbers:
    """Numbers of the last layer beside what was learned, and beside the network's own outputs."""
    numbers, _ = of_last(net, now, data, rows=rows)
    looked, before = (look(net, params, data, rows=rows) for params in (now, initial))
    outputs = looked.outputs - before.outputs
    richness = features.richness(last_of(looked), outputs=outputs, weights=looked.weights).value
    right = jnp.average(jnp.argmax(outputs, axis=1) == looked.labels, weights=looked.weights)
    own = {"of f/richness": numbers["richness"]}
    return {**numbers, **own, "richness": float(richness), "accuracy": float(right)}
