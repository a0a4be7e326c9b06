"""From finished runs and studies to the page: verdicts, tables, figures. Trains nothing."""

from __future__ import annotations

from html import escape
from pathlib import Path

from experiments import report
from experiments.claims import Judged
from experiments.papers.farms import evidence, pictures
from experiments.report import Section, origin, tally
from experiments.reproduction import Runs
from experiments.runs import provenance


def write_report(
    claims: list[Judged],
    sections: list[Section],
    runs: Runs,
    preset: str,
    *,
    folder: Path,
    command: str,
    as_json: bool = False,
) -> int:
    """Write the page and its tables into ``folder``; 3 if a reference number of ours is missed."""
    results = [
        {"protocol": protocol, **row}
        for protocol, arms in runs.items()
        for row in pictures.results(protocol, arms).rows
    ]
    return report.write_report(
        folder,
        f"FARMS: preset {preset}",
        summary=answer(claims, runs),
        claims=claims,
        sections=sections,
        results=results,
        provenance={"command": command, **origin(provenance.session())},
        as_json=as_json,
    )


def answer(claims: list[Judged], runs: Runs) -> str:
    """The page's first paragraph (HTML): what a reader who reads nothing else should know."""
    lines = [tally(claims)]
    by_id = {claim.id: claim for claim in claims}
    bias = [by_id[name].ours for name in ("bias-plain", "bias-farms") if name in by_id]
    if len(bias) == 2:
        lines.append(
            "Between the squarest and the longest matrix of pure noise the plain exponent differs "
            f"by {bias[0]}, that of FARMS by {bias[1]}."
        )
    for protocol, arms in runs.items():
        gains = {
            name: evidence.difference(arms, "farms", name)
            for name in ("uniform", "tempbalance", "debiased")
        }
        told = [
            f"{report.cell(gain)} points against {name}"
            for name, gain in gains.items()
            if gain is not None
        ]
        if told:
            lines.append(f"Learning rates by FARMS on {protocol}: {', '.join(told)}.")
    return " ".join(escape(line) for line in lines)
