"""What the house's trainer trains: the network of Fig. 5, and the published ones, unpruned.

Settings are those of the released code (jtj5311/NN-RMT-SVD@1838d93) where text and code differ.
Logits are linear unless an arm says otherwise: as published they go through a ReLU, which can leave
a class without an answer for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from experiments.config import (
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from experiments.papers.paper import Protocol

BULK = TrainConfig(epochs=10, seeds=8, measures=("bulk",), seed_axis="map")
MNIST = DataConfig("mnist", batch_size=128, preprocessing="unit")
DIGITS = DataConfig("digits", batch_size=32, preprocessing="unit")


@dataclass(frozen=True)
class Published:
    """A network of arXiv 2303.08986: its layers, its chain of widths after the splits, its numbers.

    plain and split are accuracies in percent; hours are ours, of training it once on two cores.
    """

    widths: tuple[int, ...]
    epochs: int
    plain: float
    split: float
    hours: float
    dense: int | None = None
    chain: tuple[int, ...] = ()
    parameters: int | None = None


PUBLISHED = {
    "ex4.3": Published(
        (784, 3000, 3000, 500, 10), 90, 86.0, 97.5, 2.3, dense=12_863_510, parameters=3_881_124,
        chain=(784, 367, 176, 89, 54, 35, 3000, 143, 293, 627, 1366, 629, 294, 139, 3000,
               71, 124, 241, 500, 10),
    ),
    "ex4.4": Published((784, 1500, 1500, 500, 500, 10), 300, 88.0, 97.0, 2.7, dense=4_435_010),
    "ex4.5": Published(
        (784, 1500, 1500, 500, 500, 10), 300, 88.0, 95.0, 2.7, parameters=1_943_563,
        chain=(784, 354, 164, 1500, 144, 309, 677, 309, 144, 1500, 107, 228, 500,
               51, 107, 227, 107, 53, 500, 10),
    ),
    "ex4.6": Published(
        (784, 2500, 2500, 2500, 2500, 500, 10), 30, 86.4, 98.6, 1.3, dense=21_975_510
    ),
    "ex4.7": Published(
        (784, 3000, 3000, 3000, 10), 90, 78.0, 88.0, 3.7, dense=20_391_010, parameters=17_716_113,
        chain=(784, 361, 3000, 1359, 3000, 1359, 3000, 10),
    ),
}  # fmt: skip


def figure5(data: DataConfig, train: TrainConfig, *, hidden: tuple[int, ...]) -> Protocol:
    """The same network with linear logits, and with a ReLU on them as published."""
    linear = ExperimentConfig(
        "figure5",
        data=data,
        model=ModelConfig(hidden=hidden),
        optimizer=OptimizerConfig("sgd", learning_rate=0.08, momentum=0.9),
        train=train,
    )
    return Protocol(
        {"linear": linear, "relu-logits": replace(linear, paper_compat=("relu_logits",))}
    )


def published(name: str) -> Protocol:
    """A published network on all of MNIST, unpruned."""
    net = PUBLISHED[name]
    train = replace(BULK, epochs=net.epochs, seeds=5, evaluate_every=3, measure_every=30)
    return replace(figure5(MNIST, train, hidden=net.widths[1:-1]), hours=10 * net.hours)


PROTOCOLS: dict[str, dict[str, Protocol]] = {
    "smoke": {
        "figure5": figure5(DIGITS, replace(BULK, epochs=4, seeds=3, measure_every=2), hidden=(128,))
    },
    "small": {
        "figure5": figure5(replace(MNIST, train_limit=10_000, subsets="own"), BULK, hidden=(1000,))
    },
    "paper": {
        "figure5": figure5(MNIST, BULK, hidden=(1000,)),
        **{name: published(name) for name in PUBLISHED},
    },
}
