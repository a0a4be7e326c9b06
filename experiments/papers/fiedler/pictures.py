"""The figures of the report, from what the runs stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from experiments.papers.fiedler import evidence
from experiments.report import Picture, Section, Table
from experiments.reproduction import Runs
from experiments.runs import Run
from spectral_jax import plots

SPECTRA = {
    "lambda_2": "spectra/lambda_2",
    "nu_2": "spectra/nu_2",
    "participation_ratio": "spectra/lambda_2/participation_ratio",
}
TITLES = {
    "digits": "Digits (smoke scale)",
    "mnist": "MNIST, released settings",
    "cifar10": "CIFAR-10, released settings",
    "tcga": "TCGA, released settings",
    "peer": "The peer's clusterability penalty (7x7 MNIST)",
    "fair": "A fair comparison: few, noisy samples",
}


def sections(runs: Runs, rows: list[dict[str, str]], folder: Path) -> list[Section]:
    """One section per protocol; every figure is a file in ``folder`` as well."""
    made = []
    for protocol, arms in runs.items():
        if not arms:
            continue
        drawn = _fair(arms) if protocol == "fair" else _training(arms)
        for name, picture in drawn.items():
            plots.save(picture.figure, folder / f"{protocol}-{name}")
        table = Table(
            f"{TITLES[protocol]}: every trained arm, mean and 95 % interval over seeds",
            [_without_protocol(row) for row in rows if row["protocol"] == protocol],
        )
        made.append(Section(TITLES[protocol], figures=list(drawn.values()), tables=[table]))
    return made


def _training(arms: Mapping[str, Run]) -> dict[str, Picture]:
    histories = {arm: _by_epoch(run) for arm, run in arms.items()}
    names = list(arms)
    percent = {
        arm: (h["test/accuracy"][0], 100 * h["test/accuracy"][1]) for arm, h in histories.items()
    }
    losses = {arm: h["test/loss"] for arm, h in histories.items()}
    spectra = {
        arm: {name: history[metric] for name, metric in SPECTRA.items()}
        for arm, history in histories.items()
    }
    pictures = {
        "accuracy": Picture(
            plots.training_curves(percent, ylabel="test accuracy (%)", xlabel="epoch", arms=names),
            "Test accuracy over training.",
        ),
        "loss": Picture(
            plots.training_curves(losses, ylabel="test loss (nats)", xlabel="epoch", arms=names),
            "Test loss over training.",
        ),
        "spectra": Picture(
            plots.spectral_evolution(spectra, xlabel="epoch", arms=names),
            "Connectivity of the weight graph and where its Fiedler vector sits.",
        ),
    }
    for arm, run in arms.items():
        if arm.startswith(("fiedler", "cluster")):
            pictures[f"vector-{arm}"] = _vector(arm, run)
    return pictures


def _vector(arm: str, run: Run) -> Picture:
    """What the penalty acts on at the end of training."""
    with np.load(max((run.path / "arrays").glob("vectors-*.npz"))) as stored:
        vectors = stored["nu_2" if arm == "cluster" else "lambda_2"]
    with np.load(run.path / "arrays" / "parameters.npz") as stored:
        kernels = [stored[name] for name in sorted(stored) if name.endswith("/kernel")]
    widths = [kernels[0].shape[1], *(kernel.shape[2] for kernel in kernels)]
    figure = plots.fiedler_by_layer(vectors, widths)
    return Picture(
        figure, f"{arm}: the Fiedler vector by layer, and the pull on each weight block."
    )


def _fair(arms: Mapping[str, Run]) -> dict[str, Picture]:
    pictures: dict[str, Picture] = {}
    by_method: dict[str, dict[float, np.ndarray]] = defaultdict(dict)
    for arm, run in arms.items():
        method, _, strength = arm.partition("@")
        if strength:
            by_method[method][float(strength)] = evidence.accuracy(run)
    baseline = evidence.accuracy(arms["none"]) if "none" in arms else None
    # Strengths are in different units, so methods share a figure only where they share a grid.
    grids: dict[tuple[float, ...], list[str]] = defaultdict(list)
    for method, results in by_method.items():
        grids[tuple(sorted(results))].append(method)
    for grid, methods in grids.items():
        accuracies = {name: np.stack([by_method[name][s] for s in grid]) for name in methods}
        figure = plots.strength_sweep(
            np.array(grid), accuracies, baseline=baseline, arms=list(by_method)
        )
        names = ", ".join(methods)
        pictures[f"sweep-{methods[0]}"] = Picture(
            figure, f"Test accuracy against penalty strength: {names}. The band is no penalty."
        )
    tuned = evidence.tuned_arms(arms)
    reference = evidence.best_baseline(tuned)
    differences = {
        name: evidence.accuracy(run) - evidence.accuracy(tuned[reference])
        for name, run in tuned.items()
        if name != reference
    }
    figure = plots.paired_differences(
        differences, xlabel=f"test accuracy, method minus {reference}, both tuned (points)"
    )
    pictures["paired"] = Picture(
        figure, f"Every tuned method against the best tuned baseline ({reference}), paired by seed."
    )
    return pictures


def _by_epoch(run: Run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    history = run.history()
    steps_per_epoch = run.summary["steps"] / run.summary["epochs"]
    return {name: (steps / steps_per_epoch, values) for name, (steps, values) in history.items()}


def _without_protocol(row: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if name != "protocol"}
