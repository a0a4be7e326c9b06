"""What has a network learned? Diagonalising its forward feature map, arXiv 2410.04264.

The last layer's features have eigenvalues; each direction has a *quality*, how much of the labels
it holds, and a *utilisation*, how much of it the outputs read. *Richness* (0 richest, 1 laziest)
sums up how far the features have become what the outputs need and nothing more; it knows no labels.

`protocols` says what is trained, and measured layer by layer meanwhile. The studies: `endpoints`
says what training changed; `estimates` how many images it takes to know; `sizes` how it depends on
width, classes and examples; `lazy` makes training lazy on purpose; `pixels` makes a network rich in
what does not generalise; `regimes` counts directions per class in several networks on several data
sets. Those of `dynamics` are training loops of their own.
"""

from __future__ import annotations

from typing import Any

from experiments.papers.feature_map import dynamics
from experiments.papers.feature_map.protocols import PROTOCOLS
from experiments.papers.paper import Paper, Study

DENSE: dict[str, Any] = {
    "dataset": "mnist10k", "hidden": (256, 256, 256), "batch": 128, "epochs": 30, "seeds": 8,
    "examples": 2000,
}  # fmt: skip
TINY: dict[str, Any] = {
    "dataset": "digits", "hidden": (32,), "batch": 32, "epochs": 4, "seeds": 2,
    "examples": 1437,
}  # fmt: skip
PIXELS: dict[str, Any] = {
    **DENSE, "amps": (0.0, 0.3, 1.0, 3.0), "rates": (3e-4, 1e-3, 3e-3, 1e-2), "epochs": 20,
    "tuned": 1, "validation": 1000,
}  # fmt: skip
SIZES: dict[str, Any] = {
    "dataset": "mnist10k", "layers": 3, "width": 256, "batch": 128, "steps": 1860, "seeds": 5,
    "measured": 1000, "widths": (64, 128, 512), "classes": (2, 5), "examples": (1000, 3000, 8000),
}  # fmt: skip
MNIST10K = {"small": ["mnist10k"], "paper": ["mnist10k"]}


def _larger(options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The larger presets alike: what ``paper`` has more of is in the protocols."""
    return {"small": options, "paper": options}


PAPER = Paper(
    "feature_map",
    "What has it learned? The forward feature map",
    PROTOCOLS,
    studies=(
        Study("endpoints", {"smoke": {"examples": 1437}, **_larger({"examples": 2000})}, of="p1"),
        Study(
            "estimates",
            _larger({"examples": 2000, "counts": (64, 128, 300, 1000), "subsets": 4}),
            of="p1",
        ),
        Study("regimes", _larger({}), of="settings"),
        Study(
            "sizes", _larger(SIZES), needs=MNIST10K, hours={"small": 0.1, "paper": 0.1},
        ),
        Study(
            "lazy", _larger({**DENSE, "alphas": (1, 10, 100)}),
            needs=MNIST10K, hours={"small": 0.05, "paper": 0.05},
        ),
        Study(
            "pixels",
            {
                "smoke": {**TINY, "amps": (3.0,), "rates": (3e-3,), "epochs": 6, "tuned": 1,
                          "validation": 0},
                **_larger(PIXELS),
            },
            needs=MNIST10K, hours={"small": 0.1, "paper": 0.1},
        ),
        *dynamics.STUDIES,
    ),
    costs={
        "smoke": "under a minute on two CPU cores, data that ships with scikit-learn",
        "small": "an hour and a half of one CPU core; MNIST, Fashion-MNIST, CIFAR-10",
        "paper": "an estimated two days on a GPU",
    },
)  # fmt: skip
