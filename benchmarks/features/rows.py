"""Features as a trained network has them, made from a seed."""

from typing import NamedTuple

import numpy as np


class Rows(NamedTuple):
    """Features, labels, and the head whose inputs they are."""

    features: np.ndarray
    labels: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray

    @property
    def classes(self) -> int:
        return self.kernel.shape[1]

    @property
    def outputs(self) -> np.ndarray:
        return self.features @ self.kernel + self.bias


def trained(n: int, p: int, *, classes: int = 10, dtype: str = "float32", seed: int = 0) -> Rows:
    """ReLU of class means and of noise whose spectrum falls; classes of unequal size; a head.

    The head is what such a network has half way: the class means, and something else besides.
    """
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(2, classes + 2)
    labels = rng.choice(classes, n, p=share / share.sum())
    means = 6 * rng.standard_normal((classes, p)) / p**0.5
    fall = np.arange(1, p + 1) ** -0.75
    noise = (rng.standard_normal((n, p)) * fall) @ np.linalg.qr(rng.standard_normal((p, p)))[0]
    features = np.maximum(means[labels] + 4 * noise + 0.3, 0)
    kernel = 0.3 * (means - means.mean(0)).T + 0.1 * rng.standard_normal((p, classes))
    bias = 4 * rng.standard_normal(classes)
    return Rows(features.astype(dtype), labels, kernel.astype(dtype), bias.astype(dtype))


def views(inputs: int = 100, each: int = 10, p: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Features of so many views of each input, and which input they are of."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((inputs, p)) * np.arange(1, p + 1) ** -0.5
    rows = np.repeat(centres, each, axis=0) + 0.5 * rng.standard_normal((inputs * each, p))
    return rows.astype("float32"), np.repeat(np.arange(inputs), each)


def independent(n: int = 200, p: int = 512, q: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Features that have nothing to do with each other; of this seed their CKA is below 0."""
    rng = np.random.default_rng(3)
    return tuple(rng.standard_normal((n, k)).astype("float32") for k in (p, q))
