"""The figures and tables of the studies of `dynamics`."""

from __future__ import annotations

from experiments.papers.paper import Outcome
from experiments.report.page import Section


def sections(outcome: Outcome) -> list[Section]:
    """A section for whatever the preset measured."""
    return []
