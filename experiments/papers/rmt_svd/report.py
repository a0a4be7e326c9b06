"""From finished runs and studies to the page: verdicts, tables, figures. Trains nothing."""

from __future__ import annotations

from html import escape
from pathlib import Path

from experiments import report
from experiments.claims import Judged
from experiments.papers.rmt_svd import evidence, pictures
from experiments.papers.rmt_svd.loop import CELLS
from experiments.report import Section, cell, origin, tally
from experiments.runs import Run, provenance


def write_report(
    claims: list[Judged],
    sections: list[Section],
    loop: Run,
    preset: str,
    *,
    folder: Path,
    command: str,
    as_json: bool = False,
) -> int:
    """Write the page and its tables into ``folder``; 3 if a reference number of ours is missed."""
    results = [{"cell": name, **row} for name in CELLS for row in pictures.rows(loop, name)]
    return report.write_report(
        folder,
        f"RMT-SVD: preset {preset}",
        summary=answer(claims, loop),
        claims=claims,
        sections=sections,
        results=results,
        provenance={"command": command, **origin(provenance.session())},
        as_json=as_json,
    )


def answer(claims: list[Judged], loop: Run) -> str:
    """The page's first paragraph (HTML): what a reader who reads nothing else should know."""
    lines = [tally(claims)]
    gains = {name: evidence.difference(loop, name, "split", "dense") for name in ("linear", "ReLU")}
    told = [f"{cell(gain)} points with {name} logits" for name, gain in gains.items()
            if gain is not None]  # fmt: skip
    if told:
        lines.append(f"A split while training changes test accuracy by {' and '.join(told)}.")
    dense = evidence.results(loop)["ReLU"].get("dense")
    if dense is not None:
        dead = cell(dense.numbers["dead classes"])
        lines.append(f"With a ReLU on the logits {dead} of 10 classes are never answered.")
    even = evidence.difference(loop, "linear", "edge", "edge-fixed")
    if even is not None:
        lines.append(
            f"At equal parameters the ranks above the Marchenko-Pastur edge differ by {cell(even)} "
            "points from one rank for all layers."
        )
    return " ".join(escape(line) for line in lines)
