"""The figures and tables of the report, from the results and what the runs stored."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from experiments.papers.paper import Outcome
from experiments.papers.rmt_svd.studies import cnn, fashion, resnet
from experiments.papers.rmt_svd.studies.loop import ARMS, CELLS
from experiments.papers.rmt_svd.studies.ranks import LAYER, RANKS
from experiments.report.evidence import paired
from experiments.report.page import Picture, Section
from experiments.report.results import Results
from experiments.report.tables import Table, cell, of_results
from experiments.runs import Run
from spectral_jax import plots
from spectral_jax.plots import bulks as figures

# Notebook A, one network: accuracy in percent by rank kept.
NOTEBOOK = {
    0: 8.92, 5: 54.59, 10: 75.75, 15: 84.64, 20: 90.71, 25: 95.45, 30: 97.29, 35: 97.73, 40: 98.02,
    45: 98.26, 50: 98.21, 55: 98.22, 60: 98.23, 95: 98.32, "all": 98.29,
}  # fmt: skip
ORDER = [arm.title for arm in ARMS.values()]
INTERVALS = "mean and 95 % interval over seeds"
COLUMNS = {
    "test accuracy (%)": ("test/accuracy", 100.0),
    "train accuracy (%)": ("train/accuracy", 100.0),
    "parameters": ("parameters", 1.0),
    "a bias per factor": ("parameters, a bias each", 1.0),
    "dead classes": ("dead_classes", 1.0),
    "rate after the cut": ("learning_rate", 1.0),
}


def sections(outcome: Outcome) -> list[Section]:
    """A section for whatever the preset measured."""
    results = outcome.results
    made = []
    for protocol in results.protocols():
        match protocol.partition("/")[0]:
            case "ranks" if "linear" in outcome.runs["figure5"]:
                made.append(_ranks(results, protocol, outcome.runs["figure5"]))
            case "loop" if not protocol.endswith("/tuning"):
                made.append(_loop(results, protocol))
            case "fashion":
                made.append(_fashion(results))
            case "cnn":
                made.append(_cnn(results))
            case "resnet":
                made.append(_resnet(results))
    return made


def _ranks(results: Results, protocol: str, runs: Mapping[str, Run]) -> Section:
    """The curve with its rules, the spectrum over training, and dead classes."""
    pictures = {"ranks": _curve(results, protocol), "spectrum": _spectrum(runs["linear"])}
    groups = {
        arm: _with_accuracy(results, protocol, arm, "dead_classes")
        for arm in results.arms(protocol)
    }
    pictures["dead-classes"] = Picture(
        figures.dead_classes(groups),
        "Every trained network by the classes that it never answers: a ReLU on the logits kills "
        "some for ever, and each costs a tenth of the accuracy.",
    )
    rows = []
    for rank, published in NOTEBOOK.items():
        metric = "test/accuracy" if rank == "all" else f"accuracy/{rank}"
        ours = results.known(metric, arm="linear", protocol=protocol)
        rows.append(
            {
                "values kept": str(rank),
                "test accuracy (%)": cell(ours, scale=100),
                "notebook, one network": f"{published:g}",
            }
        )
    by_rank = Table("Test accuracy by the singular values kept in the first layer", rows)
    rules = {
        **{name.removeprefix("rank/"): (name, 1.0) for name in _rules(results, protocol)},
        "distance from the law": ("ks", 1.0),
        "noise variance / initial": ("variance ratio", 1.0),
        **{name: COLUMNS[name] for name in ("test accuracy (%)", "dead classes")},
    }
    caption = "What each rule keeps, and the networks it is asked of"
    kept = of_results(results, rules, caption=caption, protocols=[protocol])
    return Section("How many singular values it takes (Fig. 5)", "figure5",
                   pictures, [by_rank, kept])  # fmt: skip


def _curve(results: Results, protocol: str) -> Picture:
    def linear(metric):
        return results.known(metric, arm="linear", protocol=protocol)

    accuracy = np.stack([100 * linear(f"accuracy/{rank}") for rank in RANKS])
    marks = {name.removeprefix("rank/"): linear(name) for name in _rules(results, protocol)}
    figure = figures.accuracy_by_rank(
        np.array(RANKS), accuracy, marks=marks, full=100 * linear("test/accuracy")
    )
    return Picture(
        figure,
        "Linear logits: test accuracy by the singular values kept in the first layer after "
        "training, and what each rule would keep.",
    )


def _spectrum(run: Run) -> Picture:
    """The first seed's first layer at four moments of its training."""
    history = run.history()
    steps = history[f"spectra/sigma/{LAYER}"][0]
    epochs = run.summary["epochs"] * steps / run.summary["steps"]
    chosen = sorted({0, min(1, len(steps) - 1), len(steps) // 3, len(steps) - 1})
    shape = run.array("parameters")[LAYER].shape[1:]
    panels = [
        figures.Bulk(
            f"epoch {epochs[place]:g}",
            run.array(f"vectors-{steps[place]:08d}")[LAYER][0],
            shape,
            sigma=history[f"spectra/sigma/{LAYER}"][1][place, 0],
            edge=history[f"spectra/edge/{LAYER}"][1][place, 0],
        )
        for place in chosen
    ]
    return Picture(
        figures.bulk_evolution(panels),
        "Singular values of the first layer while it trains (one seed): the bulk stays the noise "
        "that it was initialised with, and signal grows out of it.",
    )


def _loop(results: Results, protocol: str) -> Section:
    """Accuracy by parameters, differences by seed, dead classes, and a table per cell."""
    arms = [arm for arm in ARMS if f"linear/{arm}" in results.arms(protocol)]
    points = {
        ARMS[arm].title: _with_accuracy(results, protocol, f"linear/{arm}", "parameters")
        for arm in arms
    }
    groups = {}
    for name in ("linear", "ReLU"):
        pairs = [_with_accuracy(results, protocol, f"{name}/{arm}", "dead_classes") for arm in arms]
        dead, accuracy = map(np.concatenate, zip(*pairs, strict=True))
        groups[f"{_heading(name)}, all arms"] = dead, accuracy
    pictures = {
        "parameters": Picture(
            figures.accuracy_by_parameters(points, order=ORDER),
            "Linear logits, no weight decay: test accuracy by parameters. Arms made for equal "
            "parameters stand beside each other.",
        ),
        "paired-linear": _paired(results, protocol, "linear", arms),
        "paired-relu": _paired(results, protocol, "ReLU", arms),
        "dead-classes": Picture(
            figures.dead_classes(groups),
            "All arms and seeds: with a ReLU on the logits, what decides the accuracy is how many "
            "classes are never answered.",
        ),
    }
    tables = [
        of_results(
            results, COLUMNS, caption=f"{_heading(name)}: every arm, {INTERVALS}",
            protocols=[protocol], arms=[f"{name}/{arm}" for arm in arms], against=f"{name}/dense",
        )
        for name in CELLS
    ]  # fmt: skip
    noise = of_results(
        results,
        {metric.removeprefix("ks "): (metric, 1.0)
         for metric in results.metrics(arm="linear/split", protocol=protocol)
         if metric.startswith("ks ")},
        caption="Linear logits: distance of each layer's bulk from the Marchenko-Pastur law, "
        "before the cut, right after it, and at the end",
        protocols=[protocol], arms=[f"linear/{arm}" for arm in arms],
    )  # fmt: skip
    return Section("Splitting while training", "loop", pictures, [*tables, noise])


def _paired(results: Results, protocol: str, name: str, arms: list[str]) -> Picture:
    gains = {arm: paired(f"{name}/{arm}", f"{name}/dense", protocol=protocol) for arm in arms[1:]}
    differences = {
        ARMS[arm].title: found
        for arm, gain in gains.items()
        if (found := gain.of(results)) is not None
    }
    return Picture(
        plots.paired_differences(
            differences, xlabel="test accuracy, minus the dense network (percentage points)"
        ),
        f"{_heading(name)}: every arm against the dense network of the same seed.",
    )


def _fashion(results: Results) -> Section:
    """A table of all arms, and what their dead classes explain."""
    groups = {
        f"{arm}, {logits} logits": _with_accuracy(
            results, "fashion", f"{logits}/{arm}", "dead_classes"
        )
        for logits in fashion.LOGITS
        for arm in ("none", "MP", "MP+L1+L2")
    }
    picture = Picture(
        figures.dead_classes(groups),
        "Fashion-MNIST: test accuracy of every network by the classes that it never answers.",
    )
    tables = [
        of_results(
            results, {**COLUMNS, "spikes": ("spikes", 1.0)},
            caption=f"{logits} logits: every arm, {INTERVALS}",
            protocols=["fashion"],
            arms=[f"{logits}/{arm}" for arm in fashion.ARMS], against=f"{logits}/none",
        )
        for logits in fashion.LOGITS
    ]  # fmt: skip
    return Section(
        "Fashion-MNIST: pruned again and again", "fashion", {"dead-classes": picture}, tables
    )


def _cnn(results: Results) -> Section:
    layers = {f"rank, {layer}": (f"rank/{layer}", 1.0) for layer in cnn.LAYERS}
    table = of_results(
        results, COLUMNS | layers, caption=f"Linear logits: {INTERVALS}",
        protocols=["cnn"], against="dense",
    )  # fmt: skip
    return Section("Convolutions: a split LeNet-5", tables=[table])


def _resnet(results: Results) -> Section:
    """Accuracy by parameters, and a table."""
    arms = results.arms("resnet")
    points = {arm: _with_accuracy(results, "resnet", arm, "parameters") for arm in arms}
    unit = f"blocks of {resnet.BLOCK} images"
    picture = Picture(
        figures.accuracy_by_parameters(points, unit=unit),
        "ResNet-20 on CIFAR-10, compressed at once and not trained again: its spectra are no noise "
        "with signal on top, so an edge between the two cuts into what it needs.",
    )
    columns = {name: COLUMNS[name] for name in ("test accuracy (%)", "parameters")}
    columns |= {name: (name, 1.0) for name in ("factored", "layers")}
    table = of_results(
        results, columns, caption=f"CIFAR-10 test images; intervals over {unit}",
        protocols=["resnet"], against=resnet.WHOLE,
    )  # fmt: skip
    return Section("A compressed ResNet-20", "resnet", {"parameters": picture}, [table])


def _rules(results: Results, protocol: str) -> list[str]:
    metrics = results.metrics(arm="linear", protocol=protocol)
    return [metric for metric in metrics if metric.startswith("rank/")]


def _with_accuracy(
    results: Results, protocol: str, arm: str, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """A metric of an arm, and its test accuracy in percent, by seed."""
    accuracy = results.known("test/accuracy", arm=arm, protocol=protocol)
    return results.known(metric, arm=arm, protocol=protocol), 100 * accuracy


def _heading(name: str) -> str:
    logits, _, decay = name.partition(", ")
    return f"{logits[0].upper()}{logits[1:]} logits{', with weight decay' if decay else ''}"
