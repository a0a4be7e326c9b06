"""A reproduction on one page: what was learned, verdicts, pictures and tables, where it is from.

The page is a single HTML file with no script and no outside resource; figures are inline SVG. The
same input gives the same bytes.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from experiments.errors import CHECK_FAILED, DONE
from experiments.report.claims import Declaration
from experiments.report.tables import Table
from experiments.report.verdicts import Judged, Verdict, as_json
from spectral_jax import plots
from spectral_jax.plots import page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
NOT_RUN = ("NOT RUN", "UNDERSPECIFIED")
LEGEND = (
    "Mean and 95 % interval (Student's t). SUPPORTED: the interval lies on the claimed side of "
    "zero, corrected for the number of claims (Holm); CONTRADICTED: on the other side; negligible: "
    "all of it is smaller than d, the least effect that would matter. NO EFFECT: no more than d "
    "either way. REPRODUCED: within d of the stated number, both errors counted. Intervals in "
    "figures and tables are over seeds; verdicts count a small test set's items, too."
)


@dataclass(frozen=True)
class Picture:
    """A figure and the sentence below it, which is also what a screen reader says."""

    figure: Figure
    caption: str

    @cached_property
    def svg(self) -> str:
        """Drawn once, for the page and for the file."""
        return plots.to_svg(self.figure)


@dataclass(frozen=True)
class Section:
    """A part of the page. A figure called ``paired`` is a file, too: ``<stem>-paired.svg``.

    pages: HTML pages by their title, to be written beside this one, which has links to them.
    """

    heading: str
    stem: str = ""
    figures: Mapping[str, Picture] = field(default_factory=dict)
    tables: Sequence[Table] = field(default_factory=tuple)
    pages: Mapping[str, str] = field(default_factory=dict)

    def file_of(self, title: str) -> str:
        """The name of a page's file.

        >>> Section("While it trains", "course").file_of("the spectra, moving")
        'course-the-spectra-moving.html'
        """
        return f"{self.stem}-{'-'.join(re.findall(r'[a-z0-9]+', title.lower()))}.html"


@dataclass(frozen=True)
class Report:
    """All that the page says.

    Attributes:
        learned: sentences that a stranger understands; the page begins with them.
        results: the numbers of all arms, as the paper's table would have them.
        provenance: facts by name; the hash of the claims is added to them.
    """

    title: str
    learned: Sequence[str]
    judged: Sequence[Judged]
    declaration: Declaration
    sections: Sequence[Section] = ()
    results: Table = field(default_factory=lambda: Table("", ()))
    provenance: Mapping[str, str] = field(default_factory=dict)


def write_report(report: Report, folder: str | Path, *, as_json: bool = False) -> int:
    """Write the page, its tables (.csv, .md, .tex) and its figures, and print the verdicts.

    Returns:
        The exit code. A claim that does not hold is a result (0); a number that this machine and
        this code must give, and do not, is a failed check (3).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.html").write_text(render(report), encoding="utf-8")
    Table("Claims", [one.row() for one in report.judged]).write(folder / "claims")
    report.results.write(folder / "results")
    save_figures(report.sections, folder / "figures")
    for section in report.sections:
        for title, html in section.pages.items():
            (folder / section.file_of(title)).write_text(html, encoding="utf-8")
    print(_json(report) if as_json else claims_table(report.judged).terminal(), end="")
    print(f"claims: {report.declaration.sha256}", file=sys.stderr)
    print(f"report: {folder / 'report.html'}", file=sys.stderr)
    return CHECK_FAILED if any(one.missed for one in report.judged) else DONE


def claims_table(judged: Sequence[Judged]) -> Table:
    """What a terminal shows of the claims: those that were run, and how many were not."""
    rows = [
        {"verdict": one.verdict, "claim": one.claim.text, "stated": one.stated, "ours": one.ours}
        for one in judged
        if one.verdict not in NOT_RUN
    ]
    if len(rows) < len(judged):
        rest = f"{len(judged) - len(rows)} further claims: the page says what each would cost"
        rows.append({"verdict": "NOT RUN", "claim": rest})
    return Table("Claims", rows, styles=_STYLES)


def tally(judged: Sequence[Judged]) -> str:
    """How many claims there are, by verdict, in a sentence."""
    counts = {verdict: sum(one.verdict == verdict for one in judged) for verdict in VERDICTS}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    return f"Of {len(judged)} claims: {told}."


def origin(facts: Mapping[str, Any]) -> dict[str, str]:
    """What a page says of where its numbers come from, of a run's provenance or a session's."""
    return {
        "commit": str(facts["git"]["commit"]) + (" (with changes)" if facts["git"]["diff"] else ""),
        "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        "device": f"{facts['device']}, {facts['cpus']} CPUs, {facts['dtype']}",
        "platform": facts["platform"],
        "threads": str(facts["threads"]),
    }


