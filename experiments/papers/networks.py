"""The trained networks of a protocol, opened for measurement: as they began and as they ended.

bench = opened(peer)                       # peer: the run of an arm
start, end = bench.start(seed), bench.end(seed)
bench.model(end, bench.inputs(1000))       # logits of the first training examples
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from experiments.config import ExperimentConfig, load_yaml
from experiments.data.base import Dataset
from experiments.data.splits import Splits
from experiments.runs import Run
from experiments.training.loading import loaded
from experiments.training.task import Data, Task, classification
from models import Network, network, options

Tree = Any
Model = Callable[[Tree, jax.Array], jax.Array]


@dataclass(frozen=True)
class Bench:
    """The networks of one arm, one per seed, and the data they were trained on."""

    config: ExperimentConfig
    dataset: Dataset
    sets: list[Splits]
    net: Network
    parameters: dict[str, np.ndarray]

    @property
    def seeds(self) -> range:
        """The seeds that were trained."""
        return range(self.config.train.seed, self.config.train.seed + self.config.train.seeds)

    @cached_property
    def task(self) -> Task:
        """What they were trained on, for more of it."""
        return self._task(self.splits)

    @property
    def splits(self) -> Splits:
        """The data of the first seed, of which all have the same images to test on."""
        return self.sets[0]

    def splits_of(self, seed: int) -> Splits:
        """The data that a seed was trained on: what all share, or its own."""
        return self.sets[(seed - self.config.train.seed) % len(self.sets)]

    @property
    def model(self) -> Model:
        """``model(params, inputs) -> logits``; the same function for the same network."""
        return model_of(self.net)

    def start(self, seed: int) -> Tree:
        """The parameters that the seed drew."""
        return self.net.init(jax.random.key(np.uint32(seed)))[0]

    def end(self, seed: int) -> Tree:
        """The parameters after training."""
        place = seed - self.config.train.seed
        leaves = {name: jnp.asarray(leaf[place]) for name, leaf in self.parameters.items()}
        return unflatten_dict(leaves, sep="/")

    def examples(self, count: int) -> tuple[jax.Array, jax.Array]:
        """The first training examples as the network sees them, and their labels."""
        return self.scaled(self.splits.train_x[:count]), jnp.asarray(self.splits.train_y[:count])

    def known(self, seed: int) -> Data:
        """The examples that a seed was trained on, with the labels that it was given."""
        return self._task(self.splits_of(seed)).data["train"]

    def scaled(self, x: np.ndarray) -> jax.Array:
        """Inputs as the network sees them."""
        return (jnp.asarray(x, jnp.float32) - self.dataset.shift) * self.dataset.scale

    def _task(self, splits: Splits) -> Task:
        name, size = self.config.name, self.config.data.batch_size
        return classification(name, self.dataset, splits, self.net, batch_size=size)


def opened(peer: Run) -> Bench:
    """The networks that a run of a protocol trained."""
    config = load_yaml(peer.path / "config.yaml")
    dataset, sets = loaded(config)
    model = config.model
    chosen = {name: value for name, value in vars(model).items() if name in options(model.name)}
    shape = dataset.train_x.shape[1:]
    net = network(model.name, input_shape=shape, classes=dataset.classes, **chosen)
    return Bench(config, dataset, sets, net, peer.array("parameters"))


@cache
def model_of(net: Network) -> Model:
    """The network as a function of parameters and inputs, without a state."""

    def model(params: Tree, inputs: jax.Array) -> jax.Array:
        return net.apply(params, {}, inputs)[0]

    return model
