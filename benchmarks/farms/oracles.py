"""The closed forms and random draws that our exponents have to meet."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Table, Target, row
from spectral_jax.tails import (
    farms_eigenvalues,
    hill_alpha,
    marchenko_pastur_alpha,
    null_alpha,
    power_law_fit,
)

# Ratio to exponent: `alpha(q)` of the median rule, by quadrature, good to 1e-5.
NULL = {
    1.0: 2.12168,
    0.5: 2.70584,
    4096 / 11008: 2.99916,
    0.25: 3.45459,
    0.125: 4.46992,
    1 / 64: 10.62283,
}
PARETO = (1.5, 2.0, 3.0, 5.0)


class Size(NamedTuple):
    draws: int
    shapes: tuple[tuple[int, int], ...]
    samples: int


FULL = Size(400, ((64, 64), (128, 128), (256, 256), (128, 512), (256, 2048)), 4000)
SMOKE = Size(20, ((32, 32), (32, 64)), 400)


def oracles(size: Size) -> Table:
    """Closed forms, random matrices, power laws."""
    rows = [*_closed_forms(), *_draws(size), *_windows(size), *_pareto(size)]
    note = (
        f"Means over {size.draws} Gaussian matrices of each shape, float32. 'Peer' is the oracle; "
        "the ratio column is the deviation the target is about: absolute for closed forms, in "
        "standard errors of the mean for draws (a correct mean and spread give less than 4 in all "
        "but one of 10,000), relative for power laws."
    )
    return Table("Closed-form oracles", note, rows)


def _closed_forms():
    for q, alpha in NULL.items():
        ours = marchenko_pastur_alpha(q)
        apart = abs(ours - alpha)
        yield row(
            f"alpha({q:.4g})", f"{ours:.6f}", alpha, f"{apart:.1e}", Target("<=", 1e-5), apart
        )


def _draws(size: Size):
    for shape in size.shapes:
        keys = jax.random.split(jax.random.key(0), size.draws)
        alphas = np.asarray(jax.lax.map(lambda key, shape=shape: _alpha(key, shape), keys))
        null = null_alpha(shape)
        error = null.deviation / size.draws**0.5
        off = abs(alphas.mean() - null.mean) / error
        yield row(
            f"noise {shape[0]} x {shape[1]}: mean and spread",
            f"{alphas.mean():.4f}, {alphas.std(ddof=1):.4f}",
            f"{null.mean:.4f}, {null.deviation:.4f}",
            f"{off:.1f} standard errors",
            Target("<=", 4),
            off,
        )


def _alpha(key, shape):
    w = jax.random.normal(key, shape)
    return hill_alpha(jnp.linalg.svd(w, compute_uv=False) ** 2)


def _windows(size: Size):
    m, n = size.shapes[-1]
    w = jax.random.normal(jax.random.key(1), (m, n))
    side = min(m, 128)
    alpha = float(hill_alpha(farms_eigenvalues(w, window=side, samples=9)))
    null = null_alpha((side, side))
    off = abs(alpha - null.mean) / null.deviation
    yield row(
        f"FARMS on noise {m} x {n}, windows of {side}",
        f"{alpha:.4f}",
        f"{null.mean:.4f} ± {null.deviation:.4f}",
        f"{off:.1f} deviations",
        Target("<=", 4),
        off,
    )


def _pareto(size: Size):
    for alpha in PARETO:
        keys = jax.random.split(jax.random.key(2), 20)
        fits = [
            float(power_law_fit(jax.random.pareto(key, alpha - 1, (size.samples,))).alpha)
            for key in keys
        ]
        off = abs(np.mean(fits) / alpha - 1)
        yield row(
            f"power law {alpha:g}, {size.samples} values, 20 draws",
            f"{np.mean(fits):.3f}",
            alpha,
            f"{100 * off:.1f} %",
            Target("<=", 0.05),
            off,
        )
