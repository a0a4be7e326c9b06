"""Subsets of the training set and label noise: pure functions of arrays and a seed.

The draws are independent of each other: more label noise does not move the subset, and a larger
subset or a noisier set contains the smaller one of the same seed, so sweeps compare like with like.
"""

from typing import NamedTuple

import numpy as np

from experiments.data.base import Dataset
from experiments.errors import UserError


class Splits(NamedTuple):
    """What a run trains on, tunes on and reports on; `validation_*` may be empty."""

    train_x: np.ndarray
    train_y: np.ndarray
    validation_x: np.ndarray
    validation_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def stratified_order(y: np.ndarray, *, seed: int) -> np.ndarray:
    """Return a random permutation of `[n]` in which every run of examples is stratified.

    The examples of a class are shuffled and spread evenly from a random start, so any stretch of
    the order holds each class in proportion, to within one example at either end. Examples that
    are sequences, `y` `[n, t]`, have no class: their order is only random.
    """
    rng = np.random.default_rng([seed, 0])
    if y.ndim > 1:
        return rng.permutation(len(y))
    position = np.empty(len(y))
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        position[members] = (np.arange(len(members)) + rng.uniform()) / len(members)
    return np.argsort(position, kind="stable")


def stratified_split(y: np.ndarray, *, test: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sorted indices of the training and of `test` test examples, classes in proportion."""
    if not 0 < test < len(y):
        raise ValueError(f"test={test} must lie between 1 and {len(y) - 1}, the examples less one")
    order = stratified_order(y, seed=seed)
    return np.sort(order[:-test]), np.sort(order[-test:])


def corrupt_labels(y: np.ndarray, fraction: float, classes: int, seed: int) -> np.ndarray:
    """Return labels of which exactly round(fraction n) are wrong, each uniformly so.

    Symmetric noise without self-transitions: `fraction` is the share of *wrong* labels. (Replacing
    labels by uniform draws, which may hit the true class, corrupts fraction (1 - 1/classes).)
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction={fraction} must lie in [0, 1], the share of wrong labels")
    if classes < 2:
        raise ValueError(f"classes={classes} must be at least 2 for a label to be wrong")
    rng = np.random.default_rng([seed, 1])
    chosen = rng.permutation(len(y))[: round(fraction * len(y))]
    offset = rng.integers(1, classes, size=len(y))[chosen]
    noisy = y.copy()
    noisy[chosen] = (y[chosen] + offset) % classes
    return noisy


def prepare(
    dataset: Dataset,
    *,
    train_limit: int | None = None,
    validation: int = 0,
    label_noise: float = 0.0,
    seed: int = 0,
) -> Splits:
    """Carve `validation` examples off the training set, keep `train_limit` others, add label noise.

    Both subsets are stratified and keep the order of the file; validation and test labels stay
    clean. Without a subset the images are not copied. Raises `UserError` (2) if there are too few
    examples.
    """
    x, y = dataset.train_x, dataset.train_y
    limit = len(y) - validation if train_limit is None else train_limit
    if validation < 0 or limit < 1 or limit + validation > len(y):
        raise UserError(
            f"data.train_limit={train_limit} and data.validation={validation} do not fit into the "
            f"{len(y)} training examples of {dataset.name}; lower one of them"
        )
    if label_noise and y.ndim > 1:
        raise UserError(
            f"data.label_noise={label_noise} needs one label per example; {dataset.name} has "
            "sequences: set it to 0"
        )
    train_x, train_y, held = x, y, np.arange(0)
    if limit < len(y):
        order = stratified_order(y, seed=seed)
        kept, held = np.sort(order[:limit]), np.sort(order[len(y) - validation :])
        train_x, train_y = x[kept], y[kept]
    if label_noise:
        train_y = corrupt_labels(train_y, label_noise, dataset.classes, seed)
    return Splits(train_x, train_y, x[held], y[held], dataset.test_x, dataset.test_y)
