"""What is claimed of splitting while training, by whom, and what the arms of the loop say to it."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from experiments.claims import Claim, Judged, judge
from experiments.papers.rmt_svd.counts import parameters_of
from experiments.papers.rmt_svd.loop import ARMS, CELLS
from experiments.papers.rmt_svd.protocols import PUBLISHED
from experiments.runs import Run

PAPER = "arXiv 2303.08986"
FAIR = "the paper's thesis, tested fairly"
SHEET = "our measurement before this repository"


class Result(NamedTuple):
    """An arm in a cell, at the rate that suits it on validation data; arrays are per seed."""

    rate: float
    numbers: dict[str, np.ndarray]

    @property
    def accuracy(self) -> np.ndarray:
        """On the test split, in percent."""
        return self.numbers["test accuracy"]


def results(run: Run) -> dict[str, dict[str, Result]]:
    """``[cell][arm]``."""
    found: dict[str, dict[str, Result]] = {cell: {} for cell in CELLS}
    for arm in run.summary["arms"]:
        stored = run.load_array(arm)
        assert stored is not None
        best = stored["validation accuracy"].mean(axis=-1).argmax(axis=0)
        for place, (cell, rate) in enumerate(zip(CELLS, best, strict=True)):
            numbers = {name: values[rate, place] for name, values in stored.items()}
            found[cell][arm] = Result(run.summary["rates"][rate], numbers)
    return found


def difference(run: Run, cell: str, arm: str, other: str) -> np.ndarray | None:
    """Test accuracy of one arm minus another's in a cell, paired by seed; None if not trained."""
    arms = results(run)[cell]
    if arm not in arms or other not in arms:
        return None
    return arms[arm].accuracy - arms[other].accuracy


def claims(run: Run, command: str) -> list[Judged]:
    """The accuracy claim, its controls, the second question, and the parameters of the papers."""
    rows = [*_gain(run), *_controls(run), *_second_question(run), *_dead(run), *_counts(), *_big()]
    return [judge(claim, evidence, command=command) for claim, evidence in rows]


def _gain(run: Run) -> list[tuple[Claim, Any]]:
    """Does a split raise accuracy, with a ReLU on the logits and without?"""
    rows = []
    for cell in CELLS:
        claim = Claim(
            id=f"loop-split-gains-{_slug(cell)}",
            text=f"{_told(cell)}: a network split while it trains tests better than the dense one",
            source=PAPER,
            origin="published",
            direction=1,
            unit=" points",
            difference="a smaller network and fewer digits; a real test split; rates tuned alike",
        )
        rows.append((claim, difference(run, cell, "split", "dense")))
    none = Claim(
        id="loop-split-linear",
        text="linear logits: change of test accuracy by the split",
        source=f"{SHEET}, four seeds of 784-1000-10",
        origin="one seed of ours",
        value=-0.1,
        tolerance=0.4,
        unit=" points",
        cost="preset small",
    )
    on_mnist = run.summary["dataset"] == "mnist"
    rows.append((none, difference(run, "linear", "split", "dense") if on_mnist else None))
    return rows


def _controls(run: Run) -> list[tuple[Claim, Any]]:
    """What else could explain a difference, with linear logits."""
    claim = partial(
        Claim, source=FAIR, origin="published", direction=1, unit=" points", cost="preset small"
    )
    pairs = {
        ("split", "split-random"): "the largest values below the edge do better than random ones",
        ("split", "split-scratch"): "splitting a trained network does better than training its "
        "factors from scratch",
        ("split", "split-init"): "splitting a trained network does better than splitting an "
        "untrained one, as released",
        ("split", "split-reset"): "momentum carried over the split does better than momentum lost",
        ("split", "split-55"): "keeping 45 % of the noise does better than removing 45 %",
        ("dense-reset", "dense"): "what loses its momentum tests better, without any split",
        ("edge", "gd"): "the MP edge does better than the Gavish-Donoho threshold",
        ("edge", "shrink"): "dropping the noise does better than shrinking as well",
    }
    return [
        (
            claim(id=f"loop-{arm}-over-{other}", text=f"linear logits: {text}"),
            difference(run, "linear", arm, other),
        )
        for (arm, other), text in pairs.items()
    ]


