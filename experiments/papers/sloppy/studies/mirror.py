"""Does the curvature mirror the spectrum of the inputs if that is changed and nothing else?

The networks of `causal`, trained again at one number of examples: the Gauss-Newton spectrum of each
before and after training, on test inputs, for every rate at which the inputs' variances fall.

Results: arms ``b=<rate>`` of protocol ``mirror``, one seed per network; arm ``steepest minus flat``
is the difference, per seed, between the largest rate and none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.papers.networks import model_of
from experiments.papers.sloppy.studies.causal import fitted
from experiments.report.results import Results, merge, of_arrays
from experiments.runs import Run
from spectral_jax import capacity, curvature

STAGES = ("start", "end")
TOLD = ("decades", "slope", "r_squared", "drop", "effective_rank")


def measure(
    run: Run, *, rates: Sequence[float], count: int, seeds: int, examples: int, **options: Any
) -> Results:
    """Every rate and seed; a network that is done is not trained again.

    count: examples that are trained on; ``examples``: those that the spectrum is a mean over.
    """
    numbers = {}
    for rate in rates:
        rows = []
        for seed in range(seeds):
            stored = run.load_array(f"seed-{seed}-b-{rate:g}")
            if stored is None:
                stored = spectra(seed, rate, count, examples, **options)
                run.save_array(f"seed-{seed}-b-{rate:g}", **stored)
            rows.append(_told(stored))
        numbers[rate] = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        run.log(f"mirror: b = {rate:g} is measured")
    steepest, flat = numbers[max(rates)], numbers[min(rates)]
    arms = {f"b={rate:g}": each for rate, each in numbers.items()}
    arms["steepest minus flat"] = {name: steepest[name] - flat[name] for name in flat}
    return merge(of_arrays("mirror", arm, each) for arm, each in arms.items())


def spectra(
    seed: int, rate: float, count: int, examples: int, **options: Any
) -> dict[str, np.ndarray]:
    """The spectra of one network, largest first, with their floors."""
    trainer, state = fitted(seed, rate, "", (count,), **options)
    net, test = trainer.task.net, trainer.task.data["test"].examples
    data = test["x"][:examples], test["y"][:examples]
    ended = jax.tree.map(lambda leaf: leaf[0], state.params)
    loss, found = curvature.SoftmaxCrossEntropy(), {}
    for stage, params in (("start", net.init(jax.random.key(seed))[0]), ("end", ended)):
        spectrum = curvature.ggn_spectrum(model_of(net), loss, params, data)
        found[stage] = np.asarray(spectrum.values)
        found[f"{stage}/floor"] = np.asarray(spectrum.floor)
    return found


def fall(values: np.ndarray, floor: float) -> float:
    """Decades from the largest eigenvalue to the one in the middle; NaN if that is rounding.

    Spectra that all reach the floor span the same decades as far as can be seen, whatever they do
    beneath it. At a rank of its own each can be compared.
    """
    middle = values[len(values) // 2]
    return float(np.log10(values[0] / middle)) if middle > floor else np.nan


def _told(stored: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The sloppiness of both spectra, and how far each has fallen at its middle."""
    told: dict[str, float] = {}
    for stage in STAGES:
        told[f"{stage}/fall"] = fall(stored[stage], float(stored[f"{stage}/floor"]))
        summary = capacity.sloppiness(stored[stage], floor=stored[f"{stage}/floor"])
        told |= {f"{stage}/{name}": float(getattr(summary, name)) for name in TOLD}
    return told
