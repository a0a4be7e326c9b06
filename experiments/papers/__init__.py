"""The papers there are. A new one is a package beside this file, and its name here."""

from __future__ import annotations

import importlib
from typing import Any

from experiments.errors import UserError
from experiments.names import did_you_mean
from experiments.papers import paper as declared
from experiments.papers.paper import Paper, Protocol

PAPERS = ["fiedler", "farms", "rmt_svd"]


def load(name: str) -> Paper:
    """A paper's declaration; `UserError` (2) with a suggestion for an unknown name."""
    if name not in PAPERS:
        known = did_you_mean(name, PAPERS) or f"; there are: {', '.join(PAPERS)}"
        raise UserError(f"no paper {name!r}{known}")
    module = importlib.import_module(f"{__name__}.{name}")
    if hasattr(module, "PAPER"):
        return module.PAPER
    # A paper that does not declare itself yet has TITLE, PRESETS, COSTS and a `reproduce`.
    protocols = {
        preset: {protocol: Protocol(arms) for protocol, arms in of_preset.items()}
        for preset, of_preset in module.PRESETS.items()
    }
    return Paper(name, module.TITLE, protocols, costs=module.COSTS)


def reproduce(paper: Paper, preset: str, **options: Any) -> int:
    """`paper.reproduce`, or the paper's own as long as it has one."""
    module = importlib.import_module(f"{__name__}.{paper.name}")
    if hasattr(module, "reproduce"):
        return module.reproduce(preset, **options)
    return declared.reproduce(paper, preset, **options)
