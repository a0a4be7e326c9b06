"""The figures of the report, from what the runs stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from experiments.papers import curves
from experiments.papers.fiedler.claims import BEST_BASELINE
from experiments.papers.paper import Outcome
from experiments.report.evidence import paired
from experiments.report.page import Picture, Section
from experiments.report.results import Results
from experiments.report.tables import of_results
from experiments.runs import Run
from spectral_jax import plots

COLUMNS = {
    "test accuracy (%)": ("test/accuracy", 100.0),
    "train accuracy (%)": ("final_train/accuracy", 100.0),
    "lambda_2": ("spectra/lambda_2", 1.0),
    "nu_2": ("spectra/nu_2", 1.0),
    "participation ratio": ("spectra/lambda_2/participation_ratio", 1.0),
    "weights < 0.001 (%)": ("spectra/small_weights", 100.0),
    "penalty / loss": ("spectra/penalty/loss_ratio", 1.0),
    "penalty / loss gradient": ("spectra/penalty/gradient_ratio", 1.0),
    "n-cut": ("n_cut", 1.0),
    "collapsed (%)": ("collapsed", 100.0),
}
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
CAPTION = "Every trained arm: mean and 95 % interval over seeds"


def sections(outcome: Outcome) -> list[Section]:
    """One section per protocol."""
    made = []
    for protocol in filter(TITLES.get, outcome.runs):
        if protocol == "fair":
            drawn = _fair(outcome.results)
        else:
            drawn = _training(outcome.runs[protocol])
        shown = [[protocol, f"{protocol}/tuning"], *([["clusters"]] if protocol == "peer" else [])]
        tables = [
            of_results(outcome.results, COLUMNS, caption=CAPTION, protocols=names)
            for names in shown
        ]
        made.append(Section(TITLES[protocol], protocol, drawn, tables))
    return made


def _training(arms: Mapping[str, Run]) -> dict[str, Picture]:
    names = list(arms)
    histories = {arm: curves.by_epoch(run) for arm, run in arms.items()}
    spectra = {
        arm: {name: history[metric] for name, metric in SPECTRA.items()}
        for arm, history in histories.items()
    }
    pictures = {
        "accuracy": curves.accuracy(arms, names),
        "loss": curves.loss(arms, names),
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
    last = max(path.stem for path in (run.path / "arrays").glob("vectors-*.npz"))
    vectors = run.array(last)["nu_2" if arm == "cluster" else "lambda_2"]
    stored = run.array("parameters")
    kernels = [stored[name] for name in sorted(stored) if name.endswith("/kernel")]
    widths = [kernels[0].shape[1], *(kernel.shape[2] for kernel in kernels)]
    figure = plots.fiedler_by_layer(vectors, widths)
    return Picture(
        figure, f"{arm}: the Fiedler vector by layer, and the pull on each weight block."
    )


def _fair(results: Results) -> dict[str, Picture]:
    """Accuracy by strength on the tuning seeds; the tuned methods on fresh ones."""
    by_method: dict[str, dict[float, np.ndarray]] = defaultdict(dict)
    for arm in results.arms("fair/tuning"):
        method, _, strength = arm.partition("@")
        found = results.values("test/accuracy", arm=arm, protocol="fair/tuning")
        if strength and found is not None:
            by_method[method][float(strength)] = 100 * found
    # Strengths are in different units, so methods share a figure only where they share a grid.
    grids: dict[tuple[float, ...], list[str]] = defaultdict(list)
    for method, by_strength in by_method.items():
        grids[tuple(sorted(by_strength))].append(method)
    plain = results.values("test/accuracy", arm="none", protocol="fair/tuning")
    baseline = None if plain is None else 100 * plain
    pictures = {}
    for grid, methods in grids.items():
        accuracies = {name: np.stack([by_method[name][s] for s in grid]) for name in methods}
        figure = plots.strength_sweep(
            np.array(grid), accuracies, baseline=baseline, arms=list(by_method)
        )
        pictures[f"sweep-{methods[0]}"] = Picture(
            figure,
            f"Test accuracy against penalty strength, tuning seeds: {', '.join(methods)}. "
            "The band is no penalty.",
        )
    if reference := BEST_BASELINE.name(results):
        pictures["paired"] = _against(reference, results)
    return pictures


def _against(reference: str, results: Results) -> Picture:
    differences = {
        arm: found
        for arm in results.arms("fair")
        if arm != reference
        and (found := paired(arm, reference, protocol="fair").of(results)) is not None
    }
    figure = plots.paired_differences(
        differences, xlabel=f"test accuracy, method minus {reference}, both tuned (points)"
    )
    return Picture(
        figure, f"Every tuned method against the best tuned baseline ({reference}), paired by seed."
    )
