"""What is claimed of the studies of `dynamics`, and what was learned of them."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.report.claims import Claim
from experiments.report.verdicts import Judged

CLAIMS: tuple[Claim, ...] = ()


def learned(judged: Sequence[Judged]) -> list[str]:
    """The sentences that the page has of them."""
    return []
