"""RMT-SVD: arXiv 2303.08986, 2310.03165 and 2503.01922, a successor 2606.02608.

Prune the singular values below the edge of a layer's noise, and factor the layer, while training.
The studies: `ranks` asks how many values a trained layer needs, `loop` splits networks while they
train and holds them against every control there is, `counts` counts the published parameters;
`fashion` prunes a deep network again and again, `cnn` splits convolutions, `resnet` compresses a
trained one.
"""

from __future__ import annotations

from typing import Any

from experiments.papers.paper import Paper, Study
from experiments.papers.rmt_svd.protocols import PROTOCOLS

# Twice as many seeds as are tuned on, at two rates, so that both stages share their programs.
LOOP: dict[str, Any] = {
    "dataset": "mnist", "train_limit": 5000, "validation": 2000, "hidden": (300, 300),
    "batch_size": 128, "before": 6, "after": 6, "seeds": 8, "tuning_seeds": 4,
    "rate": 0.08, "rates": (0.02, 0.08),
    "arms": (
        "dense", "dense-reset", "split", "split-reset", "split-55", "split-random", "split-init",
        "split-scratch", "split-fixed", "split-magnitude", "edge", "edge-scratch", "edge-fixed",
        "edge-magnitude", "gd", "shrink",
    ),
}  # fmt: skip
CNN: dict[str, Any] = {
    "dataset": "mnist", "train_limit": 3200, "batch_size": 64, "model": "lenet",
    "rate": 0.02, "before": 3, "after": 3, "seeds": 8,
}  # fmt: skip
FASHION: dict[str, Any] = {
    "dataset": "fashion_mnist", "train_limit": 5000, "hidden": (200, 200, 200, 200, 100),
    "batch_size": 64, "decay": (0.96, 4), "epochs": 12, "every": 2, "keep": 24, "rate": 0.02,
    "seeds": 8,
}  # fmt: skip
PRETRAINED = ("cifar10", "pretrained/resnet20_cifar10.npz")

PAPER = Paper(
    "rmt_svd",
    "RMT-SVD: pruning by the Marchenko-Pastur edge",
    PROTOCOLS,
    studies=(
        Study(
            "ranks",
            {"smoke": {"dataset": "digits"}, "small": {"dataset": "mnist"},
             "paper": {"dataset": "mnist"}},
            needs={"smoke": ("digits",), "small": ("mnist",), "paper": ("mnist",)},
            of="figure5",
        ),
        Study(
            "loop",
            {
                "smoke": {
                    **LOOP, "dataset": "digits", "train_limit": 1000, "validation": 400,
                    "hidden": (96, 96), "batch_size": 32, "before": 3, "after": 3, "seeds": 3,
                    "rates": (0.08,),
                    "arms": ("dense", "split", "edge", "edge-fixed", "edge-magnitude"),
                },
                "small": LOOP,
                "paper": {**LOOP, "train_limit": 50_000, "validation": 10_000,
                          "hidden": (500, 500), "before": 15, "after": 15},
            },
            needs={"smoke": ("digits",), "small": ("mnist",), "paper": ("mnist",)},
        ),
        Study("counts", {preset: {} for preset in PROTOCOLS}),
        Study(
            "fashion",
            {
                "small": FASHION,
                "paper": {**FASHION, "train_limit": None, "hidden": (3000, 3000, 3000, 3000, 500),
                          "batch_size": 128, "epochs": 100, "every": 4, "keep": 200, "rate": 0.01},
            },
            needs={"small": ("fashion_mnist",), "paper": ("fashion_mnist",)},
        ),
        Study(
            "cnn",
            {
                "small": CNN,
                "paper": {**CNN, "dataset": "fashion_mnist", "train_limit": None,
                          "batch_size": 128, "before": 11, "after": 19},
            },
            needs={"small": ("mnist",), "paper": ("fashion_mnist",)},
        ),
        Study(
            "resnet",
            {"small": {"images": 1000}, "paper": {"images": 10_000}},
            needs={"small": PRETRAINED, "paper": PRETRAINED},
        ),
    ),
    costs={
        "smoke": "under a minute on two CPU cores, data that ships with scikit-learn",
        "small": "about 20 minutes on one CPU core; MNIST, Fashion-MNIST, CIFAR-10",
        "paper": "an estimated 120 hours on two CPU cores, a few on a GPU: the published networks, "
        "unpruned, and the loop on all of MNIST",
    },
)  # fmt: skip
