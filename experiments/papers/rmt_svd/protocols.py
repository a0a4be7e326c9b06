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

Arms = dict[str, ExperimentConfig]


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


def figure5_arms(data: DataConfig, *, hidden: tuple[int, ...], train: TrainConfig) -> Arms:
    """The same network with linear logits, and with a ReLU on them as published."""
    linear = ExperimentConfig(
        "rmt_svd/figure5/linear",
        data=data,
        model=ModelConfig(hidden=hidden),
        optimizer=OptimizerConfig("sgd", learning_rate=0.08, momentum=0.9),
        train=train,
    )
    relu = replace(linear, name="rmt_svd/figure5/relu-logits", paper_compat=("relu_logits",))
    return {"linear": linear, "relu-logits": relu}


def published_arms(name: str) -> Arms:
    """A published network on all of MNIST, unpruned."""
    net = PUBLISHED[name]
    arms = figure5_arms(
        DataConfig("mnist", batch_size=128, preprocessing="unit"),
        hidden=net.widths[1:-1],
        train=TrainConfig(epochs=net.epochs, seeds=5, measures=("bulk",), evaluate_every=3,
                          measure_every=30),
    )  # fmt: skip
    return {arm: replace(config, name=f"rmt_svd/{name}/{arm}") for arm, config in arms.items()}


def _mnist(limit: int | None, epochs: int) -> Arms:
    return figure5_arms(
        DataConfig("mnist", batch_size=128, preprocessing="unit", train_limit=limit),
        hidden=(1000,),
        train=TrainConfig(epochs=epochs, seeds=8, measures=("bulk",), seed_axis="map"),
    )


def _smoke() -> Arms:
    """Linear logits alone: what takes the time is compilation, and the loop has both."""
    arms = figure5_arms(
        DataConfig("digits", batch_size=32, preprocessing="unit"),
        hidden=(128,),
        train=TrainConfig(epochs=4, seeds=3, measures=("bulk",), measure_every=2, seed_axis="map"),
    )
    return {"linear": arms["linear"]}


PRESETS: dict[str, dict[str, Arms]] = {
    "smoke": {"figure5": _smoke()},
    "small": {"figure5": _mnist(10_000, 10)},
    "paper": {
        "figure5": _mnist(None, 10),
        **{name: published_arms(name) for name in PUBLISHED},
    },
}
