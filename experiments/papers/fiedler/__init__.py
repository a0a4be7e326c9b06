"""Fiedler regularisation: arXiv 2003.00992 (ICML 2020), arXiv 2304.03096; a peer, arXiv 2103.03386.

Penalise the algebraic connectivity of the network's weight graph. `protocols` says what is trained,
`evidence` what is claimed and how our runs speak to it, `pictures` what is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.papers.fiedler.protocols import PRESETS

__all__ = ["COSTS", "PRESETS", "TITLE", "reproduce"]

TITLE = "Fiedler regularisation"
COSTS = {
    "smoke": "1-2 minutes on two CPU cores, data that ships with scikit-learn",
    "small": "under an hour on two CPU cores, MNIST",
    "paper": "about 3 hours on two CPU cores or minutes on a GPU; MNIST, CIFAR-10 and TCGA",
}


def reproduce(
    preset: str, *, root: str | Path, overrides: Sequence[str] = (), as_json: bool = False
) -> int:
    """Train the preset's arms, judge the claims, write the report; 3 if a reference is missed."""
    from experiments.papers.fiedler.report import write_report
    from experiments.reproduction import train_protocols

    runs = train_protocols(PRESETS[preset], root=root, overrides=overrides)
    command = " ".join(
        ["python -m experiments reproduce fiedler", f"--preset {preset}", *overrides]
    )
    return write_report(runs, preset, root=Path(root), command=command, as_json=as_json)