def _second_question(run: Run) -> list[tuple[Claim, Any]]:
    """At equal parameters: does the rank that the noise dictates beat other ways to spend them?"""
    rows = []
    for cell in ("linear", "linear, L2"):
        for family in ("split", "edge"):
            for other in ("fixed", "magnitude", *(("scratch",) if family == "edge" else ())):
                pair = family, f"{family}-{other}"
                claim = Claim(
                    id=f"loop-{pair[0]}-over-{pair[1]}-{_slug(cell)}",
                    text=f"{_told(cell)}, equal parameters: {ARMS[family].title} tests better than "
                    f"{ARMS[pair[1]].title}",
                    source=FAIR,
                    origin="published",
                    direction=1,
                    unit=" points",
                    cost="preset small",
                )
                rows.append((claim, difference(run, cell, *pair)))
    return rows


def _dead(run: Run) -> list[tuple[Claim, Any]]:
    """Where the published gap comes from."""
    found = results(run)
    on_mnist = run.summary["dataset"] == "mnist"
    dead = {cell: arms["dense"].numbers["dead classes"] for cell, arms in found.items()}
    sheet = partial(Claim, source=SHEET, origin="our reference")
    rows: list[tuple[Claim, Any]] = [
        (
            sheet(
                id="loop-dead-linear",
                text="dense, linear logits: classes never answered",
                value=0.0,
                tolerance=0.0,
                cost="preset small",
            ),
            dead["linear"] if on_mnist else None,
        ),
        (
            sheet(
                id="loop-dead-relu",
                text="dense: a ReLU on the logits leaves classes without an answer",
                direction=1,
                cost="preset small",
            ),
            dead["ReLU"] - dead["linear"] if on_mnist else None,
        ),
    ]
    slope = Claim(
        id="loop-dead-cost",
        text="ReLU logits, all arms: test accuracy lost with each dead class",
        source=f"{SHEET}: a line through its eight seeds",
        origin="one seed of ours",
        value=9.5,
        tolerance=1.2,
        unit=" points",
        cost="preset small",
        difference="another network; a class answered now and then is not counted as dead",
    )
    rows.append((slope, _cost_of_a_dead_class(found["ReLU"]) if on_mnist else None))
    return rows


def _cost_of_a_dead_class(arms: dict[str, Result]) -> np.ndarray | None:
    """One slope per arm whose seeds differ in their dead classes."""
    slopes = []
    for result in arms.values():
        dead = result.numbers["dead classes"]
        if np.ptp(dead) > 0:
            slopes.append(-np.polyfit(dead, result.accuracy, 1)[0])
    return np.array(slopes) if slopes else None


def _counts() -> list[tuple[Claim, Any]]:
    """The published parameter counts, from shapes."""
    claim = partial(Claim, source=PAPER, origin="published", tolerance=0.0)
    rows: list[tuple[Claim, Any]] = []
    for name, net in PUBLISHED.items():
        example = name.replace("ex", "Ex. ")
        if net.dense is not None:
            dense = claim(
                f"parameters-{name}-dense", f"{example}: parameters, dense", value=float(net.dense)
            )
            rows.append((dense, [parameters_of(net.widths)]))
        if net.parameters is not None:
            split = claim(
                f"parameters-{name}",
                f"{example}: parameters after the splits, a bias for every factor",
                value=float(net.parameters),
            )
            rows.append((split, [parameters_of(net.widths, net.chain, bias_every_factor=True)]))
    top = claim("parameters-ex4.1", "Ex. 4.1: first layer at its top 20 values", value=35_680.0)
    first = parameters_of((784, 1000), (784, 20, 1000)) - 1000  # less its bias
    rows.append((top, [first]))
    return rows


def _big() -> list[tuple[Claim, Any]]:
    """Published accuracies: the networks are constructed, training them is for the paper preset."""
    return [
        (
            Claim(
                id=f"accuracy-{name}",
                text=f"{name.replace('ex', 'Ex. ')}, {'-'.join(map(str, net.widths))}: accuracy "
                f"{net.plain:g} % plain, {net.split:g} % split",
                source=PAPER,
                origin="published",
                direction=1,
                cost=f"{net.epochs} epochs of MNIST, an estimated {net.hours:g} hours a network "
                "on two cores; plain networks: preset paper",
            ),
            None,
        )
        for name, net in PUBLISHED.items()
    ]


def _slug(cell: str) -> str:
    return cell.replace(", ", "-").lower()


def _told(cell: str) -> str:
    logits, _, decay = cell.partition(", ")
    return f"{logits} logits{', weight decay' if decay else ''}"
