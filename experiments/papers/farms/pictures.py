"""Figures and tables of the trained arms, from what the runs stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from experiments.papers.farms import evidence
from experiments.papers.farms.protocols import METHODS, TITLES
from experiments.report import Picture, Section, Table, cell
from experiments.reproduction import Runs, final
from experiments.runs import Run
from spectral_jax import plots
from spectral_jax.plots import farms as figures
from spectral_jax.plots.training import Curve

METRICS = {"hill": "plain exponent", "farms": "FARMS exponent"}


def sections(runs: Runs, tuning: Runs, folder: Path) -> list[Section]:
    """One section per protocol; each figure is a file in ``folder`` as well."""
    made = []
    for protocol, arms in runs.items():
        if not arms:
            continue
        drawn = _pictures(arms)
        for name, picture in drawn.items():
            plots.save(picture.figure, folder / f"{protocol}-{name}")
        tables = [results(protocol, arms)]
        if tuning.get(protocol):
            tables.append(_tuning(protocol, tuning[protocol]))
        made.append(Section(f"Learning rates: {protocol}", list(drawn.values()), tables))
    return made


def results(protocol: str, arms: Mapping[str, Run]) -> Table:
    """One row per arm: mean and 95 % interval over seeds."""
    rows = []
    for arm, run in arms.items():
        gain = evidence.difference(arms, arm, "uniform")
        rows.append(
            {
                "method": TITLES[arm],
                "test accuracy (%)": cell(evidence.accuracy(run)),
                "minus uniform, paired": "" if gain is None or arm == "uniform" else cell(gain),
                "train accuracy (%)": cell(evidence.accuracy(run, "train")),
                "seeds": f"{len(final(run, 'test/accuracy'))}",
                "diverged": f"{len(run.summary['diverged_seeds'])}",
                "minutes": f"{run.summary['seconds'] / 60:.1f}",
            }
        )
    return Table(f"{protocol}: every arm, mean and 95 % interval over seeds", rows)


def _tuning(protocol: str, arms: Mapping[str, Run]) -> Table:
    rows = [
        {
            "method": TITLES[arm.partition("@")[0]],
            "setting (rate, spread)": arm.partition("@")[2].replace("-", ", "),
            "validation accuracy (%)": cell(evidence.accuracy(run, "validation")),
        }
        for arm, run in arms.items()
    ]
    return Table(f"{protocol}: the settings tried, as many for every method", rows)


def _pictures(arms: Mapping[str, Run]) -> dict[str, Picture]:
    histories = {arm: _by_epoch(run) for arm, run in arms.items()}
    order = list(METHODS)
    pictures = {}
    if "uniform" in arms and len(arms) > 1:
        differences = {
            TITLES[arm]: evidence.accuracy(run) - evidence.accuracy(arms["uniform"])
            for arm, run in arms.items()
            if arm != "uniform"
        }
        pictures["paired"] = Picture(
            plots.paired_differences(
                differences, xlabel="test accuracy, minus one learning rate (percentage points)"
            ),
            "Every method against one learning rate for all layers, paired by seed. Open marks: "
            "the interval covers zero.",
        )
    accuracies = {
        arm: (h["test/accuracy"][0], 100 * h["test/accuracy"][1]) for arm, h in histories.items()
    }
    pictures["accuracy"] = Picture(
        plots.training_curves(accuracies, ylabel="test accuracy (%)", xlabel="epoch", arms=order),
        "Test accuracy over training.",
    )
    shown = "farms" if "farms" in arms else next(iter(arms))
    panels = {title: _layers(histories[shown], kind) for kind, title in METRICS.items()}
    if all(panels.values()):
        scales = _layers(histories[shown], "scale") or None
        pictures["tails"] = Picture(
            figures.tail_evolution(panels, scales),
            f"The exponents of each layer while {TITLES[shown]} trains, and what multiplied its "
            "learning rate. At initialisation a plain exponent shows shapes, not training.",
        )
    return pictures


def _layers(history: Mapping[str, Curve], kind: str) -> dict[str, Curve]:
    """Per layer its course of one kind of number, if the run recorded it."""
    prefix = f"spectra/{kind}/"
    return {
        name.removeprefix(prefix).removesuffix("/kernel"): curve
        for name, curve in history.items()
        if name.startswith(prefix)
    }


def _by_epoch(run: Run) -> dict[str, Curve]:
    history = run.history()
    steps_per_epoch = run.summary["steps"] / run.summary["epochs"]
    return {name: (steps / steps_per_epoch, values) for name, (steps, values) in history.items()}
