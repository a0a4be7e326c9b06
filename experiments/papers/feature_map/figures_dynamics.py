"""The figures and tables of the studies of `dynamics`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.papers.feature_map.claims_dynamics import FURTHER, LEADERS
from experiments.papers.paper import Outcome
from experiments.report.page import Picture, Section
from experiments.report.results import Results
from experiments.report.selection import choose
from experiments.report.tables import of_results
from experiments.runs import Run
from spectral_jax import plots
from spectral_jax.plots.training import Curve

# Panel -> the stored quantity.
COURSES = {
    "accuracy": "accuracy",
    "$D_{LR}$": "richness",
    "$D_{LR}$ of resolved outputs": "richness/resolved",
    "effective dimension": "effective_dimension",
    "NC1": "nc1",
    "kernel distance": "kernel distance",
}
SHARES = ("accuracy", "$D_{LR}$", "$D_{LR}$ of resolved outputs", "kernel distance")
LOGARITHMIC = ("NC1", r"$\|\theta\|^2$")
ENDS = {
    "fitted (%)": ("end/train/accuracy", 100.0),
    "unseen accuracy (%)": ("end/unseen/accuracy", 100.0),
    "D_LR at start": ("start/unseen/richness", 1.0),
    "D_LR": ("end/unseen/richness", 1.0),
    "centre-first": ("end/unseen/richness/centre_first", 1.0),
    "of resolved outputs at start": ("start/unseen/richness/resolved", 1.0),
    "of resolved outputs": ("end/unseen/richness/resolved", 1.0),
    "effective dimension": ("end/unseen/effective_dimension", 1.0),
    "NC1": ("end/unseen/nc1", 1.0),
    "kernel distance": ("end/unseen/kernel distance", 1.0),
}
ONSETS = {"unseen accuracy": ("onset/unseen/accuracy", 1.0)} | {
    metric.replace("/", ", "): (f"onset/{metric}", 1.0)
    for metric, _ in (LEADERS | FURTHER).values()
}
LINEAR = {"D_LR": ("richness", 1.0), "in closed form": ("closed form", 1.0)}
TANGENT = {
    "test accuracy (%)": ("test/accuracy", 100.0),
    "D_LR at start": ("start/richness", 1.0),
    "D_LR at end": ("end/richness", 1.0),
    "learning rate": ("learning_rate", 1.0),
    "ridge": ("ridge", 1.0),
    "of seeds, rate at its grid's edge (%)": ("learning_rate/at edge", 100.0),
    "ridge at its grid's edge (%)": ("ridge/at edge", 100.0),
    "distance of tangent kernels": ("distance/tangent", 1.0),
    "distance of feature kernels": ("distance/features", 1.0),
}
REGULARISER = {
    "test accuracy (%)": ("test/accuracy", 100.0),
    "fitted (%)": ("train/accuracy", 100.0),
    "D_LR, unseen images": ("richness", 1.0),
    "learning rate": ("learning_rate", 1.0),
    "decay": ("decay", 1.0),
    "strength": ("strength", 1.0),
}


def sections(outcome: Outcome) -> list[Section]:
    """A section for whatever the preset measured."""
    results, runs = outcome.results, outcome.runs
    digits, sums = "Grokking: digits and large initial weights", "Addition modulo a prime"
    made = {
        "grokking": lambda: _watched(digits, runs["grokking"]["grokking"], results),
        "modular": lambda: _watched(sums, runs["modular"]["modular"], results),
        "linear": lambda: _table("Two linear layers", "linear", LINEAR, results),
        "tangent": lambda: _table("The tangent kernel as a baseline", "tangent", TANGENT, results),
        "regulariser": lambda: _regulariser(results),
    }
    return [make() for study, make in made.items() if study in runs]


def _watched(title: str, run: Run, results: Results) -> Section:
    """Every quantity over training, the spectra of the first seed, and the onsets."""
    study = run.path.parent.name
    arms = results.arms(study)
    stored = {arm: stored_of(run, arm) for arm in arms}
    panels = {
        label: {arm: _curve(stored[arm], f"unseen/{name}") for arm in arms}
        for label, name in COURSES.items()
    }
    panels[r"$\|\theta\|^2$"] = {arm: _curve(stored[arm], "norm") for arm in arms}
    pictures = {
        "courses": Picture(
            plots.time_courses(panels, logarithmic=LOGARITHMIC, shares=SHARES, xlabel="step"),
            "On unseen examples, mean and 95 % interval over seeds.",
        ),
        "spectra": Picture(
            plots.feature_spectra(spectra_of(stored[arms[0]][0]), xlabel="step"),
            f"{arms[0]}, first seed, unseen examples: quality, utilisation and eigenvalues.",
        ),
    }
    tables = [
        of_results(results, columns, protocols=[study], caption=caption)
        for columns, caption in (
            (ENDS, "At the end, on unseen examples"),
            (
                ONSETS,
                "Onsets in epochs: half of the change since all examples are fitted; none where "
                "unseen ones were right as soon",
            ),
        )
    ]
    return Section(title, study, pictures, tables)


def stored_of(run: Run, arm: str) -> list[dict[str, np.ndarray]]:
    """What was stored of an arm, by seed; what has no arms stores by seed alone."""
    files = sorted((run.path / "arrays").glob(f"{arm.replace(' ', '-')}-*.npz"), key=_seed)
    return [run.array(file.stem) for file in files]


def _seed(file: Path) -> int:
    return int(file.stem.rpartition("-")[2])


def spectra_of(stored: Mapping[str, np.ndarray]) -> plots.FeatureSpectra:
    """The spectra of one network over training."""
    eigenvalues, quality, utilisation = (
        stored[f"unseen/spectrum/{name}"] for name in ("eigenvalues", "quality", "utilisation")
    )
    return plots.FeatureSpectra(
        stored["step"], eigenvalues, quality, utilisation, classes=int(stored["classes"]),
        rows=float(stored["rows"]),
    )  # fmt: skip


def _curve(stored: Sequence[Mapping[str, np.ndarray]], name: str) -> Curve:
    return stored[0]["step"], np.stack([each[name] for each in stored], axis=1)


def _table(title: str, study: str, columns: Mapping, results: Results) -> Section:
    return Section(title, tables=[of_results(results, columns, protocols=[study])])


def _regulariser(results: Results) -> Section:
    """The final runs, and richness against accuracy over all settings that were tried."""
    protocols = [p for p in results.protocols() if p.startswith("regulariser/")]
    picture = Picture(
        plots.richness_against_accuracy(
            _by_method(results, "regulariser/true/tuning"), ylabel="validation accuracy (%)"
        ),
        "True labels: every setting that was tried, a point for each tuning seed.",
    )
    tables = [
        of_results(results, REGULARISER, protocols=[protocol], against="none",
                   caption=f"Mean and 95 % interval over seeds{edges(results, protocol)}")
        for protocol in protocols
    ]  # fmt: skip
    return Section("Richness as a regulariser", "regulariser", {"tried": picture}, tables)


def _by_method(results: Results, tried: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Richness and accuracy of every setting that was tried, those of a method together."""
    found: dict[str, list[np.ndarray]] = {}
    for arm in results.arms(tried):
        richness = results.known("richness", arm=arm, protocol=tried)
        accuracy = 100 * results.known("validation/accuracy", arm=arm, protocol=tried)
        found.setdefault(arm.partition("@")[0], []).append(np.stack([richness, accuracy]))
    return {name: tuple(np.concatenate(each, axis=1)) for name, each in found.items()}


def edges(results: Results, protocol: str) -> str:
    """Which methods were held to a setting at the edge of their grid; empty if none was tried."""
    tried = f"{protocol}/tuning"
    methods = dict.fromkeys(arm.partition("@")[0] for arm in results.arms(tried))
    if not methods:
        return ""
    choices = (choose(results, tried, method=method) for method in methods)
    found = [choice.method for choice in choices if choice and choice.at_edge]
    told = ", ".join(found) or "none"
    return f"; chosen at the edge of its grid, so that a better one may lie outside: {told}"
