"""What is swept: one hidden layer on images, and the three numbers that trials differ in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from experiments.config import (
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    PenaltyConfig,
    TrainConfig,
    dump_yaml,
)
from experiments.sweep.space import Log

NUMBERS = ("optimizer.learning_rate", "penalty.strength", "optimizer.weight_decay")


def config(
    data: DataConfig, *, hidden: tuple[int, ...], epochs: int, **train: Any
) -> ExperimentConfig:
    """A protocol whose every epoch is evaluated, on one seed."""
    return ExperimentConfig(
        "sweep-benchmark",
        data=data,
        model=ModelConfig("mlp", hidden=hidden),
        optimizer=OptimizerConfig("sgd", momentum=0.9),
        penalty=PenaltyConfig("l2", 1e-5),
        train=TrainConfig(epochs=epochs, seeds=1, measures=(), seed_axis="map", **train),
    )


def space(each: int) -> dict[str, Log]:
    """A grid of ``each`` cubed trials: rate, strength of the penalty, decay."""
    ranges = ((1e-3, 1e-1), (1e-6, 1e-3), (1e-6, 1e-3))
    return {name: Log(*ends, each) for name, ends in zip(NUMBERS, ranges, strict=True)}


def written(experiment: ExperimentConfig, folder: Path) -> Path:
    """The configuration as a file, for the command line."""
    path = folder / "experiment.yaml"
    path.write_text(dump_yaml(experiment), encoding="utf-8")
    return path


def environment(compiled: Path) -> dict[str, str]:
    """Of a process whose compiled programs are kept in a folder of its own."""
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
