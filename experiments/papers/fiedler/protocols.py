"""What is trained: the released protocols, the peer's, and a fair comparison no paper makes.

Settings are those of the released code (edrictam/FiedlerRegularization@76408bf), not of the papers'
text, which was not available to us. Where that code does something it cannot have meant, the sound
version is trained; `paper_compat` options put the original back where a number depends on it.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.config import (
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    PenaltyConfig,
    TrainConfig,
)
from experiments.papers.paper import Protocol, Tuning

Arms = dict[str, ExperimentConfig]

RELEASED = ("epoch_start_and_every_100", "whole_graph")


def released_arms(
    dataset: str,
    *,
    hidden: tuple[int, ...],
    dropout: float,
    train: TrainConfig,
    data: DataConfig | None = None,
) -> Arms:
    """The released code's arms on one data set, one without penalty, one strong enough to act."""
    base = ExperimentConfig(
        name="fiedler",
        data=data or DataConfig(dataset),
        model=ModelConfig(hidden=hidden),
        optimizer=OptimizerConfig("sgd", learning_rate=1e-3, momentum=0.9),
        train=train,
    )
    fiedler = PenaltyConfig("fiedler", 0.01, refresh="schedule")
    return {
        "none": base,
        "fiedler": replace(base, penalty=fiedler, paper_compat=RELEASED),
        "fiedler-100": replace(
            base, penalty=replace(fiedler, strength=100.0), paper_compat=RELEASED
        ),
        "weight-decay": replace(
            base, penalty=PenaltyConfig("l2", 1e-2), paper_compat=("coupled_l2",)
        ),
        "l1": replace(base, penalty=PenaltyConfig("l1", 1e-3), paper_compat=("l1_biases",)),
        "dropout": replace(base, model=replace(base.model, dropout=dropout)),
    }


def peer_arms(*, train: TrainConfig) -> Arms:
    """The peer's net on 7 x 7 MNIST, with its penalty (halved, as released) and without."""
    control = ExperimentConfig(
        name="fiedler",
        data=DataConfig("mnist7", batch_size=128),
        model=ModelConfig(hidden=(64, 64, 64)),
        optimizer=OptimizerConfig("adam", learning_rate=1e-3),
        train=train,
    )
    cluster = replace(
        control,
        penalty=PenaltyConfig("cluster", 0.1),
        paper_compat=("half_gradient", "rescale_units"),
    )
    return {"control": control, "cluster": cluster}


def fair_arms(base: ExperimentConfig, *, nodes: int) -> Arms:
    """Every method at four strengths, to be tuned on validation data.

    lambda_2 and its layer quotient pull on a weight like 1 / N: strengths are multiples of N.
    """
    by_size = tuple(nodes * strength for strength in (1e-5, 1e-4, 3e-4, 1e-3))
    grids = {
        "l2": (1e-4, 1e-3, 3e-3, 1e-2),
        "l1": (1e-5, 1e-4, 3e-4, 1e-3),
        "fiedler": by_size,
        "layer_quotient": by_size,
        "fiedler_normalised": (0.01, 0.1, 1.0, 10.0),
        "spectral_gap": (0.01, 0.1, 1.0, 10.0),
    }
    arms = {"none": base}
    for rate in (0.25, 0.5, 0.7, 0.85):
        arms[f"dropout@{rate:g}"] = replace(base, model=replace(base.model, dropout=rate))
    for name, grid in grids.items():
        for strength in grid:
            penalty = PenaltyConfig(name, float(f"{strength:.3g}"))
            arms[f"{name}@{penalty.strength:g}"] = replace(base, penalty=penalty)
            if name not in ("l1", "l2"):
                arms[f"{name}-proximal@{penalty.strength:g}"] = replace(
                    base, penalty=replace(penalty, mode="proximal")
                )
    return arms


def _digits() -> Protocol:
    """The released arms at smoke scale."""
    train = TrainConfig(epochs=6, seeds=3, evaluate_every=2, measure_every=2, seed_axis="map")
    data = DataConfig("digits", batch_size=32)
    arms = released_arms("digits", hidden=(64, 64), dropout=0.4, train=train, data=data)
    # On little data six epochs of the released steps, 1e-3, would teach nothing.
    faster = OptimizerConfig("sgd", learning_rate=0.02, momentum=0.9)
    return Protocol({arm: replace(config, optimizer=faster) for arm, config in arms.items()})


def _images(dataset: str, *, dropout: float, hours: float) -> Protocol:
    train = TrainConfig(epochs=10, seeds=8)
    return Protocol(
        released_arms(dataset, hidden=(500, 500, 500), dropout=dropout, train=train), hours=hours
    )


def _few_samples(*, tuning_seeds: int, seeds: int, hours: float) -> Protocol:
    """1,000 MNIST digits, a fifth mislabelled: a net of 270,000 weights can learn them by heart."""
    base = ExperimentConfig(
        name="fiedler",
        data=DataConfig(
            "mnist",
            batch_size=50,
            train_limit=1000,
            validation=2000,
            label_noise=0.2,
            subsets="own",
        ),
        model=ModelConfig(hidden=(256, 256)),
        optimizer=OptimizerConfig("sgd", learning_rate=0.02, momentum=0.9),
        train=TrainConfig(epochs=40, seeds=tuning_seeds, evaluate_every=10, measure_every=40),
    )
    return Protocol(fair_arms(base, nodes=784 + 256 + 256 + 10), Tuning(seeds=seeds), hours)


MNIST = _images("mnist", dropout=0.4, hours=0.5)
PEER = Protocol(peer_arms(train=TrainConfig(epochs=10, seeds=10, measure_every=5)), hours=0.1)
TCGA = Protocol(
    released_arms(
        "tcga",
        hidden=(50, 50, 50),
        dropout=0.5,
        train=TrainConfig(epochs=5, seeds=8),
        data=DataConfig("tcga", preprocessing="raw", split="released"),
    ),
    hours=0.1,
)
PROTOCOLS: dict[str, dict[str, Protocol]] = {
    "smoke": {"digits": _digits()},
    "small": {
        "mnist": MNIST,
        "peer": PEER,
        "fair": _few_samples(tuning_seeds=4, seeds=8, hours=0.25),
    },
    "paper": {
        "mnist": MNIST,
        "cifar10": _images("cifar10", dropout=0.5, hours=1.5),
        "tcga": TCGA,
        "peer": PEER,
        "fair": _few_samples(tuning_seeds=8, seeds=16, hours=0.5),
    },
}
