"""The figures and tables of the report, from the results and what the runs stored."""

from __future__ import annotations

import numpy as np

from experiments.data.sloppy import decades
from experiments.papers.paper import Outcome
from experiments.papers.sloppy.studies.causal import CONTROLS, FEATURES
from experiments.report.page import Picture, Section
from experiments.report.results import Results
from experiments.report.tables import of_results
from spectral_jax import plots
from spectral_jax.plots.training import Curve

COLUMNS = {
    "test accuracy (%)": ("test/accuracy", 100.0),
    "train accuracy (%)": ("final_train/accuracy", 100.0),
    "test error (%)": ("test/error", 100.0),
    "train error (%)": ("train/error", 100.0),
}
SLOPES = {
    "points per decade": ("per decade", 1.0),
    "explained (%)": ("per decade/r2", 100.0),
    "points per 100 of effective rank": ("per 100 ranks", 1.0),
    "explained by rank (%)": ("per 100 ranks/r2", 100.0),
}


def sections(outcome: Outcome) -> list[Section]:
    """A section for whatever the preset measured."""
    drawn = {"causal": _causal}
    return [draw(outcome.results) for study, draw in drawn.items() if study in outcome.runs]


def _causal(results: Results) -> Section:
    """Test error over the spread of the inputs' spectrum, by examples; and with the controls."""
    curves = error_curves(results)
    same = {arm: curve for arm, curve in curves.items() if "flat" not in arm}
    count = next(arm.partition("/")[0] for arm in curves if "flat" in arm)
    apart = {arm: curve for arm, curve in curves.items() if arm.partition("/")[0] == count}
    pictures = {
        "examples": Picture(
            _errors(same, list(curves)),
            "Test error against the decades that the inputs' spectrum spans, norm, steps and law "
            "of the teacher fixed. Left: all directions alike.",
        ),
        "controls": Picture(
            _errors(apart, list(curves)),
            "The same where labels (flat labels) or inputs (flat inputs) keep the flat spectrum "
            "while the other falls: sloppy inputs help where the labels follow them.",
        ),
    }
    fits = [arm for arm in results.arms("causal") if arm.startswith("regression")]
    tables = [
        of_results(
            results, SLOPES, protocols=["causal"], arms=fits,
            caption="Least squares over the spectra, per seed: mean and 95 % interval",
        )
    ]  # fmt: skip
    return Section("Causes: the spectrum of the inputs, all else equal", "causal", pictures, tables)


def error_curves(results: Results) -> dict[str, Curve]:
    """By examples and control, the decades ``[rates]`` and the test errors in percent, by seed."""
    found: dict[str, dict[float, np.ndarray]] = {}
    for arm in results.arms("causal"):
        rate, _, kind = arm.partition("/")
        if rate.startswith("b="):
            errors = 100 * results.known("test/error", arm=arm, protocol="causal")
            found.setdefault(kind, {})[decades(float(rate[2:]), FEATURES)] = errors
    for kind, by_span in found.items():
        for control in filter(None, CONTROLS):
            if kind.endswith(f"/{control}"):  # where nothing falls all controls are one
                by_span.setdefault(0.0, found[kind.removesuffix(f"/{control}")][0.0])
    return {
        kind: (np.array(sorted(by_span)), np.stack([by_span[span] for span in sorted(by_span)]))
        for kind, by_span in found.items()
    }


def _errors(curves: dict[str, Curve], arms: list[str]):
    return plots.training_curves(
        curves, ylabel="test error (%)", xlabel="decades between largest and smallest variance",
        ylim=(0, None), arms=arms,
    )  # fmt: skip
