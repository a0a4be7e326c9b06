"""FARMS: arXiv 2506.06280 (ICML 2025), with TempBalance (2312.00359) and AlphaPruning (2410.10912).

Cut weights into windows of one aspect ratio before reading an exponent off their spectrum.
`protocols` says what is trained with it. The studies: `bias` measures what the windows remove from
noise, `layers` what they say of trained networks; `pruning` allocates the sparsity of a small
transformer, `operators` steers a neural operator; `llama` follows the published allocation, with
`llama_weights` where those are at hand.
"""

from __future__ import annotations

from typing import Any

from experiments.papers.farms.protocols import PROTOCOLS
from experiments.papers.paper import Paper, Study

NOISE: dict[str, Any] = {
    "shapes": (
        (512, 512), (512, 768), (512, 1024), (512, 1536), (512, 2048), (512, 3072), (512, 4096),
        (64, 64), (128, 128), (256, 256), (128, 512), (256, 2048),
    ),
    "draws": 12, "window": 128, "samples": 5,
    "ablation": {
        "shape": (128, 512), "windows": (16, 32, 64, 128), "ratios": (0.5, 0.75, 1.0, 1.25, 1.5),
        "draws": 10, "placements": 5,
    },
}  # fmt: skip
SMALL_NOISE = {
    **NOISE,
    "shapes": (*((128, n) for n in (128, 192, 256, 384, 512, 1024)), (64, 64)), "window": 64,
    "ablation": {
        "shape": (64, 256), "windows": (16, 32), "ratios": (0.5, 1.0), "draws": 10, "placements": 5,
    },
}  # fmt: skip
NETWORKS = ("resnet20_cifar10", "resnet32_cifar10")
LAYERS = {"networks": NETWORKS, "windows": (8, 16), "ratios": (0.5, 1.0, 1.5), "placements": 5}
FILES = [f"pretrained/{network}.npz" for network in NETWORKS]
GPT: dict[str, Any] = {
    "corpus": "tinyshakespeare", "width": 64, "depth": 6, "heads": 4, "context": 64, "batch": 16,
    "steps": 1000, "rate": 3e-3, "sparsities": (0.5, 0.6, 0.7, 0.8, 0.85),
    "epsilons": (0.3, 0.3, 0.3, 0.2, 0.15), "pruners": ("magnitude", "wanda", "sparsegpt"),
    "calibration": 32, "validation": 128, "seeds": 8,
}  # fmt: skip
OPERATOR: dict[str, Any] = {
    "points": 64, "width": 32, "modes": 16, "depth": 4, "hidden": 128, "examples": 200, "batch": 20,
    "pretraining_steps": 1000, "steps": 500, "rates": (2.5e-3, 5e-3, 1e-2), "tuning_seeds": 3,
    "seeds": 8,
}  # fmt: skip

PAPER = Paper(
    "farms",
    "FARMS: spectra of one aspect ratio",
    PROTOCOLS,
    studies=(
        Study("bias", {"smoke": SMALL_NOISE, "small": NOISE, "paper": NOISE}),
        Study("layers", {"small": LAYERS, "paper": LAYERS}, needs={"small": FILES, "paper": FILES}),
        Study(
            "pruning",
            {
                "smoke": {
                    **GPT, "corpus": "descriptions", "width": 32, "depth": 2, "heads": 2,
                    "context": 32, "steps": 60, "sparsities": (0.5, 0.8), "epsilons": (0.3, 0.2),
                    "pruners": ("magnitude", "sparsegpt"), "calibration": 8, "validation": 32,
                    "seeds": 2,
                },
                "small": GPT,
                "paper": {**GPT, "width": 384, "heads": 6, "context": 256, "batch": 64,
                          "steps": 5000, "rate": 1e-3, "calibration": 128},
            },
            needs={"small": ["tinyshakespeare"], "paper": ["tinyshakespeare"]},
        ),
        Study(
            "operators",
            {
                "smoke": {
                    **OPERATOR, "points": 32, "width": 16, "modes": 6, "depth": 2, "hidden": 32,
                    "examples": 40, "pretraining_steps": 60, "steps": 40, "rates": (2.5e-3,),
                    "seeds": 2,
                },
                "small": OPERATOR,
                "paper": {**OPERATOR, "points": 256, "width": 64, "examples": 1000,
                          "pretraining_steps": 35_000, "steps": 35_000,
                          "rates": (1e-3, 2.5e-3, 5e-3, 1e-2)},
            },
        ),
        Study("llama", {preset: {} for preset in PROTOCOLS}),
        Study(
            "llama_weights", {"paper": {"samples": 10}}, needs={"paper": ["llama-7b/config.json"]}
        ),
    ),
    costs={
        "smoke": "about two minutes on two CPU cores, data that ships with scikit-learn",
        "small": "under an hour on two CPU cores, CIFAR-10",
        "paper": "an estimated 100 GPU hours a network: ResNet-18, VGG-16; CIFAR-10, 200 epochs",
    },
)  # fmt: skip
