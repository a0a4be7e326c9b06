"""FARMS: arXiv 2506.06280 (ICML 2025), with TempBalance (2312.00359) and AlphaPruning (2410.10912).

Cut weights into windows of one aspect ratio before reading an exponent off their spectrum.
`bias` measures what that removes, `protocols` says what is trained with it, `evidence` what is
claimed of the training, `pictures` what is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from experiments.papers.farms.protocols import PRESETS

__all__ = ["COSTS", "PRESETS", "STUDIES", "TITLE", "reproduce"]

TITLE = "FARMS: spectra of one aspect ratio"
COSTS = {
    "smoke": "about two minutes on two CPU cores, data that ships with scikit-learn",
    "small": "under an hour on two CPU cores, CIFAR-10",
    "paper": "an estimated 100 GPU hours a network: ResNet-18, VGG-16; CIFAR-10, 200 epochs",
}

# Modules here that measure something of their own: `run(preset, root=...) -> Run`,
# `claims(run, command)` and `section(run, folder)`. A new one is a file and a name.
STUDIES = ("bias", "pruning", "operators", "llama")


def reproduce(
    preset: str, *, root: str | Path, overrides: Sequence[str] = (), as_json: bool = False
) -> int:
    """Measure, train, judge the claims, write the report; 3 if a reference is missed."""
    from experiments.papers.farms import evidence, pictures
    from experiments.papers.farms.report import write_report
    from experiments.papers.farms.training import train_all

    command = " ".join(["python -m experiments reproduce farms", f"--preset {preset}", *overrides])
    folder = Path(root) / "reports" / f"farms-{preset}"
    folder.mkdir(parents=True, exist_ok=True)
    claims, sections = [], []
    for name in STUDIES:
        module = import_module(f"{__name__}.{name}")
        run = module.run(preset, root=root)
        claims += module.claims(run, command)
        sections.append(module.section(run, folder / "figures"))
    runs, tuning = train_all(preset, root=root, overrides=overrides)
    claims += evidence.claims(runs, command=command)
    sections += pictures.sections(runs, tuning, folder / "figures")
    return write_report(
        claims, sections, runs, preset, folder=folder, command=command, as_json=as_json
    )
