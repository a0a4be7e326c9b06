"""A reproduction on one page: verdicts, then pictures and tables, then where it all comes from.

The page is a single HTML file with no script and no outside resource; figures are inline SVG. The
same input gives the same bytes.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.claims import LEGEND, VERDICTS, Judged
from experiments.errors import CHECK_FAILED, DONE
from spectral_jax.plots import page
from spectral_jax.plots.intervals import t_interval

Row = Mapping[str, str]


@dataclass(frozen=True)
class Picture:
    """A figure and the sentence below it, which is also what a screen reader says."""

    figure: Figure
    caption: str


@dataclass(frozen=True)
class Table:
    """Rows that share their columns."""

    caption: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    heading: str
    figures: Sequence[Picture] = field(default_factory=tuple)
    tables: Sequence[Table] = field(default_factory=tuple)


def write_report(
    folder: str | Path,
    title: str,
    *,
    summary: str,
    claims: Sequence[Judged],
    sections: Sequence[Section],
    results: Sequence[Row],
    provenance: Mapping[str, str],
    as_json: bool = False,
) -> int:
    """Write the page and its tables (.csv, .md) into ``folder``, and print the verdicts.

    A published claim that does not hold is a result, and exits with 0; so is a training that ends
    elsewhere than the one seed it is compared with. Missing one of our own reference numbers is a
    failed check of this machine or this code: 3.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    page = render(title, summary=summary, claims=claims, sections=sections, provenance=provenance)
    (folder / "report.html").write_text(page, encoding="utf-8")
    rows = [dataclasses.asdict(claim) for claim in claims]
    write_table(folder / "claims", rows)
    write_table(folder / "results", results)
    if as_json:
        print(json.dumps({"claims": rows, "results": list(results)}, indent=2))
    else:
        print_claims(claims)
        print(LEGEND, file=sys.stderr)
    print(f"report: {folder / 'report.html'}", file=sys.stderr)
    missed = [c for c in claims if c.origin == "our reference" and c.verdict == "MISMATCH"]
    return CHECK_FAILED if missed else DONE


def tally(claims: Sequence[Judged]) -> str:
    """How many claims there are, by verdict, in a sentence."""
    counts = {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    return f"Of {len(claims)} claims: {told}."


def cell(values: np.ndarray) -> str:
    """Mean and half width of the 95 % interval; empty where there is no number."""
    mean, half, count = (float(part) for part in t_interval(values))
    if not count:
        return ""
    if not np.isfinite(half):
        return f"{mean:.4g}"
    # No more digits of the mean than the two of the interval are worth.
    decimals = int(1 - np.floor(np.log10(half))) if half > 0 else -1
    if 0 <= decimals <= 6:
        return f"{mean:.{decimals}f} ± {half:.{decimals}f}"
    return f"{mean:.4g} ± {half:.2g}"


def origin(facts: Mapping[str, Any]) -> dict[str, str]:
    """What a page says of where its numbers come from, of a run's provenance or a session's."""
    return {
        "commit": str(facts["git"]["commit"]) + (" (with changes)" if facts["git"]["diff"] else ""),
        "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        "device": f"{facts['device']}, {facts['cpus']} CPUs, {facts['dtype']}",
        "platform": facts["platform"],
        "threads": str(facts["threads"]),
    }


def render(
    title: str,
    *,
    summary: str,
    claims: Sequence[Judged],
    sections: Sequence[Section],
    provenance: Mapping[str, str],
) -> str:
    """The page. ``summary`` is HTML (escaped by the caller), everything else is plain text."""
    parts = [
        f"<p class='lead'>{summary}</p>",
        "<h2>Claims</h2>",
        _claims_table(claims),
        *(_section(section) for section in sections),
        "<h2>Provenance</h2>",
        page.definitions(provenance),
    ]
    return page.page(title, parts, style=_BADGES)


def write_table(stem: str | Path, rows: Sequence[Row]) -> None:
    """Write ``stem.csv`` and ``stem.md``; nothing for no rows."""
    if not rows:
        return
    columns = _columns(rows)
    with Path(f"{stem}.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    lines = [columns, ["---"] * len(columns)]
    lines += [[str(row.get(column, "")) for column in columns] for row in rows]
    text = "".join("| " + " | ".join(_cell(cell) for cell in line) + " |\n" for line in lines)
    Path(f"{stem}.md").write_text(text, encoding="utf-8")


def print_claims(claims: Sequence[Judged]) -> None:
    """The verdicts on stdout: a table for a person at a terminal, aligned text for a pipe."""
    from rich.console import Console
    from rich.table import Table as Grid

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 160
    grid = Grid("verdict", "claim", "published", "ours", box=None, pad_edge=False)
    done = [claim for claim in claims if claim.verdict != "NOT RUN"]
    for claim in done:
        style = f"bold {_COLOURS[claim.verdict]}"
        grid.add_row(f"[{style}]{claim.verdict}[/]", claim.text, claim.published, claim.ours)
    if len(done) < len(claims):
        rest = f"{len(claims) - len(done)} further claims: the page says what each would cost"
        grid.add_row("NOT RUN", rest)
    Console(width=width, highlight=False).print(grid)


def _claims_table(claims: Sequence[Judged]) -> str:
    """What was judged; then, folded away, what this preset does not run."""
    head = ("Verdict", "Claim", "Published", "Ours", "Protocol difference", "Source and note")
    done: list[list[str]] = []
    rest: list[list[str]] = []
    for claim in claims:
        badge = claim.verdict.lower().replace(" ", "-")
        cells = [
            f"<span id='{escape(claim.id)}' class='badge {badge}'>{claim.verdict}</span>",
            escape(claim.text),
            escape(claim.published),
            escape(claim.ours),
            escape(claim.difference),
            f"{escape(claim.source)} ({claim.origin})"
            + (f"<br><em>{escape(claim.note)}</em>" if claim.note else ""),
        ]
        (rest if claim.verdict == "NOT RUN" else done).append(cells)
    counts = ", ".join(
        f"{sum(claim.verdict == verdict for claim in claims)} {verdict}" for verdict in VERDICTS
    )
    table = page.table(f"{counts}. Mean and 95 % interval over seeds. {LEGEND}", head, done)
    if not rest:
        return table
    waiting = page.table("Not run in this preset, and what each would cost.", head, rest)
    return f"{table}<details><summary>{len(rest)} not run</summary>{waiting}</details>"


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.heading)}</h2>"]
    parts += [
        page.picture(picture.figure, picture.caption, name=f"{section.heading}-{number}")
        for number, picture in enumerate(section.figures)
    ]
    parts += [_table(table) for table in section.tables]
    return "\n".join(parts)


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    columns = _columns(table.rows)
    cells = [[escape(str(row.get(name, ""))) for name in columns] for row in table.rows]
    return page.table(table.caption, [escape(column) for column in columns], cells)


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


_COLOURS = {
    "MATCH": "green",
    "TREND": "cyan",
    "MISMATCH": "red",
    "NOT RUN": "yellow",
    "UNDERSPECIFIED": "magenta",
}

_BADGES = """
.match { background: #00694b; } .trend { background: #0b5a8a; } .mismatch { background: #a63a00; }
.not-run { background: #666; } .underspecified { background: #7d4a72; }
"""
