"""Numbers that follow from published ones by a formula: whoever computes them must get the same.

Results: protocol ``oracles``, arms ``kl inverse``, ``released chain`` (the isotropic bound of the
released notebook, from its norm to its bound) and ``binary MNIST`` (arXiv 1703.11008), one seed.
"""

from __future__ import annotations

import math

import jax
import numpy as np

from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from spectral_jax import capacity

# Risk and relative entropy per example, of the inverse.
PAIRS = ((0.01, 0.01), (0.05, 0.05), (0.1, 0.1), (0.1, 0.001), (0.5, 0.1))
# The notebook's isotropic bound of FC-600-2: its grid, the point on it, what it printed.
GRID, POINT = capacity.ScaleGrid(b=10, c=0.05), 37
N, DELTA = 55_000, 0.025
NORM, RISK = 8.0422, 0.0878836364
ROOT = 0.4878810942  # sqrt((KL + penalty) / (2 (n - 1)))
# Dziugaite and Roy's T-600, whose risk is a mean over 150,000 draws.
T600 = {"risk": 0.028, "kl": 5144.0}
DRAWS, DELTA_MC = 150_000, 0.01


def measure(run: Run) -> Results:
    """All of them, in float64."""
    with jax.enable_x64(True):
        found = {
            "kl inverse": {f"{q:g}, {c:g}": capacity.kl_inverse(q, c) for q, c in PAIRS},
            "released chain": released_chain(),
            "binary MNIST": binary_mnist(),
        }
        numbers = {arm: {k: [float(v)] for k, v in each.items()} for arm, each in found.items()}
    return merge(of_arrays("oracles", arm, each) for arm, each in numbers.items())


def released_chain() -> dict[str, float]:
    """From the distance of weights to the bound, as the released code computes it."""
    inverse_variance = 1 / GRID.variance(POINT)
    penalty = GRID.penalty(POINT) + math.log(N / DELTA)
    kl = inverse_variance * NORM**2 / 2
    return {
        "inverse variance": inverse_variance,
        "penalty": penalty,
        "bound": float(capacity.kl_inverse(RISK, 2 * ROOT**2)),
        "kl": kl,
        "bound from the norm": float(
            capacity.pac_bayes_bound(RISK, kl, n=N, delta=DELTA, constant="seeger",
                                     penalty=GRID.penalty(POINT))
        ),
    }  # fmt: skip


def binary_mnist() -> dict[str, float]:
    """Their bound, plug-in and with the error of the Monte Carlo mean counted."""
    corrected = capacity.kl_inverse(T600["risk"], math.log(2 / DELTA_MC) / DRAWS)
    risks = np.array([T600["risk"], float(corrected)])
    first = capacity.ScaleGrid(b=100, c=0.1).penalty(1)
    bounds = capacity.pac_bayes_bound(
        risks, T600["kl"], n=N, delta=DELTA, constant="seeger", penalty=first
    )
    return {"plug-in": float(bounds[0]), "corrected": float(bounds[1])}
