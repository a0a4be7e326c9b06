"""From results to verdicts and pages."""

from importlib import import_module
from typing import Any

# What papers that still write their pages the old way ask for; goes when the last has moved.
_OLD = (
    "Picture", "Row", "Section", "Table",
    "cell", "origin", "print_claims", "render", "tally", "write_report", "write_table",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _OLD:
        raise AttributeError(name)
    return getattr(import_module("experiments.report.old"), name)
