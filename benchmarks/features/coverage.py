"""How often a jackknife interval covers the number of the population, which is known."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Table, Target, row
from spectral_jax import features
from spectral_jax.features import FeatureMoments, Head

CLASSES, BLOCKS = 4, 16
LEAST, MOST = Target(">=", 0.90), Target("<=", 0.98)


class Size(NamedTuple):
    rows: int
    p: int
    draws: int


FULL = Size(2000, 16, 200)
SMOKE = Size(64, 4, 3)


class Population(NamedTuple):
    """Normal rows about class means, all classes alike in size; and a head."""

    means: jax.Array  # [c, p]
    root: jax.Array  # [p, p]: root^T root is the covariance within a class
    head: Head

    @property
    def covariance(self) -> np.ndarray:
        apart = np.asarray(self.means - self.means.mean(0))
        return np.asarray(self.root.T @ self.root) + apart.T @ apart / len(apart)


def coverage(size: Size) -> Table:
    """Each number over the draws: its value in the population, and the share of intervals."""
    with jax.enable_x64(True):
        population = _population(size.p)
        truth = _truth(population)
        found = _intervals(population, size)
    rows = []
    for name, value in truth.items():
        low, high = (np.asarray(each[name]) for each in (found.low, found.high))
        share = float(np.mean((low <= value) & (value <= high)))
        told = f"{100 * share:.1f} % cover {value:.4f}, mean width {np.mean(high - low):.4f}"
        target = LEAST if share < 0.95 else MOST
        rows.append(row(name, told, target=target, value=share))
    note = (
        f"95 % intervals of `features.jackknife` with {BLOCKS} blocks, over {size.draws} draws of "
        f"{size.rows} rows: {CLASSES} normal classes, p = {size.p}. The target is 90 to 98 %, of "
        "which the nearer end is given; the number of draws alone makes 92 to 98 % of an exact 95."
    )
    return Table("Intervals that cover", note, rows)


def _population(p: int) -> Population:
    rng = np.random.default_rng(0)
    root = (np.arange(1, p + 1) ** -0.5)[:, None] * np.linalg.qr(rng.standard_normal((p, p)))[0]
    means, kernel = rng.standard_normal((2, CLASSES, p))
    return Population(jnp.asarray(means), jnp.asarray(root), Head(jnp.asarray(kernel.T)))


NUMBERS: dict[str, Callable[[FeatureMoments, Head], Any]] = {
    "participation ratio": lambda m, head: features.effective_dimension(m, kind="participation"),
    "D_LR, centre-first, corrected": lambda m, head: features.richness(
        m, head=head, order="centre-first", corrected=True).value,
    "NC1, quotient of traces": lambda m, head: features.neural_collapse(m).nc1_quotient,
}  # fmt: skip


def _truth(population: Population) -> dict[str, float]:
    """In NumPy, from the covariance of the population."""
    covariance, kernel = population.covariance, np.asarray(population.head.kernel)
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(values)
    basis = np.linalg.qr(root.T @ kernel)[0]
    used = np.sum((root @ basis) ** 2)
    within = np.sum(np.asarray(population.root) ** 2)
    numbers = (
        values.sum() ** 2 / np.sum(values**2),
        1 - used / (np.linalg.norm(values) * CLASSES**0.5),
        within / (values.sum() - within),
    )
    return dict(zip(NUMBERS, map(float, numbers), strict=True))


def _intervals(population: Population, size: Size) -> Any:
    def one(key: jax.Array) -> Any:
        of_class, of_row = jax.random.split(key)
        labels = jax.random.randint(of_class, (size.rows,), 0, CLASSES)
        noise = jax.random.normal(of_row, (size.rows, size.p)) @ population.root
        m = features.of(population.means[labels] + noise, labels=labels, classes=CLASSES,
                        fourth=True, blocks=BLOCKS)  # fmt: skip

        def numbers(m: FeatureMoments) -> dict[str, Any]:
            return {name: number(m, population.head) for name, number in NUMBERS.items()}

        return features.jackknife(m, numbers)

    # Not under one `jit`: merges compile once each way that they are called, not 48 times.
    return jax.vmap(one)(jax.random.split(jax.random.key(0), size.draws))
