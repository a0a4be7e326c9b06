"""From a claim and the results to a verdict.

| type | verdict | when |
|---|---|---|
| deterministic | NUMBER MATCH, NUMBER MISS | our mean is within the tolerance, or not |
| stochastic | REPRODUCED | the 90 % interval of ours minus the reference lies within ±d |
| | NOT REPRODUCED | the 95 % interval lies outside of ±d |
| | CONTEXT | the reference has no spread: shown, never judged |
| direction | SUPPORTED | the 95 % interval lies on the claimed side of 0, and Holm agrees |
| | CONTRADICTED | the same on the other side |
| | NO EFFECT | the 90 % interval lies within ±d (two one-sided tests at 5 %) |
| both | INCONCLUSIVE | none of these: so many more seeds are needed |
| any | NOT RUN, UNDERSPECIFIED | nothing was measured; the source does not say enough |
| any | ESTIMATE | a control, or a direction in the preset smoke: shown, not judged |

Intervals are Student's, Welch's where the reference has a spread. d is the claim's smallest effect.
Rules are tried from the top, so a small effect that is certain is SUPPORTED and called negligible.

**Holm.** A 95 % interval lies on one side of 0 where the smaller of the claim's two one-sided
p-values (mean above 0, mean below 0) is under 2.5 %. The primary directions of a paper that have
evidence are one family of m: ordered by that p-value, the i-th of them (from 0) is multiplied by
m - i, and none may fall below the one before it. SUPPORTED and CONTRADICTED take an *adjusted*
p-value under 2.5 %. The chance of any wrong direction among them all is then 5 %. Two one-sided
tests, for NO EFFECT, are not adjusted, nor are numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from experiments.names import did_you_mean
from experiments.report import statistics
from experiments.report.claims import Claim
from experiments.report.results import Need, Results
from experiments.report.selection import require_fresh_seeds
from experiments.report.statistics import Estimate
from experiments.report.tables import number

Verdict = Literal[
    "NUMBER MATCH", "NUMBER MISS",
    "REPRODUCED", "NOT REPRODUCED", "SUPPORTED", "NO EFFECT", "CONTRADICTED", "INCONCLUSIVE",
    "CONTEXT", "ESTIMATE", "NOT RUN", "UNDERSPECIFIED",
]  # fmt: skip
# What a verdict says to a reader who does not know its rule.
WORDS = {
    "SUPPORTED": "as claimed", "CONTRADICTED": "the opposite of the claim",
    "NO EFFECT": "too small to matter", "INCONCLUSIVE": "undecided",
    "REPRODUCED": "as stated", "NOT REPRODUCED": "not as stated",
}  # fmt: skip
SMOKE = "smoke"
NEGLIGIBLE = "negligible"


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict, and what it rests on.

    Attributes:
        estimate: of the evidence; None where there is none.
        p: of the direction after Holm; NaN where the claim is not of the family.
        note: what a reader should know: negligible, lost seeds, seeds still needed, a reason.
    """

    claim: Claim
    verdict: Verdict
    estimate: Estimate | None = None
    note: str = ""
    p: float = math.nan

    @property
    def id(self) -> str:
        """The claim's."""
        return self.claim.id

    @property
    def ours(self) -> str:
        """Mean and 95 % interval, and how many replications they are of; empty without any."""
        if self.estimate is None:
            return ""
        counted = f"n = {self.estimate.n} {self.claim.replication}"
        if self.estimate.items:
            counted += f" x {self.estimate.items} test items"
        return f"{self._shown(self.estimate)}{self.claim.unit} ({counted})"

    @property
    def told(self) -> str:
        """The same for a sentence, its verdict in words: ``0.3 ± 0.1 points (as claimed)``."""
        if self.estimate is None:
            return ""
        small = ", but too small to matter" if self.negligible else ""
        words = f" ({WORDS[self.verdict]}{small})" if self.verdict in WORDS else ""
        return f"{self._shown(self.estimate)}{self.claim.unit}{words}"

    @property
    def stated(self) -> str:
        """What the source says, and by how much it would matter if it were not so."""
        claim = self.claim
        told = {1: "positive", -1: "negative", 0: ""}[claim.direction]
        if claim.value is not None:
            rounding = "" if claim.tolerance is None else f" ± {claim.tolerance:g}"
            spread = f" (sd {claim.spread:g} of {claim.reference_n})" if claim.spread else ""
            told = f"{claim.value:.9g}{rounding}{claim.unit}{spread}"
        matters = f", d = {claim.smallest_effect:g}{claim.unit}" if claim.smallest_effect else ""
        return told + matters

    @property
    def negligible(self) -> bool:
        """Whether an effect is certain, and certainly smaller than any that matters."""
        return self.note.startswith(NEGLIGIBLE)

    @property
    def missed(self) -> bool:
        """Whether a number that this machine and code must give is not what it gives."""
        return self.verdict == "NUMBER MISS"

    def _shown(self, found: Estimate) -> str:
        if self.claim.type == "deterministic":
            return f"{found.mean:.9g}"  # all digits: the tolerance may be finer than the seeds
        low, high = statistics.interval(found, 0.95)
        return number(found.mean, (high - low) / 2)

    def row(self) -> dict[str, str]:
        """The columns of a table."""
        claim = self.claim
        return {
            "id": claim.id,
            "verdict": self.verdict,
            "claim": claim.text,
            "stated": self.stated,
            "ours": self.ours,
            "note": self.note,
            "family": claim.family,
            "origin": claim.origin,
            "source": claim.source,
            "citation": claim.citation,
            "difference": claim.difference,
            "command": claim.command,
        }


