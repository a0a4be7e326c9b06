"""What is claimed of layer-wise learning rates, by whom, and what our runs say to it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from experiments.claims import Claim, Judged, judge
from experiments.papers.farms.protocols import TITLES
from experiments.reproduction import Runs, final
from experiments.runs import Run

PAPER = "arXiv 2506.06280"
TEMPBALANCE = "arXiv 2312.00359"
FAIR = "the paper's thesis, tested fairly"

# (method, other, whose claim): the method tests better, says its author or the paper's thesis.
COMPARISONS = (
    ("tempbalance", "uniform", TEMPBALANCE),
    ("farms", "uniform", PAPER),
    ("farms", "tempbalance", PAPER),
    ("farms", "debiased", FAIR),
    ("farms", "shape-only", FAIR),
    ("farms", "shuffled", FAIR),
    ("farms", "random-windows", FAIR),
)


def accuracy(run: Run, split: str = "test") -> np.ndarray:
    """Final accuracy per seed, in percent."""
    name = "final_train/accuracy" if split == "train" else f"{split}/accuracy"
    return 100 * final(run, name)


def claims(runs: Runs, *, command: str) -> list[Judged]:
    """Each comparison in each protocol, then what this preset or machine cannot say."""
    rows = [row for protocol, arms in runs.items() for row in _compared(protocol, arms)]
    return [judge(claim, value, command=command) for claim, value in [*rows, *_not_run()]]


def difference(arms: Mapping[str, Run], method: str, other: str) -> np.ndarray | None:
    """Test accuracy of one arm minus another's, paired by seed; None if one was not trained."""
    if method not in arms or other not in arms:
        return None
    return accuracy(arms[method]) - accuracy(arms[other])


def _compared(protocol: str, arms: Mapping[str, Run]) -> list[tuple[Claim, np.ndarray | None]]:
    return [
        (
            Claim(
                id=f"{protocol}-{method}-over-{other}",
                text=f"{protocol}: {TITLES[method]} tests better than {TITLES[other]} (paired)",
                source=source,
                origin="published",
                direction=1,
                unit=" points",
                cost="preset small",
                difference="not the published networks and data; both arms tuned alike"
                if protocol != "digits"
                else "a smoke test: digits, one setting for every arm",
            ),
            difference(arms, method, other),
        )
        for method, other, source in COMPARISONS
    ]


def _not_run() -> list[tuple[Claim, None]]:
    table = partial(
        Claim, origin="published", reason="per-cell tables were not available to us: abstract only"
    )
    known = [
        Claim(
            id="alphadecay-60m",
            text="LLaMA-60M pre-training, AlphaDecay: perplexity (32.39 with uniform decay)",
            source="arXiv 2506.14562",
            origin="published",
            value=31.56,
            tolerance=0.1,
            cost="C4 and about 10 GPU hours",
        ),
        table(
            id="cifar100-tables",
            text="CIFAR-100, ResNet-18/34 and VGG-16/19: FARMS over TempBalance",
            source=PAPER,
        ),
        table(
            id="window-ablation",
            text="accuracy hardly depends on the window's size and shape",
            source=PAPER,
        ),
    ]
    return [(claim, None) for claim in known]
