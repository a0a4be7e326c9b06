"""What is trained: layer-wise learning rates from tail exponents, and controls for each idea in it.

All arms of a protocol share data, network, budget and grid of settings. Where settings are tuned,
a protocol is trained on tuning seeds first, its arms named ``method@setting``; `finals` are the
settings that validation data chose, on other seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
# Seeds of the final runs start here, so that none of them was tuned on.
FINAL_SEED = 100


def method_arms(base: ExperimentConfig, *, prefix: str) -> Arms:
    """Every method at the settings of ``base``; the uniform arm measures with its windows only."""
    return {
        method: replace(
            base,
            name=f"farms/{prefix}/{method}",
            balance=replace(base.balance, metric=metric),
        )
        for method, metric in METHODS.items()
    }


def tuning_arms(
    base: ExperimentConfig,
    *,
    prefix: str,
    rates: Sequence[float],
    spreads: Sequence[float],
    uniform_rates: Sequence[float],
) -> Arms:
    """As many settings for every method: learning rate and range ``1 -+ spread``.

    The uniform arm has no range to tune and gets as many learning rates instead.
    """
    if len(uniform_rates) != len(rates) * len(spreads):
        raise ValueError(
            f"uniform_rates has {len(uniform_rates)} values for {len(rates)} x {len(spreads)} "
            "settings of the others: give as many"
        )
    arms = {}
    for rate in uniform_rates:
        arm = method_arms(_at(base, rate, 0.0), prefix=prefix)["uniform"]
        arms[f"uniform@{rate:g}"] = _named(arm, f"{rate:g}")
    for rate in rates:
        for spread in spreads:
            for method, config in method_arms(_at(base, rate, spread), prefix=prefix).items():
                if method != "uniform":
                    setting = f"{rate:g}-{spread:g}"
                    arms[f"{method}@{setting}"] = _named(config, setting)
    return arms


def finals(tuning: Arms, validation: Mapping[str, float], *, prefix: str, seeds: int) -> Arms:
    """Per method, its best setting on validation data, on seeds that it was not tuned on."""
    best: dict[str, str] = {}
    for arm in tuning:
        method = arm.partition("@")[0]
        if arm in validation and validation[arm] > validation.get(best.get(method, ""), -1.0):
            best[method] = arm
    return {
        method: replace(
            tuning[arm],
            name=f"farms/{prefix}/{method}",
            train=replace(tuning[arm].train, seeds=seeds, seed=FINAL_SEED),
        )
        for method, arm in best.items()
    }


def _at(base: ExperimentConfig, rate: float, spread: float) -> ExperimentConfig:
    low, high = round(1 - spread, 6), round(1 + spread, 6)
    return replace(
        base,
        optimizer=replace(base.optimizer, learning_rate=rate),
        balance=replace(base.balance, low=low, high=high),
    )


def _named(config: ExperimentConfig, setting: str) -> ExperimentConfig:
    return replace(config, name=f"{config.name}-at-{setting}")


def _smoke() -> dict[str, Arms]:
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
    arms = method_arms(base, prefix="digits")
    main = ("uniform", "tempbalance", "farms", "debiased", "shape-only")
    return {"digits": {method: arms[method] for method in main}}


def _small() -> dict[str, Arms]:
    """A residual and a dense network on part of CIFAR-10, tuned on 1,000 other images.

    Two CPU cores decide the size: images halved to 16 x 16, 2,000 of them (5,000 for the dense
    network), ten epochs, 2,000 test images.
    """
    data = DataConfig("cifar16", batch_size=50, train_limit=2000, validation=1000, test_limit=2000)
    train = TrainConfig(epochs=10, seeds=1, evaluate_every=5, measure_every=2, measures=("tails",))
    resnet = ExperimentConfig(
        "farms",
        data=data,
        model=ModelConfig("resnet", depth=8),
        optimizer=OptimizerConfig("sgd", schedule="cosine", weight_decay=5e-4),
        # A low limit, so that the stem and the head, the least square of all, take part.
        balance=BalanceConfig("farms", window=16, samples=5, min_eigenvalues=8),
        train=replace(train, seed_axis="stepwise"),
    )
    dense = replace(
        resnet,
        data=replace(data, train_limit=5000),
        model=ModelConfig("mlp", hidden=(256, 32, 256, 64)),
        balance=replace(resnet.balance, window=32),
        train=replace(train, seed_axis="map"),
    )
    return {
        "resnet8-tuning": tuning_arms(
            resnet, prefix="resnet8-tuning", rates=(0.05, 0.1), spreads=(0.5, 0.9),
            uniform_rates=(0.025, 0.05, 0.1, 0.2),
        ),
        "mlp-tuning": tuning_arms(
            dense, prefix="mlp-tuning", rates=(0.01, 0.02), spreads=(0.5, 0.9),
            uniform_rates=(0.005, 0.01, 0.02, 0.04),
        ),
    }  # fmt: skip


def _paper() -> dict[str, Arms]:
    """The published protocol on CIFAR-10, every method on the published grid of ranges.

    Ours differs in the data: CIFAR-10 for CIFAR-100.
    """
    resnet = ExperimentConfig(
        "farms",
        data=DataConfig("cifar10", batch_size=128, validation=5000, augment="crop_flip"),
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
        "resnet18-tuning": tuning_arms(
            resnet, prefix="resnet18-tuning", rates=(0.1,), spreads=spreads,
            uniform_rates=(0.025, 0.05, 0.1, 0.2, 0.4),
        ),
        "vgg16-tuning": tuning_arms(
            vgg, prefix="vgg16-tuning", rates=(0.05,), spreads=spreads,
            uniform_rates=(0.0125, 0.025, 0.05, 0.1, 0.2),
        ),
    }  # fmt: skip


PRESETS: dict[str, dict[str, Arms]] = {"smoke": _smoke(), "small": _small(), "paper": _paper()}
FINAL_SEEDS = {"smoke": 3, "small": 5, "paper": 5}
