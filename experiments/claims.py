"""What a paper (or our own earlier measurement) says, beside what we see, and a verdict.

A claim is data; its evidence is one number per seed. The verdicts:

- MATCH: our mean is within the stated tolerance of the published value;
- TREND: no value was published, or ours differs, but the stated direction holds (the interval is
  off zero);
- MISMATCH: neither;
- NOT RUN: nothing was measured in this preset; the note says what it would cost;
- UNDERSPECIFIED: the source does not say enough to measure it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from spectral_jax.plots.intervals import t_interval

Verdict = Literal["MATCH", "TREND", "MISMATCH", "NOT RUN", "UNDERSPECIFIED"]
VERDICTS: tuple[Verdict, ...] = ("MATCH", "TREND", "MISMATCH", "NOT RUN", "UNDERSPECIFIED")
LEGEND = (
    "MATCH: our mean is within the tolerance. TREND: the direction holds, and the 95 % interval "
    "over seeds is off zero. MISMATCH: neither; an interval that covers zero may only say that the "
    "data and seeds are too few to tell, as they mostly are in the preset smoke."
)


@dataclass(frozen=True)
class Claim:
    """One statement that can be checked.

    ``value`` with ``tolerance`` is a number to meet; ``direction`` (+1 or -1) is the sign that the
    evidence, a paired difference, should have; a claim may have both. ``reason`` says why a claim
    that cannot be measured is not. ``origin`` tells a published number from a reference of ours.
    """

    id: str
    text: str
    source: str
    origin: Literal["published", "released code", "our reference", "one seed of ours"]
    value: float | None = None
    tolerance: float | None = None
    direction: Literal[-1, 0, 1] = 0
    unit: str = ""
    difference: str = ""
    cost: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        if (self.value is None) != (self.tolerance is None):
            raise ValueError(f"claim {self.id!r}: value and tolerance go together")


@dataclass(frozen=True)
class Judged:
    """A claim with its evidence and its verdict; the rows of the report."""

    id: str
    text: str
    published: str
    source: str
    origin: str
    ours: str
    verdict: Verdict
    difference: str = ""
    note: str = ""
    command: str = ""


def judge(
    claim: Claim, evidence: Sequence[float] | np.ndarray | None, *, command: str = ""
) -> Judged:
    """Compare ``evidence`` (one number per seed, or None if not measured) with the claim."""
    verdict, ours, note = _verdict(claim, evidence)
    return Judged(
        id=claim.id,
        text=claim.text,
        published=_published(claim),
        source=claim.source,
        origin=claim.origin,
        ours=ours,
        verdict=verdict,
        difference=claim.difference,
        note=note,
        command=command,
    )


def _verdict(claim: Claim, evidence: Any) -> tuple[Verdict, str, str]:
    if claim.value is None and not claim.direction:
        return "UNDERSPECIFIED", "", claim.reason
    if evidence is None:
        return "NOT RUN", "", claim.reason or f"cost: {claim.cost}" if claim.cost else claim.reason
    samples = np.atleast_1d(np.asarray(evidence, float))
    interval = t_interval(samples)
    mean, half, count = (float(part) for part in interval)
    lost = len(samples) - int(count)
    note = f"{lost} of {len(samples)} seeds have no number" if lost else ""
    if not count:
        return "MISMATCH", "", note
    ours = _number(mean, half, int(count), claim.unit)
    if claim.value is not None and abs(mean - claim.value) <= _require(claim.tolerance):
        return "MATCH", ours, note
    if claim.direction and np.isfinite(half) and claim.direction * mean > half:
        return "TREND", ours, note
    if claim.direction and not abs(mean) > half:
        note = "; ".join(filter(None, [note, "the interval covers zero"]))
    return "MISMATCH", ours, note


def _published(claim: Claim) -> str:
    if claim.value is not None:
        return f"{claim.value:.9g} ± {claim.tolerance:g}{claim.unit}"
    return {1: "positive", -1: "negative", 0: ""}[claim.direction]


def _number(mean: float, half: float, count: int, unit: str) -> str:
    # Two significant digits of the interval decide how many of the mean are worth printing.
    spread = half if np.isfinite(half) and half > 0 else abs(mean) * 1e-3 or 1.0
    decimals = int(np.clip(1 - np.floor(np.log10(spread)), 0, 6))
    interval = f" ± {half:.{decimals}f}" if np.isfinite(half) else ""
    return f"{mean:.{decimals}f}{interval}{unit} (n={count})"


def _require(number: float | None) -> float:
    assert number is not None
    return number
