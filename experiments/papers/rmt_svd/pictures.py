"""Figures and tables of the training loop, from what its arms stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.papers.rmt_svd import evidence
from experiments.papers.rmt_svd.loop import ARMS, CELLS
from experiments.report import Picture, Row, Section, Table, cell
from experiments.runs import Run
from spectral_jax import plots
from spectral_jax.plots import bulks as figures

ORDER = [arm.title for arm in ARMS.values()]


def section(run: Run, folder: Path) -> Section:
    """Accuracy by parameters, differences by seed, dead classes, and a table per cell."""
    found = evidence.results(run)
    pictures = {
        "parameters": _by_parameters(found["linear"]),
        "paired-linear": _paired(run, "linear"),
        "paired-relu": _paired(run, "ReLU"),
        "dead-classes": _dead(found),
    }
    for name, picture in pictures.items():
        plots.save(picture.figure, folder / f"loop-{name}")
    tables = [
        Table(f"{_heading(name)}: every arm, mean and 95 % interval over seeds", rows(run, name))
        for name in CELLS
    ]
    noise = Table(
        "Linear logits: distance of each layer's bulk from the Marchenko-Pastur law, before the "
        "cut, right after it, and at the end",
        noise_rows(run),
    )
    return Section("Splitting while training", list(pictures.values()), [*tables, noise])


def rows(run: Run, name: str) -> list[Row]:
    """One row per arm of a cell."""
    made: list[Row] = []
    for arm, result in evidence.results(run)[name].items():
        numbers = result.numbers
        gain = evidence.difference(run, name, arm, "dense")
        biased = numbers.get("parameters, a bias each")
        made.append(
            {
                "arm": ARMS[arm].title,
                "test accuracy (%)": cell(result.accuracy),
                "minus dense, paired": "" if gain is None or arm == "dense" else cell(gain),
                "train accuracy (%)": cell(numbers["train accuracy"]),
                "parameters": f"{numbers['parameters'].mean():.0f}",
                "a bias per factor": "" if biased is None else f"{biased.mean():.0f}",
                "ranks": ", ".join(
                    f"{numbers[f'rank/{layer}'].mean():.0f}" for layer in run.summary["layers"]
                ),
                "dead classes": cell(numbers["dead classes"]),
                "rate after the cut": f"{result.rate:g}",
                "seeds": str(len(result.accuracy)),
            }
        )
    return made


def noise_rows(run: Run) -> list[Row]:
    """Goodness of fit of the layers' bulks, arm by arm; empty where too few values are left."""
    return [
        {
            "arm": ARMS[arm].title,
            **{
                f"{when}, layer {place}": cell(result.numbers[f"ks {when}/{layer}"])
                for place, layer in enumerate(run.summary["layers"], start=1)
                for when in ("before", "cut", "after")
                if f"ks {when}/{layer}" in result.numbers
            },
        }
        for arm, result in evidence.results(run)["linear"].items()
    ]


def _by_parameters(arms: dict[str, evidence.Result]) -> Picture:
    points = {
        ARMS[arm].title: (result.numbers["parameters"], result.accuracy)
        for arm, result in arms.items()
    }
    return Picture(
        figures.accuracy_by_parameters(points, order=ORDER),
        "Linear logits, no weight decay: test accuracy by parameters. Arms made for equal "
        "parameters stand beside each other.",
    )


def _paired(run: Run, name: str) -> Picture:
    differences = {}
    for arm in run.summary["arms"]:
        gain = evidence.difference(run, name, arm, "dense")
        if arm != "dense" and gain is not None:
            differences[ARMS[arm].title] = gain
    return Picture(
        plots.paired_differences(
            differences, xlabel="test accuracy, minus the dense network (percentage points)"
        ),
        f"{_heading(name)}: every arm against the dense network of the same seed.",
    )


def _dead(found: dict[str, dict[str, evidence.Result]]) -> Picture:
    groups = {}
    for name, title in (("linear", "linear logits"), ("ReLU", "ReLU on the logits")):
        dead, accuracy = [], []
        for result in found[name].values():
            dead.append(result.numbers["dead classes"])
            accuracy.append(result.accuracy)
        groups[f"{title}, all arms"] = np.concatenate(dead), np.concatenate(accuracy)
    return Picture(
        figures.dead_classes(groups),
        "All arms and seeds: with a ReLU on the logits, what decides the accuracy is how many "
        "classes are never answered.",
    )


def _heading(name: str) -> str:
    logits, _, decay = name.partition(", ")
    return f"{logits} logits{', with weight decay' if decay else ''}".capitalize().replace(
        "Relu", "ReLU"
    )
