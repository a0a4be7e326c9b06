"""What every data set is: arrays with their normalisation, and an entry in the registry."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.data.files import Source

SPLIT_SEED = 0  # the split of a data set that has no published one is part of its definition


class Dataset(NamedTuple):
    """A classification data set in memory; a model sees `(x - shift) * scale` in float32.

    Images are uint8 `[n, h, w]` or `[n, h, w, channels]` (float32 where they were resized),
    features float32 `[n, p]`, labels int32 `[n]`. Text is uint8 tokens `[n, context]` whose labels
    are the next tokens, int32 `[n, context]`. `shift` and `scale` are float32 and broadcast
    over one example. `sha256` is one digest over the source files.
    """

    name: str
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    shift: np.ndarray
    scale: np.ndarray
    classes: int
    sha256: str


class Spec(NamedTuple):
    """The registry's entry: what a person is told, the files, and the function that reads them.

    `load(files, preprocessing=..., split=...)` returns the `Dataset`; `splits` are the values of
    `split` that it understands.
    """

    name: str
    what: str
    shape: str
    size: str
    licence: str
    source: Source
    load: Callable[..., Dataset]
    splits: tuple[str, ...] = ("stratified", "released")


def unscaled() -> tuple[np.ndarray, np.ndarray]:
    """Return the shift and scale that change nothing."""
    return np.zeros((), np.float32), np.ones((), np.float32)


def from_mean_std(mean: object, std: object) -> tuple[np.ndarray, np.ndarray]:
    """Return shift = mean and scale = 1 / std as float32; a constant feature is only centred."""
    spread = np.asarray(std, np.float64)
    scale = 1.0 / np.where(spread > 0, spread, 1.0)
    return np.asarray(mean, np.float32), scale.astype(np.float32)


def in_halves(dataset: Dataset) -> Dataset:
    """Return the same with two classes: the lower and the upper half of the old ones."""
    half = dataset.classes // 2
    train_y, test_y = (
        (labels >= half).astype(labels.dtype) for labels in (dataset.train_y, dataset.test_y)
    )
    return dataset._replace(name=f"{dataset.name}2", train_y=train_y, test_y=test_y, classes=2)
