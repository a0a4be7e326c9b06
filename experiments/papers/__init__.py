"""The papers there are. A new one is a package beside this file, and its name here."""

from __future__ import annotations

import importlib

from experiments.errors import UserError
from experiments.names import offered
from experiments.papers.paper import Paper

PAPERS = ["fiedler", "farms", "rmt_svd", "sloppy", "feature_map"]


def load(name: str) -> Paper:
    """A paper's declaration; `UserError` (2) with a suggestion for an unknown name."""
    if name not in PAPERS:
        known = offered(name, PAPERS)
        raise UserError(f"no paper {name!r}{known}")
    return importlib.import_module(f"{__name__}.{name}").PAPER
