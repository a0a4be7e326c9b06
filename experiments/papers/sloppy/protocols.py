"""What is trained: the networks whose curvature and whose bounds are looked at.

Settings are those of the released code (grasp-lyrl/sloppy@40a8f55): Adam, a cosine, batches of 500,
pixels from 0 to 1. Its cosine ends at a quarter of the rate, ours at 0. Of the training set 5,000
examples are set aside, as there, for priors that look at data.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.config import (
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from experiments.papers.paper import Protocol

TITLES = {
    "fc2": "dense network, two classes",
    "lenet": "LeNet, ten classes",
    "digits": "small network, digits",
}


def _networks(*, seeds: int, hours: float) -> Protocol:
    """FC-600-2 and LeNet on MNIST."""
    train = replace(FC_600_2.train, seeds=seeds)
    lenet = replace(
        FC_600_2,
        data=replace(FC_600_2.data, name="mnist"),
        model=ModelConfig("lenet_tanh"),
        train=train,
    )
    return Protocol({"fc2": replace(FC_600_2, train=train), "lenet": lenet}, hours=hours)


def _smoke() -> Protocol:
    """64-20-20-2 on the digits, at a rate that teaches them in a few epochs."""
    dense = ExperimentConfig(
        "sloppy",
        data=DataConfig("digits2", batch_size=50, validation=200, preprocessing="unit"),
        model=ModelConfig(hidden=(20, 20)),
        optimizer=OptimizerConfig("adam", learning_rate=0.01, schedule="cosine"),
        train=TrainConfig(epochs=20, seeds=2, evaluate_every=20, measures=(), seed_axis="map"),
    )
    return Protocol({"digits": dense})


FC_600_2 = ExperimentConfig(
    "sloppy",
    data=DataConfig("mnist2", batch_size=500, validation=5000, preprocessing="unit"),
    model=ModelConfig(hidden=(600, 600)),
    optimizer=OptimizerConfig("adam", learning_rate=2e-3, schedule="cosine"),
    train=TrainConfig(epochs=20, evaluate_every=10, measures=(), seed_axis="map"),
)
PROTOCOLS = {
    "smoke": {"networks": _smoke()},
    "small": {"networks": _networks(seeds=3, hours=0.4)},
    "paper": {"networks": _networks(seeds=8, hours=1.2)},
}
