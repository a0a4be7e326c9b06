"""The figures and tables of the report, from the results and what the runs stored."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np

from experiments.papers.feature_map import figures_dynamics
from experiments.papers.feature_map.protocols import CLASSES
from experiments.papers.networks import opened
from experiments.papers.paper import Outcome
from experiments.report.page import Picture, Section
from experiments.report.results import Results
from experiments.report.tables import of_results
from experiments.runs import Run
from experiments.training.representations import PROBE_EXAMPLES
from spectral_jax import plots

RICHNESS = "features/richness"
COLUMNS = {
    "test accuracy (%)": ("test/accuracy", 100.0),
    "train accuracy (%)": ("final_train/accuracy", 100.0),
    "D_LR": (RICHNESS, 1.0),
    "effective dimension": ("features/effective_dimension", 1.0),
    "NC1": ("collapse/nc1", 1.0),
}
WAYS = {
    **COLUMNS,
    "D_LR, centre-first": ("features/richness/centre_first", 1.0),
    "corrected": ("features/richness/corrected", 1.0),
    "unseen": ("features/unseen/richness", 1.0),
    "Pi*(C-1)": ("features/quality", 1.0),
    "Pihat(C-1)": ("features/utilisation", 1.0),
}
CHANGES = {
    "D_LR at the start": ("start/features/richness", 1.0),
    "moved by": ("moved/features/richness", 1.0),
    "with every class alike by": ("balanced", 1.0),
    "effective dimension at the start": ("start/features/effective_dimension", 1.0),
    "moved by ": ("moved/features/effective_dimension", 1.0),
}
ESTIMATES = {
    "2,000 images, corrected": ("richness", 1.0),
    **{
        f"{count} images, {kind}": (f"{kind}/{count}", 1.0)
        for count in (32, 64, 128, 300, 1000)
        for kind in ("plain", "corrected")
    },
}
SIZES = {
    "D_LR": ("richness", 1.0),
    "corrected": ("richness/corrected", 1.0),
    "directions per class": ("per class", 1.0),
    "unseen accuracy (%)": ("unseen/accuracy", 100.0),
}
LAZY = {
    "D_LR": ("richness", 1.0),
    "D_LR of the outputs themselves": ("of f/richness", 1.0),
    "effective dimension": ("effective_dimension", 1.0),
    "train accuracy (%)": ("accuracy", 100.0),
    "unseen accuracy (%)": ("unseen/accuracy", 100.0),
}
PIXELS = {
    "D_LR": ("richness", 1.0),
    "effective dimension": ("effective_dimension", 1.0),
    "conflicting (%)": ("conflicting/accuracy", 100.0),
    "correct (%)": ("correct/accuracy", 100.0),
    "blanked (%)": ("blanked/accuracy", 100.0),
    "Pi* of the image": ("image/quality", 1.0),
    "Pi* of the code": ("code/quality", 1.0),
    "learning rate": ("learning_rate", 1.0),
    "at the edge of the grid": ("learning_rate/at edge", 1.0),
}
REGIMES = {
    "effective, at the start": ("start/per class", 1.0),
    "effective": ("per class", 1.0),
    "for 95 % of the outputs, at the start": ("start/used per class", 1.0),
    "for 95 % of the outputs": ("used per class", 1.0),
}
SETTINGS = {
    name: column for name, column in WAYS.items() if name not in ("NC1", "D_LR, centre-first")
}
COURSES = {
    "$D_{LR}$": RICHNESS,
    "effective dimension": "features/effective_dimension",
    "test accuracy": "test/accuracy",
    "NC1": "collapse/nc1",
    "NC2": "collapse/nc2",
    "NC3": "collapse/nc3",
}
TITLES = {
    "estimates": ("Few images: how far D_LR is off", ESTIMATES),
    "sizes": ("Width, classes, examples", SIZES),
    "lazy": ("Made lazy by the size of the outputs", LAZY),
}


def sections(outcome: Outcome) -> list[Section]:
    """A section for whatever the preset measured."""
    made = []
    if "p1" in outcome.runs:
        made += [_course(outcome.runs["p1"]["mse"]), _ways(outcome)]
    if "pixels" in outcome.runs:
        made.append(_pixels(outcome.results))
    if "regimes" in outcome.runs:
        made.append(_regimes(outcome))
    made += [
        Section(title, tables=[of_results(outcome.results, columns, protocols=[study])])
        for study, (title, columns) in TITLES.items()
        if study in outcome.runs
    ]
    return [*made, *figures_dynamics.sections(outcome)]


def spectra_of(run: Run, *, rows: int) -> plots.FeatureSpectra:
    """The spectra of the first seed's last layer over training, on so many images.

    They are what the measure ``features`` keeps at every step at which it measures.
    """
    files = sorted((run.path / "arrays").glob("vectors-*.npz"))
    stored = [run.array(file.stem) for file in files]
    steps = np.array([int(file.stem.partition("-")[2]) for file in files])
    eigenvalues, quality, utilisation = (
        np.stack([each[f"features/{name}"][0] for each in stored])
        for name in ("eigenvalues", "quality", "utilisation")
    )
    return plots.FeatureSpectra(
        steps, eigenvalues, quality, utilisation, classes=CLASSES, rows=rows
    )


def layers_of(metrics: Iterable[str]) -> dict[str, str]:
    """Which metric is the richness of which hidden layer, from the first to the last.

    >>> layers_of(["features/richness/layers/1", "features/richness", "features/quality"])
    {'layer 1': 'features/richness/layers/1', 'layer 2': 'features/richness'}
    """
    before = [name for name in metrics if name.startswith(f"{RICHNESS}/layers/")]
    return {f"layer {number}": name for number, name in enumerate([*before, RICHNESS], 1)}


def _course(run: Run) -> Section:
    """Spectra, courses and layers of the networks of the first arm while they are trained."""
    rows = min(PROBE_EXAMPLES, len(opened(run).splits.train_y))
    spectra, history = spectra_of(run, rows=rows), run.history()
    courses = {label: {"": history[name]} for label, name in COURSES.items() if name in history}
    steps = history[RICHNESS][0]
    layers = {name: history[metric][1].mean(axis=1) for name, metric in layers_of(history).items()}
    pictures = {
        "spectra": Picture(
            plots.feature_spectra(spectra, xlabel="step"),
            "The last layer of the first seed, a line for each checkpoint: how much of the labels "
            "the first k directions hold, how much of them the outputs read, and the eigenvalues.",
        ),
        "map": Picture(
            plots.spectrum_map(spectra, xlabel="step"),
            "The eigenvalues over training. The line: so many directions hold 95 % of the outputs.",
        ),
        "courses": Picture(
            plots.time_courses(
                courses, xlabel="step", logarithmic=[*{"NC1"} & courses.keys()],
                shares=[*{"$D_{LR}$", "test accuracy"} & courses.keys()],
            ),
            "Over training, mean and 95 % interval over seeds, on training images.",
        ),
        "layers": Picture(
            plots.course_map(
                steps, list(layers), np.stack(list(layers.values()), axis=1), label="$D_{LR}$",
                xlabel="step",
            ),
            "Richness layer by layer, mean over seeds: 0 is richest.",
        ),
    }  # fmt: skip
    film = plots.animated_spectra(spectra, xlabel="step", title="The features while they form")
    return Section(
        "While it trains: squared error", "course", pictures, pages={"the spectra, moving": film}
    )


def _ways(outcome: Outcome) -> Section:
    """One network, trained in several ways."""
    known = partial(outcome.results.known, protocol="p1")
    found = {
        arm: (known(RICHNESS, arm=arm), 100 * known("test/accuracy", arm=arm))
        for arm in outcome.results.arms("p1")
    }
    picture = Picture(
        plots.richness_against_accuracy(found),
        "Richness on training images and accuracy on unseen ones, a point for each seed.",
    )
    known_of_all = outcome.results.metrics(arm="mse", protocol="p1")
    layers = {name: (metric, 1.0) for name, metric in layers_of(known_of_all).items()}
    tables = [
        of_results(outcome.results, columns, protocols=[protocol], caption=caption)
        for protocol, caption, columns in (
            ("p1", "At the end: mean and 95 % interval over seeds", WAYS),
            ("p1", "D_LR layer by layer", layers),
            ("endpoints", "What training changed", CHANGES),
        )
    ]
    return Section("One network, trained in several ways", "ways", {"accuracy": picture}, tables)


def _pixels(results: Results) -> Section:
    """Richness and what it is worth where pixels name the class."""
    known = partial(results.known, protocol="pixels")
    found = {
        arm: (known("richness", arm=arm), 100 * known("conflicting/accuracy", arm=arm))
        for arm in results.arms("pixels")
    }
    picture = Picture(
        plots.richness_against_accuracy(found),
        "Richness on training images, and accuracy where the pixels name a random class.",
    )
    table = of_results(results, PIXELS, protocols=["pixels"])
    return Section("Rich is not good: the class in the pixels", "pixels", {"accuracy": picture},
                   [table])  # fmt: skip


def _regimes(outcome: Outcome) -> Section:
    """Directions per class in every network, on every data set, over training."""
    stored, settings = outcome.runs["regimes"]["regimes"].array("courses"), outcome.runs["settings"]
    arms = [arm for arm in settings if f"{arm}/step" in stored]
    courses = {arm: (stored[f"{arm}/step"], stored[f"{arm}/per class"]) for arm in arms}
    step = courses[arms[0]][0]
    means = np.stack([np.nanmean(values, axis=1) for _, values in courses.values()], axis=1)
    richness = {arm: settings[arm].history()[RICHNESS] for arm in arms}
    pictures = {
        "strip": Picture(
            plots.course_map(
                step, arms, np.log2(means), label="$\\log_2$ directions per class", xlabel="step"
            ),
            "Effective directions per class over training: 0 is one a class; above 1, which is "
            "two, they are not minimal.",
        ),
        "courses": Picture(
            plots.time_courses(
                {"directions per class": courses, "$D_{LR}$": richness},
                xlabel="step",
                logarithmic=["directions per class"],
                shares=["$D_{LR}$"],
            ),
            "The same and richness, mean and 95 % interval over seeds.",
        ),
    }
    tables = [
        of_results(outcome.results, columns, protocols=[protocol], caption=caption)
        for protocol, caption, columns in (
            ("regimes", "Directions per class: mean and 95 % interval over seeds", REGIMES),
            ("settings", "The networks at the end", SETTINGS),
        )
    ]
    return Section("Minimal or extended: networks and data sets", "regimes", pictures, tables)