def judge_all(claims: Sequence[Claim], results: Results, *, preset: str) -> list[Judged]:
    """Every claim with its verdict, in the order given; Holm over the primary directions.

    Raises:
        UserError: if final numbers hold a seed that their protocol was tuned on.
    """
    require_fresh_seeds(results)
    estimates = {claim.id: _estimate(claim, results) for claim in claims}
    family = {
        claim.id: statistics.p_direction(found)
        for claim in claims
        if (found := estimates[claim.id]) is not None and _in_family(claim, preset)
    }
    adjusted = statistics.holm(family)
    return [
        _not_run(claim, results)
        if (found := estimates[claim.id]) is None
        else _judge(claim, found, results, preset=preset, p=adjusted.get(claim.id, math.nan))
        for claim in claims
    ]


def _estimate(claim: Claim, results: Results) -> Estimate | None:
    samples = None if claim.evidence is None else claim.evidence.of(results)
    if claim.evidence is None or samples is None:
        return None
    items = claim.evidence.items(results)
    found = statistics.estimate(samples) if items is None else statistics.crossed(items)
    return found if found.n else None


def _in_family(claim: Claim, preset: str) -> bool:
    return claim.type == "direction" and claim.family == "primary" and preset != SMOKE


def _judge(claim: Claim, found: Estimate, results: Results, *, preset: str, p: float) -> Judged:
    verdict, why = _verdict(claim, found, preset=preset, p=p)
    remark = claim.evidence.remark(results) if claim.evidence else ""
    note = "; ".join(filter(None, [why, remark, *_caveats(claim, found)]))
    return Judged(claim, verdict, found, note, p)


def _verdict(claim: Claim, found: Estimate, *, preset: str, p: float) -> tuple[Verdict, str]:
    if claim.type is None:
        return "UNDERSPECIFIED", claim.reason
    if claim.family == "control":
        return "ESTIMATE", "a control"
    if claim.type == "deterministic":
        return _of_number(claim, found)
    if claim.type == "stochastic":
        return _of_stochastic(claim, found)
    if preset == SMOKE:
        return "ESTIMATE", "the preset smoke decides no direction"
    return _of_direction(claim, found, p)


def _of_number(claim: Claim, found: Estimate) -> tuple[Verdict, str]:
    assert claim.value is not None and claim.tolerance is not None
    met = abs(found.mean - claim.value) <= claim.tolerance
    return ("NUMBER MATCH" if met else "NUMBER MISS"), ""


