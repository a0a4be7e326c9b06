"""What the paper, its code and we say, and which of our numbers speak to it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from experiments.papers.paper import Outcome
from experiments.papers.sloppy.studies.causal import name
from experiments.report.claims import Claim
from experiments.report.evidence import final, paired
from experiments.report.verdicts import Judged

PAPER = "arXiv 2110.14163"
FAIR = "a comparison that no paper makes"
GENERALISE = (
    "Networks trained on atypical datasets with non-sloppy inputs do not share these traits and "
    "deep networks trained on such datasets generalize poorly."
)

direction = partial(Claim, type="direction", largest_n=32, cost="preset small")


def _causal() -> list[Claim]:
    """The spectrum of the inputs, changed and nothing else; what else could explain the effect."""
    slope = partial(final, "per decade", protocol="causal")
    rises = partial(direction, unit=" points per decade", smallest_effect=0.1)
    claims = [
        rises(
            f"causal-{count}",
            f"{count:,} examples: the more decades the inputs' spectrum spans, the lower the test "
            "error (slope)",
            PAPER, "published", citation=GENERALISE, direction=-1,
            evidence=slope(arm=f"regression/n={count}"),
            difference="the synthetic problem with the inputs' norm, the steps and the teacher's "
            "law fixed, which in the source all change with the spectrum",
        )
        for count in (1000, 5000, 50_000)
    ]  # fmt: skip
    return [
        *claims,
        rises(
            "causal-flat-labels",
            "5,000 examples: so it does where the labels depend on all directions alike (slope)",
            FAIR, "our question", direction=-1,
            evidence=slope(arm="regression/n=5000/flat labels"),
        ),
        direction(
            "causal-flat-inputs",
            "5,000 examples, labels of the sloppiest teacher: the network errs less on sloppy "
            "inputs than on the same inputs rescaled to a flat spectrum",
            FAIR, "our question", direction=-1, unit=" points", smallest_effect=0.5,
            evidence=paired(name(0.05, 5000), name(0.05, 5000, "flat inputs"), protocol="causal",
                            metric="test/error"),
        ),
    ]  # fmt: skip


CLAIMS: Sequence[Claim] = (*_causal(),)


def learned(outcome: Outcome, judged: Sequence[Judged]) -> list[str]:
    """What a reader who reads nothing else should know."""
    found = {one.id: one for one in judged}
    told = [
        "A spectrum is sloppy if it falls sharply and then spreads its small values over many "
        "powers of ten (decades)."
    ]
    return told + _of_causes(found)


def _of_causes(found: dict[str, Judged]) -> list[str]:
    slopes = {
        "1,000": found["causal-1000"],
        "5,000": found["causal-5000"],
        "50,000": found["causal-50000"],
    }
    shown = [f"{one.told} with {count} examples" for count, one in slopes.items() if one.told]
    if not shown:
        return []
    told = [
        f"A decade more of spectrum in the inputs changes the test error by {'; '.join(shown)}."
    ]
    if flat := found["causal-flat-labels"].told:
        told.append(
            "Where the labels depend on all directions alike, weak ones included, it changes it by "
            f"{flat} instead: what helps is that labels and spectrum agree."
        )
    return told
