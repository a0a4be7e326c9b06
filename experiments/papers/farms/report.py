"""From finished runs and studies to the page: verdicts, tables, figures. Trains nothing."""

from __future__ import annotations

import dataclasses
import json
import sys
from html import escape
from pathlib import Path

from experiments import provenance
from experiments.claims import VERDICTS, Judged
from experiments.errors import CHECK_FAILED, DONE
from experiments.papers.farms import evidence, pictures
from experiments.report import Section, print_claims, render, write_table
from experiments.reproduction import Runs


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
    """Write the page and its tables into ``folder``; 3 if a reference number of ours is missed.

    A published claim that does not hold is a result, and exits with 0.
    """
    page = render(
        f"FARMS: preset {preset}",
        summary=answer(claims, runs),
        sections=sections,
        claims=claims,
        provenance={"command": command, **_provenance()},
    )
    (folder / "report.html").write_text(page, encoding="utf-8")
    rows = [dataclasses.asdict(claim) for claim in claims]
    write_table(folder / "claims", rows)
    results = [
        {"protocol": protocol, **row}
        for protocol, arms in runs.items()
        for row in pictures.results(protocol, arms).rows
    ]
    write_table(folder / "results", results)
    if as_json:
        print(json.dumps({"claims": rows, "results": results}, indent=2))
    else:
        print_claims(claims)
    print(f"report: {folder / 'report.html'}", file=sys.stderr)
    missed = [c for c in claims if c.origin == "our reference" and c.verdict == "MISMATCH"]
    return CHECK_FAILED if missed else DONE


def answer(claims: list[Judged], runs: Runs) -> str:
    """The page's first paragraph (HTML): what a reader who reads nothing else should know."""
    counts = {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS}
    tally = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    lines = [f"Of {len(claims)} claims: {tally}."]
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
            f"{pictures.cell(gain)} points against {name}"
            for name, gain in gains.items()
            if gain is not None
        ]
        if told:
            lines.append(f"Learning rates by FARMS on {protocol}: {', '.join(told)}.")
    return " ".join(escape(line) for line in lines)


def _provenance() -> dict[str, str]:
    facts = provenance.session()
    return {
        "commit": str(facts["git"]["commit"]) + (" (with changes)" if facts["git"]["diff"] else ""),
        "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        "device": f"{facts['device']}, {facts['cpus']} CPUs, {facts['dtype']}",
        "platform": facts["platform"],
        "threads": str(facts["threads"]),
    }
