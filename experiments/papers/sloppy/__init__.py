"""Does the data induce capacity control? arXiv 2110.14163 (ICML 2022).

Inputs whose spectrum is *sloppy*, a sharp drop and then small eigenvalues over many decades, are
said to make networks whose curvature is sloppy too, and which therefore generalise. `protocols`
says which networks are trained. The studies: `causal` changes the spectrum of the inputs and
nothing else; `pac_bayes` certifies networks that are trained on a bound.
"""

from __future__ import annotations

from typing import Any

from experiments.papers.paper import Paper, Study
from experiments.papers.sloppy.protocols import PROTOCOLS

CAUSAL: dict[str, Any] = {
    "rates": (0.0, 0.001, 0.01, 0.02, 0.05), "examples": (1000, 5000, 50_000),
    "controls_at": 5000, "seeds": 8, "hidden": 256, "batch": 200, "steps": 2000,
    "learning_rate": 0.01, "most": 50_000, "test": 10_000,
}  # fmt: skip
# Of some 30 settings that were compared on MNIST; each pays for 100.
DATA_FREE: dict[str, Any] = {
    "dataset": "mnist", "hidden": (50,), "scale": 0.2, "epochs": 20, "learning_rate": 0.01,
    "batch": 500, "tried": 100,
}  # fmt: skip
LEARNT: dict[str, Any] = {
    "dataset": "mnist", "hidden": (300,), "scale": 0.03, "epochs": 2, "learning_rate": 0.001,
    "batch": 125, "learnt": 0.5, "prior_epochs": 20, "prior_rate": 0.003, "tried": 100,
}  # fmt: skip
PAC_BAYES: dict[str, Any] = {
    "seeds": 3, "passes": 6,
    "arms": {
        "binary": {**DATA_FREE, "dataset": "mnist2"},
        "data-free prior": DATA_FREE,
        "learnt prior": LEARNT,
        "learnt prior, shifted images": {**LEARNT, "shift": 2},
    },
}  # fmt: skip
PAPER = Paper(
    "sloppy",
    "Sloppy data and capacity control",
    PROTOCOLS,
    studies=(
        Study(
            "causal",
            {
                "smoke": {
                    **CAUSAL, "rates": (0.0, 0.01, 0.05), "examples": (500,), "controls_at": 500,
                    "seeds": 2, "hidden": 32, "steps": 150, "most": 500, "test": 500,
                },
                "small": CAUSAL,
                "paper": {**CAUSAL, "hidden": 1000, "batch": 1000, "steps": 2500},
            },
        ),
        Study(
            "pac_bayes",
            {
                "smoke": {
                    "seeds": 1, "passes": 3,
                    "arms": {
                        "data-free prior": {
                            **DATA_FREE, "dataset": "digits", "hidden": (), "scale": 0.5,
                            "epochs": 60, "learning_rate": 0.03, "batch": 50,
                        },
                    },
                },
                "small": PAC_BAYES,
                "paper": {**PAC_BAYES, "seeds": 8},
            },
            needs={"small": ["mnist", "mnist2"], "paper": ["mnist", "mnist2"]},
            hours={"small": 0.2, "paper": 0.5},
        ),
    ),
    costs={
        "smoke": "under a minute on two CPU cores, data that ships with scikit-learn",
        "small": "about an hour on two CPU cores, MNIST",
        "paper": "some hours on two CPU cores or a GPU",
    },
)  # fmt: skip