def render(report: Report) -> str:
    """The page as HTML."""
    lead = f"<p class='lead'>{escape(' '.join(report.learned))}</p>" if report.learned else ""
    facts = {**report.provenance, "claims (SHA-256)": report.declaration.sha256}
    parts = [
        lead,
        *_claims(report.judged),
        *_changes(report.declaration),
        *(as_html(section) for section in report.sections),
        "<h2>Provenance</h2>",
        page.definitions(facts),
    ]
    return page.page(report.title, [part for part in parts if part], style=_BADGES)


def as_html(section: Section) -> str:
    """A section with its figures, links and tables."""
    parts = [f"<h2>{escape(section.heading)}</h2>"]
    parts += [
        page.picture(picture.svg, picture.caption, name=f"{section.stem}-{name}")
        for name, picture in section.figures.items()
    ]
    parts += [
        f"<p><a href='{section.file_of(title)}'>{escape(title)}</a></p>" for title in section.pages
    ]
    parts += [table.html() for table in section.tables]
    return "\n".join(parts)


def save_figures(sections: Sequence[Section], folder: Path) -> None:
    """Write every figure as ``<stem>-<name>.svg``, ``.pdf`` and ``.png``."""
    for section in sections:
        for name, picture in section.figures.items():
            plots.save(picture.figure, folder / f"{section.stem}-{name}", drawn=picture.svg)


def _claims(judged: Sequence[Judged]) -> list[str]:
    """What was decided; checks of our own numbers; folded away, what was not decided or not run."""
    groups: dict[str, list[Judged]] = {name: [] for name in _GROUPS}
    for one in judged:
        groups[_group(one)].append(one)
    decided = _claims_html(LEGEND, groups["decided"]) or "<p>This preset decides none of them.</p>"
    parts = ["<h2>Claims</h2>", f"<p>{escape(tally(judged))}</p>", decided]
    for name, caption in _GROUPS.items():
        if caption and groups[name]:
            table = _claims_html(caption, groups[name])
            summary = f"<summary>{name}: {len(groups[name])}</summary>"
            parts.append(f"<details>{summary}{table}</details>")
    if groups["check"]:
        parts.append("<h2>Checks against our own references</h2>")
        parts.append(_claims_html("Numbers that this code gave before.", groups["check"]))
    return parts


# Name and caption of what folds away; no caption: in sight.
_GROUPS = {
    "decided": "",
    "check": "",
    "controls, shown without a verdict": "What else could explain a difference: estimates.",
    "not decided": "Measured, but with too few seeds, or against a reference without a spread.",
    "not run": "Not run in this preset, and what each would cost.",
}


def _group(one: Judged) -> str:
    if one.verdict in NOT_RUN:
        return "not run"
    if one.claim.origin == "our reference":
        return "check"
    if one.claim.family == "control":
        return "controls, shown without a verdict"
    undecided = one.verdict in ("INCONCLUSIVE", "ESTIMATE", "CONTEXT")
    return "not decided" if undecided else "decided"


def _claims_html(caption: str, judged: Sequence[Judged]) -> str:
    if not judged:
        return ""
    head = ("Verdict", "Claim", "Stated", "Ours", "Source, differences, notes")
    rows = []
    for one in judged:
        claim = one.claim
        badge = one.verdict.lower().replace(" ", "-")
        details = [
            f"{escape(claim.source)} ({claim.origin})",
            f"<q>{escape(claim.citation)}</q>" if claim.citation else "",
            f"<code>{escape(claim.command)}</code>" if claim.command else "",
            f"differs: {escape(claim.difference)}" if claim.difference else "",
            f"<em>{escape(one.note)}</em>" if one.note else "",
        ]
        rows.append(
            [
                f"<span id='{escape(claim.id)}' class='badge {badge}'>{one.verdict}</span>",
                *map(escape, (claim.text, one.stated, one.ours)),
                "<br>".join(filter(None, details)),
            ]
        )
    return page.table(caption, head, rows)


def _changes(declaration: Declaration) -> list[str]:
    if not declaration.changes:
        return []
    items = "".join(f"<li>{escape(line)}</li>" for line in declaration.changes)
    summary = f"<summary>changed since the first run: {len(declaration.changes)}</summary>"
    return [f"<details>{summary}<ul>{items}</ul></details>"]


def _json(report: Report) -> str:
    content = {
        "claims_sha256": report.declaration.sha256,
        "changes": list(report.declaration.changes),
        "learned": list(report.learned),
        "claims": [as_json(one) for one in report.judged],
        "results": [dict(row) for row in report.results.rows],
    }
    return json.dumps(content, indent=2) + "\n"


_STYLES = {
    "NUMBER MATCH": "bold green", "REPRODUCED": "bold green", "SUPPORTED": "bold green",
    "NUMBER MISS": "bold red", "NOT REPRODUCED": "bold red", "CONTRADICTED": "bold red",
    "NO EFFECT": "bold cyan", "INCONCLUSIVE": "yellow", "NOT RUN": "dim", "UNDERSPECIFIED": "dim",
}  # fmt: skip

_BADGES = """
.number-match, .reproduced, .supported { background: #00694b; }
.number-miss, .not-reproduced, .contradicted { background: #a63a00; }
.no-effect { background: #0b5a8a; } .inconclusive { background: #7a5c00; }
.underspecified { background: #7d4a72; }
"""
