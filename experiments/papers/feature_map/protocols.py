"""What is trained: a dense network in seven ways, and three networks on three sets of images.

The settings of the first are ours, as the source's were not to be had: 784-256-256-256-10 on the
10,000 test images of MNIST, 8,000 to train on. The loss is the mean over classes, which Adam does
not tell from the sum.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

from experiments.config import (
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from experiments.papers.paper import Protocol

DATASETS = ("mnist", "fashion_mnist", "cifar10")
CLASSES = 10  # of each of them
NETWORKS = {
    "mlp": ModelConfig(hidden=(256, 256, 256)),
    "cnn": ModelConfig("lenet"),
    "resnet": ModelConfig("resnet", depth=8),
}


def ways_of(base: ExperimentConfig, *, few: int, few_epochs: int) -> dict[str, ExperimentConfig]:
    """The ways to train one network, by arm.

    few, few_epochs: how many examples, and for how long, where labels are shuffled: with nine in
      ten wrong, the label says nothing of the image. ``unshuffled`` is the same with true ones.
    """
    small = replace(base.data, train_limit=few, subsets="own", batch_size=base.data.batch_size // 2)
    shorter = replace(base.train, epochs=few_epochs)
    return {
        "mse": base,
        "cross_entropy": replace(base, train=replace(base.train, objective="cross_entropy")),
        "decay": replace(
            base,
            optimizer=replace(base.optimizer, name="adamw", weight_decay=0.3),
            train=replace(base.train, epochs=4 * base.train.epochs // 3),
        ),
        "last_layer": replace(base, optimizer=replace(base.optimizer, trained="head")),
        "shuffled": replace(base, data=replace(small, label_noise=0.9), train=shorter),
        "unshuffled": replace(base, data=small, train=shorter),
    }


def settings(*, examples: int, test: int, epochs: int, seeds: int) -> dict[str, ExperimentConfig]:
    """Networks by data, each seed on examples of its own.

    Collapse is not measured, and nothing at more than eight steps: to look at convolutional
    networks took longer than to train them.
    """
    arms: dict[str, ExperimentConfig] = {}
    for data, (name, model) in product(DATASETS, NETWORKS.items()):
        arms[f"{data}-{name}"] = ExperimentConfig(
            "feature_map",
            data=DataConfig(
                data, batch_size=100, train_limit=examples, test_limit=test, subsets="own"
            ),
            model=model,
            optimizer=OptimizerConfig("adam", 1e-3),
            train=_train(epochs, seeds, at="8 log-spaced", measures=("features",), seed_axis="map"),
        )
    return arms


def _train(
    epochs: int, seeds: int, *, at: str, measures: tuple[str, ...], **options: Any
) -> TrainConfig:
    return TrainConfig(
        epochs=epochs, seeds=seeds, evaluate_every=at, measure_every=at, measures=measures,
        **options,
    )  # fmt: skip


GAIN = math.sqrt(2)
P1 = ExperimentConfig(
    "feature_map",
    data=DataConfig("mnist10k", batch_size=128, preprocessing="unit"),
    model=ModelConfig(hidden=(256, 256, 256), gain=GAIN),
    optimizer=OptimizerConfig("adam", 1e-3),
    train=_train(
        30, 8, at="12 log-spaced", measures=("features", "collapse"), objective="mse",
        seed_axis="map",
    ),
)  # fmt: skip
DIGITS = replace(
    P1,
    data=DataConfig("digits", batch_size=32, preprocessing="unit"),
    model=ModelConfig(hidden=(32,), gain=GAIN),
    train=replace(P1.train, epochs=6, seeds=2, measures=("features",)),
)
SMOKE = ("mse", "last_layer")
TINY = ways_of(DIGITS, few=320, few_epochs=12)
PROTOCOLS = {
    "smoke": {"p1": Protocol({way: TINY[way] for way in SMOKE})},
    "small": {
        "p1": Protocol(ways_of(P1, few=2000, few_epochs=150), hours=0.2),
        "settings": Protocol(settings(examples=5000, test=2000, epochs=10, seeds=3), hours=0.5),
    },
    "paper": {
        "p1": Protocol(ways_of(P1, few=2000, few_epochs=150), hours=0.2),
        "settings": Protocol(
            settings(examples=50_000, test=10_000, epochs=30, seeds=8), hours=90.0
        ),
    },
}