def _of_stochastic(claim: Claim, found: Estimate) -> tuple[Verdict, str]:
    assert claim.value is not None and claim.smallest_effect is not None
    if claim.spread is None:
        return "CONTEXT", "the reference has no spread"
    off = statistics.against(found, claim.value, claim.spread, claim.reference_n)
    if statistics.within(off, claim.smallest_effect):
        return "REPRODUCED", ""
    low, high = statistics.interval(off, 0.95)
    if low > claim.smallest_effect or high < -claim.smallest_effect:
        return "NOT REPRODUCED", ""
    if found.n < 2:
        return "INCONCLUSIVE", _still_needed(claim, found)
    exact = found._replace(mean=claim.value, error=0.0)
    at_best = statistics.against(exact, claim.value, claim.spread, claim.reference_n)
    if not statistics.within(at_best, claim.smallest_effect):
        return "INCONCLUSIVE", "the error of the reference alone is more than d"
    return "INCONCLUSIVE", _still_needed(claim, found)


def _of_direction(claim: Claim, found: Estimate, p: float) -> tuple[Verdict, str]:
    assert claim.smallest_effect is not None
    d = claim.smallest_effect
    low, high = statistics.interval(found, 0.95)
    if p < statistics.LEVEL:
        verdict: Verdict = "SUPPORTED" if claim.direction * found.mean > 0 else "CONTRADICTED"
        return verdict, NEGLIGIBLE if -d < low and high < d else ""
    if statistics.within(found, d):
        return "NO EFFECT", ""
    alone = f"off zero alone, not among the paper's claims (Holm: p = {2 * p:.2g})"
    return "INCONCLUSIVE", _still_needed(claim, found) + (
        f"; {alone}" if low > 0 or high < 0 else ""
    )


def _still_needed(claim: Claim, found: Estimate) -> str:
    assert claim.smallest_effect is not None
    if found.n < 2:
        return f"one of {claim.replication} has no interval: at least 2 are needed"
    deviation = found.error * math.sqrt(found.n)
    needed = statistics.seeds_needed(deviation, claim.smallest_effect)
    if needed > claim.largest_n:
        return f"about {needed} {claim.replication} would tell; the claim allows {claim.largest_n}"
    more = f"about {max(1, needed - found.n)} more {claim.replication}"
    return f"{more}, or test items, are needed" if found.items else f"{more} are needed"


def _not_run(claim: Claim, results: Results) -> Judged:
    if claim.type is None:
        return Judged(claim, "UNDERSPECIFIED", None, claim.reason)
    samples = claim.evidence.of(results) if claim.evidence else None
    lost = "" if samples is None else f"none of {len(samples)} {claim.replication} has a number"
    needs = sorted(claim.evidence.needs()) if claim.evidence else ()
    cost = f"cost: {claim.cost}" if claim.cost else ""
    told = [lost, *(_why_missing(need, results) for need in needs), claim.reason, cost]
    return Judged(claim, "NOT RUN", None, "; ".join(dict.fromkeys(filter(None, told))))


def _why_missing(need: Need, results: Results) -> str:
    """The reason that was noted, or the name that is not there; empty if all is there."""
    reason = results.reason(protocol=need.protocol, arm=need.arm)
    arms = results.arms(need.protocol)
    if reason or not arms:
        return reason
    if need.arm not in arms:
        close = did_you_mean(need.arm, arms)
        return f"this preset has no arm {need.arm!r} in {need.protocol!r}{close}"
    metrics = results.metrics(protocol=need.protocol, arm=need.arm)
    if need.metric not in metrics:
        close = did_you_mean(need.metric, metrics)
        return f"{need.protocol}/{need.arm} has no metric {need.metric!r}{close}"
    return ""


def _caveats(claim: Claim, found: Estimate) -> list[str]:
    total = found.n + found.lost
    notes = []
    if found.lost:
        notes.append(f"{found.lost} of {total} {claim.replication} have no number")
    if found.n > 1 and found.error == 0 and claim.type != "deterministic":
        notes.append(f"all {found.n} {claim.replication} agree exactly")
    if claim.largest_n and total > claim.largest_n:
        notes.append(f"{total} {claim.replication} are more than the {claim.largest_n} declared")
    return notes


def as_json(judged: Judged) -> dict[str, Any]:
    """A row with its numbers, for programs."""
    found = judged.estimate
    low, high = statistics.interval(found, 0.95) if found else (math.nan, math.nan)
    numbers = {"mean": found.mean if found else math.nan, "low": low, "high": high, "p": judged.p}
    finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
    return {**judged.row(), **finite, "n": found.n if found else 0}
