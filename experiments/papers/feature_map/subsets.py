"""A few examples of a data set, other ones for every seed."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from experiments import data as datasets
from experiments.training.task import Data


class Subset(NamedTuple):
    """Examples by split, as tasks take them, and what a network for them must fit."""

    data: dict[str, Data]
    shape: tuple[int, ...]
    classes: int


def subset(name: str, seed: int, *, train: int, unseen: int) -> Subset:
    """So many examples to train on and ``unseen`` others, of the training file; and its test set.

    Values are between 0 and 1; every class has its share.
    """
    dataset = datasets.load(name, preprocessing="unit")
    splits = datasets.prepare(dataset, train_limit=train, validation=unseen, seed=seed)
    shared = {"shift": jnp.asarray(dataset.shift), "scale": jnp.asarray(dataset.scale)}
    parts = {
        "train": (splits.train_x, splits.train_y),
        "unseen": (splits.validation_x, splits.validation_y),
        "test": (splits.test_x, splits.test_y),
    }
    data = {
        split: Data({"x": jnp.asarray(x), "y": jnp.asarray(y)}, shared)
        for split, (x, y) in parts.items()
    }
    return Subset(data, dataset.train_x.shape[1:], dataset.classes)
