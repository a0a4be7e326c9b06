"""The studies of this paper that are training loops of their own; two are too slow for smoke."""

from __future__ import annotations

from typing import Any

from experiments.papers.paper import Study

# Of yoonsoonam119/linear_first, figure 11a; checkpoints and seeds are ours.
GROKKING: dict[str, Any] = {
    "seeds": {"as given": 5, "init gain 1": 3, "no L2": 3}, "epochs": 1500, "times": 40,
    "dataset": "mnist", "examples": 1000, "unseen": 2000, "hidden": (512, 512, 512), "batch": 128,
    "learning_rate": 1e-3,
}  # fmt: skip
LINEAR: dict[str, Any] = {
    "balances": (0, 0.1, 0.3, 1, 3, 10), "seeds": 5, "inputs": 12, "hidden": 8, "steps": 40_000,
    "learning_rate": 1e-3,
}  # fmt: skip
# So many epochs are 2,997 steps: the source tells numbers of step 3,000.
MODULAR: dict[str, Any] = {
    "prime": 97, "share": 0.5, "width": 128, "seeds": 3, "epochs": 333, "times": 24, "batch": 512,
    "learning_rate": 1e-3, "decay": 1.0,
}  # fmt: skip
TANGENT: dict[str, Any] = {
    "dataset": "mnist", "examples": 1000, "unseen": 500, "test": 2000, "hidden": (256, 256),
    "seeds": 8, "epochs": 100, "batch": 100, "learning_rates": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
}  # fmt: skip
REGULARISER: dict[str, Any] = {
    "dataset": "mnist", "examples": 2000, "unseen": 1000, "hidden": (256, 256), "epochs": 30,
    "batch": 100, "learning_rates": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    "strengths": (0.01, 0.03, 0.1, 0.3, 1.0),
    "decays": (0.1, 0.3, 1.0, 3.0, 10.0), "tuning_seeds": 3, "seeds": 8,
}  # fmt: skip
TINY: dict[str, Any] = {"dataset": "digits", "batch": 50}
MNIST = {"small": ["mnist"], "paper": ["mnist"]}

STUDIES = (
    Study(
        "grokking",
        {
            "smoke": {
                **GROKKING, **TINY, "seeds": {"as given": 2}, "epochs": 60, "times": 6,
                "examples": 200, "unseen": 200, "hidden": (16,),
            },
            "small": GROKKING,
            "paper": {**GROKKING, "seeds": dict.fromkeys(GROKKING["seeds"], 16)},
        },
        needs=MNIST,
        hours={"small": 0.4, "paper": 1.7},
    ),
    Study(
        "linear",
        {
            "smoke": {**LINEAR, "seeds": 2, "steps": 8000, "learning_rate": 5e-3},
            "small": LINEAR,
            "paper": LINEAR,
        },
    ),
    Study(
        "modular",
        {"small": MODULAR, "paper": {**MODULAR, "seeds": 8}},
        hours={"small": 0.15, "paper": 0.4},
    ),
    Study(
        "tangent",
        {"small": TANGENT, "paper": {**TANGENT, "seeds": 16}},
        needs=MNIST,
        hours={"small": 0.05, "paper": 0.1},
    ),
    Study(
        "regulariser",
        {
            "smoke": {
                **REGULARISER, **TINY, "examples": 200, "unseen": 200, "hidden": (16,), "epochs": 5,
                "learning_rates": (3e-3, 1e-2), "strengths": (0.1, 1.0), "decays": (0.01, 0.1),
                "tuning_seeds": 1, "seeds": 2,
            },
            "small": REGULARISER,
            "paper": {**REGULARISER, "seeds": 32},
        },
        needs=MNIST,
        hours={"small": 0.12, "paper": 0.4},
    ),
)  # fmt: skip
