"""A reproduction on one page: verdicts, then pictures and tables, then where it all comes from.

The page is a single HTML file with no script and no outside resource; figures are inline SVG. The
same input gives the same bytes.
"""

from __future__ import annotations

import csv
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from experiments.claims import VERDICTS, Judged
from spectral_jax.plots import to_svg

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
        f"<h1>{escape(title)}</h1>",
        f"<p class='lead'>{summary}</p>",
        "<h2>Claims</h2>",
        _claims_table(claims),
        *(_section(section) for section in sections),
        "<h2>Provenance</h2>",
        _definitions(provenance),
    ]
    return _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(parts))


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
    head = ("Verdict", "Claim", "Published", "Ours", "Protocol difference", "Source and note")
    rows = []
    for claim in claims:
        badge = claim.verdict.lower().replace(" ", "-")
        cells = [
            f"<span class='badge {badge}'>{claim.verdict}</span>",
            escape(claim.text),
            escape(claim.published),
            escape(claim.ours),
            escape(claim.difference),
            f"{escape(claim.source)} ({claim.origin})"
            + (f"<br><em>{escape(claim.note)}</em>" if claim.note else ""),
        ]
        rows.append(
            f"<tr id='{escape(claim.id)}'>"
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    counts = ", ".join(
        f"{sum(claim.verdict == verdict for claim in claims)} {verdict}" for verdict in VERDICTS
    )
    heading = "".join(f"<th scope='col'>{name}</th>" for name in head)
    caption = f"{escape(counts)}. Mean and 95 % interval over seeds."
    return _scrolling(
        f"<table><caption>{caption}</caption><thead><tr>{heading}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.heading)}</h2>"]
    for number, picture in enumerate(section.figures):
        caption = escape(picture.caption)
        name = f"{section.heading}-{number}"
        parts.append(
            f"<figure role='img' aria-label='{caption}'>{_inline(picture.figure, name)}"
            f"<figcaption>{caption}</figcaption></figure>"
        )
    parts += [_table(table) for table in section.tables]
    return "\n".join(parts)


def _inline(figure: Figure, name: str) -> str:
    """The figure's SVG, its ids made unique on the page: two figures must not share a clip path."""
    svg = to_svg(figure)
    svg = svg[svg.index("<svg") :]
    prefix = re.sub(r"\W+", "-", name).lower()
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    columns = _columns(table.rows)
    heading = "".join(f"<th scope='col'>{escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(row.get(name, '')))}</td>" for name in columns) + "</tr>"
        for row in table.rows
    )
    caption = escape(table.caption)
    return _scrolling(
        f"<table><caption>{caption}</caption><thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table>"
    )


def _scrolling(table: str) -> str:
    return f"<div class='wide' tabindex='0'>{table}</div>"


def _definitions(facts: Mapping[str, str]) -> str:
    rows = (
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items()
    )
    return f"<dl>{''.join(rows)}</dl>"


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

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --back: #fff; --line: #d5d5d5; --soft: #666; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --back: #161616; --line: #3a3a3a; --soft: #a5a5a5; }
  figure svg { background: #fff; border-radius: 4px; }
}
body { margin: 0; color: var(--text); background: var(--back);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.lead { font-size: 1.1rem; max-width: 48rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; }
caption { text-align: left; color: var(--soft); padding: .4rem 0; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem;
  border-bottom: 1px solid var(--line); }
td { font-variant-numeric: tabular-nums; }
.badge { display: inline-block; padding: .05rem .45rem; border-radius: .7rem; font-size: .75rem;
  font-weight: 600; white-space: nowrap; color: #fff; background: #666; }
.match { background: #00694b; } .trend { background: #0b5a8a; } .mismatch { background: #a63a00; }
.not-run { background: #666; } .underspecified { background: #7d4a72; }
figure { margin: 1.5rem 0; } figure svg { max-width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .9rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .85rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media print { .wide { overflow: visible; } figure, tr { break-inside: avoid; } }
"""
