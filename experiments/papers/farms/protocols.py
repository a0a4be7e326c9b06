"""What is trained: layer-wise learning rates from tail exponents, and controls for each idea in it.

All arms of a protocol share data, network, budget and grid of settings: ``method@setting``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from experiments.config import (
    BalanceConfig,
    BalanceMetric,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from experiments.papers.paper import Protocol, Tuning

Arms = dict[str, ExperimentConfig]

# Arm -> metric of `BalanceConfig`.
METHODS: dict[str, BalanceMetric] = {
    "uniform": "none",
    "tempbalance": "hill",
    "farms": "farms",
    "debiased": "debiased",
    "shape-only": "shape_only",
    "shuffled": "shuffled",
    "random-windows": "random_windows",
}
TITLES = {
    "uniform": "one learning rate",
    "tempbalance": "TempBalance (plain exponent)",
    "farms": "FARMS",
    "debiased": "plain exponent, debiased by the closed form",
    "shape-only": "closed form alone: shapes, no weights",
    "shuffled": "FARMS' exponents on random layers",
    "random-windows": "FARMS with windows at random places",
}
SEEDS = 8  # of the final runs


def methods(base: ExperimentConfig) -> Arms:
    """Every method at the settings of ``base``; the uniform arm measures with its windows only."""
    return {
        method: replace(base, balance=replace(base.balance, metric=metric))
        for method, metric in METHODS.items()
    }


def tuned(
    base: ExperimentConfig,
    *,
    rates: Sequence[float],
    spreads: Sequence[float],
    uniform_rates: Sequence[float],
    seeds: int,
) -> Protocol:
    """As many settings for every method: learning rate and range ``1 -+ spread``.

    The uniform arm has no range to tune and gets as many learning rates instead. ``seeds`` are
    those of the final runs.
    """
    if len(uniform_rates) != len(rates) * len(spreads):
        raise ValueError(
            f"uniform_rates has {len(uniform_rates)} values for {len(rates)} x {len(spreads)} "
            "settings of the others: give as many"
        )
    arms = {f"uniform@{rate:g}": methods(_at(base, rate, 0.0))["uniform"] for rate in uniform_rates}
    for rate in rates:
        for spread in spreads:
            at = methods(_at(base, rate, spread))
            arms |= {f"{m}@{rate:g}-{spread:g}": at[m] for m in METHODS if m != "uniform"}
    return Protocol(arms, Tuning(seeds=seeds))


def _at(base: ExperimentConfig, rate: float, spread: float) -> ExperimentConfig:
    low, high = round(1 - spread, 6), round(1 + spread, 6)
    return replace(
        base,
        optimizer=replace(base.optimizer, learning_rate=rate),
        balance=replace(base.balance, low=low, high=high),
    )


def _smoke() -> dict[str, Protocol]:
    """Digits: layers of aspect ratio 1 and 4, and the main arms at one setting.

    What takes the time is compilation: hence two shapes only, and not all arms.
    """
    base = ExperimentConfig(
        "farms",
        data=DataConfig("digits", batch_size=32),
        model=ModelConfig(hidden=(64, 64, 64, 256)),
        optimizer=OptimizerConfig("sgd", learning_rate=0.05, schedule="cosine"),
        balance=BalanceConfig("farms", window=32, samples=5, min_eigenvalues=16),
        train=TrainConfig(
            epochs=4, seeds=3, evaluate_every=2, measures=("tails",), seed_axis="map"
        ),
    )
    arms = methods(base)
    main = ("uniform", "tempbalance", "farms", "debiased", "shape-only")
    return {"digits": Protocol({method: arms[method] for method in main})}


def _small() -> dict[str, Protocol]:
    """A residual and a dense network on part of CIFAR-10, tuned on 1,000 other images.

    Two CPU cores decide the size: images halved to 16 x 16, 2,000 of them (5,000 for the dense
    network), ten epochs, 2,000 test images.
    """
    data = DataConfig(
        "cifar16", batch_size=50, train_limit=2000, validation=1000, test_limit=2000, subsets="own"
    )
    train = TrainConfig(
        epochs=10, seeds=1, evaluate_every=5, measure_every=2, measures=("tails",), seed_axis="map"
    )
    resnet = ExperimentConfig(
        "farms",
        data=data,
        model=ModelConfig("resnet", depth=8),
        optimizer=OptimizerConfig("sgd", schedule="cosine", weight_decay=5e-4),
        # A low limit, so that the stem and the head, the least square of all, take part.
        balance=BalanceConfig("farms", window=16, samples=5, min_eigenvalues=8),
        train=train,
    )
    dense = replace(
        resnet,
        data=replace(data, train_limit=5000),
        model=ModelConfig("mlp", hidden=(256, 32, 256, 64)),
        balance=replace(resnet.balance, window=32),
    )
    return {
        "resnet8": tuned(
            resnet, rates=(0.05, 0.1), spreads=(0.5, 0.9),
            uniform_rates=(0.025, 0.05, 0.1, 0.2), seeds=SEEDS,
        ),
        "mlp": tuned(
            dense, rates=(0.01, 0.02), spreads=(0.5, 0.9),
            uniform_rates=(0.005, 0.01, 0.02, 0.04), seeds=SEEDS,
        ),
    }  # fmt: skip


def _paper() -> dict[str, Protocol]:
    """The published protocol on CIFAR-10, every method on the published grid of ranges.

    Ours differs in the data: CIFAR-10 for CIFAR-100.
    """
    resnet = ExperimentConfig(
        "farms",
        data=DataConfig(
            "cifar10", batch_size=128, validation=5000, subsets="own", augment="crop_flip"
        ),
        model=ModelConfig("resnet_imagenet", depth=18, stem="cifar"),
        optimizer=OptimizerConfig("sgd", schedule="cosine_by_epoch", weight_decay=5e-4),
        balance=BalanceConfig("farms"),
        train=TrainConfig(
            epochs=200, seeds=1, evaluate_every=10, measure_every=10, measures=("tails",),
            seed_axis="map",
        ),
    )  # fmt: skip
    vgg = replace(resnet, model=ModelConfig("vgg", depth=16))
    spreads = (0.9, 0.8, 0.7, 0.6, 0.5)
    return {
        "resnet18": tuned(
            resnet, rates=(0.1,), spreads=spreads,
            uniform_rates=(0.025, 0.05, 0.1, 0.2, 0.4), seeds=SEEDS,
        ),
        "vgg16": tuned(
            vgg, rates=(0.05,), spreads=spreads,
            uniform_rates=(0.0125, 0.025, 0.05, 0.1, 0.2), seeds=SEEDS,
        ),
    }  # fmt: skip


PROTOCOLS = {"smoke": _smoke(), "small": _small(), "paper": _paper()}
