"""The papers there are. A new one is a file beside this one, and a line here.

A paper module declares `TITLE`, `PRESETS` (preset -> protocol -> arm -> `ExperimentConfig`) and
`reproduce(preset, *, root, overrides) -> exit code`; `COSTS` (preset -> what it takes) if it likes.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from experiments.errors import UserError
from experiments.names import did_you_mean

PAPERS = {
    "fiedler": "experiments.papers.fiedler",
    "farms": "experiments.papers.farms",
    "rmt_svd": "experiments.papers.rmt_svd",
}


def load(name: str) -> ModuleType:
    """Import a paper's module; `UserError` (2) with a suggestion for an unknown name."""
    if name not in PAPERS:
        known = did_you_mean(name, PAPERS) or f"; there are: {', '.join(PAPERS)}"
        raise UserError(f"no paper {name!r}{known}")
    return importlib.import_module(PAPERS[name])
